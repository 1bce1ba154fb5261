//! The data plane between several nodes in one process, each with its own port and thread.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{ANY, Cluster};
use shoal_core::frame::{Class, Header, Phase, WireType};
use shoal_core::{Epoch, NodeId, StepId, Term};
use shoal_net::data::{Block, BlockKey, DataPeer, DataPlane, SendError, WaitError, Wake};

const LARGEST: u64 = 8 << 20;

struct Node {
    id: NodeId,
    plane: Arc<DataPlane>,
}

impl Node {
    fn peer(&self) -> DataPeer {
        DataPeer { node: self.id, addresses: vec![self.plane.local_address()] }
    }

    fn start(cluster: &Cluster) -> Self {
        let (identity, membership) = cluster.member();
        let credentials = membership.credentials(&identity).unwrap();
        Self { id: identity.node(), plane: Arc::new(DataPlane::start(ANY, &credentials).unwrap()) }
    }
}

fn epoch(counter: u32) -> Epoch {
    Epoch { term: Term(1), counter }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Nodes of one plan, all connected, by rising id.
fn plan(count: usize) -> Vec<Node> {
    let cluster = Cluster::new();
    let mut nodes: Vec<Node> = (0..count).map(|_| Node::start(&cluster)).collect();
    nodes.sort_by_key(|node| node.id);
    connect(&nodes, 1);
    nodes
}

fn connect(nodes: &[Node], counter: u32) {
    let peers: Vec<DataPeer> = nodes.iter().map(Node::peer).collect();
    for node in nodes {
        node.plane.set_peers(epoch(counter), &peers, LARGEST).unwrap();
    }
    for node in nodes {
        node.plane.wait_connected(soon()).unwrap();
    }
}

fn header(counter: u32, step: u64, rows: u32) -> Header {
    Header {
        epoch: epoch(counter),
        step: StepId(step),
        stage: 0,
        rank: 0,
        layer: 0,
        phase: Phase::Hop,
        dtype: WireType::F32,
        first_row: 0,
        rows,
        first_col: 0,
        cols: 0,
        len: 0,
        block_rows: rows,
    }
}

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(31).wrapping_add(seed) % 253) as u8).collect()
}

fn wait(node: &Node, header: &Header, from: &Node) -> Result<Block, WaitError> {
    node.plane.wait(&BlockKey::of(header, from.id), soon())
}

#[test]
fn blocks_of_all_sizes_pass_in_both_directions_and_classes() {
    let nodes = plan(2);
    let mut step = 0;
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&nodes[from], &nodes[to]);
        for class in [Class::Decode, Class::Prefill] {
            for (rows, row_bytes) in [
                (1, 1),
                (1, 4096),
                (3, 5000),
                (512, 2056),
                (1, 65_536),
                (2, 65_537),
                (1, 200_000),
                (512, 16_384),
            ] {
                step += 1;
                let payload = pattern(rows as usize * row_bytes, step as usize);
                let header = header(1, step, rows);
                from.plane.send(to.id, class, &header, &payload).unwrap();
                let block = wait(to, &header, from).unwrap();
                assert_eq!(block.bytes(), payload, "{rows} rows of {row_bytes}");
                assert_eq!((block.header().rows, block.header().len as usize), (rows, payload.len()));
            }
        }
    }
    let (sent, received) = (nodes[0].plane.bytes(), nodes[1].plane.bytes().received);
    assert!(sent.hop > LARGEST && sent.sum == 0 && sent.head == 0, "{sent:?}");
    assert_eq!(sent.hop, received);
}

