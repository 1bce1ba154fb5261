//! Models, plans from weights, and a whole plan run in one process.
#![expect(clippy::print_stderr, reason = "says plainly what is skipped")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_core::frame::WireType;
use shoal_core::head::{HeadAnswer, HeadQuery, HeadRequest};
use shoal_core::ids::{Epoch, NodeId, SeqId, StepId};
use shoal_core::limits::{CHUNK_TOKENS, VOCAB_TILE};
use shoal_core::message::{HeadRow, Run};
use shoal_core::plan::{HeadShare, KvBudget, Plan, PlanParts, Span, Stage, Strategy, Wire};
use shoal_core::{ModelSpec, Term};
use shoal_engine::gguf::Gguf;
use shoal_engine::model::{self, Batch, FileSource, Group, LocalGroup, Shard, Solo};
use shoal_engine::pool::Pool;

/// The four files of the stories model; F16 lies outside the repository.
pub(crate) const KINDS: [&str; 4] = ["F16", "Q8_0", "Q4_0", "Q4_K_M"];

/// A model file with what the reference implementation says of it.
pub(crate) struct Model {
    pub(crate) kind: &'static str,
    pub(crate) spec: ModelSpec,
    pub(crate) source: FileSource,
    pub(crate) reference: serde_json::Value,
}

impl Model {
    /// The stories model in this format; `None`, with a message, where its file is not at hand.
    pub(crate) fn stories(kind: &'static str) -> Option<Self> {
        let folder = if kind == "F16" { shared_models() } else { Some(own_models()) };
        let folder = folder.filter(|folder| folder.join(format!("stories-{kind}.gguf")).exists());
        let Some(folder) = folder else {
            eprintln!("SKIPPED: no models/stories-{kind}.gguf in the folder SHOAL_SHARED_DIR names");
            return None;
        };
        let path = folder.join(format!("stories-{kind}.gguf"));
        let gguf = Gguf::open(&path).unwrap();
        let reference = std::fs::read(folder.join(format!("reference/{kind}.json"))).unwrap();
        Some(Self {
            kind,
            spec: model::spec(&gguf, "stories").unwrap(),
            source: FileSource::open(&path).unwrap(),
            reference: serde_json::from_slice(&reference).unwrap(),
        })
    }

    pub(crate) fn all() -> Vec<Self> {
        KINDS.into_iter().filter_map(Self::stories).collect()
    }

    /// What a step may differ by and still be the same choice (design 11).
    pub(crate) fn near_tie(&self) -> f32 {
        if self.kind == "F16" { 0.02 } else { 0.15 }
    }

    /// Prompt, greedy tokens and their margins of each reference prompt.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let cases = self.reference["cases"].as_array().unwrap();
        cases.iter().map(Case::new).collect()
    }
}

pub(crate) struct Case {
    pub(crate) prompt: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
    pub(crate) margins: Vec<f32>,
    pub(crate) logits: Vec<f32>,
}

impl Case {
    fn new(case: &serde_json::Value) -> Self {
        Self {
            prompt: tokens(&case["prompt_tokens"]),
            greedy: tokens(&case["greedy_tokens"]),
            margins: floats(&case["greedy_margins"]),
            logits: floats(&case["logits_after_prompt"]),
        }
    }
}

pub(crate) fn tokens(list: &serde_json::Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

pub(crate) fn floats(list: &serde_json::Value) -> Vec<f32> {
    list.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
}

fn own_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models")
}

/// `models` of the folder that `SHOAL_SHARED_DIR` names, else of `shared` beside the project.
fn shared_models() -> Option<PathBuf> {
    let beside = || Some(Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3)?.join("shared"));
    Some(std::env::var_os("SHOAL_SHARED_DIR").map(PathBuf::from).or_else(beside)?.join("models"))
}

/// A plan's shape in relative weights; [`Layout::plan`] makes it one for a model.
#[derive(Clone)]
pub(crate) struct Layout {
    /// Layers of each stage, and of each of its ranks the weights of query heads and columns.
    pub(crate) stages: Vec<(u32, Vec<(u32, u32)>)>,
    /// Weight of each node's vocabulary rows; nodes count over the stages' ranks, then on.
    pub(crate) head: Vec<u32>,
    pub(crate) sum: WireType,
    pub(crate) sequences: u32,
}

