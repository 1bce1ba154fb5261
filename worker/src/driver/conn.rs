//! Control connections on the worker's side: greeting, reading, writing, dialling.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shoal_core::message::{Answer, Order};
use shoal_net::control::{CloseCode, ControlReceiver, ControlSender, Link};
use shoal_net::{ControlConn, WorkerEndpoint};
use tokio::sync::mpsc::{Sender, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a coordinator may take to greet.
const GREETING: Duration = Duration::from_secs(5);

/// How long the last words may take to arrive.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(super) type Endpoint = WorkerEndpoint<Answer, Order>;
pub(super) type Control = ControlConn<Answer, Order>;

/// What connections tell the driver.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A connection's first message.
    Greeted { conn: Box<Control>, hello: Order },
    /// An order over connection `id`.
    Order { id: u64, order: Order },
    /// Connection `id` ended.
    Closed { id: u64, reason: String },
    /// A dial came to its end.
    Dialled { failure: Option<String> },
}

/// Bytes of one connection, by kind.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    pub(super) head: u64,
    pub(super) control: u64,
}

/// The connection in use.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: u64,
    pub(super) link: Link,
    /// Bytes of answers of the output head, as sent.
    head: Arc<AtomicU64>,
    answers: UnboundedSender<Answer>,
    writer: JoinHandle<ControlSender<Answer>>,
}

impl Conn {
    /// Starts to read orders and to write answers.
    pub(super) fn start(id: u64, conn: Control, inbox: Sender<Incoming>) -> Self {
        let (link, sender, receiver) = conn.split();
        let (answers, queue) = unbounded_channel();
        let head = Arc::new(AtomicU64::new(0));
        let writer = tokio::spawn(write(link.clone(), sender, queue, Arc::clone(&head)));
        tokio::spawn(read(id, receiver, inbox));
        Self { id, link, head, answers, writer }
    }

    /// Bytes so far: answers of the output head, and all other messages both ways.
    pub(super) fn traffic(&self) -> Traffic {
        let (bytes, head) = (self.link.bytes(), self.head.load(Ordering::Relaxed));
        Traffic { head, control: (bytes.sent + bytes.received).saturating_sub(head) }
    }

    /// Sends an answer after those before it.
    pub(super) fn send(&self, answer: Answer) {
        // A writer that is gone is followed by the reader's word of it.
        let _ = self.answers.send(answer);
    }

    /// Closes when all answers have arrived.
    pub(super) fn finish(self, reason: String) {
        let Self { link, answers, writer, .. } = self;
        drop(answers);
        tokio::spawn(async move {
            let last_words = async {
                if let Ok(sender) = writer.await {
                    sender.finish().await;
                }
            };
            // Whoever does not listen is closed all the same.
            let _ = timeout(LAST_WORDS, last_words).await;
            link.close(CloseCode::Refused, &reason);
        });
    }
}

/// Waits for the first message of a connection.
pub(super) fn greet(conn: Control, inbox: Sender<Incoming>) {
    tokio::spawn(first_message(conn, inbox));
}

async fn first_message(mut conn: Control, inbox: Sender<Incoming>) {
    match timeout(GREETING, conn.recv()).await {
        Ok(Ok(hello)) => {
            // Without a driver there is nobody to tell.
            let _ = inbox.send(Incoming::Greeted { conn: Box::new(conn), hello }).await;
        }
        Ok(Err(error)) => tracing::debug!("lost a coordinator before it greeted: {}", crate::chain(&error)),
        Err(_) => conn.link().close(CloseCode::Protocol, "there was no greeting in time"),
    }
}

/// Says no, and closes.
pub(super) fn refuse(mut conn: Control, refusal: Answer, reason: String) {
    tokio::spawn(async move {
        let last_words = async {
            if conn.send(&refusal).await.is_ok() {
                let (link, sender, _receiver) = conn.split();
                sender.finish().await;
                link.close(CloseCode::Refused, &reason);
            }
        };
        let _ = timeout(LAST_WORDS, last_words).await;
    });
}

/// Dials the coordinator where it was seen and where the settings say.
pub(super) fn dial(
    endpoint: &Arc<Endpoint>,
    mut addresses: Vec<SocketAddr>,
    names: Vec<String>,
    inbox: Sender<Incoming>,
) -> JoinHandle<()> {
    let endpoint = Arc::clone(endpoint);
    tokio::spawn(async move {
        addresses.extend(resolve(&names).await);
        let failure = match endpoint.dial(&addresses).await {
            Ok(conn) => {
                first_message(conn, inbox.clone()).await;
                None
            }
            Err(error) => Some(crate::chain(&error)),
        };
        // Without a driver there is nobody to tell.
        let _ = inbox.send(Incoming::Dialled { failure }).await;
    })
}

/// The addresses of `host:port` texts; a name that is not known now may be later.
pub(super) async fn resolve(names: &[String]) -> Vec<SocketAddr> {
    let mut out = Vec::new();
    for name in names {
        match tokio::net::lookup_host(name).await {
            Ok(found) => out.extend(found),
            Err(error) => tracing::warn!("failed to find the coordinator's address {name}: {error}"),
        }
    }
    out
}

async fn write(
    link: Link,
    mut sender: ControlSender<Answer>,
    mut queue: UnboundedReceiver<Answer>,
    head: Arc<AtomicU64>,
) -> ControlSender<Answer> {
    while let Some(answer) = queue.recv().await {
        let before = link.bytes().sent;
        if let Err(error) = sender.send(&answer).await {
            tracing::debug!("failed to send an answer: {}", crate::chain(&error));
            break;
        }
        if matches!(answer, Answer::Head { .. } | Answer::Queried { .. }) {
            head.fetch_add(link.bytes().sent - before, Ordering::Relaxed);
        }
    }
    sender
}

async fn read(id: u64, mut receiver: ControlReceiver<Order>, inbox: Sender<Incoming>) {
    loop {
        let (incoming, end) = match receiver.recv().await {
            Ok(order) => (Incoming::Order { id, order }, false),
            Err(error) => (Incoming::Closed { id, reason: crate::chain(&error) }, true),
        };
        if inbox.send(incoming).await.is_err() || end {
            return;
        }
    }
}
