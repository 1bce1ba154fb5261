//! The all-reduce over real data planes on the loopback: every way, every format, 2 to 5 ranks, equal
//! to the engine's group of threads and to each other, bit for bit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_core::frame::{Class, Header, Phase, WireType};
use shoal_core::ids::{Epoch, StepId, Term};
use shoal_core::plan::{
    AllReduce, HeadShare, KvBudget, Place, Plan, PlanParts, Share, Span, Stage, Strategy, Sums, Wire,
};
use shoal_core::{ModelSpec, NodeId};
use shoal_engine::model::{Group, LocalGroup, ReducePhase};
use shoal_net::data::DataPeer;
use shoal_net::{Authority, DataPlane, Identity};
use worker::runtime::NetGroup;

const WAYS: [AllReduce; 3] = [AllReduce::Direct, AllReduce::ReduceScatter, AllReduce::Star];
const COLS: usize = 96;

/// Planes of one authority, in the order of their ids, each knowing the others.
fn planes(n: usize) -> Vec<(NodeId, Arc<DataPlane>)> {
    let dir = tempfile::tempdir().expect("folder");
    let authority = Authority::load_or_create(dir.path()).expect("authority");
    let start = |_| {
        let identity = Identity::ephemeral().expect("identity");
        let membership = authority.admit(identity.public()).expect("membership");
        let credentials = membership.credentials(&identity).expect("credentials");
        let plane = DataPlane::start("127.0.0.1:0".parse().expect("address"), &credentials).expect("plane");
        (identity.node(), Arc::new(plane))
    };
    (0..n).map(start).collect()
}

fn connect(planes: &[(NodeId, Arc<DataPlane>)], epoch: Epoch) {
    let peer = |(node, plane): &(NodeId, Arc<DataPlane>)| DataPeer {
        node: *node,
        addresses: vec![plane.local_address()],
    };
    let peers: Vec<DataPeer> = planes.iter().map(peer).collect();
    for (_, plane) in planes {
        plane.set_peers(epoch, &peers, 1 << 20).expect("peers");
    }
    for (_, plane) in planes {
        plane.wait_connected(Instant::now() + Duration::from_secs(10)).expect("connected");
    }
}

/// One stage of all nodes over the small model's heads; with `idle`, the last rank has no attention and
/// the first no feed-forward columns.
fn plan(spec: &ModelSpec, nodes: &[NodeId], epoch: Epoch, way: AllReduce, sum: WireType, idle: bool) -> Plan {
    let n = nodes.len() as u32;
    let block = spec.ffn_block();
    let heads = |rank: u32| {
        let ranks = if idle { n - 1 } else { n };
        let border = |rank: u32| spec.n_heads * rank.min(ranks) / ranks;
        Span::new(border(rank), border(rank + 1))
    };
    let columns = |rank: u32| {
        let (ranks, rank) = if idle { (n - 1, rank.checked_sub(1)) } else { (n, Some(rank)) };
        let Some(rank) = rank else { return Span::new(0, 0) };
        let border = |rank: u32| (spec.ffn / block * rank / ranks * block).min(spec.ffn);
        Span::new(border(rank), if rank + 1 == ranks { spec.ffn } else { border(rank + 1) })
    };
    let mut owned = 0;
    let share = |(rank, &node): (usize, &NodeId)| {
        let (q_heads, group) = (heads(rank as u32), spec.group_size());
        let kv_heads = if q_heads.is_empty() {
            Span::new(owned, owned)
        } else {
            Span::new(q_heads.first / group, q_heads.end.div_ceil(group))
        };
        let kv_owned = Span::new(kv_heads.first.max(owned), kv_heads.end.max(owned));
        owned = owned.max(kv_owned.end);
        Share { node, q_heads, kv_heads, kv_owned, ffn: columns(rank as u32) }
    };
    let parts = PlanParts {
        epoch,
        strategy: Strategy::Head,
        stages: vec![Stage {
            layers: Span::new(0, spec.n_layers),
            ranks: nodes.iter().enumerate().map(share).collect(),
            sums: Sums::all(way),
        }],
        head: vec![HeadShare { node: nodes[0], rows: Span::new(0, spec.vocab) }],
        chunk_tokens: 16,
        wire: Wire { hop: WireType::F32, sum },
        kv: KvBudget { context: 64, sequences: 2 },
    };
    Plan::try_new(parts, spec).expect("plan")
}

fn partial(rank: usize, round: usize, rows: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 37 + rank * 101 + round * 13) % 211) as f32 / 17.0 - 6.0;
    (0..rows * COLS).map(|i| value(i) * 2f32.powi((i % 7) as i32 - 3)).collect()
}

