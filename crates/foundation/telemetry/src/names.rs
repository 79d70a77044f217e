//! Which names a metric may have beside the others.
//!
//! In: a name, labels and a type, from our code or from outside. Out: the reason against
//! it. Promise: what passes can be exposed in both formats without two families' lines
//! being taken for one another's.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::family::Family;
use crate::native::{MAX_SCHEMA, MIN_SCHEMA};
use crate::series::Kind;

/// The largest classic histogram; a series must fit a chunk of cells.
const MAX_CLASSIC_BUCKETS: usize = 256;

/// Why a family was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The name is none that Prometheus takes.
    #[error("`{0}` is not a metric name; use letters, digits, `_` and `:`, not beginning with a digit")]
    Name(String),
    /// A label's name is none that Prometheus takes.
    #[error(
        "`{label}` is not a label name for `{family}`; use letters, digits and `_`, each name once, not `__…`, `le` or `quantile`"
    )]
    Label {
        /// The family.
        family: String,
        /// Its label.
        label: String,
    },
    /// The name is taken by a family of another type, other labels or other buckets.
    #[error("`{family}` exists already as a {existing}")]
    Conflict {
        /// The family.
        family: String,
        /// What it is.
        existing: String,
    },
    /// Bounds must be finite, ascending, and few; a native schema within its range.
    #[error("the buckets of `{0}` must be at most 256 finite numbers in ascending order, a native schema from -4 to 8")]
    Buckets(String),
    /// The budget of series, which bounds families too, is used up.
    #[error("no room for the family `{0}`: the registry's `maxSeries` is used up")]
    Full(String),
}

/// The family whose lines would be mixed up with those of a new one, in either format: `x_count` beside a histogram
/// `x`, a gauge `x` or a counter `x` beside a counter `x_total`, `x_created` beside any of them.
pub(crate) fn clash<'a>(
    families: &'a BTreeMap<Cow<'static, str>, Arc<Family>>,
    name: &str,
    kind: &Kind,
) -> Option<&'a Cow<'static, str>> {
    let owner = |name: &str| families.get_key_value(name).map(|(owner, family)| (owner, &*family.kind));
    // What the new one would add to the exposition, and what others add that is called like the new one.
    for suffix in SUFFIXES {
        if let Some((owner, of)) = name.strip_suffix(suffix).and_then(owner)
            && has_suffix(of, suffix)
        {
            return Some(owner);
        }
        if has_suffix(kind, suffix)
            && let Some((owner, _)) = owner(&format!("{}{suffix}", base(name, kind)))
            && **owner != *name
        {
            return Some(owner);
        }
    }
    // Counters lose their suffix in OpenMetrics, or get it there.
    let counter = |(owner, of): (&'a Cow<'static, str>, &Kind)| is_counter(of).then_some(owner);
    let with_total = format!("{name}_total");
    let with_total = owner(&with_total).and_then(counter);
    let created = name.strip_suffix("_created").and_then(|base| owner(&format!("{base}_total")).and_then(counter));
    let stripped = (base(name, kind) != name).then(|| owner(base(name, kind))).flatten();
    with_total.or(created).or(stripped.map(|(owner, _)| owner))
}

const SUFFIXES: [&str; 5] = ["_bucket", "_count", "_sum", "_created", "_total"];

/// Whether a family has lines with this suffix behind its name, in one format or the other.
fn has_suffix(kind: &Kind, suffix: &str) -> bool {
    match kind {
        Kind::Histogram(_) => suffix != "_total",
        Kind::Counter | Kind::FloatCounter => matches!(suffix, "_total" | "_created"),
        Kind::Gauge => false,
    }
}

fn is_counter(kind: &Kind) -> bool {
    matches!(kind, Kind::Counter | Kind::FloatCounter)
}

/// The name that suffixes are put behind.
fn base<'a>(name: &'a str, kind: &Kind) -> &'a str {
    name.strip_suffix("_total").filter(|_| is_counter(kind)).unwrap_or(name)
}

fn is_word(text: &str, extra: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

/// Whether a family may have a label of this name.
pub(crate) fn check_label(family: &str, label: &str) -> Result<(), RegistryError> {
    if is_word(label, "_") && !label.starts_with("__") && !matches!(label, "le" | "quantile") {
        return Ok(());
    }
    Err(RegistryError::Label { family: family.to_owned(), label: label.chars().take(255).collect() })
}

/// Whether a family may have this name, these labels and these buckets.
pub(crate) fn check(name: &str, kind: &Kind, labels: &[&str]) -> Result<(), RegistryError> {
    if !is_word(name, "_:") {
        return Err(RegistryError::Name(name.chars().take(255).collect()));
    }
    for (index, label) in labels.iter().enumerate() {
        check_label(name, label)?;
        if labels[..index].contains(label) {
            return Err(RegistryError::Label { family: name.to_owned(), label: (*label).to_owned() });
        }
    }
    let Kind::Histogram(buckets) = kind else { return Ok(()) };
    let bounds = buckets.classic().unwrap_or_default();
    let fit = bounds.len() <= MAX_CLASSIC_BUCKETS
        && bounds.iter().all(|bound| bound.is_finite())
        && bounds.windows(2).all(|pair| pair[0] < pair[1])
        && buckets.native().is_none_or(|(schema, _)| (MIN_SCHEMA..=MAX_SCHEMA).contains(&schema));
    if fit { Ok(()) } else { Err(RegistryError::Buckets(name.to_owned())) }
}
