//! Quantiles and medians of few numbers.

/// Converts a count to a real number; counters stay far below 2^53.
#[allow(clippy::cast_precision_loss, reason = "no counter here comes near 2^53")]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}

/// Returns the `q`-quantile, or `None` without values.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "an index is a small, positive number"
)]
pub(crate) fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let place = q * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

/// Returns the median, or `None` without values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}
