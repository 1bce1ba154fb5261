//! Single rules of the worker's and the coordinator's machine and of the scheduler.

use std::time::Duration;

use shoal_cluster::coordinator::{
    self, Action as Told, Config, Event as News, Failed, GreetingError, Job, Planning, State, check_welcome,
    greeting,
};
use shoal_cluster::cost::Link;
use shoal_cluster::planner::Options;
use shoal_cluster::scheduler::{FinishReason, NewSequence, Scheduler, SubmitError};
use shoal_cluster::worker::{Action, Event, Machine, Phase};
use shoal_core::frame::Class;
use shoal_core::head::{Candidate, HeadAnswer, HeadQuery, HeadRequest};
use shoal_core::message::{Answer, Failure, HeadRow, Order, Resident, Run, StepOrder};
use shoal_core::plan::{PlanParts, Strategy};
use shoal_core::{Bytes, Epoch, ModelSpec, NodeId, Plan, SeqId, StepId, Term};

mod common;

use common::{cluster, device, info, link, node, small, workload};

const EPOCH: Epoch = Epoch { term: Term(4), counter: 1 };

fn plan(strategy: Strategy, workers: usize, streams: u32) -> Plan {
    let options = Options { strategy: Some(strategy), epoch: EPOCH, ..Options::default() };
    let cluster = cluster(&vec![1.0; workers], Bytes::mib(64));
    shoal_cluster::planner::choose(&small(), &cluster, &workload(streams), &options).unwrap().chosen.plan
}

fn actions(machine: &mut Machine) -> Vec<Action> {
    std::iter::from_fn(|| machine.poll_action()).collect()
}

fn load(parts: PlanParts, spec: ModelSpec) -> Event {
    let (model, plan, spec) = (coordinator::nominal_model(), Box::new(parts), Box::new(spec));
    Event::Order(Order::Load { model, spec, plan, peers: Vec::new() })
}

/// A worker that is ready to run steps of `plan`.
fn ready(plan: &Plan) -> Machine {
    let mut machine = Machine::new(info(node(0)), Term(0));
    machine.handle_event(Event::Order(greeting(Term(4), "c")));
    machine.handle_event(load(plan.parts().clone(), small()));
    let result = Ok((Resident::default(), Bytes(0)));
    machine.handle_event(Event::Loaded { epoch: EPOCH, result });
    let said = actions(&mut machine);
    assert!(matches!(said.last(), Some(Action::Reply(Answer::Loaded { .. }))), "{said:?}");
    machine
}

fn step(number: u64, first_position: u32, tokens: Vec<u32>) -> StepOrder {
    let rows = tokens.len() as u32;
    StepOrder {
        epoch: EPOCH,
        step: StepId(number),
        class: Class::Decode,
        runs: vec![Run { seq: SeqId(1), first_position, tokens }],
        head: vec![HeadRow { row: rows.saturating_sub(1), request: HeadRequest::greedy() }],
        release: Vec::new(),
    }
}

fn ordered(order: StepOrder) -> Event {
    Event::Order(Order::Step(Box::new(order)))
}

#[test]
fn a_worker_obeys_the_highest_term_and_its_own_protocol_alone() {
    let mut machine = Machine::new(info(node(0)), Term(5));
    machine.handle_event(Event::Order(Order::Profile { spec: Box::new(small()) }));
    assert!(matches!(&actions(&mut machine)[..], [Action::Close { reason }] if reason.contains("greeting")));
    machine.handle_event(Event::Order(greeting(Term(4), "c")));
    let said = actions(&mut machine);
    let Action::Reply(refusal @ Answer::Refused { highest_term: Term(5), .. }) = &said[0] else {
        panic!("{said:?}")
    };
    assert!(matches!(check_welcome(refusal.clone(), node(0)), Err(GreetingError::Refused { .. })));
    assert!(matches!(said[1], Action::Close { .. }));
    machine.handle_event(Event::Order(Order::Hello { protocol: 99, term: Term(9), cluster: String::new() }));
    assert!(
        matches!(&actions(&mut machine)[0], Action::Reply(Answer::Refused { reason, .. }) if reason.contains("99"))
    );
    assert_eq!(machine.highest_term(), Term(5));
    machine.handle_event(Event::Order(greeting(Term(6), "c")));
    let Action::Reply(welcome) = actions(&mut machine).remove(0) else { panic!() };
    assert!(check_welcome(welcome.clone(), node(0)).is_ok());
    assert!(matches!(check_welcome(welcome, node(1)), Err(GreetingError::Identity { .. })));
    assert_eq!(check_welcome(Answer::Pong { nonce: 1 }, node(0)).unwrap_err(), GreetingError::NoWelcome);
    assert_eq!(machine.highest_term(), Term(6));
}

