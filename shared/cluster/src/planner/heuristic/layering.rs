//! How many layers each group of a pipeline takes.

use super::group::Group;

/// Up to this many sums, all splits are compared by dynamic programming; beyond, layers are given one by one to
/// whoever takes least for the next, which is the same where a group's time grows evenly.
const TABLE: usize = 60_000;

/// What of the stages' times is made small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Least {
    /// Their sum.
    Sum,
    /// The longest of them.
    Longest,
}

/// Layers by group with the least sum or longest time, each group at least one and none longer than `cap` seconds.
/// `beside`: seconds each group is busy with other things. `None` where memory or pins allow no split.
pub(super) fn layering<G: AsRef<Group>>(
    groups: &[G],
    layers: usize,
    beside: &[f64],
    least: Least,
    cap: f64,
) -> Option<Vec<usize>> {
    let pinned = groups.iter().any(|group| group.as_ref().pinned.is_some());
    if groups.len() > layers {
        return None;
    }
    let times: Vec<Vec<f64>> = groups
        .iter()
        .zip(beside)
        .map(|(group, beside)| {
            let group = group.as_ref();
            let time = |count| {
                let time = group.time(count) + beside;
                if time > cap { f64::INFINITY } else { time }
            };
            (0..=layers.min(group.most())).map(time).collect()
        })
        .collect();
    if !pinned && groups.len() * layers * layers > TABLE {
        return one_by_one(&times, layers, least);
    }
    let spans: Vec<_> = groups.iter().map(|group| group.as_ref().pinned).collect();
    table(&times, &spans, layers, least)
}

fn table(
    times: &[Vec<f64>],
    spans: &[Option<shoal_core::plan::Span>],
    layers: usize,
    least: Least,
) -> Option<Vec<usize>> {
    let stages = times.len();
    let mut value = vec![f64::INFINITY; layers + 1];
    value[0] = 0.0;
    let mut counts = vec![vec![0_u32; layers + 1]; stages];
    for (stage, times) in times.iter().enumerate() {
        let mut next = vec![f64::INFINITY; layers + 1];
        // Later stages need a layer each.
        for end in stage + 1..=layers - (stages - 1 - stage) {
            let most = (times.len() - 1).min(end - stage);
            for (count, time) in times.iter().enumerate().take(most + 1).skip(1) {
                let first = end - count;
                if spans[stage].is_some_and(|span| (span.first as usize, span.end as usize) != (first, end)) {
                    continue;
                }
                let joined = match least {
                    Least::Sum => value[first] + time,
                    Least::Longest => value[first].max(*time),
                };
                if joined < next[end] {
                    next[end] = joined;
                    counts[stage][end] = count as u32;
                }
            }
        }
        value = next;
    }
    if value[layers] == f64::INFINITY {
        return None;
    }
    let mut out = vec![0; stages];
    let mut end = layers;
    for stage in (0..stages).rev() {
        out[stage] = counts[stage][end] as usize;
        end -= out[stage];
    }
    Some(out)
}

fn one_by_one(times: &[Vec<f64>], layers: usize, least: Least) -> Option<Vec<usize>> {
    let mut out = vec![1; times.len()];
    let next = |at: usize, count: usize| {
        let longer = times[at].get(count + 1).copied().unwrap_or(f64::INFINITY);
        match least {
            Least::Sum => longer - times[at].get(count).copied().unwrap_or(0.0),
            Least::Longest => longer,
        }
    };
    if times.iter().any(|times| times.get(1).is_none_or(|time| time.is_infinite())) {
        return None;
    }
    let mut costs: Vec<f64> = (0..times.len()).map(|at| next(at, 1)).collect();
    for _ in times.len()..layers {
        let at = (0..costs.len()).min_by(|&a, &b| costs[a].total_cmp(&costs[b]).then(a.cmp(&b)))?;
        if !costs[at].is_finite() {
            return None;
        }
        out[at] += 1;
        costs[at] = next(at, out[at]);
    }
    Some(out)
}
