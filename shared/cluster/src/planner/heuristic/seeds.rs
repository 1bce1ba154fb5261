//! Where local search begins: devices in a few orders, cut into runs by dynamic programming.

use super::super::problem::Family;
use super::arrange::{Groups, Table};
use super::group::{Group, HeadPart, Role};
use super::layering::Least;
use super::local::Rules;
use super::ranks::Care;
use crate::cost::Objective;

/// Up to this many devices, runs of every length are looked at; beyond, those of [`LENGTHS`].
const SMALL: usize = 16;

/// Lengths of runs among many devices: more ranks spend their time on sums.
const LENGTHS: [usize; 12] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32];

/// Numbers of stages for which shares are made among many devices.
const STAGES: [usize; 10] = [1, 2, 3, 4, 6, 8, 16, 32, 64, 128];

/// The same beyond [`HUNDREDS`] devices.
const FEW_STAGES: [usize; 5] = [1, 2, 4, 8, 32];

/// From so many devices on, fewer orders, lengths and numbers of stages are tried.
const HUNDREDS: usize = 200;

/// Orders of the devices: neighbours have fast links or are alike.
pub(super) fn orders(table: &Table<'_, '_>) -> Vec<Vec<u16>> {
    let deck = table.deck;
    let n = deck.nodes.len();
    let rows = deck.rows(1);
    let speeds = deck.speeds(rows);
    let speed: Vec<f64> = speeds.iter().map(|speed| deck.alone(speed, rows)).collect();
    let mut by_speed: Vec<u16> = (0..n as u16).collect();
    by_speed.sort_by(|&a, &b| speed[usize::from(b)].total_cmp(&speed[usize::from(a)]).then(a.cmp(&b)));
    let mut by_memory = by_speed.clone();
    by_memory.sort_by(|&a, &b| deck.usable[usize::from(b)].total_cmp(&deck.usable[usize::from(a)]));
    let mut out = vec![by_speed.clone()];
    // Islands of devices whose links to each other are at least as fast as one of the kinds there are.
    let sum = deck.hop_bytes(1) / 2.0;
    let time = |a: usize, b: usize| deck.link(a, b).time(sum).max(deck.link(b, a).time(sum));
    let mut times: Vec<f64> = Vec::new();
    for a in 0..n {
        for b in a + 1..n {
            let time = time(a, b);
            if !times.iter().any(|known| (known / time - 1.0).abs() < 0.1) && times.len() < 4096 {
                times.push(time);
            }
        }
    }
    times.sort_by(f64::total_cmp);
    let levels = if times.len() > 1 { &times[..times.len() - 1] } else { &[][..] };
    for &level in levels.iter().take(if n > HUNDREDS { 1 } else { 2 }) {
        let islands = islands(n, |a, b| time(a, b) <= level * 1.1);
        let count = islands.iter().max().map_or(0, |most| most + 1);
        let mut worth = vec![0.0; count];
        for (device, &island) in islands.iter().enumerate() {
            worth[island] += speed[device];
        }
        for by in [&by_speed, &by_memory].into_iter().take(if n > HUNDREDS { 1 } else { 2 }) {
            let mut order = by.clone();
            order.sort_by(|&a, &b| {
                let (a, b) = (islands[usize::from(a)], islands[usize::from(b)]);
                worth[b].total_cmp(&worth[a]).then(a.cmp(&b))
            });
            out.push(order);
        }
    }
    out.push(by_memory);
    out.dedup();
    out
}

/// The island of each device: those connected by pairs that are `near`.
fn islands(n: usize, near: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    let mut island = vec![usize::MAX; n];
    let mut count = 0;
    for start in 0..n {
        if island[start] != usize::MAX {
            continue;
        }
        island[start] = count;
        let mut open = vec![start];
        while let Some(at) = open.pop() {
            for (other, island) in island.iter_mut().enumerate() {
                if *island == usize::MAX && near(at, other) {
                    *island = count;
                    open.push(other);
                }
            }
        }
        count += 1;
    }
    island
}