#[test]
fn many_threads_exchange_partial_sums_all_to_all() {
    let nodes = plan(4);
    std::thread::scope(|scope| {
        for own in 0..nodes.len() {
            let nodes = &nodes;
            scope.spawn(move || {
                for step in 1..200 {
                    let head = Header { phase: Phase::AttnPartial, rank: own as u16, ..header(1, step, 2) };
                    for other in (0..nodes.len()).filter(|other| *other != own) {
                        let payload = pattern(1024, own * 1000 + step as usize);
                        nodes[own].plane.send(nodes[other].id, Class::Decode, &head, &payload).unwrap();
                    }
                    for other in (0..nodes.len()).filter(|other| *other != own) {
                        let head = Header { rank: other as u16, ..head };
                        let block = wait(&nodes[own], &head, &nodes[other]).unwrap();
                        assert_eq!(block.header().rank, other as u16);
                        assert_eq!(block.bytes(), pattern(1024, other * 1000 + step as usize));
                    }
                }
            });
        }
    });
    assert_eq!(nodes[0].plane.bytes().sum, 3 * 199 * (1024 + 64));
}

#[test]
fn rows_may_be_sent_as_they_are_computed() {
    let nodes = plan(2);
    let payload = pattern(10 * 300, 1);
    for (first_row, rows) in [(0, 4), (4, 1), (5, 5)] {
        let head = Header { first_row, rows, block_rows: 10, ..header(1, 1, 10) };
        let part = &payload[first_row as usize * 300..(first_row + rows) as usize * 300];
        let key = BlockKey::of(&head, nodes[0].id);
        assert!(nodes[1].plane.try_take(&key).is_none());
        nodes[0].plane.send(nodes[1].id, Class::Decode, &head, part).unwrap();
    }
    assert_eq!(wait(&nodes[1], &header(1, 1, 10), &nodes[0]).unwrap().bytes(), payload);
}

#[test]
fn a_decode_block_overtakes_a_prefill() {
    let nodes = plan(2);
    let (prefill, decode) = (header(1, 1, 512), header(1, 2, 1));
    let large = pattern(LARGEST as usize, 1);
    nodes[0].plane.send(nodes[1].id, Class::Prefill, &prefill, &large).unwrap();
    nodes[0].plane.send(nodes[1].id, Class::Decode, &decode, &[1; 64]).unwrap();
    let keys = [BlockKey::of(&prefill, nodes[0].id), BlockKey::of(&decode, nodes[0].id)];
    let Ok(Wake::Block(1, _)) = nodes[1].plane.wait_any(&keys, Some(soon())) else {
        panic!("prefill was first")
    };
    assert_eq!(wait(&nodes[1], &prefill, &nodes[0]).unwrap().bytes(), large);
}

