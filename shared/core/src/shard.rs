//! What of the model a node holds under a plan: slices of tensors, their bytes, and the byte ranges of
//! the file they come from. The planner prices these numbers, the worker loads exactly these slices,
//! and memory tests compare the two.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;
use crate::limits;
use crate::model::{LayerRole, ModelSpec, Role, TensorSpec};
use crate::plan::{Plan, Share, Span};
use crate::units::Bytes;

/// The part of a tensor that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// All of it, as 32-bit floats (norms, biases, factors).
    Whole,
    /// All of it, read in place from the mapped file (the embedding table).
    Mapped,
    /// These output rows.
    Rows(Span),
    /// These input columns, whole blocks that contain the wanted ones.
    Cols {
        /// The columns held: on block borders.
        held: Span,
        /// The columns whose activations count; the others are fed zeros.
        used: Span,
    },
}

/// One tensor's part on one node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slice<'a> {
    pub tensor: &'a TensorSpec,
    pub cut: Cut,
}

impl Slice<'_> {
    /// Bytes held in memory of the process (a mapped table counts as well: it is read).
    pub fn bytes(&self) -> Bytes {
        let tensor = self.tensor;
        match self.cut {
            Cut::Whole => Bytes(tensor.rows.saturating_mul(tensor.cols).saturating_mul(4)),
            Cut::Mapped => tensor.bytes(),
            Cut::Rows(rows) => Bytes(u64::from(rows.len()) * tensor.row_bytes()),
            Cut::Cols { held, .. } => {
                Bytes(tensor.rows * tensor.kind.row_bytes(u64::from(held.len())).unwrap_or(0))
            }
        }
    }

    /// The bytes of the file this slice needs, as one range. A column cut needs its whole tensor: its
    /// pieces lie one in each row.
    pub fn file_range(&self) -> Range<u64> {
        let tensor = self.tensor;
        let start = tensor.offset;
        match self.cut {
            Cut::Rows(rows) => {
                let row = tensor.row_bytes();
                start + u64::from(rows.first) * row..start + u64::from(rows.end) * row
            }
            Cut::Whole | Cut::Mapped | Cut::Cols { .. } => start..start + tensor.bytes().0,
        }
    }
}

/// What a node holds under a plan, in bytes, as the worker accounts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Footprint {
    /// Weights copied into the process.
    pub weights: Bytes,
    /// The embedding table, mapped.
    pub mapped: Bytes,
    /// KV pages when every sequence is at its full context.
    pub kv: Bytes,
    /// Activations, logits and wire buffers.
    pub buffers: Bytes,
}

impl Footprint {
    /// What `--memory` is compared with.
    pub fn total(&self) -> Bytes {
        self.weights + self.mapped + self.kv + self.buffers
    }
}

/// The slices `node` holds under `plan`, in file order of the roles.
pub fn slices<'a>(plan: &Plan, spec: &'a ModelSpec, node: NodeId) -> Vec<Slice<'a>> {
    let mut out = Vec::new();
    if let (Some(place), Some(share)) = (plan.place(node), plan.share(node)) {
        if place.stage == 0 {
            push(&mut out, spec, Role::TokenEmbedding, Cut::Mapped);
        }
        if !share.q_heads.is_empty() {
            push(&mut out, spec, Role::RopeFactors, Cut::Whole);
        }
        for layer in plan.stages[place.stage].layers.iter() {
            out.extend(layer_slices(spec, layer, share));
        }
    }
    if let Some((_, rows)) = plan.head_share(node).filter(|(_, rows)| !rows.is_empty()) {
        push(&mut out, spec, Role::OutputNorm, Cut::Whole);
        let role = if spec.tied() { Role::TokenEmbedding } else { Role::Output };
        push(&mut out, spec, role, Cut::Rows(rows));
    }
    out
}

/// The slices of one layer that a node with this share holds.
pub fn layer_slices<'a>(spec: &'a ModelSpec, layer: u32, share: &Share) -> Vec<Slice<'a>> {
    let mut out = Vec::new();
    let head = spec.head_dim;
    let values = |heads: Span| Span::new(heads.first * head, heads.end * head);
    let (q, kv) = (values(share.q_heads), values(share.kv_heads));
    let mut put = |role, cut| push(&mut out, spec, Role::Layer(layer, role), cut);
    if !q.is_empty() {
        put(LayerRole::AttnNorm, Cut::Whole);
        put(LayerRole::Q, Cut::Rows(q));
        put(LayerRole::K, Cut::Rows(kv));
        put(LayerRole::V, Cut::Rows(kv));
        // Biases and head norms are vectors: a few kilobytes, held whole.
        for role in [LayerRole::QBias, LayerRole::KBias, LayerRole::VBias, LayerRole::QNorm, LayerRole::KNorm]
        {
            put(role, Cut::Whole);
        }
        put(LayerRole::O, cols(spec, Role::Layer(layer, LayerRole::O), q));
    }
    if !share.ffn.is_empty() {
        put(LayerRole::FfnNorm, Cut::Whole);
        put(LayerRole::Gate, Cut::Rows(share.ffn));
        put(LayerRole::Up, Cut::Rows(share.ffn));
        put(LayerRole::Down, cols(spec, Role::Layer(layer, LayerRole::Down), share.ffn));
    }
    out
}

