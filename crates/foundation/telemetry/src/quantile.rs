//! Quantiles of histograms, for live views.

/// Estimates a quantile from upper bounds with cumulative counts, ascending and ending with
/// `+Inf`, by linear interpolation as PromQL's [histogram_quantile]; `None` without observations.
///
/// [histogram_quantile]: https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile
pub fn quantile(q: f64, buckets: &[(f64, u64)]) -> Option<f64> {
    let total = buckets.last().map(|bucket| bucket.1).filter(|total| *total > 0)?;
    let rank = q.clamp(0.0, 1.0) * total as f64;
    let index = buckets.iter().position(|bucket| bucket.1 as f64 >= rank)?;
    let (upper, cumulative) = buckets[index];
    let (lower, below) = if index == 0 { (0.0_f64.min(upper), 0) } else { buckets[index - 1] };
    if upper.is_infinite() {
        return Some(lower);
    }
    let within = cumulative - below;
    if within == 0 {
        return Some(upper);
    }
    Some(lower + (upper - lower) * (rank - below as f64) / within as f64)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn interpolates_as_promql_does() {
        let buckets = [(1.0, 10), (2.0, 20), (f64::INFINITY, 20)];
        for (name, q, buckets, expected) in [
            ("middle", 0.5, &buckets[..], Some(1.0)),
            ("upper half", 0.75, &buckets[..], Some(1.5)),
            ("none", 0.5, &[(1.0, 0), (f64::INFINITY, 0)][..], None),
            ("beyond the last bound", 0.99, &[(1.0, 1), (f64::INFINITY, 100)][..], Some(1.0)),
        ] {
            assert_eq!(quantile(q, buckets), expected, "{name}");
        }
    }
}
