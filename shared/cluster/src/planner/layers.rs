//! Contiguous layers for stages in a given order, by dynamic programming.

/// What one stage costs and holds for any range of layers.
#[derive(Debug, Clone)]
pub(super) struct StageTable {
    /// `time[l]`: seconds of the first `l` layers.
    pub(super) time: Vec<f64>,
    /// For each rank, bytes of the first `l` layers.
    pub(super) bytes: Vec<Vec<u64>>,
    /// For each rank, bytes that layers may take.
    pub(super) room: Vec<u64>,
}

impl StageTable {
    fn span_time(&self, first: usize, end: usize) -> f64 {
        self.time[end] - self.time[first]
    }

    fn fits(&self, first: usize, end: usize) -> bool {
        self.bytes.iter().zip(&self.room).all(|(bytes, &room)| bytes[end] - bytes[first] <= room)
    }
}

/// Bounds on the slowest stage that are tried, as multiples of the least possible one.
const CAPS: [f64; 5] = [1.0, 1.1, 1.3, 1.8, f64::INFINITY];

/// Layer counts by stage that are worth pricing: for several bounds on the slowest stage, those with
/// the least total time. Every stage has at least one layer. Empty where memory allows none.
pub(super) fn splits(tables: &[StageTable], layers: usize) -> Vec<Vec<u32>> {
    let bottleneck = |so_far: f64, stage: f64| so_far.max(stage);
    let Some(balanced) = best(tables, layers, f64::INFINITY, bottleneck) else { return Vec::new() };
    let least = stage_times(tables, &balanced).fold(0.0, f64::max);
    let mut found = vec![balanced];
    for cap in CAPS {
        // Sums in another order may differ in the last bits.
        let cap = cap * least * (1.0 + 1e-9);
        found.extend(best(tables, layers, cap, |so_far, stage| so_far + stage));
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn stage_times<'a>(tables: &'a [StageTable], split: &'a [u32]) -> impl Iterator<Item = f64> + 'a {
    let mut first = 0;
    tables.iter().zip(split).map(move |(table, &count)| {
        let end = first + count as usize;
        let time = table.span_time(first, end);
        first = end;
        time
    })
}

/// The split with the least value of `join` folded over its stages' times, none of them over `cap`.
/// Of equal ones that with the fewest layers in the last stage, and so on backwards.
fn best(tables: &[StageTable], layers: usize, cap: f64, join: impl Fn(f64, f64) -> f64) -> Option<Vec<u32>> {
    let stages = tables.len();
    // value[l]: the best value of the stages so far over the first l layers; from[i][l]: where stage i begins.
    let mut value = vec![f64::INFINITY; layers + 1];
    value[0] = 0.0;
    let mut from = vec![vec![usize::MAX; layers + 1]; stages];
    for (index, table) in tables.iter().enumerate() {
        let mut next = vec![f64::INFINITY; layers + 1];
        // Each later stage needs a layer.
        for end in index + 1..=layers.saturating_sub(stages - 1 - index) {
            for first in (index..end).rev() {
                let time = table.span_time(first, end);
                if time > cap || !table.fits(first, end) {
                    break;
                }
                let joined = join(value[first], time);
                if joined < next[end] {
                    next[end] = joined;
                    from[index][end] = first;
                }
            }
        }
        value = next;
    }
    if value[layers] == f64::INFINITY {
        return None;
    }
    let mut counts = vec![0; stages];
    let mut end = layers;
    for index in (0..stages).rev() {
        let first = from[index][end];
        counts[index] = (end - first) as u32;
        end = first;
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(layers: usize, time: f64, room: u64) -> StageTable {
        StageTable {
            time: (0..=layers).map(|l| l as f64 * time).collect(),
            bytes: vec![(0..=layers as u64).collect()],
            room: vec![room],
        }
    }

    #[test]
    fn a_balanced_and_a_short_split_are_both_found() {
        let tables = [table(8, 1.0, 8), table(8, 3.0, 8)];
        let found = splits(&tables, 8);
        assert!(found.contains(&vec![6, 2]), "{found:?}");
        assert!(found.contains(&vec![7, 1]), "{found:?}");
    }

    #[test]
    fn memory_is_a_hard_border() {
        let found = splits(&[table(8, 1.0, 3), table(8, 3.0, 5)], 8);
        assert_eq!(found, [[3, 5]]);
        assert!(splits(&[table(8, 1.0, 3), table(8, 3.0, 4)], 8).is_empty());
        assert!(splits(&[table(2, 1.0, 9), table(2, 1.0, 9), table(2, 1.0, 9)], 2).is_empty());
    }

    #[test]
    fn the_least_sum_under_a_cap_is_that_of_all_splits() {
        let tables = [table(9, 1.0, 4), table(9, 2.0, 9), table(9, 0.5, 3)];
        let got = best(&tables, 9, 7.0, |a, b| a + b).unwrap();
        let mut least = f64::INFINITY;
        for a in 1..9_u32 {
            for b in 1..9 - a {
                let split = [a, b, 9 - a - b];
                let times: Vec<f64> = stage_times(&tables, &split).collect();
                if a <= 4 && split[2] <= 3 && times.iter().all(|&t| t <= 7.0) {
                    least = least.min(times.iter().sum());
                }
            }
        }
        assert_eq!(stage_times(&tables, &got).sum::<f64>(), least);
    }
}
