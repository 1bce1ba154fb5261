//! Driving the cluster: the coordinator's state machine over real sockets and a real clock.
//!
//! [`Driver`] is a command's hold on it. Behind it one task (`actor`) owns the machine, feeds it what happens, and
//! carries out what it decides; a command that stands still (a pager that does not read on) therefore never keeps a
//! heartbeat waiting. Connections have a task for each direction (`peers`).

mod actor;
mod book;
mod chunks;
mod figures;
mod job;
mod peers;
pub(crate) mod profiles;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shoal_cluster::coordinator::{Action, Event};
use shoal_cluster::cost::{Cluster, Device, Link};
use shoal_core::profile::{NodeInfo, Power};
use shoal_core::units::Bytes;
use shoal_core::{NodeId, SeqId};
use shoal_net::lock::{DataDirLock, LockError};
use shoal_net::token::UnixSeconds;
use shoal_net::{Authority, CoordinatorEndpoint, TokenStore};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use crate::exit::{Failure, Outcome};
use crate::model::Model;
use crate::session::{EmulationView, Snapshot};

pub(crate) use book::{Book, Known};
pub(crate) use figures::Figures;
pub(crate) use job::{JobOptions, Serving, load, plan};

/// Port of the coordinator where nobody says another and this one is free: so that `--coordinator` on a board can be
/// written down once. Unassigned by IANA.
const DEFAULT_PORT: u16 = 7745;

/// How long all workers may take to answer a question for counters.
const REPORT: Duration = Duration::from_secs(5);

/// How long the workers may take to drop their shards when a command ends well.
const CLOSE: Duration = Duration::from_secs(3);

/// What a cluster is driven with.
#[derive(Debug, Clone)]
pub(crate) struct DriverOptions {
    /// Authority, tokens, term, lock, address book.
    pub(crate) dir: PathBuf,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) mdns: bool,
    /// Workers to dial without discovery.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Taken for links that are not measured.
    pub(crate) default_link: Link,
    /// What every worker keeps free of what it offers.
    pub(crate) reserve: Bytes,
}

/// What a command hears.
#[derive(Debug)]
pub(crate) enum Update {
    /// The state machine wants something shown.
    Machine(Action),
    /// A worker of this cluster was seen over mDNS.
    Found { node: NodeId, address: SocketAddr },
    /// A board was admitted.
    Joined { node: NodeId },
    /// A worker is connected and greeted.
    Connected { node: NodeId },
    /// A worker's connection ended.
    Gone { node: NodeId, reason: String },
    /// A worker that cannot be talked to.
    Refused { address: SocketAddr, reason: String },
}

/// A connected worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerView {
    pub(crate) info: NodeInfo,
    pub(crate) address: SocketAddr,
}

/// From a command to the actor.
#[derive(Debug)]
enum Command {
    Event(Box<Event>),
    /// Stop, wait until workers are idle, close.
    Close,
}

/// From the actor to a command.
#[derive(Debug)]
enum Told {
    Update(Update),
    Connected(Box<WorkerView>),
}

/// A cluster being driven. Dropping it closes all connections at once.
#[derive(Debug)]
pub(crate) struct Driver {
    commands: UnboundedSender<Command>,
    told: UnboundedReceiver<Told>,
    /// What was heard while something else was waited for.
    later: VecDeque<Update>,
    workers: BTreeMap<NodeId, WorkerView>,
    /// Names of workers seen so far, the gone ones too.
    names: BTreeMap<NodeId, String>,
    /// What workers and links are known to do.
    figures: Figures,
    chunks: Arc<chunks::Chunks>,
    authority: Arc<Authority>,
    tokens: TokenStore,
    address: SocketAddr,
    next_seq: u64,
    task: JoinHandle<()>,
}

