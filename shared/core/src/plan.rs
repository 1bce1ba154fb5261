//! The plan: who runs which layers, which heads and columns of them, and which vocabulary rows.
//!
//! [`PlanParts`] is what a planner writes and what travels; [`Plan`] is the same after
//! [`Plan::try_new`] has checked it against the model, and is all that execution accepts.

mod check;
mod view;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::frame::WireType;
use crate::ids::{Epoch, NodeId};
use crate::model::ModelSpec;

pub use check::PlanError;
pub use view::PlanView;

/// A range of indices, the end excluded. Written as `[first, end]` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    pub first: u32,
    pub end: u32,
}

impl Span {
    /// `first..end`; an end before the start makes an empty span at `first`.
    pub const fn new(first: u32, end: u32) -> Self {
        Self { first, end: if end < first { first } else { end } }
    }

    /// How many indices.
    pub const fn len(&self) -> u32 {
        self.end.saturating_sub(self.first)
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `index` is inside.
    pub const fn contains(&self, index: u32) -> bool {
        self.first <= index && index < self.end
    }

    /// The indices.
    pub fn iter(&self) -> std::ops::Range<u32> {
        self.first..self.end.max(self.first)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.first, self.end).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (first, end) = Deserialize::deserialize(deserializer)?;
        Ok(Self { first, end })
    }
}

/// How a plan came about: the rows of every table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// One device has all.
    Single,
    /// Equal numbers of layers, whatever the devices are.
    StaticLayer,
    /// Layers by measured speed and memory.
    AdaptiveLayer,
    /// One stage: heads and columns of every layer over all devices.
    Head,
    /// Stages of groups, whichever mixture is best.
    Hybrid,
}

impl Strategy {
    /// In the order every table shows them.
    pub const ALL: [Self; 5] =
        [Self::Single, Self::StaticLayer, Self::AdaptiveLayer, Self::Head, Self::Hybrid];

    /// The name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::StaticLayer => "static-layer",
            Self::AdaptiveLayer => "adaptive-layer",
            Self::Head => "head",
            Self::Hybrid => "hybrid",
        }
    }

    /// The strategy of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.name() == name)
    }
}

/// One rank's part of every layer of its stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub node: NodeId,
    /// Query heads.
    pub q_heads: Span,
    /// KV heads that those query heads read.
    pub kv_heads: Span,
    /// The KV heads among them that this rank owns; the others are replicas of an earlier rank's.
    pub kv_owned: Span,
    /// Feed-forward columns, on borders of [`ModelSpec::ffn_block`].
    pub ffn: Span,
}

/// A range of layers and the group that runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    pub layers: Span,
    /// Shares by rank: query heads and columns rise with the rank.
    pub ranks: Vec<Share>,
    /// How the group adds up its partial sums.
    pub sums: Sums,
}

/// One node's rows of the output head, on borders of [`crate::limits::VOCAB_TILE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadShare {
    pub node: NodeId,
    pub rows: Span,
}

/// Number formats on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// Hidden states between stages and to head ranks.
    pub hop: WireType,
    /// Partial sums within a group.
    pub sum: WireType,
}

impl Default for Wire {
    fn default() -> Self {
        Self { hop: WireType::F32, sum: WireType::F16 }
    }
}

/// How the partial sums of a group become the sum. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllReduce {
    /// Each rank sends its partial to all others: one message time, most bytes.
    Direct,
    /// Each rank sums a slice of the rows' columns and spreads the result.
    ReduceScatter,
    /// The first rank sums and spreads.
    Star,
}

/// The all-reduce of a group, by the size of a step. All give the same bits, so each size takes the one
/// that is cheapest for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sums {
    /// Of steps with at most as many rows as the plan has sequences: a row or two for each.
    pub decode: AllReduce,
    /// Of steps with more rows: chunks of prompts.
    pub prefill: AllReduce,
}

impl Sums {
    /// The same for all sizes.
    pub const fn all(how: AllReduce) -> Self {
        Self { decode: how, prefill: how }
    }

    /// The one for a step of `rows` rows, in a plan of so many sequences.
    pub const fn of(self, rows: usize, sequences: u32) -> AllReduce {
        if rows <= sequences as usize { self.decode } else { self.prefill }
    }
}

impl Default for Sums {
    fn default() -> Self {
        Self::all(AllReduce::Direct)
    }
}

/// What the KV caches must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvBudget {
    /// Positions one sequence may reach.
    pub context: u32,
    /// Live sequences at once.
    pub sequences: u32,
}

