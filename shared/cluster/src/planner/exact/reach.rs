//! How far a stage of each group may reach under one mode of the output head, and what a bound on its time
//! adds where memory is short.

use super::groups::{Groups, Set, members};
use super::pace::{Pace, ROUNDING, alone_bytes};
use super::rules::{Ends, Rules};
use crate::planner::problem::{Head, HeadMode, Problem, Step};

/// The output head as one group's last stage finds it.
#[derive(Debug, Clone)]
pub(super) struct Last {
    /// Seconds from the group's hidden rows to the answers, orders included.
    pub(super) time: f64,
    /// The most seconds of the head on one of its members.
    pub(super) busy: f64,
    /// Bytes of the head on each member, rising; those that are held by every plan of the mode are not here.
    pub(super) bytes: Vec<u64>,
}

/// What holds for all plans of one mode.
#[derive(Debug, Clone)]
pub(super) struct Mode {
    pub(super) mode: HeadMode,
    /// Bytes of each device less what it holds of the head under every plan, its tiles if they are fixed.
    pub(super) usable: Vec<u64>,
    /// Tiles of each device, where they are fixed.
    pub(super) tiles: Vec<u32>,
    /// `[device]`: seconds of the head under every plan.
    pub(super) busy: Vec<f64>,
    /// `[set]`
    pub(super) last: Vec<Option<Last>>,
    /// Runs of devices that are alike in all that counts, as sets of two or more.
    runs: Vec<Set>,
}

impl Mode {
    /// `None` where the memory cannot hold the head this way.
    pub(super) fn new(
        problem: &Problem<'_>,
        rules: &Rules,
        step: &Step,
        mode: HeadMode,
        sets: &[Set],
    ) -> Option<Self> {
        let n = problem.devices.len();
        let mut out = Self {
            mode,
            usable: problem.devices.iter().map(|device| device.usable.0).collect(),
            tiles: vec![0; n],
            busy: vec![0.0; n],
            last: vec![None; 1 << n],
            runs: Vec::new(),
        };
        let fixed: Option<Head> = match mode {
            HeadMode::LastGroup => None,
            HeadMode::AllBySpeed | HeadMode::AllByMemory => {
                let head = problem.head(mode, &[], step)?;
                for &(device, tiles) in &head.tiles {
                    out.tiles[device] = tiles;
                }
                for (device, bytes) in problem.head_bytes(&head) {
                    out.usable[device] -= bytes;
                }
                for (device, busy) in problem.head_busy(&head, step) {
                    out.busy[device] = busy;
                }
                Some(head)
            }
        };
        for &set in sets {
            let of = members(set);
            let own = if fixed.is_none() { problem.head(mode, &of, step) } else { None };
            let Some(head) = fixed.as_ref().or(own.as_ref()) else { continue };
            let mut bytes = vec![0; of.len()];
            if fixed.is_none() {
                for (device, amount) in problem.head_bytes(head) {
                    if let Ok(at) = of.binary_search(&device) {
                        bytes[at] = amount;
                    }
                }
            }
            let busy =
                problem.head_busy(head, step).into_iter().filter(|&(device, _)| set >> device & 1 == 1);
            out.last[usize::from(set)] = Some(Last {
                time: problem.head_time(head, &of, step),
                busy: busy.map(|of| of.1).fold(0.0, f64::max),
                bytes,
            });
        }
        out.runs = runs(problem, rules, &out, |a, b| out.tiles[a] == out.tiles[b]);
        Some(out)
    }

    /// What every one of these modes allows and takes at least; `None` where there are less than two.
    pub(super) fn any(problem: &Problem<'_>, rules: &Rules, modes: &[Self]) -> Option<Self> {
        let (first, rest) = modes.split_first()?;
        let second = rest.first()?;
        let mut out = Self { mode: first.mode, ..second.clone() };
        for mode in modes {
            for device in 0..out.usable.len() {
                out.usable[device] = out.usable[device].max(mode.usable[device]);
                out.busy[device] = out.busy[device].min(mode.busy[device]);
            }
            for (known, other) in out.last.iter_mut().zip(&mode.last) {
                *known = match (known.take(), other) {
                    (Some(known), Some(other)) => Some(Last {
                        time: known.time.min(other.time),
                        busy: known.busy.min(other.busy),
                        bytes: known.bytes.iter().zip(&other.bytes).map(|(a, b)| *a.min(b)).collect(),
                    }),
                    (known, other) => known.or_else(|| other.clone()),
                };
            }
        }
        // Devices are alike if they are under every mode.
        let all = (0..out.usable.len()).map(|device| modes.iter().map(|mode| mode.tiles[device]).collect());
        let tiles: Vec<Vec<u32>> = all.collect();
        out.runs = runs(problem, rules, &out, |a, b| tiles[a] == tiles[b]);
        Some(out)
    }

