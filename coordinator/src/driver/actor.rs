//! The one task that owns the state machine: feeds it arrivals, answers, commands and time, and carries out what it
//! decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_cluster::coordinator::{Action, Config, Event, Machine, State, greeting};
use shoal_core::message::Order;
use shoal_core::profile::NodeInfo;
use shoal_core::{NodeId, Term};
use shoal_net::control::{Arrival, CloseCode};
use shoal_net::discovery::{self, Advert, Browser, Discovery};
use shoal_net::lock::DataDirLock;
use shoal_net::{Authority, Role};
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, channel};

use super::book::{Book, Known};
use super::chunks::Chunks;
use super::peers::{self, Conn, Incoming, Peer, Target};
use super::{Command, DriverOptions, Endpoint, Told, Update, WorkerView};

/// Answers that wait for the actor; beyond it the readers wait, and so do the workers.
const INBOX: usize = 1024;

/// Time between two tries to reach workers that are known and not connected.
const REDIAL: Duration = Duration::from_secs(2);

/// The machine's ordinary work takes microseconds; only planning takes longer than this.
const LONG_WORK: Duration = Duration::from_millis(50);

/// How long workers may take to drop their shards when the command ends.
const UNLOAD: Duration = Duration::from_secs(2);

pub(super) struct Actor {
    machine: Machine,
    start: Instant,
    /// Time in which the machine itself was at work for long: it does not count as silence of the workers, which
    /// nobody asked for a sign of life meanwhile. Planning for many devices takes seconds.
    stalled: Duration,
    hello: Order,
    options: DriverOptions,
    authority: Arc<Authority>,
    endpoint: Arc<Endpoint>,
    chunks: Arc<Chunks>,
    tell: UnboundedSender<Told>,
    inbox: Receiver<Incoming>,
    inbox_sender: Sender<Incoming>,
    peers: BTreeMap<NodeId, Peer>,
    next_peer: u64,
    dialling: BTreeSet<Target>,
    /// Nodes that were found over mDNS, and where.
    found: BTreeMap<NodeId, Vec<SocketAddr>>,
    /// Second machines with a connected worker's identity that were told of already.
    twins: BTreeSet<(NodeId, SocketAddr)>,
    book: Book,
    // Says goodbye when dropped.
    discovery: Option<Discovery>,
    // Held for as long as this task lives.
    _lock: DataDirLock,
}

impl Actor {
    pub(super) fn new(
        options: DriverOptions,
        lock: DataDirLock,
        term: Term,
        authority: Arc<Authority>,
        endpoint: Endpoint,
        chunks: Arc<Chunks>,
        tell: UnboundedSender<Told>,
    ) -> Self {
        let (inbox_sender, inbox) = channel(INBOX);
        Self {
            machine: Machine::new(Config { term, default_link: options.default_link }),
            start: Instant::now(),
            stalled: Duration::ZERO,
            hello: greeting(term, &authority.id().fingerprint()),
            book: Book::open(&options.dir),
            options,
            authority,
            endpoint: Arc::new(endpoint),
            chunks,
            tell,
            inbox,
            inbox_sender,
            peers: BTreeMap::new(),
            next_peer: 0,
            dialling: BTreeSet::new(),
            found: BTreeMap::new(),
            twins: BTreeSet::new(),
            discovery: None,
            _lock: lock,
        }
    }

