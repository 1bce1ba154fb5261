//! The figures the heuristic works with: every device, link and byte as a straight line, by index.
//!
//! A device's time for a phase grows evenly with its heads, columns or rows, and so do its bytes; layers of a model
//! whose formats differ count as their mean. These lines steer the search. What it finds is laid out and weighed by the
//! same functions as any plan ([`super::finish`]), so that a plan never fits or costs by them alone.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use shoal_core::model::{LayerRole, ModelSpec, Role};
use shoal_core::plan::{AllReduce, KvBudget, Share, Span, Wire};
use shoal_core::{Epoch, NodeId, limits, shard};

use super::super::pins::Pins;
use crate::cost::model::{Model, wire_row};
use crate::cost::predict::mean_context;
use crate::cost::rates::Rates;
use crate::cost::{Cluster, Link, Objective, Workload};

/// Seconds of one device for steps of a fixed number of rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    pub(super) q_head: f64,
    pub(super) kv_head: f64,
    pub(super) ffn_block: f64,
    pub(super) tile: f64,
    pub(super) overhead: f64,
}

/// Bytes a rank holds for each unit of its share.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bulk {
    /// Of each layer.
    pub(super) q_head: f64,
    pub(super) kv_head: f64,
    pub(super) ffn_block: f64,
    pub(super) layer: f64,
    /// Of buffers, once.
    pub(super) q_buffer: f64,
    pub(super) kv_buffer: f64,
    pub(super) ffn_buffer: f64,
    pub(super) rank_buffer: f64,
    pub(super) buffers: f64,
    /// Of the output head, and what any head rank needs.
    pub(super) tile: f64,
    pub(super) head: f64,
    /// The embedding table, on each rank of the first stage.
    pub(super) embedding: f64,
}

/// One planning's inputs, prepared.
pub(super) struct Deck<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) cluster: &'a Cluster,
    pub(super) workload: &'a Workload,
    pub(super) pins: &'a Pins,
    pub(super) wire: Wire,
    pub(super) epoch: Epoch,
    pub(super) kv: KvBudget,
    pub(super) chunk_tokens: u32,
    pub(super) objective: Objective,
    /// By node id, as in `cluster`.
    pub(super) nodes: Vec<NodeId>,
    pub(super) usable: Vec<f64>,
    pub(super) model: Model,
    pub(super) rates: BTreeMap<NodeId, Rates>,
    pub(super) layers: usize,
    pub(super) blocks: u32,
    pub(super) tiles: u32,
    pub(super) bulk: Bulk,
    /// Index into `kinds` of each ordered pair.
    link: Vec<u16>,
    kinds: Vec<Link>,
    speeds: RefCell<BTreeMap<u32, Rc<Vec<Speed>>>>,
}

impl<'a> Deck<'a> {
    /// `cluster` holds only devices that may be used, by node id, with what each may use.
    pub(super) fn new(
        spec: &'a ModelSpec,
        cluster: &'a Cluster,
        workload: &'a Workload,
        pins: &'a Pins,
        (wire, epoch, chunk_tokens): (Wire, Epoch, u32),
        objective: Objective,
    ) -> Self {
        let devices = &cluster.devices;
        let kv = KvBudget {
            context: workload.context.clamp(1, spec.context.max(1)),
            sequences: workload.streams.clamp(1, limits::SEQUENCES as u32),
        };
        let rates = devices.iter().filter_map(|device| Some((device.node, Rates::of(device)?))).collect();
        let n = devices.len();
        let (mut kinds, mut link) = (Vec::<Link>::new(), vec![0_u16; n * n]);
        for (a, from) in devices.iter().enumerate() {
            for (b, to) in devices.iter().enumerate() {
                let found = cluster.links.get(from.node, to.node);
                // Neighbours mostly have the same figures, so the search is short; beyond the index's range links
                // count as the last kind.
                let at = kinds.iter().rposition(|kind| *kind == found).unwrap_or_else(|| {
                    if kinds.len() < usize::from(u16::MAX) {
                        kinds.push(found);
                    }
                    kinds.len() - 1
                });
                link[a * n + b] = at as u16;
            }
        }
        let block = spec.ffn_block();
        Self {
            spec,
            cluster,
            workload,
            pins,
            wire,
            epoch,
            kv,
            chunk_tokens,
            objective,
            nodes: devices.iter().map(|device| device.node).collect(),
            usable: devices.iter().map(|device| device.usable.0 as f64).collect(),
            model: Model::new(spec),
            rates,
            layers: spec.n_layers as usize,
            blocks: spec.ffn.div_ceil(block),
            tiles: spec.vocab_tiles(),
            bulk: bulk(spec, kv, chunk_tokens),
            link,
            kinds,
            speeds: RefCell::default(),
        }
    }

