//! The driver: one async task that owns the worker's state machine, feeds it what happens, and carries
//! out what it decides.
//!
//! What happens comes from the control connections (`conn`), the compute thread, discovery, the clock
//! and signals. Nothing here computes, hashes or blocks. A worker outlives its coordinators: when one
//! goes, the shard is dropped and the next one is waited for. Of two connections the first that greets
//! stays, unless the later one brings a higher term; a lower term is refused.
//!
//! [`run`] is the whole life of a worker; [`crate::main`] is around it.

mod conn;
mod load;
mod setup;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_cluster::worker::{Action, Event, Machine};
use shoal_core::limits::PROTOCOL_VERSION;
use shoal_core::message::{Answer, Order, Peer};
use shoal_core::profile::{LinkProfile, NodeInfo};
use shoal_core::units::Bytes;
use shoal_core::{Epoch, NodeId, Term};
use shoal_engine::kernels;
use shoal_net::DataPlane;
use shoal_net::control::CloseCode;
use shoal_net::data::DataPeer;
use shoal_net::discovery::{self, Browser};
use shoal_net::{Membership, Role};
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};

use crate::WorkerError;
use crate::args::Settings;
use crate::emulate::Emulated;
use crate::machine::Memory;
use crate::runtime::{Compute, failure};
use crate::store::Store;
use conn::{Conn, Endpoint, Incoming};
use load::Load;

/// Messages of connections that wait for the driver; beyond it the coordinator waits.
const INBOX: usize = 256;

/// How often progress is told, and looked whether the coordinator is to be dialled.
const TICK: Duration = Duration::from_millis(200);

/// Time between two tries to reach a coordinator: it starts slowly on a board, and is often not there.
const REDIAL: Duration = Duration::from_secs(2);

/// A newcomer gives its coordinator this long to dial before it dials itself: usually one is enough.
const COURTESY: Duration = Duration::from_millis(300);

/// For how long the data connections of an epoch that failed here stay: a rank that is still looking for
/// the one that was lost must not take this node's leaving for it.
const LINGER: Duration = Duration::from_millis(1500);

/// What the driver has in hand.
struct Driver {
    settings: Settings,
    node: NodeId,
    membership: Membership,
    machine: Machine,
    endpoint: Arc<Endpoint>,
    plane: Arc<DataPlane>,
    compute: Compute,
    store: Store,
    usable: Bytes,
    conn: Option<Conn>,
    next_conn: u64,
    load: Option<Load>,
    /// Where mDNS has seen our coordinator.
    seen: BTreeMap<NodeId, Vec<SocketAddr>>,
    dialling: Option<JoinHandle<()>>,
    dial_at: Instant,
    saved_term: Term,
    /// The epoch that failed here.
    failed: Option<Epoch>,
    /// When the data connections of that epoch are closed.
    end_at: Option<(Instant, Epoch)>,
    events: UnboundedSender<Event>,
    inbox: Sender<Incoming>,
}

/// Runs a worker until it is told to stop: joins if need be, and serves one coordinator after another.
///
/// # Errors
/// What cannot be used (data folder, token, port), or a compute thread that panicked. A coordinator that
/// goes away is no error.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> Result<(), WorkerError> {
    tokio::pin!(stop);
    let ready = tokio::select! {
        ready = setup::set_up(&settings) => ready?,
        () = &mut stop => return Ok(()),
    };
    let setup::Ready { lock, node, membership, endpoint, plane, discovery, term } = ready;
    let (events, mut news) = unbounded_channel();
    let (inbox, mut incoming) = channel(INBOX);
    let emulated = settings.emulated.clone();
    let compute =
        Compute::start(node, settings.threads, Arc::clone(&plane), events.clone(), emulated.clone())
            .map_err(WorkerError::Threads)?;
    let memory = Memory::read();
    let (said, free) = (settings.memory, memory.usable());
    let played = emulated.as_deref();
    let usable = played.map_or(said.unwrap_or(free), |device| device.usable(said, free));
    let hardware = crate::machine::hardware();
    let info = NodeInfo {
        node,
        name: settings.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hardware: played.map(|device| device.hardware(&hardware)).unwrap_or(hardware),
        kernel_set: kernels::kernel_set_id().to_owned(),
        threads: settings.threads,
        memory: played.map_or(memory.total, |device| device.board().memory),
        available: played.map_or(memory.available, |device| device.board().memory),
        // A budget that a person names is kept as it is.
        reserve: if said.is_some() || played.is_some() { Bytes(0) } else { memory.reserve() },
        usable,
        resident: crate::machine::process_resident(),
        data_port: plane.local_address().port(),
        emulation: played.map(Emulated::info),
    };
    tracing::info!(
        "node {node} serves with {} of {} in {} threads; {} are left to everything else",
        usable,
        memory.total,
        settings.threads,
        memory.total.saturating_sub(usable)
    );
    let store = Store::new(
        settings.cache_dir.clone(),
        settings.cache_size,
        settings.models.clone(),
        settings.data_dir.clone(),
    );
    let mut driver = Driver {
        node,
        membership,
        machine: Machine::new(info, term),
        endpoint,
        plane,
        compute,
        store,
        usable,
        conn: None,
        next_conn: 0,
        load: None,
        seen: BTreeMap::new(),
        dialling: None,
        dial_at: Instant::now() + COURTESY,
        saved_term: term,
        failed: None,
        end_at: None,
        events,
        inbox,
        settings,
    };
    let (discovery, mut browser) = discovery.unzip();
    let result = tokio::select! {
        result = driver.serve(&mut incoming, &mut news, &mut browser) => result,
        () = &mut stop => {
            tracing::info!("told to stop");
            Ok(())
        }
    };
    driver.close().await;
    if let Some(discovery) = discovery {
        // Its goodbye waits for another thread.
        let _ = tokio::task::spawn_blocking(move || discovery.shutdown()).await;
    }
    drop(lock);
    result
}

