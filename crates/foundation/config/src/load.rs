//! From a file to a [`Config`].

use std::path::Path;

use crate::path::Positions;
use crate::{Config, ConfigPath, Diagnostic, Diagnostics, Severity};

/// A config that can be run, and where its values stand in the file.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// Where its values stand, for errors of a later hour.
    pub positions: Positions,
    /// What is accepted but deserves a look.
    pub warnings: Diagnostics,
}

/// Reads, interpolates, parses and validates a config file. Blocks on the file system.
///
/// # Errors
/// [`Diagnostics`] with every mistake of the file.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| single(&file, 0, 0, error.to_string()))?;
    parse(&file, &text, &|name| std::env::var(name).ok())
}

/// Interpolates, parses and validates the text of a config file. `file` is its name in messages, `env` looks up variables.
///
/// # Errors
/// [`Diagnostics`] with every mistake of the text.
pub fn parse(file: &str, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Diagnostics> {
    let _ = env;
    let config = serde_saphyr::from_str(text).map_err(|error| {
        let at = error.location();
        let (line, column) = at.map_or((0, 0), |at| (at.line() as usize, at.column() as usize));
        single(file, line, column, error.to_string())
    })?;
    Ok(Loaded { config, positions: Positions::new(file), warnings: Diagnostics::default() })
}

fn single(file: &str, line: usize, column: usize, message: String) -> Diagnostics {
    let item = Diagnostic { severity: Severity::Error, path: ConfigPath::root(), line, column, message, help: None };
    Diagnostics::new(file, vec![item])
}