#[test]
fn a_plan_that_is_not_sound_is_answered_with_a_failure() {
    let sound = plan(Strategy::Head, 2, 1).parts().clone();
    let broken: [fn(&mut PlanParts); 4] = [
        |parts| parts.stages.clear(),
        |parts| parts.stages[0].ranks[0].q_heads.end += 1,
        |parts| parts.head[0].rows.end -= 1,
        |parts| parts.stages[0].ranks[0].node = node(9),
    ];
    for change in broken {
        let mut machine = Machine::new(info(node(0)), Term(0));
        machine.handle_event(Event::Order(greeting(Term(4), "c")));
        let mut parts = sound.clone();
        change(&mut parts);
        parts.head.retain(|head| head.node != node(0) || parts.stages.is_empty());
        machine.handle_event(load(parts, small()));
        assert!(matches!(actions(&mut machine).last(), Some(Action::Reply(Answer::Failed { .. }))));
        assert_eq!(machine.phase(), Phase::Idle);
    }
    let mut machine = Machine::new(info(node(0)), Term(0));
    machine.handle_event(Event::Order(greeting(Term(4), "c")));
    let mut spec = small();
    spec.tensors.pop();
    machine.handle_event(load(sound, spec));
    assert!(matches!(actions(&mut machine).last(), Some(Action::Reply(Answer::Failed { .. }))));
}

#[test]
fn a_step_that_breaks_a_rule_ends_the_epoch() {
    let plan = plan(Strategy::Single, 1, 2);
    let broken: [fn(&mut StepOrder); 10] = [
        |s| s.runs[0].tokens[0] = 1 << 20,
        |s| s.runs[0].tokens = vec![0; 513],
        |s| s.runs[0].first_position = 1,
        |s| s.runs[0].tokens.clear(),
        |s| s.head[0].row = 7,
        |s| s.head.push(s.head[0].clone()),
        |s| s.head[0].request.k = 0,
        |s| s.head[0].request.bias = vec![(1 << 20, 1.0)],
        |s| s.step = StepId(0),
        |s| {
            for seq in 2..4 {
                s.runs.push(Run { seq: SeqId(seq), first_position: 0, tokens: vec![1] });
            }
        },
    ];
    for (index, change) in broken.into_iter().enumerate() {
        let mut machine = ready(&plan);
        let mut order = step(1, 0, vec![1, 2]);
        change(&mut order);
        machine.handle_event(ordered(order));
        let said = actions(&mut machine);
        let [Action::Reply(Answer::Failed { failure, .. }), Action::Drop { .. }] = &said[..] else {
            panic!("rule {index}: {said:?}")
        };
        assert!(failure.message.starts_with("failed to take step"), "{failure:?}");
        assert_eq!(machine.phase(), Phase::Idle);
        machine.handle_event(Event::Dropped { epoch: EPOCH });
        assert_eq!(actions(&mut machine), [Action::Reply(Answer::Idle { epoch: EPOCH })]);
    }
}

#[test]
fn steps_run_in_order_and_only_unsettled_ones_are_asked_about() {
    let plan = plan(Strategy::Single, 1, 2);
    let mut machine = ready(&plan);
    let mut other = step(1, 0, vec![1]);
    other.epoch.counter = 9;
    machine.handle_event(ordered(other));
    assert_eq!(actions(&mut machine), []);
    machine.handle_event(ordered(step(1, 0, vec![1, 2])));
    machine.handle_event(ordered(step(2, 2, vec![3])));
    assert_eq!(actions(&mut machine).len(), 2);
    assert_eq!(machine.steps_running(), 2);
    machine.handle_event(Event::StepDone { epoch: EPOCH, step: StepId(1), head: Vec::new() });
    let query = |step| {
        Event::Order(Order::Query { epoch: EPOCH, step: StepId(step), row: 1, query: HeadQuery::Tile(0) })
    };
    machine.handle_event(query(1));
    assert!(matches!(
        actions(&mut machine)[..],
        [Action::Reply(Answer::Head { .. }), Action::RunQuery { .. }]
    ));
    machine.handle_event(Event::Order(Order::Settled { epoch: EPOCH, step: StepId(1) }));
    assert_eq!(actions(&mut machine), [Action::Settle { epoch: EPOCH, step: StepId(1) }]);
    machine.handle_event(query(1));
    assert!(matches!(actions(&mut machine)[0], Action::Reply(Answer::Failed { .. })));
    // A released sequence begins again.
    let mut machine = ready(&plan);
    machine.handle_event(ordered(step(1, 0, vec![1, 2])));
    machine.handle_event(ordered(StepOrder { release: vec![SeqId(1)], ..step(2, 0, vec![5]) }));
    assert_eq!(actions(&mut machine).len(), 2);
    machine.handle_event(Event::Disconnected);
    assert_eq!(actions(&mut machine), [Action::Drop { epoch: EPOCH }]);
}

