//! `validate`, `config` and `schema`: what can be said of a config without running it.

use outrigger_config as config;

use crate::cli::{ConfigArgs, Format, SchemaFormat, ValidateArgs};
use crate::output;

/// Checks a config file; 0 when it can be run, 1 when not.
pub(crate) fn validate(args: &ValidateArgs) -> anyhow::Result<u8> {
    let path = &args.config.path;
    let outcome = config::load(path);
    let diagnostics = match &outcome {
        Ok(loaded) => &loaded.warnings,
        Err(diagnostics) => diagnostics,
    };
    match args.format {
        Format::Json => {
            // It is the whole report: file, verdict and each mistake.
            output::print(&format!("{:#}\n", diagnostics.to_json()))?;
        }
        Format::Text => {
            output::diagnostics(diagnostics)?;
            if outcome.is_ok() {
                output::print(&format!("{}: valid\n", path.display()))?;
            }
        }
    }
    Ok(u8::from(outcome.is_err()))
}

/// Prints the effective config.
pub(crate) fn effective(args: &ConfigArgs) -> anyhow::Result<u8> {
    let loaded = match config::load(&args.config.path) {
        Ok(loaded) => loaded,
        Err(diagnostics) => {
            output::diagnostics(&diagnostics)?;
            return Ok(1);
        }
    };
    match args.format {
        Format::Text => output::print(&config::to_yaml(&loaded.config))?,
        Format::Json => output::print(&format!("{:#}\n", serde_json::to_value(&loaded.config)?))?,
    }
    Ok(0)
}

/// Prints the config's schema or reference.
pub(crate) fn schema(format: SchemaFormat) -> anyhow::Result<u8> {
    match format {
        SchemaFormat::Json => output::print(&format!("{:#}\n", config::json_schema()))?,
        SchemaFormat::Markdown => output::print(&config::markdown_reference())?,
    }
    Ok(0)
}
