//! Everything before the first coordinator: the data folder and its lock, identity, membership, ports,
//! discovery.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shoal_core::{NodeId, Term};
use shoal_net::control::JoinError;
use shoal_net::discovery::{Advert, Browser, Discovery, DiscoveryError, Event};
use shoal_net::{AuthorityId, DataPlane, Identity, JoinToken, Membership, Role};
use tokio::time::{Instant, sleep, timeout_at};

use super::conn::{self, Endpoint};
use crate::WorkerError;
use crate::args::Settings;

/// Time between two tries to join.
const RETRY: Duration = Duration::from_secs(1);

/// A term is a decimal number of at most 20 digits.
const TERM_BYTES: u64 = 64;

/// A worker that may begin.
pub(super) struct Ready {
    pub(super) lock: WorkerLock,
    pub(super) node: NodeId,
    pub(super) membership: Membership,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) plane: Arc<DataPlane>,
    pub(super) discovery: Option<(Discovery, Browser)>,
    pub(super) term: Term,
}

pub(super) async fn set_up(settings: &Settings) -> Result<Ready, WorkerError> {
    let dir = &settings.data_dir;
    let lock = WorkerLock::acquire(dir)?;
    let token = settings.join.as_deref().map(str::parse::<JoinToken>).transpose()?;
    let identity = Identity::load_or_create(dir)?;
    let node = identity.node();
    let mut member = Membership::load(dir, &identity)?;
    if let (Some(membership), Some(token)) = (&member, &token)
        && membership.authority() != token.authority()
    {
        tracing::warn!(
            "the token is of another cluster: this worker leaves {}",
            membership.authority().fingerprint()
        );
        member = None;
    }
    if member.is_none() && token.is_none() {
        return Err(WorkerError::NoCluster);
    }
    let endpoint = Endpoint::bind(settings.listen, &identity).map_err(WorkerError::Listen)?;
    let port = endpoint.local_address().map_or(0, |address| address.port());
    let authority = member.as_ref().map(Membership::authority);
    let mut discovery = discover(settings, node, authority, port);
    if settings.child {
        say_where(node, settings, port);
    }
    let membership = match (member, token) {
        (Some(membership), _) => membership,
        (None, Some(token)) => {
            let browser = discovery.as_mut().map(|(_, browser)| browser);
            let membership = join(settings, &endpoint, &token, browser).await?;
            membership.save(dir)?;
            tracing::info!("joined the cluster {}", membership.authority().fingerprint());
            if let Some((discovery, _)) = &mut discovery {
                advertise(discovery, node, Some(membership.authority()), port);
            }
            membership
        }
        (None, None) => return Err(WorkerError::NoCluster),
    };
    endpoint.enter(&membership).map_err(WorkerError::Listen)?;
    let credentials = membership.credentials(&identity)?;
    let data = SocketAddr::new(settings.listen.ip(), 0);
    let plane = DataPlane::start(data, &credentials).map_err(WorkerError::DataPlane)?;
    // A browser that has told of the coordinator while this node joined does not repeat itself soon.
    if let Some((discovery, browser)) = &mut discovery
        && let Ok(fresh) = discovery.browse()
    {
        *browser = fresh;
    }
    let term = load_term(dir, membership.authority());
    Ok(Ready {
        lock,
        node,
        membership,
        endpoint: Arc::new(endpoint),
        plane: Arc::new(plane),
        discovery,
        term,
    })
}

/// Asks to be admitted until somebody answers. Only the coordinator's refusal ends it.
async fn join(
    settings: &Settings,
    endpoint: &Endpoint,
    token: &JoinToken,
    mut browser: Option<&mut Browser>,
) -> Result<Membership, WorkerError> {
    let wanted = token.authority().fingerprint();
    let mut seen: BTreeMap<NodeId, Vec<SocketAddr>> = BTreeMap::new();
    let mut told = false;
    let mut complaint = None;
    loop {
        let mut addresses = conn::resolve(&settings.coordinators).await;
        addresses.extend(seen.values().flatten());
        if !addresses.is_empty() {
            match endpoint.join(token, &addresses).await {
                Ok(membership) => return Ok(membership),
                Err(error @ (JoinError::Token(_) | JoinError::Version { .. })) => {
                    return Err(WorkerError::Join(error));
                }
                Err(error) => {
                    // Said once for each reason: a coordinator that is not there yet is asked every second.
                    let reason = crate::chain(&error);
                    if complaint.as_ref() != Some(&reason) {
                        tracing::warn!("failed to join, trying again: {reason}");
                    }
                    complaint = Some(reason);
                }
            }
        } else if !std::mem::replace(&mut told, true) {
            tracing::info!("looking for the coordinator of cluster {wanted}");
        }
        let Some(browser) = browser.as_deref_mut() else {
            if settings.coordinators.is_empty() {
                return Err(WorkerError::NoWay);
            }
            sleep(RETRY).await;
            continue;
        };
        let deadline = Instant::now() + RETRY;
        while let Ok(Some(event)) = timeout_at(deadline, browser.next()).await {
            match event {
                Event::Found(found)
                    if found.role == Role::Coordinator && found.authority.as_ref() == Some(&wanted) =>
                {
                    seen.insert(found.node, found.addresses);
                    break;
                }
                Event::Found(_) => {}
                Event::Lost(node) => _ = seen.remove(&node),
            }
        }
    }
}

