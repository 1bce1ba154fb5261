//! Control messages and chunk streams between a coordinator and a worker.

mod common;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Cluster;
use shoal_core::limits::CONTROL_MESSAGE_BYTES;
use shoal_core::message::{Answer, Hash, Order};
use shoal_net::chunks::{self, ChunkError, ChunkSource};
use shoal_net::codec::CodecError;
use shoal_net::control::{Arrival, CloseCode, ControlConn, ControlError, LinkError};

type OrderConn = ControlConn<Order, Answer>;
type AnswerConn = ControlConn<Answer, Order>;

async fn pair() -> (common::Coordinator, OrderConn, common::Worker, AnswerConn) {
    let cluster = Cluster::new();
    let (coordinator, worker) = (cluster.coordinator(), cluster.worker());
    let addresses = [coordinator.local_address().unwrap()];
    let (ours, theirs) = tokio::join!(coordinator.arrival(), worker.dial(&addresses));
    let Some(Arrival::Connected(ours)) = ours else { panic!() };
    (coordinator, ours, worker, theirs.unwrap())
}

#[tokio::test]
async fn messages_pass_in_both_directions_at_once_and_are_counted() {
    let (_coordinator, ours, _worker, theirs) = pair().await;
    let (link, mut orders, mut answers) = ours.split();
    let (other, mut back, mut got) = theirs.split();
    let send = async {
        for nonce in 0..200 {
            orders.send(&Order::Ping { nonce }).await.unwrap();
        }
    };
    let echo = async {
        for _ in 0..200 {
            let Order::Ping { nonce } = got.recv().await.unwrap() else { panic!() };
            back.send(&Answer::Pong { nonce }).await.unwrap();
        }
    };
    let receive = async {
        for nonce in 0..200 {
            // A receive that is given up again and again loses nothing.
            let answer = loop {
                match tokio::time::timeout(Duration::from_micros(20), answers.recv()).await {
                    Ok(answer) => break answer.unwrap(),
                    Err(_) => continue,
                }
            };
            assert_eq!(answer, Answer::Pong { nonce });
        }
    };
    tokio::join!(send, echo, receive);
    let (a, b) = (link.bytes(), other.bytes());
    assert!(a.sent > 200 * 5 && a.received > 200 * 5, "{a:?}");
    assert_eq!((a.sent, a.received), (b.received, b.sent));
    assert!(link.round_trip() > Duration::ZERO);
}

#[tokio::test]
async fn a_message_over_the_limit_is_not_sent_and_the_connection_stays() {
    let (_coordinator, mut ours, _worker, mut theirs) = pair().await;
    let large = "x".repeat(CONTROL_MESSAGE_BYTES);
    let hello = |cluster| Order::Hello { protocol: 1, term: shoal_core::Term(1), cluster };
    let error = ours.send(&hello(large.clone())).await.unwrap_err();
    assert!(matches!(error, ControlError::Encode { source: CodecError::TooLong(_), .. }), "{error}");
    // The largest that fits arrives whole.
    let order = hello(large[..CONTROL_MESSAGE_BYTES - 100].to_owned());
    let (sent, got) = tokio::join!(ours.send(&order), theirs.recv());
    sent.unwrap();
    assert_eq!(got.unwrap(), order);
}

