//! The annotations `outrigger.dev/*`: one table, read by the injector and printed as the reference.
//!
//! In: a pod's annotations. Out: settings, refined. Promise: an annotation that is unknown or has
//! a bad value is never passed over: the refusal names it, and what it may be.

use std::fmt::Write;
use std::net::IpAddr;

use serde_json::Value;

use crate::json;
use crate::layers::Layer;
use crate::settings::{ConfigMapKey, Interception, Mtls, PullPolicy, Settings};
use crate::yaml::{self, Dialect};

/// Before every name of ours.
pub(crate) const PREFIX: &str = "outrigger.dev/";
/// Whether a pod is injected; a label of namespaces and pods, and an annotation of pods.
pub(crate) const INJECT: &str = "outrigger.dev/inject";
/// What was done, so that it can be undone. Ours alone.
pub(crate) const STATUS: &str = "outrigger.dev/status";
/// What connections to the pod's ports must be. Discovery goes by it: pods without it are spoken to in plain text.
pub(crate) const MTLS: &str = "outrigger.dev/mtls";
/// The config that the sidecar reads. Ours alone.
pub(crate) const EFFECTIVE: &str = "outrigger.dev/effective-config";

/// One annotation.
pub struct Annotation {
    /// Without the prefix.
    pub name: &'static str,
    /// What may be written.
    pub allowed: &'static str,
    /// What holds without it.
    pub default: &'static str,
    /// What it does.
    pub about: &'static str,
    apply: fn(&mut Settings, &str) -> Result<(), String>,
}