    /// Whether of each run of like devices the first ones are used: of equal sets, the one to look at.
    pub(super) fn canonical(&self, used: Set) -> bool {
        self.runs.iter().all(|&run| {
            let part = (used & run) >> run.trailing_zeros();
            part & part.wrapping_add(1) == 0
        })
    }

    /// The most seconds of the head on a member of this group, whichever stage it is.
    pub(super) fn busy(&self, set: Set) -> f64 {
        members(set).into_iter().map(|device| self.busy[device]).fold(0.0, f64::max)
    }

    /// Bytes that each member may use for its layers and buffers; `None` where one has less than nothing.
    pub(super) fn rooms(&self, problem: &Problem<'_>, set: Set, first: bool, last: bool) -> Option<Vec<u64>> {
        let embedding = if first { problem.weights.embedding } else { 0 };
        let head = if last { Some(&self.last[usize::from(set)].as_ref()?.bytes) } else { None };
        let room = |(at, device): (usize, usize)| {
            self.usable[device].checked_sub(embedding + head.map_or(0, |bytes| bytes[at]))
        };
        members(set).into_iter().enumerate().map(room).collect()
    }
}

/// Neighbours by node id that differ in nothing a price or a rule looks at.
fn runs(problem: &Problem<'_>, rules: &Rules, mode: &Mode, tiles: impl Fn(usize, usize) -> bool) -> Vec<Set> {
    let devices = &problem.devices;
    let links = &problem.cluster.links;
    let link = |a: usize, b: usize| links.get(devices[a].node, devices[b].node);
    let alike = |a: usize, b: usize| {
        let (left, right) = (&devices[a].profile, &devices[b].profile);
        let others = (0..devices.len()).filter(|&other| other != a && other != b);
        rules.free(a)
            && rules.free(b)
            && tiles(a, b)
            && mode.busy[a] == mode.busy[b]
            && mode.usable[a] == mode.usable[b]
            && (&left.rates, &left.attention, left.phase_overhead)
                == (&right.rates, &right.attention, right.phase_overhead)
            && link(a, b) == link(b, a)
            && others
                .into_iter()
                .all(|other| link(a, other) == link(b, other) && link(other, a) == link(other, b))
    };
    let mut out: Vec<Set> = Vec::new();
    let mut first = 0;
    for device in 1..=devices.len() {
        if device == devices.len() || !alike(device - 1, device) {
            if device - first > 1 {
                out.push((((1_u32 << device) - 1) & !((1_u32 << first) - 1)) as Set);
            }
            first = device;
        }
    }
    out
}

/// Where stages of each group may end, and what they cost at least.
#[derive(Debug)]
pub(super) struct Reach {
    layers: usize,
    /// `[set][first]`: the last end before the model's that may fit; `first` where there is none.
    pub(super) most: Vec<u8>,
    /// `[set]`: longest range on which memory adds nothing.
    pub(super) loose: Vec<u8>,
    /// `[set][layers + 1]`: what memory adds for so many layers.
    pub(super) added: Vec<f64>,
    /// `[set][first]`: from `first` to the last layer and on to the answer.
    pub(super) last: Vec<f64>,
    /// `[stages][set]`: most layers that so many groups of the set may run; of any number where that is free.
    cover: Vec<Vec<u16>>,
}

