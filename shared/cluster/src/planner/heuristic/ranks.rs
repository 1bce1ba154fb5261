//! The shares of one group's ranks: by speed where memory allows, and what full ranks give up where it does not.

use shoal_core::plan::Span;

use super::deck::{Deck, Speed};
use super::fill::{Line, fill};
use super::group::{HeadPart, PARTS, Role, Step};

/// How carefully shares are made where memory is short.
#[derive(Debug, Clone, Copy)]
pub(super) struct Care {
    /// Numbers of layers, beyond those that fit with shares by speed, for which shares are made.
    steps: usize,
    /// Numbers of layers just below what bytes allow that are tried as well.
    top: usize,
    /// What full ranks may keep.
    ways: &'static [Keep],
    /// Whether that is chosen for each rank alone.
    each_rank: bool,
}

impl Care {
    /// For few devices.
    pub(super) const FINE: Self = Self { steps: 6, top: 6, ways: &Keep::ALL, each_rank: true };
    /// For many.
    pub(super) const COARSE: Self = Self { steps: 3, top: 2, ways: &Keep::ALL, each_rank: false };
    /// For groups that are looked at once.
    pub(super) const ROUGH: Self = Self { steps: 2, top: 0, ways: &[Keep::Evenly], each_rank: false };
}

/// Rounds in which full ranks give up units and the others take them.
const ROUNDS: usize = 8;

/// What a rank keeps when it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Heads and blocks in proportion.
    Evenly,
    /// Blocks: heads go first.
    Blocks,
    /// Heads: blocks go first.
    Heads,
}

impl Keep {
    const ALL: [Self; 3] = [Self::Evenly, Self::Blocks, Self::Heads];
}

/// Makes the shares of one group.
pub(super) struct Maker<'a, 'd> {
    deck: &'a Deck<'d>,
    pub(super) devices: Vec<u16>,
    speed: Vec<Speed>,
    sum: f64,
    /// Bytes for layers and the buffers that grow with shares.
    pub(super) room: Vec<f64>,
    /// Query heads that are pinned, by rank.
    heads: Vec<Option<Span>>,
    pub(super) pinned: Option<Span>,
    /// Whether some rank's heads are pinned.
    fixed: bool,
    care: Care,
}

impl<'a, 'd> Maker<'a, 'd> {
    pub(super) fn new(
        deck: &'a Deck<'d>,
        devices: &[u16],
        (speeds, care): (&[Speed], Care),
        rows: u32,
        role: Role,
        spare: &[f64],
    ) -> Self {
        let mut devices = devices.to_vec();
        let heads_of = |device: u16| deck.pins.heads(deck.nodes[usize::from(device)]);
        let fixed = !deck.pins.heads.is_empty() && devices.iter().any(|&d| heads_of(d).is_some());
        if fixed {
            order_by_pins(deck, &mut devices, speeds);
        }
        let bulk = &deck.bulk;
        let ranks = if devices.len() > 1 { devices.len() as f64 + 3.0 } else { 0.0 };
        let room = |&device: &u16| {
            let mut left = deck.usable[usize::from(device)] - spare[usize::from(device)] - bulk.buffers;
            left -= ranks * bulk.rank_buffer;
            left -= if role.first { bulk.embedding } else { 0.0 };
            match role.head {
                HeadPart::None => left,
                HeadPart::Part(part) => {
                    left - bulk.head - deck.usable[usize::from(device)] * f64::from(part) / PARTS
                }
                HeadPart::Whole => left - bulk.head,
            }
        };
        let pinned = if deck.pins.layers.is_empty() {
            None
        } else {
            devices.iter().find_map(|&device| deck.pins.span(deck.nodes[usize::from(device)]))
        };
        Self {
            deck,
            room: devices.iter().map(room).collect(),
            speed: devices.iter().map(|&device| speeds[usize::from(device)]).collect(),
            sum: deck.sum(&devices, rows),
            heads: devices.iter().map(|&device| heads_of(device)).collect(),
            devices,
            pinned,
            fixed,
            care,
        }
    }

    pub(super) fn layer_bytes(&self) -> f64 {
        let (bulk, spec) = (&self.deck.bulk, self.deck.spec);
        f64::from(spec.n_heads) * bulk.q_head
            + f64::from(spec.n_kv_heads) * bulk.kv_head
            + f64::from(self.deck.blocks) * bulk.ffn_block
            + bulk.layer * self.devices.len() as f64
    }