    /// Sequences at once.
    pub(super) fn streams(&self) -> u32 {
        self.workload.streams.max(1)
    }

    /// Rows of a step of a plan with so many stages.
    pub(super) fn rows(&self, stages: usize) -> u32 {
        match self.objective {
            Objective::Latency => 1,
            Objective::Throughput | Objective::Energy => self.streams().div_ceil(stages.max(1) as u32),
        }
    }

    pub(super) fn link(&self, from: usize, to: usize) -> &Link {
        &self.kinds[usize::from(self.link[from * self.nodes.len() + to])]
    }

    /// Bytes of the hidden state of so many rows.
    pub(super) fn hop_bytes(&self, rows: u32) -> f64 {
        f64::from(rows) * wire_row(self.wire.hop, self.model.d_model)
    }

    /// Seconds of each device for steps of `rows` rows.
    pub(super) fn speeds(&self, rows: u32) -> Rc<Vec<Speed>> {
        let mut known = self.speeds.borrow_mut();
        Rc::clone(known.entry(rows).or_insert_with(|| {
            Rc::new(self.nodes.iter().map(|node| self.speed(&self.rates[node], f64::from(rows))).collect())
        }))
    }

    fn speed(&self, rates: &Rates, rows: f64) -> Speed {
        let (spec, model) = (self.spec, &self.model);
        let context = mean_context(spec, self.workload);
        let whole = Model::whole_share(spec, NodeId::default());
        let mut no_kv = whole.clone();
        no_kv.kv_heads = Span::new(0, 0);
        let (mut q, mut kv, mut ffn) = (0.0, 0.0, 0.0);
        for &class in &model.class_of {
            let class = &model.classes[class];
            let without = model.attention(class, rates, &no_kv, rows, context);
            kv += model.attention(class, rates, &whole, rows, context) - without;
            q += without - rates.overhead;
            ffn += model.feed_forward(class, rates, &whole, rows) - rates.overhead;
        }
        let layers = model.class_of.len().max(1) as f64;
        let head = model.head(rates, Span::new(0, spec.vocab), rows) - rates.overhead;
        Speed {
            q_head: q / layers / f64::from(spec.n_heads),
            kv_head: kv / layers / f64::from(spec.n_kv_heads),
            ffn_block: ffn / layers / f64::from(self.blocks),
            tile: head / f64::from(self.tiles),
            overhead: rates.overhead,
        }
    }

    /// A device alone: tokens per second of whole steps, memory set aside.
    pub(super) fn alone(&self, speed: &Speed, rows: u32) -> f64 {
        let layer = f64::from(self.spec.n_heads) * speed.q_head
            + f64::from(self.spec.n_kv_heads) * speed.kv_head
            + f64::from(self.blocks) * speed.ffn_block
            + 2.0 * speed.overhead;
        let head = f64::from(self.tiles) * speed.tile + speed.overhead;
        f64::from(rows) / (self.layers as f64 * layer + head)
    }

