//! The least weighted sum of limits that a monotone test allows.

/// One limit: the values it may take, rising, and what one unit of it costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis<'v> {
    pub(super) values: &'v [f64],
    pub(super) weight: f64,
}

/// Limits with what they cost.
pub(super) type Corner = (f64, Vec<f64>);

/// The least `Σ weight · limit` over limits that `feasible` allows, put in `best` with the limits if it is less
/// than what is there. Raising a limit never makes them infeasible, and beyond the last value it changes nothing. `floor[i]`: what the limits from the `i`-th
/// on cost at least together.
///
/// Each limit walks up from its least possible value, the later ones follow with the least that goes with
/// it; a walk ends when the limit alone, with the least of the others, costs as much as the best found. The
/// last two walk down the stairs between them: the second falls by what it can, the first rises by what that needs.
///
/// # Errors
/// That of the test; `best` is then what was found before.
pub(super) fn least<E>(
    axes: &[Axis<'_>],
    floor: &[f64],
    best: &mut Option<Corner>,
    mut feasible: impl FnMut(&[f64]) -> Result<bool, E>,
) -> Result<(), E> {
    let mut limits = vec![f64::INFINITY; axes.len()];
    let mut least = Vec::with_capacity(axes.len());
    for at in 0..axes.len() {
        match lowest(axes, at, &mut limits, &mut feasible)? {
            Some(index) => least.push(axes[at].weight * axes[at].values[index]),
            None => return Ok(()),
        }
        limits[at] = f64::INFINITY;
    }
    // What the limits from each on cost at least.
    let mut after = vec![0.0; axes.len() + 1];
    for at in (0..axes.len()).rev() {
        after[at] = f64::max(after[at + 1] + least[at], floor.get(at).copied().unwrap_or(0.0));
    }
    if best.as_ref().is_some_and(|best| after[0] >= best.0) {
        return Ok(());
    }
    walk(axes, 0, 0.0, &after, &mut limits, best, &mut feasible)
}

/// The least index at which this limit is feasible with the others as they are; the limit is left there.
fn lowest<E>(
    axes: &[Axis<'_>],
    at: usize,
    limits: &mut [f64],
    feasible: &mut impl FnMut(&[f64]) -> Result<bool, E>,
) -> Result<Option<usize>, E> {
    let values = axes[at].values;
    between((0, values.len()), at, values, limits, feasible)
}

/// The least index of a range at which this limit is feasible; the one after the range counts as feasible if it
/// is no index. The limit is left there.
fn between<E>(
    (mut low, mut high): (usize, usize),
    at: usize,
    values: &[f64],
    limits: &mut [f64],
    feasible: &mut impl FnMut(&[f64]) -> Result<bool, E>,
) -> Result<Option<usize>, E> {
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

/// The least feasible index from `low` on, looked for near it first.
fn upward<E>(
    low: usize,
    at: usize,
    values: &[f64],
    limits: &mut [f64],
    feasible: &mut impl FnMut(&[f64]) -> Result<bool, E>,
) -> Result<Option<usize>, E> {
    let (mut from, mut step) = (low, 1);
    loop {
        let probe = from + step - 1;
        if probe >= values.len() {
            return between((from, values.len()), at, values, limits, feasible);
        }
        limits[at] = values[probe];
        if feasible(limits)? {
            return between((from, probe), at, values, limits, feasible);
        }
        from = probe + 1;
        step *= 2;
    }
}

/// The least feasible index up to `high`, which is feasible, looked for near it first.
fn downward<E>(
    high: usize,
    at: usize,
    values: &[f64],
    limits: &mut [f64],
    feasible: &mut impl FnMut(&[f64]) -> Result<bool, E>,
) -> Result<usize, E> {
    let (mut to, mut step) = (high, 1);
    while to > 0 {
        let probe = to.saturating_sub(step);
        limits[at] = values[probe];
        if !feasible(limits)? {
            return Ok(between((probe + 1, to), at, values, limits, feasible)?.unwrap_or(to));
        }
        to = probe;
        step *= 2;
    }
    limits[at] = values[0];
    Ok(0)
}

/// Limits before `at` are set and cost `spent`; those from it on are free.
fn walk<E>(
    axes: &[Axis<'_>],
    at: usize,
    spent: f64,
    after: &[f64],
    limits: &mut [f64],
    best: &mut Option<Corner>,
    feasible: &mut impl FnMut(&[f64]) -> Result<bool, E>,
) -> Result<(), E> {
    let too_much = |cost: f64, best: &Option<Corner>| best.as_ref().is_some_and(|best| cost >= best.0);
    let axis = &axes[at];
    limits[at..].fill(f64::INFINITY);
    let Some(mut index) = lowest(axes, at, limits, feasible)? else { return Ok(()) };
    let keep = |limits: &[f64], cost: f64, best: &mut Option<Corner>| {
        if !too_much(cost, best) {
            *best = Some((cost, limits.to_vec()));
        }
    };
    if at + 1 == axes.len() {
        keep(limits, spent + axis.weight * axis.values[index], best);
        return Ok(());
    }
    let cost = |index: usize| spent + axis.weight * axis.values[index];
    if at + 2 < axes.len() {
        while index < axis.values.len() && !too_much(cost(index) + after[at + 1], best) {
            limits[at] = axis.values[index];
            walk(axes, at + 1, cost(index), after, limits, best, feasible)?;
            index += 1;
        }
        limits[at..].fill(f64::INFINITY);
        return Ok(());
    }
    let second = &axes[at + 1];
    if too_much(cost(index) + after[at + 1], best) {
        return Ok(());
    }
    let Some(mut other) = lowest(axes, at + 1, limits, feasible)? else { return Ok(()) };
    loop {
        limits[at] = axis.values[index];
        limits[at + 1] = second.values[other];
        keep(limits, cost(index) + second.weight * second.values[other], best);
        if other == 0 || index + 1 == axis.values.len() {
            break;
        }
        limits[at + 1] = second.values[other - 1];
        let Some(next) = upward(index + 1, at, axis.values, limits, feasible)? else { break };
        if too_much(cost(next) + after[at + 1], best) {
            break;
        }
        index = next;
        other = downward(other - 1, at + 1, second.values, limits, feasible)?;
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
                (0..4).map(|_| (0..n).map(|_| (draw() * 8.0).floor()).collect()).collect();
            let feasible = |limits: &[f64]| {
                corners.iter().any(|corner| corner.iter().zip(limits).all(|(corner, limit)| limit >= corner))
            };
            let mut got = None;
            least(&axes, &[], &mut got, |limits| Ok::<bool, ()>(feasible(limits))).unwrap();
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