fn cols(spec: &ModelSpec, role: Role, used: Span) -> Cut {
    let block = spec.tensor(role).map_or(1, |tensor| tensor.kind.block_len() as u32);
    let held = Span::new(used.first / block * block, used.end.div_ceil(block) * block);
    Cut::Cols { held, used }
}

fn push<'a>(out: &mut Vec<Slice<'a>>, spec: &'a ModelSpec, role: Role, cut: Cut) {
    if let Some(tensor) = spec.tensor(role) {
        out.push(Slice { tensor, cut });
    }
}

/// What `node` holds under `plan`: the sum of its slices, its KV budget and its buffers.
pub fn footprint(plan: &Plan, spec: &ModelSpec, node: NodeId) -> Footprint {
    let mut out = Footprint::default();
    for slice in slices(plan, spec, node) {
        match slice.cut {
            Cut::Mapped => out.mapped += slice.bytes(),
            Cut::Whole | Cut::Rows(_) | Cut::Cols { .. } => out.weights += slice.bytes(),
        }
    }
    if let (Some(place), Some(share)) = (plan.place(node), plan.share(node)) {
        let layers = plan.stages[place.stage].layers.len();
        out.kv = Bytes(
            u64::from(layers)
                * kv_page_bytes(spec, share)
                * pages_per_sequence(plan.kv.context)
                * u64::from(plan.kv.sequences),
        );
    }
    out.buffers = buffers(plan, spec, node);
    out
}

/// KV pages one sequence of this context takes in each layer.
pub fn pages_per_sequence(context: u32) -> u64 {
    u64::from(context.div_ceil(limits::PAGE_POSITIONS))
}

/// Bytes of one page of one layer: keys and values in half precision for all KV heads of the share.
pub fn kv_page_bytes(spec: &ModelSpec, share: &Share) -> u64 {
    2 * 2 * u64::from(limits::PAGE_POSITIONS) * u64::from(share.kv_heads.len()) * u64::from(spec.head_dim)
}

/// An upper bound of what the engine and the worker allocate to run steps of [`Plan::max_rows`] rows.
fn buffers(plan: &Plan, spec: &ModelSpec, node: NodeId) -> Bytes {
    let mut bytes = Bytes(0);
    if let (Some(place), Some(share)) = (plan.place(node), plan.share(node)) {
        let ranks = plan.stages[place.stage].ranks.len();
        bytes += rank_buffers(spec, plan.max_rows(), share, ranks);
    }
    if let Some((_, head)) = plan.head_share(node) {
        bytes += head_buffers(spec, plan.kv.sequences, head.len());
    }
    bytes
}

/// What a rank of a group of `ranks` allocates to run its layers for steps of up to `rows` rows.
pub fn rank_buffers(spec: &ModelSpec, rows: u32, share: &Share, ranks: usize) -> Bytes {
    let rows = u64::from(rows);
    let d = u64::from(spec.d_model);
    let head = u64::from(spec.head_dim);
    let (q, kv) = (u64::from(share.q_heads.len()) * head, u64::from(share.kv_heads.len()) * head);
    let ffn = u64::from(share.ffn.len());
    // The columns of `o` that are held, where a border lies inside a block.
    let held = if q == 0 { 0 } else { q + 2 * LARGEST_BLOCK };
    // Hidden state, its norm and the branch's output; q, k, v, the attention's output with and without
    // border columns; gate and up; the rotations.
    let mut values = rows * (3 * d + 2 * q + held + 2 * kv + 2 * ffn + head);
    // The widest input of a matrix, as floats and quantized: 172 bytes for 32 values.
    values += rows * d.max(held).max(ffn).next_multiple_of(32) * 43 / 32;
    // Encoded partials: one's own, one of each other rank, and the sum; two that are being added.
    if ranks > 1 {
        values += rows * d * (ranks as u64 + 3);
    }
    // A hop that has arrived and one that leaves.
    values += 2 * rows * d;
    // One head's keys and values of a page, and the softmax of a few rows, for each kernel thread.
    let page = 2 * u64::from(limits::PAGE_POSITIONS) * head;
    values += KERNEL_THREADS * (page + 32 * u64::from(spec.group_size()));
    Bytes(values * 4)
}