    /// The whole head on this group, taken from its room.
    pub(super) fn head(&mut self) -> Option<(Vec<u32>, f64)> {
        let bulk = &self.deck.bulk;
        let lines = |spread: f64| {
            self.speed.iter().zip(&self.room).map(move |(speed, room)| Line {
                first: speed.overhead,
                each: speed.tile,
                // A rank keeps some of its room for layers.
                most: (room * spread / bulk.tile).max(0.0) as u32,
            })
        };
        let mut tiles = Vec::new();
        let total: f64 = self.room.iter().map(|room| room.max(0.0)).sum();
        let need = f64::from(self.deck.tiles) * bulk.tile;
        // In proportion to memory where that is short, by speed where it is not.
        let spread = if need > 0.0 && total > 0.0 { (2.0 * need / total).clamp(0.25, 1.0) } else { 1.0 };
        let lines: Vec<Line> = lines(spread).collect();
        let time = fill(self.deck.tiles, &lines, &mut tiles)?;
        for (room, &tiles) in self.room.iter_mut().zip(&tiles) {
            *room -= f64::from(tiles) * bulk.tile;
        }
        Some((tiles, time))
    }

    pub(super) fn steps(&mut self, out: &mut Vec<Step>) {
        let layers = self.deck.layers;
        let Some(mut step) = self.shares(None) else { return };
        step.layers = self.fits(&step, layers);
        let by_speed = step.layers;
        if by_speed > 0 {
            out.push(step);
        }
        let by_bytes =
            (self.room.iter().map(|room| room.max(0.0)).sum::<f64>() / self.layer_bytes()) as usize;
        let most = by_bytes.min(layers);
        if self.devices.len() < 2 || by_speed >= most {
            return;
        }
        let mut last = by_speed;
        let steps = self.care.steps;
        for at in 1..=steps {
            let want = by_speed + ((most - by_speed) * at).div_ceil(steps);
            if want <= last {
                continue;
            }
            let Some(mut step) = self.shares(Some(want)) else { break };
            step.layers = self.fits(&step, layers);
            if step.layers <= last {
                break;
            }
            last = step.layers;
            out.push(step);
        }
        // The most that whole units allow lies a little below what bytes do.
        for want in (last + 1..=most).rev().take(self.care.top) {
            let Some(mut step) = self.shares(Some(want)) else { continue };
            step.layers = self.fits(&step, layers);
            if step.layers > last {
                out.push(step);
                break;
            }
        }
        // A staircase that falls is walked from its lower end.
        for at in (1..out.len()).rev() {
            if out[at - 1].time >= out[at].time {
                out.remove(at - 1);
            }
        }
    }

    /// Most layers that fit with these shares.
    fn fits(&self, step: &Step, most: usize) -> usize {
        let mut least = most;
        for (rank, (&q, &blocks)) in step.q_heads.iter().zip(&step.blocks).enumerate() {
            let (each, once) = self.bytes(q, blocks);
            let left = self.room[rank] - once;
            if left < 0.0 {
                return 0;
            }
            if each > 0.0 {
                least = least.min((left / each) as usize);
            }
        }
        least
    }

    fn bytes(&self, q: u32, blocks: u32) -> (f64, f64) {
        bytes(self.deck, q, blocks)
    }

    /// Shares with which this many layers fit, or those by speed.
    ///
    /// What a full rank gives up is tried three ways, the same for all and then one rank at a time.
    fn shares(&self, layers: Option<usize>) -> Option<Step> {
        let n = self.devices.len();
        let mut limited = vec![false; n];
        let Some(layers) = layers else { return self.shares_by(None, &mut limited).map(|(step, _)| step) };
        let mut best: Option<(Step, bool, Vec<Keep>)> = None;
        let mut full = vec![false; n];
        let better = |best: &Option<(Step, bool, Vec<Keep>)>, step: &Step, fits: bool| {
            best.as_ref().is_none_or(|(known, known_fits, _)| match (fits, known_fits) {
                (true, false) => true,
                (false, true) => false,
                _ => step.time < known.time * (1.0 - 1e-9),
            })
        };
        for &keep in self.care.ways {
            limited.fill(false);
            let ways = vec![keep; n];
            if let Some((step, fits)) = self.shares_by(Some((layers, &ways)), &mut limited) {
                full.iter_mut().zip(&limited).for_each(|(full, limited)| *full |= limited);
                if better(&best, &step, fits) {
                    best = Some((step, fits, ways));
                }
            }
        }
        if self.care.each_rank {
            for rank in (0..n).filter(|&rank| full[rank]) {
                for &keep in self.care.ways {
                    let Some((_, _, ways)) = &best else { break };
                    if ways[rank] == keep {
                        continue;
                    }
                    let mut ways = ways.clone();
                    ways[rank] = keep;
                    if let Some((step, fits)) = self.shares_by(Some((layers, &ways)), &mut limited)
                        && better(&best, &step, fits)
                    {
                        best = Some((step, fits, ways));
                    }
                }
            }
        }
        best.map(|(step, ..)| step)
    }

