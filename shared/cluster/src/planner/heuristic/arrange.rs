//! The price of an ordered list of groups: layers, the output head's place, and the objective.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::deck::Deck;
use super::fill::{Line, fill};
use super::group::{Group, HeadPart, PARTS, Role};
use super::layering::{Least, layering};
use super::ranks::Care;
use crate::cost::Objective;

/// An ordered list of disjoint groups of devices, each by rising index.
pub(super) type Groups = Vec<Vec<u16>>;

/// Scores from here on are of what does not fit; less still means nearer to fitting.
pub(super) const UNFIT: f64 = 1e12;

/// Up to this many devices, shares are made with care.
const FEW: usize = 16;

/// Caps on the longest stage between the least possible and none, as parts of the way, that are tried where neither
/// end is best.
const CAPS: [f64; 3] = [0.08, 0.25, 0.5];

/// A list of groups with everything a plan needs.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) groups: Vec<Rc<Group>>,
    pub(super) layers: Vec<usize>,
    /// Device and tiles.
    pub(super) head: Vec<(u16, u32)>,
    /// Seconds per token of one stream or over all streams; [`UNFIT`] and more where it does not fit.
    pub(super) score: f64,
}

/// Groups by their devices, the rows of a step, and what they hold beside layers.
type Known = BTreeMap<(Vec<u16>, u32, Role), Rc<Group>>;

/// Devices and their tiles of the output head.
type Tiles = Vec<(u16, u32)>;

/// Prices lists of groups, and remembers groups.
pub(super) struct Table<'t, 'd> {
    pub(super) deck: &'t Deck<'d>,
    groups: RefCell<Known>,
    none: Vec<f64>,
    /// Whether devices without layers may have some of the output head.
    everyone: bool,
    care: Care,
    /// Lists priced.
    pub(super) priced: Cell<u64>,
}

/// Groups that are remembered at most: some hundred bytes each.
const REMEMBERED: usize = 200_000;

impl<'t, 'd> Table<'t, 'd> {
    pub(super) fn new(deck: &'t Deck<'d>, everyone: bool) -> Self {
        let none = vec![0.0; deck.nodes.len()];
        let care = if deck.nodes.len() <= FEW { Care::FINE } else { Care::COARSE };
        Self { deck, groups: RefCell::default(), none, everyone, care, priced: Cell::new(0) }
    }

