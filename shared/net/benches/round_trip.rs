//! A block there and one back between two data planes of one process, as two ranks exchange partial sums.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use shoal_core::frame::{Class, Header, Phase, WireType};
use shoal_core::{Epoch, StepId, Term};
use shoal_net::data::{BlockKey, DataPeer, DataPlane};
use shoal_net::{Authority, Identity};

fn round_trip(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::load_or_create(dir.path()).expect("an authority");
    let epoch = Epoch { term: Term(1), counter: 1 };
    let mut nodes: Vec<(DataPeer, DataPlane)> = Vec::new();
    for _ in 0..2 {
        let identity = Identity::ephemeral().expect("a key");
        let membership = authority.admit(identity.public()).expect("a certificate");
        let credentials = membership.credentials(&identity).expect("credentials");
        let plane = DataPlane::start(([127, 0, 0, 1], 0).into(), &credentials).expect("a port");
        nodes.push((DataPeer { node: identity.node(), addresses: vec![plane.local_address()] }, plane));
    }
    let peers: Vec<DataPeer> = nodes.iter().map(|(peer, _)| peer.clone()).collect();
    for (_, plane) in &nodes {
        plane.set_peers(epoch, &peers, 1 << 20).expect("a plan");
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    nodes.iter().for_each(|(_, plane)| plane.wait_connected(deadline).expect("a connection"));
    let (here, there) = (&nodes[0], &nodes[1]);
    let header = |step, phase| Header {
        epoch,
        step: StepId(step),
        stage: 0,
        rank: 0,
        layer: 0,
        phase,
        dtype: WireType::F32,
        first_row: 0,
        rows: 1,
        first_col: 0,
        cols: 0,
        len: 0,
        block_rows: 1,
    };
    let far = || Instant::now() + Duration::from_secs(10);
    std::thread::scope(|scope| {
        // The other rank: returns each block until one is empty.
        scope.spawn(|| {
            for step in 1.. {
                let key = BlockKey::of(&header(step, Phase::AttnPartial), here.0.node);
                let Ok(block) = there.1.wait(&key, far()) else { return };
                let back = header(step, Phase::AttnSum);
                let sent = there.1.send(here.0.node, Class::Decode, &back, &block);
                if block.is_empty() || sent.is_err() {
                    return;
                }
            }
        });
        let mut step = 0;
        let mut exchange = |payload: &[u8]| {
            step += 1;
            let head = header(step, Phase::AttnPartial);
            here.1.send(there.0.node, Class::Decode, &head, payload).expect("a peer");
            let key = BlockKey::of(&header(step, Phase::AttnSum), there.0.node);
            here.1.wait(&key, far()).expect("an answer")
        };
        for bytes in [64, 4 << 10, 64 << 10] {
            let payload = vec![1; bytes];
            criterion.bench_function(&format!("round trip of {bytes} B"), |bench| {
                bench.iter(|| exchange(&payload))
            });
        }
        exchange(&[]);
    });
}

criterion_group!(benches, round_trip);
criterion_main!(benches);
