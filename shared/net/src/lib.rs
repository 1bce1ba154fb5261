//! Shoal's network: who a node is, whom it trusts, how it is found, and the two planes over QUIC.
//!
//! | module | what it is |
//! |---|---|
//! | [`trust`] | keys, the cluster's authority, certificates and memberships |
//! | [`token`] | join tokens, and the coordinator's store of them |
//! | [`control`] | control plane: endpoints of the coordinator and of a worker, connections, joining |
//! | [`chunks`] | model chunks on streams of a control connection |
//! | [`data`] | data plane: blocks of activations between the ranks of a plan, called from compute threads |
//! | [`discovery`] | mDNS: who is there |
//! | [`lock`] | the coordinator's lock on its data folder, and its term |
//! | [`codec`] | bytes of a control message |
//!
//! This is the only crate that names quinn, rustls, bincode or mdns-sd. What the messages mean is no
//! business of this crate: it carries `shoal_core` types between nodes that proved who they are.

pub mod chunks;
pub mod codec;
pub mod control;
pub mod data;
pub mod discovery;
mod files;
mod gate;
pub mod lock;
mod quic;
mod tls;
pub mod token;
pub mod trust;

pub use control::{ControlConn, CoordinatorEndpoint, WorkerEndpoint};
pub use data::{BlockKey, DataPlane};
pub use token::{JoinToken, TokenStore};
pub use trust::{Authority, AuthorityId, Identity, Membership, Role};
