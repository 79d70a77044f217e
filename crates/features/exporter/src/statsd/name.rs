//! Turns StatsD's free names into Prometheus's strict ones.
//!
//! In: a name or tag key of any bytes. Out: a valid metric or label name, mapped as
//! Prometheus's statsd_exporter does: what is not allowed becomes `_`, and a leading
//! digit gets one before it. Promise: the result matches `[a-zA-Z_][a-zA-Z0-9_]*`.

use super::parse::Value;

/// Label names by which Prometheus tells the parts of a histogram or summary apart.
const RESERVED_LABELS: [&str; 2] = ["le", "quantile"];

/// What becomes of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Timer,
    Distribution,
}

impl Kind {
    pub(crate) fn of(value: Value) -> Self {
        match value {
            Value::Counter(_) => Self::Counter,
            Value::Gauge(_) | Value::GaugeDelta(_) => Self::Gauge,
            Value::Timer(_) => Self::Timer,
            Value::Distribution(_) => Self::Distribution,
        }
    }

    /// As the `type` label shows it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Timer => "timer",
            Self::Distribution => "distribution",
        }
    }

    /// What the exposition says about it.
    pub(crate) const fn help(self) -> &'static str {
        match self {
            Self::Counter => "A StatsD counter.",
            Self::Gauge => "A StatsD gauge.",
            Self::Timer => "A StatsD timer, in seconds.",
            Self::Distribution => "A StatsD histogram or distribution, in the unit it was sent in.",
        }
    }

    /// What the name of such a metric ends in.
    fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Timer => "_seconds",
            Self::Gauge | Self::Distribution => "",
        }
    }
}

/// The metric's name, its unit or `_total` at the end.
pub(crate) fn metric_name(prefix: &str, name: &[u8], kind: Kind) -> String {
    let mut mapped = String::with_capacity(prefix.len() + name.len() + 8);
    map(prefix.as_bytes(), &mut mapped);
    map(name, &mut mapped);
    if !mapped.ends_with(kind.suffix()) {
        mapped.push_str(kind.suffix());
    }
    mapped
}

/// The label's name; one that Prometheus keeps for itself gets `exported_` before it, as it does when a scrape's labels clash.
pub(crate) fn label_name(key: &[u8]) -> String {
    let mut mapped = String::with_capacity(key.len());
    map(key, &mut mapped);
    if mapped.starts_with("__") || RESERVED_LABELS.contains(&mapped.as_str()) {
        mapped.insert_str(0, "exported_");
    }
    mapped
}

/// The label's value: text, whatever was sent.
pub(crate) fn label_value(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn map(bytes: &[u8], into: &mut String) {
    // A character of several bytes becomes one `_`, so its continuation bytes are passed over.
    for byte in bytes.iter().filter(|byte| !matches!(byte, 0x80..=0xbf)) {
        if into.is_empty() && byte.is_ascii_digit() {
            into.push('_');
        }
        into.push(if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '_' });
    }
    if into.is_empty() && !bytes.is_empty() {
        into.push('_');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_mapped() {
        for (prefix, name, kind, expected) in [
            ("", "page.views", Kind::Counter, "page_views_total"),
            ("", "page.views_total", Kind::Counter, "page_views_total"),
            ("shop.", "cart-size", Kind::Gauge, "shop_cart_size"),
            ("", "db.query", Kind::Timer, "db_query_seconds"),
            ("", "db.query_seconds", Kind::Timer, "db_query_seconds"),
            ("", "payload.bytes", Kind::Distribution, "payload_bytes"),
            ("", "2xx", Kind::Gauge, "_2xx"),
            ("shop.", "2xx", Kind::Gauge, "shop_2xx"),
            ("", "größe", Kind::Gauge, "gr__e"),
            ("", "a b/c", Kind::Gauge, "a_b_c"),
        ] {
            assert_eq!(metric_name(prefix, name.as_bytes(), kind), expected, "{name}");
        }
    }

    #[test]
    fn labels_are_mapped() {
        for (key, expected) in [
            ("env", "env"),
            ("kube-app", "kube_app"),
            ("le", "exported_le"),
            ("instance", "instance"),
            ("__name__", "exported___name__"),
            ("1st", "_1st"),
        ] {
            assert_eq!(label_name(key.as_bytes()), expected, "{key}");
        }
    }

    proptest! {
        #[test]
        fn mapped_names_are_valid(prefix in "\\PC{0,6}", bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
            let valid = |name: &str| {
                name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                    && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            };
            for kind in [Kind::Counter, Kind::Gauge, Kind::Timer, Kind::Distribution] {
                prop_assert!(valid(&metric_name(&prefix, &bytes, kind)));
            }
            prop_assert!(valid(&label_name(&bytes)));
        }
    }
}
