//! Random planning problems: models of mixed formats, unequal devices and links, memory often tight.

use shoal_cluster::cost::{Cluster, Device, Link, Links, Workload};
use shoal_cluster::planner::problem::Family;
use shoal_cluster::planner::{Arrangement, Pin, RankShare, StageShares, plan_from_shares};
use shoal_cluster::sampling::uniform;
use shoal_core::model::{Arch, LayerRole, ModelSpec, Role, RopeScaling, RopeSpec, TensorSpec};
use shoal_core::plan::{KvBudget, Span, Strategy, Sums, Wire};
use shoal_core::profile::{BatchRate, ContextRate, DeviceProfile, KindRate, Measured};
use shoal_core::units::{MacsPerSec, Seconds};
use shoal_core::{Bytes, BytesPerSec, Epoch, NodeId, QuantType, shard};

/// A row of drawn numbers.
struct Draw {
    seed: u64,
    at: u64,
}

impl Draw {
    fn unit(&mut self) -> f64 {
        self.at += 1;
        uniform(self.seed, 77, self.at)
    }

    /// From `least` to `most`, both possible.
    fn count(&mut self, least: u32, most: u32) -> u32 {
        least + (self.unit() * f64::from(most - least + 1)) as u32
    }

    fn chance(&mut self, part: f64) -> bool {
        self.unit() < part
    }

    /// Between the two, evenly in the logarithm.
    fn between(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).powf(self.unit())
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.count(0, list.len() as u32 - 1) as usize]
    }
}

pub(crate) fn node(index: u32) -> NodeId {
    NodeId([index as u8 + 1; 16])
}

/// A model whose formats differ by layer, so small that all plans of so many devices can be listed.
fn model(draw: &mut Draw, devices: u32) -> ModelSpec {
    let (layers, heads, blocks) = match devices {
        1 => (6, 6, 5),
        2 => (6, 6, 5),
        3 => (3, 4, 3),
        4 => (3, 2, 2),
        _ => (2, 2, 2),
    };
    let n_layers = draw.count(2, layers);
    let n_heads = draw.count(2, heads);
    let groups: Vec<u32> = (1..=n_heads).filter(|&kv| n_heads.is_multiple_of(kv)).collect();
    let n_kv_heads = draw.of(&groups);
    let blocks = draw.count(2, blocks);
    // K-quants have blocks of 256 values: their models are wider.
    let wide = draw.chance(0.15);
    let (block, short) = if wide { (256, 0) } else { (32, draw.of(&[0, 0, 0, 16])) };
    let head_dim = if wide { 256 } else { draw.of(&[32, 32, 96]) };
    let kinds = [QuantType::Q8_0, QuantType::Q4_0, QuantType::F16];
    let mut spec = ModelSpec {
        name: "test".to_owned(),
        arch: if draw.chance(0.3) { Arch::Qwen2 } else { Arch::Llama },
        n_layers,
        d_model: if wide { 256 } else { 64 },
        n_heads,
        n_kv_heads,
        head_dim,
        ffn: blocks * block - short,
        vocab: draw.count(1, 6) * 256 + draw.of(&[0, 0, 100]),
        context: 512,
        norm_eps: 1e-5,
        rope: RopeSpec { base: 1e4, dims: 16, scaling: RopeScaling::None },
        tensors: Vec::new(),
    };
    let mut roles = spec.required_roles();
    if draw.chance(0.5) {
        roles.push(Role::Output);
    }
    if draw.chance(0.3) {
        roles.push(Role::RopeFactors);
    }
    roles.sort_unstable();
    let usual = draw.of(&kinds);
    let mut offset = 0;
    for role in roles {
        let (rows, cols) = spec.shape_of(role);
        let mixed = draw.chance(0.4);
        let kind = match role {
            _ if rows == 1 => QuantType::F32,
            Role::Layer(_, LayerRole::Down) if short > 0 => QuantType::F16,
            Role::Layer(0, LayerRole::Down) if wide => QuantType::Q4_K,
            Role::Layer(_, LayerRole::O | LayerRole::Down | LayerRole::V) if wide && mixed => QuantType::Q6_K,
            Role::Layer(_, LayerRole::V | LayerRole::Down) if mixed => draw.of(&kinds),
            _ => usual,
        };
        let tensor = TensorSpec { role, kind, rows, cols, offset };
        offset += tensor.bytes().0;
        spec.tensors.push(tensor);
    }
    spec.check().expect("the test's model is sound");
    spec
}

fn profile(draw: &mut Draw) -> DeviceProfile {
    let speed = draw.between(0.05, 2.0);
    let kinds = [QuantType::F16, QuantType::Q8_0, QuantType::Q4_0, QuantType::Q4_K, QuantType::Q6_K];
    let mut rates = Vec::new();
    for kind in kinds {
        let stream = BytesPerSec(speed * draw.between(0.5, 2.0) * 1e9);
        let mut batched = Vec::new();
        let macs = speed * draw.between(0.5, 2.0) * 2e9;
        for rows in [1_u32, 4, 16] {
            let rate = MacsPerSec(macs * f64::from(rows).powf(draw.unit()));
            batched.push(BatchRate { rows, rate: Measured::exact(rate) });
        }
        rates.push(KindRate { kind, stream: Measured::exact(stream), batched });
    }
    DeviceProfile {
        rates,
        attention: ContextRate::flat(BytesPerSec(speed * draw.between(0.2, 2.0) * 1e9)),
        phase_overhead: Measured::exact(Seconds(draw.between(1e-7, 2e-5))),
        threads: 4,
        kernel_set: "test".to_owned(),
    }
}

