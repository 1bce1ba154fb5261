//! One node of a run: what it is at and what it waits for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shoal_core::plan::Place;

/// How far a round's sum is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Computing,
    /// Waits for the others' partial sums.
    Partials,
    /// Waits for summed slices.
    Sums,
}

/// What the compute thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Idle,
    /// A round is a phase of a layer: two to each layer of the stage.
    Layers {
        step: usize,
        round: u32,
        part: Part,
    },
    Head {
        step: usize,
    },
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Option<Place>,
    pub(super) has_head: bool,
    /// Nodes of the next stage to which it hands its rows, and head ranks elsewhere.
    pub(super) hops: Vec<usize>,
    pub(super) head_rows_to: Vec<usize>,
    pub(super) state: State,
    /// Steps whose layers are to be run, in order; and those whose hidden rows are there.
    pub(super) queue: VecDeque<usize>,
    pub(super) inputs: BTreeSet<usize>,
    /// Steps whose head is to be run, and those whose rows are there.
    pub(super) heads: VecDeque<usize>,
    pub(super) head_inputs: BTreeSet<usize>,
    /// Partial sums and summed slices that came in, by step and round.
    pub(super) received: BTreeMap<(usize, u32), [u16; 2]>,
    /// The round up to which its kernels run now.
    pub(super) end: u32,
    /// The step and the round with which it goes on after the head work it is at.
    pub(super) interrupted: Option<(usize, u32)>,
    /// What the phases of the step it is at take, by class of layer.
    pub(super) phases: Vec<[f64; 2]>,
    /// Since when it waits for its group.
    pub(super) since: f64,
    /// Seconds its kernels ran, and seconds it waited for its group.
    pub(super) busy: f64,
    pub(super) blocked: f64,
}

impl Node {
    pub(super) fn new(
        place: Option<Place>,
        has_head: bool,
        hops: Vec<usize>,
        head_rows_to: Vec<usize>,
    ) -> Self {
        Self {
            place,
            has_head,
            hops,
            head_rows_to,
            state: State::Idle,
            queue: VecDeque::new(),
            inputs: BTreeSet::new(),
            heads: VecDeque::new(),
            head_inputs: BTreeSet::new(),
            received: BTreeMap::new(),
            end: 0,
            interrupted: None,
            phases: Vec::new(),
            since: 0.0,
            busy: 0.0,
            blocked: 0.0,
        }
    }

    /// The first step of which the head's rows are there; it is waited for no more.
    pub(super) fn take_head(&mut self) -> Option<usize> {
        let ready = self.heads.iter().position(|step| self.head_inputs.contains(step))?;
        let step = self.heads.remove(ready)?;
        self.head_inputs.remove(&step);
        Some(step)
    }

    /// The other ranks of its stage, beginning with the next one, so that not all send to the first at once.
    pub(super) fn others(&self, stages: &[Vec<usize>]) -> Vec<usize> {
        let Some(Place { stage, rank }) = self.place else { return Vec::new() };
        let ranks = &stages[stage];
        (1..ranks.len()).map(|step| ranks[(rank + step) % ranks.len()]).collect()
    }
}