impl Driver {
    /// Takes the lock, raises the term, listens, and starts to look for workers.
    ///
    /// # Errors
    /// Another coordinator runs with this folder, the folder cannot be used, or the port is taken.
    pub(crate) async fn start(options: DriverOptions) -> Outcome<Self> {
        let dir = &options.dir;
        let lock = DataDirLock::acquire(dir).map_err(|error| match error {
            LockError::Held { .. } => Failure::machine("take over the cluster", error),
            other => Failure::machine("lock the data folder", other),
        })?;
        let term = lock.raise_term().map_err(|error| Failure::machine("raise the term", error))?;
        let authority =
            Authority::load_or_create(dir).map_err(|error| Failure::input("use the authority", error))?;
        let authority = Arc::new(authority);
        let tokens = TokenStore::new(dir);
        let endpoint = bind(options.listen, &authority, &tokens)?;
        let address = endpoint.local_address();
        let address = address
            .ok_or_else(|| Failure::machine("listen", anyhow::anyhow!("the socket has no address")))?;
        let chunks = Arc::new(chunks::Chunks::default());
        let figures = Figures::new(options.default_link);
        let (commands, command_queue) = unbounded_channel();
        let (tell, told) = unbounded_channel();
        let actor = actor::Actor::new(options, lock, term, authority.clone(), endpoint, chunks.clone(), tell);
        let task = tokio::spawn(actor.run(command_queue));
        Ok(Self {
            commands,
            told,
            later: VecDeque::new(),
            workers: BTreeMap::new(),
            names: BTreeMap::new(),
            figures,
            chunks,
            authority,
            tokens,
            address,
            next_seq: 1,
            task,
        })
    }

    /// Feeds the state machine.
    pub(crate) fn handle(&self, event: Event) {
        // A dead actor is noticed by `next`.
        let _ = self.commands.send(Command::Event(Box::new(event)));
    }

    /// The next thing to know. Cancel-safe.
    ///
    /// # Errors
    /// The actor ended, which it does only when told to.
    pub(crate) async fn next(&mut self) -> Outcome<Update> {
        match self.later.pop_front() {
            Some(update) => Ok(update),
            None => self.hear().await,
        }
    }

    async fn hear(&mut self) -> Outcome<Update> {
        match self.told.recv().await {
            Some(Told::Connected(view)) => {
                let node = view.info.node;
                self.names.insert(node, view.info.name.clone());
                self.workers.insert(node, *view);
                Ok(Update::Connected { node })
            }
            Some(Told::Update(update)) => {
                match &update {
                    Update::Gone { node, .. } => {
                        self.workers.remove(node);
                    }
                    Update::Machine(action) => self.figures.hear(action),
                    _ => {}
                }
                Ok(update)
            }
            None => Err(Failure::Lost("failed to drive the cluster: its task ended".to_owned())),
        }
    }

    /// Workers that are connected.
    pub(crate) fn connected(&self) -> &BTreeMap<NodeId, WorkerView> {
        &self.workers
    }

    /// Names of the connected workers.
    pub(crate) fn names(&self) -> BTreeMap<NodeId, String> {
        self.workers.iter().map(|(node, view)| (*node, view.info.name.clone())).collect()
    }

    /// What these workers play, if any of them plays another device.
    pub(crate) fn emulation(&self, nodes: &[NodeId]) -> Option<EmulationView> {
        EmulationView::of(nodes.iter().filter_map(|node| Some(&self.workers.get(node)?.info)))
    }

    /// Takes over what is known from before.
    fn know(&mut self, known: &profiles::Known) {
        self.figures.know(known);
    }

    /// What is known of the workers and their links.
    pub(crate) fn figures(&self) -> &Figures {
        &self.figures
    }

    /// What connected workers draw: by the profile each plays, or by the board it is.
    fn power(&self) -> BTreeMap<NodeId, Power> {
        let of = |view: &WorkerView| {
            let info = &view.info;
            let board = match &info.emulation {
                // A worker's word names a built-in board, and never a file of this machine.
                Some(emulation) => shoal_profiles::boards()
                    .contains(&emulation.profile.as_str())
                    .then(|| shoal_profiles::board(&emulation.profile).ok())
                    .flatten(),
                None => shoal_profiles::recognise(&info.hardware, info.memory),
            };
            board?.power
        };
        self.workers.iter().filter_map(|(node, view)| Some((*node, of(view)?))).collect()
    }

