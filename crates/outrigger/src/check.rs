//! `validate`, `config` and `schema`: what can be said of a config without running it.

use outrigger_config as config;

use crate::cli::{ConfigArgs, Format, SchemaFormat, ValidateArgs};
use crate::output;
use crate::sidecar;

/// Checks a config file; 0 when it can be run, 1 when not.
pub(crate) fn validate(args: &ValidateArgs) -> anyhow::Result<u8> {
    let path = &args.config.path;
    let outcome = config::load(path);
    let refusals = outcome.as_ref().map(refusals).unwrap_or_default();
    let valid = outcome.is_ok() && refusals.is_empty();
    let diagnostics = match &outcome {
        Ok(loaded) => &loaded.warnings,
        Err(diagnostics) => diagnostics,
    };
    match args.format {
        Format::Json => {
            // The whole report: file, verdict and each mistake.
            let mut report = diagnostics.to_json();
            report["valid"] = valid.into();
            if let Some(items) = report["diagnostics"].as_array_mut() {
                items.extend(refusals.iter().map(Refusal::to_json));
            }
            output::print(&format!("{report:#}\n"))?;
        }
        Format::Text => {
            output::diagnostics(diagnostics)?;
            for refusal in &refusals {
                output::error(&anyhow::anyhow!("{}\n --> {}", refusal.message, refusal.place));
            }
            if valid {
                output::print(&format!("{}: valid\n", path.display()))?;
            }
        }
    }
    Ok(u8::from(!valid))
}

/// Why a feature would refuse to start with a config: a template with an unknown function, say.
struct Refusal {
    component: &'static str,
    /// `file:line:column` of what it is about.
    place: String,
    message: String,
}

impl Refusal {
    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "severity": "error", "code": "refused", "component": self.component,
            "place": self.place, "message": self.message,
        })
    }
}

/// Asks each feature, as a start would, but for what only the place of that start has.
fn refusals(loaded: &config::Loaded) -> Vec<Refusal> {
    let refuses = |component: &dyn outrigger_runtime::Component| {
        let error = component.enabled(&loaded.config).then(|| component.judge(&loaded.config).err())??;
        let message = error.to_string();
        // Features begin with the config path of what they refuse.
        let about = message.split(": ").next().filter(|about| !about.contains(' ')).unwrap_or_default();
        let place = loaded.positions.locate(&config::ConfigPath::from(about));
        Some(Refusal { component: component.name(), place, message })
    };
    sidecar::components().iter().filter_map(|component| refuses(component.as_ref())).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_feature_would_refuse_is_found_without_starting_it() {
        let text = "secrets:\n  providers: [{ name: s, file: { directory: /tmp } }]\n  files:\n    - path: /tmp/x\n      template: '{{ secert \"a\" }}'\n";
        let loaded = config::parse("a.yaml", text, &|_| None).unwrap();
        let found = refusals(&loaded);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].component, found[0].place.as_str()), ("secrets", "a.yaml:5:17"));
        assert!(found[0].message.contains("secret"), "{}", found[0].message);
        let mended = config::parse("a.yaml", &text.replace("secert", "secret"), &|_| None).unwrap();
        assert!(refusals(&mended).is_empty());
    }
}