/// What a node with `rows` rows of the output head allocates for them: final hidden rows, their norm and its
/// quantized form; raw logits, and the modified ones of two steps, kept until these are settled.
pub fn head_buffers(spec: &ModelSpec, sequences: u32, rows: u32) -> Bytes {
    Bytes(u64::from(sequences) * (4 * u64::from(spec.d_model) + 3 * u64::from(rows)) * 4)
}

/// Values of the largest block of a number format.
const LARGEST_BLOCK: u64 = 256;

/// Kernel threads of a worker that the plan leaves room for.
pub const KERNEL_THREADS: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;
    use crate::model::shapes::{FileType, Shape};
    use crate::plan::{HeadShare, KvBudget, PlanParts, Stage, Strategy, Wire};

    fn node(id: u8) -> NodeId {
        NodeId([id; 16])
    }

    fn plan(spec: &ModelSpec, stages: Vec<Stage>, head: Vec<HeadShare>) -> Plan {
        let kv = KvBudget { context: 512, sequences: 1 };
        let parts = PlanParts {
            epoch: Epoch::default(),
            strategy: Strategy::Hybrid,
            stages,
            head,
            chunk_tokens: 64,
            wire: Wire::default(),
            kv,
        };
        Plan::try_new(parts, spec).unwrap()
    }

    fn stories(file: &str) -> ModelSpec {
        Shape::from_name("stories").unwrap().spec(FileType::from_name(file).unwrap())
    }

    fn all(n: u32) -> Span {
        Span::new(0, n)
    }

    #[test]
    fn one_node_holds_the_model_once_and_a_tied_table_twice() {
        let spec = stories("Q8_0");
        let stage = Stage::from_spans(all(6), &[(node(1), all(8), all(768))], &spec);
        let plan = plan(&spec, vec![stage], vec![HeadShare { node: node(1), rows: all(2048) }]);
        let held = footprint(&plan, &spec, node(1));
        assert_eq!(held.weights, spec.total_bytes());
        assert_eq!(held.mapped, spec.tensor(Role::TokenEmbedding).unwrap().bytes());
        // 6 layers, keys and values, 4 heads of 32, 512 positions, 2 bytes.
        assert_eq!(held.kv, Bytes(6 * 2 * 4 * 32 * 512 * 2));
    }

    #[test]
    fn a_layer_split_holds_each_matrix_once() {
        let spec = stories("Q4_0");
        let rank = |id, layers| Stage::from_spans(layers, &[(node(id), all(8), all(768))], &spec);
        let stages = vec![rank(1, Span::new(0, 2)), rank(2, Span::new(2, 6))];
        let head = vec![HeadShare { node: node(2), rows: all(2048) }];
        let plan = plan(&spec, stages, head);
        let weights: Bytes = [1, 2].map(|id| footprint(&plan, &spec, node(id)).weights).into_iter().sum();
        assert_eq!(weights, spec.total_bytes());
        assert_eq!(footprint(&plan, &spec, node(2)).mapped, Bytes(0));
        assert_eq!(footprint(&plan, &spec, node(3)), Footprint::default());
    }

    #[test]
    fn a_head_border_inside_a_block_is_held_by_both_neighbours() {
        // 256 columns of attn_output are one K-quant block: every rank with heads holds it.
        let spec = stories("Q4_K_M");
        let ranks =
            [(node(1), Span::new(0, 3), Span::new(0, 256)), (node(2), Span::new(3, 8), Span::new(256, 768))];
        let stage = Stage::from_spans(all(6), &ranks, &spec);
        assert_eq!(stage.ranks[0].kv_owned, Span::new(0, 2));
        assert_eq!(stage.ranks[1].kv_heads, Span::new(1, 4));
        assert_eq!(stage.ranks[1].kv_owned, Span::new(2, 4));
        let plan = plan(&spec, vec![stage], vec![HeadShare { node: node(1), rows: all(2048) }]);
        for (id, used) in [(1, Span::new(0, 96)), (2, Span::new(96, 256))] {
            let o = Role::Layer(3, LayerRole::O);
            let slices = slices(&plan, &spec, node(id));
            let slice = slices.iter().find(|slice| slice.tensor.role == o).unwrap();
            assert_eq!(slice.cut, Cut::Cols { held: all(256), used });
        }
    }

    #[test]
    fn rows_are_one_range_of_the_file() {
        let spec = stories("Q8_0");
        let tensor = spec.tensor(Role::Layer(0, LayerRole::Q)).unwrap();
        let slice = Slice { tensor, cut: Cut::Rows(Span::new(32, 64)) };
        assert_eq!(slice.bytes(), Bytes(32 * 272));
        assert_eq!(slice.file_range(), tensor.offset + 32 * 272..tensor.offset + 64 * 272);
    }
}
