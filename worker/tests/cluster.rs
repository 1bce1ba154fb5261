//! Worker processes under a scripted coordinator, over QUIC on the loopback: joining, measuring, fetching,
//! every kind of split, failures, and coordinators that come and go.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::{Coordinator, Layout, Process, plan, spec};
use shoal_core::frame::{Class, WireType};
use shoal_core::head::{Candidate, HeadQuery, HeadRequest};
use shoal_core::ids::{Epoch, SeqId, StepId, Term};
use shoal_core::message::{Answer, Counters, HeadRow, Order, Run, StepOrder};
use shoal_core::plan::{AllReduce, Plan};
use shoal_core::units::Bytes;
use shoal_core::{NodeId, shard};
use tempfile::TempDir;

/// The reference prompt whose greedy margins are widest, and how many tokens are compared.
const PROMPT: &str = "prompt_tokens";
const TOKENS: usize = 24;

/// Prompt and greedy tokens of the independent reference, of the case with the widest margins.
fn reference() -> (Vec<u32>, Vec<u32>) {
    let text = include_str!("../../shared/engine/tests/data/models/reference/Q8_0.json");
    let json: serde_json::Value = serde_json::from_str(text).expect("json");
    let least = |case: &serde_json::Value| {
        let margins = case["greedy_margins"].as_array().expect("margins").iter().take(TOKENS);
        margins.filter_map(serde_json::Value::as_f64).fold(f64::INFINITY, f64::min)
    };
    let cases = json["cases"].as_array().expect("cases");
    let case = cases.iter().max_by(|a, b| least(a).total_cmp(&least(b))).expect("case");
    assert!(least(case) > 0.15, "a near tie would make the comparison one of rounding: {}", least(case));
    let ids = |name: &str| -> Vec<u32> {
        case[name].as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect()
    };
    (ids(PROMPT), ids("greedy_tokens")[..TOKENS].to_vec())
}

fn start(coordinator: &Coordinator, dir: &TempDir, n: usize, more: &[&str]) -> Vec<Process> {
    let token = coordinator.token_file(n as u32);
    let worker = |index: usize| {
        let args = [&["--join-file", &token, "--child"], more].concat();
        Process::start(&dir.path().join(index.to_string()), coordinator.address(), &args)
    };
    (0..n).map(worker).collect()
}

fn epoch(term: Term, counter: u32) -> Epoch {
    Epoch { term, counter }
}

fn order(plan: &Plan, step: u64, first_position: u32, tokens: &[u32], head: bool) -> StepOrder {
    let last = tokens.len() as u32 - 1;
    let head = if head {
        vec![HeadRow { row: last, request: HeadRequest { k: 4, ..HeadRequest::greedy() } }]
    } else {
        Vec::new()
    };
    StepOrder {
        epoch: plan.epoch,
        step: StepId(step),
        class: if tokens.len() > 1 { Class::Prefill } else { Class::Decode },
        runs: vec![Run { seq: SeqId(1), first_position, tokens: tokens.to_vec() }],
        head,
        release: Vec::new(),
    }
}

/// Runs a step on all nodes; the best candidate of all head ranks.
async fn step(coordinator: &mut Coordinator, plan: &Plan, order: StepOrder) -> Option<Candidate> {
    let step = order.step;
    for &node in plan.nodes() {
        coordinator.send(node, &Order::Step(Box::new(order.clone()))).await;
    }
    let mut best: Option<Candidate> = None;
    for _ in plan.nodes() {
        match coordinator.next().await {
            (_, Some(Answer::Head { step: done, rows, .. })) if done == step => {
                for candidate in rows.iter().flat_map(|row| &row.top) {
                    let better =
                        best.is_none_or(|best| (candidate.logit, best.token) > (best.logit, candidate.token));
                    best = if better { Some(*candidate) } else { best };
                }
            }
            other => panic!("step {}: {other:?}", step.0),
        }
    }
    best
}