/// All of them, by name.
pub static ANNOTATIONS: &[Annotation] = &[
    row(
        "config",
        "Outrigger's config as YAML",
        "the profile's",
        "Refines the profile's config: maps are merged, lists of things with a `name` by that name, everything else is replaced.",
        |s, v| {
            let value = yaml::read(v, Dialect::Config).map_err(|mistake| mistake.to_string())?;
            if !value.is_object() {
                return Err("it is no map of sections such as `proxy:`".to_owned());
            }
            s.config_map = None;
            s.layers.push(Layer::new("annotation outrigger.dev/config", value));
            Ok(())
        },
    ),
    row(
        "config-map",
        "`NAME` or `NAME/KEY` of a ConfigMap in the pod's namespace",
        "none",
        "The config is read from there (key `outrigger.yaml`), instead of the profile's and the annotation's. Changes are taken over by the running sidecar.",
        |s, v| {
            let (name, key) =
                v.split_once('/').map_or((v, ConfigMapKey::default_key()), |(name, key)| (name, key.to_owned()));
            dns_name(name)?;
            s.config = None;
            s.layers.clear();
            s.config_map = Some(ConfigMapKey { name: name.to_owned(), key });
            Ok(())
        },
    ),
    row("cpu-limit", "a quantity such as `500m`, or `none`", "none", "CPU that Outrigger may use.", |s, v| {
        quantity_or_none(v, &mut s.resources.cpu_limit)
    }),
    row(
        "cpu-request",
        "a quantity such as `10m`, or `none`",
        "`10m`",
        "CPU that is reserved for Outrigger.",
        |s, v| quantity_or_none(v, &mut s.resources.cpu_request),
    ),
    row(
        "exclude-inbound-ports",
        "ports and ranges, separated by commas",
        "none",
        "Connections to these ports reach the application directly.",
        |s, v| list(v, port_range, &mut s.redirect.exclude_inbound_ports),
    ),
    row(
        "exclude-outbound-cidrs",
        "networks or addresses, separated by commas",
        "none",
        "Connections of the application to these networks are left alone.",
        |s, v| list(v, cidr, &mut s.redirect.exclude_outbound_cidrs),
    ),
    row(
        "exclude-outbound-ports",
        "ports and ranges, separated by commas",
        "none",
        "Connections of the application to these ports are left alone.",
        |s, v| list(v, port_range, &mut s.redirect.exclude_outbound_ports),
    ),
    row(
        "exclude-outbound-uids",
        "numbers, separated by commas",
        "none",
        "Connections of processes of these users are left alone.",
        |s, v| list(v, |v| number(v, 0, u32::MAX).map(drop), &mut s.redirect.exclude_outbound_uids),
    ),
    row(
        "hold-application",
        "`true` or `false`",
        "`true`",
        "Whether containers that come after Outrigger, the application among them, wait until it is ready.",
        |s, v| set(&mut s.hold_application, boolean(v)),
    ),
    row("image", "an image", "the profile's", "The image of Outrigger.", |s, v| set(&mut s.image, image(v))),
    row(
        "image-pull-policy",
        "`Always`, `IfNotPresent` or `Never`",
        "the cluster's",
        "When the kubelet fetches the image.",
        |s, v| {
            s.image_pull_policy = Some(match v {
                "Always" => PullPolicy::Always,
                "IfNotPresent" => PullPolicy::IfNotPresent,
                "Never" => PullPolicy::Never,
                _ => return Err(String::new()),
            });
            Ok(())
        },
    ),
    row(
        "include-inbound-ports",
        "ports and ranges, separated by commas",
        "all",
        "Only connections to these ports go through Outrigger.",
        |s, v| list(v, port_range, &mut s.redirect.include_inbound_ports),
    ),
    row(
        "include-outbound-cidrs",
        "networks or addresses, separated by commas",
        "all",
        "Only connections of the application to these networks go through Outrigger.",
        |s, v| list(v, cidr, &mut s.redirect.include_outbound_cidrs),
    ),
    row(
        "include-outbound-ports",
        "ports and ranges, separated by commas",
        "all",
        "Only connections of the application to these ports go through Outrigger.",
        |s, v| list(v, port_range, &mut s.redirect.include_outbound_ports),
    ),
    row(
        "inject",
        "`enabled` or `disabled` (`true` or `false`)",
        "the namespace's",
        "Whether the pod is injected; as a label it counts more than as an annotation.",
        |_, v| switch(v).map(drop),
    ),
    row(
        "interception",
        "`init`, `self` or `none`",
        "`init`",
        "`init`: an init container with NET_ADMIN redirects the pod's TCP connections. `self`: the sidecar does it at its start and gives every capability up, which saves the init container. `none`: the application calls listeners of the config itself, and the pod passes the Pod Security level `restricted`.",
        |s, v| {
            s.interception = match v {
                "init" => Interception::Init,
                "self" => Interception::Own,
                "none" => Interception::None,
                _ => return Err(String::new()),
            };
            Ok(())
        },
    ),
    row(
        "log-folders",
        "absolute paths, separated by commas",
        "none",
        "Folders the application writes log files to: Outrigger sees them at the same path, read-only. What no volume is mounted at gets an `emptyDir`.",
        |s, v| list(v, absolute, &mut s.log_folders),
    ),
    row(
        "log-level",
        "`off`, `error`, `warn`, `info`, `debug` or `trace`",
        "the config's",
        "The level of Outrigger's own log.",
        |s, v| {
            if !matches!(v, "off" | "error" | "warn" | "info" | "debug" | "trace") {
                return Err(String::new());
            }
            s.log_level = Some(v.to_owned());
            Ok(())
        },
    ),
    row(
        "memory-limit",
        "a quantity such as `128Mi`, or `none`",
        "`128Mi`",
        "Memory that Outrigger may use.",
        |s, v| quantity_or_none(v, &mut s.resources.memory_limit),
    ),
    row(
        "memory-request",
        "a quantity such as `32Mi`, or `none`",
        "`32Mi`",
        "Memory that is reserved for Outrigger.",
        |s, v| quantity_or_none(v, &mut s.resources.memory_request),
    ),
    row(
        "merge-metrics",
        "`true` or `false`",
        "`true`",
        "Whether what `prometheus.io/*` names is served together with Outrigger's metrics at port 15020, and the annotations changed to it.",
        |s, v| set(&mut s.merge_metrics, boolean(v)),
    ),
    row(
        "mtls",
        "`permissive`, `strict` or `disabled`",
        "the profile's",
        "What connections to the pod's ports must be: `permissive`: mTLS from sidecars, plain text from all others. `strict`: mTLS from workloads of the trust domain, and nothing else. `disabled`: plain text. Takes a profile with `mesh`, or a config whose inbound listener has that `tls`.",
        |s, v| {
            s.mtls = match v {
                "permissive" => Mtls::Permissive,
                "strict" => Mtls::Strict,
                "disabled" => Mtls::Disabled,
                _ => return Err(String::new()),
            };
            Ok(())
        },
    ),
    row(
        "native-sidecar",
        "`true` or `false`",
        "`true`",
        "Whether Outrigger is an init container with `restartPolicy: Always`; `false` for clusters before Kubernetes 1.29.",
        |s, v| set(&mut s.native_sidecars, boolean(v)),
    ),
    row("redirect-dns", "`true` or `false`", "`false`", "Whether DNS over TCP goes through Outrigger, too.", |s, v| {
        set(&mut s.redirect.redirect_dns, boolean(v))
    }),
    row(
        "rewrite-probes",
        "`true` or `false`",
        "`true`",
        "Whether HTTP, TCP and gRPC probes and HTTP hooks go through port 15021, so that the kubelet needs no certificate.",
        |s, v| set(&mut s.rewrite_probes, boolean(v)),
    ),
    row(
        "run-as-user",
        "a number from 1 to 4294967294",
        "`15000`",
        "User and group that Outrigger runs as; no container of the pod may run as it.",
        |s, v| {
            s.run_as_user = number(v, 1, u32::MAX - 1)?;
            s.run_as_group = s.run_as_user;
            Ok(())
        },
    ),
    row(
        "secret-folders",
        "absolute paths, separated by commas",
        "the folders of the config's `secrets.files`",
        "Folders in memory that Outrigger writes secrets to and the application reads; needed with `config-map` only.",
        |s, v| list(v, absolute, &mut s.secret_folders),
    ),
    row(
        "start-timeout",
        "seconds, from 1 to 3600",
        "`60`",
        "How long containers wait for Outrigger; then it is started again.",
        |s, v| set(&mut s.start_timeout_seconds, number(v, 1, 3600)),
    ),
    row(
        "tokens",
        "audiences, separated by commas",
        "none",
        "For each a service account token of that audience, in `/var/run/secrets/outrigger/tokens`.",
        |s, v| list(v, audience, &mut s.tokens),
    ),
];

