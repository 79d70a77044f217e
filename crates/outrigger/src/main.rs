//! Outrigger: every sidecar in one process.
//!
//! In: a command line. Out: an exit code. The binary is thin: it reads arguments, joins
//! features to the foundation and turns errors into text; the work is in the crates.

mod admin;
mod check;
mod cli;
mod cluster;
mod clusters;
mod connections;
mod controller;
mod demo;
mod expect;
mod explain;
mod explain_pod;
mod fleet;
mod init;
mod inject;
mod install;
mod keeper;
mod output;
mod privileges;
mod shop;
mod sidecar;
mod table;
mod tables;
mod tap;
mod top;
mod upgrade;
mod wait;

use std::process::ExitCode;

use cli::Command;

/// Chosen by measurement: docs/adr/0004-allocator.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Has the allocator give back to the system what this thread has freed: a large config leaves tens of megabytes of its
/// text and tree behind, which it would keep for the next one.
pub(crate) fn give_back() {
    #[expect(unsafe_code, reason = "the allocator offers it to C alone")]
    unsafe extern "C" {
        fn mi_collect(force: bool);
    }
    // SAFETY: it is mimalloc's own function of this name and type, and may be called at any time.
    #[expect(unsafe_code, reason = "as above")]
    unsafe {
        mi_collect(true);
    }
}

fn main() -> ExitCode {
    let result = match cli::parse().command {
        Command::Run(args) => sidecar::run(args),
        Command::Controller(args) => controller::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Init(args) => init::init(&args),
        Command::Wait(args) => wait::wait(&args),
        Command::Inject(args) => inject::inject(&args),
        Command::Uninject(args) => inject::uninject(&args),
        Command::Check(args) => cluster::check(&args),
        Command::Install(args) => install::install(&args),
        Command::Uninstall(args) => install::uninstall(&args),
        Command::Upgrade(args) => upgrade::upgrade(*args),
        Command::Fleet(args) => fleet::fleet(&args),
        Command::Keeper(args) => Ok(keeper::keep(args)),
        Command::Tap(args) => tap::tap(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Test(args) => expect::run(&args),
        Command::Routes(args) => tables::routes(&args),
        Command::Listeners(args) => tables::listeners(&args),
        Command::Top(args) => top::top(&args),
        Command::Connections(args) => connections::connections(&args),
        Command::Validate(args) => check::validate(&args),
        Command::Config(args) => check::effective(&args),
        Command::Clusters(args) => clusters::clusters(&args),
        Command::Schema(args) => check::schema(args.format),
        Command::Completion(args) => cli::completion(args.shell),
        Command::Version => output::print(&format!("outrigger {}\n", output::VERSION)).map(|()| 0),
        Command::Shop(args) => shop::serve(args).map(|()| 0),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