/// A plan as it is written and sent, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanParts {
    pub epoch: Epoch,
    pub strategy: Strategy,
    pub stages: Vec<Stage>,
    pub head: Vec<HeadShare>,
    /// Most rows of one step.
    pub chunk_tokens: u32,
    pub wire: Wire,
    pub kv: KvBudget,
}

/// A checked plan. Dereferences to its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    parts: PlanParts,
    nodes: Vec<NodeId>,
}

/// A node's place in the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub stage: usize,
    pub rank: usize,
}

impl Plan {
    /// Checks that the parts cover the model once, on legal borders, within limits.
    ///
    /// # Errors
    /// The first rule that is broken, with what broke it.
    pub fn try_new(parts: PlanParts, spec: &ModelSpec) -> Result<Self, PlanError> {
        check::check(&parts, spec)?;
        let ranks = parts.stages.iter().flat_map(|stage| &stage.ranks).map(|share| share.node);
        let mut nodes: Vec<NodeId> = ranks.chain(parts.head.iter().map(|head| head.node)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        Ok(Self { parts, nodes })
    }

    /// The same plan under another epoch.
    pub fn with_epoch(mut self, epoch: Epoch) -> Self {
        self.parts.epoch = epoch;
        self
    }

    /// The parts, to be sent.
    pub fn parts(&self) -> &PlanParts {
        &self.parts
    }

    /// All nodes of the plan, by id, each once.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Where `node` stands in the pipeline, if it runs layers.
    pub fn place(&self, node: NodeId) -> Option<Place> {
        self.stages.iter().enumerate().find_map(|(stage, s)| {
            let rank = s.ranks.iter().position(|share| share.node == node)?;
            Some(Place { stage, rank })
        })
    }

    /// `node`'s share of its stage's layers.
    pub fn share(&self, node: NodeId) -> Option<&Share> {
        let Place { stage, rank } = self.place(node)?;
        Some(&self.stages[stage].ranks[rank])
    }

    /// `node`'s rows of the output head: its index among the head ranks, and the rows.
    pub fn head_share(&self, node: NodeId) -> Option<(usize, Span)> {
        let index = self.head.iter().position(|head| head.node == node)?;
        Some((index, self.head[index].rows))
    }

    /// The last stage's index.
    pub fn last_stage(&self) -> usize {
        self.stages.len() - 1
    }

    /// The node that hands the hidden state to `rank` of `stage`; `None` for the first stage.
    /// Rank `j` receives from rank `j mod n` of the stage before, so no one board sends to all.
    pub fn hop_source(&self, stage: usize, rank: usize) -> Option<NodeId> {
        let before = &self.stages[stage.checked_sub(1)?].ranks;
        Some(before[rank % before.len()].node)
    }

    /// The ranks of the next stage to which `place` hands the hidden state.
    pub fn hop_targets(&self, place: Place) -> impl Iterator<Item = NodeId> + '_ {
        let n = self.stages[place.stage].ranks.len();
        let next = self.stages.get(place.stage + 1).map_or(&[][..], |stage| &stage.ranks);
        next.iter().enumerate().filter(move |(j, _)| j % n == place.rank).map(|(_, share)| share.node)
    }

    /// The node of the last stage that hands the final hidden state to head rank `index`: that rank
    /// itself where it runs the last stage.
    pub fn head_source(&self, index: usize) -> NodeId {
        let last = &self.stages[self.last_stage()].ranks;
        let own = last.iter().find(|share| share.node == self.head[index].node);
        own.unwrap_or(&last[index % last.len()]).node
    }

    /// The head ranks to which `place` hands the final hidden state, other than itself.
    pub fn head_targets(&self, place: Place) -> impl Iterator<Item = NodeId> + '_ {
        let own = self.stages[place.stage].ranks[place.rank].node;
        let last = place.stage == self.last_stage();
        let head = self.head.iter().enumerate();
        head.filter(move |(index, head)| last && head.node != own && self.head_source(*index) == own)
            .map(|(_, head)| head.node)
    }

    /// Head rank that owns the tile.
    pub fn tile_owner(&self, tile: u32) -> Option<NodeId> {
        let row = tile.checked_mul(crate::limits::VOCAB_TILE)?;
        self.head.iter().find(|head| head.rows.contains(row)).map(|head| head.node)
    }

    /// Most rows of one step.
    pub fn max_rows(&self) -> u32 {
        self.chunk_tokens.max(self.kv.sequences)
    }

    /// The object that `--json` prints (design 17).
    pub fn view(&self) -> PlanView<'_> {
        PlanView::new(self)
    }
}

impl std::ops::Deref for Plan {
    type Target = PlanParts;

    fn deref(&self) -> &PlanParts {
        &self.parts
    }
}