impl Layout {
    pub(crate) fn new(stages: &[(u32, &[(u32, u32)])], head: &[u32]) -> Self {
        let stages = stages.iter().map(|(layers, ranks)| (*layers, ranks.to_vec())).collect();
        Self { stages, head: head.to_vec(), sum: WireType::F16, sequences: 8 }
    }

    pub(crate) fn single() -> Self {
        Self::new(&[(1, &[(1, 1)])], &[1])
    }

    /// As many stages of one node as there are weights.
    pub(crate) fn layers(weights: &[u32]) -> Self {
        let stages: Vec<(u32, &[(u32, u32)])> = weights.iter().map(|&w| (w, &[(1, 1)][..])).collect();
        Self::new(&stages, &[1])
    }

    pub(crate) fn parts(&self, spec: &ModelSpec) -> PlanParts {
        let mut next = 0;
        let mut node = || {
            next += 1;
            node_id(next - 1)
        };
        let weights: Vec<u32> = self.stages.iter().map(|(layers, _)| *layers).collect();
        let layers = spread(spec.n_layers, 1, &weights);
        let stages = self.stages.iter().zip(layers).map(|((_, ranks), layers)| {
            let q = spread(spec.n_heads, 1, &ranks.iter().map(|rank| rank.0).collect::<Vec<_>>());
            let ffn =
                spread(spec.ffn, spec.ffn_block(), &ranks.iter().map(|rank| rank.1).collect::<Vec<_>>());
            let ranks: Vec<_> = q.into_iter().zip(ffn).map(|(q, ffn)| (node(), q, ffn)).collect();
            Stage::from_spans(layers, &ranks, spec)
        });
        let stages = stages.collect();
        let rows = spread(spec.vocab, VOCAB_TILE, &self.head);
        let head = rows.into_iter().zip(0..).map(|(rows, node)| HeadShare { node: node_id(node), rows });
        PlanParts {
            epoch: Epoch { term: Term(1), counter: 1 },
            strategy: Strategy::Hybrid,
            stages,
            head: head.collect(),
            chunk_tokens: CHUNK_TOKENS,
            wire: Wire { hop: WireType::F32, sum: self.sum },
            kv: KvBudget { context: spec.context, sequences: self.sequences },
        }
    }

    pub(crate) fn plan(&self, spec: &ModelSpec) -> Plan {
        Plan::try_new(self.parts(spec), spec).unwrap()
    }
}

pub(crate) fn node_id(index: u8) -> NodeId {
    NodeId([index; 16])
}

/// `0..total` cut on multiples of `block`, in proportion to the weights.
fn spread(total: u32, block: u32, weights: &[u32]) -> Vec<Span> {
    let (blocks, all) = (total.div_ceil(block), weights.iter().sum::<u32>());
    let mut before = 0;
    let mut border = |weight: u32| {
        before += weight;
        ((blocks * before + all / 2) / all * block).min(total)
    };
    let mut first = 0;
    let spans = weights.iter().map(|&weight| {
        let span = Span::new(first, border(weight));
        first = span.end;
        span
    });
    spans.collect()
}

/// All ranks of a plan.
pub(crate) struct Cluster {
    pub(crate) plan: Plan,
    pub(crate) spec: ModelSpec,
    pub(crate) shards: BTreeMap<NodeId, Shard>,
    groups: BTreeMap<NodeId, Box<dyn Group + Send>>,
    step: StepId,
}

impl Cluster {
    pub(crate) fn new(model: &Model, layout: &Layout, threads: usize) -> Self {
        Self::of(&model.spec, layout.plan(&model.spec), &model.source, threads)
    }

    pub(crate) fn of(spec: &ModelSpec, plan: Plan, source: &dyn model::WeightSource, threads: usize) -> Self {
        let load = |&node: &NodeId| {
            let pool = Arc::new(Pool::new(threads).unwrap());
            (node, Shard::load(spec, &plan, node, source, pool, &mut |_, _| {}).unwrap())
        };
        let shards = plan.nodes().iter().map(load).collect();
        let mut groups: BTreeMap<NodeId, Box<dyn Group + Send>> =
            plan.nodes().iter().map(|&node| (node, Box::new(Solo) as _)).collect();
        for (index, stage) in plan.stages.iter().enumerate() {
            if stage.ranks.len() > 1 {
                let members = LocalGroup::of_stage(&plan, index).into_iter();
                groups.extend(
                    stage.ranks.iter().zip(members).map(|(s, member)| (s.node, Box::new(member) as _)),
                );
            }
        }
        Self { plan, spec: spec.clone(), shards, groups, step: StepId(0) }
    }