/// One planning: model, cluster, workload and restrictions.
pub(crate) struct Case {
    pub(crate) spec: ModelSpec,
    pub(crate) cluster: Cluster,
    pub(crate) workload: Workload,
    pub(crate) family: Family,
    pub(crate) use_all: bool,
    pub(crate) pins: Vec<Pin>,
}

pub(crate) fn case(seed: u64, devices: u32) -> Case {
    let mut draw = Draw { seed, at: 0 };
    let draw = &mut draw;
    let spec = model(draw, devices);
    let workload = Workload {
        context: draw.of(&[32, 128, 512]),
        streams: draw.of(&[1, 2, 3, 5, 8]),
        prompt_len: draw.count(1, 200),
        decode_len: 64,
        objective: None,
    };
    let link = |draw: &mut Draw| {
        let mut link = Link::new(draw.between(1e-7, 3e-4), draw.between(1e6, 1e9));
        link.shared = draw.chance(0.2);
        link
    };
    let mut links = Links::new(link(draw));
    // Equal boards on equal links are common, and have many equal plans.
    let equal = draw.chance(0.25);
    for from in 0..devices {
        for to in 0..devices {
            if from != to && !equal && draw.chance(0.5) {
                let link = link(draw);
                links.set(node(from), node(to), link);
            }
        }
    }
    let tight = draw.chance(0.34);
    let need = needs(&spec, &workload);
    let first = profile(draw);
    let slack = draw.between(0.6, 4.0);
    let devices: Vec<Device> = (0..devices)
        .map(|index| {
            let profile = if equal && draw.chance(0.8) { first.clone() } else { profile(draw) };
            let part = if equal { 0.5 } else { draw.unit() };
            let usable = if tight {
                Bytes(need.0 + (part * slack * need.1 as f64 / f64::from(devices)) as u64)
            } else {
                Bytes::mib(256)
            };
            Device { node: node(index), name: format!("board-{index}"), profile, usable, power: None }
        })
        .collect();
    let families = [Family::Any, Family::Any, Family::Single, Family::Layers, Family::Heads, Family::Mixed];
    let family = draw.of(&families);
    let use_all = draw.chance(0.2);
    let mut pins = Vec::new();
    for device in &devices {
        if draw.chance(0.06) {
            let first = draw.count(0, spec.n_layers - 1);
            let span = Span::new(first, draw.count(first + 1, spec.n_layers));
            pins.push(Pin::Layers { node: device.node, span });
        }
        if draw.chance(0.06) {
            let first = draw.count(0, spec.n_heads);
            let span = Span::new(first, draw.count(first, spec.n_heads));
            pins.push(Pin::QHeads { node: device.node, span });
        }
    }
    Case { cluster: Cluster { devices, links }, spec, workload, family, use_all, pins }
}

/// Bytes that any board with work holds beside the model, and bytes of the model with its cache.
pub(crate) fn needs(spec: &ModelSpec, workload: &Workload) -> (u64, u64) {
    let arrangement = Arrangement {
        strategy: Strategy::Single,
        stages: vec![StageShares {
            layers: spec.n_layers,
            ranks: vec![RankShare {
                node: node(0),
                q_heads: spec.n_heads,
                ffn_blocks: spec.ffn.div_ceil(spec.ffn_block()),
            }],
            sums: Sums::default(),
        }],
        head: vec![(node(0), spec.vocab_tiles())],
        chunk_tokens: 8,
        wire: Wire::default(),
        kv: KvBudget { context: workload.context, sequences: workload.streams },
        epoch: Epoch::default(),
    };
    let plan = plan_from_shares(spec, &arrangement).expect("the test's plan is sound");
    let held = shard::footprint(&plan, spec, node(0));
    (held.buffers.0, (held.weights + held.kv).0)
}

/// Six devices and a model of sixteen layers, memory tight in most cases.
pub(crate) fn larger(seed: u64) -> Case {
    let mut case = case(seed, 5);
    let mut draw = Draw { seed, at: 1000 };
    let spec = &mut case.spec;
    (spec.n_layers, spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.ffn) = (16, 8, 4, 32, 384);
    (spec.d_model, spec.arch) = (64, Arch::Llama);
    let mut offset = 0;
    spec.tensors.clear();
    let mut roles = spec.required_roles();
    roles.sort_unstable();
    for role in roles {
        let (rows, cols) = spec.shape_of(role);
        let kind = match role {
            _ if rows == 1 => QuantType::F32,
            Role::Layer(layer, LayerRole::Down) if layer % 3 == 0 => QuantType::Q8_0,
            _ => QuantType::Q4_0,
        };
        spec.tensors.push(TensorSpec { role, kind, rows, cols, offset });
        offset += spec.tensors[spec.tensors.len() - 1].bytes().0;
    }
    spec.check().expect("the test's model is sound");
    let profile = profile(&mut draw);
    let device =
        Device { node: node(5), name: "board-5".to_owned(), profile, ..case.cluster.devices[0].clone() };
    case.cluster.devices.push(device);
    let need = needs(spec, &case.workload);
    for device in &mut case.cluster.devices {
        device.usable = Bytes(need.0 + (draw.between(0.15, 0.8) * need.1 as f64) as u64);
    }
    (case.family, case.use_all) = (Family::Any, false);
    case.pins.clear();
    case
}
