//! How the bytes move: quinn on a small tokio runtime with one thread of its own. To be replaced without
//! touching callers; nothing outside this folder knows that there is a runtime.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use quinn::{
    Connection, Endpoint, ReadError, ReadExactError, RecvStream, SendStream, TransportConfig, VarInt,
};
use shoal_core::frame::HEADER_BYTES;
use shoal_core::profile::LinkProfile;
use shoal_core::{Epoch, NodeId};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::cut::{Assemblies, Violation, read_header};
use super::inbox::{Change, Inbox, Judgement, Live, Room};
use super::pool::Buffer;
use super::{DataError, DataPeer, probe};
use crate::gate::{Admitted, Gate};
use crate::quic::{self, CloseCode, DEAD_AFTER, Dial};
use crate::tls::{ALPN_DATA, ALPN_PROBE, Admit, WantedServer};
use crate::trust::{Credentials, PublicKey, Role, verify};

/// Streams a peer opens to us on a connection: one for each class.
const STREAMS: u32 = 2;

/// What one stream may have on its way: several times what gigabit Ethernet or Wi-Fi holds.
const STREAM_WINDOW: u32 = 2 << 20;

/// Pause between two attempts to reach a peer, which may get its plan later than we got ours.
const REDIAL: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(400)];

/// The first bytes of a stream: QUIC tells the peer of a stream only when it carries some.
const OPENING: [u8; 4] = *b"SHLD";

/// For how long the last packets may take to leave when the plane is closed.
const GOODBYE: Duration = Duration::from_millis(200);

/// The endpoint and its thread.
#[derive(Debug)]
pub(super) struct Io {
    /// Taken when dropped.
    runtime: Option<Runtime>,
    context: Context,
    address: SocketAddr,
}

#[derive(Debug, Clone)]
pub(super) struct Context {
    endpoint: Endpoint,
    credentials: Credentials,
    authority: PublicKey,
    transport: Arc<TransportConfig>,
    inbox: Arc<Inbox>,
}

impl Io {
    pub(super) fn start(
        address: SocketAddr,
        credentials: Credentials,
        inbox: Arc<Inbox>,
    ) -> Result<Self, DataError> {
        let authority = credentials.authority().ok_or(DataError::NotJoined)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("shoal-data")
            .enable_all()
            .build()
            .map_err(DataError::Runtime)?;
        let worker = |allowed| Admit::Certified { authority, role: Role::Worker, allowed };
        let policies = vec![(ALPN_DATA, worker(Some(inbox.allowed.clone()))), (ALPN_PROBE, worker(None))];
        let transport = Arc::new(transport());
        let gate = Gate { credentials: credentials.clone(), policies, transport: transport.clone() };
        let guard = runtime.enter();
        let endpoint = quic::endpoint(address, Some(gate.endpoint_config()?))
            .map_err(|source| DataError::Bind { address, source })?;
        let local = endpoint.local_addr().map_err(|source| DataError::Bind { address, source })?;
        drop(guard);
        let context = Context { endpoint: endpoint.clone(), credentials, authority, transport, inbox };
        let (serving, probes) = (context.clone(), probe::Server::default());
        let serve = move |admitted| {
            let (context, probes) = (serving.clone(), probes.clone());
            async move { context.receive(admitted, probes).await }
        };
        runtime.spawn(gate.accept(endpoint, serve));
        Ok(Self { runtime: Some(runtime), context, address: local })
    }

    pub(super) fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Makes and closes connections as the plan wants it.
    pub(super) fn follow(&self, change: Change) {
        for connection in change.close {
            quic::close(&connection, CloseCode::Done, "this node is not in the plan any more");
        }
        let Some(runtime) = &self.runtime else { return };
        for peer in change.dial {
            runtime.spawn(self.context.clone().dial(change.epoch, peer));
        }
    }

