//! What a seed stands for.

use std::time::Duration;

use rand::SeedableRng;
use rand::rand_core::Rng;
use rand_chacha::ChaCha8Rng;
use shoal_core::model::{Arch, ModelSpec, Role, RopeScaling, RopeSpec, TensorSpec};
use shoal_core::plan::Strategy;
use shoal_core::profile::{ContextRate, DeviceProfile, KindRate, Measured, NodeInfo};
use shoal_core::units::{Bytes, BytesPerSec, MacsPerSec, Seconds};
use shoal_core::{NodeId, QuantType, SeqId};

use crate::coordinator::Request;
use crate::sampling::SamplingParams;

/// Numbers drawn from a seed.
#[derive(Debug, Clone)]
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number from `least` to `most`.
    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.0.next_u64() % (most - least + 1)
    }

    /// True once in `n` times.
    pub(super) fn once_in(&mut self, n: u64) -> bool {
        self.between(1, n) == 1
    }

    pub(super) fn micros(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.between(least, most))
    }
}

/// Something that goes wrong at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It stops for ever; `silent`: its connection does not close.
    Crash { silent: bool },
    /// Its control connection closes; it comes back.
    Disconnect,
    /// Nothing happens at it for this long.
    Pause(Duration),
    /// Its next step fails.
    FailStep,
}

/// A cluster, its work and its misfortunes.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub seed: u64,
    pub workers: usize,
    pub streams: u32,
    /// Jobs one after another.
    pub jobs: usize,
    pub strategy: Option<Strategy>,
    pub measure_links: bool,
    /// Requests of each job.
    pub requests: Vec<Request>,
    /// When, which node, what.
    pub faults: Vec<(Duration, usize, Fault)>,
    /// Nodes that profile themselves absurdly.
    pub absurd: Vec<usize>,
    /// Nodes whose load fails the first time.
    pub bad_loads: Vec<usize>,
    /// By node: multiple of the time a step should take.
    pub slowness: Vec<u64>,
    /// One packet in this many is lost.
    pub loss: u64,
}

impl Scenario {
    /// The scenario of this seed.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let workers = dice.between(1, 6) as usize;
        let any = |dice: &mut Dice| dice.between(0, workers as u64 - 1) as usize;
        let requests = (0..dice.between(1, 10)).map(|index| request(index, &mut dice)).collect();
        let faults = (0..if dice.once_in(3) { 0 } else { dice.between(1, 3) }).map(|_| {
            let fault = match dice.between(0, 4) {
                0 => Fault::Crash { silent: false },
                1 => Fault::Crash { silent: true },
                2 => Fault::Disconnect,
                3 => Fault::Pause(dice.micros(10_000, 3_000_000)),
                _ => Fault::FailStep,
            };
            (dice.micros(0, 1_500_000), any(&mut dice), fault)
        });
        let faults = faults.collect();
        let strategies = Strategy::ALL.len() as u64;
        Self {
            seed,
            workers,
            streams: dice.between(1, 5) as u32,
            jobs: dice.between(1, 3) as usize,
            strategy: Strategy::ALL.get(dice.between(0, strategies) as usize).copied(),
            measure_links: dice.once_in(2),
            requests,
            faults,
            absurd: if dice.once_in(6) { vec![any(&mut dice)] } else { Vec::new() },
            bad_loads: if dice.once_in(8) { vec![any(&mut dice)] } else { Vec::new() },
            slowness: (0..workers)
                .map(|_| if dice.once_in(8) { dice.between(2, 2_000) } else { 1 })
                .collect(),
            loss: dice.between(20, 2_000),
        }
    }
}

fn request(index: u64, dice: &mut Dice) -> Request {
    let longest = if dice.once_in(4) { 60 } else { 8 };
    let prompt = dice.between(1, longest);
    let params = match dice.between(0, 3) {
        0 => SamplingParams::greedy(),
        // Any token may be drawn: every draw asks a second question.
        1 => {
            SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplingParams::default() }
        }
        2 => SamplingParams { top_k: 0, top_p: 0.999, min_p: 0.0, ..SamplingParams::default() },
        _ => SamplingParams::default(),
    };
    Request {
        seq: SeqId(index),
        tokens: (0..prompt).map(|_| dice.between(0, u64::from(VOCAB) - 1) as u32).collect(),
        max_new: dice.between(1, 24) as u32,
        params: SamplingParams { seed: index, ..params },
        stop_tokens: if dice.once_in(3) { (0..VOCAB / 16).collect() } else { Vec::new() },
    }
}

/// Vocabulary of the simulated model: four tiles, the last one short.
pub(super) const VOCAB: u32 = 900;

/// Context of a simulated sequence: short enough that some run full.
pub(super) const CONTEXT: u32 = 72;

/// The model that is simulated.
pub(super) fn model() -> ModelSpec {
    let mut spec = ModelSpec {
        name: "simulated".to_owned(),
        arch: Arch::Llama,
        n_layers: 6,
        d_model: 64,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 16,
        ffn: 192,
        vocab: VOCAB,
        context: CONTEXT,
        norm_eps: 1e-5,
        rope: RopeSpec { base: 1e4, dims: 16, scaling: RopeScaling::None },
        tensors: Vec::new(),
    };
    let mut offset = 0;
    for role in spec.required_roles() {
        let (rows, cols) = spec.shape_of(role);
        let tensor = TensorSpec { role, kind: QuantType::F32, rows, cols, offset };
        offset += tensor.bytes().0;
        spec.tensors.push(tensor);
    }
    spec.tensors.sort_by_key(|tensor: &TensorSpec| tensor.role);
    debug_assert!(spec.tensor(Role::OutputNorm).is_some());
    spec
}

pub(super) fn node_id(index: usize) -> NodeId {
    NodeId([index as u8 + 1; 16])
}

pub(super) fn info(index: usize) -> NodeInfo {
    NodeInfo {
        node: node_id(index),
        name: format!("sim-{index}"),
        version: "0".to_owned(),
        hardware: "virtual".to_owned(),
        kernel_set: "virtual".to_owned(),
        threads: 1,
        memory: Bytes::mib(64),
        available: Bytes::mib(64),
        reserve: Bytes(0),
        usable: Bytes::mib(32),
        resident: Bytes::mib(1),
        data_port: 1,
        emulation: None,
    }
}

/// A profile of a device of this speed; an absurd one claims a rate below nothing.
pub(super) fn profile(speed: f64, absurd: bool) -> DeviceProfile {
    let rate = if absurd { -1.0 } else { speed * 1e8 };
    DeviceProfile {
        rates: vec![KindRate::flat(QuantType::F32, BytesPerSec(rate), MacsPerSec(speed * 1e9))],
        attention: ContextRate::flat(BytesPerSec(speed * 1e8)),
        phase_overhead: Measured { median: Seconds(20e-6), spread: 0.1 },
        threads: 1,
        kernel_set: "virtual".to_owned(),
    }
}
