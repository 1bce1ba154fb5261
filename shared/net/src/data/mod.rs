//! The data plane: blocks of activations between the ranks of a plan.
//!
//! Called from plain threads: [`DataPlane::send`] hands a block over and returns, [`DataPlane::wait`]
//! sleeps until a whole block is there. How bytes move is hidden (today: quinn on a small runtime of
//! its own), so that it can change without touching callers.
//!
//! Participants: the workers of one plan, given by [`DataPlane::set_peers`]; nobody else is let in.
//! Each has its own UDP port for this plane. Of two nodes the lower id dials. On a connection each
//! side has one stream per [`Class`], decode above prefill, on which it sends `SHLD` and then frames: a
//! header ([`shoal_core::frame`]) and its payload. The side that dialled takes the connection for made when
//! it has read `SHLD`: only then it knows that the other side's plan has it too.
//!
//! A **block** is what one rank sends another under one [`BlockKey`]: `block_rows` rows of equal
//! encoded length. Its rows count from 0 in the frames (`first_row`), whatever rows of the step they
//! are; a slice of columns says so in `first_col` and `cols`. It is cut by rows into frames of at most
//! [`shoal_core::limits::FRAME_BYTES`], and a longer row into pieces flagged [`shoal_core::frame::FLAG_MORE`]. It
//! may be sent in several calls, rows in order. Each stream is in order, so a block is put together by
//! appending.
//!
//! Epochs: frames of an older (term, epoch) are dropped. Frames of a newer one are held for at most
//! [`NEWER_STEPS`] steps a link; one more closes the connection. Whoever sends what no node of this version
//! sends, loses its connection, and the log names it.
//!
//! Memory: a block is at most what the plan's largest is, checked before it is allocated. A stream has at most
//! [`ASSEMBLIES`] unfinished blocks, and is not read on while more than two largest blocks (or
//! [`HELD_BLOCKS`]) of it wait to be taken. Frames of a newer epoch: [`NEWER_BYTES`] or two largest blocks.
//! What is to be sent: [`BACKLOG_BLOCKS`] largest blocks a link.
//!
//! Loss: a connection that ends, or was silent for [`crate::control::DEAD_AFTER`], ends the epoch here: all
//! waits of that epoch fail with [`WaitError::PeerLost`], until the next [`DataPlane::set_peers`].

mod cut;
mod inbox;
mod io;
mod pool;
mod probe;

use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_core::frame::{Class, Header, Phase};
use shoal_core::limits::{ACTIVATION_BYTES, WORKERS};
use shoal_core::message::Peer;
use shoal_core::profile::LinkProfile;
use shoal_core::{Epoch, NodeId, StepId};

use crate::trust::Credentials;
use inbox::Inbox;
use pool::Buffer;

/// Steps of a newer epoch that a link may hold: as many as can be on their way when plans switch.
pub const NEWER_STEPS: usize = 2;

/// Bytes of a newer epoch that a link may hold, unless two largest blocks of the plan in force are more.
pub const NEWER_BYTES: u64 = 8 << 20;

/// Unfinished blocks of one stream: a sender finishes one before the next, save when it sends rows early.
pub const ASSEMBLIES: usize = 4;

/// Finished small blocks of one stream that wait to be taken: many more than one step has.
pub const HELD_BLOCKS: usize = 4096;

/// Largest blocks that may wait to be sent on a link: one in each class, and one being made.
pub const BACKLOG_BLOCKS: u64 = 4;

/// How long [`DataPlane::send`] waits for room before it fails; a peer that takes nothing for so long stalls.
pub const BACKLOG_PATIENCE: Duration = Duration::from_secs(5);

/// A node of the plan, and where its data plane can be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataPeer {
    pub node: NodeId,
    /// Tried in turn. May be empty for a node that dials us (a lower id).
    pub addresses: Vec<SocketAddr>,
}

impl From<&Peer> for DataPeer {
    /// Texts that are no `ip:port` are left out: what cannot be dialled is reported when nothing can.
    fn from(peer: &Peer) -> Self {
        let addresses = peer.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        Self { node: peer.node, addresses }
    }
}

/// What names a block on its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    pub epoch: Epoch,
    pub step: StepId,
    /// Stage of the receiver.
    pub stage: u16,
    pub layer: u32,
    pub phase: Phase,
    /// The sender, by its certificate.
    pub from: NodeId,
}

