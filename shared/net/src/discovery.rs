//! mDNS: nodes say where they are, and learn who else is there.
//!
//! Service `_shoal._udp.local.`, instance and host named by node id, TXT `v`, `id`, `role`, `authority`
//! (fingerprint; empty while not joined). What is found here proves nothing: it is an address to dial,
//! and the handshake decides. All interfaces are used, loopback included, so nodes of one machine
//! find each other. That multicast does not work is an error value or plain silence, never a panic.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use mdns_sd::{ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use shoal_core::NodeId;
use shoal_core::limits::PROTOCOL_VERSION;
use tokio::sync::mpsc;

use crate::trust::Role;

const SERVICE: &str = "_shoal._udp.local.";

/// Events that were not taken yet; beyond it the browser waits, and mDNS repeats itself.
const EVENTS: usize = 256;

/// Addresses of one node that are worth dialling.
const ADDRESSES: usize = 16;

/// For how long the goodbye of a node is waited for when it leaves.
const GOODBYE: Duration = Duration::from_millis(500);

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advert {
    pub node: NodeId,
    pub role: Role,
    /// [`crate::AuthorityId::fingerprint`] of its cluster; `None` while it has none.
    pub authority: Option<String>,
    /// Port of its control plane.
    pub port: u16,
}

/// A node that was found. Nothing of it is proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub node: NodeId,
    pub role: Role,
    pub authority: Option<String>,
    /// Version of its control protocol.
    pub version: u32,
    /// Where to dial it, most useful first: IPv4, then IPv6, loopback and link-local last.
    pub addresses: Vec<SocketAddr>,
}

/// A change of who is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node is there, or its addresses changed.
    Found(Found),
    /// A node said goodbye, or was not heard for long.
    Lost(NodeId),
}

/// Why discovery does not work here.
#[derive(Debug, thiserror::Error)]
#[error("multicast DNS does not work here: failed to {action}")]
pub struct DiscoveryError {
    action: &'static str,
    #[source]
    source: mdns_sd::Error,
}

/// This process's part in mDNS. Dropping it unregisters.
pub struct Discovery {
    daemon: ServiceDaemon,
    registered: Option<String>,
}

impl Discovery {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the system lets us have no multicast socket.
    pub fn start() -> Result<Self, DiscoveryError> {
        let daemon = ServiceDaemon::new().map_err(failed("open a socket"))?;
        Ok(Self { daemon, registered: None })
    }

    /// Says what this node is, in place of what it said before.
    ///
    /// # Errors
    /// When the daemon has stopped.
    pub fn advertise(&mut self, advert: &Advert) -> Result<(), DiscoveryError> {
        let name = advert.node.to_string();
        let version = PROTOCOL_VERSION.to_string();
        let text = [
            ("v", version.as_str()),
            ("id", name.as_str()),
            ("role", advert.role.name()),
            ("authority", advert.authority.as_deref().unwrap_or("")),
        ];
        let info = ServiceInfo::new(SERVICE, &name, &format!("{name}.local."), "", advert.port, &text[..])
            .map_err(failed("describe this node"))?
            .enable_addr_auto();
        self.registered = Some(info.get_fullname().to_owned());
        self.daemon.register(info).map_err(failed("advertise this node"))
    }

    /// Starts to look for nodes; the own one is found too.
    ///
    /// # Errors
    /// When the daemon has stopped.
    pub fn browse(&self) -> Result<Browser, DiscoveryError> {
        let found = self.daemon.browse(SERVICE).map_err(failed("look for nodes"))?;
        let (events, receiver) = mpsc::channel(EVENTS);
        let forward = move || {
            let mut known = BTreeMap::new();
            while let Ok(event) = found.recv() {
                let Some(event) = read(event, &mut known) else { continue };
                if events.blocking_send(event).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("shoal-mdns".to_owned()).spawn(forward);
        match thread {
            Ok(_) => Ok(Browser { events: receiver }),
            Err(error) => Err(failed("start a thread")(mdns_sd::Error::Msg(error.to_string()))),
        }
    }

    /// Says goodbye, so that others need not wait until this node is forgotten, and stops.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        if let Some(name) = self.registered.take()
            && let Ok(done) = self.daemon.unregister(&name)
        {
            // Whether the goodbye was sent in time matters only for how soon others notice.
            let _ = done.recv_timeout(GOODBYE);
        }
        // A daemon that has stopped already is what is wanted.
        let _ = self.daemon.shutdown();
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("registered", &self.registered).finish_non_exhaustive()
    }
}

/// The stream of who comes and goes.
#[derive(Debug)]
pub struct Browser {
    events: mpsc::Receiver<Event>,
}

impl Browser {
    /// Waits for the next change; `None` when discovery has stopped. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

/// Makes an event of what the daemon says; things that are not ours are nothing.
fn read(event: ServiceEvent, known: &mut BTreeMap<String, NodeId>) -> Option<Event> {
    match event {
        ServiceEvent::ServiceResolved(service) => {
            let found = found(&service)?;
            known.insert(service.get_fullname().to_owned(), found.node);
            Some(Event::Found(found))
        }
        ServiceEvent::ServiceRemoved(_, name) => Some(Event::Lost(known.remove(&name)?)),
        _ => None,
    }
}

fn found(service: &ResolvedService) -> Option<Found> {
    let text = |key| service.get_property_val_str(key);
    let node: NodeId = text("id")?.parse().ok()?;
    let role = Role::from_name(text("role")?)?;
    let version = text("v")?.parse().ok()?;
    let authority = text("authority").filter(|text| !text.is_empty());
    if authority.is_some_and(|text| text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return None;
    }
    let mut addresses: Vec<SocketAddr> = service
        .get_addresses()
        .iter()
        .map(|ip| {
            let mut address = SocketAddr::new(ip.to_ip_addr(), service.get_port());
            if let (SocketAddr::V6(v6), mdns_sd::ScopedIp::V6(scoped)) = (&mut address, ip)
                && v6.ip().is_unicast_link_local()
            {
                v6.set_scope_id(scoped.scope_id().index);
            }
            address
        })
        .collect();
    addresses.sort_by_key(|address| (remoteness(address), address.is_ipv6(), *address));
    addresses.truncate(ADDRESSES);
    let authority = authority.map(str::to_owned);
    Some(Found { node, role, authority, version, addresses })
}

/// Loopback first leads nowhere on another machine, so it comes last, as do link-local addresses.
fn remoteness(address: &SocketAddr) -> u8 {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_loopback() => 2,
        SocketAddr::V4(v4) if v4.ip().is_link_local() => 1,
        SocketAddr::V6(v6) if v6.ip().is_loopback() => 2,
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => 1,
        _ => 0,
    }
}

fn failed(action: &'static str) -> impl FnOnce(mdns_sd::Error) -> DiscoveryError {
    move |source| DiscoveryError { action, source }
}