/// Several sums on each rank; the sums by rank.
fn run<G: Group + Send>(
    groups: Vec<G>,
    contributes: &(dyn Fn(usize, ReducePhase) -> bool + Sync),
    begin: impl Fn(&mut G, usize) + Sync,
) -> Vec<Vec<Vec<u32>>> {
    let begin = &begin;
    std::thread::scope(|scope| {
        let ranks = groups.into_iter().enumerate().map(|(rank, mut group)| {
            scope.spawn(move || {
                let mut out = Vec::new();
                for (round, rows) in [1, 2, 5, 16, 1].into_iter().enumerate() {
                    begin(&mut group, round);
                    for layer in 0..2 {
                        for phase in [ReducePhase::Attn, ReducePhase::Ffn] {
                            let mut x = partial(rank, round + layer, rows);
                            if !contributes(rank, phase) {
                                x.fill(0.0);
                            }
                            group.all_reduce(layer as u32, phase, &mut x, rows).expect("sum");
                            out.push(x.iter().map(|value| value.to_bits()).collect());
                        }
                    }
                }
                out
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().expect("rank")).collect()
    })
}

fn spec() -> ModelSpec {
    let bytes: &[u8] = include_bytes!("../../shared/engine/tests/data/models/stories-Q8_0.gguf");
    let file = shoal_engine::gguf::Gguf::parse(bytes, bytes.len() as u64).expect("gguf");
    shoal_engine::model::spec(&file, "stories").expect("spec")
}

#[test]
fn all_ways_give_the_bits_of_the_local_group() {
    let spec = spec();
    for n in 2..=5 {
        let planes = planes(n);
        let nodes: Vec<NodeId> = planes.iter().map(|(node, _)| *node).collect();
        let mut counter = 0;
        for sum in [WireType::F32, WireType::F16, WireType::Q8] {
            for idle in [false, true] {
                let epoch = |counter| Epoch { term: Term(1), counter };
                let reference = plan(&spec, &nodes, epoch(0), AllReduce::Direct, sum, idle);
                let contributes = |rank: usize, phase: ReducePhase| {
                    phase.contributors(&reference.stages[0]).contains(&rank)
                };
                let wanted = run(LocalGroup::of_stage(&reference, 0), &contributes, |_, _| {});
                assert!(wanted.iter().all(|rank| *rank == wanted[0]));
                for way in WAYS {
                    counter += 1;
                    let plan = plan(&spec, &nodes, epoch(counter), way, sum, idle);
                    connect(&planes, epoch(counter));
                    let member = |(rank, (_, plane)): (usize, &(NodeId, Arc<DataPlane>))| {
                        NetGroup::new(&plan, Place { stage: 0, rank }, Arc::clone(plane))
                    };
                    let groups = planes.iter().enumerate().map(member).collect();
                    let begin = |group: &mut NetGroup, round: usize| {
                        group.begin(StepId(round as u64 + 1), Class::Decode)
                    };
                    let sums = run(groups, &contributes, begin);
                    assert!(sums == wanted, "{n} ranks, {way:?}, {sum:?}, idle {idle}");
                }
            }
        }
    }
}

#[test]
fn a_rank_alone_neither_encodes_nor_sends() {
    let spec = spec();
    let planes = planes(1);
    let epoch = Epoch { term: Term(1), counter: 1 };
    let plan = plan(&spec, &[planes[0].0], epoch, AllReduce::Direct, WireType::Q8, false);
    let mut group = NetGroup::new(&plan, Place { stage: 0, rank: 0 }, Arc::clone(&planes[0].1));
    let mut x = partial(0, 0, 3);
    group.all_reduce(0, ReducePhase::Attn, &mut x, 3).expect("sum");
    assert_eq!(x, partial(0, 0, 3));
}

#[test]
fn a_partial_that_is_not_finite_ends_the_sum_and_names_the_rank() {
    let spec = spec();
    let planes = planes(2);
    let epoch = Epoch { term: Term(1), counter: 1 };
    connect(&planes, epoch);
    let nodes: Vec<NodeId> = planes.iter().map(|(node, _)| *node).collect();
    let plan = plan(&spec, &nodes, epoch, AllReduce::Direct, WireType::F16, false);
    let mut group = NetGroup::new(&plan, Place { stage: 0, rank: 1 }, Arc::clone(&planes[1].1));
    let mut x = partial(1, 0, 4);
    x[2 * COLS] = f32::NAN;
    let error = group.all_reduce(0, ReducePhase::Ffn, &mut x, 4).expect_err("not finite");
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    assert!(text.contains("rank 1") && text.contains("row 2"), "{text}");
}

#[test]
fn a_block_that_is_not_the_plans_is_put_down_to_its_sender() {
    let spec = spec();
    let planes = planes(2);
    let epoch = Epoch { term: Term(1), counter: 1 };
    connect(&planes, epoch);
    let nodes: Vec<NodeId> = planes.iter().map(|(node, _)| *node).collect();
    let plan = plan(&spec, &nodes, epoch, AllReduce::Direct, WireType::F32, false);
    // Another format, another number of rows, and values that are no numbers.
    let cases = [(WireType::Q8, 2, vec![0; 2 * (COLS + 12)]), (WireType::F32, 1, vec![0; 4 * COLS])];
    let infinite = vec![0xff; 8 * COLS];
    for (round, (dtype, rows, bytes)) in cases.into_iter().chain([(WireType::F32, 2, infinite)]).enumerate() {
        let step = StepId(round as u64 + 1);
        let header = Header {
            epoch,
            step,
            stage: 0,
            rank: 1,
            layer: 0,
            phase: Phase::AttnPartial,
            dtype,
            first_row: 0,
            rows,
            first_col: 0,
            cols: COLS as u32,
            len: 0,
            block_rows: rows,
        };
        planes[1].1.send(nodes[0], Class::Decode, &header, &bytes).expect("send");
        let mut group = NetGroup::new(&plan, Place { stage: 0, rank: 0 }, Arc::clone(&planes[0].1));
        group.begin(step, Class::Decode);
        let mut x = partial(0, round, 2);
        let error = group.all_reduce(0, ReducePhase::Attn, &mut x, 2).expect_err("refused");
        assert!(error.to_string().contains(&nodes[1].to_string()), "{error}");
    }
}
