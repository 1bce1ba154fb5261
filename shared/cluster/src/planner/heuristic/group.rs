//! One group: the shares of its ranks, what a layer takes on it, and how many layers it can hold.
//!
//! Shares follow speed where memory allows. Beyond that many layers the full ranks keep less of each layer and the
//! others more, which makes a layer slower and lets more of them fit: a group is a staircase of (layers, seconds per
//! layer).

use shoal_core::plan::Span;

use super::deck::Deck;
use super::ranks::{Care, Maker, bytes};

/// In how many parts memory is divided to keep some of it for the output head.
pub(super) const PARTS: f64 = 64.0;

/// What a group holds beside its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Role {
    /// The embedding table.
    pub(super) first: bool,
    /// The whole output head, or the part that falls on each device where all have one, or none.
    pub(super) head: HeadPart,
}

/// How much of the output head a group has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HeadPart {
    None,
    /// Some of it, as all devices of the plan: so many [`PARTS`]ths of each device's memory are kept for it.
    Part(u8),
    /// All of it.
    Whole,
}

/// Shares of the ranks, by place in [`Group::devices`].
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// Most layers with these shares.
    pub(super) layers: usize,
    /// Seconds of a layer, sums included.
    pub(super) time: f64,
    pub(super) q_heads: Vec<u32>,
    pub(super) blocks: Vec<u32>,
}

/// A group with what it can do.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// In rank order.
    pub(super) devices: Vec<u16>,
    /// By rising layers and time; none where not one layer fits.
    pub(super) steps: Vec<Step>,
    /// Layers it must run, if a member is pinned.
    pub(super) pinned: Option<Span>,
    /// Bytes of a layer on all ranks together, to say how far from fitting a plan is.
    pub(super) layer_bytes: f64,
    /// Bytes it has for layers.
    pub(super) room: f64,
    /// Of the whole head on this group: tiles by rank and seconds.
    pub(super) head: Option<(Vec<u32>, f64)>,
    /// Bytes of each rank for layers and, where all devices have some of the head, for that.
    rooms: Vec<f64>,
}

impl Group {
    /// Seconds of so many layers; infinite where they do not fit.
    pub(super) fn time(&self, layers: usize) -> f64 {
        let step = self.steps.iter().find(|step| layers <= step.layers);
        step.map_or(f64::INFINITY, |step| step.time * layers as f64)
    }

    /// The shares for so many layers.
    pub(super) fn step(&self, layers: usize) -> Option<&Step> {
        self.steps.iter().find(|step| layers <= step.layers)
    }

    /// Most layers.
    pub(super) fn most(&self) -> usize {
        self.steps.last().map_or(0, |step| step.layers)
    }

    /// The group of these devices, for steps of `rows` rows. `spare`: bytes of each device of the deck that are
    /// wanted for other things.
    pub(super) fn new(
        deck: &Deck<'_>,
        devices: &[u16],
        rows: u32,
        role: Role,
        (spare, care): (&[f64], Care),
    ) -> Self {
        let speeds = deck.speeds(rows);
        let mut maker = Maker::new(deck, devices, (&speeds, care), rows, role, spare);
        let mut out = Self {
            devices: maker.devices.clone(),
            steps: Vec::new(),
            pinned: maker.pinned,
            layer_bytes: maker.layer_bytes(),
            room: maker.room.iter().map(|room| room.max(0.0)).sum(),
            head: None,
            rooms: Vec::new(),
        };
        if role.head == HeadPart::Whole {
            out.head = maker.head();
            if out.head.is_none() {
                return out;
            }
            out.room = maker.room.iter().map(|room| room.max(0.0)).sum();
        }
        maker.steps(&mut out.steps);
        if let HeadPart::Part(part) = role.head {
            let kept = |&device: &u16| deck.usable[usize::from(device)] * f64::from(part) / PARTS;
            out.rooms =
                maker.room.iter().zip(&maker.devices).map(|(room, device)| room + kept(device)).collect();
        }
        out
    }

    /// Most tiles of the output head by rank beside so many layers, where all devices have some of it.
    pub(super) fn tiles(&self, deck: &Deck<'_>, layers: usize) -> Vec<u32> {
        let Some(step) = self.step(layers) else { return vec![0; self.devices.len()] };
        let most = |(rank, &room): (usize, &f64)| {
            let (each, once) = bytes(deck, step.q_heads[rank], step.blocks[rank]);
            ((room - each * layers as f64 - once) / deck.bulk.tile).max(0.0) as u32
        };
        self.rooms.iter().enumerate().map(most).collect()
    }
}