fn job(workers: usize, planning: Planning) -> Box<Job> {
    Box::new(Job {
        model: coordinator::nominal_model(),
        spec: small(),
        workload: workload(1),
        planning,
        workers,
        gather: Duration::from_millis(500),
        measure_links: false,
        links: Vec::new(),
        twins: false,
        profiles: Default::default(),
        power: Default::default(),
    })
}

fn told(machine: &mut coordinator::Machine) -> Vec<Told> {
    std::iter::from_fn(|| machine.poll_action()).collect()
}

/// A coordinator with this many workers, all asked for their profiles.
fn profiling(workers: usize, strategy: Strategy) -> coordinator::Machine {
    let mut machine = coordinator::Machine::new(Config { term: Term(4), default_link: Link::LOOPBACK });
    let options = Options { strategy: Some(strategy), ..Options::default() };
    machine.handle_event(Duration::ZERO, News::Start(job(workers, Planning::Choose(options))));
    for index in 0..workers {
        let addresses = vec!["127.0.0.1:1".to_owned()];
        machine
            .handle_event(Duration::ZERO, News::Connected { info: Box::new(info(node(index))), addresses });
    }
    assert_eq!(machine.state(), State::Profiling);
    machine
}

fn answer(machine: &mut coordinator::Machine, at: u64, index: usize, answer: Answer) {
    machine.handle_event(Duration::from_millis(at), News::Answer { node: node(index), answer });
}

#[test]
fn an_absurd_profile_leaves_its_node_out_and_a_twin_is_refused() {
    let mut machine = profiling(2, Strategy::Head);
    machine.handle_event(
        Duration::ZERO,
        News::Connected { info: Box::new(info(node(1))), addresses: Vec::new() },
    );
    let refused =
        |told: &Told| matches!(told, Told::RefuseConnection { reason, .. } if reason.contains("identity"));
    assert!(told(&mut machine).iter().any(refused));
    let mut absurd = device(0, 1.0, Bytes(1)).profile;
    absurd.attention[0].rate.median.0 = f64::INFINITY;
    answer(&mut machine, 1, 0, Answer::Profiled(Ok(Box::new(absurd))));
    let sound = device(1, 1.0, Bytes(1)).profile;
    answer(&mut machine, 1, 1, Answer::Profiled(Ok(Box::new(sound))));
    let said = told(&mut machine);
    assert!(
        said.iter().any(
            |t| matches!(t, Told::LeftOut(out) if out.node == node(0) && out.reason.contains("attention"))
        )
    );
    assert_eq!(machine.plan().unwrap().nodes(), [node(1)]);
}

/// Three workers measure their links; `broken` pairs cannot. Those left out.
fn linked(broken: &[(usize, usize)]) -> (coordinator::Machine, Vec<NodeId>) {
    let mut machine = coordinator::Machine::new(Config { term: Term(4), default_link: Link::LOOPBACK });
    let options = Options { strategy: Some(Strategy::Head), ..Options::default() };
    let mut job = job(3, Planning::Choose(options));
    job.measure_links = true;
    machine.handle_event(Duration::ZERO, News::Start(job));
    let mut nodes: Vec<NodeId> = (0..3).map(node).collect();
    nodes.sort();
    for &node in &nodes {
        let addresses = vec!["127.0.0.1:1".to_owned()];
        machine.handle_event(Duration::ZERO, News::Connected { info: Box::new(info(node)), addresses });
    }
    let say = |machine: &mut coordinator::Machine, node, answer| {
        machine.handle_event(Duration::from_millis(1), News::Answer { node, answer });
    };
    for &node in &nodes {
        let profile = device(0, 1.0, Bytes(1)).profile;
        say(&mut machine, node, Answer::Profiled(Ok(Box::new(profile))));
    }
    assert_eq!(machine.state(), State::Linking);
    let mut out = Vec::new();
    while let Some(action) = machine.poll_action() {
        match action {
            Told::Send { node, order: Order::Links { peers } } => {
                let is_broken = |peer: NodeId| {
                    broken.iter().any(|&(a, b)| {
                        let pair = [nodes[a], nodes[b]];
                        pair.contains(&node) && pair.contains(&peer)
                    })
                };
                let peers = peers.iter().map(|peer| peer.node);
                let (bad, good): (Vec<_>, Vec<_>) = peers.partition(|&peer| is_broken(peer));
                let failed = |peer| Failure { message: "it is not there".to_owned(), blame: Some(peer) };
                let (links, failed) = (
                    good.into_iter().map(|peer| link(node, peer)).collect(),
                    bad.into_iter().map(failed).collect(),
                );
                say(&mut machine, node, Answer::LinksMeasured { links, failed });
            }
            Told::LeftOut(left) if left.reason.contains("it is not there") => {
                assert!(left.reason.contains(&left.name), "{}", left.reason);
                out.push(left.node);
            }
            _ => {}
        }
    }
    (machine, out)
}

