//! Whole units in proportion to weights.

/// `total` units in proportion to `weights`, by largest remainder; ties go to the earlier one. Weights
/// are finite and not negative; where all are zero, they count as equal.
pub(super) fn largest_remainder(total: u32, weights: &[f64]) -> Vec<u32> {
    if weights.is_empty() {
        return Vec::new();
    }
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = if sum > 0.0 {
        weights.iter().map(|weight| f64::from(total) * weight / sum).collect()
    } else {
        vec![f64::from(total) / weights.len() as f64; weights.len()]
    };
    let mut counts: Vec<u32> = exact.iter().map(|share| share.floor() as u32).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let left = total.saturating_sub(counts.iter().sum());
    for &at in order.iter().cycle().take(left as usize) {
        counts[at] += 1;
    }
    // Rounding of the quotients can make one too many of a huge total.
    let mut over = counts.iter().sum::<u32>().saturating_sub(total);
    for count in counts.iter_mut().rev() {
        let cut = over.min(*count);
        *count -= cut;
        over -= cut;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_follow_the_weights_and_add_up() {
        assert_eq!(largest_remainder(8, &[1.0, 1.0, 2.0]), [2, 2, 4]);
        assert_eq!(largest_remainder(4, &[1.0; 5]), [1, 1, 1, 1, 0]);
        assert_eq!(largest_remainder(3, &[0.0, 0.0]), [2, 1]);
        assert_eq!(largest_remainder(7, &[0.1, 10.0]), [0, 7]);
        for total in 0..50 {
            assert_eq!(largest_remainder(total, &[0.3, 1.7, 0.9, 4.2]).iter().sum::<u32>(), total);
        }
    }
}
