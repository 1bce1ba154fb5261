//! A dropped shard's memory goes back to the system. A process of its own, since it looks at the whole of it.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use shoal_core::frame::WireType;
use shoal_core::ids::{Epoch, NodeId};
use shoal_core::limits::CHUNK_TOKENS;
use shoal_core::model::shapes::{FileType, Shape};
use shoal_core::plan::{HeadShare, KvBudget, Plan, PlanParts, Span, Stage, Strategy, Wire};
use shoal_engine::gguf::Gguf;
use shoal_engine::model::{self, FileSource, Shard};
use shoal_engine::pool::Pool;
use shoal_engine::synth;

/// What may stay: allocator's leftovers, not weights (62 MB).
const LEFT: u64 = 8 << 20;

#[test]
fn an_idle_worker_holds_none_of_the_last_shard() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    let shape = Shape::from_name("small").unwrap();
    let file = std::fs::File::create(&path).unwrap();
    synth::write(shape, FileType::from_name("Q8_0").unwrap(), 0, file, |_, _| {}).unwrap();
    let spec = model::spec(&Gguf::open(&path).unwrap(), "small").unwrap();
    let source = FileSource::open(&path).unwrap();
    let node = NodeId([1; 16]);
    let all = |n| Span::new(0, n);
    let ranks = [(node, all(spec.n_heads), all(spec.ffn))];
    let stage = Stage::from_spans(all(spec.n_layers), &ranks, &spec);
    let plan = PlanParts {
        epoch: Epoch::default(),
        strategy: Strategy::Single,
        stages: vec![stage],
        head: vec![HeadShare { node, rows: all(spec.vocab) }],
        chunk_tokens: CHUNK_TOKENS,
        wire: Wire { hop: WireType::F32, sum: WireType::F16 },
        kv: KvBudget { context: 64, sequences: 1 },
    };
    let plan = Plan::try_new(plan, &spec).unwrap();
    // Small things that outlive a job, as connections and logs do, lie between its blocks.
    let mut survivors = Vec::new();
    let before = resident();
    for _ in 0..3 {
        let mut progress = |_, _| survivors.push(vec![1_u8; 4 << 10]);
        let shard =
            Shard::load(&spec, &plan, node, &source, Arc::new(Pool::new(1).unwrap()), &mut progress).unwrap();
        let held = resident() - before;
        assert!(held + LEFT > shard.resident().weights.0, "{held} bytes hold {:?}", shard.resident());
    }
    let survived = survivors.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
    let left = resident().saturating_sub(before + survived);
    assert!(left < LEFT, "{left} bytes are still resident after the shard was dropped");
}

/// Anonymous memory of this process: the table's mapped pages are the file's.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
