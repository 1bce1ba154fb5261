//! A cluster's papers, and a log that a test can read.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_core::message::{Answer, Order};
use shoal_net::token::{TOKEN_LIFE, UnixSeconds};
use shoal_net::{
    Authority, CoordinatorEndpoint, Identity, JoinToken, Membership, TokenStore, WorkerEndpoint,
};

pub(crate) type Coordinator = CoordinatorEndpoint<Order, Answer>;
pub(crate) type Worker = WorkerEndpoint<Answer, Order>;

pub(crate) const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A coordinator's data folder with its authority and tokens.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) authority: Arc<Authority>,
    pub(crate) tokens: TokenStore,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::load_or_create(dir.path()).unwrap());
        let tokens = TokenStore::new(dir.path());
        Self { dir, authority, tokens }
    }

    /// A token issued `ago`, with this many uses.
    pub(crate) fn token(&self, uses: u32, ago: Duration) -> JoinToken {
        let issued = UnixSeconds(UnixSeconds::now().0 - ago.as_secs());
        self.tokens.issue(self.authority.id(), uses, TOKEN_LIFE, issued).unwrap()
    }

    pub(crate) fn coordinator(&self) -> Coordinator {
        CoordinatorEndpoint::bind(ANY, self.authority.clone(), self.tokens.clone()).unwrap()
    }

    /// A worker that was admitted already.
    pub(crate) fn member(&self) -> (Identity, Membership) {
        let identity = Identity::ephemeral().unwrap();
        let membership = self.authority.admit(identity.public()).unwrap();
        (identity, membership)
    }

    pub(crate) fn worker(&self) -> Worker {
        let (identity, membership) = self.member();
        let worker = WorkerEndpoint::bind(ANY, &identity).unwrap();
        worker.enter(&membership).unwrap();
        worker
    }
}

/// Everything that was logged on this thread since it was made.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The warning that has this text, once it is there.
    pub(crate) async fn warning(&self, text: &str) -> String {
        for _ in 0..300 {
            let all = self.text();
            if let Some(line) = all.lines().find(|line| line.contains(" WARN ") && line.contains(text)) {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no warning with {text:?} in:\n{}", self.text());
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