#[tokio::test]
async fn what_is_no_message_closes_the_connection_with_the_reason() {
    // A peer of another mind: it sends what its own types say.
    for bad in ["unknown", "trailing"] {
        let cluster = Cluster::new();
        let coordinator = cluster.coordinator();
        let (identity, membership) = cluster.member();
        let worker = shoal_net::WorkerEndpoint::<Vec<u64>, Order>::bind(common::ANY, &identity).unwrap();
        worker.enter(&membership).unwrap();
        let addresses = [coordinator.local_address().unwrap()];
        let (ours, theirs) = tokio::join!(coordinator.arrival(), worker.dial(&addresses));
        let (Some(Arrival::Connected(mut ours)), mut theirs) = (ours, theirs.unwrap()) else { panic!() };
        // As an answer: a variant that does not exist, or one (11: Pong) with bytes to spare.
        let message = if bad == "unknown" { vec![7; 250] } else { vec![1; 11] };
        theirs.send(&message).await.unwrap();
        let error = ours.recv().await.unwrap_err();
        assert!(matches!(error, ControlError::Decode { .. }), "{bad}: {error}");
        let ended = theirs.link().closed().await;
        assert!(matches!(ended, LinkError::Closed { code: CloseCode::Protocol, .. }), "{bad}: {ended}");
    }
}

#[tokio::test]
async fn closing_tells_the_other_side_why() {
    let (coordinator, ours, _worker, mut theirs) = pair().await;
    ours.link().close(CloseCode::Replaced, "a newer connection");
    let error = theirs.recv().await.unwrap_err().to_string();
    assert!(error.contains("replaced") && error.contains("a newer connection"), "{error}");
    coordinator.close("the end").await;
    assert!(matches!(coordinator.arrival().await, None | Some(_)));
}

#[tokio::test]
async fn a_silent_peer_is_dead_after_a_second() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator();
    let address = coordinator.local_address().unwrap();
    let (identity, membership) = cluster.member();
    // A worker in a runtime of its own, whose thread then stops as that of a killed process does.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let frozen = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let worker = {
            let _guard = runtime.enter();
            common::Worker::bind(common::ANY, &identity).unwrap()
        };
        let conn = runtime.block_on(async {
            worker.enter(&membership).unwrap();
            worker.dial(&[address]).await.unwrap()
        });
        stopped.recv().unwrap();
        std::mem::forget((conn, worker, runtime));
    });
    let Some(Arrival::Connected(mut ours)) = coordinator.arrival().await else { panic!() };
    let start = Instant::now();
    let error = ours.recv().await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(2), "{error}");
    assert!(common::chain(&error).contains("timed out"), "{}", common::chain(&error));
    stop.send(()).unwrap();
    frozen.join().unwrap();
}

const MODEL: Hash = [5; 32];
const CHUNK: usize = 64 << 10;

/// A model of nine chunks and a short one.
struct Model;

impl Model {
    fn bytes(index: u32) -> Vec<u8> {
        vec![index as u8; if index == 9 { 777 } else { CHUNK }]
    }
}

impl ChunkSource for Model {
    fn hashes(&self, model: &Hash) -> io::Result<Vec<Hash>> {
        if *model != MODEL {
            return Err(io::Error::new(io::ErrorKind::NotFound, "another model is served"));
        }
        Ok((0..10).map(|index| *blake3::hash(&Self::bytes(index)).as_bytes()).collect())
    }

    fn chunk(&self, model: &Hash, index: u32) -> io::Result<Vec<u8>> {
        match index {
            0..10 if *model == MODEL => Ok(Self::bytes(index)),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "no such chunk")),
        }
    }
}

#[tokio::test]
async fn chunks_come_in_order_and_verify() {
    let (_coordinator, ours, _worker, theirs) = pair().await;
    tokio::spawn(chunks::serve(ours.link(), Arc::new(Model)));
    let link = theirs.link();
    let hashes = chunks::fetch_hashes(&link, MODEL, 10).await.unwrap();
    let list = *blake3::hash(hashes.as_flattened()).as_bytes();
    assert!(chunks::verify_list(&hashes, &list) && !chunks::verify_list(&hashes[1..], &list));
    let mut got = Vec::new();
    let keep = |index, bytes: Vec<u8>| {
        assert!(chunks::verify(&bytes, &hashes[index as usize]));
        assert!(!chunks::verify(&bytes[1..], &hashes[index as usize]));
        got.push(index);
        Ok(())
    };
    chunks::fetch(&link, MODEL, 3..10, CHUNK as u32, keep).await.unwrap();
    assert_eq!(got, [3, 4, 5, 6, 7, 8, 9]);

    // Several requests at once share the connection.
    let fetch = |range| chunks::fetch(&link, MODEL, range, CHUNK as u32, |_, _| Ok(()));
    let all = tokio::join!(fetch(0..3), fetch(1..4), fetch(2..5), fetch(3..6), fetch(4..7));
    assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok() && all.3.is_ok() && all.4.is_ok());
}