    /// The same where each rank gives up what it must in this way; also whether it fits. Ranks that had to are marked.
    fn shares_by(&self, within: Option<(usize, &[Keep])>, limited: &mut [bool]) -> Option<(Step, bool)> {
        let (heads, blocks) = (self.deck.spec.n_heads, self.deck.blocks);
        let mut caps = vec![(heads, blocks); self.devices.len()];
        let mut step = Step { layers: 0, time: 0.0, q_heads: Vec::new(), blocks: Vec::new() };
        for round in 0..ROUNDS {
            let attention = self.attention(&caps, &mut step.q_heads)?;
            let line = |(speed, cap): (&Speed, &(u32, u32))| Line {
                first: speed.overhead,
                each: speed.ffn_block,
                most: cap.1,
            };
            let lines: Vec<Line> = self.speed.iter().zip(&caps).map(line).collect();
            let ffn = fill(blocks, &lines, &mut step.blocks)?;
            step.time = attention + ffn + 2.0 * self.sum;
            let Some((layers, ways)) = within else { return Some((step, true)) };
            // Whoever has too much keeps as much as fits.
            let mut over = false;
            for (rank, cap) in caps.iter_mut().enumerate() {
                let (q, blocks) = (step.q_heads[rank], step.blocks[rank]);
                let (each, once) = self.bytes(q, blocks);
                let need = each * layers as f64 + once;
                if need > self.room[rank] {
                    (over, limited[rank]) = (true, true);
                    // The last rounds aim a little lower, since whole units do not shrink evenly.
                    let slack = if round + 2 < ROUNDS { 1.0 } else { 0.97 };
                    let part = (self.room[rank] / need).max(0.0) * slack;
                    *cap = self.keep(rank, (q, blocks), (ways[rank], part), layers);
                }
            }
            if !over {
                return Some((step, true));
            }
        }
        Some((step, false))
    }

    /// The most of this share that fits the rank for so many layers, shrunk in this way: query heads in whole KV heads,
    /// and as many blocks as are left room for. Evenly means to about `part`.
    fn keep(
        &self,
        rank: usize,
        (q, blocks): (u32, u32),
        (way, part): (Keep, f64),
        layers: usize,
    ) -> (u32, u32) {
        let bulk = &self.deck.bulk;
        let group = self.deck.spec.group_size().max(1);
        let block = bulk.ffn_block * layers as f64 + bulk.ffn_buffer;
        let left_beside = |q: u32| {
            let (each, once) = self.bytes(q, 0);
            let norms = if q == 0 { bulk.layer } else { 0.0 };
            self.room[rank] - (each + norms) * layers as f64 - once
        };
        let mut keep = match way {
            Keep::Evenly => (f64::from(q) * part) as u32 / group * group,
            Keep::Heads | Keep::Blocks => q,
        };
        loop {
            let left = left_beside(keep);
            let have = if left < 0.0 { 0 } else { blocks.min((left / block) as u32) };
            let enough = match way {
                Keep::Evenly | Keep::Heads => left >= 0.0,
                Keep::Blocks => have == blocks,
            };
            if enough || keep == 0 {
                return (keep, have);
            }
            keep = keep.saturating_sub(group);
        }
    }

    /// Query heads by rank and the slowest rank's attention.
    fn attention(&self, caps: &[(u32, u32)], out: &mut Vec<u32>) -> Option<f64> {
        let spec = self.deck.spec;
        let group = spec.group_size().max(1);
        if self.fixed {
            return self.pinned_attention(caps, out);
        }
        let lines = |unit: u32| -> Vec<Line> {
            let each = |speed: &Speed| {
                f64::from(unit) * speed.q_head + f64::from(unit) / f64::from(group) * speed.kv_head
            };
            let line = |(speed, cap): (&Speed, &(u32, u32))| Line {
                first: speed.overhead,
                each: each(speed),
                most: cap.0 / unit,
            };
            self.speed.iter().zip(caps).map(line).collect()
        };
        let mut best: Option<f64> = None;
        let mut counts = Vec::new();
        for unit in [group, 1] {
            if fill(spec.n_heads / unit, &lines(unit), &mut counts).is_none() {
                continue;
            }
            for count in &mut counts {
                *count *= unit;
            }
            let time = self.attention_time(&counts);
            if best.is_none_or(|best| time < best) {
                best = Some(time);
                out.clone_from(&counts);
            }
            if group == 1 {
                break;
            }
        }
        best
    }

    /// The slowest rank's attention with these heads, laid out in rank order.
    fn attention_time(&self, q_heads: &[u32]) -> f64 {
        let group = self.deck.spec.group_size().max(1);
        let (mut first, mut slowest) = (0, 0.0_f64);
        for (&count, speed) in q_heads.iter().zip(&self.speed) {
            let end = first + count;
            if count > 0 {
                let kv = end.div_ceil(group) - first / group;
                let time = speed.overhead + f64::from(count) * speed.q_head + f64::from(kv) * speed.kv_head;
                slowest = slowest.max(time);
            }
            first = end;
        }
        slowest
    }