/// Lists of groups that local search may begin with, the best first, each allowed by the rules.
pub(super) fn seeds(table: &Table<'_, '_>, rules: &Rules<'_>, orders: &[Vec<u16>]) -> Vec<(Groups, f64)> {
    let deck = table.deck;
    let n = deck.nodes.len();
    let mut lists: Vec<Groups> = Vec::new();
    for order in orders {
        for &device in order {
            lists.push(vec![vec![device]]);
            if n > HUNDREDS {
                break;
            }
        }
        let mut size = 1;
        while size <= n {
            let prefix = &order[..size];
            lists.push(vec![sorted(prefix)]);
            lists.push(prefix.iter().map(|&device| vec![device]).collect());
            let mut count = 2;
            while count <= size.min(deck.layers) {
                let length = size.div_ceil(count);
                lists.push(prefix.chunks(length).map(sorted).collect());
                lists.push((0..count).map(|at| sorted_every(prefix, at, count)).collect());
                count = if size <= SMALL { count + 1 } else { count * 2 };
            }
            size = if size < SMALL {
                size + 1
            } else if size == n {
                n + 1
            } else {
                (size * 3 / 2).min(n)
            };
        }
        if !matches!(rules.family, Family::Single | Family::Heads) {
            runs_of(table, rules, order, &mut lists);
        }
    }
    for list in &mut lists {
        complete(list, rules);
    }
    lists.retain(|list| list.len() <= deck.layers && rules.allow(list));
    lists.sort_unstable();
    lists.dedup();
    let mut out: Vec<(Groups, f64)> = lists
        .into_iter()
        .map(|list| {
            let score = table.score(&list);
            (list, score)
        })
        .collect();
    // The sort is stable: of equals the lesser list comes first.
    out.sort_by(|a, b| a.1.total_cmp(&b.1));
    out
}

fn sorted(devices: &[u16]) -> Vec<u16> {
    let mut out = devices.to_vec();
    out.sort_unstable();
    out
}

fn sorted_every(devices: &[u16], first: usize, step: usize) -> Vec<u16> {
    let mut out: Vec<u16> = devices.iter().copied().skip(first).step_by(step).collect();
    out.sort_unstable();
    out
}

/// Adds wanted devices that are not used as groups of their own, or to the last group where there may be one only.
fn complete(list: &mut Groups, rules: &Rules<'_>) {
    for &device in rules.wanted {
        if list.iter().any(|group| group.contains(&device)) {
            continue;
        }
        match (rules.family, list.last_mut()) {
            (Family::Single, _) => *list = vec![vec![device]],
            (Family::Heads, Some(group)) => {
                group.push(device);
                group.sort_unstable();
            }
            _ => list.push(vec![device]),
        }
    }
}

/// Runs of this order for several numbers of stages and caps on the longest.
fn runs_of(table: &Table<'_, '_>, rules: &Rules<'_>, order: &[u16], lists: &mut Vec<Groups>) {
    let deck = table.deck;
    let n = order.len();
    let most = n.min(deck.layers);
    let mut rows: Vec<u32> = match deck.objective {
        Objective::Latency => vec![1],
        Objective::Throughput | Objective::Energy => {
            let stages: Vec<usize> = if n <= SMALL {
                (1..=most).collect()
            } else {
                let few: &[usize] = if n > HUNDREDS { &FEW_STAGES } else { &STAGES };
                few.iter().copied().filter(|&count| count <= most).collect()
            };
            stages.into_iter().map(|count| deck.rows(count)).collect()
        }
    };
    rows.dedup();
    let mut lengths: Vec<usize> = if rules.family == Family::Layers {
        vec![1]
    } else if n <= SMALL {
        (1..=n).collect()
    } else {
        LENGTHS.into_iter().filter(|&length| length <= n).collect()
    };
    if n > HUNDREDS {
        lengths.retain(|&length| length <= 16);
    }
    for rows in rows {
        let runs = Runs::new(table, order, rows, &lengths);
        let skip = rules.exactly.is_none_or(|count| count < n);
        let mut found = Vec::new();
        if deck.objective == Objective::Latency {
            found.extend(runs.best(Least::Sum, f64::INFINITY, skip));
        } else if let Some((level, longest)) = runs.best(Least::Longest, f64::INFINITY, skip) {
            found.push((level, longest));
            for over in [1.05, 1.3] {
                found.extend(runs.best(Least::Sum, longest * over, skip));
            }
        }
        lists.extend(found.into_iter().map(|(groups, _)| groups));
    }
}

