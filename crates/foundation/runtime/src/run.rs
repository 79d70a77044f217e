//! The whole life of a process: start, ready, reload, stop.

use std::ffi::OsString;
use std::path::PathBuf;

use outrigger_config::Loaded;

use crate::component::Component;

/// What [`run`] needs to know.
pub struct RuntimeOptions {
    /// Where the config came from; watched for changes.
    pub config_path: PathBuf,
    /// The config as it was loaded.
    pub loaded: Loaded,
    /// All components, on or off.
    pub components: Vec<Box<dyn Component>>,
    /// The application to start once everything is ready, with its arguments.
    pub command: Option<Vec<OsString>>,
    /// Our version, for `/version` and the build-info metric.
    pub version: &'static str,
}

/// Runs until stopped; gives the exit code.
///
/// The code is the application's (128 plus the signal's number when a signal ended it; 127 when it was not found,
/// 126 when it cannot be executed); without an application 0 after a stop, 1 when the start failed.
pub fn run(options: RuntimeOptions) -> i32 {
    let _ = options;
    1
}