const fn row(
    name: &'static str,
    allowed: &'static str,
    default: &'static str,
    about: &'static str,
    apply: fn(&mut Settings, &str) -> Result<(), String>,
) -> Annotation {
    Annotation { name, allowed, default, about, apply }
}

/// Which annotations of a pod change settings, one by one, for who explains them.
pub(crate) fn each(pod: &Value) -> impl Iterator<Item = (&'static Annotation, &str)> {
    let ours = json::annotations(pod).filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)));
    ours.filter_map(|(name, value)| Some((ANNOTATIONS.iter().find(|one| one.name == name)?, value)))
}

impl Annotation {
    /// Settings with this annotation.
    pub(crate) fn applied(&self, settings: &mut Settings, value: &str) {
        // A bad value refused the pod before.
        let _ = (self.apply)(settings, value);
    }
}

/// Refines settings by a pod's annotations; every bad one is a problem.
pub(crate) fn refine(settings: &mut Settings, pod: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let ours = json::annotations(pod).filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)));
    for (name, value) in ours.filter(|(name, _)| ![STATUS, EFFECTIVE].contains(&format!("{PREFIX}{name}").as_str())) {
        match ANNOTATIONS.iter().find(|annotation| annotation.name == name) {
            None => problems.push(unknown(name)),
            Some(annotation) => {
                if let Err(why) = (annotation.apply)(settings, value) {
                    let why = if why.is_empty() { why } else { format!(": {why}") };
                    let value = shortened(value);
                    problems.push(format!(
                        "annotation `{PREFIX}{name}` has the value `{value}`{why}; allowed: {}",
                        annotation.allowed
                    ));
                }
            }
        }
    }
    let has = |name: &str| json::annotation(pod, &format!("{PREFIX}{name}")).is_some();
    if has("config") && has("config-map") {
        problems.push(
            "annotations `outrigger.dev/config` and `outrigger.dev/config-map` exclude one another; keep one of them"
                .to_owned(),
        );
    }
    problems
}

