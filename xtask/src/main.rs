//! `cargo xtask`: the verbs are in the library, which the end-to-end tests use as well.

use std::process::ExitCode;

fn main() -> ExitCode {
    xtask::main()
}