/// Greedy tokens of the prompt under a plan that is loaded. The prompt goes in chunks.
async fn speak(coordinator: &mut Coordinator, plan: &Plan, prompt: &[u32], n: usize) -> Vec<u32> {
    let (mut number, mut position, mut next) = (0, 0, None);
    for chunk in prompt.chunks(plan.chunk_tokens as usize) {
        number += 1;
        let last = position as usize + chunk.len() == prompt.len();
        next = step(coordinator, plan, order(plan, number, position, chunk, last)).await;
        position += chunk.len() as u32;
    }
    let mut out = Vec::new();
    loop {
        out.push(next.expect("a candidate").token);
        if out.len() == n {
            break;
        }
        number += 1;
        next = step(coordinator, plan, order(plan, number, position, &out[out.len() - 1..], true)).await;
        position += 1;
        let settled = Order::Settled { epoch: plan.epoch, step: StepId(number - 1) };
        for &node in plan.nodes() {
            coordinator.send(node, &settled).await;
        }
    }
    out
}

async fn unload(coordinator: &mut Coordinator, plan: &Plan) {
    for &node in plan.nodes() {
        coordinator.send(node, &Order::Unload { epoch: plan.epoch }).await;
    }
    let mut left = plan.nodes().len();
    while left > 0 {
        match coordinator.next().await {
            (_, Some(Answer::Idle { epoch })) if epoch == plan.epoch => left -= 1,
            other => panic!("not idle: {other:?}"),
        }
    }
}

async fn report(coordinator: &mut Coordinator, plan: &Plan) -> BTreeMap<NodeId, Counters> {
    for &node in plan.nodes() {
        coordinator.send(node, &Order::Report { epoch: plan.epoch }).await;
    }
    let mut out = BTreeMap::new();
    while out.len() < plan.nodes().len() {
        match coordinator.next().await {
            (node, Some(Answer::Reported { counters, .. })) => _ = out.insert(node, counters),
            other => panic!("no report: {other:?}"),
        }
    }
    out
}

#[tokio::test]
async fn every_split_speaks_as_the_reference() {
    let (prompt, wanted) = reference();
    let spec = spec();
    let dir = tempfile::tempdir().expect("folder");
    let mut coordinator = Coordinator::start(1);
    let workers = start(&coordinator, &dir, 3, &[]);
    coordinator.gather(3).await;
    let n = coordinator.nodes();
    let (direct, f16) = (AllReduce::Direct, WireType::F16);
    let all = spec.n_layers;
    let layouts = [
        Layout { stages: &[(all, &n[..1])], head: &n[..1], way: direct, sum: f16, chunk_tokens: 16 },
        // The output head on a node without layers, then on several that are not the last stage.
        Layout { stages: &[(all, &n[..1])], head: &n[1..2], way: direct, sum: f16, chunk_tokens: 5 },
        Layout {
            stages: &[(1, &n[..1]), (1, &n[1..2]), (all - 2, &n[2..])],
            head: &n,
            way: direct,
            sum: f16,
            chunk_tokens: 5,
        },
        Layout { stages: &[(all, &n)], head: &n, way: direct, sum: f16, chunk_tokens: 16 },
        Layout {
            stages: &[(all, &n)],
            head: &n[..2],
            way: AllReduce::ReduceScatter,
            sum: WireType::F32,
            chunk_tokens: 16,
        },
        Layout { stages: &[(all, &n)], head: &n, way: AllReduce::Star, sum: f16, chunk_tokens: 7 },
        Layout {
            stages: &[(2, &n[..2]), (all - 2, &n[2..])],
            head: &n,
            way: direct,
            sum: f16,
            chunk_tokens: 16,
        },
        Layout {
            stages: &[(2, &n[..1]), (all - 2, &n[1..])],
            head: &n[..1],
            way: direct,
            sum: f16,
            chunk_tokens: 16,
        },
    ];
    let mut first = None;
    for (index, layout) in layouts.iter().enumerate() {
        let plan = plan(&spec, epoch(coordinator.term, index as u32 + 1), layout);
        for (node, (_, resident)) in coordinator.load(&plan).await {
            let planned = shard::footprint(&plan, &spec, node);
            let accounted = resident.accounted;
            assert_eq!(
                (accounted.weights, accounted.mapped),
                (planned.weights, planned.mapped),
                "layout {index}"
            );
            assert!(accounted.total() <= planned.total(), "layout {index}: {accounted:?} of {planned:?}");
        }
        let tokens = speak(&mut coordinator, &plan, &prompt, TOKENS).await;
        assert_eq!(tokens, wanted, "layout {index}");
        let counters = report(&mut coordinator, &plan).await;
        let sent = |of: fn(&Counters) -> u64| counters.values().map(of).sum::<u64>();
        assert_eq!(sent(|c| c.hop_bytes) > 0, layout.stages.len() > 1, "layout {index}");
        assert_eq!(
            sent(|c| c.sum_bytes) > 0,
            layout.stages.iter().any(|stage| stage.1.len() > 1),
            "layout {index}"
        );
        assert!(counters.values().all(|c| c.control_bytes > 0), "layout {index}");
        unload(&mut coordinator, &plan).await;
        first.get_or_insert(plan);
    }
    // Nothing is fetched a second time, not even by a process that starts anew.
    let mut counter = layouts.len() as u32 + 1;
    let again = first.expect("plan").with_epoch(epoch(coordinator.term, counter));
    let loaded = coordinator.load(&again).await;
    assert!(loaded.values().all(|(fetched, _)| *fetched == Bytes(0)), "{loaded:?}");
    counter += 1;
    drop(workers);
    coordinator.workers.clear();
    let _workers = start_again(&coordinator, &dir, 3);
    coordinator.gather(3).await;
    let again = again.with_epoch(epoch(coordinator.term, counter));
    let loaded = load_after_restart(&mut coordinator, &again).await;
    assert!(loaded.values().all(|fetched| *fetched == Bytes(0)), "{loaded:?}");
}