#[test]
fn only_the_node_that_cannot_be_reached_is_left_out() {
    let mut nodes: Vec<NodeId> = (0..3).map(node).collect();
    nodes.sort();
    let out = |broken: &[(usize, usize)]| {
        let (machine, out) = linked(broken);
        assert_eq!(machine.state(), State::Loading);
        out
    };
    assert_eq!(out(&[]), []);
    // The one that is blamed, not the one that says so.
    assert_eq!(out(&[(0, 1)]), [nodes[1]]);
    // Whoever reaches nobody goes, also where it is the one that measures first.
    for (lone, node) in nodes.into_iter().enumerate() {
        let broken: Vec<_> = (0..3).filter(|&other| other != lone).map(|other| (lone, other)).collect();
        assert_eq!(out(&broken), [node], "{lone}");
    }
    // None reaches any other: one is left.
    assert_eq!(out(&[(0, 1), (0, 2), (1, 2)]).len(), 2);
}

#[test]
fn links_that_nobody_asked_for_change_nothing() {
    let mut machine = profiling(2, Strategy::Head);
    drop(told(&mut machine));
    let mut nodes = [node(0), node(1)];
    nodes.sort();
    // No links are asked for here: the answer changes nothing.
    let failure = Failure { message: "what".to_owned(), blame: Some(nodes[1]) };
    let answer = Answer::LinksMeasured { links: vec![link(nodes[0], nodes[1])], failed: vec![failure] };
    machine.handle_event(Duration::from_millis(1), News::Answer { node: nodes[0], answer });
    assert_eq!((machine.state(), told(&mut machine).len()), (State::Profiling, 0));
}

#[test]
fn a_step_past_its_deadline_names_the_silent_worker() {
    let mut machine = profiling(2, Strategy::StaticLayer);
    for index in 0..2 {
        let profile = device(index, 1.0, Bytes(1)).profile;
        answer(&mut machine, 1, index, Answer::Profiled(Ok(Box::new(profile))));
    }
    let epoch = machine.plan().unwrap().epoch;
    for index in 0..2 {
        let resident = Resident::default();
        answer(&mut machine, 2, index, Answer::Loaded { epoch, resident, fetched: Bytes(0) });
    }
    assert_eq!(machine.state(), State::WarmingUp);
    // Both are alive, but the second stage never answers the warm-up step.
    let rows = machine.plan().unwrap().head_share(node(0)).map(|(_, rows)| HeadAnswer {
        top: vec![Candidate { token: rows.first, logit: 0.0 }],
        ..HeadAnswer::default()
    });
    let rows = rows.into_iter().collect();
    answer(&mut machine, 3, 0, Answer::Head { epoch, step: StepId(1), rows });
    for at in (0..200_000).step_by(200) {
        for index in 0..2 {
            answer(&mut machine, at, index, Answer::Pong { nonce: 0 });
        }
        machine.handle_timeout(Duration::from_millis(at));
    }
    let said = told(&mut machine);
    let ended = said.iter().find_map(|t| if let Told::Ended(failed) = t { Some(failed) } else { None });
    assert!(
        matches!(ended, Some(Failed::Lost { node: lost, reason, .. }) if *lost == node(1) && reason.contains("deadline")),
        "{ended:?}"
    );
    assert!(matches!(machine.state(), State::Unloading | State::Idle));
}

