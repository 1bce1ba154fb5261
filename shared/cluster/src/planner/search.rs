//! What every strategy uses: groups of devices become a plan that fits, or the bytes that are missing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use shoal_core::model::{ModelSpec, Role};
use shoal_core::plan::{KvBudget, Plan, Span, Stage, Strategy, Sums, Wire};
use shoal_core::units::Bytes;
use shoal_core::{Epoch, NodeId, limits, shard};

use super::build::{Arrangement, RankShare, StageShares, plan_from_shares};
use super::layers::{StageTable, splits};
use super::share::largest_remainder;
use super::{Account, Infeasible, Missing, Priced};
use crate::cost::link::cheapest;
use crate::cost::model::{Model, wire_row};
use crate::cost::predict::{Pricing, mean_context};
use crate::cost::rates::Rates;
use crate::cost::{Cluster, Device, Objective, Workload, predict};

/// Rounds in which shares are moved from devices that are over their memory to the others, where
/// shares by speed alone do not fit.
pub(super) const ROUNDS: usize = 12;

/// A tenth of the slowest stage's time counts as latency: predictions are no better than that, and a
/// balanced pipeline is the better one for prompts and further streams.
const BALANCE: f64 = 0.1;

/// One planning's inputs, prepared.
pub(super) struct Search<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) cluster: &'a Cluster,
    pub(super) workload: &'a Workload,
    /// Devices that may be used, by node id.
    pub(super) devices: Vec<&'a Device>,
    /// By falling speed, ties by node id: indices into `devices`.
    pub(super) by_speed: Vec<usize>,
    /// Tokens per second of each device alone, memory set aside.
    pub(super) speed: Vec<f64>,
    wire: Wire,
    epoch: Epoch,
    kv: KvBudget,
    model: Model,
    rates: BTreeMap<NodeId, Rates>,
    /// Rows of a step that counts: one, or those of all streams.
    rows: f64,
    context: f64,
    ffn_blocks: u32,
    tiles: u32,
    /// Groups with shares by speed, which most attempts use.
    groups: RefCell<BTreeMap<Vec<usize>, Rc<Group>>>,
    /// The model cut down to so many layers.
    cut: RefCell<BTreeMap<usize, Rc<ModelSpec>>>,
}

/// How layers come to stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layering {
    /// As equal as can be, and equal shares of the head.
    Equal,
    /// By measured speed and memory.
    Measured,
}

/// Which nodes hold the output head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeadOn {
    All,
    LastGroup,
}

/// What is missing in the attempt that came nearest.
pub(super) type Lack = Vec<Missing>;

/// A plan with the figure by which attempts of one strategy are compared.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) plan: Plan,
    /// Less is better.
    pub(super) score: f64,
}

/// Ranks of one stage with what they cost.
struct Group {
    shares: Vec<RankShare>,
    stage: Stage,
    /// For each rank, bytes of each layer with its KV pages.
    layer_bytes: Vec<Vec<u64>>,
}

impl<'a> Search<'a> {
    /// `cluster` holds only devices that may be used, by node id.
    pub(super) fn new(
        spec: &'a ModelSpec,
        cluster: &'a Cluster,
        workload: &'a Workload,
        wire: Wire,
        epoch: Epoch,
    ) -> Self {
        let devices: Vec<&Device> = cluster.devices.iter().collect();
        let model = Model::new(spec);
        let rates: BTreeMap<NodeId, Rates> =
            devices.iter().filter_map(|device| Some((device.node, Rates::of(device)?))).collect();
        let streams = workload.streams.clamp(1, limits::SEQUENCES as u32);
        let rows = match workload.objective() {
            Objective::Latency => 1.0,
            Objective::Throughput | Objective::Energy => f64::from(streams),
        };
        let context = mean_context(spec, workload);
        let whole = Model::whole_share(spec, NodeId::default());
        let alone = |device: &&Device| {
            rates.get(&device.node).map_or(0.0, |r| rows / model.alone(r, &whole, spec.vocab, rows, context))
        };
        let speed: Vec<f64> = devices.iter().map(alone).collect();
        let mut by_speed: Vec<usize> = (0..devices.len()).collect();
        by_speed.sort_by(|&a, &b| speed[b].total_cmp(&speed[a]).then(a.cmp(&b)));
        Self {
            spec,
            cluster,
            workload,
            devices,
            by_speed,
            speed,
            wire,
            epoch,
            kv: KvBudget { context: workload.context.clamp(1, spec.context), sequences: streams },
            model,
            rates,
            rows,
            context,
            ffn_blocks: spec.ffn.div_ceil(spec.ffn_block()),
            tiles: spec.vocab_tiles(),
            groups: RefCell::default(),
            cut: RefCell::default(),
        }
    }

