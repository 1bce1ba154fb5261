//! Joining: one exchange on one stream under its own ALPN.
//!
//! The worker shows a self-signed certificate and checks in the handshake that the server's chain
//! ends in the key its token names; only then it sends the secret. The coordinator judges the token,
//! and answers with certificates for the very key the worker proved to have. Both messages are a
//! length (u32, little-endian) and bytes of [`crate::codec`].

use quinn::{Connection, RecvStream, SendStream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_core::limits::PROTOCOL_VERSION;

use crate::codec::{self, CodecError};
use crate::quic::{self, CloseCode, HANDSHAKE, LinkError};
use crate::tls::ALPN_JOIN;
use crate::token::{JoinToken, Secret, TokenRefusal, TokenStore, UnixSeconds};
use crate::trust::{Authority, CertificateError, Membership, PublicKey, TrustError};

/// A request has some 30 bytes, a reply two certificates of 400.
const MESSAGE_BYTES: usize = 4 << 10;

/// Why a worker could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the coordinator refused the token: {0}")]
    Token(TokenRefusal),
    #[error("the coordinator speaks protocol version {theirs}, this node {PROTOCOL_VERSION}")]
    Version { theirs: u32 },
    #[error("the coordinator failed to admit this node; its log says why")]
    Coordinator,
    #[error("the coordinator's answer cannot be read")]
    Answer(#[source] CodecError),
    #[error("the coordinator closed the stream before it answered")]
    Ended,
    #[error("what the coordinator signed does not hold")]
    Trust(#[from] TrustError),
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    protocol: u32,
    secret: Secret,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Admitted { authority: Vec<u8>, node: Vec<u8> },
    Refused(TokenRefusal),
    Version(u32),
    Failed,
}

/// The worker's side, on a connection whose server proved to be the token's authority.
pub(super) async fn ask(
    connection: &Connection,
    token: &JoinToken,
    key: PublicKey,
) -> Result<Membership, JoinError> {
    let address = quic::address_of(connection);
    let exchange = async {
        let (mut send, mut recv) =
            connection.open_bi().await.map_err(|error| quic::ended(address, error, ALPN_JOIN))?;
        let request = Request { protocol: PROTOCOL_VERSION, secret: token.secret().clone() };
        write(&mut send, &request).await?;
        read(&mut recv).await
    };
    let reply =
        tokio::time::timeout(HANDSHAKE, exchange).await.map_err(|_| LinkError::Timeout { address })??;
    // The coordinator holds the connection until it sees that the answer arrived.
    quic::close(connection, CloseCode::Done, "");
    match reply {
        Reply::Admitted { authority, node } => {
            let membership = Membership::try_new(authority, node, key)?;
            let (found, wanted) = (membership.authority(), token.authority());
            if found != wanted {
                let error = CertificateError::WrongAuthority { found, wanted };
                return Err(TrustError::Certificate(error).into());
            }
            Ok(membership)
        }
        Reply::Refused(refusal) => Err(JoinError::Token(refusal)),
        Reply::Version(theirs) => Err(JoinError::Version { theirs }),
        Reply::Failed => Err(JoinError::Coordinator),
    }
}

/// The coordinator's side. Whether the node was admitted; each refusal is logged with its reason.
pub(super) async fn answer(
    connection: &Connection,
    key: PublicKey,
    authority: &Authority,
    tokens: &TokenStore,
) -> bool {
    let address = quic::address_of(connection);
    let exchange = async {
        let (mut send, mut recv) = connection.accept_bi().await.ok()?;
        let request = match read::<Request>(&mut recv).await {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%address, "refused to let a node join: {}", quic::chain(&error));
                return None;
            }
        };
        let protocol = request.protocol;
        let reply = judge(request, key, authority, tokens.clone()).await;
        match &reply {
            Reply::Admitted { .. } => tracing::info!(%address, node = %key.node(), "a node joined"),
            Reply::Refused(why) => {
                tracing::warn!(%address, node = %key.node(), "refused to let a node join: {why}")
            }
            Reply::Version(_) => tracing::warn!(
                %address, node = %key.node(),
                "refused to let a node join: it speaks protocol version {protocol}, this node {PROTOCOL_VERSION}"
            ),
            Reply::Failed => {}
        }
        write(&mut send, &reply).await.ok()?;
        // The worker closes when it has the answer.
        connection.closed().await;
        Some(matches!(reply, Reply::Admitted { .. }))
    };
    let admitted = tokio::time::timeout(HANDSHAKE, exchange).await;
    if admitted.is_err() {
        tracing::warn!(%address, "refused to let a node join: it did not ask in time");
    }
    quic::close(connection, CloseCode::Protocol, "the join was not finished");
    admitted.ok().flatten().unwrap_or(false)
}

async fn judge(request: Request, key: PublicKey, authority: &Authority, tokens: TokenStore) -> Reply {
    if request.protocol != PROTOCOL_VERSION {
        return Reply::Version(PROTOCOL_VERSION);
    }
    // The store waits for its lock and for the disk.
    let redeem = move || tokens.redeem(&request.secret, key, UnixSeconds::now());
    let redeemed = match tokio::task::spawn_blocking(redeem).await {
        Ok(Ok(redeemed)) => redeemed,
        Ok(Err(error)) => {
            tracing::error!("failed to judge a join token: {}", quic::chain(&error));
            return Reply::Failed;
        }
        Err(_) => return Reply::Failed,
    };
    match redeemed.map(|()| authority.admit(key)) {
        Ok(Ok(membership)) => {
            let (node, authority) = membership.certificates();
            Reply::Admitted { authority: authority.to_vec(), node: node.to_vec() }
        }
        Ok(Err(error)) => {
            tracing::error!("failed to sign a node's key: {}", quic::chain(&error));
            Reply::Failed
        }
        Err(refusal) => Reply::Refused(refusal),
    }
}

async fn write<M: Serialize>(stream: &mut SendStream, message: &M) -> Result<(), JoinError> {
    let body = codec::encode(message).map_err(JoinError::Answer)?;
    let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await.map_err(|_| JoinError::Ended)?;
    stream.finish().map_err(|_| JoinError::Ended)
}

async fn read<M: DeserializeOwned>(stream: &mut RecvStream) -> Result<M, JoinError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(|_| JoinError::Ended)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_BYTES {
        return Err(JoinError::Answer(CodecError::TooLong(length)));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.map_err(|_| JoinError::Ended)?;
    codec::decode(&bytes).map_err(JoinError::Answer)
}
