//! A worker's endpoint: joins, listens for its coordinator, and dials it.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use quinn::Endpoint;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::{ARRIVALS, ControlConn, EndpointError, JoinError, WINDOW, dialled, join, narrow};
use crate::gate::{self, Admitted, Gate};
use crate::quic::{self, CloseCode, Dial, HANDSHAKE};
use crate::tls::{ALPN_CONTROL, ALPN_JOIN, Admit, WantedServer};
use crate::token::JoinToken;
use crate::trust::{Credentials, Identity, Membership, PublicKey, Role, verify};

/// A worker's UDP endpoint for the control plane; dropping it closes its connections. `S` is what it sends
/// ([`shoal_core::message::Answer`]), `R` what it receives.
#[derive(Debug)]
pub struct WorkerEndpoint<S, R> {
    endpoint: Endpoint,
    identity: Identity,
    credentials: Mutex<Option<Credentials>>,
    arrived: mpsc::Sender<ControlConn<S, R>>,
    arrivals: tokio::sync::Mutex<mpsc::Receiver<ControlConn<S, R>>>,
}

impl<S, R> WorkerEndpoint<S, R>
where
    S: Serialize + Send + 'static,
    R: DeserializeOwned + Send + 'static,
{
    /// Opens the endpoint. It lets nobody in until [`Self::enter`]. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(address: SocketAddr, identity: &Identity) -> Result<Self, EndpointError> {
        let endpoint =
            quic::endpoint(address, None).map_err(|source| EndpointError::Bind { address, source })?;
        let (arrived, arrivals) = mpsc::channel(ARRIVALS);
        Ok(Self {
            endpoint,
            identity: identity.clone(),
            credentials: Mutex::new(None),
            arrived,
            arrivals: tokio::sync::Mutex::new(arrivals),
        })
    }

    /// Where it listens.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// Asks the coordinator that the token names, at these addresses in turn, to be admitted. The
    /// caller keeps the membership ([`Membership::save`]) and [`Self::enter`]s it. May be repeated with
    /// the same token: the answer is the same.
    ///
    /// # Errors
    /// When no address answers as that coordinator, or it refuses.
    pub async fn join(&self, token: &JoinToken, addresses: &[SocketAddr]) -> Result<Membership, JoinError> {
        let credentials = Credentials::unjoined(&self.identity)?;
        let dial = Dial {
            credentials: &credentials,
            alpn: ALPN_JOIN,
            server: WantedServer::Pinned(token.authority()),
            transport: narrow(),
            timeout: HANDSHAKE,
        };
        let (connection, _) = dial.any(&self.endpoint, addresses).await?;
        join::ask(&connection, token, self.identity.public()).await
    }

    /// Becomes a member: from now on the authority's coordinator, and nobody else, is let in.
    ///
    /// # Errors
    /// When the membership is another node's, or one was entered before.
    pub fn enter(&self, membership: &Membership) -> Result<(), EndpointError> {
        let credentials = membership.credentials(&self.identity)?;
        let authority = credentials.authority().ok_or(EndpointError::NotJoined)?;
        let mut entered = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        if entered.is_some() {
            return Err(EndpointError::Entered);
        }
        let admit = Admit::Certified { authority, role: Role::Coordinator, allowed: None };
        let gate = Gate {
            credentials: credentials.clone(),
            policies: vec![(ALPN_CONTROL, admit)],
            transport: narrow(),
        };
        self.endpoint.set_server_config(Some(gate.endpoint_config()?));
        *entered = Some(credentials);
        let arrived = self.arrived.clone();
        let serve = move |admitted| {
            let arrived = arrived.clone();
            async move {
                if let Some(connection) = receive(admitted, authority).await {
                    // The endpoint is gone; so is the connection that is dropped here.
                    let _ = arrived.send(connection).await;
                }
            }
        };
        tokio::spawn(gate.accept(self.endpoint.clone(), serve));
        Ok(())
    }

    /// Waits for the coordinator to connect. Cancel-safe.
    pub async fn accept(&self) -> Option<ControlConn<S, R>> {
        self.arrivals.lock().await.recv().await
    }

    /// Dials the coordinator at its addresses, in turn.
    ///
    /// # Errors
    /// When this node is no member, or none of the addresses is its coordinator.
    pub async fn dial(&self, addresses: &[SocketAddr]) -> Result<ControlConn<S, R>, EndpointError> {
        let credentials = self.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let credentials = credentials.ok_or(EndpointError::NotJoined)?;
        let authority = credentials.authority().ok_or(EndpointError::NotJoined)?;
        let dial = Dial {
            credentials: &credentials,
            alpn: ALPN_CONTROL,
            server: WantedServer::Certified { authority, role: Role::Coordinator, node: None },
            transport: dialled(1),
            timeout: HANDSHAKE,
        };
        let (connection, certified) = dial.any(&self.endpoint, addresses).await?;
        Ok(ControlConn::wait(connection, certified.node).await?)
    }

    /// Closes all connections and stops to listen.
    pub async fn close(&self, reason: &str) {
        self.endpoint.close(CloseCode::Done.code(), reason.as_bytes());
        // Peers that are gone already keep nobody waiting.
        let _ = tokio::time::timeout(quic::DEAD_AFTER, self.endpoint.wait_idle()).await;
    }
}

impl<S, R> Drop for WorkerEndpoint<S, R> {
    fn drop(&mut self) {
        self.endpoint.close(CloseCode::Done.code(), b"the endpoint was dropped");
    }
}

async fn receive<S, R>(admitted: Admitted, authority: PublicKey) -> Option<ControlConn<S, R>>
where
    S: Serialize,
    R: DeserializeOwned,
{
    let Admitted { connection, leaf, .. } = admitted;
    let address = quic::address_of(&connection);
    let node = verify(&leaf, &authority).ok()?.node;
    gate::widen(&connection, 1, WINDOW);
    match ControlConn::wait(connection, node).await {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::debug!(%address, %node, "lost the coordinator as it connected: {}", quic::chain(&error));
            None
        }
    }
}