    /// The best plan of any of these lists of groups. Where shares by speed fit for none of them, shares
    /// are moved to where there is memory.
    pub(super) fn fit_any(
        &self,
        strategy: Strategy,
        lists: &[Vec<Vec<usize>>],
        chunk_tokens: u32,
    ) -> Result<Found, Lack> {
        let mut best: Result<Found, Lack> = Err(Vec::new());
        // Devices that together lack the memory need no second round.
        let used: u64 = lists.first().map_or(0, |groups| {
            groups.iter().flatten().map(|&device| self.devices[device].usable.0).fold(0, u64::saturating_add)
        });
        let enough = used >= self.spec.total_bytes().0;
        for rounds in [1, ROUNDS].into_iter().take(1 + usize::from(enough)) {
            for groups in lists {
                best = better(best, self.fit(strategy, groups, Layering::Measured, chunk_tokens, rounds));
            }
            if best.is_ok() {
                break;
            }
        }
        best
    }

    /// The best plan of these groups, in this order, with chunks of this many tokens.
    pub(super) fn fit(
        &self,
        strategy: Strategy,
        groups: &[Vec<usize>],
        layering: Layering,
        chunk_tokens: u32,
        rounds: usize,
    ) -> Result<Found, Lack> {
        let mut best: Result<Found, Lack> = Err(Vec::new());
        let several = groups.len() > 1;
        for head in [HeadOn::All, HeadOn::LastGroup].into_iter().take(1 + usize::from(several)) {
            best = better(best, self.fit_head(strategy, groups, layering, chunk_tokens, head, rounds));
        }
        best
    }

    fn fit_head(
        &self,
        strategy: Strategy,
        groups: &[Vec<usize>],
        layering: Layering,
        chunk_tokens: u32,
        head: HeadOn,
        rounds: usize,
    ) -> Result<Found, Lack> {
        let mut weights: Vec<f64> = match layering {
            Layering::Equal => vec![1.0; self.devices.len()],
            Layering::Measured => self.speed.clone(),
        };
        let mut best: Result<Found, Lack> = Err(Vec::new());
        for _ in 0..rounds {
            let (found, needs) = self.fit_weights(strategy, groups, layering, chunk_tokens, head, &weights);
            best = better(best, found);
            if best.is_ok() || layering == Layering::Equal {
                break;
            }
            for (device, need) in needs {
                let usable = self.devices[device].usable.0;
                if need > usable {
                    weights[device] *= usable as f64 / need as f64;
                }
            }
        }
        best
    }

    /// One attempt; where it does not fit, also what each device would need.
    fn fit_weights(
        &self,
        strategy: Strategy,
        groups: &[Vec<usize>],
        layering: Layering,
        chunk_tokens: u32,
        head: HeadOn,
        weights: &[f64],
    ) -> (Result<Found, Lack>, Vec<(usize, u64)>) {
        let built: Vec<Rc<Group>> = groups.iter().map(|group| self.group(group, weights)).collect();
        let on: Vec<usize> = match head {
            HeadOn::All => groups.concat(),
            HeadOn::LastGroup => groups.last().cloned().unwrap_or_default(),
        };
        let tiles = largest_remainder(self.tiles, &on.iter().map(|&d| weights[d]).collect::<Vec<_>>());
        let head = on.iter().zip(tiles).filter(|(_, tiles)| *tiles > 0);
        let mut arrangement = Arrangement {
            strategy,
            stages: Vec::new(),
            head: head.map(|(&device, tiles)| (self.devices[device].node, tiles)).collect(),
            chunk_tokens,
            wire: self.wire,
            kv: self.kv,
            epoch: self.epoch,
        };
        let layers = self.spec.n_layers as usize;
        let candidates = match layering {
            Layering::Equal => vec![largest_remainder(layers as u32, &vec![1.0; groups.len()])],
            Layering::Measured => splits(&self.tables(&built, &mut arrangement), layers),
        };
        let mut best: Option<Found> = None;
        for counts in &candidates {
            arrangement.stages = self.stages(&built, counts, chunk_tokens);
            let Ok(plan) = plan_from_shares(self.spec, &arrangement) else { continue };
            let score = self.pricing().score(&plan, self.workload, self.context, BALANCE);
            if best.as_ref().is_none_or(|best| score < best.score) {
                best = Some(Found { plan, score });
            }
        }
        if let Some(found) = best {
            // Tables say it fits; the footprint is what counts.
            let needs = self.needs(&found.plan);
            let lack = self.lack(&needs);
            return if lack.is_empty() { (Ok(found), Vec::new()) } else { (Err(lack), needs) };
        }
        // Say what is missing where layers follow the groups' weights.
        let sums: Vec<f64> = groups.iter().map(|group| group.iter().map(|&d| weights[d]).sum()).collect();
        arrangement.stages =
            self.stages(&built, &at_least_one(largest_remainder(layers as u32, &sums)), chunk_tokens);
        let Ok(plan) = plan_from_shares(self.spec, &arrangement) else {
            return (Err(Vec::new()), Vec::new());
        };
        let needs = self.needs(&plan);
        (Err(self.lack(&needs)), needs)
    }