impl Driver {
    async fn serve(
        &mut self,
        incoming: &mut Receiver<Incoming>,
        news: &mut UnboundedReceiver<Event>,
        browser: &mut Option<Browser>,
    ) -> Result<(), WorkerError> {
        let mut tick = interval(TICK);
        loop {
            self.carry_out();
            tokio::select! {
                Some(message) = incoming.recv() => self.incoming(message),
                event = news.recv() => match event {
                    Some(event) => self.news(event),
                    None => return Ok(()),
                },
                conn = self.endpoint.accept() => match conn {
                    Some(conn) => conn::greet(conn, self.inbox.clone()),
                    None => return Ok(()),
                },
                event = next(browser) => self.discovered(event),
                _ = tick.tick() => {
                    if self.compute.is_dead() {
                        return Err(WorkerError::Compute);
                    }
                    self.tick();
                }
            }
        }
    }

    fn incoming(&mut self, message: Incoming) {
        match message {
            Incoming::Greeted { conn, hello } => self.greeted(*conn, hello),
            Incoming::Order { id, order } => {
                if self.is_current(id) {
                    self.machine.handle_event(Event::Order(order));
                }
            }
            Incoming::Closed { id, reason } => {
                if self.is_current(id) {
                    tracing::info!("the coordinator is gone: {reason}");
                    self.conn = None;
                    self.dial_at = Instant::now() + COURTESY;
                    self.machine.handle_event(Event::Disconnected);
                }
            }
            Incoming::Dialled { failure } => {
                self.dialling = None;
                if let Some(reason) = failure {
                    tracing::debug!("failed to reach the coordinator: {reason}");
                }
            }
        }
    }

    fn is_current(&self, id: u64) -> bool {
        self.conn.as_ref().is_some_and(|conn| conn.id == id)
    }

    /// Takes a coordinator on, or refuses it.
    fn greeted(&mut self, conn: conn::Control, hello: Order) {
        let Order::Hello { protocol, term, .. } = hello else {
            return conn.link().close(CloseCode::Protocol, "the first message is no greeting");
        };
        let highest_term = self.machine.highest_term();
        if let Some(old) = self.conn.as_ref().filter(|old| !old.link.is_closed()) {
            if protocol == PROTOCOL_VERSION && term == highest_term {
                // Both sides dialled.
                return conn.link().close(CloseCode::Replaced, "this node is connected already");
            }
            if protocol != PROTOCOL_VERSION || term < highest_term {
                let reason =
                    format!("the coordinator's term {} is over; {} was seen", term.0, highest_term.0);
                tracing::warn!(from = %conn.address(), "refused a coordinator: {reason}");
                let refusal =
                    Answer::Refused { protocol: PROTOCOL_VERSION, highest_term, reason: reason.clone() };
                return conn::refuse(conn, refusal, reason);
            }
            old.link.close(CloseCode::Replaced, "a coordinator of a higher term took over");
        }
        if self.conn.take().is_some() {
            self.machine.handle_event(Event::Disconnected);
        }
        self.next_conn += 1;
        tracing::info!(from = %conn.address(), term = term.0, "a coordinator connected");
        self.conn = Some(Conn::start(self.next_conn, conn, self.inbox.clone()));
        self.machine.handle_event(Event::Order(hello));
        self.keep_term();
    }

    /// A coordinator of an older term is refused after a restart as well.
    fn keep_term(&mut self) {
        let term = self.machine.highest_term();
        if term > self.saved_term {
            match setup::save_term(&self.settings.data_dir, self.membership.authority(), term) {
                Ok(()) => self.saved_term = term,
                Err(error) => tracing::warn!("failed to keep the coordinator's term: {error}"),
            }
        }
    }

