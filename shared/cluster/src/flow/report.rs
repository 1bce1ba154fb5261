//! What a run that is over says.

use shoal_core::Plan;

use super::world::World;
use super::{LinkUse, NodeUse, Run, Spread};

pub(super) fn of(world: &World<'_>, plan: &Plan) -> Run {
    let streams = || world.tokens.values();
    let end = streams().filter_map(|times| times.last().copied()).fold(0.0, f64::max);
    let mut itl: Vec<f64> =
        streams().flat_map(|times| times.windows(2).map(|pair| 1e3 * (pair[1] - pair[0]))).collect();
    let mut ttft: Vec<f64> = streams().filter_map(|times| times.first().map(|time| time * 1e3)).collect();
    let tokens = streams().map(Vec::len).sum::<usize>();

    // All streams generate from the last first token to the first last one.
    let from = streams().filter_map(|times| times.first().copied()).fold(0.0, f64::max);
    let to = streams().filter_map(|times| times.last().copied()).fold(f64::INFINITY, f64::min);
    let tps = if to > from && to.is_finite() {
        let within = streams().flatten().filter(|&&time| from < time && time <= to).count();
        within as f64 / (to - from)
    } else {
        tokens as f64 / end
    };

    let ids = plan.nodes();
    let nodes = ids.iter().zip(&world.nodes).map(|(&node, state)| {
        let (busy, wait) = (state.busy / end, state.blocked / end);
        NodeUse { node, busy, wait, idle: (1.0 - busy - wait).max(0.0) }
    });
    let mut links: Vec<LinkUse> = world
        .network
        .used()
        .map(|(from, to, used)| LinkUse {
            from: ids.get(from).copied(),
            to: ids.get(to).copied(),
            bytes: used.bytes,
            utilisation: used.occupied / end,
        })
        .collect();
    links.sort_by(|a, b| b.utilisation.total_cmp(&a.utilisation));
    let medium = world.network.medium_used / end;
    Run {
        elapsed_ms: end * 1e3,
        tokens: tokens as u64,
        itl_ms: spread(&mut itl),
        ttft_ms: spread(&mut ttft).unwrap_or(Spread { p50: 0.0, p95: 0.0 }),
        tps,
        nodes: nodes.collect(),
        links,
        medium: (medium > 0.0).then_some(medium),
        events: world.count,
    }
}

/// The median (of an even number, the mean of the middle two) and the 95th percentile by rank.
fn spread(times: &mut [f64]) -> Option<Spread> {
    times.sort_by(f64::total_cmp);
    let last = times.len().checked_sub(1)?;
    let p95 = times[(times.len() * 95).div_ceil(100) - 1];
    Some(Spread { p50: (times[last / 2] + times[times.len() / 2]) / 2.0, p95 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_rank() {
        assert_eq!(spread(&mut []), None);
        let of = |n: u32| spread(&mut (1..=n).map(f64::from).collect::<Vec<_>>()).map(|s| (s.p50, s.p95));
        assert_eq!(of(1), Some((1.0, 1.0)));
        assert_eq!(of(2), Some((1.5, 2.0)));
        assert_eq!(of(100), Some((50.5, 95.0)));
        assert_eq!(of(101), Some((51.0, 96.0)));
    }
}