impl BlockKey {
    /// The key of what `from` sends with this header.
    pub fn of(header: &Header, from: NodeId) -> Self {
        let &Header { epoch, step, stage, layer, phase, .. } = header;
        Self { epoch, step, stage, layer, phase, from }
    }
}

/// A whole block: its rows one after the other. The memory is used again when it is dropped.
#[derive(Debug)]
pub struct Block {
    header: Header,
    bytes: Buffer,
}

impl Block {
    /// The header of its first frame, with `rows` = `block_rows` and the whole length (saturating).
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The encoded rows.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why a wait ended.
#[derive(Debug)]
pub enum Wake {
    /// The block of the key with this index.
    Block(usize, Block),
    /// [`Notifier::notify`] was called, or a peer was lost, since the last time this was returned.
    Notified,
}

/// Why no block came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    #[error("nothing came before the deadline")]
    Deadline,
    #[error("lost {node}: {reason}")]
    PeerLost { node: NodeId, reason: String },
    #[error("epoch {epoch} is over")]
    Ended { epoch: Epoch },
    #[error("no connection with {}", missing(nodes))]
    NotConnected {
        /// Nodes without connection, each with what went wrong last.
        nodes: Vec<(NodeId, String)>,
    },
}

/// Why a block was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("{node} is not in the plan in force")]
    NotAPeer { node: NodeId },
    #[error("there is no connection with {node} yet")]
    NotConnected { node: NodeId },
    #[error("lost {node}: {reason}")]
    PeerLost { node: NodeId, reason: String },
    #[error("epoch {epoch} is not in force")]
    Epoch { epoch: Epoch },
    #[error("a block of {bytes} bytes in {rows} rows cannot be sent; the plan's largest has {limit} bytes")]
    Size { bytes: u64, rows: u32, limit: u64 },
    #[error("{node} took nothing for {} s", BACKLOG_PATIENCE.as_secs())]
    Backlog { node: NodeId },
}