#[test]
fn older_epochs_are_dropped_and_newer_ones_held() {
    let nodes = plan(2);
    let (a, b) = (&nodes[0], &nodes[1]);
    let peers: Vec<DataPeer> = nodes.iter().map(Node::peer).collect();
    a.plane.send(b.id, Class::Decode, &header(1, 7, 1), &[1; 10]).unwrap();
    wait(b, &header(1, 7, 1), a).unwrap();
    // A is ahead: its first steps of epoch 2 wait at B until B follows.
    a.plane.set_peers(epoch(2), &peers, LARGEST).unwrap();
    for step in 1..=2 {
        a.plane.send(b.id, Class::Decode, &header(2, step, 1), &[step as u8; 10]).unwrap();
    }
    // B still sends for epoch 1, which A drops.
    b.plane.send(a.id, Class::Decode, &header(1, 8, 1), &[1; 10]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    b.plane.set_peers(epoch(2), &peers, LARGEST).unwrap();
    for step in 1..=2 {
        assert_eq!(wait(b, &header(2, step, 1), a).unwrap().bytes(), [step as u8; 10]);
    }
    b.plane.send(a.id, Class::Decode, &header(2, 1, 1), &[9; 10]).unwrap();
    assert_eq!(wait(a, &header(2, 1, 1), b).unwrap().bytes(), [9; 10]);
    assert!(a.plane.try_take(&BlockKey::of(&header(1, 8, 1), b.id)).is_none());
    assert_eq!(wait(a, &header(1, 8, 1), b).unwrap_err(), WaitError::Ended { epoch: epoch(1) });
    let late = a.plane.send(b.id, Class::Decode, &header(1, 9, 1), &[1; 10]);
    assert_eq!(late, Err(SendError::Epoch { epoch: epoch(1) }));
    assert!(a.plane.set_peers(epoch(2), &peers, LARGEST).is_err(), "an epoch comes once");
}

#[test]
fn a_third_step_of_a_newer_epoch_closes_the_connection() {
    let nodes = plan(2);
    let (a, b) = (&nodes[0], &nodes[1]);
    let peers: Vec<DataPeer> = nodes.iter().map(Node::peer).collect();
    a.plane.set_peers(epoch(2), &peers, LARGEST).unwrap();
    for step in 1..=3 {
        a.plane.send(b.id, Class::Decode, &header(2, step, 1), &[1; 10]).unwrap();
    }
    let error = wait(b, &header(1, 1, 1), a).unwrap_err();
    let WaitError::PeerLost { node, reason } = error else { panic!("{error}") };
    assert!(node == a.id && reason.contains("not in force"), "{reason}");
    let error = wait(a, &header(2, 1, 1), b).unwrap_err();
    let WaitError::PeerLost { reason, .. } = error else { panic!("{error}") };
    assert!(reason.contains("protocol error"), "{reason}");
    assert_eq!(a.plane.lost(), Some((b.id, reason)));
    assert!(matches!(a.plane.wait_any(&[], Some(soon())), Ok(Wake::Notified)));
}

#[test]
fn a_block_over_the_receivers_plan_closes_the_connection() {
    let cluster = Cluster::new();
    let nodes = [Node::start(&cluster), Node::start(&cluster)];
    let peers: Vec<DataPeer> = nodes.iter().map(Node::peer).collect();
    nodes[0].plane.set_peers(epoch(1), &peers, LARGEST).unwrap();
    nodes[1].plane.set_peers(epoch(1), &peers, 1000).unwrap();
    nodes[0].plane.wait_connected(soon()).unwrap();
    nodes[1].plane.wait_connected(soon()).unwrap();
    nodes[0].plane.send(nodes[1].id, Class::Decode, &header(1, 1, 1), &[0; 1001]).unwrap();
    let error = wait(&nodes[1], &header(1, 1, 1), &nodes[0]).unwrap_err().to_string();
    assert!(error.contains("1001 bytes") && error.contains(&nodes[0].id.to_string()), "{error}");
    let error = nodes[1].plane.send(nodes[0].id, Class::Decode, &header(1, 1, 1), &[0; 1001]);
    assert!(matches!(error, Err(SendError::PeerLost { .. })), "{error:?}");
}

#[test]
fn the_same_block_twice_closes_the_connection() {
    let nodes = plan(2);
    for _ in 0..2 {
        nodes[0].plane.send(nodes[1].id, Class::Decode, &header(1, 1, 1), &[0; 10]).unwrap();
    }
    let error = wait(&nodes[1], &header(1, 2, 1), &nodes[0]).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}

#[test]
fn losing_a_peer_wakes_all_who_wait_and_a_new_epoch_goes_on_without_it() {
    let mut nodes = plan(3);
    let dead = nodes.remove(1);
    let waiters: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (plane, key) = (node.plane.clone(), BlockKey::of(&header(1, 1, 1), dead.id));
            std::thread::spawn(move || {
                (plane.wait(&key, Instant::now() + Duration::from_secs(20)), Instant::now())
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    let (start, gone) = (Instant::now(), dead.id);
    drop(dead);
    for waiter in waiters {
        let (result, woken) = waiter.join().unwrap();
        let Err(WaitError::PeerLost { node, .. }) = result else { panic!("{result:?}") };
        assert!(node == gone && woken.duration_since(start) < Duration::from_secs(2));
    }
    assert!(nodes[0].plane.lost().is_none(), "it took its leave");
    let error = nodes[0].plane.send(gone, Class::Decode, &header(1, 1, 1), &[0]).unwrap_err();
    assert!(matches!(error, SendError::PeerLost { .. }), "{error}");
    connect(&nodes, 2);
    assert!(nodes[0].plane.lost().is_none());
    nodes[0].plane.send(nodes[1].id, Class::Decode, &header(2, 1, 1), &[5]).unwrap();
    assert_eq!(wait(&nodes[1], &header(2, 1, 1), &nodes[0]).unwrap().bytes(), [5]);
}

#[test]
fn nodes_outside_the_plan_are_not_let_in_and_the_missing_are_named() {
    let cluster = Cluster::new();
    let other = Cluster::new();
    let mut nodes: Vec<Node> = (0..2).map(|_| Node::start(&cluster)).collect();
    nodes.sort_by_key(|node| node.id);
    let peers: Vec<DataPeer> = nodes.iter().map(Node::peer).collect();
    // The higher one has no plan with the lower one in it, which therefore is refused.
    nodes[0].plane.set_peers(epoch(1), &peers, LARGEST).unwrap();
    let error = nodes[0].plane.wait_connected(Instant::now() + Duration::from_millis(600)).unwrap_err();
    let WaitError::NotConnected { nodes: missing } = &error else { panic!("{error}") };
    assert!(missing[0].0 == nodes[1].id && missing[0].1.contains("does not accept"), "{error}");
    let error = nodes[0].plane.send(nodes[1].id, Class::Decode, &header(1, 1, 1), &[0]).unwrap_err();
    assert!(matches!(error, SendError::NotConnected { .. }), "{error}");
    // It gets its plan later: the connection is made without anybody asking again.
    nodes[1].plane.set_peers(epoch(1), &peers, LARGEST).unwrap();
    nodes[0].plane.wait_connected(soon()).unwrap();
    nodes[1].plane.wait_connected(soon()).unwrap();

    // A member of another cluster under the address of a peer, and a peer that is not there.
    let stranger = Node::start(&other);
    let wrong = DataPeer { node: NodeId([0xff; 16]), addresses: vec![stranger.plane.local_address()] };
    nodes[0].plane.set_peers(epoch(2), &[wrong], LARGEST).unwrap();
    let error = nodes[0].plane.wait_connected(Instant::now() + Duration::from_millis(300)).unwrap_err();
    assert!(error.to_string().contains("not signed by this cluster's authority"), "{error}");
    let nobody: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let absent = DataPeer { node: NodeId([0xff; 16]), addresses: vec![nobody] };
    nodes[0].plane.set_peers(epoch(3), &[absent], LARGEST).unwrap();
    let error = nodes[0].plane.wait_connected(Instant::now() + Duration::from_millis(1500)).unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
}

#[test]
fn a_thread_can_wait_for_data_or_for_a_word() {
    let nodes = plan(2);
    let notifier = nodes[0].plane.notifier();
    notifier.notify();
    assert!(matches!(nodes[0].plane.wait_any(&[], None), Ok(Wake::Notified)));
    let timeout = nodes[0].plane.wait_any(&[], Some(Instant::now() + Duration::from_millis(20)));
    assert!(matches!(timeout, Err(WaitError::Deadline)));
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        notifier.notify();
    });
    let key = BlockKey::of(&header(1, 1, 1), nodes[1].id);
    assert!(matches!(nodes[0].plane.wait_any(&[key], Some(soon())), Ok(Wake::Notified)));
    thread.join().unwrap();
    // The end of the epoch ends a wait that nothing else would.
    let plane = nodes[0].plane.clone();
    let waiting = std::thread::spawn(move || plane.wait(&key, soon()));
    std::thread::sleep(Duration::from_millis(50));
    nodes[0].plane.end(epoch(1));
    assert_eq!(waiting.join().unwrap().unwrap_err(), WaitError::Ended { epoch: epoch(1) });
    let error = wait(&nodes[1], &header(1, 1, 1), &nodes[0]).unwrap_err();
    assert!(matches!(error, WaitError::PeerLost { .. }), "{error}");
}

#[test]
fn what_is_not_taken_holds_the_sender_back_and_not_the_memory() {
    let nodes = plan(2);
    let block = pattern(LARGEST as usize, 3);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for step in 1..=12 {
                nodes[0].plane.send(nodes[1].id, Class::Prefill, &header(1, step, 512), &block).unwrap();
            }
        });
        std::thread::sleep(Duration::from_millis(700));
        assert!(!sender.is_finished(), "the sender should wait for room");
        let received = nodes[1].plane.bytes().received;
        assert!(received <= 4 * LARGEST, "{received}");
        for step in 1..=12 {
            assert_eq!(wait(&nodes[1], &header(1, step, 512), &nodes[0]).unwrap().bytes(), block);
        }
    });
}