    fn news(&mut self, event: Event) {
        if let Event::StepFailed { epoch, .. } = &event {
            self.failed = Some(*epoch);
        }
        let event = match event {
            Event::Loaded { epoch, result } => {
                let fetched = self.load.as_ref().map_or(Bytes(0), |load| load.meter.fetched());
                Event::Loaded { epoch, result: result.map(|(resident, _)| (resident, fetched)) }
            }
            Event::Reported { epoch, mut counters, resident } => {
                let now = self.conn.as_ref().map(Conn::traffic).unwrap_or_default();
                let before = self.load.as_ref().map(|load| load.before).unwrap_or_default();
                counters.control_bytes = now.control.saturating_sub(before.control);
                // The compute thread counts what went to other head ranks; the answers leave here.
                counters.head_bytes += now.head.saturating_sub(before.head);
                Event::Reported { epoch, counters, resident }
            }
            other => other,
        };
        self.machine.handle_event(event);
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Reply(mut answer) => {
                    if let Answer::Welcome { info, .. } = &mut answer {
                        info.resident = crate::machine::process_resident();
                    }
                    if let Some(conn) = &self.conn {
                        conn.send(answer);
                    }
                }
                Action::Close { reason } => {
                    tracing::warn!("closed the coordinator's connection: {reason}");
                    if let Some(conn) = self.conn.take() {
                        conn.finish(reason);
                    }
                }
                Action::StartProfile { spec } => self.compute.profile(spec),
                Action::StartLinks { peers } => self.measure_links(peers),
                Action::StartLoad { model, spec, plan, peers } => {
                    self.load = Some(Load::start(self, model, spec, plan, &peers));
                }
                Action::RunStep(order) => self.compute.step(order),
                Action::RunQuery { epoch, step, row, query } => self.compute.query(epoch, step, row, query),
                Action::Settle { epoch, step } => self.compute.settle(epoch, step),
                Action::Report { epoch } => self.compute.report(epoch),
                Action::Drop { epoch } => {
                    if let Some(load) = self.load.take() {
                        load.end();
                    }
                    self.compute.unload(epoch);
                    if self.failed == Some(epoch) {
                        self.end_at = Some((Instant::now() + LINGER, epoch));
                    } else {
                        self.plane.end(epoch);
                    }
                }
            }
        }
    }

    /// Measures the link to each of these; one that cannot be reached costs the others nothing.
    fn measure_links(&self, peers: Vec<Peer>) {
        let (plane, events) = (Arc::clone(&self.plane), self.events.clone());
        let emulated = self.settings.emulated.clone();
        let own_time = move |mut link: LinkProfile| {
            if let Some(device) = &emulated {
                link.figures = device.own_time(link.figures);
            }
            link
        };
        let measure = move || {
            let (mut links, mut failed) = (Vec::new(), Vec::new());
            for peer in &peers {
                match plane.probe(&DataPeer::from(peer)) {
                    Ok(both) => links.extend(both.into_iter().map(&own_time)),
                    Err(error) => failed.push(shoal_core::message::Failure {
                        message: format!(
                            "failed to measure the link to {}: {}",
                            peer.node.short(),
                            crate::chain(&error)
                        ),
                        blame: Some(peer.node),
                    }),
                }
            }
            // Without a driver there is nobody to tell.
            let _ = events.send(Event::LinksMeasured { links, failed });
        };
        tokio::task::spawn_blocking(measure);
    }

    fn discovered(&mut self, event: discovery::Event) {
        match event {
            discovery::Event::Found(found) => {
                let ours = Some(self.membership.authority().fingerprint());
                if found.role == Role::Coordinator && found.authority == ours {
                    self.seen.insert(found.node, found.addresses);
                    self.dial_at = self.dial_at.min(Instant::now() + COURTESY);
                }
            }
            discovery::Event::Lost(node) => {
                self.seen.remove(&node);
            }
        }
    }

    fn tick(&mut self) {
        if let Some((_, epoch)) = self.end_at.take_if(|(at, _)| *at <= Instant::now()) {
            self.plane.end(epoch);
        }
        if let Some(load) = &mut self.load
            && let Some(progress) = load.progress()
        {
            self.machine.handle_event(progress);
        }
        let connected = self.conn.as_ref().is_some_and(|conn| !conn.link.is_closed());
        let nowhere = self.seen.is_empty() && self.settings.coordinators.is_empty();
        if connected || nowhere || self.dialling.is_some() || Instant::now() < self.dial_at {
            return;
        }
        self.dial_at = Instant::now() + REDIAL;
        let addresses: Vec<SocketAddr> = self.seen.values().flatten().copied().collect();
        self.dialling = Some(conn::dial(
            &self.endpoint,
            addresses,
            self.settings.coordinators.clone(),
            self.inbox.clone(),
        ));
    }

    /// Ends well: lets go of the coordinator, the peers and the shard.
    async fn close(self) {
        if let Some(load) = self.load {
            load.end();
        }
        if let Some(epoch) = self.machine.epoch() {
            self.plane.end(epoch);
        }
        self.endpoint.close("the worker was told to stop").await;
        // Waits for the compute thread, which waits for nothing any more.
        let _ = tokio::task::spawn_blocking(move || drop(self.compute)).await;
    }
}

async fn next(browser: &mut Option<Browser>) -> discovery::Event {
    if let Some(found) = browser {
        if let Some(event) = found.next().await {
            return event;
        }
        *browser = None;
    }
    std::future::pending().await
}

/// What a failure of this node's own is made of elsewhere.
pub(crate) fn own_failure(error: &dyn std::error::Error) -> shoal_core::message::Failure {
    failure(crate::chain(error))
}
