//! Whole units to devices so that the slowest is as fast as can be.

/// One device's time for a phase: `first + each × units`, nothing for no units, and the most units it may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    /// Seconds of any units at all.
    pub(super) first: f64,
    /// Seconds of each unit.
    pub(super) each: f64,
    pub(super) most: u32,
}

impl Line {
    /// Seconds of so many units.
    pub(super) fn time(&self, units: u32) -> f64 {
        if units == 0 { 0.0 } else { self.first + self.each * f64::from(units) }
    }

    /// Most units within this time.
    fn within(&self, time: f64) -> u32 {
        let units = (time - self.first) / self.each;
        if units >= 1.0 { (units.min(f64::from(u32::MAX)) as u32).min(self.most) } else { 0 }
    }
}

/// Rounds of halving, after which few units are left to be given one by one.
const HALVINGS: usize = 16;

/// The split of `total` units with the least time of the slowest, written to `out`; that time, or `None` where the
/// devices together may not have so many.
pub(super) fn fill(total: u32, lines: &[Line], out: &mut Vec<u32>) -> Option<f64> {
    out.clear();
    out.resize(lines.len(), 0);
    if total == 0 {
        return Some(0.0);
    }
    let room: u64 = lines.iter().map(|line| u64::from(line.most)).sum();
    if room < u64::from(total) {
        return None;
    }
    // No time is shorter than that without fixed parts and caps; the fastest single device that may have all bounds it
    // above, else the slowest that is full.
    let mut low = f64::from(total) / lines.iter().map(|line| 1.0 / line.each).sum::<f64>();
    let full = lines.iter().filter(|line| line.most > 0).map(|line| line.time(line.most.min(total)));
    let mut high = full.fold(low, f64::max);
    high = lines.iter().filter(|line| line.most >= total).map(|line| line.time(total)).fold(high, f64::min);
    let count = |time: f64| lines.iter().map(|line| u64::from(line.within(time))).sum::<u64>();
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        let found = count(middle);
        if found > u64::from(total) {
            high = middle;
        } else {
            low = middle;
            if found == u64::from(total) {
                break;
            }
        }
    }
    let mut have = 0_u64;
    for (units, line) in out.iter_mut().zip(lines) {
        *units = line.within(low);
        have += u64::from(*units);
    }
    // The few that are left go one by one to whoever is fastest with one more.
    while have < u64::from(total) {
        let next = (0..out.len()).filter(|&at| out[at] < lines[at].most).min_by(|&a, &b| {
            lines[a].time(out[a] + 1).total_cmp(&lines[b].time(out[b] + 1)).then(a.cmp(&b))
        })?;
        out[next] += 1;
        have += 1;
    }
    Some(out.iter().zip(lines).map(|(&units, line)| line.time(units)).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(first: f64, each: f64, most: u32) -> Line {
        Line { first, each, most }
    }

    /// The least slowest time over all splits.
    fn brute(total: u32, lines: &[Line]) -> Option<f64> {
        let (own, rest) = lines.split_first()?;
        if rest.is_empty() {
            return (total <= own.most).then(|| own.time(total));
        }
        let of = |units| Some(own.time(units).max(brute(total - units, rest)?));
        (0..=own.most.min(total)).filter_map(of).reduce(f64::min)
    }

    #[test]
    fn the_slowest_is_as_fast_as_in_any_split() {
        let cases: [(u32, Vec<Line>); 5] = [
            (8, vec![line(0.1, 1.0, 8), line(0.1, 2.0, 8), line(0.1, 3.0, 8)]),
            (8, vec![line(5.0, 0.1, 8), line(0.0, 1.0, 8)]),
            (12, vec![line(0.0, 1.0, 3), line(0.0, 9.0, 12), line(0.5, 1.0, 4)]),
            (1, vec![line(0.2, 1.0, 9), line(0.1, 1.0, 9)]),
            (9, vec![line(0.0, 1.0, 3), line(0.0, 1.0, 3), line(0.0, 1.0, 2)]),
        ];
        for (total, lines) in cases {
            let mut units = Vec::new();
            let got = fill(total, &lines, &mut units);
            let want = brute(total, &lines);
            assert_eq!(got.is_some(), want.is_some());
            let (Some(got), Some(want)) = (got, want) else { continue };
            assert_eq!(units.iter().sum::<u32>(), total);
            assert!((got - want).abs() < 1e-6 * want, "{got} {want} {units:?}");
        }
    }
}
