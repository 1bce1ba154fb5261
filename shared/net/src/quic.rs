//! QUIC as both planes use it: sockets, transport settings, dialling, close codes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};

use crate::tls::{self, Verdict, WantedServer};
use crate::trust::{CertificateError, Certified, Credentials};

/// Time for a handshake, and for a whole join: a Pi does one in some 10 ms.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// Interval of QUIC's own keep-alive packets, so that silence means death.
pub const HEARTBEAT: Duration = Duration::from_millis(250);

/// A peer from which no packet came for this long is dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(1);

/// Bytes of handshake messages that QUIC buffers for a peer, per encryption level; ours have 2 kB.
pub(crate) const HANDSHAKE_BUFFER_BYTES: usize = 8 << 10;

/// First guess of a round trip, on a local network; it only sets when a lost first packet is repeated.
const INITIAL_RTT: Duration = Duration::from_millis(30);

/// Receive and send buffers asked of the system for a data plane's socket: a prefill chunk arrives in bursts.
const SOCKET_BUFFER_BYTES: usize = 2 << 20;

/// Why a connection could not be made, or ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    #[error("no connection to {address} within {} s", HANDSHAKE.as_secs())]
    Timeout { address: SocketAddr },
    #[error("failed to connect to {address}")]
    Dial {
        address: SocketAddr,
        #[source]
        source: quinn::ConnectError,
    },
    #[error("{address} speaks another version of the protocol ({ours} is refused there)")]
    Version { address: SocketAddr, ours: &'static str },
    #[error("the certificate of {address} does not hold")]
    Certificate {
        address: SocketAddr,
        #[source]
        source: CertificateError,
    },
    #[error("{address} does not accept this node's certificate; its log says why")]
    NotTrusted { address: SocketAddr },
    #[error("the connection with {address} ended")]
    Lost {
        address: SocketAddr,
        #[source]
        source: ConnectionError,
    },
    #[error("{address} closed the connection ({code}): {reason}")]
    Closed { address: SocketAddr, code: CloseCode, reason: String },
    #[error("failed to prepare a connection")]
    Tls(#[source] Arc<rustls::Error>),
    #[error("there is no address to dial")]
    NoAddress,
}

/// Why one side closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// All is done.
    Done,
    /// The peer is not, or no longer, wanted.
    Refused,
    /// The peer sent what no peer of this version sends.
    Protocol,
    /// A newer connection of the same node took over.
    Replaced,
    /// A code of another version.
    Unknown(u64),
}

impl CloseCode {
    pub(crate) fn code(self) -> VarInt {
        match self {
            Self::Done => VarInt::from_u32(0),
            Self::Refused => VarInt::from_u32(1),
            Self::Protocol => VarInt::from_u32(2),
            Self::Replaced => VarInt::from_u32(3),
            Self::Unknown(code) => VarInt::from_u64(code).unwrap_or(VarInt::MAX),
        }
    }

    fn from_code(code: VarInt) -> Self {
        let known = [Self::Done, Self::Refused, Self::Protocol, Self::Replaced];
        known.into_iter().find(|known| known.code() == code).unwrap_or(Self::Unknown(code.into_inner()))
    }
}

impl std::fmt::Display for CloseCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Refused => f.write_str("refused"),
            Self::Protocol => f.write_str("protocol error"),
            Self::Replaced => f.write_str("replaced"),
            Self::Unknown(code) => write!(f, "code {code}"),
        }
    }
}

/// A closing reason as the peer may read it: cut to what fits a packet.
pub(crate) fn close(connection: &Connection, code: CloseCode, reason: &str) {
    let mut end = reason.len().min(200);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    connection.close(code.code(), &reason.as_bytes()[..end]);
}

/// What a connection's end means.
pub(crate) fn ended(address: SocketAddr, error: ConnectionError, alpn: &'static [u8]) -> LinkError {
    /// TLS alerts: `no_application_protocol`, those about certificates, `certificate_required`.
    const NO_PROTOCOL: u8 = 120;
    const CERTIFICATE: [u8; 8] = [42, 43, 44, 45, 46, 48, 49, 116];
    match error {
        ConnectionError::ApplicationClosed(close) => LinkError::Closed {
            address,
            code: CloseCode::from_code(close.error_code),
            reason: String::from_utf8_lossy(&close.reason).escape_debug().to_string(),
        },
        ConnectionError::ConnectionClosed(close)
            if close.error_code == quinn::TransportErrorCode::crypto(NO_PROTOCOL) =>
        {
            LinkError::Version { address, ours: std::str::from_utf8(alpn).unwrap_or_default() }
        }
        ConnectionError::ConnectionClosed(close)
            if CERTIFICATE
                .iter()
                .any(|alert| close.error_code == quinn::TransportErrorCode::crypto(*alert)) =>
        {
            LinkError::NotTrusted { address }
        }
        ConnectionError::VersionMismatch => LinkError::Version { address, ours: "QUIC 1" },
        source => LinkError::Lost { address, source },
    }
}