    /// The cheapest all-reduce of `rows` rows among these devices, seconds: [`crate::cost::link::cheapest`] by index.
    pub(super) fn sum(&self, devices: &[u16], rows: u32) -> f64 {
        let bytes = f64::from(rows) * wire_row(self.wire.sum, self.model.d_model);
        let hows = [AllReduce::Direct, AllReduce::ReduceScatter, AllReduce::Star];
        hows.iter().map(|&how| self.all_reduce(how, devices, bytes)).fold(f64::INFINITY, f64::min)
    }

    fn all_reduce(&self, how: AllReduce, devices: &[u16], bytes: f64) -> f64 {
        let n = devices.len();
        if n < 2 {
            return 0.0;
        }
        match how {
            AllReduce::Direct => self.exchange(devices, bytes, |_, _| true),
            AllReduce::ReduceScatter => 2.0 * self.exchange(devices, bytes / n as f64, |_, _| true),
            AllReduce::Star => {
                self.exchange(devices, bytes, |_, to| to == 0)
                    + self.exchange(devices, bytes, |from, _| from == 0)
            }
        }
    }

    fn exchange(&self, devices: &[u16], bytes: f64, sends: impl Fn(usize, usize) -> bool) -> f64 {
        // What a message takes on each kind of link: there are few kinds, and many pairs.
        let figures: Vec<(f64, f64)> = if self.kinds.len() <= devices.len() * devices.len() {
            self.kinds.iter().map(|link| (link.occupied(bytes), link.time(bytes))).collect()
        } else {
            Vec::new()
        };
        let (mut air, mut air_wait) = (0.0, 0.0_f64);
        // Sending, receiving and the longest wait of each.
        let mut busy = vec![(0.0_f64, 0.0_f64, 0.0_f64); devices.len()];
        for (a, &from) in devices.iter().enumerate() {
            for (b, &to) in devices.iter().enumerate() {
                if a == b || !sends(a, b) {
                    continue;
                }
                let kind = usize::from(self.link[usize::from(from) * self.nodes.len() + usize::from(to)]);
                let link = &self.kinds[kind];
                let (occupied, time) =
                    figures.get(kind).copied().unwrap_or_else(|| (link.occupied(bytes), link.time(bytes)));
                let wait = (time - occupied).max(0.0);
                busy[a].0 += occupied;
                busy[a].2 = busy[a].2.max(wait);
                busy[b].1 += occupied;
                busy[b].2 = busy[b].2.max(wait);
                if link.shared {
                    air += bytes / link.bandwidth;
                    air_wait = air_wait.max(time - bytes / link.bandwidth);
                }
            }
        }
        let nodes = busy.into_iter().map(|(out, into, wait)| out.max(into) + wait);
        nodes.fold(air + air_wait, f64::max)
    }
}