fn unknown(name: &str) -> String {
    let nearest = ANNOTATIONS.iter().map(|known| (strsim::jaro_winkler(known.name, name), known.name));
    let nearest = nearest.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(likeness, _)| *likeness > 0.85);
    match nearest {
        Some((_, known)) => format!("annotation `{PREFIX}{name}` is unknown; is `{PREFIX}{known}` meant?"),
        None => format!(
            "annotation `{PREFIX}{name}` is unknown; remove it, or look for its name in the reference of annotations"
        ),
    }
}

pub(crate) fn shortened(value: &str) -> String {
    let mut short: String = value.chars().take(60).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    short.replace('\n', "⏎")
}

/// Whether a word turns injection on; `Err` for any other word.
pub(crate) fn switch(word: &str) -> Result<bool, String> {
    match word {
        "enabled" | "true" => Ok(true),
        "disabled" | "false" => Ok(false),
        _ => Err(String::new()),
    }
}

fn set<T>(slot: &mut T, value: Result<T, String>) -> Result<(), String> {
    *slot = value?;
    Ok(())
}

pub(crate) fn boolean(word: &str) -> Result<bool, String> {
    // Go's ParseBool, which vault-k8s and others read theirs by.
    match word {
        "true" | "1" | "t" | "T" | "TRUE" | "True" => Ok(true),
        "false" | "0" | "f" | "F" | "FALSE" | "False" => Ok(false),
        _ => Err(String::new()),
    }
}

fn number(word: &str, least: u32, most: u32) -> Result<u32, String> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    word.parse().ok().filter(|number| digits && (least..=most).contains(number)).ok_or_else(String::new)
}

fn list(words: &str, check: fn(&str) -> Result<(), String>, into: &mut Vec<String>) -> Result<(), String> {
    let words: Vec<&str> = words.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    for word in &words {
        check(word).map_err(|why| if why.is_empty() { format!("`{word}` is none") } else { why })?;
    }
    *into = words.into_iter().map(str::to_owned).collect();
    Ok(())
}

fn port_range(word: &str) -> Result<(), String> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (number(first, 1, 65535)?, number(last, 1, 65535)?);
    if first > last { Err(format!("`{word}` ends before it begins")) } else { Ok(()) }
}

fn cidr(word: &str) -> Result<(), String> {
    let (address, prefix) = word.split_once('/').map_or((word, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().map_err(|_| String::new())?;
    let (bits, value) = match address {
        IpAddr::V4(address) => (32, u128::from(u32::from(address)) << 96),
        IpAddr::V6(address) => (128, u128::from(address)),
    };
    let prefix = prefix.map_or(Ok(bits), |prefix| number(prefix, 0, bits))?;
    let beyond = value.checked_shl(prefix).unwrap_or(0);
    if beyond != 0 { Err(format!("`{word}` has bits set beyond its prefix")) } else { Ok(()) }
}

/// An absolute path without steps back, which may be a mount point.
fn absolute(word: &str) -> Result<(), String> {
    let steps = word.split('/').skip(1);
    let good = word.starts_with('/') && word.len() > 1 && !word.contains([':', '\0']);
    if good && !steps.into_iter().any(|step| matches!(step, "" | "." | "..")) {
        Ok(())
    } else {
        Err(format!("`{word}` is no absolute path such as `/var/log/app`"))
    }
}

/// An audience that can also be a file's name, once slashes are replaced.
fn audience(word: &str) -> Result<(), String> {
    if word.len() <= 200 && word.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(()) } else { Err(String::new()) }
}

fn dns_name(word: &str) -> Result<(), String> {
    let usual = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if !word.is_empty() && word.len() <= 253 && word.bytes().all(usual) { Ok(()) } else { Err(String::new()) }
}

fn image(word: &str) -> Result<String, String> {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'/' | b':' | b'@');
    if word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.bytes().all(usual) {
        Ok(word.to_owned())
    } else {
        Err(String::new())
    }
}

fn quantity_or_none(word: &str, slot: &mut Option<String>) -> Result<(), String> {
    *slot = match word {
        "none" => None,
        word => Some(quantity(word)?),
    };
    Ok(())
}

