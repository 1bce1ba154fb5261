//! Steps, files and groups that cannot be run: an error each, no panic, nothing lost.

use std::sync::Arc;

use shoal_core::ids::SeqId;
use shoal_core::plan::{Plan, PlanParts};
use shoal_engine::gguf::{Gguf, GgufWriter, Metadata, TensorInfo, Value};
use shoal_engine::model::{
    self, Batch, BatchError, ForwardError, Group, GroupError, KvError, LoadError, LocalGroup, MemorySource,
    ReducePhase, RowRun, Shard, Solo, SpecError,
};
use shoal_engine::pool::Pool;

use crate::support::{Cluster, Layout, Model, assert_same_bits, node_id, run};

fn model() -> Model {
    Model::stories("Q8_0").unwrap()
}

fn shard(model: &Model, layout: &Layout) -> Shard {
    load(model, &layout.plan(&model.spec), &model.source).unwrap()
}

fn load(model: &Model, plan: &Plan, source: &dyn model::WeightSource) -> Result<Shard, LoadError> {
    Shard::load(&model.spec, plan, node_id(0), source, Arc::new(Pool::new(1).unwrap()), &mut |_, _| {})
}

fn step(shard: &mut Shard, seq: u64, first: usize, tokens: &[u32]) -> Result<Vec<f32>, ForwardError> {
    let batch = Batch::of(&[run(seq, first, tokens)])?;
    shard.embed(tokens)?;
    shard.run_layers(&batch, &mut Solo)?;
    Ok(shard.hidden().to_vec())
}

#[test]
fn a_step_that_cannot_run_changes_nothing() {
    let model = model();
    let mut clean = shard(&model, &Layout::single());
    let mut shard = shard(&model, &Layout { sequences: 1, ..Layout::single() });
    let prompt = &model.cases()[0].prompt;
    step(&mut clean, 1, 0, prompt).unwrap();
    step(&mut shard, 1, 0, prompt).unwrap();
    let held = prompt.len();

    let result = step(&mut shard, 1, held, &[5, 2048]);
    assert!(matches!(result, Err(ForwardError::Token { token: 2048, vocab: 2048 })));
    for first in [0, held - 1, held + 1] {
        let result = step(&mut shard, 1, first, &[5]);
        assert!(matches!(result, Err(ForwardError::Kv(KvError::Position { .. }))), "{first}");
    }
    let long = vec![1; 512];
    let result = step(&mut shard, 1, held, &long);
    assert!(
        matches!(result, Err(ForwardError::Kv(KvError::Context { end, context: 512, .. })) if end == 526)
    );
    assert!(matches!(
        step(&mut shard, 1, held, &vec![1; 513]),
        Err(ForwardError::Rows { rows: 513, most: 512 })
    ));
    assert!(matches!(step(&mut shard, 2, 0, &long), Err(ForwardError::Kv(KvError::Full { .. }))));
    shard.embed(&[1, 2]).unwrap();
    let batch = Batch::of(&[run(1, held, &[1, 2, 3])]).unwrap();
    assert!(matches!(shard.run_layers(&batch, &mut Solo), Err(ForwardError::Hidden { rows: 3, .. })));
    assert!(matches!(shard.truncate(SeqId(1), 15), Err(ForwardError::Kv(KvError::Cut { held: 14, .. }))));
    assert!(matches!(shard.set_hidden(&[0.0; 255]), Err(ForwardError::Hidden { .. })));
    let mut hidden = vec![0.5; 512];
    hidden[300] = f32::INFINITY;
    assert!(matches!(shard.set_hidden(&hidden), Err(ForwardError::NonFinite { row: 1, .. })));

    let result = step(&mut shard, 1, held, &[7]).unwrap();
    assert_same_bits(&result, &step(&mut clean, 1, held, &[7]).unwrap(), "after all refusals");
}

