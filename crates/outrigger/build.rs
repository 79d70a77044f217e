//! Packs the executable's relocations: a static executable that is loaded anywhere relocates itself at its start, and its
//! fifty thousand entries would else be read from 1.2 MB, each of 24 bytes, before anything else happens.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