#[tokio::test]
async fn what_cannot_be_had_is_an_error_that_says_why() {
    let (_coordinator, ours, _worker, theirs) = pair().await;
    tokio::spawn(chunks::serve(ours.link(), Arc::new(Model)));
    let link = theirs.link();
    let error = chunks::fetch_hashes(&link, [6; 32], 10).await.unwrap_err();
    assert!(error.to_string().contains("another model is served"), "{error}");
    for chunks in [9, 11] {
        let error = chunks::fetch_hashes(&link, MODEL, chunks).await.unwrap_err();
        assert!(matches!(error, ChunkError::TooLong { .. } | ChunkError::Lost { .. }), "{error}");
    }
    let fetch = |range, limit| chunks::fetch(&link, MODEL, range, limit, |_, _| Ok(()));
    assert!(matches!(fetch(10..11, CHUNK as u32).await, Err(ChunkError::Refused { .. })));
    assert!(matches!(fetch(9..11, CHUNK as u32).await, Err(ChunkError::Lost { .. })));
    assert!(matches!(fetch(0..1, 1000).await, Err(ChunkError::TooLong { bytes: 65_536, limit: 1000, .. })));
    assert!(matches!(fetch(0..0, 1000).await, Err(ChunkError::Range(_))));
    assert!(matches!(fetch(0..2000, 1000).await, Err(ChunkError::Range(_))));
    let full = |_, _| Err(io::Error::from(io::ErrorKind::StorageFull));
    let error = chunks::fetch(&link, MODEL, 0..2, CHUNK as u32, full).await.unwrap_err();
    assert!(matches!(error, ChunkError::Keep(_)), "{error}");
    ours.link().close(CloseCode::Done, "");
    assert!(matches!(fetch(0..1, CHUNK as u32).await, Err(ChunkError::Lost { .. })));
}

#[tokio::test]
async fn an_endpoint_on_all_addresses_is_reached_by_both_families_and_a_taken_port_is_an_error() {
    let cluster = Cluster::new();
    let any: std::net::SocketAddr = "[::]:0".parse().unwrap();
    let coordinator =
        common::Coordinator::bind(any, cluster.authority.clone(), cluster.tokens.clone()).unwrap();
    let bound = coordinator.local_address().unwrap();
    let error =
        common::Coordinator::bind(bound, cluster.authority.clone(), cluster.tokens.clone()).unwrap_err();
    assert!(
        common::chain(&error).contains(&format!("failed to open UDP {bound}")),
        "{}",
        common::chain(&error)
    );
    let (identity, membership) = cluster.member();
    let worker = common::Worker::bind(any, &identity).unwrap();
    worker.enter(&membership).unwrap();
    assert!(worker.enter(&membership).is_err(), "a second cluster");
    let mut hosts = vec!["127.0.0.1"];
    if bound.is_ipv6() {
        hosts.push("::1");
    }
    for host in hosts {
        // An address where nobody is comes first: the others are tried all the same.
        let addresses = [
            "127.0.0.1:9".parse().unwrap(),
            (host.parse::<std::net::IpAddr>().unwrap(), bound.port()).into(),
        ];
        let (arrival, dialled) = tokio::join!(coordinator.arrival(), worker.dial(&addresses));
        assert_eq!(dialled.unwrap().address(), addresses[1]);
        let Some(Arrival::Connected(ours)) = arrival else { panic!() };
        assert_eq!(ours.address().ip().to_string(), host);
    }
}
