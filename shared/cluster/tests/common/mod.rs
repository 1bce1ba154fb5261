//! Models, devices and plans that several tests use.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its own part of this module")]

use shoal_cluster::cost::{Cluster, Device, Link, Links, Workload};
use shoal_cluster::planner::{Arrangement, RankShare, StageShares, plan_from_shares};
use shoal_cluster::sampling::uniform;
use shoal_core::model::{Arch, LayerRole, ModelSpec, Role, RopeScaling, RopeSpec, TensorSpec};
use shoal_core::plan::{KvBudget, Plan, Strategy, Sums, Wire};
use shoal_core::profile::{
    ContextRate, DeviceProfile, KindRate, LinkFigures, LinkProfile, Measured, NodeInfo, RoundTrip,
};
use shoal_core::units::{MacsPerSec, Seconds};
use shoal_core::{Bytes, BytesPerSec, Epoch, NodeId, QuantType, Term};

/// A llama of this shape whose matrices are `kind`; the head is tied when `tied`.
pub(crate) fn llama(
    n_layers: u32,
    d_model: u32,
    heads: (u32, u32),
    ffn: u32,
    vocab: u32,
    kind: QuantType,
) -> ModelSpec {
    let mut spec = ModelSpec {
        name: "test".to_owned(),
        arch: Arch::Llama,
        n_layers,
        d_model,
        n_heads: heads.0,
        n_kv_heads: heads.1,
        head_dim: d_model / heads.0,
        ffn,
        vocab,
        context: 8192,
        norm_eps: 1e-5,
        rope: RopeSpec { base: 1e4, dims: d_model / heads.0, scaling: RopeScaling::None },
        tensors: Vec::new(),
    };
    let mut offset = 0;
    let mut roles = spec.required_roles();
    roles.push(Role::Output);
    roles.sort_unstable();
    for role in roles {
        let (rows, cols) = spec.shape_of(role);
        let vector = rows == 1 || matches!(role, Role::Layer(_, LayerRole::AttnNorm | LayerRole::FfnNorm));
        let kind = if vector { QuantType::F32 } else { kind };
        let tensor = TensorSpec { role, kind, rows, cols, offset };
        offset += tensor.bytes().0;
        spec.tensors.push(tensor);
    }
    spec.check().expect("the test's model is sound");
    spec
}

/// The shape of the stories model: 4 KV heads.
pub(crate) fn small() -> ModelSpec {
    llama(8, 256, (8, 4), 768, 4096, QuantType::Q8_0)
}

/// The shape of a model of eight billion weights.
pub(crate) fn large() -> ModelSpec {
    llama(32, 4096, (32, 8), 14336, 128_256, QuantType::Q4_0)
}

pub(crate) fn node(index: usize) -> NodeId {
    let mut id = [0; 16];
    let number = index as u16 + 1;
    id[..2].copy_from_slice(&number.to_le_bytes());
    id[15] = 7;
    NodeId(id)
}

/// A plan with one stage on one node and the head split over `ranks` nodes at places drawn by `seed`.
pub(crate) fn head_plan(vocab: u32, ranks: usize, seed: u64) -> Plan {
    let spec = llama(1, 64, (2, 1), 64, vocab, QuantType::F32);
    let mut left = spec.vocab_tiles();
    let head = (0..ranks).map(|rank| {
        let tiles =
            if rank + 1 == ranks { left } else { (uniform(seed, 5, rank as u64) * f64::from(left)) as u32 };
        left -= tiles;
        (node(rank), tiles)
    });
    let arrangement = Arrangement {
        strategy: Strategy::Single,
        stages: vec![StageShares {
            layers: 1,
            ranks: vec![RankShare { node: node(0), q_heads: 2, ffn_blocks: 2 }],
            sums: Sums::default(),
        }],
        head: head.filter(|head| head.1 > 0).collect(),
        chunk_tokens: 32,
        wire: Wire::default(),
        kv: KvBudget { context: 128, sequences: 1 },
        epoch: Epoch { term: Term(1), counter: 1 },
    };
    plan_from_shares(&spec, &arrangement).expect("the test's plan is sound")
}

/// A device that streams `gb_per_s` of weights, multiplies at twenty times that and has this memory.
pub(crate) fn device(index: usize, gb_per_s: f64, usable: Bytes) -> Device {
    let rate = |kind| KindRate::flat(kind, BytesPerSec(gb_per_s * 1e9), MacsPerSec(gb_per_s * 2e10));
    Device {
        node: node(index),
        name: format!("board-{index}"),
        profile: DeviceProfile {
            rates: vec![rate(QuantType::F32), rate(QuantType::Q8_0), rate(QuantType::Q4_0)],
            attention: ContextRate::flat(BytesPerSec(gb_per_s * 1e9)),
            phase_overhead: Measured { median: Seconds(20e-6), spread: 0.05 },
            threads: 4,
            kernel_set: "test".to_owned(),
        },
        usable,
        power: None,
    }
}

/// Devices of these speeds, each with this memory, on a gigabit network.
pub(crate) fn cluster(speeds: &[f64], usable: Bytes) -> Cluster {
    let devices = speeds.iter().enumerate().map(|(index, &speed)| device(index, speed, usable));
    Cluster { devices: devices.collect(), links: Links::new(Link::GIGABIT) }
}

pub(crate) fn workload(streams: u32) -> Workload {
    Workload { context: 512, streams, prompt_len: 64, decode_len: Workload::DECODE_LEN, objective: None }
}

/// What a worker without peculiarities says of itself.
pub(crate) fn info(node: NodeId) -> NodeInfo {
    let text = || "x".to_owned();
    NodeInfo {
        node,
        name: format!("name-{}", node.0[0]),
        version: text(),
        hardware: text(),
        kernel_set: text(),
        threads: 1,
        memory: Bytes::mib(64),
        available: Bytes::mib(64),
        reserve: Bytes(0),
        usable: Bytes::mib(64),
        resident: Bytes::mib(1),
        data_port: 1,
        emulation: None,
    }
}

/// A link of ordinary figures.
pub(crate) fn link(from: NodeId, to: NodeId) -> LinkProfile {
    let time = |seconds| Measured::exact(Seconds(seconds));
    let round_trips = [(64, 100e-6), (4096, 150e-6), (65_536, 900e-6)];
    let round_trips = round_trips.map(|(bytes, seconds)| RoundTrip { bytes, time: time(seconds) }).to_vec();
    let bandwidth = Measured::exact(BytesPerSec(1e8));
    LinkProfile {
        from,
        to,
        figures: LinkFigures { round_trips, bandwidth, message_cpu: time(10e-6), shared: false },
    }
}