#[test]
fn a_link_is_measured_without_a_plan() {
    let cluster = Cluster::new();
    let nodes = [Node::start(&cluster), Node::start(&cluster)];
    let [there, back] = nodes[0].plane.probe(&nodes[1].peer()).unwrap();
    assert_eq!((there.from, there.to), (nodes[0].id, nodes[1].id));
    assert_eq!((back.from, back.to), (nodes[1].id, nodes[0].id));
    for report in [there, back] {
        report.check().unwrap();
        let trips = &report.figures.round_trips;
        let sizes: Vec<u32> = trips.iter().map(|trip| trip.bytes).collect();
        assert_eq!(sizes, [64, 4096, 65_536]);
        assert!(report.figures.bandwidth.median.0 > 1e6, "{report:?}");
        assert!(trips[0].time.median.0 < 0.1, "{report:?}");
        // Two ends compute for two messages within a round trip that nothing else delays.
        assert!(report.figures.message_cpu.median.0 < 4.0 * trips[0].time.median.0, "{report:?}");
    }
    // Not by a node of another cluster.
    let stranger = Node::start(&Cluster::new());
    assert!(stranger.plane.probe(&nodes[1].peer()).is_err());
}

/// Seconds of a round trip of `bytes` between the planes of a plan, each driven by a plain thread: the median of some.
fn exchange(nodes: &[Node], first_step: u64, bytes: usize) -> f64 {
    const ROUNDS: u64 = 60;
    let block = pattern(bytes, 1);
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for step in first_step..first_step + ROUNDS {
                wait(&nodes[1], &header(1, step, 1), &nodes[0]).unwrap();
                nodes[1].plane.send(nodes[0].id, Class::Decode, &header(1, step, 1), &block).unwrap();
            }
        });
        for step in first_step..first_step + ROUNDS {
            let start = Instant::now();
            nodes[0].plane.send(nodes[1].id, Class::Decode, &header(1, step, 1), &block).unwrap();
            wait(&nodes[0], &header(1, step, 1), &nodes[1]).unwrap();
            times.push(start.elapsed().as_secs_f64());
        }
    });
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
fn a_node_has_one_probe_at_a_time() {
    let cluster = Cluster::new();
    let nodes = [Node::start(&cluster), Node::start(&cluster)];
    let good = std::thread::scope(|scope| {
        let probes: Vec<_> = (0..6).map(|_| scope.spawn(|| nodes[0].plane.probe(&nodes[1].peer()))).collect();
        probes.into_iter().map(|probe| probe.join().unwrap()).filter(Result::is_ok).count()
    });
    assert!((1..6).contains(&good), "{good} of 6 probes at once");
    assert!(nodes[0].plane.probe(&nodes[1].peer()).is_ok(), "those that were replaced left nothing behind");
}