    pub(super) fn probe(&self, peer: &DataPeer) -> Result<[LinkProfile; 2], DataError> {
        let failed = |reason| DataError::Probe { node: peer.node, reason };
        let Some(runtime) = &self.runtime else { return Err(failed("the data plane is closed".to_owned())) };
        let handle = runtime.handle();
        let measure = || {
            let (connection, _) = handle.block_on(self.context.connect(ALPN_PROBE, peer))?;
            let start = Instant::now();
            let report = probe::measure(&self.context, handle, &connection, peer.node);
            let address = quic::address_of(&connection);
            let ended = connection.close_reason();
            quic::close(&connection, CloseCode::Done, "");
            report.ok_or_else(|| match ended {
                Some(error) if start.elapsed() < probe::PROBE_TIME => quic::ended(address, error, ALPN_PROBE),
                _ => quic::LinkError::Timeout { address },
            })
        };
        // On a plain thread, as a compute thread waits: the hop from the runtime's thread is part of the price.
        let measured = std::thread::scope(|scope| scope.spawn(measure).join());
        measured
            .map_err(|_| failed("its thread panicked".to_owned()))?
            .map_err(|error| failed(quic::chain(&error)))
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let endpoint = self.context.endpoint.clone();
        endpoint.close(CloseCode::Done.code(), b"the data plane was closed");
        let (done, wait) = std_mpsc::channel();
        runtime.spawn(async move {
            endpoint.wait_idle().await;
            // Nobody listens when it took too long.
            let _ = done.send(());
        });
        // Peers that miss the goodbye find out by silence.
        let _ = wait.recv_timeout(GOODBYE);
        runtime.shutdown_background();
    }
}

impl Context {
    pub(super) fn node(&self) -> NodeId {
        self.credentials.node()
    }

    /// The same endpoint for connections that have an inbox of their own.
    pub(super) fn with_inbox(&self, inbox: Arc<Inbox>) -> Self {
        Self { inbox, ..self.clone() }
    }