    /// Ranks with pinned heads have those; the others fill the gaps between them.
    fn pinned_attention(&self, caps: &[(u32, u32)], out: &mut Vec<u32>) -> Option<f64> {
        let heads = self.deck.spec.n_heads;
        let group = f64::from(self.deck.spec.group_size().max(1));
        out.clear();
        out.resize(self.devices.len(), 0);
        let (mut from, mut next) = (0, 0_u32);
        let mut units = Vec::new();
        for rank in 0..=self.devices.len() {
            let pin = match self.heads.get(rank) {
                Some(None) => continue,
                Some(Some(span)) => *span,
                None => Span::new(heads, heads),
            };
            // An empty range is kept anywhere.
            let gap =
                if pin.is_empty() && rank < self.devices.len() { 0 } else { pin.first.checked_sub(next)? };
            if gap > 0 || !pin.is_empty() || rank == self.devices.len() {
                let lines: Vec<Line> = (from..rank)
                    .map(|other| {
                        let speed = &self.speed[other];
                        let most = if self.heads[other].is_some() { 0 } else { caps[other].0 };
                        Line { first: speed.overhead, each: speed.q_head + speed.kv_head / group, most }
                    })
                    .collect();
                fill(gap, &lines, &mut units)?;
                for (other, &count) in (from..rank).zip(&units) {
                    out[other] += count;
                }
                from = rank;
                next = next.max(pin.end);
            }
            if let Some(own) = out.get_mut(rank) {
                *own = pin.len();
            }
        }
        (out.iter().sum::<u32>() == heads).then(|| self.attention_time(out))
    }
}

/// Bytes of each layer and of buffers for these heads and blocks of a rank.
pub(super) fn bytes(deck: &Deck<'_>, q: u32, blocks: u32) -> (f64, f64) {
    let bulk = &deck.bulk;
    // As many KV heads as so many query heads read at most, beginning anywhere.
    let group = deck.spec.group_size().max(1);
    let shifted = u32::from(q > 0 && !q.is_multiple_of(group));
    let kv = f64::from((q.div_ceil(group) + shifted).min(deck.spec.n_kv_heads));
    let each = f64::from(q) * bulk.q_head
        + kv * bulk.kv_head
        + f64::from(blocks) * bulk.ffn_block
        + if q + blocks > 0 { bulk.layer } else { 0.0 };
    let once = f64::from(q) * bulk.q_buffer + kv * bulk.kv_buffer + f64::from(blocks) * bulk.ffn_buffer;
    (each, once)
}

/// Ranks in the order of their pinned heads, and the others where gaps between those want filling: each to the gap
/// with the most heads for the speed it has.
fn order_by_pins(deck: &Deck<'_>, devices: &mut Vec<u16>, speeds: &[Speed]) {
    let heads_of = |device: u16| deck.pins.heads(deck.nodes[usize::from(device)]);
    let mut pinned: Vec<(Span, u16)> = devices.iter().filter_map(|&d| Some((heads_of(d)?, d))).collect();
    pinned.sort_unstable();
    let mut others: Vec<u16> = devices.iter().copied().filter(|&d| heads_of(d).is_none()).collect();
    let speed = |device: u16| 1.0 / speeds[usize::from(device)].q_head;
    others.sort_by(|&a, &b| speed(b).total_cmp(&speed(a)).then(a.cmp(&b)));
    // The gap before each pinned rank, and the one after all.
    let mut next = 0;
    let mut gaps: Vec<(u32, f64, Vec<u16>)> = Vec::new();
    for &(span, _) in &pinned {
        gaps.push((span.first.saturating_sub(next), 0.0, Vec::new()));
        next = next.max(span.end);
    }
    gaps.push((deck.spec.n_heads.saturating_sub(next), 0.0, Vec::new()));
    for device in others {
        let want = |gap: &(u32, f64, Vec<u16>)| f64::from(gap.0) / (gap.1 + 1e-30);
        let Some(at) =
            (0..gaps.len()).max_by(|&a, &b| want(&gaps[a]).total_cmp(&want(&gaps[b])).then(b.cmp(&a)))
        else {
            return;
        };
        gaps[at].1 += speed(device);
        gaps[at].2.push(device);
    }
    devices.clear();
    let mut pinned = pinned.into_iter();
    for (_, _, mut fillers) in gaps {
        fillers.sort_unstable();
        devices.extend(fillers);
        devices.extend(pinned.next().map(|(_, device)| device));
    }
}
