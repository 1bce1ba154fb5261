//! Every group of devices with what a layer of it costs at least.
//!
//! Sets of devices are bits by index. The bounds do not look at memory; [`super::reach`] does.

use super::rules::Rules;
use crate::planner::problem::{Problem, Step};

/// A set of devices: the bit of each device's index.
pub(super) type Set = u16;

/// The devices of a set, rising.
pub(super) fn members(set: Set) -> Vec<usize> {
    (0..Set::BITS as usize).filter(|&device| set >> device & 1 == 1).collect()
}

/// The device by which hops are priced: that with the lowest id.
pub(super) const fn leader(set: Set) -> usize {
    set.trailing_zeros() as usize
}

/// Bounds by group, for steps of one number of rows. Seconds.
#[derive(Debug)]
pub(super) struct Groups {
    /// Layers of the model.
    pub(super) layers: usize,
    /// Every group that the rules allow, rising.
    pub(super) sets: Vec<Set>,
    /// `[set]`: the two sums of a layer.
    pub(super) sums: Vec<f64>,
    /// `[set][layers + 1]`: attention alone of the first so many layers, at least.
    attention: Vec<f64>,
    /// The same of all of a layer.
    all: Vec<f64>,
}

impl Groups {
    pub(super) fn new(problem: &Problem<'_>, rules: &Rules, step: &Step) -> Self {
        let weights = &problem.weights;
        let (n, layers) = (problem.devices.len(), weights.class_of.len());
        let sets: Vec<Set> = (1..1 << n).filter(|&set| rules.group(set)).collect();
        let row = layers + 1;
        let mut out = Self {
            layers,
            sums: vec![0.0; 1 << n],
            attention: vec![f64::INFINITY; row << n],
            all: vec![f64::INFINITY; row << n],
            sets,
        };
        let kinds = weights.attentions.len();
        let slowest: Vec<Vec<f64>> = (0..kinds).map(|kind| attention(problem, rules, step, kind)).collect();
        for &set in &out.sets {
            let of = members(set);
            out.sums[usize::from(set)] = 2.0 * step.sum(problem, &of);
            let feed_forward: Vec<f64> = (0..weights.feed_forwards.len())
                .map(|kind| feed_forward(step, kind, &of, weights.blocks))
                .collect();
            let at = usize::from(set) * row;
            (out.attention[at], out.all[at]) = (0.0, 0.0);
            for (layer, &class) in weights.class_of.iter().enumerate() {
                let class = &weights.classes[class];
                let heads = slowest[class.attention][usize::from(set)];
                let rest = feed_forward[class.feed_forward] + out.sums[usize::from(set)];
                out.attention[at + layer + 1] = out.attention[at + layer] + heads;
                out.all[at + layer + 1] = out.all[at + layer] + heads + rest;
            }
        }
        out
    }

    /// The first so many layers of this group, for every number.
    pub(super) fn prefix(&self, set: Set) -> &[f64] {
        let row = self.layers + 1;
        &self.all[usize::from(set) * row..][..row]
    }

    /// These layers, sums included.
    pub(super) fn least(&self, set: Set, first: usize, end: usize) -> f64 {
        let prefix = self.prefix(set);
        prefix[end] - prefix[first]
    }

    /// Attention and feed-forward networks of these layers.
    pub(super) fn parts(&self, set: Set, first: usize, end: usize) -> (f64, f64) {
        let prefix = &self.attention[usize::from(set) * (self.layers + 1)..];
        let attention = prefix[end] - prefix[first];
        let sums = self.sums[usize::from(set)] * (end - first) as f64;
        (attention, (self.least(set, first, end) - attention - sums).max(0.0))
    }
}

impl Groups {
    /// `[stages]`: seconds for which some device is busy with a step at least, in any plan of so many stages, since
    /// its groups do no more of the layers in a time than they do when nothing else holds them up.
    pub(super) fn busy(&self, class_of: &[usize]) -> Vec<f64> {
        let sets = self.sums.len();
        // A layer counts as much as it takes on the best group; layers of one class take the same.
        let mut count: Vec<(usize, f64)> = Vec::new();
        let mut of: Vec<usize> = Vec::new();
        for (layer, &class) in class_of.iter().enumerate() {
            match of.iter().position(|&known| known == class) {
                Some(at) => count[at].1 += 1.0,
                None => {
                    of.push(class);
                    count.push((layer, 1.0));
                }
            }
        }
        let fastest = |layer: usize| {
            self.sets.iter().map(|&set| self.least(set, layer, layer + 1)).fold(f64::INFINITY, f64::min)
        };
        let worth: Vec<f64> = count.iter().map(|&(layer, _)| fastest(layer)).collect();
        let work: f64 = count.iter().zip(&worth).map(|(&(_, n), worth)| n * worth).sum();
        let mut pace = vec![0.0_f64; sets];
        for &set in &self.sets {
            let paces = count
                .iter()
                .zip(&worth)
                .map(|(&(layer, _), worth)| worth / self.least(set, layer, layer + 1));
            pace[usize::from(set)] = paces.fold(0.0, f64::max);
        }
        // The most that so many disjoint groups of a set do together.
        let mut most = vec![0.0_f64; sets];
        let mut out = vec![f64::INFINITY];
        for _ in 0..sets.ilog2() {
            let mut next = vec![0.0_f64; sets];
            for used in 1..sets {
                let mut set = used;
                while set != 0 {
                    next[used] = next[used].max(pace[set] + most[used & !set]);
                    set = (set - 1) & used;
                }
            }
            most = next;
            out.push(work / most[sets - 1]);
        }
        out
    }
}

/// `[set]`: the slowest rank's attention, at least, with heads in the order of devices.
fn attention(problem: &Problem<'_>, rules: &Rules, step: &Step, kind: usize) -> Vec<f64> {
    let weights = &problem.weights;
    let (n, heads) = (problem.devices.len(), weights.heads);
    let mut least = vec![f64::INFINITY; (heads + 1) << n];
    least[0] = 0.0;
    let mut out = vec![f64::INFINITY; 1 << n];
    for set in 1..1_usize << n {
        // The highest device comes last.
        let device = set.ilog2() as usize;
        let (before, own) = least.split_at_mut(set * (heads + 1));
        let before = &before[(set & !(1 << device)) * (heads + 1)..][..=heads];
        let own = &mut own[..=heads];
        for first in 0..=heads {
            if before[first] == f64::INFINITY {
                continue;
            }
            let times = &step.attention[kind][device][weights.at(first, first)..];
            let ends = match rules.heads[device] {
                Some((from, to)) if from as usize == first => to as usize..=to as usize,
                Some(_) => continue,
                None => first..=heads,
            };
            for end in ends {
                own[end] = own[end].min(before[first].max(times[end - first]));
            }
        }
        out[set] = own[heads];
    }
    out
}

/// The slowest rank's feed-forward network, at least. A rank's last block counts as the model's last, which
/// may be shorter.
fn feed_forward(step: &Step, kind: usize, members: &[usize], blocks: usize) -> f64 {
    let times = |at: usize| &step.feed_forward[kind][members[at]][1];
    let values = &step.feed_forward_values[kind];
    let all = |limit: f64| -> usize {
        (0..members.len()).map(|at| times(at).partition_point(|&time| time <= limit) - 1).sum()
    };
    let (mut low, mut high) = (0, values.len());
    while low < high {
        let middle = usize::midpoint(low, high);
        if all(values[middle]) >= blocks { high = middle } else { low = middle + 1 }
    }
    values.get(low).copied().unwrap_or(f64::INFINITY)
}
