//! TLS 1.3 with our own trust: both sides show a certificate, the authority's key decides, time does
//! not. No 0-RTT, no resumption, Ed25519 only, and an explicit provider everywhere.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, ServerConfig, SignatureScheme, version::TLS13,
};
use shoal_core::NodeId;

use crate::trust::{AuthorityId, CertificateError, Certified, Credentials, PublicKey, Role, key_of, verify};

/// A worker that has no certificate yet asks for one.
pub(crate) const ALPN_JOIN: &[u8] = b"shoal-join/1";
/// Orders and answers, and chunk streams.
pub(crate) const ALPN_CONTROL: &[u8] = b"shoal-control/1";
/// Activations between nodes of one plan.
pub(crate) const ALPN_DATA: &[u8] = b"shoal-data/1";
/// Measurement of a link between any two workers of the authority.
pub(crate) const ALPN_PROBE: &[u8] = b"shoal-probe/1";

/// The nodes that may connect; replaced as plans change.
pub(crate) type AllowList = Arc<RwLock<BTreeSet<NodeId>>>;

/// Whom a server lets in under one ALPN.
#[derive(Debug, Clone)]
pub(crate) enum Admit {
    /// Any key: the peer proves only that it has it.
    AnyKey,
    /// Nodes this authority gave this role, and if there is a list, those on it.
    Certified { authority: PublicKey, role: Role, allowed: Option<AllowList> },
}

/// What one handshake came to; the verifiers write it, both ends read it for their log lines.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    offered: Mutex<Vec<String>>,
    refusal: Mutex<Option<CertificateError>>,
}

impl Verdict {
    /// The protocols the client named. Text from outside: escaped and cut.
    pub(crate) fn offered(&self) -> Vec<String> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn refusal(&self) -> Option<CertificateError> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuse(&self, error: CertificateError) -> Error {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        Error::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// A server's side for one handshake: its ALPNs in order of preference, and whom each lets in.
pub(crate) fn server(
    credentials: &Credentials,
    policies: &[(&'static [u8], Admit)],
    verdict: Arc<Verdict>,
) -> Result<ServerConfig, Error> {
    let policies = policies.to_vec();
    let protocols = policies.iter().map(|(alpn, _)| alpn.to_vec()).collect();
    let signing = provider().key_provider.load_private_key(credentials.identity().private_der())?;
    let key = Arc::new(CertifiedKey::new(credentials.chain().to_vec(), signing));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Clients { policies, verdict: verdict.clone() }))
        .with_cert_resolver(Arc::new(Noted { key, verdict }));
    config.alpn_protocols = protocols;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client's side: whom it wants to talk to, and over what.
pub(crate) fn client(
    credentials: &Credentials,
    alpn: &'static [u8],
    server: WantedServer,
    verdict: Arc<Verdict>,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Servers { wanted: server, verdict }))
        .with_client_auth_cert(credentials.chain().to_vec(), credentials.identity().private_der())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// Whom a client accepts as server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WantedServer {
    /// A node of this authority with this role; this very one if named.
    Certified { authority: PublicKey, role: Role, node: Option<NodeId> },
    /// The coordinator of the authority that a token names, of which nothing else is known.
    Pinned(AuthorityId),
}

impl WantedServer {
    /// Checks a server's chain: its own certificate, and the authority's when that is not known yet.
    pub(crate) fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
    ) -> Result<Certified, CertificateError> {
        let (key, wanted_role, wanted_node) = match *self {
            Self::Certified { authority, role, node } => (authority, role, node),
            Self::Pinned(wanted) => {
                let key = key_of(rest.last().ok_or(CertificateError::NoAuthority)?)?;
                let found = key.authority();
                if found != wanted {
                    return Err(CertificateError::WrongAuthority { found, wanted });
                }
                (key, Role::Coordinator, None)
            }
        };
        let certified = verify(leaf, &key)?;
        expect_role(certified, wanted_role)?;
        match wanted_node {
            Some(wanted) if wanted != certified.node => {
                Err(CertificateError::WrongNode { found: certified.node, wanted })
            }
            _ => Ok(certified),
        }
    }
}

impl Admit {
    fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), CertificateError> {
        match self {
            Self::AnyKey => key_of(leaf).map(|_| ()),
            Self::Certified { authority, role, allowed } => {
                let certified = verify(leaf, authority)?;
                expect_role(certified, *role)?;
                let node = certified.node;
                let listed =
                    |list: &AllowList| list.read().unwrap_or_else(PoisonError::into_inner).contains(&node);
                if allowed.as_ref().is_none_or(listed) {
                    Ok(())
                } else {
                    Err(CertificateError::NotInPlan { node })
                }
            }
        }
    }
}

fn expect_role(certified: Certified, wanted: Role) -> Result<(), CertificateError> {
    let Certified { node, role: found } = certified;
    if found == wanted { Ok(()) } else { Err(CertificateError::WrongRole { node, found, wanted }) }
}

/// Shows the one certificate, and notes what protocols the client speaks.
#[derive(Debug)]
struct Noted {
    key: Arc<CertifiedKey>,
    verdict: Arc<Verdict>,
}

impl ResolvesServerCert for Noted {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offered = hello.alpn().into_iter().flatten().take(4).map(|name| name.escape_ascii().take(40));
        *self.verdict.offered.lock().unwrap_or_else(PoisonError::into_inner) =
            offered.map(|name| name.map(char::from).collect()).collect();
        Some(self.key.clone())
    }
}

/// Judges a client by the policy of the protocol that was agreed on.
#[derive(Debug)]
struct Clients {
    policies: Vec<(&'static [u8], Admit)>,
    verdict: Arc<Verdict>,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // rustls takes the first of our protocols that the client offered; so do we. One that offered
        // none of them was turned away before.
        let offered = self.verdict.offered();
        let agreed =
            self.policies.iter().find(|(alpn, _)| offered.iter().any(|name| name.as_bytes() == *alpn));
        let (_, admit) = agreed.ok_or(Error::NoApplicationProtocol)?;
        admit.check(end_entity).map_err(|error| self.verdict.refuse(error))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[derive(Debug)]
struct Servers {
    wanted: WantedServer,
    verdict: Arc<Verdict>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.wanted.check(end_entity, intermediates).map_err(|error| self.verdict.refuse(error))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn only_tls13() -> Error {
    Error::General("only TLS 1.3 is spoken here".to_owned())
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}
