//! A worker process from start to end: settings, coordinators that come and go, exit codes.

mod common;

use std::time::{Duration, Instant};

use common::{Coordinator, Layout, PATIENCE, Process, plan, spec};
use shoal_core::NodeId;
use shoal_core::frame::WireType;
use shoal_core::ids::{Epoch, Term};
use shoal_core::limits::PROTOCOL_VERSION;
use shoal_core::message::{Answer, Order};
use shoal_core::plan::AllReduce;

fn epoch(term: Term, counter: u32) -> Epoch {
    Epoch { term, counter }
}

#[tokio::test]
async fn arguments_go_before_the_environment_and_that_before_the_file() {
    let dir = tempfile::tempdir().expect("folder");
    let mut coordinator = Coordinator::start(1);
    let token = coordinator.token_file(1);
    let config = dir.path().join("worker.toml");
    std::fs::write(&config, "name = \"file\"\nthreads = 3\nmemory = \"5MB\"\n").expect("write");
    let text = std::fs::read_to_string(&token).expect("token");
    let env = [("SHOAL_WORKER_NAME", "environment"), ("SHOAL_MEMORY", "7MB"), ("SHOAL_JOIN", &text)];
    let more = ["--config", config.to_str().expect("path"), "--child"];
    let _worker = Process::start_with(dir.path(), coordinator.address(), &more, &env);
    coordinator.gather(1).await;
    let info = &coordinator.workers.values().next().expect("worker").info;
    assert_eq!(info.name, "environment");
    // These two are arguments here.
    assert_eq!((info.threads, info.usable.0), (1, 1_000_000_000));
}

