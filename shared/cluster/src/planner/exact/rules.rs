//! Which groups, ranges of layers and sets of devices a query allows.

use shoal_core::plan::Span;

use super::Query;
use super::groups::Set;
use crate::planner::Pin;
use crate::planner::problem::{Family, Problem};

/// A query's restrictions.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) family: Family,
    /// Devices that must run layers.
    pub(super) required: Set,
    /// Heads by device.
    pub(super) heads: Vec<Option<(u32, u32)>>,
    /// Ranges of layers with the devices that must run them, by first layer.
    layers: Vec<(Span, Set)>,
    /// All devices with such a range.
    placed: Set,
    /// `[first layer]`: the next first layer of such a range beyond it, or the number of layers.
    next: Vec<usize>,
}

/// Ends that a range of layers may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    None,
    /// This one.
    One(usize),
    /// All up to this one.
    UpTo(usize),
}

impl Rules {
    /// `None` where the pins contradict the model or each other.
    pub(super) fn new(problem: &Problem<'_>, query: &Query<'_>) -> Option<Self> {
        let n = problem.devices.len();
        let total = problem.spec.n_layers;
        let mut out = Self {
            family: query.family,
            required: if query.use_all { ((1_u32 << n) - 1) as Set } else { 0 },
            heads: vec![None; n],
            layers: Vec::new(),
            placed: 0,
            next: Vec::new(),
        };
        for pin in query.pins {
            let device = problem.devices.binary_search_by_key(&pin.node(), |device| device.node).ok()?;
            let bit: Set = 1 << device;
            out.required |= bit;
            match *pin {
                Pin::QHeads { span, .. } => {
                    let range = (span.first, span.end);
                    if span.end > problem.spec.n_heads
                        || span.end < span.first
                        || out.heads[device].is_some_and(|known| known != range)
                    {
                        return None;
                    }
                    out.heads[device] = Some(range);
                }
                Pin::Layers { span, .. } => {
                    if span.is_empty() || span.end > total {
                        return None;
                    }
                    out.placed |= bit;
                    match out.layers.iter_mut().find(|known| known.0 == span) {
                        Some(known) => known.1 |= bit,
                        None => out.layers.push((span, bit)),
                    }
                }
            }
        }
        out.layers.sort_unstable();
        let clash = out.layers.windows(2).any(|pair| pair[0].0.end > pair[1].0.first);
        let twice =
            out.layers.iter().map(|known| known.1.count_ones()).sum::<u32>() != out.placed.count_ones();
        if clash || twice {
            return None;
        }
        let next = |first: u32| out.layers.iter().map(|known| known.0.first).find(|&of| of > first);
        out.next = (0..=total).map(|first| next(first).unwrap_or(total) as usize).collect();
        Some(out)
    }

    /// Whether a group may be a stage.
    pub(super) fn group(&self, set: Set) -> bool {
        match self.family {
            Family::Single | Family::Layers => set.is_power_of_two(),
            Family::Heads | Family::Mixed | Family::Any => true,
        }
    }

    /// Where a stage of this group that begins at `first` may end.
    pub(super) fn ends(&self, set: Set, first: usize) -> Ends {
        let one_stage = matches!(self.family, Family::Single | Family::Heads);
        let total = self.next.len() - 1;
        let ends = match self.layers.iter().find(|known| known.0.contains(first as u32)) {
            Some(&(span, devices)) => {
                if span.first as usize == first && set & self.placed == devices {
                    Ends::One(span.end as usize)
                } else {
                    Ends::None
                }
            }
            None if set & self.placed == 0 => Ends::UpTo(self.next[first]),
            None => Ends::None,
        };
        match ends {
            Ends::UpTo(end) if one_stage => {
                if end == total {
                    Ends::One(total)
                } else {
                    Ends::None
                }
            }
            Ends::One(end) if one_stage && end != total => Ends::None,
            other => other,
        }
    }

    /// Whether layers are given to some device.
    pub(super) fn places(&self) -> bool {
        self.placed != 0
    }

    /// Whether a plan may end with these devices used, one group of two or more among them or not.
    pub(super) fn complete(&self, used: Set, big: bool) -> bool {
        used & self.required == self.required && (big || self.family != Family::Mixed)
    }

    /// Whether a stage may be the whole plan.
    pub(super) fn whole(&self) -> bool {
        self.family != Family::Mixed
    }

    /// Whether nothing distinguishes the device but its figures.
    pub(super) fn free(&self, device: usize) -> bool {
        self.heads[device].is_none() && self.placed >> device & 1 == 0
    }
}
