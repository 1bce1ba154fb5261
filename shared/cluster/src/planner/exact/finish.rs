//! From stages to a plan: shares, sums, the output head, and the chunk of prefill.

use shoal_core::plan::{Strategy, Sums};
use shoal_core::{Plan, limits, shard};

use super::groups::members;
use super::search::Found;
use super::stages::Stages;
use crate::cost::link::cheapest;
use crate::cost::model::wire_row;
use crate::cost::prefill;
use crate::planner::build::{Arrangement, RankShare, StageShares, plan_from_shares};
use crate::planner::problem::Problem;

/// Chunks of prefill, the largest first: of equal ones, that is taken.
const CHUNKS: [u32; 7] = [512, 256, 128, 64, 32, 16, 8];

/// Chunks for whose buffers plans are searched: the first with which any plan fits.
pub(super) const SEARCHED: [u32; 3] = [64, 16, 8];

/// Whether a step of so many rows is within what is sent at once.
pub(super) fn legal(problem: &Problem<'_>, chunk: u32) -> bool {
    u64::from(chunk) * u64::from(problem.spec.d_model) * 4 <= limits::ACTIVATION_BYTES
}

/// The plan with these stages, with the chunk that is predicted to answer a typical prompt first among those
/// that fit, `searched` or another.
pub(super) fn plan(stages: &Stages<'_>, found: &Found, searched: u32, strategy: Strategy) -> Option<Plan> {
    let problem = stages.problem;
    let mut arrangement = arrange(stages, found, searched, strategy)?;
    let mut best: Option<(f64, Plan)> = None;
    let searched = std::iter::once(searched).filter(|chunk| !CHUNKS.contains(chunk));
    for chunk in CHUNKS.into_iter().filter(|&chunk| legal(problem, chunk)).chain(searched) {
        arrangement.chunk_tokens = chunk;
        let bytes = f64::from(chunk) * wire_row(problem.wire.sum, problem.model.d_model);
        for stage in &mut arrangement.stages {
            let nodes: Vec<_> = stage.ranks.iter().map(|rank| rank.node).collect();
            stage.sums.prefill = cheapest(&nodes, &problem.cluster.links, bytes).0;
        }
        let Ok(plan) = plan_from_shares(problem.spec, &arrangement) else { continue };
        let fits = problem
            .devices
            .iter()
            .all(|device| shard::footprint(&plan, problem.spec, device.node).total() <= device.usable);
        if !fits {
            continue;
        }
        let Ok(priced) = prefill(&plan, problem.spec, problem.cluster, problem.workload.prompt_len) else {
            continue;
        };
        if best.as_ref().is_none_or(|best| priced.ttft_ms < best.0) {
            best = Some((priced.ttft_ms, plan));
        }
    }
    best.map(|best| best.1)
}

fn arrange(stages: &Stages<'_>, found: &Found, chunk: u32, strategy: Strategy) -> Option<Arrangement> {
    let problem = stages.problem;
    let mut out = Vec::with_capacity(found.stages.len());
    for &(set, first, end) in &found.stages {
        let shares = stages.shares(found.mode, (set, first, end))?;
        let members = members(set);
        let nodes: Vec<_> = members.iter().map(|&device| problem.devices[device].node).collect();
        let how = cheapest(&nodes, &problem.cluster.links, stages.step.sum_bytes).0;
        let ranks = nodes.iter().zip(&shares.heads).zip(&shares.blocks);
        out.push(StageShares {
            layers: (end - first) as u32,
            ranks: ranks
                .map(|((&node, heads), &ffn_blocks)| RankShare {
                    node,
                    q_heads: heads.1 - heads.0,
                    ffn_blocks,
                })
                .collect(),
            sums: Sums::all(how),
        });
    }
    let last = members(found.stages.last()?.0);
    let head = problem.head(stages.modes[found.mode].mode, &last, &stages.step)?;
    Some(Arrangement {
        strategy,
        stages: out,
        head: head.tiles.iter().map(|&(device, tiles)| (problem.devices[device].node, tiles)).collect(),
        chunk_tokens: chunk,
        wire: problem.wire,
        kv: problem.kv,
        epoch: problem.epoch,
    })
}