#[test]
fn a_failure_blames_the_node_it_names_and_old_epochs_are_ignored() {
    let mut machine = profiling(2, Strategy::Head);
    for index in 0..2 {
        let profile = device(index, 1.0, Bytes(1)).profile;
        answer(&mut machine, 1, index, Answer::Profiled(Ok(Box::new(profile))));
    }
    let epoch = machine.plan().unwrap().epoch;
    let failure = Failure { message: "a row is not finite".to_owned(), blame: Some(node(1)) };
    let old = Epoch { counter: epoch.counter + 7, ..epoch };
    answer(&mut machine, 2, 0, Answer::Failed { epoch: old, failure: failure.clone() });
    assert_eq!(machine.state(), State::Loading);
    answer(&mut machine, 2, 0, Answer::Failed { epoch, failure });
    let said = told(&mut machine);
    assert!(said.iter().any(|t| matches!(t, Told::Ended(failed) if failed.blame() == Some(node(1)))));
    assert_eq!(machine.state(), State::Unloading);
    for index in 0..2 {
        answer(&mut machine, 3, index, Answer::Idle { epoch });
    }
    assert!(matches!(told(&mut machine).last(), Some(Told::Idle)));
}

fn new(seq: u64, tokens: usize, max_new: u32) -> NewSequence {
    NewSequence { seq: SeqId(seq), tokens: vec![1; tokens], max_new, stop_tokens: vec![9] }
}

fn next(scheduler: &mut Scheduler) -> Option<StepOrder> {
    scheduler.next_step(|_, _| HeadRequest::greedy())
}

#[test]
fn chunks_of_one_prompt_fly_together_and_streams_keep_stages_busy() {
    let plan = plan(Strategy::StaticLayer, 2, 4);
    let chunk = plan.chunk_tokens as usize;
    let mut scheduler = Scheduler::new(&plan, 4096);
    assert!(chunk >= 8 && chunk + 4 < 512 * 2);
    scheduler.submit(new(1, 511, 1)).unwrap();
    if chunk < 511 {
        let (a, b) = (next(&mut scheduler).unwrap(), next(&mut scheduler).unwrap());
        assert_eq!((a.rows(), b.runs[0].first_position as usize), (chunk, chunk));
    }
    let mut scheduler = Scheduler::new(&plan, 4096);
    for seq in 1..=4 {
        scheduler.submit(new(seq, 2, 8)).unwrap();
    }
    let prefill = next(&mut scheduler).unwrap();
    assert_eq!((prefill.rows(), prefill.head.len(), prefill.class), (8, 4, Class::Prefill));
    assert!(next(&mut scheduler).is_none());
    scheduler.step_done(prefill.step);
    for seq in 1..=4 {
        assert_eq!(scheduler.token(SeqId(seq), 5), None);
    }
    let (a, b) = (next(&mut scheduler).unwrap(), next(&mut scheduler).unwrap());
    assert_eq!((a.rows(), b.rows()), (2, 2));
    assert!(next(&mut scheduler).is_none());
    assert_eq!(scheduler.in_flight(), 2);
    assert_eq!(scheduler.token(SeqId(1), 9), Some(FinishReason::Stop));
    assert!(scheduler.cancel(SeqId(2)) && !scheduler.cancel(SeqId(2)));
    scheduler.step_done(a.step);
    scheduler.submit(new(7, 1, 1)).unwrap();
    assert_eq!(next(&mut scheduler).unwrap().release, [SeqId(1), SeqId(2)]);
}

#[test]
fn what_can_never_run_is_refused() {
    let plan = plan(Strategy::Single, 1, 1);
    let mut scheduler = Scheduler::new(&plan, 4096);
    assert_eq!(scheduler.submit(new(1, 0, 1)), Err(SubmitError::Empty));
    assert_eq!(scheduler.submit(new(1, 512, 1)), Err(SubmitError::TooLong { tokens: 512, context: 512 }));
    assert_eq!(scheduler.submit(new(1, 1, 0)), Err(SubmitError::NoneWanted));
    let odd = NewSequence { tokens: vec![4096], ..new(1, 1, 1) };
    assert_eq!(scheduler.submit(odd), Err(SubmitError::Vocabulary { token: 4096, vocab: 4096 }));
    assert_eq!(scheduler.submit(new(1, 1, 1)), Ok(()));
    assert_eq!(scheduler.submit(new(1, 1, 1)), Err(SubmitError::Twice(SeqId(1))));
}