    /// Runs the layers of a step on all stages, and checks that the ranks of each agree bit for bit.
    pub(crate) fn forward(&mut self, runs: &[Run]) -> Vec<f32> {
        let batch = Batch::of(runs).unwrap();
        let tokens: Vec<u32> = runs.iter().flat_map(|run| run.tokens.iter().copied()).collect();
        let mut hidden: Vec<f32> = Vec::new();
        for (index, stage) in self.plan.stages.iter().enumerate() {
            std::thread::scope(|scope| {
                for ((node, shard), group) in self.shards.iter_mut().zip(self.groups.values_mut()) {
                    if !stage.ranks.iter().any(|share| share.node == *node) {
                        continue;
                    }
                    let (batch, tokens, hidden) = (&batch, &tokens, &hidden);
                    scope.spawn(move || {
                        let start = if index == 0 { shard.embed(tokens) } else { shard.set_hidden(hidden) };
                        start.unwrap();
                        shard.run_layers(batch, &mut **group).unwrap();
                    });
                }
            });
            hidden = self.shards[&stage.ranks[0].node].hidden().to_vec();
            for share in &stage.ranks[1..] {
                assert_same_bits(self.shards[&share.node].hidden(), &hidden, "ranks of a stage");
            }
        }
        hidden
    }

    /// A step: the head ranks' answers, by head rank.
    pub(crate) fn step(&mut self, runs: &[Run], head: &[HeadRow]) -> Vec<Vec<HeadAnswer>> {
        let hidden = self.forward(runs);
        let d = self.spec.d_model as usize;
        let rows: Vec<f32> =
            head.iter().flat_map(|row| &hidden[row.row as usize * d..][..d]).copied().collect();
        self.step.0 += 1;
        self.shards.values_mut().for_each(|shard| shard.settle(StepId(self.step.0 - 1)));
        let answer = |share: &HeadShare| {
            self.shards.get_mut(&share.node).unwrap().head(self.step, &rows, head).unwrap()
        };
        self.plan.parts().head.iter().map(answer).collect()
    }

    /// All logits of the last row of each run.
    pub(crate) fn logits(&mut self, runs: &[Run]) -> Vec<Vec<f32>> {
        let mut end = 0;
        let last_rows = runs.iter().map(|run| {
            end += run.tokens.len() as u32;
            HeadRow { row: end - 1, request: HeadRequest::greedy() }
        });
        let head: Vec<HeadRow> = last_rows.collect();
        self.step(runs, &head);
        head.iter().map(|row| self.kept(row.row)).collect()
    }

    /// All modified logits of a row of the last step.
    pub(crate) fn kept(&self, row: u32) -> Vec<f32> {
        let tile = |tile: u32| {
            let owner = self.plan.tile_owner(tile).unwrap();
            self.shards[&owner].query(self.step, row, HeadQuery::Tile(tile)).unwrap()
        };
        (0..self.spec.vocab_tiles()).flat_map(tile).map(|candidate| candidate.logit).collect()
    }

    /// Logits after `tokens` of a sequence of its own, fed in chunks of this size.
    pub(crate) fn prefill(&mut self, seq: u64, tokens: &[u32], chunk: usize) -> Vec<f32> {
        let mut logits = Vec::new();
        for (index, part) in tokens.chunks(chunk).enumerate() {
            logits = self.logits(&[run(seq, index * chunk, part)]).remove(0);
        }
        logits
    }

    pub(crate) fn release(&mut self, seq: u64) {
        self.shards.values_mut().for_each(|shard| shard.release(SeqId(seq)));
    }
}

pub(crate) fn run(seq: u64, first_position: usize, tokens: &[u32]) -> Run {
    Run { seq: SeqId(seq), first_position: first_position as u32, tokens: tokens.to_vec() }
}

pub(crate) fn assert_same_bits(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let differing = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    assert_eq!(differing, 0, "{what}: {differing} of {} values differ", a.len());
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).min_by(|&a, &b| logits[b].total_cmp(&logits[a])).unwrap() as u32
}