#[test]
fn a_full_cache_has_room_again_after_a_release() {
    let model = model();
    let mut shard = shard(&model, &Layout { sequences: 1, ..Layout::single() });
    step(&mut shard, 1, 0, &[1; 300]).unwrap();
    assert!(matches!(step(&mut shard, 2, 0, &[2; 200]), Err(ForwardError::Kv(KvError::Full { .. }))));
    step(&mut shard, 2, 0, &[2; 190]).unwrap();
    assert!(matches!(step(&mut shard, 2, 190, &[2; 3]), Err(ForwardError::Kv(KvError::Full { .. }))));
    shard.release(SeqId(1));
    step(&mut shard, 2, 190, &[2; 3]).unwrap();
    assert_eq!((shard.len(SeqId(1)), shard.len(SeqId(2))), (0, 193));
}

#[test]
fn batches_are_checked() {
    assert_eq!(Batch::new(vec![]), Err(BatchError::Empty));
    assert_eq!(Batch::of(&[run(1, 0, &[])]), Err(BatchError::Empty));
    assert_eq!(
        Batch::of(&[run(1, 0, &[1]), run(2, 0, &[1]), run(1, 1, &[1])]),
        Err(BatchError::Twice(SeqId(1)))
    );
    let over = RowRun { seq: SeqId(3), first_position: u32::MAX, rows: 1 };
    assert_eq!(Batch::new(vec![over]), Err(BatchError::Positions(SeqId(3))));
}

/// A group that is lost at one of its sums.
struct Lost {
    after: usize,
}

impl Group for Lost {
    fn all_reduce(&mut self, _: u32, _: ReducePhase, _: &mut [f32], _: usize) -> Result<(), GroupError> {
        self.after = self.after.checked_sub(1).ok_or("rank 2 is gone")?;
        Ok(())
    }
}

#[test]
fn a_lost_group_ends_the_step_and_only_that() {
    let model = model();
    let mut shard = shard(&model, &Layout::single());
    let expected = step(&mut shard, 1, 0, &[1, 2, 3]).unwrap();
    let batch = Batch::of(&[run(2, 0, &[1, 2, 3])]).unwrap();
    for after in 0..12 {
        shard.embed(&[1, 2, 3]).unwrap();
        let result = shard.run_layers(&batch, &mut Lost { after });
        let Err(ForwardError::Group { layer, source, .. }) = result else { panic!("{result:?}") };
        assert_eq!((layer as usize, source.to_string().as_str()), (after / 2, "rank 2 is gone"));
        assert_eq!(shard.len(SeqId(2)), 0);
    }
    assert_same_bits(&step(&mut shard, 2, 0, &[1, 2, 3]).unwrap(), &expected, "after lost groups");
}

#[test]
fn a_rank_that_ends_does_not_hold_up_the_others() {
    let model = model();
    let layout = Layout::new(&[(1, &[(1, 1), (1, 1)])], &[1, 1]);
    let mut members = LocalGroup::of_stage(&layout.plan(&model.spec), 0);
    drop(members.pop());
    let mut shard = shard(&model, &layout);
    shard.embed(&[1]).unwrap();
    let batch = Batch::of(&[run(1, 0, &[1])]).unwrap();
    let result = shard.run_layers(&batch, &mut members[0]);
    assert!(matches!(result, Err(ForwardError::Group { layer: 0, .. })), "{result:?}");
}

fn stories_bytes() -> Vec<u8> {
    std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/stories-Q8_0.gguf")).unwrap()
}

