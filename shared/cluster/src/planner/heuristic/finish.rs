//! From a layout to a plan that fits: what the straight lines say is laid out and weighed as any plan is.

use shoal_core::plan::{Plan, Strategy, Sums};
use shoal_core::shard;

use super::super::build::{Arrangement, RankShare, StageShares, plan_from_shares};
use super::arrange::{Layout, Table, UNFIT};
use super::deck::Deck;
use super::legal_chunks;
use crate::cost::link::cheapest;
use crate::cost::model::wire_row;
use crate::cost::predict::{Pricing, mean_context};
use crate::cost::{Objective, Workload};

/// Rounds in which devices that hold too much are given less.
const ROUNDS: usize = 12;

/// The best plan of these groups, and its price: seconds per token of one stream or over all streams.
pub(super) fn finish(table: &Table<'_, '_>, groups: &[Vec<u16>], strategy: Strategy) -> Option<(Plan, f64)> {
    let deck = table.deck;
    let mut spare = vec![0.0; deck.nodes.len()];
    let mut layout = table.layout(groups, None)?;
    for _ in 0..ROUNDS {
        if layout.score >= UNFIT {
            return None;
        }
        let plan = plan(deck, &layout, strategy)?;
        let mut over = false;
        for &node in plan.nodes() {
            let at = deck.nodes.binary_search(&node).ok()?;
            let need = shard::footprint(&plan, deck.spec, node).total().0 as f64;
            if need > deck.usable[at] {
                over = true;
                // A little more than is missing, since whole units do not shrink evenly.
                spare[at] += (need - deck.usable[at]) * 1.05 + 1024.0;
            }
        }
        if !over {
            if !deck.pins.kept(&plan) {
                return None;
            }
            let plan = larger_chunk(deck, plan);
            let price = price(deck, &plan);
            return Some((plan, price));
        }
        layout = table.layout(groups, Some(&spare))?;
    }
    None
}

/// The same plan with the largest chunk of prefill that fits.
fn larger_chunk(deck: &Deck<'_>, plan: Plan) -> Plan {
    let row = wire_row(deck.wire.sum, deck.model.d_model);
    for chunk_tokens in legal_chunks(deck.spec).filter(|&chunk| chunk > plan.chunk_tokens) {
        let mut parts = plan.parts().clone();
        parts.chunk_tokens = chunk_tokens;
        for stage in &mut parts.stages {
            let nodes: Vec<_> = stage.ranks.iter().map(|share| share.node).collect();
            stage.sums.prefill = cheapest(&nodes, &deck.cluster.links, f64::from(chunk_tokens) * row).0;
        }
        let Ok(larger) = Plan::try_new(parts, deck.spec) else { continue };
        let fits = larger.nodes().iter().all(|&node| {
            let usable = deck.nodes.binary_search(&node).map_or(0.0, |at| deck.usable[at]);
            shard::footprint(&larger, deck.spec, node).total().0 as f64 <= usable
        });
        if fits {
            return larger;
        }
    }
    plan
}

/// What the plan costs by the deck's objective.
pub(super) fn price(deck: &Deck<'_>, plan: &Plan) -> f64 {
    let pricing = Pricing { model: &deck.model, rates: &deck.rates, links: &deck.cluster.links };
    let objective = match deck.objective {
        Objective::Latency => Objective::Latency,
        Objective::Throughput | Objective::Energy => Objective::Throughput,
    };
    let workload = Workload { objective: Some(objective), ..*deck.workload };
    pricing.score(plan, &workload, mean_context(deck.spec, deck.workload), 0.0)
}

fn plan(deck: &Deck<'_>, layout: &Layout, strategy: Strategy) -> Option<Plan> {
    let rows = f64::from(deck.rows(layout.groups.len()));
    let row = wire_row(deck.wire.sum, deck.model.d_model);
    let node = |device: u16| deck.nodes[usize::from(device)];
    let mut stages = Vec::with_capacity(layout.groups.len());
    for (group, &layers) in layout.groups.iter().zip(&layout.layers) {
        let step = group.step(layers)?;
        let nodes: Vec<_> = group.devices.iter().map(|&device| node(device)).collect();
        let how = |rows: f64| cheapest(&nodes, &deck.cluster.links, rows * row).0;
        let shares = nodes.iter().zip(&step.q_heads).zip(&step.blocks);
        let ranks = shares.map(|((&node, &q_heads), &ffn_blocks)| RankShare { node, q_heads, ffn_blocks });
        stages.push(StageShares {
            layers: layers as u32,
            ranks: ranks.collect(),
            sums: Sums { decode: how(rows), prefill: how(deck.chunk_tokens.into()) },
        });
    }
    let arrangement = Arrangement {
        strategy,
        stages,
        head: layout.head.iter().map(|&(device, tiles)| (node(device), tiles)).collect(),
        chunk_tokens: deck.chunk_tokens,
        wire: deck.wire,
        kv: deck.kv,
        epoch: deck.epoch,
    };
    plan_from_shares(deck.spec, &arrangement).ok()
}