/// A quantity as Kubernetes writes it; above zero.
pub(crate) fn quantity(word: &str) -> Result<String, String> {
    let digits = word.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = word.split_at(digits);
    let units = ["", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let value = number.parse::<f64>().ok().filter(|value| *value > 0.0 && value.is_finite());
    if value.is_some() && !number.ends_with('.') && !number.starts_with('.') && units.contains(&unit) {
        Ok(word.to_owned())
    } else {
        Err(String::new())
    }
}

/// The reference of annotations, as Markdown.
pub fn annotations_reference() -> String {
    let mut text = String::from(
        "# Annotations\n\nGenerated from the code (`cargo xtask bless`). What they do together: [injection](../injection.md).\n\n\
         ## `outrigger.dev/`\n\nOn pods and pod templates. An unknown name or a bad value refuses the pod.\n\n\
         | annotation | values | default | |\n|---|---|---|---|\n",
    );
    for Annotation { name, allowed, default, about, .. } in ANNOTATIONS {
        let _ = writeln!(text, "| `{name}` | {allowed} | {default} | {about} |");
    }
    text.push_str(
        "\n`outrigger.dev/status` and `outrigger.dev/effective-config` are written by the injector: what was done, and the config that the sidecar reads.\n\n\
         Labels: `outrigger.dev/inject` on namespaces and pods.\n\n## `prometheus.io/`\n\n\
         | annotation | |\n|---|---|\n\
         | `scrape` | with `true`, and unless `merge-metrics` is `false`, the application's metrics are served together with Outrigger's |\n\
         | `port`, `path`, `scheme` | where they are scraped inside the pod; changed to `15020`, `/metrics`, `http` |\n\n",
    );
    text.push_str(&crate::vault::reference());
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_is_sorted_and_without_repeats() {
        assert!(ANNOTATIONS.is_sorted_by(|a, b| a.name < b.name));
    }

    #[test]
    fn bad_values_are_told_with_name_and_what_is_allowed() {
        for (name, value, expected) in [
            ("cpu-limit", "lots", "annotation `outrigger.dev/cpu-limit` has the value `lots`; allowed: a quantity"),
            ("cpu-limit", "0", "allowed: a quantity"),
            ("exclude-outbound-ports", "80,x", "`x` is none; allowed: ports and ranges"),
            ("exclude-outbound-ports", "90-80", "ends before it begins"),
            ("exclude-outbound-cidrs", "10.0.0.1/8", "bits set beyond"),
            ("interception", "magic", "allowed: `init`, `self` or `none`"),
            ("config", "- a", "no map of sections"),
            ("config", "a: [", "line 1"),
            ("run-as-user", "0", "from 1 to"),
            ("log-folders", "var/log", "no absolute path"),
            ("log-folders", "/var/../etc", "no absolute path"),
            ("inject", "maybe", "allowed: `enabled`"),
            ("interceptoin", "none", "is `outrigger.dev/interception` meant?"),
            ("colour", "red", "is unknown; remove it"),
        ] {
            let key = format!("{PREFIX}{name}");
            let pod = json!({ "metadata": { "annotations": { key: value } } });
            let problems = refine(&mut Settings::default(), &pod);
            assert!(problems.len() == 1 && problems[0].contains(expected), "{name}={value}: {problems:?}");
        }
    }

    #[test]
    fn good_values_are_taken() {
        let mut settings = Settings::default();
        let pod = json!({ "metadata": { "annotations": {
            "outrigger.dev/cpu-limit": "1.5", "outrigger.dev/memory-limit": "none", "outrigger.dev/interception": "none",
            "outrigger.dev/exclude-outbound-ports": "3306, 9000-9100", "outrigger.dev/exclude-outbound-cidrs": "10.0.0.0/8,fd00::/8,10.1.2.3",
            "outrigger.dev/config-map": "shop/my.yaml", "outrigger.dev/tokens": "vault,https://x.example",
        } } });
        assert_eq!(refine(&mut settings, &pod), Vec::<String>::new());
        assert_eq!(settings.resources.cpu_limit.as_deref(), Some("1.5"));
        assert_eq!(settings.resources.memory_limit, None);
        assert_eq!(settings.redirect.exclude_outbound_ports, ["3306", "9000-9100"]);
        assert_eq!(settings.config_map, Some(ConfigMapKey { name: "shop".to_owned(), key: "my.yaml".to_owned() }));
        assert_eq!(settings.tokens, ["vault", "https://x.example"]);
    }
}
