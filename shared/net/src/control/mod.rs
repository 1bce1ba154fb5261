//! The control plane: the coordinator's and a worker's endpoint, and the connections between them.
//!
//! Participants: one coordinator and its workers, each known by certificate. Either side dials; on
//! each connection the coordinator opens the one control stream, and the worker may open up to
//! [`CHUNK_STREAMS`] streams to ask for model chunks ([`crate::chunks`]). Messages on the control stream
//! are a length (u32, little-endian) and that many bytes of [`crate::codec`].
//!
//! A worker without membership can only [`WorkerEndpoint::join`]. Two connections of one node can
//! stand at once when both sides dialled: which to keep is the caller's matter
//! ([`CloseCode::Replaced`] says so to the other side).
//!
//! The connections live on the caller's tokio runtime: a task that blocks its threads for
//! [`DEAD_AFTER`] makes this node look dead.

mod connection;
mod coordinator;
mod join;
mod worker;

use std::sync::Arc;

pub use crate::gate::{INCOMING_BYTES, JOIN_WINDOW, PENDING};
pub use crate::quic::{CloseCode, DEAD_AFTER, HANDSHAKE, HEARTBEAT, LinkError};
pub use connection::{ControlBytes, ControlConn, ControlError, ControlReceiver, ControlSender, Link};
pub use coordinator::{Arrival, CoordinatorEndpoint};
pub use join::JoinError;
pub use worker::WorkerEndpoint;

use crate::trust::TrustError;

/// Chunk streams that one worker may have open: enough to keep a gigabit link busy.
pub const CHUNK_STREAMS: u32 = 4;

/// What a peer may have sent on a control connection that was not read yet: one message, and requests.
const WINDOW: u32 = 2 << 20;

/// Connections that arrived and were not taken yet.
const ARRIVALS: usize = 64;

/// Why an endpoint could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("failed to open UDP {address}")]
    Bind {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("this node has not joined a cluster")]
    NotJoined,
    #[error("this endpoint serves a cluster already; a change of cluster needs a restart")]
    Entered,
}

/// Transport of a control connection before the peer's role is known.
fn narrow() -> Arc<quinn::TransportConfig> {
    let mut transport = crate::quic::transport();
    transport.receive_window(JOIN_WINDOW.into());
    transport.max_concurrent_bidi_streams(1_u32.into());
    Arc::new(transport)
}

/// Transport of a control connection to a server whose certificate was checked in the handshake.
fn dialled(bidirectional: u32) -> Arc<quinn::TransportConfig> {
    let mut transport = crate::quic::transport();
    transport.receive_window(WINDOW.into());
    transport.max_concurrent_bidi_streams(bidirectional.into());
    Arc::new(transport)
}