    /// Dials until the peer is connected or the plan has changed.
    async fn dial(self, epoch: Epoch, peer: DataPeer) {
        let mut pause = REDIAL[0];
        while self.inbox.wants(epoch, peer.node) {
            match self.connect(ALPN_DATA, &peer).await {
                Ok((connection, node)) => match self.start(connection, node, true).await {
                    Ok(()) => return,
                    Err(reason) => self.inbox.trouble(peer.node, reason),
                },
                Err(error) => self.inbox.trouble(peer.node, quic::chain(&error)),
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(REDIAL[1]);
        }
    }

    async fn connect(
        &self,
        alpn: &'static [u8],
        peer: &DataPeer,
    ) -> Result<(Connection, NodeId), quic::LinkError> {
        let (authority, node) = (self.authority, Some(peer.node));
        let dial = Dial {
            credentials: &self.credentials,
            alpn,
            server: WantedServer::Certified { authority, role: Role::Worker, node },
            transport: self.transport.clone(),
            timeout: DEAD_AFTER,
        };
        let (connection, certified) = dial.any(&self.endpoint, &peer.addresses).await?;
        Ok((connection, certified.node))
    }

    /// Serves a peer that the gate let in.
    async fn receive(self, admitted: Admitted, probes: probe::Server) {
        let Admitted { connection, alpn, leaf, permit } = admitted;
        drop(permit);
        let Ok(certified) = verify(&leaf, &self.authority) else { return };
        if alpn == ALPN_PROBE {
            return probes.serve(self, connection, certified.node).await;
        }
        if let Err(reason) = self.start(connection, certified.node, false).await {
            tracing::debug!(node = %certified.node, "lost a peer as it connected: {reason}");
        }
    }

    /// Opens our streams, puts the connection in use, and starts what reads, writes and watches it. Who
    /// dialled first waits for the other side's opening: its handshake was done before ours was judged.
    pub(super) async fn start(
        &self,
        connection: Connection,
        node: NodeId,
        dialled: bool,
    ) -> Result<(), String> {
        let first = if dialled { Some(accept(&connection).await?) } else { None };
        let queued = Arc::new(AtomicU64::new(0));
        let mut outboxes = Vec::new();
        for priority in [1, 0] {
            let mut stream = connection.open_uni().await.map_err(|error| error.to_string())?;
            stream.set_priority(priority).map_err(|error| error.to_string())?;
            stream.write_all(&OPENING).await.map_err(|error| error.to_string())?;
            let (outbox, frames) = mpsc::unbounded_channel();
            tokio::spawn(write(stream, frames, queued.clone(), self.inbox.clone()));
            outboxes.push(outbox);
        }
        let outboxes = outboxes.try_into().map_err(|_| "two streams were opened")?;
        let live = Live { connection: connection.clone(), outboxes, queued };
        match self.inbox.connected(node, live) {
            Ok(Some(old)) => {
                quic::close(&old.connection, CloseCode::Replaced, "a newer connection took over")
            }
            Ok(None) => {}
            Err(()) => {
                let reason = "not a node of the plan in force";
                quic::close(&connection, CloseCode::Refused, reason);
                return Err(reason.to_owned());
            }
        }
        tracing::debug!(%node, address = %quic::address_of(&connection), "connected");
        tokio::spawn(self.clone().watch(connection, node, first));
        Ok(())
    }

    /// Reads the peer's streams until the connection ends. Further streams than this version's are never read: each
    /// has room of its own for blocks that wait, so there must not be more of them.
    async fn watch(self, connection: Connection, node: NodeId, mut first: Option<RecvStream>) {
        for _ in 0..STREAMS {
            let stream = match first.take() {
                Some(stream) => Ok(stream),
                None => accept(&connection).await,
            };
            let Ok(stream) = stream else { break };
            let (inbox, connection) = (self.inbox.clone(), connection.clone());
            tokio::spawn(async move {
                let Err(violation) = read(stream, node, &inbox).await else { return };
                let address = quic::address_of(&connection);
                let reason = format!("it sent what does not hold: {violation}");
                tracing::warn!(%node, %address, "closed the data connection: {reason}");
                inbox.disconnected(node, &connection, &reason, false);
                quic::close(&connection, CloseCode::Protocol, &violation.to_string());
            });
        }
        let error = quic::ended(quic::address_of(&connection), connection.closed().await, ALPN_DATA);
        let reason = quic::chain(&error);
        let left = matches!(error, quic::LinkError::Closed { code: CloseCode::Done, .. });
        if self.inbox.disconnected(node, &connection, &reason, left) && !self.inbox.is_probe() {
            tracing::info!(%node, "lost a peer of the data plane: {reason}");
        }
    }
}

/// Waits for the peer to open a stream as this version does.
async fn accept(connection: &Connection) -> Result<RecvStream, String> {
    let ended = |error| quic::chain(&quic::ended(quic::address_of(connection), error, ALPN_DATA));
    let mut stream = connection.accept_uni().await.map_err(ended)?;
    let mut opening = [0; OPENING.len()];
    match stream.read_exact(&mut opening).await {
        Ok(()) if opening == OPENING => Ok(stream),
        Err(ReadExactError::ReadError(ReadError::ConnectionLost(error))) => Err(ended(error)),
        _ => {
            let reason = "a stream does not open as this version's do";
            quic::close(connection, CloseCode::Protocol, reason);
            Err(reason.to_owned())
        }
    }
}

/// Sends what compute threads put into an outbox.
async fn write(
    mut stream: SendStream,
    mut frames: mpsc::UnboundedReceiver<Buffer>,
    queued: Arc<AtomicU64>,
    inbox: Arc<Inbox>,
) {
    while let Some(bytes) = frames.recv().await {
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
        inbox.drained(&queued, bytes.len() as u64);
    }
}

/// Reads frames until the stream ends; only what no peer of this version sends is an error.
async fn read(mut stream: RecvStream, from: NodeId, inbox: &Inbox) -> Result<(), Violation> {
    let room = Arc::new(Room::default());
    let mut assemblies = Assemblies::new(from, inbox.pool.clone());
    let mut head = [0; HEADER_BYTES];
    while stream.read_exact(&mut head).await.is_ok() {
        let (header, more) = read_header(head, inbox.is_probe())?;
        inbox.received(HEADER_BYTES as u64 + u64::from(header.len));
        let limit = match inbox.judge(from, &header)? {
            Judgement::Drop => {
                if !skip(&mut stream, header.len as usize).await {
                    return Ok(());
                }
                continue;
            }
            Judgement::Take { epoch, limit } => {
                assemblies.drop_before(epoch);
                room.wait(limit).await;
                limit
            }
            Judgement::Hold { epoch, limit } => {
                assemblies.drop_before(epoch);
                limit
            }
        };
        let slot = assemblies.begin(&header, more, limit)?;
        if stream.read_exact(assemblies.payload(&slot)).await.is_err() {
            return Ok(());
        }
        if let Some((key, block)) = assemblies.finish(&slot) {
            inbox.deliver(key, block, &room)?;
        }
    }
    Ok(())
}

/// Reads over bytes; whether they came.
async fn skip(stream: &mut RecvStream, mut bytes: usize) -> bool {
    while bytes > 0 {
        match stream.read_chunk(bytes, true).await {
            Ok(Some(chunk)) => bytes -= chunk.bytes.len(),
            _ => return false,
        }
    }
    true
}

fn transport() -> TransportConfig {
    let mut transport = quic::transport();
    transport.max_concurrent_uni_streams(VarInt::from_u32(STREAMS));
    transport.max_concurrent_bidi_streams(VarInt::from_u32(1));
    transport.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    transport.receive_window(VarInt::from_u32(2 * STREAM_WINDOW));
    transport.send_window(2 * u64::from(STREAM_WINDOW));
    transport
}