#[test]
fn a_probe_takes_what_an_exchange_of_a_plan_takes() {
    let nodes = plan(2);
    // What begins beside it in its midst may spoil one attempt; a probe that measures something else spoils all.
    let tried: Vec<[f64; 3]> =
        (0..3).map_while(|attempt| probe_beside_exchange(&nodes, 100_000 * attempt)).collect();
    assert!(tried.len() < 3, "{tried:?}");
}

/// What a probe says of each size by what an exchange takes, where one of them is not near 1.
fn probe_beside_exchange(nodes: &[Node], base: u64) -> Option<[f64; 3]> {
    exchange(nodes, base + 1, 64);
    // Measured in turn, so that what else this machine does disturbs both alike.
    let mut ratios = [const { Vec::new() }; 3];
    for round in 1..=5 {
        let [report, _] = nodes[0].plane.probe(&nodes[1].peer()).unwrap();
        for (at, trip) in report.figures.round_trips.iter().enumerate() {
            let first_step = base + 10_000 * round + 1000 * (at as u64 + 1);
            let real = exchange(nodes, first_step, trip.bytes as usize);
            ratios[at].push(trip.time.median.0 / real);
        }
    }
    let medians = ratios.map(|mut ratios| {
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    });
    medians.iter().any(|ratio| !(0.5..2.0).contains(ratio)).then_some(medians)
}