/// Times of runs of an order.
struct Runs<'o> {
    order: &'o [u16],
    lengths: &'o [usize],
    layers: usize,
    /// By first device and length: seconds of 0, 1, … layers, as many as fit.
    times: Vec<Vec<Vec<f64>>>,
    /// Seconds of a hop into each device's place from the one before.
    hops: Vec<f64>,
}

impl<'o> Runs<'o> {
    fn new(table: &Table<'_, '_>, order: &'o [u16], rows: u32, lengths: &'o [usize]) -> Self {
        let deck = table.deck;
        let layers = deck.layers;
        // Some of each device's memory is kept for the head, if there is enough for that.
        let all: f64 = deck.usable.iter().sum();
        let part = (f64::from(deck.tiles) * deck.bulk.tile / all * super::group::PARTS).ceil();
        let head = if part < super::group::PARTS / 2.0 { HeadPart::Part(part as u8) } else { HeadPart::None };
        let role = Role { first: false, head };
        let none = vec![0.0; deck.nodes.len()];
        let care = if order.len() <= SMALL { Care::FINE } else { Care::ROUGH };
        let run = |first: usize, length: usize| {
            let Some(devices) = order.get(first..first + length) else { return Vec::new() };
            // Runs are many and mostly looked at once: they are not remembered.
            let group = Group::new(deck, &sorted(devices), rows, role, (&none, care));
            (0..=layers.min(group.most())).map(|count| group.time(count)).collect()
        };
        let times = (0..order.len())
            .map(|first| lengths.iter().map(|&length| run(first, length)).collect())
            .collect();
        let bytes = deck.hop_bytes(rows);
        let hop = |at: usize| match at.checked_sub(1) {
            Some(before) => deck.link(order[before].into(), order[at].into()).time(bytes),
            None => 0.0,
        };
        Self { order, lengths, layers, times, hops: (0..order.len()).map(hop).collect() }
    }

    /// The runs with the least sum or longest time, none over `cap`, and that figure. `skip`: devices may be left out.
    fn best(&self, least: Least, cap: f64, skip: bool) -> Option<(Groups, f64)> {
        let (n, layers) = (self.order.len(), self.layers);
        let width = layers + 1;
        let mut value = vec![f64::INFINITY; (n + 1) * width];
        // Index of the length that led here, or that of a device left out, and the layers it took.
        let left_out = u16::MAX;
        let mut from = vec![(left_out, 0_u16); (n + 1) * width];
        value[0] = 0.0;
        for at in 0..n {
            for have in 0..width {
                let so_far = value[at * width + have];
                if so_far.is_infinite() {
                    continue;
                }
                if (skip || have == layers) && so_far < value[(at + 1) * width + have] {
                    value[(at + 1) * width + have] = so_far;
                    from[(at + 1) * width + have] = (left_out, 0);
                }
                let hop = if have > 0 { self.hops[at] } else { 0.0 };
                for (index, times) in self.times[at].iter().enumerate() {
                    let length = self.lengths[index];
                    for (count, &time) in times.iter().enumerate().take(layers - have + 1).skip(1) {
                        if time > cap {
                            break;
                        }
                        let joined = match least {
                            Least::Sum => so_far + time + hop,
                            Least::Longest => so_far.max(time),
                        };
                        let to = (at + length) * width + have + count;
                        if joined < value[to] {
                            value[to] = joined;
                            from[to] = (index as u16, count as u16);
                        }
                    }
                }
            }
        }
        let figure = value[n * width + layers];
        if figure.is_infinite() {
            return None;
        }
        let mut groups = Vec::new();
        let (mut at, mut have) = (n, layers);
        while at > 0 {
            let (index, count) = from[at * width + have];
            if index == left_out {
                at -= 1;
                continue;
            }
            let length = self.lengths[usize::from(index)];
            groups.push(sorted(&self.order[at - length..at]));
            at -= length;
            have -= usize::from(count);
        }
        groups.reverse();
        Some((groups, figure))
    }
}
