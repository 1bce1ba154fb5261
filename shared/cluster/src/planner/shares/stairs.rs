//! The least weighted sum of limits that a monotone test allows.

/// One limit: the values it may take, rising, and what one unit of it costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis<'v> {
    pub(super) values: &'v [f64],
    pub(super) weight: f64,
}

/// The least `Σ weight · limit` over limits that `feasible` allows, with the limits. Raising a limit never
/// makes them infeasible. `floor[i]`: what the limits from the `i`-th on cost at least together.
///
/// Each limit walks up from its least possible value, the later ones follow with the least that goes with
/// it; a walk ends when the limit alone, with the least of the others, costs as much as the best found. Of
/// the last two the first jumps to where it lets the second be lower.
pub(super) fn least<E>(
    axes: &[Axis<'_>],
    floor: &[f64],
    mut feasible: impl FnMut(&[f64]) -> Result<bool, E>,
) -> Result<Option<(f64, Vec<f64>)>, E> {
    let mut limits = vec![f64::INFINITY; axes.len()];
    let mut least = Vec::with_capacity(axes.len());
    for at in 0..axes.len() {
        match lowest(axes, at, &mut limits, &mut feasible)? {
            Some(index) => least.push(axes[at].weight * axes[at].values[index]),
            None => return Ok(None),
        }
        limits[at] = f64::INFINITY;
    }
    // What the limits from each on cost at least.
    let mut after = vec![0.0; axes.len() + 1];
    for at in (0..axes.len()).rev() {
        after[at] = f64::max(after[at + 1] + least[at], floor.get(at).copied().unwrap_or(0.0));
    }
    let mut best = None;
    walk(axes, 0, 0.0, &after, &mut limits, &mut best, &mut feasible)?;
    Ok(best)
}

/// The least index at which this limit is feasible with the others as they are; the limit is left there.
fn lowest<E>(
    axes: &[Axis<'_>],
    at: usize,
    limits: &mut [f64],
    feasible: &mut impl FnMut(&[f64]) -> Result<bool, E>,
) -> Result<Option<usize>, E> {
    let values = axes[at].values;
    let (mut low, mut high) = (0, values.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        limits[at] = values[middle];
        if feasible(limits)? { high = middle } else { low = middle + 1 }
    }
    if low == values.len() {
        return Ok(None);
    }
    limits[at] = values[low];
    Ok(Some(low))
}

/// Limits before `at` are set and cost `spent`; those from it on are free.
fn walk<E>(
    axes: &[Axis<'_>],
    at: usize,
    spent: f64,
    after: &[f64],
    limits: &mut [f64],
    best: &mut Option<(f64, Vec<f64>)>,
    feasible: &mut impl FnMut(&[f64]) -> Result<bool, E>,
) -> Result<(), E> {
    let Some(axis) = axes.get(at) else {
        if best.as_ref().is_none_or(|best| spent < best.0) {
            *best = Some((spent, limits.to_vec()));
        }
        return Ok(());
    };
    limits[at..].fill(f64::INFINITY);
    let Some(mut index) = lowest(axes, at, limits, feasible)? else { return Ok(()) };
    loop {
        let own = spent + axis.weight * axis.values[index];
        if best.as_ref().is_some_and(|best| own + after[at + 1] >= best.0) {
            break;
        }
        limits[at] = axis.values[index];
        walk(axes, at + 1, own, after, limits, best, feasible)?;
        if at + 1 == axes.len() {
            break;
        }
        index += 1;
        if at + 2 == axes.len() {
            // Only a lower second limit makes a higher first one worth it.
            let second = &axes[at + 1];
            limits[at + 1] = f64::INFINITY;
            limits[at] = axis.values[index - 1];
            let Some(reached) = lowest(axes, at + 1, limits, feasible)?.filter(|&reached| reached > 0) else {
                break;
            };
            limits[at + 1] = second.values[reached - 1];
            match lowest(axes, at, limits, feasible)? {
                Some(next) => index = next,
                None => break,
            }
        }
        if index == axis.values.len() {
            break;
        }
    }
    limits[at..].fill(f64::INFINITY);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::uniform;

    /// Against all combinations, for random staircases of two and three limits.
    #[test]
    fn the_least_sum_is_that_of_all_limits() {
        for seed in 0..300 {
            let mut drawn = 0;
            let mut draw = || {
                drawn += 1;
                uniform(seed, 3, drawn)
            };
            let n = 2 + (seed % 2) as usize;
            let values: Vec<f64> = (1..8).map(f64::from).collect();
            let axes: Vec<Axis<'_>> =
                (0..n).map(|_| Axis { values: &values, weight: 0.2 + draw() }).collect();
            // Feasible: above one of a few corners.
            let corners: Vec<Vec<f64>> =
                (0..4).map(|_| (0..n).map(|_| (draw() * 9.0).floor()).collect()).collect();
            let feasible = |limits: &[f64]| {
                corners.iter().any(|corner| corner.iter().zip(limits).all(|(corner, limit)| limit >= corner))
            };
            let got = least(&axes, &[], |limits| Ok::<bool, ()>(feasible(limits))).unwrap();
            let mut want: Option<f64> = None;
            for code in 0..7_usize.pow(n as u32) {
                let limits: Vec<f64> = (0..n).map(|at| values[code / 7_usize.pow(at as u32) % 7]).collect();
                let cost = axes.iter().zip(&limits).map(|(axis, limit)| axis.weight * limit).sum();
                if feasible(&limits) && want.is_none_or(|want| cost < want) {
                    want = Some(cost);
                }
            }
            assert_eq!(got.is_some(), want.is_some(), "seed {seed}");
            if let (Some((got, limits)), Some(want)) = (got, want) {
                assert!((got - want).abs() < 1e-9, "seed {seed}: {got} {want}");
                assert!(feasible(&limits));
            }
        }
    }
}