/// The straight lines of a rank's bytes: [`shard::footprint`] of this model, rounded up.
fn bulk(spec: &ModelSpec, kv: KvBudget, chunk_tokens: u32) -> Bulk {
    let mut out = Bulk::default();
    let layers = f64::from(spec.n_layers.max(1));
    let block = f64::from(spec.ffn_block());
    let head = f64::from(spec.head_dim);
    for tensor in &spec.tensors {
        let bytes = tensor.bytes().0 as f64;
        let row = tensor.row_bytes() as f64;
        let column = bytes / tensor.cols.max(1) as f64;
        match tensor.role {
            Role::Layer(_, LayerRole::Q) => out.q_head += row * head / layers,
            Role::Layer(_, LayerRole::O) => {
                out.q_head += column * head / layers;
                // Where heads do not end on blocks, a neighbour's part of a block is held as well.
                if tensor.kind.block_len() > u64::from(spec.head_dim) {
                    out.layer += column * tensor.kind.block_len() as f64 / layers;
                }
            }
            Role::Layer(_, LayerRole::K | LayerRole::V) => out.kv_head += row * head / layers,
            Role::Layer(_, LayerRole::Gate | LayerRole::Up) => out.ffn_block += row * block / layers,
            Role::Layer(_, LayerRole::Down) => out.ffn_block += column * block / layers,
            Role::Layer(..) => out.layer += (tensor.rows * tensor.cols * 4) as f64 / layers,
            Role::TokenEmbedding => out.embedding = bytes,
            Role::RopeFactors => out.buffers += (tensor.rows * tensor.cols * 4) as f64,
            Role::OutputNorm => out.head += (tensor.rows * tensor.cols * 4) as f64,
            Role::Output => {}
        }
    }
    let output = spec.output().map_or(0, |tensor| tensor.row_bytes());
    let pages = shard::pages_per_sequence(kv.context) * u64::from(kv.sequences);
    out.kv_head += (4 * u64::from(limits::PAGE_POSITIONS) * u64::from(spec.head_dim) * pages) as f64;

    // Buffers grow with shares in straight lines but for the widest of them, which the lines lie above.
    let rows = chunk_tokens.max(kv.sequences);
    let buffers = |q: u32, kv: u32, ffn: u32, ranks: usize| {
        let (q_heads, kv_heads) = (Span::new(0, q), Span::new(0, kv));
        let node = NodeId::default();
        let share = Share { node, q_heads, kv_heads, kv_owned: kv_heads, ffn: Span::new(0, ffn) };
        shard::rank_buffers(spec, rows, &share, ranks).0 as f64
    };
    let none = buffers(0, 0, 0, 1);
    let blocks = f64::from(spec.ffn) / block;
    let (q_heads, kv_heads) = (spec.n_heads, spec.n_kv_heads);
    out.q_buffer = (buffers(q_heads, 0, 0, 1) - buffers(1, 0, 0, 1)) / f64::from(q_heads.max(2) - 1);
    out.kv_buffer = (buffers(0, kv_heads, 0, 1) - none) / f64::from(kv_heads);
    out.ffn_buffer = (buffers(0, 0, spec.ffn, 1) - none) / blocks;
    out.rank_buffer = buffers(0, 0, 0, 3) - buffers(0, 0, 0, 2);
    out.buffers += none.max(buffers(1, 0, 0, 1) - out.q_buffer);
    let head_buffers = |rows| shard::head_buffers(spec, kv.sequences, rows).0 as f64;
    let tile = limits::VOCAB_TILE;
    out.tile = output as f64 * f64::from(tile) + head_buffers(tile) - head_buffers(0);
    out.head += head_buffers(0);
    out
}

#[cfg(test)]
mod tests {
    use shoal_core::QuantType;
    use shoal_core::model::shapes::{FileType, Shape};
    use shoal_core::plan::{HeadShare, Plan, PlanParts, Stage, Strategy, Sums};
    use shoal_core::profile::{ContextRate, DeviceProfile, KindRate, Measured};
    use shoal_core::units::{Bytes, BytesPerSec, MacsPerSec, Seconds};

    use super::*;
    use crate::cost::link::cheapest;
    use crate::cost::{Device, Links};

    fn cluster(n: u8) -> Cluster {
        let device = |id: u8| Device {
            node: NodeId([id; 16]),
            name: String::new(),
            profile: DeviceProfile {
                rates: vec![KindRate::flat(QuantType::Q4_K, BytesPerSec(1e9), MacsPerSec(1e10))],
                attention: ContextRate::flat(BytesPerSec(1e9)),
                phase_overhead: Measured::exact(Seconds(1e-5)),
                threads: 1,
                kernel_set: String::new(),
            },
            usable: Bytes(1 << 40),
            power: None,
        };
        let mut links = Links::new(Link::GIGABIT);
        let mut air = Link::new(1e-3, 3e7);
        air.shared = true;
        links.set(NodeId([1; 16]), NodeId([2; 16]), air);
        links.set(NodeId([3; 16]), NodeId([2; 16]), Link::LOOPBACK);
        Cluster { devices: (1..=n).map(device).collect(), links }
    }

