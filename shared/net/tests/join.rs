//! Joining, and who is turned away at the gate: each refusal has its reason on both sides and in the log.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::{ANY, Cluster, Log, chain};
use shoal_core::message::{Answer, Order};
use shoal_net::control::{Arrival, JoinError, LinkError};
use shoal_net::token::TokenRefusal;
use shoal_net::{Identity, JoinToken, Membership, WorkerEndpoint};

async fn join(identity: &Identity, token: &JoinToken, address: SocketAddr) -> Result<Membership, JoinError> {
    WorkerEndpoint::<Answer, Order>::bind(ANY, identity).unwrap().join(token, &[address]).await
}

#[tokio::test]
async fn a_token_admits_a_worker_which_is_known_afterwards() {
    let (log, _guard) = Log::start();
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator();
    let address = coordinator.local_address().unwrap();
    let home = tempfile::tempdir().unwrap();
    let identity = Identity::load_or_create(home.path()).unwrap();
    assert_eq!(Membership::load(home.path(), &identity).unwrap(), None);
    let token = cluster.token(1, Duration::ZERO);

    let worker = WorkerEndpoint::<Answer, Order>::bind(ANY, &identity).unwrap();
    let membership = worker.join(&token, &[address]).await.unwrap();
    let Some(Arrival::Joined { node, .. }) = coordinator.arrival().await else { panic!() };
    assert_eq!((node, membership.authority()), (identity.node(), cluster.authority.id()));
    membership.save(home.path()).unwrap();
    // The same key may ask again, as when the answer was lost; another may not.
    assert_eq!(worker.join(&token, &[address]).await.unwrap(), membership);
    let other = join(&Identity::ephemeral().unwrap(), &token, address).await;
    assert!(matches!(other, Err(JoinError::Token(TokenRefusal::Used))), "{other:?}");

    // After a restart both sides know each other without a token, whoever dials.
    let identity = Identity::load_or_create(home.path()).unwrap();
    let membership = Membership::load(home.path(), &identity).unwrap().unwrap();
    let worker = WorkerEndpoint::<Answer, Order>::bind(ANY, &identity).unwrap();
    worker.enter(&membership).unwrap();
    let dialled = worker.dial(&[address]).await.unwrap();
    assert_eq!(dialled.node(), cluster.authority.node());
    let connected = loop {
        match coordinator.arrival().await {
            Some(Arrival::Connected(connected)) => break connected,
            other => assert!(other.is_some()),
        }
    };
    assert_eq!(connected.node(), identity.node());
    let targets = [worker.local_address().unwrap()];
    let (out, taken) = tokio::join!(coordinator.dial(identity.node(), &targets), worker.accept());
    assert_eq!((out.unwrap().node(), taken.unwrap().node()), (identity.node(), cluster.authority.node()));

    let text = log.text();
    assert!(text.contains("a node joined"), "{text}");
    // Neither the token nor any key is in the log, at any level, nor in Debug output.
    let key = std::fs::read(home.path().join("node.key")).unwrap();
    let key = format!("{:?}", &key[16..24]);
    let debug = format!("{token:?} {identity:?} {membership:?} {:?} {worker:?}", cluster.authority);
    for output in [&text, &debug] {
        assert!(!output.to_lowercase().contains(&token.reveal()[70..90]));
        assert!(!output.contains(key.trim_matches(['[', ']'])));
    }
}

#[tokio::test]
async fn bad_tokens_are_refused_with_their_reason() {
    let (log, _guard) = Log::start();
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let coordinator = cluster.coordinator();
    let address = coordinator.local_address().unwrap();
    let identity = Identity::ephemeral().unwrap();

    let expired = cluster.token(1, Duration::from_secs(16 * 60));
    let error = join(&identity, &expired, address).await.unwrap_err();
    assert!(matches!(error, JoinError::Token(TokenRefusal::Expired)), "{error}");
    assert!(log.warning("expired token").await.contains("127.0.0.1"));

    // A token that another store of the same authority made.
    let elsewhere = tempfile::tempdir().unwrap();
    let unknown = shoal_net::TokenStore::new(elsewhere.path())
        .issue(cluster.authority.id(), 1, Duration::from_secs(60), shoal_net::token::UnixSeconds::now())
        .unwrap();
    let error = join(&identity, &unknown, address).await.unwrap_err();
    assert!(matches!(error, JoinError::Token(TokenRefusal::Unknown)), "{error}");
    log.warning("unknown token").await;

    // A token of another authority: the secret is never sent, the worker says why.
    let error = join(&identity, &other.token(1, Duration::ZERO), address).await.unwrap_err();
    let named = format!("not {} which the token names", other.authority.id().fingerprint());
    assert!(chain(&error).contains(&named), "{}", chain(&error));
    log.warning("refused a connection").await;
}

#[tokio::test]
async fn members_of_another_authority_are_refused_in_both_directions() {
    let (log, _guard) = Log::start();
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let (coordinator, stranger) = (cluster.coordinator(), other.worker());
    let error = stranger.dial(&[coordinator.local_address().unwrap()]).await.unwrap_err();
    assert!(chain(&error).contains("not signed by this cluster's authority"), "{}", chain(&error));

    let (identity, _) = other.member();
    let worker = stranger.local_address().unwrap();
    let error = coordinator.dial(identity.node(), &[worker]).await.unwrap_err();
    assert!(chain(&error).contains("not signed by this cluster's authority"), "{}", chain(&error));

    // A worker of the right cluster is not the coordinator, nor another worker.
    let (one, two) = (cluster.worker(), cluster.worker());
    let error = one.dial(&[two.local_address().unwrap()]).await.unwrap_err();
    assert!(chain(&error).contains("where a coordinator is needed"), "{}", chain(&error));
    let error = coordinator.dial(identity.node(), &[one.local_address().unwrap()]).await.unwrap_err();
    assert!(chain(&error).contains("not of"), "{}", chain(&error));
    log.warning("refused a connection").await;
}