/// The process that dies in the test below: a data plane with one peer, until it is killed.
#[test]
fn victim() {
    let Ok(dir) = std::env::var("SHOAL_TEST_VICTIM") else { return };
    let dir = std::path::Path::new(&dir);
    let identity = shoal_net::Identity::load_or_create(dir).unwrap();
    let membership = shoal_net::Membership::load(dir, &identity).unwrap().unwrap();
    let plane = DataPlane::start(ANY, &membership.credentials(&identity).unwrap()).unwrap();
    let (node, address) = std::env::var("SHOAL_TEST_PEER").unwrap().split_once(' ').map(own).unwrap();
    let peer = DataPeer { node: node.parse().unwrap(), addresses: vec![address.parse().unwrap()] };
    plane.set_peers(epoch(1), &[peer], LARGEST).unwrap();
    std::fs::write(dir.join("new"), plane.local_address().to_string()).unwrap();
    std::fs::rename(dir.join("new"), dir.join("address")).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

fn own((a, b): (&str, &str)) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[test]
fn a_killed_process_is_noticed_within_two_seconds() {
    let cluster = Cluster::new();
    let node = Node::start(&cluster);
    let home = tempfile::tempdir().unwrap();
    let identity = shoal_net::Identity::load_or_create(home.path()).unwrap();
    cluster.authority.admit(identity.public()).unwrap().save(home.path()).unwrap();
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim"])
        .env("SHOAL_TEST_VICTIM", home.path())
        .env("SHOAL_TEST_PEER", format!("{} {}", node.id, node.plane.local_address()))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let address = loop {
        match std::fs::read_to_string(home.path().join("address")) {
            Ok(text) => break text.parse().unwrap(),
            Err(_) => assert!(victim.try_wait().unwrap().is_none(), "the other process ended"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let peer = DataPeer { node: identity.node(), addresses: vec![address] };
    node.plane.set_peers(epoch(1), &[peer], LARGEST).unwrap();
    node.plane.wait_connected(soon()).unwrap();
    let (plane, key) = (node.plane.clone(), BlockKey::of(&header(1, 1, 1), identity.node()));
    let waiter =
        std::thread::spawn(move || plane.wait(&key, Instant::now() + Duration::from_secs(20)).map(|_| ()));
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    victim.kill().unwrap();
    victim.wait().unwrap();
    let error = waiter.join().unwrap().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(matches!(&error, WaitError::PeerLost { node, .. } if *node == identity.node()), "{error}");
    assert_eq!(node.plane.lost().map(|(node, _)| node), Some(identity.node()));
}
