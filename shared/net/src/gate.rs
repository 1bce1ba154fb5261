//! The gate of a server: what a peer costs before it has proved who it is.
//!
//! - An address that was not validated gets a retry packet and leaves no state here.
//! - At most [`PENDING`] handshakes are under way, each for at most [`HANDSHAKE`]; more are refused.
//! - Until the certificate is judged nothing but the handshake is read. It costs at most 64 KiB of TLS
//!   messages, 8 KiB that QUIC buffers out of order in each of two levels, and 8 KiB of packets that came
//!   before we looked: with the connection's own state under 96 KiB a peer, 1.5 MiB in all. 0-RTT is off,
//!   so no stream can carry anything yet.
//! - A peer that has only a key (joining) may then send [`JOIN_WINDOW`] bytes.
//!
//! Every refusal is one log line with the address and the reason, up to [`WARNINGS`] of them in a while.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, ConnectionError, Endpoint, Incoming, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::quic::{self, CloseCode, HANDSHAKE, LinkError};
use crate::tls::{self, Admit, Verdict};
use crate::trust::{CertificateError, Credentials};

/// Handshakes under way at a time: each costs a board some 10 ms and memory, and peers come again.
pub const PENDING: usize = 16;

/// Bytes of packets kept for a connection that was not yet looked at.
pub const INCOMING_BYTES: u64 = 8 << 10;

/// What a connected peer may send before its role is known: a join request has under 100 bytes.
pub const JOIN_WINDOW: u32 = 4 << 10;

/// Refusals an endpoint warns of in each [`WARNING_PERIOD`]: enough to see who it is that knocks, too few to fill a
/// board's disk. The others are logged at debug level and counted.
const WARNINGS: u32 = 16;

/// See [`WARNINGS`].
const WARNING_PERIOD: Duration = Duration::from_secs(10);

/// Who is let in, and what the endpoint shows.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    pub(crate) credentials: Credentials,
    /// ALPNs in order of preference.
    pub(crate) policies: Vec<(&'static [u8], Admit)>,
    pub(crate) transport: Arc<TransportConfig>,
}

