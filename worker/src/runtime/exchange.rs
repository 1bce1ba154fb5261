//! Blocks to and from other nodes: headers made and checked in one place, and what went wrong put down
//! to the node it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_core::frame::{Class, Header, Phase, WireType};
use shoal_core::message::Failure;
use shoal_core::{Epoch, NodeId, StepId};
use shoal_engine::wire::{self, WireError};
use shoal_net::DataPlane;
use shoal_net::data::{Block, BlockKey, SendError, WaitError, Wake};

use super::{BLOCK_DEADLINE, Interrupt};
use crate::emulate::Emulated;
use crate::emulate::MessagePace;

/// Why a block did not arrive or leave.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("failed to send to {to}: {source}")]
    Send { to: NodeId, source: SendError },
    #[error("no block came from {from}: {source}")]
    Wait { from: NodeId, source: WaitError },
    #[error("{0}")]
    Lost(WaitError),
    #[error("{from} sent a block that is not the plan's: {what}")]
    Malformed { from: NodeId, what: String },
    #[error("{from} sent a block that cannot be read: {source}")]
    Unreadable { from: NodeId, source: WireError },
    #[error("failed to pass on what was computed here: {source}")]
    Encode { source: WireError },
    #[error("the epoch is over")]
    Over,
}

impl ExchangeError {
    /// The node whose fault it is, when that is another one.
    pub fn blame(&self) -> Option<NodeId> {
        match self {
            Self::Send { to, source } => match source {
                SendError::PeerLost { node, .. } | SendError::Backlog { node } => Some(*node),
                SendError::NotConnected { .. } => Some(*to),
                _ => None,
            },
            Self::Wait { from, source } => match source {
                WaitError::Deadline => Some(*from),
                _ => None,
            },
            Self::Lost(WaitError::PeerLost { node, .. }) => Some(*node),
            Self::Malformed { from, .. } | Self::Unreadable { from, .. } => Some(*from),
            Self::Lost(_) | Self::Encode { .. } | Self::Over => None,
        }
    }

    /// The same for the coordinator, with what was being done.
    pub(crate) fn failure(&self, doing: &str) -> Failure {
        Failure { message: format!("failed to {doing}: {self}"), blame: self.blame() }
    }
}

/// What a block is, but for its place and sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) dtype: WireType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Column of the whole row that is the first here.
    pub(crate) first_col: usize,
}

impl Shape {
    /// Whole rows.
    pub(crate) fn rows(dtype: WireType, rows: usize, cols: usize) -> Self {
        Self { dtype, rows, cols, first_col: 0 }
    }
}

/// Where in the plan a block belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) step: StepId,
    /// Stage of the receiver; one more than the last for head ranks.
    pub(crate) stage: u16,
    pub(crate) layer: u32,
    pub(crate) phase: Phase,
}

/// A node's way to the other nodes of a plan.
#[derive(Debug)]
pub(crate) struct Exchange {
    plane: Arc<DataPlane>,
    epoch: Epoch,
    /// The own rank within its stage; zero for a node without layers.
    rank: u16,
    interrupt: Interrupt,
    /// Time spent waiting since it was last taken.
    waited: Duration,
    deadline: Duration,
    /// On a worker that plays another device.
    messages: Option<MessagePace>,
}

impl Exchange {
    pub(crate) fn new(plane: Arc<DataPlane>, epoch: Epoch, rank: usize, interrupt: Interrupt) -> Self {
        Self {
            plane,
            epoch,
            rank: rank as u16,
            interrupt,
            waited: Duration::ZERO,
            deadline: BLOCK_DEADLINE,
            messages: None,
        }
    }

    /// Sends and takes messages as the played device does.
    pub(crate) fn play(&mut self, emulated: &Emulated) {
        self.messages = emulated.messages();
        self.deadline = BLOCK_DEADLINE.mul_f64(emulated.dilation());
    }

    /// When the last message has left the played device.
    pub(crate) fn sent(&self) -> Option<Instant> {
        self.messages.as_ref().and_then(MessagePace::sent)
    }