/// The same workers once more; they know their cluster.
fn start_again(coordinator: &Coordinator, dir: &TempDir, n: usize) -> Vec<Process> {
    let worker = |index: usize| {
        Process::start(&dir.path().join(index.to_string()), coordinator.address(), &["--child"])
    };
    (0..n).map(worker).collect()
}

/// Loads, past the ends of the connections of the processes before.
async fn load_after_restart(coordinator: &mut Coordinator, plan: &Plan) -> BTreeMap<NodeId, Bytes> {
    coordinator.order_load(plan).await;
    let mut out = BTreeMap::new();
    while out.len() < plan.nodes().len() {
        match coordinator.next().await {
            (node, Some(Answer::Loaded { fetched, .. })) => _ = out.insert(node, fetched),
            (_, None | Some(Answer::Progress { .. } | Answer::Idle { .. })) => {}
            other => panic!("not loaded: {other:?}"),
        }
    }
    out
}

#[tokio::test]
async fn a_worker_measures_itself_and_its_links() {
    let dir = tempfile::tempdir().expect("folder");
    let mut coordinator = Coordinator::start(1);
    let _workers = start(&coordinator, &dir, 2, &[]);
    coordinator.gather(2).await;
    let nodes = coordinator.nodes();
    let begin = Instant::now();
    coordinator.send(nodes[0], &Order::Profile { spec: Box::new(spec()) }).await;
    match coordinator.next().await {
        (_, Some(Answer::Profiled(Ok(profile)))) => {
            profile.check().expect("profile");
            assert_eq!(profile.threads, 1);
            assert!(profile.rates.iter().any(|rate| rate.kind == shoal_core::QuantType::Q8_0));
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        }
        other => panic!("no profile: {other:?}"),
    }
    let peers = coordinator.peers();
    coordinator.send(nodes[0], &Order::Links { peers: peers[1..].to_vec() }).await;
    match coordinator.next().await {
        (_, Some(Answer::LinksMeasured { links, failed })) if failed.is_empty() => {
            let pairs: Vec<_> = links.iter().map(|link| (link.from, link.to)).collect();
            assert_eq!(pairs, [(nodes[0], nodes[1]), (nodes[1], nodes[0])]);
            links.iter().for_each(|link| link.check().expect("link"));
        }
        other => panic!("no links: {other:?}"),
    }
}