#[test]
fn weights_that_are_no_numbers_end_the_step_by_name() {
    let model = model();
    let plan = Layout::single().plan(&model.spec);
    for (name, layers) in [("blk.3.ffn_down.weight", true), ("token_embd.weight", false)] {
        let mut bytes = stories_bytes();
        let gguf = Gguf::parse(&bytes[..], bytes.len() as u64).unwrap();
        // The scale of a block in the last row: of the table that is a row no token here looks up.
        let tensor = gguf.tensor(name).unwrap();
        let block = (tensor.offset + tensor.bytes - 34) as usize;
        bytes[block..block + 2].copy_from_slice(&[0x00, 0x7e]);
        let mut shard = load(&model, &plan, &MemorySource(&bytes)).unwrap();
        let result = step(&mut shard, 1, 0, &[1, 2]);
        assert_eq!(matches!(result, Err(ForwardError::NonFinite { .. })), layers, "{result:?}");
        if !layers {
            let mut cluster = Cluster::of(&model.spec, plan.clone(), &MemorySource(&bytes), 1);
            let hidden = cluster.forward(&[run(1, 0, &[1])]);
            let rows =
                [shoal_core::message::HeadRow { row: 0, request: shoal_core::head::HeadRequest::greedy() }];
            let result = shard.head(shoal_core::StepId(1), &hidden, &rows);
            assert_eq!(result, Err(model::HeadError::NonFinite { row: 0, what: "logits" }));
        }
    }
}

#[test]
fn a_shard_that_cannot_be_loaded_says_why() {
    let model = model();
    let bytes = stories_bytes();
    let plan = Layout::new(&[(1, &[(5, 1), (3, 1)])], &[1, 1]).plan(&model.spec);
    let last = model.spec.tensors.iter().max_by_key(|tensor| tensor.offset).unwrap();
    let short = &bytes[..(last.offset + last.bytes().0 - 1) as usize];
    let result = load(&model, &Layout::single().plan(&model.spec), &MemorySource(short));
    let named = |name: &str| name == last.role.tensor_name();
    assert!(matches!(&result, Err(LoadError::Read { name, .. }) if named(name)), "{result:?}");
    let pool = Arc::new(Pool::new(1).unwrap());
    let stranger = Shard::load(&model.spec, &plan, node_id(9), &model.source, pool, &mut |_, _| {});
    assert!(matches!(stranger, Err(LoadError::Node(node)) if node == node_id(9)));

    let mut small = stories_bytes();
    small.truncate(4096);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &small).unwrap();
    let source = model::FileSource::open(file.path()).unwrap();
    let result = load(&model, &Layout::single().plan(&model.spec), &source);
    assert!(matches!(result, Err(LoadError::Read { .. })), "{result:?}");
}

#[test]
fn verbs_that_a_node_has_no_part_in_are_refused() {
    let model = model();
    let mut second = Layout::layers(&[3, 3]).parts(&model.spec);
    second.stages.swap(0, 1);
    let (first, last) = (second.stages[1].layers, second.stages[0].layers);
    (second.stages[0].layers, second.stages[1].layers) = (first, last);
    let plan = Plan::try_new(PlanParts { ..second }, &model.spec).unwrap();
    // Node 0 now runs the second stage: it has the head, and no table.
    let mut shard = load(&model, &plan, &model.source).unwrap();
    assert!(matches!(shard.embed(&[1]), Err(ForwardError::NoTable)));

    let mut parts = Layout::new(&[(1, &[(1, 1)])], &[0, 1]).parts(&model.spec);
    parts.stages[0].ranks[0].node = node_id(2);
    let plan = Plan::try_new(parts, &model.spec).unwrap();
    let mut shard = load(&model, &plan, &model.source).unwrap();
    assert!(matches!(shard.embed(&[1]), Err(ForwardError::NoLayers)));
    assert!(shard.hidden().is_empty());
}

/// The stories file's header with changes; tensors have no data.
fn spec_of(
    change: impl FnOnce(&mut Metadata),
    keep: impl Fn(&TensorInfo) -> bool,
    extra: Option<(&str, &[u64])>,
) -> Result<shoal_core::ModelSpec, SpecError> {
    let bytes = stories_bytes();
    let gguf = Gguf::parse(&bytes[..], bytes.len() as u64).unwrap();
    let mut writer = GgufWriter::new();
    writer.metadata = gguf.metadata.clone();
    change(&mut writer.metadata);
    for tensor in gguf.tensors().iter().filter(|tensor| keep(tensor)) {
        writer.tensor(&tensor.name, &tensor.dims, tensor.kind).unwrap();
    }
    if let Some((name, dims)) = extra {
        writer.tensor(name, dims, shoal_core::QuantType::F32).unwrap();
    }
    let mut file = Vec::new();
    writer.write(&mut file, |info, out| out.write_all(&vec![0; info.bytes as usize])).unwrap();
    model::spec(&Gguf::parse(&file[..], file.len() as u64).unwrap(), "fallback")
}

