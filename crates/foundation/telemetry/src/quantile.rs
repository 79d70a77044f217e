//! Quantiles of histograms, for live views.

/// Estimates a quantile from upper bounds with cumulative counts, ascending and ending with `+Inf`, by linear
/// interpolation as PromQL's [histogram_quantile]: within the first bucket from zero if its bound is positive, and the
/// last finite bound for what lies above it. `None` where PromQL gives NaN: without observations, without finite bounds,
/// or without the bucket `+Inf`. A `q` below 0 gives minus infinity, one above 1 infinity.
///
/// [histogram_quantile]: https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile
pub fn quantile(q: f64, buckets: &[(f64, u64)]) -> Option<f64> {
    let ((last, total), finite) = buckets.split_last()?;
    if *last != f64::INFINITY || finite.is_empty() || q.is_nan() {
        return None;
    }
    // Counts are read one after the other while others write: one may lag behind the one before it.
    let total = finite.iter().map(|bucket| bucket.1).fold(*total, u64::max);
    if total == 0 {
        return None;
    }
    if !(0.0..=1.0).contains(&q) {
        return Some(if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    let rank = q * total as f64;
    let (mut lower, mut below) = (None, 0);
    for (upper, cumulative) in finite {
        let cumulative = below.max(*cumulative);
        // A bucket that holds nothing cannot hold the quantile, not even the lowest.
        if cumulative > below && cumulative as f64 >= rank {
            let start = match lower {
                Some(start) => start,
                None if *upper <= 0.0 => return Some(*upper),
                None => 0.0,
            };
            let share = (rank - below as f64) / (cumulative - below) as f64;
            return Some(start + (upper - start) * share);
        }
        (lower, below) = (Some(*upper), cumulative);
    }
    lower
}

#[cfg(test)]
mod tests {
    use super::quantile;

    const INF: f64 = f64::INFINITY;

    #[test]
    fn interpolates_as_promql_does() {
        let even = &[(1.0, 10), (2.0, 20), (INF, 20)][..];
        for (name, q, buckets, expected) in [
            ("middle", 0.5, even, Some(1.0)),
            ("upper half", 0.75, even, Some(1.5)),
            ("first bucket begins at zero", 0.25, even, Some(0.5)),
            ("all", 1.0, even, Some(2.0)),
            ("lowest", 0.0, even, Some(0.0)),
            ("lowest of a bucket farther up", 0.0, &[(1.0, 0), (2.0, 4), (INF, 4)], Some(1.0)),
            ("negative first bound", 0.5, &[(-1.0, 10), (1.0, 10), (INF, 10)], Some(-1.0)),
            ("negative second bucket", 0.75, &[(-2.0, 10), (-1.0, 20), (INF, 20)], Some(-1.5)),
            ("beyond the last bound", 0.99, &[(1.0, 1), (INF, 100)], Some(1.0)),
            ("a count that lags", 0.9, &[(1.0, 10), (2.0, 9), (4.0, 20), (INF, 19)], Some(3.6)),
            ("no observations", 0.5, &[(1.0, 0), (INF, 0)], None),
            ("no finite bound", 0.5, &[(INF, 5)], None),
            ("no infinity", 0.5, &[(1.0, 5)], None),
            ("no buckets", 0.5, &[], None),
            ("too low", -0.1, even, Some(-INF)),
            ("too high", 1.1, even, Some(INF)),
            ("not a number", f64::NAN, even, None),
        ] {
            let found = quantile(q, buckets);
            let near = found.zip(expected).is_some_and(|(a, b)| a == b || (a - b).abs() < 1e-9);
            assert!(near || (found.is_none() && expected.is_none()), "{name}: {found:?}");
        }
    }
}