#[tokio::test]
async fn a_dead_rank_ends_the_epoch_and_the_others_go_on() {
    let (prompt, wanted) = reference();
    let spec = spec();
    let dir = tempfile::tempdir().expect("folder");
    let mut coordinator = Coordinator::start(1);
    let mut workers = start(&coordinator, &dir, 3, &[]);
    coordinator.gather(3).await;
    let n = coordinator.nodes();
    let layout =
        |stages, head| Layout { stages, head, way: AllReduce::Direct, sum: WireType::F16, chunk_tokens: 16 };
    let stages: &[(u32, &[NodeId])] = &[(2, &n[..2]), (spec.n_layers - 2, &n[2..])];
    let three = plan(&spec, epoch(coordinator.term, 1), &layout(stages, &n));
    coordinator.load(&three).await;
    step(&mut coordinator, &three, order(&three, 1, 0, &prompt, true)).await;
    // The processes' order is not that of the ids: kill one and see whose connection ends.
    workers[1].child.kill().expect("kill");
    let begin = Instant::now();
    let next = order(&three, 2, prompt.len() as u32, &wanted[..1], true);
    for &node in three.nodes() {
        let worker = coordinator.workers.get_mut(&node).expect("worker");
        // One of them may be known to be dead already.
        let _ = worker.orders.send(&Order::Step(Box::new(next.clone()))).await;
    }
    let (mut dead, mut failed, mut idle) = (None, BTreeMap::new(), 0);
    while dead.is_none() || failed.len() < 2 || idle < 2 {
        match coordinator.next().await {
            (node, None) => dead = Some(node),
            (node, Some(Answer::Failed { failure, .. })) => _ = failed.insert(node, failure),
            (_, Some(Answer::Idle { .. })) => idle += 1,
            // What is done before the loss is seen.
            (_, Some(Answer::Head { .. })) => {}
            other => panic!("unexpected: {other:?}"),
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let dead = dead.expect("dead");
    assert!(failed.values().all(|failure| failure.blame == Some(dead)), "{dead}: {failed:?}");
    coordinator.workers.remove(&dead);
    let rest = coordinator.nodes();
    let two = plan(&spec, epoch(coordinator.term, 2), &layout(&[(spec.n_layers, &rest)], &rest));
    coordinator.load(&two).await;
    assert_eq!(speak(&mut coordinator, &two, &prompt, 8).await, wanted[..8]);
}

#[tokio::test]
async fn a_worker_that_waits_or_loads_is_idle_at_once_when_told() {
    let spec = spec();
    let dir = tempfile::tempdir().expect("folder");
    let mut coordinator = Coordinator::start(1);
    let _workers = start(&coordinator, &dir, 2, &[]);
    coordinator.gather(2).await;
    let n = coordinator.nodes();
    let stages: &[(u32, &[NodeId])] = &[(2, &n[..1]), (spec.n_layers - 2, &n[1..])];
    let layout =
        Layout { stages, head: &n[1..], way: AllReduce::Direct, sum: WireType::F16, chunk_tokens: 16 };
    let first = plan(&spec, epoch(coordinator.term, 1), &layout);
    coordinator.load(&first).await;
    // The second stage waits for rows that never come.
    let step = order(&first, 1, 0, &[1, 2, 3], true);
    coordinator.send(n[1], &Order::Step(Box::new(step))).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begin = Instant::now();
    unload(&mut coordinator, &first).await;
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    // A rank of a group whose other rank never comes to the sum; and one that only just began to load.
    let group: &[(u32, &[NodeId])] = &[(spec.n_layers, &n)];
    let second = plan(&spec, epoch(coordinator.term, 2), &Layout { stages: group, ..layout });
    coordinator.load(&second).await;
    let step = order(&second, 1, 0, &[1, 2, 3], true);
    coordinator.send(n[0], &Order::Step(Box::new(step))).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begin = Instant::now();
    unload(&mut coordinator, &second).await;
    assert!(begin.elapsed() < Duration::from_millis(500), "{:?}", begin.elapsed());
    let third = second.with_epoch(epoch(coordinator.term, 3));
    coordinator.order_load(&third).await;
    let begin = Instant::now();
    for &node in third.nodes() {
        coordinator.send(node, &Order::Unload { epoch: third.epoch }).await;
    }
    let mut left = 2;
    while left > 0 {
        match coordinator.next().await {
            (_, Some(Answer::Idle { .. })) => left -= 1,
            (_, Some(Answer::Progress { .. } | Answer::Loaded { .. })) => {}
            other => panic!("not idle: {other:?}"),
        }
    }
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn questions_about_a_row_are_answered_until_it_is_settled() {
    let (prompt, wanted) = reference();
    let spec = spec();
    let dir = tempfile::tempdir().expect("folder");
    let mut coordinator = Coordinator::start(1);
    let _workers = start(&coordinator, &dir, 2, &[]);
    coordinator.gather(2).await;
    let n = coordinator.nodes();
    let layout = Layout {
        stages: &[(spec.n_layers, &n[..1])],
        head: &n,
        way: AllReduce::Direct,
        sum: WireType::F16,
        chunk_tokens: 16,
    };
    let plan = plan(&spec, epoch(coordinator.term, 1), &layout);
    coordinator.load(&plan).await;
    let best = step(&mut coordinator, &plan, order(&plan, 1, 0, &prompt, true)).await.expect("best");
    assert_eq!(best.token, wanted[0]);
    let (row, tile) = (prompt.len() as u32 - 1, best.token / 256);
    let owner = plan.tile_owner(tile).expect("owner");
    let query = Order::Query { epoch: plan.epoch, step: StepId(1), row, query: HeadQuery::Tile(tile) };
    coordinator.send(owner, &query).await;
    match coordinator.next().await {
        (_, Some(Answer::Queried { found, .. })) => {
            assert_eq!(found.len(), 256);
            assert_eq!(found[(best.token % 256) as usize], best);
        }
        other => panic!("no answer: {other:?}"),
    }
    coordinator.send(owner, &Order::Settled { epoch: plan.epoch, step: StepId(1) }).await;
    coordinator.send(owner, &query).await;
    assert!(matches!(coordinator.next().await, (_, Some(Answer::Failed { .. }))));
}

#[tokio::test]
async fn steps_of_several_sequences_are_in_flight_at_once() {
    let (prompt, wanted) = reference();
    let spec = spec();
    let dir = tempfile::tempdir().expect("folder");
    let mut coordinator = Coordinator::start(1);
    let _workers = start(&coordinator, &dir, 3, &[]);
    coordinator.gather(3).await;
    let n = coordinator.nodes();
    let stages: &[(u32, &[NodeId])] = &[(2, &n[..1]), (2, &n[1..2]), (spec.n_layers - 4, &n[2..])];
    let layout = Layout { stages, head: &n, way: AllReduce::Direct, sum: WireType::F16, chunk_tokens: 16 };
    let plan = plan(&spec, epoch(coordinator.term, 1), &layout);
    coordinator.load(&plan).await;
    // Both sequences say the same; every next token is known beforehand, so nothing has to be waited for.
    let mut tokens = prompt.clone();
    let (mut position, mut number) = (0, 0);
    for round in 0..8_usize {
        let mut steps = Vec::new();
        for _ in 0..2 {
            for seq in [1, 2] {
                if seq == 1 && steps.len() == 2 {
                    (position, tokens) = (position + tokens.len() as u32, vec![wanted[round * 2]]);
                }
                number += 1;
                let mut next = order(&plan, number, position, &tokens, true);
                next.runs[0].seq = SeqId(seq);
                steps.push(next);
            }
        }
        for step in &steps {
            coordinator.send_all(&Order::Step(Box::new(step.clone()))).await;
        }
        let mut best: BTreeMap<StepId, Candidate> = BTreeMap::new();
        for _ in 0..steps.len() * n.len() {
            let (_, Some(Answer::Head { step, rows, .. })) = coordinator.next().await else {
                panic!("no head")
            };
            for candidate in rows.iter().flat_map(|row| &row.top) {
                let known = best.entry(step).or_insert(*candidate);
                if candidate.logit > known.logit {
                    *known = *candidate;
                }
            }
        }
        let said: Vec<u32> = best.values().map(|candidate| candidate.token).collect();
        let (first, second) = (wanted[round * 2], wanted[round * 2 + 1]);
        assert_eq!(said, [first, first, second, second], "round {round}");
        coordinator.send_all(&Order::Settled { epoch: plan.epoch, step: StepId(number) }).await;
        (position, tokens) = (position + tokens.len() as u32, vec![second]);
    }
}