    pub(super) async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        let mut browser = self.discover();
        let mut redial = tokio::time::interval(REDIAL);
        let mut closing: Option<Instant> = None;
        loop {
            self.carry_out();
            if closing
                .is_some_and(|deadline| self.machine.state() == State::Idle || Instant::now() >= deadline)
            {
                break;
            }
            let due = self.machine.poll_timeout().map(|due| self.start + self.stalled + due);
            let due = due.into_iter().chain(closing).min();
            // What has arrived goes before what is due: a late answer is still an answer.
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Event(event)) => self.feed(*event),
                    Some(Command::Close) => {
                        closing = Some(Instant::now() + UNLOAD);
                        self.feed(Event::Stop);
                    }
                    None => break,
                },
                Some(incoming) = self.inbox.recv() => self.incoming(incoming),
                Some(arrival) = self.endpoint.arrival() => self.arrival(arrival),
                Some(event) = next(&mut browser) => self.discovered(event),
                () = until(due) => self.work(|machine, now| machine.handle_timeout(now)),
                _ = redial.tick() => self.redial(),
            }
        }
        if let Some(discovery) = self.discovery.take() {
            // Its goodbye waits for another thread.
            let _ = tokio::task::spawn_blocking(move || discovery.shutdown()).await;
        }
        self.endpoint.close("the command has ended").await;
    }

    fn feed(&mut self, event: Event) {
        self.work(|machine, now| machine.handle_event(now, event));
    }

    /// Lets the machine work at its own time: the clock's, less what its own long work took.
    fn work(&mut self, work: impl FnOnce(&mut Machine, Duration)) {
        let before = self.start.elapsed();
        let now = before.saturating_sub(self.stalled);
        match self.machine.state() {
            // Here it may plan. The connections' tasks must not wait behind this thread meanwhile.
            State::Idle | State::Gathering | State::Profiling | State::Linking => {
                tokio::task::block_in_place(|| work(&mut self.machine, now));
            }
            _ => work(&mut self.machine, now),
        }
        let took = self.start.elapsed().saturating_sub(before);
        if took > LONG_WORK {
            tracing::debug!("planning took {took:?}");
            self.stalled += took;
        }
    }

    fn tell(&self, update: Update) {
        // A command that is gone needs to know nothing.
        let _ = self.tell.send(Told::Update(update));
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Send { node, order } => {
                    if let Some(peer) = self.peers.get(&node) {
                        // A writer that is gone is followed by the reader's word of it.
                        let _ = peer.orders.send(order);
                    }
                }
                Action::Disconnect { node, reason } => {
                    if let Some(peer) = self.peers.remove(&node) {
                        peer.link.close(CloseCode::Refused, &reason);
                        self.tell(Update::Gone { node, reason });
                    }
                }
                other => self.tell(Update::Machine(other)),
            }
        }
    }

    fn incoming(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Greeted { conn, info } => self.greeted(*conn, *info),
            Incoming::Refused { address, reason } => self.tell(Update::Refused { address, reason }),
            Incoming::Dialled { target, failure } => {
                self.dialling.remove(&target);
                if let Some(reason) = failure {
                    tracing::debug!("failed to reach {target:?}: {reason}");
                }
            }
            Incoming::Answer { node, id, answer } => {
                if self.is_current(node, id) {
                    self.feed(Event::Answer { node, answer });
                }
            }
            Incoming::Closed { node, id, reason } => {
                if self.is_current(node, id) {
                    self.peers.remove(&node);
                    self.feed(Event::Disconnected { node, reason: reason.clone() });
                    self.tell(Update::Gone { node, reason });
                }
            }
        }
    }

    fn is_current(&self, node: NodeId, id: u64) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.id == id)
    }

    fn arrival(&mut self, arrival: Arrival<Order, shoal_core::message::Answer>) {
        match arrival {
            Arrival::Connected(conn) => {
                tokio::spawn(peers::greet(conn, self.hello.clone(), self.inbox_sender.clone()));
            }
            Arrival::Joined { node, address } => {
                tracing::info!("{} joined from {address}", node.short());
                self.tell(Update::Joined { node });
            }
        }
    }

    /// Takes a worker in. Of two connections of one node the first stays while it lives: both sides may have dialled,
    /// and a second machine with a copied identity must not push the first one out.
    fn greeted(&mut self, conn: Conn, mut info: NodeInfo) {
        let (node, address) = (info.node, conn.address());
        if let Some(peer) = self.peers.get(&node).filter(|peer| !peer.link.is_closed()) {
            let first = peer.link.address();
            conn.link()
                .close(CloseCode::Replaced, &format!("node {node} is connected already, from {first}"));
            if first != address && self.twins.insert((node, address)) {
                tracing::warn!(
                    "{} connected from {address} while it is connected from {first}: refused",
                    node.short()
                );
            }
            return;
        }
        if let Some(old) = self.peers.remove(&node) {
            old.link.close(CloseCode::Replaced, "a newer connection took over");
            let reason = "it connected anew".to_owned();
            self.feed(Event::Disconnected { node, reason: reason.clone() });
            self.tell(Update::Gone { node, reason });
        }
        info.usable = info.usable.saturating_sub(self.options.reserve);
        self.next_peer += 1;
        let peer = peers::start(self.next_peer, conn, self.chunks.clone(), self.inbox_sender.clone());
        self.peers.insert(node, peer);
        let dialled_at = self.found.get(&node).and_then(|found| found.first()).copied().unwrap_or(address);
        self.book.put(node, Known { name: info.name.clone(), address: dialled_at });
        let addresses = self.data_addresses(node, address, info.data_port);
        let _ = self.tell.send(Told::Connected(Box::new(WorkerView { info: info.clone(), address })));
        self.feed(Event::Connected { info: Box::new(info), addresses });
    }

    /// Where other workers may reach this one's data plane: where it connected from, then where mDNS has it.
    fn data_addresses(&self, node: NodeId, from: SocketAddr, port: u16) -> Vec<String> {
        let mut ips = vec![from.ip()];
        if from.ip().is_loopback() {
            // It runs on this machine; workers on others reach it as they reach us.
            ips.extend(outward_ip());
        }
        for address in self.found.get(&node).into_iter().flatten() {
            if !ips.contains(&address.ip()) {
                ips.push(address.ip());
            }
        }
        ips.into_iter().map(|ip| SocketAddr::new(ip, port).to_string()).collect()
    }

    /// Starts mDNS; where it does not work, says so and goes on without.
    fn discover(&mut self) -> Option<Browser> {
        if !self.options.mdns {
            return None;
        }
        let port = self.endpoint.local_address()?.port();
        let authority = Some(self.authority.id().fingerprint());
        let advert = Advert { node: self.authority.node(), role: Role::Coordinator, authority, port };
        let start = || {
            let mut discovery = Discovery::start()?;
            discovery.advertise(&advert)?;
            let browser = discovery.browse()?;
            Ok::<_, discovery::DiscoveryError>((discovery, browser))
        };
        match start() {
            Ok((discovery, browser)) => {
                self.discovery = Some(discovery);
                Some(browser)
            }
            Err(error) => {
                tracing::warn!("{:#}; workers are dialled where --address says", anyhow::Error::from(error));
                None
            }
        }
    }

    fn discovered(&mut self, event: discovery::Event) {
        match event {
            discovery::Event::Found(found) => {
                let ours = found.authority.as_deref() == Some(&self.authority.id().fingerprint());
                if !ours || found.role != Role::Worker {
                    return;
                }
                let node = found.node;
                if let Some(&address) = found.addresses.first()
                    && self.found.insert(node, found.addresses).is_none()
                {
                    self.tell(Update::Found { node, address });
                }
                self.dial(Target::Node(node));
            }
            discovery::Event::Lost(node) => {
                self.found.remove(&node);
            }
        }
    }

    fn redial(&mut self) {
        let known = self.book.known().keys().chain(self.found.keys()).map(|&node| Target::Node(node));
        let addresses = self.options.addresses.iter().map(|&address| Target::Address(address));
        let targets: BTreeSet<Target> = known.chain(addresses).collect();
        for target in targets {
            self.dial(target);
        }
    }

    /// Dials unless it is connected or being dialled.
    fn dial(&mut self, target: Target) {
        let connected = match target {
            Target::Node(node) => self.peers.contains_key(&node),
            Target::Address(address) => self.peers.values().any(|peer| peer.link.address() == address),
        };
        if connected || !self.dialling.insert(target) {
            return;
        }
        let addresses = match target {
            Target::Address(address) => vec![address],
            Target::Node(node) => {
                let mut addresses = self.found.get(&node).cloned().unwrap_or_default();
                if let Some(known) =
                    self.book.known().get(&node).filter(|known| !addresses.contains(&known.address))
                {
                    addresses.push(known.address);
                }
                addresses
            }
        };
        let (endpoint, inbox, hello) = (self.endpoint.clone(), self.inbox_sender.clone(), self.hello.clone());
        tokio::spawn(async move {
            let result = match target {
                Target::Node(node) => endpoint.dial(node, &addresses).await,
                Target::Address(_) => endpoint.dial_any(&addresses).await,
            };
            let failure = match result {
                Ok(conn) => {
                    peers::greet(conn, hello, inbox.clone()).await;
                    None
                }
                Err(error) => Some(peers::dial_failure(error)),
            };
            // Without an actor there is nobody to tell.
            let _ = inbox.send(Incoming::Dialled { target, failure }).await;
        });
    }
}

/// This machine's address on the way out. Nothing is sent: connecting a UDP socket only looks up the route, here to
/// an address that exists in documentation alone (RFC 5737).
fn outward_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

async fn next(browser: &mut Option<Browser>) -> Option<discovery::Event> {
    match browser {
        Some(browser) => browser.next().await,
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