/// Starts mDNS; where it does not work, says so and goes on without.
fn discover(
    settings: &Settings,
    node: NodeId,
    authority: Option<AuthorityId>,
    port: u16,
) -> Option<(Discovery, Browser)> {
    if !settings.mdns {
        return None;
    }
    let start = || -> Result<_, DiscoveryError> {
        let mut discovery = Discovery::start()?;
        let browser = discovery.browse()?;
        advertise(&mut discovery, node, authority, port);
        Ok((discovery, browser))
    };
    match start() {
        Ok(found) => Some(found),
        Err(error) => {
            tracing::warn!("{}; the coordinator is dialled where --coordinator says", crate::chain(&error));
            None
        }
    }
}

fn advertise(discovery: &mut Discovery, node: NodeId, authority: Option<AuthorityId>, port: u16) {
    let authority = authority.map(|authority| authority.fingerprint());
    let advert = Advert { node, role: Role::Worker, authority, port };
    if let Err(error) = discovery.advertise(&advert) {
        tracing::warn!("{}", crate::chain(&error));
    }
}

/// Tells the process that started this one where it listens: one line of JSON on standard output.
fn say_where(node: NodeId, settings: &Settings, port: u16) {
    let ip = if settings.listen.ip().is_unspecified() {
        "127.0.0.1".to_owned()
    } else {
        settings.listen.ip().to_string()
    };
    let address = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
    let line = serde_json::json!({ "node": node, "name": settings.name, "addresses": [address] });
    let mut out = io::stdout().lock();
    // A parent that does not listen is about to close this process's standard input.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// One worker a data folder: two with one identity would push each other out of the cluster.
#[derive(Debug)]
pub(crate) struct WorkerLock {
    _file: File,
}

impl WorkerLock {
    /// Takes the lock, making the folder if need be. Does not wait.
    pub(crate) fn acquire(dir: &Path) -> Result<Self, WorkerError> {
        let error = |what, path: &Path| {
            let path = path.to_owned();
            move |source| WorkerError::Folder { what, path, source }
        };
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
        builder.create(dir).map_err(error("make the folder", dir))?;
        let path = dir.join("worker.lock");
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.as_mut().map_err(|source| {
            let source = io::Error::new(source.kind(), source.to_string());
            WorkerError::Folder { what: "open", path: path.clone(), source }
        })?;
        let mut file = file.try_clone().map_err(error("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&file).take(TERM_BYTES).read_to_string(&mut pid);
                let holder = pid.trim().parse::<u32>().map_or("unknown".to_owned(), |pid| pid.to_string());
                return Err(WorkerError::Held { dir: dir.to_owned(), holder });
            }
            Err(fs::TryLockError::Error(source)) => return Err(error("lock", &path)(source)),
        }
        let mut say = || {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", std::process::id())
        };
        say().map_err(error("write", &path))?;
        Ok(Self { _file: file })
    }
}

fn term_path(dir: &Path, authority: AuthorityId) -> PathBuf {
    dir.join(format!("term-{}", authority.fingerprint()))
}

/// The highest term seen of this authority; none was seen where there is no readable record.
fn load_term(dir: &Path, authority: AuthorityId) -> Term {
    let mut text = String::new();
    let read = File::open(term_path(dir, authority))
        .and_then(|file| file.take(TERM_BYTES).read_to_string(&mut text));
    Term(read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0))
}

/// Keeps the highest term seen.
pub(super) fn save_term(dir: &Path, authority: AuthorityId, term: Term) -> io::Result<()> {
    let path = term_path(dir, authority);
    let new = path.with_extension("new");
    fs::write(&new, format!("{}\n", term.0))?;
    fs::rename(&new, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_a_data_folder() {
        let dir = tempfile::tempdir().expect("folder");
        let dir = dir.path().join("worker");
        let first = WorkerLock::acquire(&dir).expect("first");
        let error = WorkerLock::acquire(&dir).expect_err("second").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        WorkerLock::acquire(&dir).expect("after");
    }

    #[test]
    fn a_term_is_kept_for_its_authority() {
        let dir = tempfile::tempdir().expect("folder");
        let (one, other) = (AuthorityId([1; 32]), AuthorityId([2; 32]));
        assert_eq!(load_term(dir.path(), one), Term(0));
        save_term(dir.path(), one, Term(7)).expect("save");
        assert_eq!((load_term(dir.path(), one), load_term(dir.path(), other)), (Term(7), Term(0)));
    }
}