/// Why the data plane could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("failed to start the thread of the data plane")]
    Runtime(#[source] std::io::Error),
    #[error("failed to open UDP {address}")]
    Bind {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Link(#[from] crate::control::LinkError),
    #[error("this node has not joined a cluster")]
    NotJoined,
    #[error("a plan has at most {WORKERS} workers, not {0}")]
    Peers(usize),
    #[error("blocks have at most {ACTIVATION_BYTES} bytes, not {0}")]
    BlockBytes(u64),
    #[error("epoch {given} is not newer than {current}, which is in force")]
    Epoch { given: Epoch, current: Epoch },
    #[error("the probe of {node} failed: {reason}")]
    Probe { node: NodeId, reason: String },
}

/// Bytes sent since the start, headers included, by what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DataBytes {
    /// Hidden states for later stages.
    pub hop: u64,
    /// Partial and whole sums within a group.
    pub sum: u64,
    /// Hidden states for head ranks.
    pub head: u64,
    /// All that was received.
    pub received: u64,
}

/// A worker's data plane.
#[derive(Debug)]
pub struct DataPlane {
    inbox: Arc<Inbox>,
    io: io::Io,
}

/// Wakes a thread in [`DataPlane::wait_any`]; cheap to clone, callable from anywhere.
#[derive(Debug, Clone)]
pub struct Notifier {
    inbox: Arc<Inbox>,
}

impl Notifier {
    /// Wakes the waiting thread; or, when none waits, lets its next wait return at once.
    pub fn notify(&self) {
        self.inbox.notify();
    }
}

impl DataPlane {
    /// Opens the plane's own UDP port. Nobody is let in until [`Self::set_peers`], save that any worker of
    /// the authority may measure its link to this node.
    ///
    /// # Errors
    /// When the port cannot be had, or the credentials are those of no member.
    pub fn start(address: SocketAddr, credentials: &Credentials) -> Result<Self, DataError> {
        let inbox = Arc::new(Inbox::new(credentials.node()));
        let io = io::Io::start(address, credentials.clone(), inbox.clone())?;
        Ok(Self { inbox, io })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.io.local_address()
    }

    /// Puts a plan in force: `epoch` becomes the one whose frames are taken, blocks of older ones are
    /// dropped and their waits end, connections with other nodes are closed, and missing ones are made
    /// in the background. `block_bytes` is the plan's largest block. The own node is ignored.
    ///
    /// # Errors
    /// When the epoch is not newer than the one in force, or a limit is exceeded; nothing has changed then.
    pub fn set_peers(&self, epoch: Epoch, peers: &[DataPeer], block_bytes: u64) -> Result<(), DataError> {
        if peers.len() > WORKERS {
            return Err(DataError::Peers(peers.len()));
        }
        if block_bytes > ACTIVATION_BYTES {
            return Err(DataError::BlockBytes(block_bytes));
        }
        let change = self.inbox.set_peers(epoch, peers, block_bytes)?;
        self.io.follow(change);
        Ok(())
    }

    /// Ends the epoch (and older ones): its waits fail with [`WaitError::Ended`], its blocks are dropped, and
    /// its peers are not let in any more. Does nothing when a newer one is in force.
    pub fn end(&self, epoch: Epoch) {
        if let Some(change) = self.inbox.end(epoch) {
            self.io.follow(change);
        }
    }

    /// Waits until all peers are connected.
    ///
    /// # Errors
    /// [`WaitError::NotConnected`] at the deadline, or as soon as one is lost again.
    pub fn wait_connected(&self, deadline: Instant) -> Result<(), WaitError> {
        self.inbox.wait_connected(deadline)
    }

    /// Sends rows of a block: `payload` is `header.rows` encoded rows of equal length. `header.len` is not
    /// looked at. Returns when the bytes were copied; waits only when the peer lags far behind.
    ///
    /// # Errors
    /// When the epoch or peer is not that of the plan, the peer is lost, or the sizes do not fit.
    pub fn send(&self, to: NodeId, class: Class, header: &Header, payload: &[u8]) -> Result<(), SendError> {
        self.inbox.send(to, class, header, payload)
    }

    /// Waits for a block.
    ///
    /// # Errors
    /// At the deadline, when a peer of the epoch was lost, or when the epoch is over.
    pub fn wait(&self, key: &BlockKey, deadline: Instant) -> Result<Block, WaitError> {
        self.inbox.wait(std::slice::from_ref(key), false, Some(deadline)).and_then(|wake| match wake {
            Wake::Block(_, block) => Ok(block),
            Wake::Notified => Err(WaitError::Deadline),
        })
    }

    /// The block, if it is there.
    pub fn try_take(&self, key: &BlockKey) -> Option<Block> {
        self.inbox.try_take(key)
    }

    /// Waits for the first of several blocks, or for [`Notifier::notify`]. With no keys, only for that.
    ///
    /// # Errors
    /// As [`Self::wait`]; with no keys only [`WaitError::Deadline`].
    pub fn wait_any(&self, keys: &[BlockKey], deadline: Option<Instant>) -> Result<Wake, WaitError> {
        self.inbox.wait(keys, true, deadline)
    }

    /// A handle that wakes [`Self::wait_any`].
    pub fn notifier(&self) -> Notifier {
        Notifier { inbox: self.inbox.clone() }
    }

    /// The peer that was lost since the plan was put in force, if any, and why. A peer that took its leave
    /// (its epoch has ended, or it was shut down in order) fails waits, but is not lost in this sense.
    pub fn lost(&self) -> Option<(NodeId, String)> {
        self.inbox.lost()
    }

    /// Bytes sent and received so far.
    pub fn bytes(&self) -> DataBytes {
        self.inbox.bytes()
    }

    /// Measures the link to another worker of the authority, over a connection of its own, as an exchange of a
    /// plan uses it: from here to there, and back. Takes some seconds at most; call it from a thread that may
    /// block.
    ///
    /// # Errors
    /// When the node cannot be reached, or the connection ends.
    pub fn probe(&self, peer: &DataPeer) -> Result<[LinkProfile; 2], DataError> {
        self.io.probe(peer)
    }
}

fn missing(nodes: &[(NodeId, String)]) -> String {
    let each = nodes.iter().map(|(node, reason)| format!("{node} ({reason})"));
    each.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, step, stage, layer, phase, from } = self;
        write!(
            f,
            "{phase:?} of layer {layer} for stage {stage} in step {} of epoch {epoch} from {from}",
            step.0
        )
    }
}