    /// The group with shares for steps of `rows` rows.
    pub(super) fn group(&self, devices: &[u16], rows: u32, role: Role) -> Rc<Group> {
        let key = (devices.to_vec(), rows, role);
        let mut known = self.groups.borrow_mut();
        if let Some(group) = known.get(&key) {
            return Rc::clone(group);
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let group = Rc::new(Group::new(self.deck, devices, rows, role, (&self.none, self.care)));
        known.insert(key, Rc::clone(&group));
        group
    }

    /// The objective of these groups.
    pub(super) fn score(&self, groups: &[Vec<u16>]) -> f64 {
        self.layout(groups, None).map_or(2.0 * UNFIT, |layout| layout.score)
    }

    /// The best layout of these groups. `spare`: bytes of each device that are wanted for other things.
    pub(super) fn layout(&self, groups: &[Vec<u16>], spare: Option<&[f64]>) -> Option<Layout> {
        self.priced.set(self.priced.get() + 1);
        let (first, last) = (0, groups.len().checked_sub(1)?);
        if groups.len() > self.deck.layers {
            return None;
        }
        let rows = self.deck.rows(groups.len());
        let need = f64::from(self.deck.tiles) * self.deck.bulk.tile;
        let part = |memory: f64| (need / memory * PARTS).ceil();
        let used: f64 = groups.iter().flatten().map(|&device| self.deck.usable[usize::from(device)]).sum();
        // The head on the last group, on all devices with layers, or on all devices there are.
        let mut ways = vec![(HeadPart::Whole, Vec::new())];
        if last > 0 && part(used) < PARTS {
            ways.push((HeadPart::Part(part(used) as u8), Vec::new()));
        }
        if self.everyone {
            let unused: Vec<u16> = (0..self.deck.nodes.len() as u16)
                .filter(|device| !groups.iter().any(|group| group.contains(device)))
                .collect();
            let all: f64 = self.deck.usable.iter().sum();
            if !unused.is_empty() && part(all) < PARTS {
                ways.push((HeadPart::Part(part(all) as u8), unused));
            }
        }
        let mut best: Option<Layout> = None;
        for (head, unused) in ways {
            let of = |(at, devices): (usize, &Vec<u16>)| {
                let head = match head {
                    HeadPart::Whole if at != last => HeadPart::None,
                    head => head,
                };
                let role = Role { first: at == first, head };
                match spare {
                    None => self.group(devices, rows, role),
                    Some(spare) => Rc::new(Group::new(self.deck, devices, rows, role, (spare, self.care))),
                }
            };
            let made: Vec<Rc<Group>> = groups.iter().enumerate().map(of).collect();
            let found = self.laid(groups, made, rows, head, &unused);
            if best.as_ref().is_none_or(|best| found.score < best.score) {
                best = Some(found);
            }
        }
        best
    }

    fn laid(
        &self,
        groups: &[Vec<u16>],
        made: Vec<Rc<Group>>,
        rows: u32,
        head: HeadPart,
        unused: &[u16],
    ) -> Layout {
        let deck = self.deck;
        let whole = made.last().and_then(|group| group.head.clone()).filter(|_| head == HeadPart::Whole);
        let mut beside = vec![0.0; made.len()];
        if let Some((_, time)) = &whole {
            beside[made.len() - 1] = *time;
        }
        let nothing = vec![0.0; made.len()];
        let headless = head == HeadPart::Whole && whole.is_none();
        let unfit = |made: Vec<Rc<Group>>| {
            let score = UNFIT * (1.0 + lack(&made, deck.layers) / deck.layers as f64);
            Layout { groups: made, layers: Vec::new(), head: Vec::new(), score }
        };
        if headless {
            return unfit(made);
        }
        let hop = deck.hop_bytes(rows);
        let leaders: Vec<usize> =
            groups.iter().map(|group| group.iter().min().copied().unwrap_or_default().into()).collect();
        let hops: f64 = leaders.windows(2).map(|pair| deck.link(pair[0], pair[1]).time(hop)).sum();
        let steps = f64::from(deck.streams().div_ceil(rows));
        let price = |layers: &[usize]| {
            let busy: Vec<f64> = made.iter().zip(layers).map(|(group, &count)| group.time(count)).collect();
            let (tiles, head_time, longest) = match &whole {
                Some((tiles, time)) => {
                    let devices = &made[made.len() - 1].devices;
                    let tiles: Vec<(u16, u32)> = devices.iter().copied().zip(tiles.iter().copied()).collect();
                    let longest =
                        busy.iter().zip(&beside).map(|(busy, beside)| busy + beside).fold(0.0, f64::max);
                    (tiles, *time, longest)
                }
                None => self.spread(&made, layers, &busy, (&leaders, unused), rows)?,
            };
            let tiles: Vec<(u16, u32)> = tiles.into_iter().filter(|entry| entry.1 > 0).collect();
            let links = &deck.cluster.links;
            let control = crate::cost::predict::control(links, made[0].devices.len(), tiles.len());
            let latency = busy.iter().sum::<f64>() + hops + head_time + control;
            let score = match deck.objective {
                Objective::Latency => latency,
                Objective::Throughput | Objective::Energy => {
                    latency.max(steps * longest) / f64::from(deck.streams())
                }
            };
            Some((score, tiles, latency, longest))
        };
        let mut best: Option<(f64, Vec<usize>, Tiles)> = None;
        let mut take = |layers: Vec<usize>| {
            let (score, tiles, latency, longest) = price(&layers)?;
            if best.as_ref().is_none_or(|best| score < best.0) {
                best = Some((score, layers, tiles));
            }
            Some((latency, longest))
        };
        let shortest = layering(&made, deck.layers, &nothing, Least::Sum, f64::INFINITY);
        let Some(shortest) = shortest else { return unfit(made) };
        let sum = take(shortest);
        let waits = sum.is_none_or(|(latency, longest)| steps * longest > latency);
        if deck.objective != Objective::Latency && made.len() > 1 && waits {
            let level = layering(&made, deck.layers, &beside, Least::Longest, f64::INFINITY);
            let most = sum.map_or(f64::INFINITY, |sum| sum.1);
            if let Some((latency, longest)) = level.and_then(&mut take)
                && latency > steps * longest
                && most.is_finite()
            {
                for part in CAPS {
                    let cap = longest + part * (most - longest);
                    if let Some(layers) = layering(&made, deck.layers, &beside, Least::Sum, cap) {
                        take(layers);
                    }
                }
            }
        }
        match best {
            Some((score, layers, head)) => Layout { groups: made, layers, head, score },
            None => unfit(made),
        }
    }

    /// The output head over all devices: tiles, seconds until its slowest rank has done, and the longest that any
    /// device is busy.
    fn spread(
        &self,
        made: &[Rc<Group>],
        layers: &[usize],
        busy: &[f64],
        (leaders, unused): (&[usize], &[u16]),
        rows: u32,
    ) -> Option<(Tiles, f64, f64)> {
        let deck = self.deck;
        let speeds = deck.speeds(rows);
        let last = made.len() - 1;
        let remote = made[..last].iter().map(|group| group.devices.len()).sum::<usize>() + unused.len();
        let hop = deck.hop_bytes(rows);
        let mut devices = Vec::new();
        // Moving, computing without and with what the device does before, by device.
        let mut lines: Vec<Line> = Vec::new();
        let mut before = Vec::new();
        let mut moves = Vec::new();
        let mut add = |device: u16, most: u32, busy: f64, apart: bool| {
            let speed = &speeds[usize::from(device)];
            let moved = if apart {
                let link = *deck.link(leaders[last], device.into());
                crate::cost::predict::head_move(link, remote, made[last].devices.len(), hop)
            } else {
                0.0
            };
            devices.push(device);
            lines.push(Line { first: speed.overhead + moved, each: speed.tile, most });
            before.push(busy);
            moves.push(moved);
        };
        for (stage, group) in made.iter().enumerate() {
            for (&device, most) in group.devices.iter().zip(group.tiles(deck, layers[stage])) {
                add(device, most, busy[stage], stage != last);
            }
        }
        for &device in unused {
            let room = (deck.usable[usize::from(device)] - deck.bulk.head) / deck.bulk.tile;
            add(device, room.max(0.0) as u32, 0.0, true);
        }
        let measure = |tiles: &[u32]| {
            let (mut head, mut longest) = (0.0_f64, 0.0_f64);
            for (at, &count) in tiles.iter().enumerate() {
                let time = lines[at].time(count);
                head = head.max(time);
                longest = longest.max(before[at] + if count > 0 { time - moves[at] } else { 0.0 });
            }
            (head, longest)
        };
        let mut tiles = Vec::new();
        fill(deck.tiles, &lines, &mut tiles)?;
        let (mut head, mut longest) = measure(&tiles);
        if deck.objective != Objective::Latency {
            // Where the longest stage sets the pace, those that are busy less take more.
            let busy_lines: Vec<Line> = (0..lines.len())
                .map(|at| Line { first: lines[at].first - moves[at] + before[at], ..lines[at] })
                .collect();
            let mut level = Vec::new();
            if fill(deck.tiles, &busy_lines, &mut level).is_some() {
                let (level_head, level_longest) = measure(&level);
                let steps = f64::from(deck.streams().div_ceil(rows));
                let sum: f64 = busy.iter().sum();
                let score = |head: f64, longest: f64| (sum + head).max(steps * longest);
                if score(level_head, level_longest) < score(head, longest) {
                    (tiles, head, longest) = (level, level_head, level_longest);
                }
            }
        }
        Some((devices.into_iter().zip(tiles).collect(), head, longest))
    }
}

/// Layers that do not fit, finely.
fn lack(groups: &[Rc<Group>], layers: usize) -> f64 {
    let room: f64 = groups.iter().map(|group| (group.room / group.layer_bytes).min(layers as f64)).sum();
    let whole: usize = groups.iter().map(|group| group.most()).sum();
    let empty = groups.iter().filter(|group| group.most() == 0).count();
    (layers as f64 - room).max(0.0) + 0.1 * layers.saturating_sub(whole) as f64 + 0.5 * empty as f64
}