#[tokio::test]
async fn a_stranger_learns_nothing_and_is_named_in_the_log() {
    let (log, _guard) = Log::start();
    let cluster = Cluster::new();
    let (coordinator, worker) = (cluster.coordinator(), cluster.worker());
    for address in [coordinator.local_address().unwrap(), worker.local_address().unwrap()] {
        // No certificate at all.
        let bare = raw::connect(address, "shoal-control/1", None).await;
        let connection = bare.expect("a client's handshake is done before the server judged it");
        assert!(raw::gets_nothing(&connection).await);
        // A certificate nobody signed.
        let own = raw::connect(address, "shoal-control/1", Some(raw::self_signed())).await.unwrap();
        assert!(raw::gets_nothing(&own).await);
        // Another protocol version.
        let error = raw::connect(address, "shoal-control/9", Some(raw::self_signed())).await.unwrap_err();
        assert!(format!("{error}").contains("120"), "{error}");
    }
    log.warning("its certificate does not hold: it is not signed by this cluster's authority").await;
    let version = log.warning("another protocol or version").await;
    assert!(version.contains("[shoal-control/9]") && version.contains("shoal-control/1"), "{version}");
    assert!(version.contains("127.0.0.1"), "{version}");
    log.warning("peer sent no certificates").await;
}

#[tokio::test]
async fn a_dialler_of_another_version_is_told_so() {
    let cluster = Cluster::new();
    // A worker that has not joined serves nobody; a data port does not speak the control protocol.
    let (identity, membership) = cluster.member();
    let credentials = membership.credentials(&identity).unwrap();
    let data = tokio::task::spawn_blocking(move || shoal_net::DataPlane::start(ANY, &credentials).unwrap());
    let data = data.await.unwrap();
    let worker = cluster.worker();
    let error = worker.dial(&[data.local_address()]).await.unwrap_err();
    let version = matches!(
        &error,
        shoal_net::control::EndpointError::Link(LinkError::Version { ours: "shoal-control/1", .. })
    );
    assert!(version, "{}", chain(&error));
    tokio::task::spawn_blocking(move || drop(data)).await.unwrap();
}

#[tokio::test]
async fn no_more_than_the_named_number_of_handshakes_is_under_way() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator();
    let address = coordinator.local_address().unwrap();
    // Joining peers that never ask keep their places for the time of a handshake, not longer.
    let mut idle = Vec::new();
    for _ in 0..shoal_net::control::PENDING {
        idle.push(raw::connect(address, "shoal-join/1", Some(raw::self_signed())).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let identity = Identity::ephemeral().unwrap();
    let token = cluster.token(1, Duration::ZERO);
    assert!(join(&identity, &token, address).await.is_err());
    drop(idle);
    tokio::time::sleep(Duration::from_millis(200)).await;
    join(&identity, &token, address).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_only_has_a_key_can_send_a_request_and_no_more() {
    let cluster = Cluster::new();
    let coordinator = cluster.coordinator();
    let address = coordinator.local_address().unwrap();
    let peer = raw::connect(address, "shoal-join/1", Some(raw::self_signed())).await.unwrap();
    let (mut send, _recv) = peer.open_bi().await.unwrap();
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = sent.clone();
    let flood = async move {
        // A request that claims 4 KiB and does not end.
        while let Ok(bytes) = send.write(&[0, 16, 0, 0]).await {
            count.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), flood).await;
    let sent = sent.load(std::sync::atomic::Ordering::Relaxed);
    // What was accepted for sending is bounded by the window, save what was read as the request.
    assert!(sent <= 4 * shoal_net::control::JOIN_WINDOW as usize, "{sent}");
    let other = tokio::time::timeout(Duration::from_millis(500), peer.open_uni()).await;
    assert!(!matches!(other, Ok(Ok(_))));
}

/// A client that trusts any server: what an attacker or another program would be.
mod raw {
    use super::*;
    use quinn::crypto::rustls::QuicClientConfig;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    pub(super) fn self_signed() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["x.shoal".to_owned()]).unwrap().self_signed(&key);
        (certificate.unwrap().der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    pub(super) async fn connect(
        address: SocketAddr,
        alpn: &str,
        own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match own {
            Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
        let endpoint = quinn::Endpoint::client(ANY).unwrap();
        endpoint.connect_with(config, address, "x.shoal").unwrap().await
    }

    /// Whether the server ends the connection without having sent a byte on any stream.
    pub(super) async fn gets_nothing(connection: &quinn::Connection) -> bool {
        let (bi, uni, closed) =
            tokio::join!(connection.accept_bi(), connection.accept_uni(), connection.closed());
        bi.is_err() && uni.is_err() && matches!(closed, quinn::ConnectionError::ConnectionClosed(_))
    }

    #[derive(Debug)]
    struct Anybody;

    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    }
}
