//! The tasks of one connection: greeting, reading, writing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_cluster::coordinator::check_welcome;
use shoal_core::NodeId;
use shoal_core::message::{Answer, Order};
use shoal_core::profile::NodeInfo;
use shoal_net::ControlConn;
use shoal_net::control::{ControlReceiver, ControlSender, EndpointError, Link};
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::chunks::Chunks;
use crate::exit::chain;

/// How long a worker may take to answer the greeting.
const GREETING: Duration = Duration::from_secs(5);

/// A control connection as the coordinator has it.
pub(super) type Conn = ControlConn<Order, Answer>;

/// What the tasks tell the actor.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A worker greeted back.
    Greeted { conn: Box<Conn>, info: Box<NodeInfo> },
    /// A worker that cannot be talked to.
    Refused { address: SocketAddr, reason: String },
    /// A dial came to its end; `target` is what was dialled.
    Dialled { target: Target, failure: Option<String> },
    /// An answer over connection `id`.
    Answer { node: NodeId, id: u64, answer: Answer },
    /// Connection `id` ended.
    Closed { node: NodeId, id: u64, reason: String },
}

/// Whom to dial: a known worker, or whoever of this cluster is at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Node(NodeId),
    Address(SocketAddr),
}

/// A connection in use.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: u64,
    pub(super) link: Link,
    pub(super) orders: UnboundedSender<Order>,
}

/// Greets the worker at the other end.
pub(super) async fn greet(mut conn: Conn, hello: Order, inbox: Sender<Incoming>) {
    let (node, address) = (conn.node(), conn.address());
    let exchange = async {
        conn.send(&hello).await.map_err(|error| chain(&error))?;
        let answer = conn.recv().await.map_err(|error| chain(&error))?;
        check_welcome(answer, node).map_err(|error| error.to_string())
    };
    let result = tokio::time::timeout(GREETING, exchange).await;
    let incoming = match result.unwrap_or_else(|_| Err("it does not answer the greeting".to_owned())) {
        Ok(info) => Incoming::Greeted { conn: Box::new(conn), info },
        Err(reason) => Incoming::Refused { address, reason },
    };
    // Without an actor there is nobody to tell.
    let _ = inbox.send(incoming).await;
}

/// Puts a greeted connection to use: its reader and writer, and the server of chunks.
pub(super) fn start(id: u64, conn: Conn, chunks: Arc<Chunks>, inbox: Sender<Incoming>) -> Peer {
    let (link, sender, receiver) = conn.split();
    let (orders, queue) = unbounded_channel();
    tokio::spawn(write(sender, queue));
    tokio::spawn(read(id, link.node(), receiver, inbox));
    tokio::spawn(shoal_net::chunks::serve(link.clone(), chunks));
    Peer { id, link, orders }
}

async fn write(mut sender: ControlSender<Order>, mut queue: UnboundedReceiver<Order>) {
    while let Some(order) = queue.recv().await {
        if let Err(error) = sender.send(&order).await {
            // The reader sees the same end and says so.
            tracing::debug!("failed to send an order: {}", chain(&error));
            return;
        }
    }
    sender.finish().await;
}

async fn read(id: u64, node: NodeId, mut receiver: ControlReceiver<Answer>, inbox: Sender<Incoming>) {
    loop {
        let (incoming, end) = match receiver.recv().await {
            Ok(answer) => (Incoming::Answer { node, id, answer }, false),
            Err(error) => (Incoming::Closed { node, id, reason: chain(&error) }, true),
        };
        if inbox.send(incoming).await.is_err() || end {
            return;
        }
    }
}

/// How a dial ended, for the actor.
pub(super) fn dial_failure(error: EndpointError) -> String {
    chain(&error)
}
