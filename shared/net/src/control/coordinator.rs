//! The coordinator's endpoint: takes in joining and known workers, and dials workers.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::Endpoint;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_core::NodeId;
use tokio::sync::{Mutex, mpsc};

use super::{ARRIVALS, CHUNK_STREAMS, ControlConn, EndpointError, WINDOW, dialled, join, narrow};
use crate::gate::{self, Admitted, Gate};
use crate::quic::{self, CloseCode, Dial, HANDSHAKE};
use crate::tls::{ALPN_CONTROL, ALPN_JOIN, Admit, WantedServer};
use crate::token::TokenStore;
use crate::trust::{Authority, Credentials, Role, key_of, verify};

/// What came to the coordinator's endpoint.
#[derive(Debug)]
pub enum Arrival<S, R> {
    /// A worker of this cluster connected.
    Connected(ControlConn<S, R>),
    /// A node was admitted; it has not connected yet.
    Joined { node: NodeId, address: SocketAddr },
}

/// The coordinator's UDP endpoint; dropping it closes its connections. `S` is what it sends ([`shoal_core::message::Order`]), `R` what it receives.
#[derive(Debug)]
pub struct CoordinatorEndpoint<S, R> {
    endpoint: Endpoint,
    credentials: Credentials,
    arrivals: Mutex<mpsc::Receiver<Arrival<S, R>>>,
}

impl<S, R> CoordinatorEndpoint<S, R>
where
    S: Serialize + Send + 'static,
    R: DeserializeOwned + Send + 'static,
{
    /// Opens the endpoint and starts to accept. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// When the address cannot be had (in use), or TLS cannot be prepared.
    pub fn bind(
        address: SocketAddr,
        authority: Arc<Authority>,
        tokens: TokenStore,
    ) -> Result<Self, EndpointError> {
        let credentials = authority.credentials().clone();
        let certified = Admit::Certified {
            authority: credentials.authority().ok_or(EndpointError::NotJoined)?,
            role: Role::Worker,
            allowed: None,
        };
        let policies = vec![(ALPN_CONTROL, certified), (ALPN_JOIN, Admit::AnyKey)];
        let gate = Gate { credentials: credentials.clone(), policies, transport: narrow() };
        let endpoint = quic::endpoint(address, Some(gate.endpoint_config()?))
            .map_err(|source| EndpointError::Bind { address, source })?;
        let (arrived, arrivals) = mpsc::channel(ARRIVALS);
        let serve = move |admitted: Admitted| {
            let (authority, tokens, arrived) = (authority.clone(), tokens.clone(), arrived.clone());
            async move {
                if let Some(arrival) = receive(admitted, &authority, &tokens).await {
                    // The endpoint is gone; so is the connection that is dropped here.
                    let _ = arrived.send(arrival).await;
                }
            }
        };
        tokio::spawn(gate.accept(endpoint.clone(), serve));
        Ok(Self { endpoint, credentials, arrivals: Mutex::new(arrivals) })
    }

    /// Where it listens.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// Waits for a worker to connect or to join; `None` after [`Self::close`]. Cancel-safe.
    pub async fn arrival(&self) -> Option<Arrival<S, R>> {
        self.arrivals.lock().await.recv().await
    }

    /// Dials a worker at its addresses, in turn.
    ///
    /// # Errors
    /// Why none of them is that worker.
    pub async fn dial(
        &self,
        node: NodeId,
        addresses: &[SocketAddr],
    ) -> Result<ControlConn<S, R>, EndpointError> {
        let authority = self.credentials.authority().ok_or(EndpointError::NotJoined)?;
        let dial = Dial {
            credentials: &self.credentials,
            alpn: ALPN_CONTROL,
            server: WantedServer::Certified { authority, role: Role::Worker, node: Some(node) },
            transport: dialled(CHUNK_STREAMS),
            timeout: HANDSHAKE,
        };
        let (connection, _) = dial.any(&self.endpoint, addresses).await?;
        Ok(ControlConn::open(connection, node).await?)
    }

    /// Dials whichever worker of this cluster is at one of these addresses.
    ///
    /// # Errors
    /// Why none of them is a worker of this cluster.
    pub async fn dial_any(&self, addresses: &[SocketAddr]) -> Result<ControlConn<S, R>, EndpointError> {
        let authority = self.credentials.authority().ok_or(EndpointError::NotJoined)?;
        let dial = Dial {
            credentials: &self.credentials,
            alpn: ALPN_CONTROL,
            server: WantedServer::Certified { authority, role: Role::Worker, node: None },
            transport: dialled(CHUNK_STREAMS),
            timeout: HANDSHAKE,
        };
        let (connection, certified) = dial.any(&self.endpoint, addresses).await?;
        Ok(ControlConn::open(connection, certified.node).await?)
    }

    /// Closes all connections and stops to listen.
    pub async fn close(&self, reason: &str) {
        self.endpoint.close(CloseCode::Done.code(), reason.as_bytes());
        // Peers that are gone already keep nobody waiting.
        let _ = tokio::time::timeout(quic::DEAD_AFTER, self.endpoint.wait_idle()).await;
    }
}

impl<S, R> Drop for CoordinatorEndpoint<S, R> {
    fn drop(&mut self) {
        self.endpoint.close(CloseCode::Done.code(), b"the endpoint was dropped");
    }
}

async fn receive<S, R>(
    admitted: Admitted,
    authority: &Authority,
    tokens: &TokenStore,
) -> Option<Arrival<S, R>>
where
    S: Serialize,
    R: DeserializeOwned,
{
    let Admitted { connection, alpn, leaf, permit } = admitted;
    let address = quic::address_of(&connection);
    if alpn == ALPN_JOIN {
        let key = key_of(&leaf).ok()?;
        let joined = join::answer(&connection, key, authority, tokens).await;
        drop(permit);
        return joined.then(|| Arrival::Joined { node: key.node(), address });
    }
    drop(permit);
    let node = verify(&leaf, &authority.credentials().authority()?).ok()?.node;
    gate::widen(&connection, CHUNK_STREAMS, WINDOW);
    match ControlConn::open(connection, node).await {
        Ok(conn) => Some(Arrival::Connected(conn)),
        Err(error) => {
            tracing::debug!(%address, %node, "lost a worker as it connected: {}", quic::chain(&error));
            None
        }
    }
}