    /// The prediction that goes with a plan.
    pub(super) fn priced(&self, plan: Plan) -> Result<Priced, Infeasible> {
        match predict(&plan, self.spec, self.cluster, self.workload) {
            Ok(prediction) => {
                let account = Account::of(&plan, &prediction, self.spec.d_model, &self.cluster.links);
                Ok(Priced { plan, prediction, account })
            }
            Err(error) => Err(Infeasible { reason: error.to_string(), missing: Vec::new() }),
        }
    }

    fn needs(&self, plan: &Plan) -> Vec<(usize, u64)> {
        let index = |node| self.devices.binary_search_by_key(&node, |device| device.node).ok();
        let nodes = plan.nodes().iter().filter_map(|&node| Some((index(node)?, node)));
        nodes.map(|(at, node)| (at, shard::footprint(plan, self.spec, node).total().0)).collect()
    }

    fn lack(&self, needs: &[(usize, u64)]) -> Lack {
        let over = needs.iter().filter_map(|&(at, need)| {
            let device = self.devices[at];
            let bytes = Bytes(need).saturating_sub(device.usable);
            (bytes.0 > 0).then(|| Missing { node: device.node, name: device.name.clone(), bytes })
        });
        over.collect()
    }

    fn pricing(&self) -> Pricing<'_> {
        Pricing { model: &self.model, rates: &self.rates, links: &self.cluster.links }
    }

    fn group(&self, devices: &[usize], weights: &[f64]) -> Rc<Group> {
        if devices.iter().any(|&device| weights[device] != self.speed[device]) {
            return Rc::new(self.new_group(devices, weights));
        }
        if let Some(known) = self.groups.borrow().get(devices) {
            return Rc::clone(known);
        }
        let group = Rc::new(self.new_group(devices, weights));
        self.groups.borrow_mut().insert(devices.to_vec(), Rc::clone(&group));
        group
    }

    fn new_group(&self, devices: &[usize], weights: &[f64]) -> Group {
        let weights: Vec<f64> = devices.iter().map(|&device| weights[device]).collect();
        let q_heads = largest_remainder(self.spec.n_heads, &weights);
        let blocks = largest_remainder(self.ffn_blocks, &weights);
        let ranks = devices.iter().zip(q_heads).zip(blocks);
        let shares: Vec<RankShare> = ranks
            .map(|((&device, q_heads), ffn_blocks)| RankShare {
                node: self.devices[device].node,
                q_heads,
                ffn_blocks,
            })
            .collect();
        // A plan with this group alone says what each of its layers weighs.
        let probe = Arrangement {
            strategy: Strategy::Head,
            stages: vec![StageShares {
                layers: self.spec.n_layers,
                ranks: shares.clone(),
                sums: Sums::default(),
            }],
            head: vec![(shares[0].node, self.tiles)],
            chunk_tokens: 1,
            wire: self.wire,
            kv: self.kv,
            epoch: self.epoch,
        };
        let mut layer_bytes = vec![vec![0; self.spec.n_layers as usize]; shares.len()];
        let stage = match plan_from_shares(self.spec, &probe) {
            Ok(plan) => {
                let pages = shard::pages_per_sequence(self.kv.context) * u64::from(self.kv.sequences);
                for (rank, bytes) in layer_bytes.iter_mut().enumerate() {
                    let share = &plan.stages[0].ranks[rank];
                    bytes.fill(shard::kv_page_bytes(self.spec, share) * pages);
                    for slice in shard::slices(&plan, self.spec, share.node) {
                        if let Role::Layer(layer, _) = slice.tensor.role {
                            bytes[layer as usize] += slice.bytes().0;
                        }
                    }
                }
                plan.stages[0].clone()
            }
            Err(_) => Stage { layers: Span::new(0, 0), ranks: Vec::new(), sums: Sums::default() },
        };
        Group { shares, stage, layer_bytes }
    }

    /// Times and bytes of any range of layers of each stage.
    fn tables(&self, groups: &[Rc<Group>], arrangement: &mut Arrangement) -> Vec<StageTable> {
        if groups.len() > self.spec.n_layers as usize {
            return Vec::new();
        }
        // A model of one layer a stage says what a rank holds beside layers.
        let cut = self.cut_to(groups.len());
        arrangement.stages = self.stages(groups, &vec![1; groups.len()], arrangement.chunk_tokens);
        let Ok(probe) = plan_from_shares(&cut, arrangement) else { return Vec::new() };
        let rows = (self.rows / groups.len() as f64).ceil();
        let sum_bytes = rows * wire_row(self.wire.sum, self.model.d_model);
        let table = |(at, group): (usize, &Rc<Group>)| {
            let pricing = self.pricing();
            let nodes: Vec<NodeId> = group.shares.iter().map(|share| share.node).collect();
            let how = cheapest(&nodes, &self.cluster.links, sum_bytes).0;
            let by_class: Vec<f64> = (0..self.model.classes.len())
                .map(|class| pricing.layer(class, &group.stage, how, sum_bytes, rows, self.context))
                .collect();
            let mut time = vec![0.0];
            for &class in &self.model.class_of {
                time.push(time[time.len() - 1] + by_class[class]);
            }
            let mut room = Vec::new();
            let mut bytes = Vec::new();
            for (share, own) in group.shares.iter().zip(&group.layer_bytes) {
                let mut sums = vec![0];
                for layer in own {
                    sums.push(sums[sums.len() - 1] + layer);
                }
                let beside = shard::footprint(&probe, &cut, share.node).total().0 - own[at];
                let usable = self.cluster.device(share.node).map_or(0, |device| device.usable.0);
                // Less than nothing is left: not even an empty range fits.
                match usable.checked_sub(beside) {
                    Some(left) => room.push(left),
                    None => {
                        room.push(0);
                        sums.iter_mut().enumerate().for_each(|(at, sum)| *sum += at as u64);
                    }
                }
                bytes.push(sums);
            }
            StageTable { time, bytes, room }
        };
        groups.iter().enumerate().map(table).collect()
    }

    fn cut_to(&self, layers: usize) -> Rc<ModelSpec> {
        let make = || {
            let mut spec = self.spec.clone();
            spec.n_layers = layers as u32;
            spec.tensors.retain(|t| !matches!(t.role, Role::Layer(layer, _) if layer as usize >= layers));
            Rc::new(spec)
        };
        Rc::clone(self.cut.borrow_mut().entry(layers).or_insert_with(make))
    }

    fn stages(&self, groups: &[Rc<Group>], counts: &[u32], chunk_tokens: u32) -> Vec<StageShares> {
        let stage = |(group, &layers): (&Rc<Group>, &u32)| StageShares {
            layers,
            ranks: group.shares.clone(),
            sums: self.sums(group, groups.len(), chunk_tokens),
        };
        groups.iter().zip(counts).map(stage).collect()
    }

    /// The all-reduces that are cheapest for this group.
    fn sums(&self, group: &Group, stages: usize, chunk_tokens: u32) -> Sums {
        let nodes: Vec<NodeId> = group.shares.iter().map(|share| share.node).collect();
        let row = wire_row(self.wire.sum, self.model.d_model);
        let of = |rows: f64| cheapest(&nodes, &self.cluster.links, rows * row).0;
        Sums { decode: of((self.rows / stages as f64).ceil()), prefill: of(chunk_tokens.into()) }
    }
}

/// Takes from the largest what the empty ones lack.
fn at_least_one(mut counts: Vec<u32>) -> Vec<u32> {
    while let (Some(empty), Some(largest)) = (
        counts.iter().position(|&count| count == 0),
        (0..counts.len()).max_by_key(|&at| counts[at]).filter(|&at| counts[at] > 1),
    ) {
        counts[largest] -= 1;
        counts[empty] += 1;
    }
    counts
}

/// The lower score, or where nothing fits the lesser lack. Nothing known is worst.
pub(super) fn better(a: Result<Found, Lack>, b: Result<Found, Lack>) -> Result<Found, Lack> {
    let total = |lack: &Lack| lack.iter().map(|missing| missing.bytes.0).sum::<u64>();
    let b_wins = match (&a, &b) {
        (Ok(a), Ok(b)) => b.score < a.score,
        (Ok(_), Err(_)) => false,
        (Err(_), Ok(_)) => true,
        (Err(a), Err(b)) => !b.is_empty() && (a.is_empty() || total(b) < total(a)),
    };
    if b_wins { b } else { a }
}