    /// The connected workers that are measured, as the planner sees them.
    pub(crate) fn cluster(&self) -> Cluster {
        let power = self.power();
        let device = |(&node, view): (&NodeId, &WorkerView)| {
            Some(Device {
                node,
                name: view.info.name.clone(),
                profile: self.figures.profiles.get(&node)?.clone(),
                usable: view.info.usable,
                power: power.get(&node).copied(),
            })
        };
        Cluster { devices: self.workers.iter().filter_map(device).collect(), links: self.figures.links() }
    }

    /// A worker's name for people, even if it is gone.
    pub(crate) fn name(&self, node: NodeId) -> String {
        self.names.get(&node).cloned().unwrap_or_else(|| node.short())
    }

    /// Serves the chunks of this model from now on, and of no other.
    pub(crate) fn serve_chunks(&self, model: &Model) {
        self.chunks.set(model);
    }

    /// A sequence id not used before in this term.
    pub(crate) fn next_seq(&mut self) -> SeqId {
        let seq = SeqId(self.next_seq);
        self.next_seq += 1;
        seq
    }

    /// Where workers on this machine reach the coordinator.
    pub(crate) fn address(&self) -> SocketAddr {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        address
    }

    /// Where the socket listens.
    pub(crate) fn listens(&self) -> SocketAddr {
        self.address
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// It cannot be kept.
    pub(crate) fn issue_token(&self, uses: u32, life: Duration) -> Outcome<String> {
        issue_token(&self.tokens, &self.authority, uses, life)
    }

    /// The counters of these nodes, asked for now.
    ///
    /// # Errors
    /// The job ended, or not all answered in time.
    pub(crate) async fn report(&mut self, nodes: &[NodeId]) -> Outcome<Snapshot> {
        self.handle(Event::Report);
        let mut found = Snapshot::new();
        let gather = async {
            while !nodes.iter().all(|node| found.contains_key(node)) {
                match self.hear().await? {
                    Update::Machine(Action::Reported { node, counters, resident }) => {
                        found.insert(node, (counters, resident));
                    }
                    Update::Machine(Action::Ended(failed)) => return Err(Failure::Lost(failed.to_string())),
                    other => self.later.push_back(other),
                }
            }
            Ok(())
        };
        match tokio::time::timeout(REPORT, gather).await {
            Ok(result) => result.map(|()| found),
            Err(_) => Err(Failure::Lost(format!(
                "not all workers told their counters within {} s",
                REPORT.as_secs()
            ))),
        }
    }

    /// Ends well: workers drop their shards and are told that all is done.
    pub(crate) async fn close(mut self) {
        // A dead actor has nothing to close.
        let _ = self.commands.send(Command::Close);
        let _ = tokio::time::timeout(CLOSE, &mut self.task).await;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Workers that were connected to this cluster before, from its address book.
pub(crate) fn known_workers(dir: &std::path::Path) -> BTreeMap<NodeId, Known> {
    Book::open(dir).known().clone()
}

/// Makes a join token in the store beside `authority`; works while another process coordinates.
///
/// # Errors
/// It cannot be kept.
pub(crate) fn issue_token(
    tokens: &TokenStore,
    authority: &Authority,
    uses: u32,
    life: Duration,
) -> Outcome<String> {
    let token = tokens.issue(authority.id(), uses, life, UnixSeconds::now());
    let token = token.map_err(|error| Failure::machine("make a join token", error))?;
    Ok(token.reveal())
}

type Endpoint = CoordinatorEndpoint<shoal_core::message::Order, shoal_core::message::Answer>;

fn bind(listen: Option<SocketAddr>, authority: &Arc<Authority>, tokens: &TokenStore) -> Outcome<Endpoint> {
    let all: [SocketAddr; 4] = [
        (std::net::Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into(),
        (std::net::Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into(),
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
    ];
    let candidates = listen.as_ref().map_or(&all[..], std::slice::from_ref);
    let mut failure = None;
    for &address in candidates {
        match Endpoint::bind(address, authority.clone(), tokens.clone()) {
            Ok(endpoint) => return Ok(endpoint),
            Err(error) => failure = Some(error),
        }
    }
    let error = failure.map_or_else(|| anyhow::anyhow!("there is no address"), Into::into);
    Err(Failure::machine("listen for workers", error))
}
