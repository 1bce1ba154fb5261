//! Orders and groupings of devices that are tried.

/// Up to this many devices, every order and every ordered grouping is tried (541 groupings of five).
pub(super) const EXHAUSTIVE: usize = 5;

/// Up to this many devices, every grouping of neighbours in the order of speed is tried (512 of ten).
const CONTIGUOUS: usize = 10;

/// All orders of these; the order given comes first.
pub(super) fn permutations(of: &[usize]) -> Vec<Vec<usize>> {
    let Some((&first, rest)) = of.split_first() else { return vec![Vec::new()] };
    let mut out = Vec::new();
    for shorter in permutations(rest) {
        for at in 0..=shorter.len() {
            let mut longer = shorter.clone();
            longer.insert(at, first);
            out.push(longer);
        }
    }
    out.sort_by_key(|order| order != of);
    out
}

/// Mixtures of groups to try for devices sorted by falling speed: ordered, disjoint, of all devices.
/// Single groups and groups of one only are not among them.
pub(super) fn mixtures(sorted: &[usize]) -> Vec<Vec<Vec<usize>>> {
    let mut all = match sorted.len() {
        0..=EXHAUSTIVE => ordered_partitions(sorted),
        n if n <= CONTIGUOUS => contiguous(sorted),
        n => even(sorted, n),
    };
    all.retain(|groups| groups.len() > 1 && groups.iter().any(|group| group.len() > 1));
    all
}

fn ordered_partitions(of: &[usize]) -> Vec<Vec<Vec<usize>>> {
    let Some((&last, rest)) = of.split_last() else { return vec![Vec::new()] };
    let mut out = Vec::new();
    for smaller in ordered_partitions(rest) {
        for at in 0..smaller.len() {
            let mut joined = smaller.clone();
            joined[at].push(last);
            out.push(joined);
        }
        for at in 0..=smaller.len() {
            let mut own = smaller.clone();
            own.insert(at, vec![last]);
            out.push(own);
        }
    }
    out
}

fn contiguous(sorted: &[usize]) -> Vec<Vec<Vec<usize>>> {
    let cuts = sorted.len() - 1;
    let grouping = |mask: u32| {
        let mut groups = vec![vec![sorted[0]]];
        for (at, &device) in sorted.iter().enumerate().skip(1) {
            match groups.last_mut() {
                Some(last) if mask & 1 << (at - 1) == 0 => last.push(device),
                _ => groups.push(vec![device]),
            }
        }
        groups
    };
    (0..1_u32 << cuts).map(grouping).collect()
}

/// Groups of like size, neighbours in speed, or mixed so that each has fast and slow ones.
fn even(sorted: &[usize], n: usize) -> Vec<Vec<Vec<usize>>> {
    let mut out = Vec::new();
    let mut count = 2;
    while count <= n / 2 {
        let base = n / count;
        let longer = n % count;
        let mut at = 0;
        let sizes = (0..count).map(|group| base + usize::from(group < longer));
        out.push(
            sizes
                .map(|size| {
                    at += size;
                    sorted[at - size..at].to_vec()
                })
                .collect(),
        );
        out.push(
            (0..count).map(|group| sorted.iter().copied().skip(group).step_by(count).collect()).collect(),
        );
        count *= 2;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grouping_of_few_devices_is_tried_once() {
        // Ordered partitions of n: 1, 3, 13, 75, 541.
        for (n, count) in [(1, 1), (2, 3), (3, 13), (4, 75), (5, 541)] {
            let mut all = ordered_partitions(&(0..n).collect::<Vec<_>>());
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
        }
        assert_eq!(permutations(&[3, 1, 2]).len(), 6);
        assert_eq!(permutations(&[3, 1, 2])[0], [3, 1, 2]);
    }

    #[test]
    fn mixtures_hold_every_device_once() {
        for n in 3..40 {
            let sorted: Vec<usize> = (0..n).rev().collect();
            let all = mixtures(&sorted);
            assert!(!all.is_empty() && all.len() <= 541);
            for groups in all {
                let mut devices = groups.concat();
                devices.sort_unstable();
                assert_eq!(devices, (0..n).collect::<Vec<_>>());
                assert!(groups.len() > 1 && groups.iter().any(|group| group.len() > 1));
            }
        }
    }
}