    /// How long a block may let wait.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn plane(&self) -> &DataPlane {
        &self.plane
    }

    /// Whether the driver has ended the epoch.
    pub(crate) fn check(&self) -> Result<(), ExchangeError> {
        if self.interrupt.is_over(self.epoch) { Err(ExchangeError::Over) } else { Ok(()) }
    }

    /// Time spent waiting since it was last taken.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Time spent waiting since the last call.
    pub(crate) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    pub(crate) fn key(&self, at: At, from: NodeId) -> BlockKey {
        let At { step, stage, layer, phase } = at;
        BlockKey { epoch: self.epoch, step, stage, layer, phase, from }
    }

    /// Sends a whole block of encoded rows.
    pub(crate) fn send(
        &mut self,
        to: NodeId,
        class: Class,
        at: At,
        shape: Shape,
        bytes: &[u8],
    ) -> Result<(), ExchangeError> {
        let rows = shape.rows as u32;
        let header = Header {
            epoch: self.epoch,
            step: at.step,
            stage: at.stage,
            rank: self.rank,
            layer: at.layer,
            phase: at.phase,
            dtype: shape.dtype,
            first_row: 0,
            rows,
            first_col: shape.first_col as u32,
            cols: shape.cols as u32,
            len: 0,
            block_rows: rows,
        };
        if let Some(messages) = &mut self.messages {
            messages.send();
        }
        self.plane.send(to, class, &header, bytes).map_err(|source| ExchangeError::Send { to, source })
    }

    /// Waits for one of several blocks. `None` when there is news for the thread instead.
    pub(crate) fn wait_any(
        &mut self,
        keys: &[BlockKey],
        deadline: Instant,
    ) -> Result<Option<(usize, Block)>, ExchangeError> {
        self.check()?;
        let start = Instant::now();
        let woken = self.plane.wait_any(keys, Some(deadline));
        self.waited += start.elapsed();
        match woken {
            Ok(Wake::Block(index, block)) => {
                if let Some(messages) = &mut self.messages {
                    messages.take();
                }
                Ok(Some((index, block)))
            }
            Ok(Wake::Notified) => Ok(None),
            Err(WaitError::Ended { .. }) => Err(ExchangeError::Over),
            Err(source @ WaitError::PeerLost { .. }) => Err(ExchangeError::Lost(source)),
            // Whom else to name: the first that is waited for.
            Err(source) => Err(match keys.first() {
                Some(key) => ExchangeError::Wait { from: key.from, source },
                None => ExchangeError::Over,
            }),
        }
    }

    /// Waits for one block, whatever else there is news of but the epoch's end.
    pub(crate) fn wait(&mut self, at: At, from: NodeId, shape: Shape) -> Result<Block, ExchangeError> {
        let key = self.key(at, from);
        let deadline = Instant::now() + self.deadline;
        loop {
            if let Some((_, block)) = self.wait_any(&[key], deadline)? {
                check_block(&block, from, shape)?;
                return Ok(block);
            }
        }
    }
}

/// Whether a block is what the plan says the sender sends here.
pub(crate) fn check_block(block: &Block, from: NodeId, shape: Shape) -> Result<(), ExchangeError> {
    let header = block.header();
    let Shape { dtype, rows, cols, first_col } = shape;
    let what = if header.dtype != dtype {
        format!("its format is {}, not {}", header.dtype.name(), dtype.name())
    } else if (header.block_rows as usize, header.cols as usize) != (rows, cols) {
        format!("it has {} × {} values, not {rows} × {cols}", header.block_rows, header.cols)
    } else if header.first_col as usize != first_col {
        format!("it starts at column {}, not {first_col}", header.first_col)
    } else if block.bytes().len() != wire::encoded_len(dtype, rows, cols) {
        format!("it has {} bytes, not {}", block.bytes().len(), wire::encoded_len(dtype, rows, cols))
    } else {
        return Ok(());
    };
    Err(ExchangeError::Malformed { from, what })
}

/// Decodes a checked block.
pub(crate) fn decode(
    block: &Block,
    from: NodeId,
    shape: Shape,
    out: &mut Vec<f32>,
) -> Result<(), ExchangeError> {
    let Shape { dtype, rows, cols, .. } = shape;
    out.resize(rows * cols, 0.0);
    wire::decode(dtype, block.bytes(), rows, cols, out)
        .map_err(|source| ExchangeError::Unreadable { from, source })
}
