//! One control connection: messages, their bytes, and its end.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::{Connection, ReadError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_core::NodeId;
use shoal_core::limits::CONTROL_MESSAGE_BYTES;

use crate::codec::{self, CodecError};
use crate::quic::{self, CloseCode, HANDSHAKE, LinkError};
use crate::tls::ALPN_CONTROL;

/// The first bytes of a control stream; QUIC tells the peer of a stream only when it carries some.
const OPENING: [u8; 4] = *b"SHLC";

/// Bytes of a message's length.
const LENGTH_BYTES: usize = 4;

/// Why no message could be sent or received. The connection is of no use afterwards, save after
/// `Encode`, which sends nothing.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("failed to send a message to {node}")]
    Encode {
        node: NodeId,
        #[source]
        source: CodecError,
    },
    #[error("{node} sent a message that cannot be read")]
    Decode {
        node: NodeId,
        #[source]
        source: CodecError,
    },
    #[error("{node} closed the control stream")]
    Ended { node: NodeId },
    #[error("{node} did not open the control stream as this version does")]
    Opening { node: NodeId },
}

/// A control connection to a node whose certificate was checked.
///
/// `S` is what this side sends, `R` what it receives: the coordinator has `ControlConn<Order, Answer>`.
#[derive(Debug)]
pub struct ControlConn<S, R> {
    link: Link,
    sender: ControlSender<S>,
    receiver: ControlReceiver<R>,
}

impl<S: Serialize, R: DeserializeOwned> ControlConn<S, R> {
    /// The node at the other end.
    pub fn node(&self) -> NodeId {
        self.link.node
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.link.address()
    }

    /// A handle on the connection: closing, counting, chunk streams.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// Sends a message. See [`ControlSender::send`].
    ///
    /// # Errors
    /// See there.
    pub async fn send(&mut self, message: &S) -> Result<(), ControlError> {
        self.sender.send(message).await
    }

    /// Receives a message. See [`ControlReceiver::recv`].
    ///
    /// # Errors
    /// See there.
    pub async fn recv(&mut self) -> Result<R, ControlError> {
        self.receiver.recv().await
    }

    /// Both directions and the handle, for a driver that sends and receives at once.
    pub fn split(self) -> (Link, ControlSender<S>, ControlReceiver<R>) {
        (self.link, self.sender, self.receiver)
    }

    /// The coordinator's side: opens the control stream.
    pub(super) async fn open(connection: Connection, node: NodeId) -> Result<Self, ControlError> {
        let address = quic::address_of(&connection);
        let lost = |error| quic::ended(address, error, ALPN_CONTROL);
        let (mut send, recv) = connection.open_bi().await.map_err(lost)?;
        send.write_all(&OPENING).await.map_err(|error| write_error(&connection, node, error))?;
        Ok(Self::new(connection, node, send, recv))
    }

    /// The worker's side: waits for the control stream.
    pub(super) async fn wait(connection: Connection, node: NodeId) -> Result<Self, ControlError> {
        let address = quic::address_of(&connection);
        let waited = tokio::time::timeout(HANDSHAKE, async {
            let (send, mut recv) =
                connection.accept_bi().await.map_err(|error| quic::ended(address, error, ALPN_CONTROL))?;
            let mut opening = [0; OPENING.len()];
            recv.read_exact(&mut opening).await.map_err(|_| ControlError::Opening { node })?;
            if opening == OPENING { Ok((send, recv)) } else { Err(ControlError::Opening { node }) }
        });
        let (send, recv) = waited.await.map_err(|_| LinkError::Timeout { address })??;
        Ok(Self::new(connection, node, send, recv))
    }

    fn new(connection: Connection, node: NodeId, send: SendStream, recv: RecvStream) -> Self {
        let link = Link { connection, node, bytes: Arc::default() };
        let sender = ControlSender { link: link.clone(), stream: send, message: PhantomData };
        let receiver =
            ControlReceiver { link: link.clone(), stream: recv, read: Vec::new(), message: PhantomData };
        Self { link, sender, receiver }
    }
}

/// Bytes of control messages, lengths included; without QUIC's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ControlBytes {
    pub sent: u64,
    pub received: u64,
}

/// A handle on a control connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    pub(crate) connection: Connection,
    node: NodeId,
    bytes: Arc<Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Link {
    /// The node at the other end.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        quic::address_of(&self.connection)
    }

    /// What was sent and received so far.
    pub fn bytes(&self) -> ControlBytes {
        ControlBytes {
            sent: self.bytes.sent.load(Ordering::Relaxed),
            received: self.bytes.received.load(Ordering::Relaxed),
        }
    }

    /// The smoothed round-trip time.
    pub fn round_trip(&self) -> std::time::Duration {
        self.connection.rtt()
    }

    /// Closes the connection at once; the peer is told the reason. Messages under way may be lost.
    pub fn close(&self, code: CloseCode, reason: &str) {
        quic::close(&self.connection, code, reason);
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> LinkError {
        let error = self.connection.closed().await;
        quic::ended(self.address(), error, ALPN_CONTROL)
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }
}

