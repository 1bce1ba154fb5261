//! A sequence's results depend on its tokens and the plan alone (the design's invariant 1).

use std::sync::Arc;

use shoal_core::head::HeadRequest;
use shoal_core::ids::{SeqId, StepId};
use shoal_core::message::HeadRow;
use shoal_engine::model::{Batch, Shard, Solo};
use shoal_engine::pool::Pool;

use crate::support::{Cluster, Layout, Model, assert_same_bits, node_id, run};

/// 150 tokens with many repetitions and few, over several pages.
fn tokens(first: u32) -> Vec<u32> {
    (0..150).map(|i| (first + i * i * 37 % 1931) % 2048).collect()
}

fn layouts() -> [Layout; 2] {
    [Layout::single(), Layout::new(&[(1, &[(5, 1), (3, 2)]), (1, &[(1, 1)])], &[1, 1, 1])]
}

#[test]
fn chunks_and_threads_change_no_bit() {
    for model in Model::all() {
        for layout in layouts() {
            let expected = Cluster::new(&model, &layout, 1).prefill(0, &tokens(5), 512);
            for (threads, chunk) in [(1, 1), (1, 7), (2, 64), (3, 7), (3, 512)] {
                let logits = Cluster::new(&model, &layout, threads).prefill(0, &tokens(5), chunk);
                let what = format!("{} with {threads} threads in chunks of {chunk}", model.kind);
                assert_same_bits(&logits, &expected, &what);
            }
        }
    }
}

#[test]
fn other_sequences_change_no_bit() {
    for model in Model::all() {
        for layout in layouts() {
            let mut alone = Cluster::new(&model, &layout, 1);
            let mut among = Cluster::new(&model, &layout, 2);
            let all: Vec<Vec<u32>> = (0..5).map(|i| tokens(100 * i)).collect();
            // Sequences of different lengths, a chunk of one beside single tokens of others.
            for step in 0..30_usize {
                let part = |seq: usize| {
                    let (from, to) = (step * (seq + 1), (step + 1) * (seq + 1));
                    run(seq as u64, from, &all[seq][from..to])
                };
                let runs: Vec<_> = (0..5).filter(|seq| (step + seq) % 4 != 9).map(part).collect();
                let together = among.logits(&runs);
                let single = alone.logits(&runs[2..3]).remove(0);
                assert_same_bits(&together[2], &single, &format!("{} step {step}", model.kind));
            }
        }
    }
}

#[test]
fn a_replay_after_release_or_cut_changes_no_bit() {
    let Some(model) = Model::stories("Q8_0") else { return };
    for layout in layouts() {
        let mut cluster = Cluster::new(&model, &layout, 1);
        let tokens = tokens(9);
        let expected = cluster.prefill(1, &tokens, 512);
        cluster.release(1);
        assert_same_bits(&cluster.prefill(1, &tokens, 64), &expected, "released");
        for shard in cluster.shards.values_mut() {
            if shard.len(SeqId(1)) > 0 {
                shard.truncate(SeqId(1), 77).unwrap();
            }
        }
        let again = cluster.logits(&[run(1, 77, &tokens[77..])]).remove(0);
        assert_same_bits(&again, &expected, "cut to 77 positions");
    }
}

#[test]
fn a_shared_prefix_is_the_same_and_stays_apart() {
    let Some(model) = Model::stories("Q8_0") else { return };
    let (prompt, other) = (tokens(9), tokens(700));
    for layout in layouts() {
        let mut cluster = Cluster::new(&model, &layout, 1);
        let expected = cluster.prefill(1, &prompt, 512);
        let mixed: Vec<u32> = prompt[..70].iter().chain(&other[..20]).copied().collect();
        let expected_mixed = cluster.prefill(2, &mixed, 512);
        let before = cluster.shards.values().map(|shard| shard.resident().kv).max();
        for shard in cluster.shards.values_mut().filter(|shard| shard.len(SeqId(1)) > 0) {
            shard.share(SeqId(1), SeqId(3), 70).unwrap();
        }
        assert_eq!(cluster.shards.values().map(|shard| shard.resident().kv).max(), before);
        let logits = cluster.logits(&[run(3, 70, &other[..20])]).remove(0);
        assert_same_bits(&logits, &expected_mixed, "continued from a shared prefix");
        // The first sequence is not disturbed, whoever goes first.
        for shard in cluster.shards.values_mut().filter(|shard| shard.len(SeqId(1)) > 0) {
            shard.truncate(SeqId(1), 75).unwrap();
        }
        cluster.release(3);
        let logits = cluster.logits(&[run(1, 75, &prompt[75..])]).remove(0);
        assert_same_bits(&logits, &expected, "after the other was released");
    }
}

#[test]
fn layers_in_parts_with_the_head_between_give_the_same_bits() {
    for model in Model::all() {
        let plan = Layout::single().plan(&model.spec);
        let load = || {
            let pool = Arc::new(Pool::new(2).unwrap());
            Shard::load(&model.spec, &plan, node_id(0), &model.source, pool, &mut |_, _| {}).unwrap()
        };
        let (mut whole, mut parts) = (load(), load());
        for (at, chunk) in tokens(9).chunks(40).enumerate() {
            let batch = Batch::of(&[run(1, at * 40, chunk)]).unwrap();
            whole.embed(chunk).unwrap();
            whole.run_layers(&batch, &mut Solo).unwrap();
            parts.embed(chunk).unwrap();
            for layer in 0..parts.layers() {
                parts.run_some(layer..layer + 1, &batch, &mut Solo).unwrap();
                let row = HeadRow { row: 0, request: HeadRequest::greedy() };
                let step = StepId((at * parts.layers() + layer + 1) as u64);
                let other = vec![0.25; model.spec.d_model as usize];
                assert_eq!(parts.head(step, &other, &[row]).unwrap().len(), 1);
                parts.settle(step);
            }
            assert_same_bits(parts.hidden(), whole.hidden(), &format!("{} chunk {at}", model.kind));
            assert_eq!(parts.len(SeqId(1)), whole.len(SeqId(1)));
        }
    }
}