fn with(key: &'static str, value: Value) -> Result<shoal_core::ModelSpec, SpecError> {
    spec_of(|metadata| drop(metadata.set(key, value)), |_| true, None)
}

#[test]
fn files_that_are_no_model_for_us_are_refused_by_name() {
    let message = |result: Result<_, SpecError>| result.map(|_| ()).unwrap_err().to_string();
    let text = |text: &str| Value::String(text.to_owned());
    let unknown = message(with("general.architecture", text("gpt-neox")));
    assert!(unknown.contains("gpt-neox") && unknown.contains("llama, qwen2, qwen3"), "{unknown}");
    for (key, value, named) in [
        ("llama.rope.scaling.type", text("longrope"), "llama.rope.scaling.type is \"longrope\""),
        ("llama.attention.value_length", Value::U32(16), "llama.attention.value_length"),
        ("llama.expert_count", Value::U32(8), "llama.expert_count is 8"),
        ("llama.attention.scale", Value::F32(0.5), "llama.attention.scale is 0.5"),
        ("llama.block_count", Value::F32(6.0), "llama.block_count"),
        ("llama.block_count", Value::U32(7), "blk.6.attn_norm.weight"),
        ("llama.block_count", Value::U32(5), "blk.5"),
        ("llama.attention.head_count_kv", Value::U32(3), "KV heads"),
        ("llama.attention.head_count_kv", Value::U32(8), "attn_k.weight"),
        ("llama.embedding_length", Value::U32(128), "token_embd.weight"),
        ("llama.embedding_length", Value::U32(0), "0"),
        ("llama.rope.scaling.factor", Value::F32(-2.0), "llama.rope.scaling.factor is -2"),
        ("llama.rope.dimension_count", Value::U32(33), "rotated part"),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN), "epsilon is NaN"),
        ("llama.rope.freq_base", Value::F32(-1.0), "the rotation's base is -1"),
    ] {
        let message = message(with(key, value.clone()));
        assert!(message.contains(named), "{key} = {value:?}: {message}");
    }
    let uneven = shoal_engine::gguf::Array::I32(vec![4, 4, 2, 4, 4, 4]);
    let uneven = message(with("llama.attention.head_count_kv", Value::Array(uneven)));
    assert!(uneven.contains("llama.attention.head_count_kv"), "{uneven}");
    for name in ["blk.0.attn_output.bias", "blk.0.ffn_gate_exps.weight", "blk.0.attn_q_norm.weight", "what"] {
        let message = message(spec_of(|_| {}, |_| true, Some((name, &[32]))));
        assert!(message.contains(&format!("does not know tensor {name}")), "{message}");
    }
    for name in ["token_embd.weight", "blk.2.ffn_up.weight"] {
        let missing = message(spec_of(|_| {}, |tensor| tensor.name != name, None));
        assert!(missing.contains(&format!("{name} is missing")), "{missing}");
    }
}

#[test]
fn what_files_may_say_in_several_ways_is_read() {
    let even = shoal_engine::gguf::Array::I32(vec![4; 6]);
    let spec = with("llama.attention.head_count_kv", Value::Array(even)).unwrap();
    assert_eq!((spec.n_kv_heads, spec.head_dim, spec.context, spec.vocab), (4, 32, 512, 2048));
    let biased = spec_of(|_| {}, |_| true, Some(("blk.1.attn_q.bias", &[256]))).unwrap();
    assert_eq!(biased.tensors.len(), spec.tensors.len() + 1);
    let redundant = spec_of(|_| {}, |_| true, Some(("blk.1.attn_rot_embd", &[16]))).unwrap();
    assert_eq!(redundant.tensors.len(), spec.tensors.len());
}