impl Reach {
    /// Stages that are busy for `cap` seconds or more are left out.
    pub(super) fn new(
        problem: &Problem<'_>,
        rules: &Rules,
        groups: &Groups,
        pace: &Pace,
        mode: &Mode,
        buffer_rows: u32,
        (cap, stages): (f64, Option<usize>),
    ) -> Self {
        let (n, layers) = (problem.devices.len(), groups.layers);
        let row = layers + 1;
        let mut out = Self {
            layers,
            most: vec![0; row << n],
            loose: vec![0; 1 << n],
            added: vec![f64::INFINITY; row << n],
            last: vec![f64::INFINITY; row << n],
            cover: Vec::new(),
        };
        let mut longest = vec![0_u16; 1 << n];
        let weights = &problem.weights;
        // The least bytes of any range of so many layers.
        let lightest: Vec<u64> = (0..=layers)
            .map(|len| (0..=layers - len).map(|first| pace.bytes(first, first + len)).min().unwrap_or(0))
            .collect();
        for &set in &groups.sets {
            let of = members(set);
            let base = usize::from(set) * row;
            for first in 0..row {
                out.most[base + first] = first as u8;
            }
            let buffers = problem.rank_buffers((0, 0), 0, false, of.len(), buffer_rows);
            let free = |rooms: Option<Vec<u64>>| -> Option<Vec<f64>> {
                rooms?.into_iter().map(|room| Some(room.checked_sub(buffers)? as f64)).collect()
            };
            let Some(rooms) = free(mode.rooms(problem, set, false, false)) else { continue };
            let total: f64 = rooms.iter().sum();
            let busy = mode.busy(set);
            let alone = of.len() == 1;
            let own = |first: usize, end: usize| {
                let ask = alone_bytes(problem, &weights.counts(first, end), buffer_rows);
                ask.saturating_sub(buffers) as f64
            };
            // One device holds all of it.
            let bytes = |first: usize, end: usize| {
                if alone { own(first, end) } else { pace.bytes(first, end) as f64 }
            };
            // What memory adds, by the number of layers: for the range that has most time and least bytes.
            out.added[base] = 0.0;
            let mut tight = false;
            for (len, &lightest) in lightest.iter().enumerate().skip(1) {
                if alone || !tight && lightest as f64 > total {
                    out.added[base + len] = if alone { 0.0 } else { f64::INFINITY };
                    out.loose[usize::from(set)] = if alone { len as u8 } else { out.loose[usize::from(set)] };
                    continue;
                }
                let mut parts = (0.0_f64, 0.0_f64);
                for first in 0..=layers - len {
                    let own = groups.parts(set, first, first + len);
                    parts = (parts.0.max(own.0), parts.1.max(own.1));
                    if weights.classes.len() == 1 {
                        break;
                    }
                }
                let added = pace.beyond(&of, &rooms, parts, lightest as f64);
                out.added[base + len] = added;
                tight |= added > 0.0;
                if !tight {
                    out.loose[usize::from(set)] = len as u8;
                }
            }
            let within = |time: f64| time < cap * (1.0 + ROUNDING);
            let last = mode.last[usize::from(set)].as_ref();
            let last_rooms = free(mode.rooms(problem, set, false, true));
            let long = &mut longest[usize::from(set)];
            for first in 0..layers {
                let (least, most) = match rules.ends(set, first) {
                    Ends::None => continue,
                    Ends::One(end) => (end, end),
                    Ends::UpTo(end) => (first + 1, end),
                };
                if most == layers
                    && let (Some(last), Some(rooms)) = (last, &last_rooms)
                {
                    let bytes = bytes(first, layers);
                    let added = if alone {
                        if bytes <= rooms[0] { 0.0 } else { f64::INFINITY }
                    } else {
                        pace.beyond(&of, rooms, groups.parts(set, first, layers), bytes)
                    };
                    let compute = groups.least(set, first, layers) + added;
                    if within(compute + busy.max(last.busy)) && compute.is_finite() {
                        out.last[base + first] = compute + last.time;
                        *long = (*long).max((layers - first) as u16);
                    }
                }
                let most = most.min(layers - 1);
                let fits =
                    |end: usize| bytes(first, end) <= total && within(groups.least(set, first, end) + busy);
                let (mut low, mut high) = (least.max(first + 1) - 1, most + 1);
                while high > low && high - low > 1 {
                    let middle = usize::midpoint(low, high);
                    if fits(middle) { low = middle } else { high = middle }
                }
                if low >= least {
                    out.most[base + first] = low as u8;
                    *long = (*long).max((low - first) as u16);
                }
            }
        }
        out.cover = cover(&longest, stages);
        out
    }

    /// Layers that so many stages of these devices may run together (of any number, where it is free).
    pub(super) fn cover(&self, stages: usize, set: Set) -> usize {
        let stages = if self.cover.len() == 1 { 0 } else { stages };
        usize::from(self.cover[stages][usize::from(set)]).min(self.layers)
    }

    /// At least what these layers cost beyond what speed alone says; the last stage's is in `last`.
    pub(super) fn added(&self, set: Set, len: usize) -> f64 {
        self.added[usize::from(set) * (self.layers + 1) + len]
    }

    /// Last end before the model's.
    pub(super) fn most(&self, set: Set, first: usize) -> usize {
        self.most[usize::from(set) * (self.layers + 1) + first].into()
    }

    /// From `first` through the last layer to the answer.
    pub(super) fn last(&self, set: Set, first: usize) -> f64 {
        self.last[usize::from(set) * (self.layers + 1) + first]
    }
}

/// `[stages][set]`: the most layers of so many disjoint groups of the set, given the most of each group.
fn cover(longest: &[u16], stages: Option<usize>) -> Vec<Vec<u16>> {
    let sets = longest.len();
    let Some(stages) = stages else {
        let mut out = vec![0; sets];
        for used in 1..sets {
            let mut set = used;
            while set != 0 {
                out[used] = out[used].max(longest[set] + out[used & !set]);
                set = (set - 1) & used;
            }
        }
        return vec![out];
    };
    let none = vec![0; sets];
    let mut out = vec![none.clone()];
    for count in 1..=stages {
        let mut next = none.clone();
        for (used, most) in next.iter_mut().enumerate().skip(1) {
            let mut set = used;
            while set != 0 {
                let others = out[count - 1][used & !set];
                if longest[set] > 0 && (count == 1 || others > 0) {
                    *most = (*most).max(longest[set] + others);
                }
                set = (set - 1) & used;
            }
        }
        out.push(next);
    }
    out
}
