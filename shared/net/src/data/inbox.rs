//! What compute threads and the I/O share: blocks that arrived, links, the plan in force, and who waits.
//!
//! One mutex and one condition variable. No I/O happens here; [`super::io`] delivers and drains.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::Connection;
use shoal_core::frame::{Class, Header, Phase};
use shoal_core::limits::FRAME_BYTES;
use shoal_core::{Epoch, NodeId, StepId};
use tokio::sync::{Notify, mpsc};

use super::cut::{self, Violation};
use super::pool::{Buffer, Pool};
use super::{
    BACKLOG_BLOCKS, BACKLOG_PATIENCE, Block, BlockKey, DataBytes, DataError, DataPeer, HELD_BLOCKS,
    NEWER_BYTES, NEWER_STEPS, SendError, WaitError, Wake,
};
use crate::tls::AllowList;

#[derive(Debug)]
pub(super) struct Inbox {
    own: NodeId,
    /// Whether its frames are those of a probe.
    probe: bool,
    state: Mutex<State>,
    /// A block, a link, the plan or a notification has changed.
    changed: Condvar,
    pub(super) pool: Arc<Pool>,
    /// The nodes that the handshake lets in: those of `state.peers`.
    pub(super) allowed: AllowList,
    sent: [AtomicU64; 3],
    received: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    epoch: Epoch,
    /// The epoch was ended and no other is in force yet.
    ended: bool,
    block_bytes: u64,
    peers: BTreeMap<NodeId, PeerState>,
    ready: HashMap<BlockKey, Ready>,
    notified: bool,
}

#[derive(Debug)]
struct PeerState {
    addresses: Vec<SocketAddr>,
    link: Option<Live>,
    /// Lost since the plan was put in force, and why.
    lost: Option<Lost>,
    /// What went wrong when it was dialled last.
    trouble: String,
    newer: BTreeMap<(Epoch, StepId), u64>,
}

#[derive(Debug)]
struct Lost {
    reason: String,
    /// It took its leave, as when the epoch has ended for it already.
    left: bool,
}

/// A connection in use.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) connection: Connection,
    /// By class: decode, prefill.
    pub(super) outboxes: [mpsc::UnboundedSender<Buffer>; 2],
    /// Bytes in the outboxes.
    pub(super) queued: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Ready {
    block: Block,
    _place: Place,
}

/// A block's place among what is held of its stream; free again when dropped.
#[derive(Debug)]
struct Place {
    room: Arc<Room>,
    bytes: u64,
}

/// What of one stream waits to be taken.
#[derive(Debug, Default)]
pub(super) struct Room {
    held: Mutex<(u64, usize)>,
    freed: Notify,
}

/// What the I/O has to do after the plan changed.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) epoch: Epoch,
    pub(super) dial: Vec<DataPeer>,
    pub(super) close: Vec<Connection>,
}

/// What to do with a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// Of an older epoch: read over it.
    Drop,
    /// Of the epoch in force: blocks of up to so many bytes, read when there is room.
    Take { epoch: Epoch, limit: u64 },
    /// Of a newer epoch, within the bound.
    Hold { epoch: Epoch, limit: u64 },
}

impl Room {
    fn add(&self, bytes: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 += bytes;
        held.1 += 1;
    }

    fn free(&self, bytes: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 -= bytes;
        held.1 -= 1;
        drop(held);
        self.freed.notify_one();
    }

    fn is_full(&self, limit: u64) -> bool {
        let held = *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.1 > 0 && (held.0 >= 2 * limit || held.1 >= HELD_BLOCKS)
    }

    /// Waits until less than two largest blocks wait to be taken.
    pub(super) async fn wait(&self, limit: u64) {
        while self.is_full(limit) {
            self.freed.notified().await;
        }
    }
}

impl Place {
    fn new(room: &Arc<Room>, bytes: u64) -> Self {
        room.add(bytes);
        Self { room: room.clone(), bytes }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.free(self.bytes);
    }
}

impl Inbox {
    pub(super) fn new(own: NodeId) -> Self {
        Self {
            own,
            probe: false,
            state: Mutex::default(),
            changed: Condvar::new(),
            pool: Arc::default(),
            allowed: AllowList::default(),
            sent: Default::default(),
            received: AtomicU64::new(0),
        }
    }