    fn with_deck(file: &str, chunk_tokens: u32, run: impl FnOnce(&Deck<'_>)) {
        let spec = Shape::from_name("llama-3.2-1b").unwrap().spec(FileType::from_name(file).unwrap());
        let cluster = cluster(4);
        let workload = Workload {
            context: 1024,
            streams: 3,
            prompt_len: 64,
            decode_len: Workload::DECODE_LEN,
            objective: None,
        };
        let pins = Pins::default();
        let formats = (Wire::default(), Epoch::default(), chunk_tokens);
        run(&Deck::new(&spec, &cluster, &workload, &pins, formats, Objective::Throughput));
    }

    #[test]
    fn an_all_reduce_costs_what_the_cost_model_says() {
        with_deck("Q4_K_M", 8, |deck| {
            for devices in [vec![0_u16, 1], vec![0, 1, 2], vec![0, 2, 3], vec![0, 1, 2, 3]] {
                for rows in [1, 3, 64] {
                    let nodes: Vec<NodeId> = devices.iter().map(|&at| deck.nodes[usize::from(at)]).collect();
                    let bytes = f64::from(rows) * wire_row(deck.wire.sum, deck.model.d_model);
                    let want = cheapest(&nodes, &deck.cluster.links, bytes).1;
                    let got = deck.sum(&devices, rows);
                    assert!((got - want).abs() < 1e-12, "{devices:?} {rows}: {got} {want}");
                }
            }
        });
    }

    #[test]
    fn bytes_in_straight_lines_are_a_little_more_than_a_rank_holds() {
        for file in ["Q8_0", "Q4_K_M"] {
            for chunk_tokens in [8, 512] {
                with_deck(file, chunk_tokens, |deck| check_bytes(deck, file));
            }
        }
    }

    fn check_bytes(deck: &Deck<'_>, file: &str) {
        let (spec, bulk) = (deck.spec, &deck.bulk);
        let (heads, blocks, block) = (spec.n_heads, deck.blocks, spec.ffn_block());
        for (q, columns) in
            [(heads / 2, blocks / 2), (heads / 4, blocks - 3), (0, blocks / 2), (heads - 4, 1)]
        {
            let rank = |at: usize, q: Span, f: Span| (deck.nodes[at], q, f);
            let end = (columns * block).min(spec.ffn);
            let ranks = [
                rank(0, Span::new(0, q), Span::new(0, end)),
                rank(1, Span::new(q, heads), Span::new(end, spec.ffn)),
            ];
            let stage = Stage::from_spans(Span::new(0, spec.n_layers), &ranks, spec);
            let plan = Plan::try_new(
                PlanParts {
                    epoch: Epoch::default(),
                    strategy: Strategy::Head,
                    stages: vec![Stage { sums: Sums::default(), ..stage }],
                    head: vec![HeadShare { node: deck.nodes[0], rows: Span::new(0, spec.vocab) }],
                    chunk_tokens: deck.chunk_tokens,
                    wire: deck.wire,
                    kv: deck.kv,
                },
                spec,
            )
            .unwrap();
            let kv = f64::from(q.div_ceil(spec.group_size()));
            let (q, columns) = (f64::from(q), f64::from(columns));
            let layer = q * bulk.q_head + kv * bulk.kv_head + columns * bulk.ffn_block + bulk.layer;
            let buffers = q * bulk.q_buffer + kv * bulk.kv_buffer + columns * bulk.ffn_buffer;
            let once = bulk.buffers + 5.0 * bulk.rank_buffer + bulk.embedding;
            let head = bulk.head + f64::from(deck.tiles) * bulk.tile;
            let got = f64::from(spec.n_layers) * layer + buffers + once + head;
            let want = shard::footprint(&plan, spec, deck.nodes[0]).total().0 as f64;
            assert!(got >= want * 0.999 && got < want * 1.06, "{file} {q} {columns}: {got} {want}");
        }
    }
}
