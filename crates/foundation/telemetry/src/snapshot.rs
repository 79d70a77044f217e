//! The registry as values, for whoever writes another format than text.
//!
//! In: families. Out: names, labels and values, native histograms with their exponential
//! buckets, in the same order as the text formats. Promise: taking it makes no writer wait.

use std::time::SystemTime;

use crate::family::Family;
use crate::native::NativeSnapshot;
use crate::series::{Buckets, Kind, Series};

/// All series of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct FamilySnapshot {
    /// The name, for counters with `_total` if they were registered so.
    pub name: String,
    /// What it means.
    pub help: String,
    /// Its series.
    pub series: Vec<SeriesSnapshot>,
}

/// One series.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesSnapshot {
    /// Labels that have a value, in the family's order.
    pub labels: Vec<(String, String)>,
    /// When it was created: a counter began at zero then.
    pub created: SystemTime,
    /// Its value.
    pub value: Value,
}

/// The value of a series; it says the family's type, too.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A counter.
    Counter(f64),
    /// A gauge.
    Gauge(f64),
    /// A histogram.
    Histogram {
        /// Upper bounds with cumulative counts, ascending, without `+Inf`; absent when there are native buckets only.
        classic: Option<Vec<(f64, u64)>>,
        /// Exponential buckets.
        native: Option<NativeSnapshot>,
        /// Sum of all observations.
        sum: f64,
        /// Observations.
        count: u64,
    },
}

impl FamilySnapshot {
    pub(crate) fn of(family: &Family) -> Self {
        let all = family.sorted();
        // Asked for after the series: their labels are among these.
        let names = family.labels();
        let series = all.iter().map(|series| {
            let labels = names.iter().zip(series.key.split('\0')).filter(|(_, value)| !value.is_empty());
            SeriesSnapshot {
                labels: labels.map(|(name, value)| (name.to_string(), value.to_owned())).collect(),
                created: series.created,
                value: value(series),
            }
        });
        Self { name: family.name.to_string(), help: family.help.to_string(), series: series.collect() }
    }
}

fn value(series: &Series) -> Value {
    match &*series.kind {
        Kind::Counter => Value::Counter(series.whole() as f64),
        Kind::FloatCounter => Value::Counter(series.float()),
        Kind::Gauge => Value::Gauge(series.float()),
        Kind::Histogram(buckets) => histogram(series, buckets),
    }
}

fn histogram(series: &Series, buckets: &Buckets) -> Value {
    let native = series.native();
    if buckets.classic().is_none()
        && let Some(native) = native
    {
        return Value::Histogram { classic: None, sum: native.sum, count: native.count, native: Some(native) };
    }
    let (classic, sum, count) = series.histogram();
    Value::Histogram { classic: Some(classic), native, sum, count }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registry;

    #[test]
    fn a_histogram_of_both_kinds_shows_both() {
        let registry = Registry::new(&outrigger_config::MetricsRegistry::default(), 2);
        let both = Buckets::Both { classic: vec![1.0], schema: 0, max_buckets: 20 };
        let histogram = registry.histogram("h", "H", &["a", "b"], both).with(&["", "x"]);
        histogram.observe(0.5);
        histogram.observe(3.0);
        let all = registry.snapshot();
        let family = all.iter().find(|family| family.name == "h").unwrap();
        assert_eq!(family.series[0].labels, [("b".to_owned(), "x".to_owned())]);
        let Value::Histogram { classic, native: Some(native), sum, count } = &family.series[0].value else {
            panic!("{family:?}");
        };
        assert_eq!((classic, *sum, *count), (&Some(vec![(1.0, 1)]), 3.5, 2));
        assert_eq!((native.positive.len(), native.count, native.sum), (2, 2, 3.5));
    }
}