    /// An inbox for the two ends of a probe: it takes a probe's frames and no plan's.
    pub(super) fn for_probe(own: NodeId) -> Self {
        Self { probe: true, ..Self::new(own) }
    }

    pub(super) fn is_probe(&self) -> bool {
        self.probe
    }

    pub(super) fn notify(&self) {
        self.state().notified = true;
        self.changed.notify_all();
    }

    pub(super) fn lost(&self) -> Option<(NodeId, String)> {
        let state = self.state();
        let mut lost = state.peers.iter().filter_map(|(node, peer)| Some((*node, peer.lost.as_ref()?)));
        lost.find(|(_, lost)| !lost.left).map(|(node, lost)| (node, lost.reason.clone()))
    }

    pub(super) fn bytes(&self) -> DataBytes {
        let [hop, sum, head] = [0, 1, 2].map(|kind| self.sent[kind].load(Ordering::Relaxed));
        DataBytes { hop, sum, head, received: self.received.load(Ordering::Relaxed) }
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_peers(
        &self,
        epoch: Epoch,
        peers: &[DataPeer],
        block_bytes: u64,
    ) -> Result<Change, DataError> {
        let mut state = self.state();
        if epoch <= state.epoch {
            return Err(DataError::Epoch { given: epoch, current: state.epoch });
        }
        let mut old = std::mem::take(&mut state.peers);
        for peer in peers.iter().filter(|peer| peer.node != self.own) {
            let before = old.remove(&peer.node);
            let (link, mut newer) = before.map(|peer| (peer.link, peer.newer)).unwrap_or_default();
            newer.retain(|(other, _), _| *other > epoch);
            let addresses = peer.addresses.clone();
            let trouble = "not connected yet".to_owned();
            state.peers.insert(peer.node, PeerState { addresses, link, lost: None, trouble, newer });
        }
        let peers = &state.peers;
        let dial = peers.iter().filter(|(node, peer)| self.own < **node && peer.link.is_none());
        let dial =
            dial.map(|(node, peer)| DataPeer { node: *node, addresses: peer.addresses.clone() }).collect();
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = peers.keys().copied().collect();
        state.epoch = epoch;
        state.ended = false;
        state.block_bytes = block_bytes;
        Ok(Change { epoch, dial, close: self.settle(state, old) })
    }

    pub(super) fn end(&self, epoch: Epoch) -> Option<Change> {
        let mut state = self.state();
        if epoch < state.epoch {
            return None;
        }
        state.epoch = epoch;
        state.ended = true;
        self.allowed.write().unwrap_or_else(PoisonError::into_inner).clear();
        let old = std::mem::take(&mut state.peers);
        Some(Change { epoch, dial: Vec::new(), close: self.settle(state, old) })
    }

    /// Drops what is over, wakes all, and says which connections are to be closed.
    fn settle(&self, mut state: MutexGuard<'_, State>, old: BTreeMap<NodeId, PeerState>) -> Vec<Connection> {
        let (epoch, ended) = (state.epoch, state.ended);
        let over = |key: &BlockKey| {
            key.epoch < epoch || (ended && key.epoch == epoch) || old.contains_key(&key.from)
        };
        state.ready.retain(|key, _| !over(key));
        drop(state);
        self.changed.notify_all();
        old.into_values().filter_map(|peer| peer.link).map(|link| link.connection).collect()
    }

    /// Whether dialling for this epoch still makes sense.
    pub(super) fn wants(&self, epoch: Epoch, node: NodeId) -> bool {
        let state = self.state();
        state.epoch == epoch && state.peers.get(&node).is_some_and(|peer| peer.link.is_none())
    }

    pub(super) fn trouble(&self, node: NodeId, reason: String) {
        if let Some(peer) = self.state().peers.get_mut(&node) {
            peer.trouble = reason;
        }
    }

    /// Puts a connection in use. The one it replaces is returned; an error means the node is not wanted.
    pub(super) fn connected(&self, node: NodeId, link: Live) -> Result<Option<Live>, ()> {
        let mut state = self.state();
        let peer = state.peers.get_mut(&node).ok_or(())?;
        let replaced = peer.link.replace(link);
        drop(state);
        self.changed.notify_all();
        Ok(replaced)
    }

    /// Notes that a connection ended; whether it was in use.
    pub(super) fn disconnected(
        &self,
        node: NodeId,
        connection: &Connection,
        reason: &str,
        left: bool,
    ) -> bool {
        let mut state = self.state();
        let Some(peer) = state.peers.get_mut(&node) else { return false };
        let id = connection.stable_id();
        if peer.link.as_ref().is_none_or(|link| link.connection.stable_id() != id) {
            return false;
        }
        peer.link = None;
        peer.lost.get_or_insert(Lost { reason: reason.to_owned(), left });
        state.notified |= !left;
        drop(state);
        self.changed.notify_all();
        true
    }

    pub(super) fn judge(&self, from: NodeId, header: &Header) -> Result<Judgement, Violation> {
        let mut state = self.state();
        let (epoch, block_bytes, over) = (state.epoch, state.block_bytes, state.is_over(header.epoch));
        let Some(peer) = state.peers.get_mut(&from) else { return Ok(Judgement::Drop) };
        if over {
            return Ok(Judgement::Drop);
        }
        if header.epoch == epoch {
            return Ok(Judgement::Take { epoch, limit: block_bytes });
        }
        let limit = NEWER_BYTES.max(2 * block_bytes);
        *peer.newer.entry((header.epoch, header.step)).or_default() += u64::from(header.len);
        if peer.newer.len() > NEWER_STEPS || peer.newer.values().sum::<u64>() > limit {
            return Err(Violation::Newer);
        }
        Ok(Judgement::Hold { epoch, limit })
    }

    pub(super) fn deliver(&self, key: BlockKey, block: Block, room: &Arc<Room>) -> Result<(), Violation> {
        let place = Place::new(room, block.bytes.len() as u64);
        let ready = Ready { block, _place: place };
        let mut state = self.state();
        if state.is_over(key.epoch) || !state.peers.contains_key(&key.from) {
            return Ok(());
        }
        let twice = state.ready.insert(key, ready).is_some();
        drop(state);
        self.changed.notify_all();
        if twice { Err(Violation::Twice) } else { Ok(()) }
    }

    pub(super) fn try_take(&self, key: &BlockKey) -> Option<Block> {
        self.state().take(key)
    }

    pub(super) fn wait(
        &self,
        keys: &[BlockKey],
        notifications: bool,
        deadline: Option<Instant>,
    ) -> Result<Wake, WaitError> {
        let mut state = self.state();
        loop {
            if let Some((index, block)) =
                keys.iter().enumerate().find_map(|(index, key)| Some((index, state.take(key)?)))
            {
                return Ok(Wake::Block(index, block));
            }
            if let Some(key) = keys.iter().find(|key| state.is_over(key.epoch)) {
                return Err(WaitError::Ended { epoch: key.epoch });
            }
            if keys.iter().any(|key| key.epoch == state.epoch)
                && let Some((node, reason)) = state.lost()
            {
                return Err(WaitError::PeerLost { node, reason });
            }
            if notifications && std::mem::take(&mut state.notified) {
                return Ok(Wake::Notified);
            }
            state = self.sleep(state, deadline).ok_or(WaitError::Deadline)?;
        }
    }

    pub(super) fn wait_connected(&self, deadline: Instant) -> Result<(), WaitError> {
        let mut state = self.state();
        let epoch = state.epoch;
        loop {
            if state.epoch != epoch || state.ended {
                return Err(WaitError::Ended { epoch });
            }
            if let Some((node, reason)) = state.lost() {
                return Err(WaitError::PeerLost { node, reason });
            }
            if state.peers.values().all(|peer| peer.link.is_some()) {
                return Ok(());
            }
            state = match self.sleep(state, Some(deadline)) {
                Some(state) => state,
                None => break,
            };
        }
        let state = self.state();
        let missing = state.peers.iter().filter(|(_, peer)| peer.link.is_none());
        let nodes: Vec<_> = missing.map(|(node, peer)| (*node, peer.trouble.clone())).collect();
        if nodes.is_empty() { Ok(()) } else { Err(WaitError::NotConnected { nodes }) }
    }

    pub(super) fn send(
        &self,
        to: NodeId,
        class: Class,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let (link, limit) = {
            let state = self.state();
            if header.epoch != state.epoch || state.ended {
                return Err(SendError::Epoch { epoch: header.epoch });
            }
            let peer = state.peers.get(&to).ok_or(SendError::NotAPeer { node: to })?;
            if let Some(lost) = &peer.lost {
                return Err(SendError::PeerLost { node: to, reason: lost.reason.clone() });
            }
            (peer.link.clone().ok_or(SendError::NotConnected { node: to })?, state.block_bytes)
        };
        let Header { rows, first_row, block_rows, .. } = *header;
        let bytes = payload.len() as u64;
        let even = rows > 0
            && payload.len().is_multiple_of(rows as usize)
            && first_row.checked_add(rows).is_some_and(|end| end <= block_rows);
        let whole = bytes.checked_div(u64::from(rows)).unwrap_or(0).saturating_mul(u64::from(block_rows));
        if !even || whole > limit {
            return Err(SendError::Size { bytes: whole.max(bytes), rows: block_rows, limit });
        }
        let size = cut::cut_bytes(rows, payload.len());
        self.wait_for_room(&link, to, header.epoch, limit)?;
        let mut out = self.pool.get(size);
        cut::cut(header, payload, &mut out);
        link.queued.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.sent[kind(header.phase)].fetch_add(out.len() as u64, Ordering::Relaxed);
        let outbox = match class {
            Class::Decode => &link.outboxes[0],
            Class::Prefill => &link.outboxes[1],
        };
        outbox.send(out).map_err(|_| {
            let reason = self.state().lost().map_or("the connection ended".to_owned(), |(_, reason)| reason);
            SendError::PeerLost { node: to, reason }
        })
    }

    /// Bytes of an outbox were handed to the transport.
    pub(super) fn drained(&self, link: &AtomicU64, bytes: u64) {
        let before = link.fetch_sub(bytes, Ordering::Relaxed);
        // Only a sender that found the backlog full waits for this, and then it is large.
        if before >= FRAME_BYTES as u64 {
            self.changed.notify_all();
        }
    }

    fn wait_for_room(&self, link: &Live, to: NodeId, epoch: Epoch, limit: u64) -> Result<(), SendError> {
        let most = BACKLOG_BLOCKS * limit.max(FRAME_BYTES as u64);
        if link.queued.load(Ordering::Relaxed) < most {
            return Ok(());
        }
        let deadline = Instant::now() + BACKLOG_PATIENCE;
        let mut state = self.state();
        loop {
            if state.is_over(epoch) {
                return Err(SendError::Epoch { epoch });
            }
            if let Some((node, reason)) = state.lost() {
                return Err(SendError::PeerLost { node, reason });
            }
            if link.queued.load(Ordering::Relaxed) < most {
                return Ok(());
            }
            // `drained` does not hold the lock, so a wake-up can be missed: look again soon.
            let soon = (Instant::now() + Duration::from_millis(5)).min(deadline);
            state = match self.sleep(state, Some(soon)) {
                Some(state) => state,
                None if Instant::now() >= deadline => return Err(SendError::Backlog { node: to }),
                None => self.state(),
            };
        }
    }

    /// Sleeps until something changes; `None` at the deadline.
    fn sleep<'a>(
        &self,
        state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> Option<MutexGuard<'a, State>> {
        let Some(deadline) = deadline else {
            return Some(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
        };
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        Some(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, key: &BlockKey) -> Option<Block> {
        // Its place is freed at once, so that the stream is read on while the block is used.
        let Ready { block, _place } = self.ready.remove(key)?;
        Some(block)
    }

    fn is_over(&self, epoch: Epoch) -> bool {
        epoch < self.epoch || (epoch == self.epoch && self.ended)
    }

    fn lost(&self) -> Option<(NodeId, String)> {
        self.peers.iter().find_map(|(node, peer)| Some((*node, peer.lost.as_ref()?.reason.clone())))
    }
}

fn kind(phase: Phase) -> usize {
    match phase {
        Phase::Hop => 0,
        Phase::Head => 2,
        _ => 1,
    }
}