/// The sending direction.
#[derive(Debug)]
pub struct ControlSender<S> {
    link: Link,
    stream: SendStream,
    message: PhantomData<fn(&S)>,
}

impl<S: Serialize> ControlSender<S> {
    /// Sends a message; it is on its way, not yet there, when this returns. Not cancel-safe: a call
    /// that was dropped half way leaves half a message.
    ///
    /// # Errors
    /// When the message is too long, or the connection has ended.
    pub async fn send(&mut self, message: &S) -> Result<(), ControlError> {
        let node = self.link.node;
        let body = codec::encode(message).map_err(|source| ControlError::Encode { node, source })?;
        let mut bytes = Vec::with_capacity(LENGTH_BYTES + body.len());
        // A message is at most 1 MiB.
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&body);
        let sent = self.stream.write_all(&bytes).await;
        sent.map_err(|error| write_error(&self.link.connection, node, error))?;
        self.link.bytes.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Says that nothing more will be sent, and waits until the peer has all of it or is gone.
    pub async fn finish(mut self) {
        if self.stream.finish().is_ok() {
            // Whether it arrived or the peer is gone: either way nothing is left to wait for.
            let _ = self.stream.stopped().await;
        }
    }
}

/// The receiving direction.
#[derive(Debug)]
pub struct ControlReceiver<R> {
    link: Link,
    stream: RecvStream,
    /// What was read of the next message.
    read: Vec<u8>,
    message: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> ControlReceiver<R> {
    /// Waits for the next message. Cancel-safe: a call that was dropped loses nothing.
    ///
    /// # Errors
    /// When the connection or stream has ended, or what came is no message; the connection is then
    /// closed with [`CloseCode::Protocol`].
    pub async fn recv(&mut self) -> Result<R, ControlError> {
        let node = self.link.node;
        self.fill(LENGTH_BYTES).await?;
        let length = u32::from_le_bytes([self.read[0], self.read[1], self.read[2], self.read[3]]) as usize;
        let message = if length > CONTROL_MESSAGE_BYTES {
            Err(CodecError::TooLong(length))
        } else {
            self.fill(LENGTH_BYTES + length).await?;
            let message = codec::decode(&self.read[LENGTH_BYTES..]);
            self.link.bytes.received.fetch_add(self.read.len() as u64, Ordering::Relaxed);
            self.read.clear();
            message
        };
        message.map_err(|source| {
            self.link.close(CloseCode::Protocol, &source.to_string());
            ControlError::Decode { node, source }
        })
    }

    /// Reads until `wanted` bytes of the message are there; the length was checked before.
    async fn fill(&mut self, wanted: usize) -> Result<(), ControlError> {
        while self.read.len() < wanted {
            match self.stream.read_chunk(wanted - self.read.len(), true).await {
                Ok(Some(chunk)) => self.read.extend_from_slice(&chunk.bytes),
                Ok(None) => return Err(ControlError::Ended { node: self.link.node }),
                Err(ReadError::ConnectionLost(error)) => {
                    return Err(quic::ended(self.link.address(), error, ALPN_CONTROL).into());
                }
                Err(_) => return Err(ControlError::Ended { node: self.link.node }),
            }
        }
        Ok(())
    }
}

fn write_error(connection: &Connection, node: NodeId, error: WriteError) -> ControlError {
    match error {
        WriteError::ConnectionLost(error) => {
            quic::ended(quic::address_of(connection), error, ALPN_CONTROL).into()
        }
        _ => ControlError::Ended { node },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Arrival, CoordinatorEndpoint, WorkerEndpoint};
    use crate::{Authority, Identity, TokenStore};
    use std::net::Ipv4Addr;

    #[tokio::test]
    async fn a_length_over_the_limit_is_an_error_before_anything_is_read_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::load_or_create(dir.path()).unwrap());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let coordinator =
            CoordinatorEndpoint::<u8, u8>::bind(any, authority.clone(), TokenStore::new(dir.path())).unwrap();
        let identity = Identity::ephemeral().unwrap();
        let worker = WorkerEndpoint::<u8, u8>::bind(any, &identity).unwrap();
        worker.enter(&authority.admit(identity.public()).unwrap()).unwrap();
        let addresses = [coordinator.local_address().unwrap()];
        let (ours, theirs) = tokio::join!(coordinator.arrival(), worker.dial(&addresses));
        let (Some(Arrival::Connected(mut ours)), Ok(mut theirs)) = (ours, theirs) else { panic!() };
        theirs.sender.stream.write_all(&(CONTROL_MESSAGE_BYTES as u32 + 1).to_le_bytes()).await.unwrap();
        let error = ours.recv().await.unwrap_err();
        assert!(
            matches!(error, ControlError::Decode { source: CodecError::TooLong(1_048_577), .. }),
            "{error}"
        );
        assert!(ours.receiver.read.capacity() < 1024);
        assert!(theirs.link.closed().await.to_string().contains("1048577"));
    }
}