/// A peer that passed its policy.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) connection: Connection,
    pub(crate) alpn: Vec<u8>,
    /// Its own certificate.
    pub(crate) leaf: CertificateDer<'static>,
    /// Frees a place among the pending when dropped; a peer that only has a key keeps it.
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Gate {
    /// The endpoint's own settings: what applies before a connection is accepted.
    pub(crate) fn endpoint_config(&self) -> Result<ServerConfig, LinkError> {
        self.config(Arc::default())
    }

    /// Accepts until the endpoint is closed; each admitted peer is handed to `serve`, in a task of its own.
    pub(crate) async fn accept<F>(
        self,
        endpoint: Endpoint,
        serve: impl Fn(Admitted) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let pending = Arc::new(Semaphore::new(PENDING));
        let warnings = Arc::new(Warnings::default());
        while let Some(incoming) = endpoint.accept().await {
            if !incoming.remote_address_validated() {
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
                continue;
            }
            let Ok(permit) = pending.clone().try_acquire_owned() else {
                let address = quic::plain(incoming.remote_address());
                tracing::debug!(%address, "refused: {PENDING} handshakes are under way");
                incoming.refuse();
                continue;
            };
            let (gate, serve, warnings) = (self.clone(), serve.clone(), warnings.clone());
            tokio::spawn(async move {
                let address = quic::plain(incoming.remote_address());
                match gate.admit(incoming, permit).await {
                    Ok(admitted) => serve(admitted).await,
                    Err(Refusal::Quiet(reason)) => {
                        tracing::debug!(%address, "refused a connection: {reason}")
                    }
                    Err(Refusal::Loud(reason)) => match warnings.take() {
                        Some(0) => tracing::warn!(%address, "refused a connection: {reason}"),
                        Some(unsaid) => {
                            tracing::warn!(%address, unsaid, "refused a connection: {reason}")
                        }
                        None => tracing::debug!(%address, "refused a connection: {reason}"),
                    },
                }
            });
        }
    }

    async fn admit(&self, incoming: Incoming, permit: OwnedSemaphorePermit) -> Result<Admitted, Refusal> {
        let verdict = Arc::new(Verdict::default());
        let config = self.config(verdict.clone()).map_err(|error| Refusal::Loud(quic::chain(&error)))?;
        let address = incoming.remote_address();
        let connecting =
            incoming.accept_with(Arc::new(config)).map_err(|error| self.refusal(address, &verdict, error))?;
        let connection = tokio::time::timeout(HANDSHAKE, connecting)
            .await
            .map_err(|_| Refusal::Loud("it did not finish the handshake in time".to_owned()))?
            .map_err(|error| self.refusal(address, &verdict, error))?;
        let handshake = connection.handshake_data();
        let alpn = handshake
            .and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok())
            .and_then(|data| data.protocol)
            .unwrap_or_default();
        let leaf = quic::chain_of(&connection).into_iter().next();
        let leaf = leaf.ok_or_else(|| Refusal::Loud("it showed no certificate".to_owned()))?;
        Ok(Admitted { connection, alpn, leaf, permit })
    }

    fn refusal(&self, address: SocketAddr, verdict: &Verdict, error: ConnectionError) -> Refusal {
        match verdict.refusal() {
            // A node of this cluster that has its plan sooner than we have ours comes again.
            Some(reason @ CertificateError::NotInPlan { .. }) => return Refusal::Quiet(reason.to_string()),
            Some(reason) => return Refusal::Loud(format!("its certificate does not hold: {reason}")),
            None => {}
        }
        let offered = verdict.offered();
        let known = |name: &String| self.policies.iter().any(|(alpn, _)| name.as_bytes() == *alpn);
        if matches!(error, ConnectionError::TransportError(_)) && !offered.iter().any(known) {
            let ours: Vec<_> = self.policies.iter().map(|(alpn, _)| String::from_utf8_lossy(alpn)).collect();
            return Refusal::Loud(format!(
                "it speaks another protocol or version: it offers [{}], this node speaks [{}]",
                offered.join(", "),
                ours.join(", ")
            ));
        }
        match quic::ended(quic::plain(address), error, b"") {
            // Both sides dialled at once and it kept the other connection: nobody was refused.
            error @ LinkError::Closed { code: CloseCode::Replaced, .. } => {
                Refusal::Quiet(quic::chain(&error))
            }
            error => Refusal::Loud(quic::chain(&error)),
        }
    }

    fn config(&self, verdict: Arc<Verdict>) -> Result<ServerConfig, LinkError> {
        let tls = tls::server(&self.credentials, &self.policies, verdict).map_err(quic::tls_error)?;
        let crypto = QuicServerConfig::try_from(tls)
            .map_err(|error| quic::tls_error(rustls::Error::General(error.to_string())))?;
        let mut config = ServerConfig::with_crypto(Arc::new(crypto));
        config.max_incoming(PENDING);
        config.incoming_buffer_size(INCOMING_BYTES);
        config.incoming_buffer_size_total(INCOMING_BYTES * PENDING as u64);
        config.migration(false);
        config.transport_config(self.transport.clone());
        Ok(config)
    }
}

/// Why a peer did not pass, and whether a person should know.
enum Refusal {
    Quiet(String),
    Loud(String),
}

/// What an endpoint may still warn of in this period.
#[derive(Debug, Default)]
struct Warnings(Mutex<WarningState>);

#[derive(Debug, Default)]
struct WarningState {
    since: Option<Instant>,
    said: u32,
    unsaid: u64,
}

impl Warnings {
    /// Whether a warning may be given now, and how many were kept back before it.
    fn take(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| since.elapsed() >= WARNING_PERIOD) {
            state.since = Some(Instant::now());
            state.said = 0;
        }
        if state.said == WARNINGS {
            state.unsaid += 1;
            return None;
        }
        state.said += 1;
        Some(std::mem::take(&mut state.unsaid))
    }
}

/// Gives a peer whose role is known the room it needs.
pub(crate) fn widen(connection: &Connection, bidirectional: u32, window: u32) {
    connection.set_receive_window(VarInt::from_u32(window));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(bidirectional));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_bounded_and_counted() {
        let warnings = Warnings::default();
        assert!((0..WARNINGS).all(|_| warnings.take() == Some(0)));
        assert!((0..3).all(|_| warnings.take().is_none()));
        warnings.0.lock().unwrap().since = Instant::now().checked_sub(WARNING_PERIOD);
        assert_eq!(warnings.take(), Some(3));
        assert_eq!(warnings.take(), Some(0));
    }
}