/// Settings that both planes share: silence means death, few streams, no datagrams.
pub(crate) fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    // 1 s is far below the largest idle timeout there can be.
    transport.max_idle_timeout(quinn::IdleTimeout::try_from(DEAD_AFTER).ok());
    transport.keep_alive_interval(Some(HEARTBEAT));
    transport.crypto_buffer_size(HANDSHAKE_BUFFER_BYTES);
    transport.initial_rtt(INITIAL_RTT);
    transport.datagram_receive_buffer_size(None);
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport
}

/// A UDP endpoint on the address. `[::]` serves IPv4 too, and falls back to `0.0.0.0` on systems
/// without IPv6. Needs a tokio runtime around it.
pub(crate) fn endpoint(address: SocketAddr, server: Option<quinn::ServerConfig>) -> io::Result<Endpoint> {
    let socket = match socket(address) {
        Err(_) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            socket(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))?
        }
        other => other?,
    };
    Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(quinn::TokioRuntime))
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
    }
    // The system may give less; then bursts are lost and sent again.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A way to dial: over what protocol, whom, and with which settings.
#[derive(Debug, Clone)]
pub(crate) struct Dial<'a> {
    pub(crate) credentials: &'a Credentials,
    pub(crate) alpn: &'static [u8],
    pub(crate) server: WantedServer,
    pub(crate) transport: Arc<TransportConfig>,
    /// For one address.
    pub(crate) timeout: Duration,
}

impl Dial<'_> {
    /// Dials the addresses in turn until one answers as the node that is wanted.
    ///
    /// # Errors
    /// Why the last address did not, save that an address which answered wrongly is told first.
    pub(crate) async fn any(
        &self,
        endpoint: &Endpoint,
        addresses: &[SocketAddr],
    ) -> Result<(Connection, Certified), LinkError> {
        let mut failure = LinkError::NoAddress;
        for &address in addresses {
            match self.one(endpoint, address).await {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    tracing::debug!(%address, error = %chain(&error), "could not connect");
                    if !matches!(error, LinkError::Timeout { .. } | LinkError::Dial { .. })
                        || matches!(
                            failure,
                            LinkError::NoAddress | LinkError::Timeout { .. } | LinkError::Dial { .. }
                        )
                    {
                        failure = error;
                    }
                }
            }
        }
        Err(failure)
    }

    async fn one(
        &self,
        endpoint: &Endpoint,
        address: SocketAddr,
    ) -> Result<(Connection, Certified), LinkError> {
        let verdict = Arc::new(Verdict::default());
        let tls =
            tls::client(self.credentials, self.alpn, self.server, verdict.clone()).map_err(tls_error)?;
        let crypto = QuicClientConfig::try_from(tls)
            .map_err(|error| tls_error(rustls::Error::General(error.to_string())))?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(self.transport.clone());
        let name = match self.server {
            WantedServer::Certified { node: Some(node), .. } => format!("{node}.shoal"),
            _ => "coordinator.shoal".to_owned(),
        };
        let target = reachable(endpoint, address);
        let connecting = endpoint
            .connect_with(config, target, &name)
            .map_err(|source| LinkError::Dial { address, source })?;
        let connection = tokio::time::timeout(self.timeout, connecting)
            .await
            .map_err(|_| LinkError::Timeout { address })?
            .map_err(|error| match verdict.refusal() {
                Some(source) => LinkError::Certificate { address, source },
                None => ended(address, error, self.alpn),
            })?;
        let chain = chain_of(&connection);
        let certified = chain
            .split_first()
            .ok_or(CertificateError::Malformed)
            .and_then(|(leaf, rest)| self.server.check(leaf, rest))
            .map_err(|source| LinkError::Certificate { address, source })?;
        Ok((connection, certified))
    }
}

/// The certificates a connection's peer showed, its own first.
pub(crate) fn chain_of(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let identity =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    identity.map(|chain| *chain).unwrap_or_default()
}

/// An error and its sources in one line, for logs.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

pub(crate) fn tls_error(error: rustls::Error) -> LinkError {
    LinkError::Tls(Arc::new(error))
}

/// An IPv4 address as an IPv6 socket names it.
fn reachable(endpoint: &Endpoint, address: SocketAddr) -> SocketAddr {
    match (endpoint.local_addr(), address) {
        (Ok(SocketAddr::V6(_)), SocketAddr::V4(v4)) => {
            SocketAddr::from((v4.ip().to_ipv6_mapped(), address.port()))
        }
        _ => address,
    }
}

/// The peer's address as a person writes it: IPv4 as IPv4.
pub(crate) fn address_of(connection: &Connection) -> SocketAddr {
    plain(connection.remote_address())
}

pub(crate) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