#[tokio::test]
async fn a_plan_beyond_the_budget_is_refused_with_its_figures() {
    let dir = tempfile::tempdir().expect("folder");
    let mut coordinator = Coordinator::start(1);
    let token = coordinator.token_file(1);
    let more = ["--join-file", &token, "--child", "--memory", "2MB"];
    let _worker = Process::start(dir.path(), coordinator.address(), &more);
    coordinator.gather(1).await;
    let (n, spec) = (coordinator.nodes(), spec());
    let stages: &[(u32, &[NodeId])] = &[(spec.n_layers, &n)];
    let layout = Layout { stages, head: &n, way: AllReduce::Direct, sum: WireType::F16, chunk_tokens: 16 };
    coordinator.order_load(&plan(&spec, epoch(coordinator.term, 1), &layout)).await;
    match coordinator.next().await {
        (_, Some(Answer::Failed { failure, .. })) => {
            assert!(failure.message.contains("2.0 MB"), "{failure:?}")
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_fails_the_load_and_not_the_worker() {
    let dir = tempfile::tempdir().expect("folder");
    // A file where the folder should be.
    std::fs::write(dir.path().join("cache"), b"").expect("write");
    let mut coordinator = Coordinator::start(1);
    let token = coordinator.token_file(1);
    let _worker = Process::start(dir.path(), coordinator.address(), &["--join-file", &token, "--child"]);
    coordinator.gather(1).await;
    let (n, spec) = (coordinator.nodes(), spec());
    let stages: &[(u32, &[NodeId])] = &[(spec.n_layers, &n)];
    let layout = Layout { stages, head: &n, way: AllReduce::Direct, sum: WireType::F16, chunk_tokens: 16 };
    let first = plan(&spec, epoch(coordinator.term, 1), &layout);
    coordinator.order_load(&first).await;
    match coordinator.next().await {
        (_, Some(Answer::Failed { failure, .. })) => {
            assert!(failure.message.contains("cache"), "{failure:?}")
        }
        other => panic!("not refused: {other:?}"),
    }
    std::fs::remove_file(dir.path().join("cache")).expect("remove");
    coordinator.load(&first.with_epoch(epoch(coordinator.term, 2))).await;
}

#[tokio::test]
async fn coordinators_come_and_go_and_an_older_one_is_refused() {
    let dir = tempfile::tempdir().expect("folder");
    let mut first = Coordinator::start(5);
    let token = first.token_file(1);
    // A fixed port, so that the next coordinator is found where the first was.
    let mut worker = Process::start(dir.path(), first.address(), &["--join-file", &token, "--child"]);
    first.gather(1).await;
    let n = first.nodes();
    let spec = spec();
    let layout = Layout {
        stages: &[(spec.n_layers, &n)],
        head: &n,
        way: AllReduce::Direct,
        sum: WireType::F16,
        chunk_tokens: 16,
    };
    first.load(&plan(&spec, epoch(first.term, 1), &layout)).await;
    let (address, worker_at) = (first.address(), first.workers[&n[0]].link.address());
    first.endpoint.close("gone").await;
    let Coordinator { dir: authority, workers, .. } = first;
    drop(workers);
    // The next one dials the worker, with a lower term: refused.
    let old = Coordinator::start_in(authority, 4);
    let mut conn = old.endpoint.dial(n[0], &[worker_at]).await.expect("dial");
    let hello = |term| Order::Hello { protocol: PROTOCOL_VERSION, term, cluster: "test".to_owned() };
    conn.send(&hello(Term(4))).await.expect("hello");
    match tokio::time::timeout(PATIENCE, conn.recv()).await.expect("in time") {
        Ok(Answer::Refused { highest_term, reason, .. }) => {
            assert_eq!(highest_term, Term(5));
            assert!(reason.contains('4'), "{reason}");
        }
        other => panic!("not refused: {other:?}"),
    }
    old.endpoint.close("gone").await;
    assert_ne!(old.address(), address);
    let Coordinator { dir: authority, .. } = old;
    let mut next = Coordinator::start_in(authority, 6);
    let mut conn = next.endpoint.dial(n[0], &[worker_at]).await.expect("dial");
    conn.send(&hello(Term(6))).await.expect("hello");
    let answer = tokio::time::timeout(PATIENCE, conn.recv()).await.expect("in time");
    assert!(matches!(answer, Ok(Answer::Welcome { .. })), "{answer:?}");
    // A child ends when its standard input closes.
    drop(worker.child.stdin.take());
    assert_eq!(worker.wait(Duration::from_secs(3)), Some(0));
    next.workers.clear();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_ends_with_its_exit_code() {
    let dir = tempfile::tempdir().expect("folder");
    let mut coordinator = Coordinator::start(1);
    let token = coordinator.token_file(1);
    let address = coordinator.address();
    let at = |name: &str| dir.path().join(name);
    let code = |mut process: Process| process.wait(Duration::from_secs(20));
    // Nothing to belong to; no token in the file; a token that is none.
    assert_eq!(code(Process::start(&at("a"), address, &[])), Some(3));
    std::fs::write(at("bad"), "shoal1-nonsense").expect("write");
    let bad = at("bad");
    assert_eq!(
        code(Process::start(&at("a"), address, &["--join-file", bad.to_str().expect("path")])),
        Some(3)
    );
    assert_eq!(code(Process::start(&at("a"), address, &["--frob"])), Some(2));
    let worker = Process::start(&at("b"), address, &["--join-file", &token]);
    coordinator.gather(1).await;
    // The token is used up; the folder is taken; the port is taken.
    let token = token.as_str();
    assert_eq!(code(Process::start(&at("c"), address, &["--join-file", token])), Some(3));
    assert_eq!(code(Process::start(&at("b"), address, &[])), Some(1));
    let port = coordinator.workers.values().next().expect("worker").link.address().to_string();
    assert_eq!(code(Process::start(&at("c"), address, &["--join-file", token, "--listen", &port])), Some(1));
    // A signal ends it in order.
    let mut worker = worker;
    let begin = Instant::now();
    let kill = std::process::Command::new("kill").args(["-TERM", &worker.id()]).status().expect("kill");
    assert!(kill.success());
    assert_eq!(worker.wait(Duration::from_secs(3)), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}
