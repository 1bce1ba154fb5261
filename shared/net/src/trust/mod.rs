//! Who a node is and whom it trusts.
//!
//! Every node has an Ed25519 key ([`Identity`]); its id is the first half of the key's SHA-256. The
//! coordinator of a cluster is its [`Authority`]: it signs node keys, with a role each. What a worker
//! keeps of having been signed is its [`Membership`]. Both yield [`Credentials`], which is what the
//! endpoints of both planes take. Certificates never run out: boards have no clock before NTP, so
//! the authority and its list of members decide, not time.

mod authority;
mod certificate;
mod identity;

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shoal_core::NodeId;

pub use crate::files::FileError;
pub use authority::{Authority, Credentials, Membership};
pub use certificate::CertificateError;
pub(crate) use certificate::{Certified, key_of, verify};
pub use identity::Identity;

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The id of the node that has this key.
    pub fn node(&self) -> NodeId {
        let hash: [u8; 32] = Sha256::digest(self.0).into();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        NodeId(id)
    }

    /// The id of the authority that has this key.
    pub fn authority(&self) -> AuthorityId {
        AuthorityId(Sha256::digest(self.0).into())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey(of {})", self.node())
    }
}

/// A cluster's authority: the SHA-256 of its public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AuthorityId(pub [u8; 32]);

impl AuthorityId {
    /// The first 8 bytes in hexadecimal: what discovery carries.
    pub fn fingerprint(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0[..8])
    }
}

impl fmt::Display for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for AuthorityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthorityId({})", self.fingerprint())
    }
}

/// What a certificate allows its node to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Gives orders.
    Coordinator,
    /// Takes them.
    Worker,
}

impl Role {
    /// The name in certificates and in discovery.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
        }
    }

    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Coordinator, Self::Worker].into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why keys or certificates could not be made, read or kept.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{file} does not hold an Ed25519 key; delete it to get a new identity")]
    Key {
        file: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("failed to make a key or a certificate")]
    Make(#[from] rcgen::Error),
    #[error("failed to use the certificates kept in {file}")]
    Kept {
        file: String,
        #[source]
        source: CertificateError,
    },
    #[error("{file} is damaged; delete it and join again")]
    Damaged {
        file: String,
        #[source]
        source: crate::codec::CodecError,
    },
    #[error("the certificates do not fit")]
    Certificate(#[from] CertificateError),
    #[error("failed to encode the membership")]
    Encode(#[source] crate::codec::CodecError),
}
