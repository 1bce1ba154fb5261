//! The cluster's authority, memberships, and the credentials both give.

use std::fmt;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use shoal_core::NodeId;

use super::{AuthorityId, Certified, Identity, PublicKey, Role, TrustError, certificate, key_of, verify};
use crate::{codec, files};

/// Two certificates of some 400 bytes each.
const MEMBERSHIP_FILE_BYTES: u64 = 16 << 10;

/// The cluster's authority: the coordinator's side of trust.
///
/// Its folder holds `authority.key` (signs) and `node.key` (speaks).
pub struct Authority {
    key: Identity,
    certificate: CertificateDer<'static>,
    credentials: Credentials,
}

impl Authority {
    /// The authority kept in `dir`, made at the first call.
    ///
    /// # Errors
    /// When the folder cannot be used, or its keys are exposed or damaged.
    pub fn load_or_create(dir: &Path) -> Result<Self, TrustError> {
        let key = Identity::load_or_create_as(dir, "authority.key")?;
        let node = Identity::load_or_create(dir)?;
        let certificate = certificate::make_authority(&key)?;
        let own = certificate::make_node(&key, node.public(), Role::Coordinator)?;
        let credentials = Credentials {
            identity: node,
            chain: vec![own, certificate.clone()],
            authority: Some(key.public()),
            role: Role::Coordinator,
        };
        Ok(Self { key, certificate, credentials })
    }

    /// The authority's id: what join tokens name.
    pub fn id(&self) -> AuthorityId {
        self.key.public().authority()
    }

    /// The coordinator's own node.
    pub fn node(&self) -> NodeId {
        self.credentials.node()
    }

    /// What the coordinator's endpoints show and trust.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Signs a worker's key. Whoever calls this has decided that the key may join.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn admit(&self, key: PublicKey) -> Result<Membership, TrustError> {
        let own = certificate::make_node(&self.key, key, Role::Worker)?;
        Membership::try_new(self.certificate.to_vec(), own.to_vec(), key)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({:?}, node {})", self.id(), self.node())
    }
}

/// What a worker keeps of having been admitted: the authority's certificate and its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    authority: PublicKey,
    key: PublicKey,
    kept: Kept,
}

impl Membership {
    /// Checks that the node's certificate is for `key`, signed by the authority, in the worker's role.
    ///
    /// # Errors
    /// What is wrong with which certificate.
    pub fn try_new(authority: Vec<u8>, node: Vec<u8>, key: PublicKey) -> Result<Self, TrustError> {
        let kept = Kept { authority, node };
        let root = key_of(&CertificateDer::from(kept.authority.as_slice()))?;
        let Certified { node, role } = verify(&CertificateDer::from(kept.node.as_slice()), &root)?;
        if node != key.node() {
            return Err(super::CertificateError::WrongNode { found: node, wanted: key.node() }.into());
        }
        if role != Role::Worker {
            return Err(super::CertificateError::WrongRole { node, found: role, wanted: Role::Worker }.into());
        }
        Ok(Self { authority: root, key, kept })
    }

    /// The membership of this key kept in `dir` as `membership`; `None` when there is none, or it is
    /// another key's (then the node has to join).
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(dir: &Path, identity: &Identity) -> Result<Option<Self>, TrustError> {
        let path = dir.join("membership");
        let file = || path.display().to_string();
        let Some(bytes) = files::read_private(&path, MEMBERSHIP_FILE_BYTES)? else { return Ok(None) };
        let kept: Kept =
            codec::decode(&bytes).map_err(|source| TrustError::Damaged { file: file(), source })?;
        match Self::try_new(kept.authority, kept.node, identity.public()) {
            Ok(membership) => Ok(Some(membership)),
            Err(TrustError::Certificate(super::CertificateError::WrongNode { .. })) => Ok(None),
            Err(TrustError::Certificate(source)) => Err(TrustError::Kept { file: file(), source }),
            Err(other) => Err(other),
        }
    }

    /// Keeps it in `dir`, in place of any other.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), TrustError> {
        let bytes = codec::encode(&self.kept).map_err(TrustError::Encode)?;
        Ok(files::write_private(&dir.join("membership"), &bytes)?)
    }

    /// The cluster's authority.
    pub fn authority(&self) -> AuthorityId {
        self.authority.authority()
    }

    /// The node that is a member.
    pub fn node(&self) -> NodeId {
        self.key.node()
    }

    /// What the member's endpoints show and trust.
    ///
    /// # Errors
    /// When the identity is not the one that was admitted.
    pub fn credentials(&self, identity: &Identity) -> Result<Credentials, TrustError> {
        if identity.public() != self.key {
            let (found, wanted) = (self.node(), identity.node());
            return Err(super::CertificateError::WrongNode { found, wanted }.into());
        }
        let (node, authority) = self.certificates();
        Ok(Credentials {
            identity: identity.clone(),
            chain: vec![node.to_vec().into(), authority.to_vec().into()],
            authority: Some(self.authority),
            role: Role::Worker,
        })
    }

    /// The node's certificate and the authority's, in DER.
    pub(crate) fn certificates(&self) -> (&[u8], &[u8]) {
        (&self.kept.node, &self.kept.authority)
    }
}

/// The content of a membership file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    authority: Vec<u8>,
    node: Vec<u8>,
}

/// What an endpoint shows of itself, and whom it trusts. Its key is never printed.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    authority: Option<PublicKey>,
    role: Role,
}

impl Credentials {
    /// The own node.
    pub fn node(&self) -> NodeId {
        self.identity.node()
    }

    /// The own role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Credentials of a key alone, which trust nobody: enough to join.
    pub(crate) fn unjoined(identity: &Identity) -> Result<Self, TrustError> {
        let chain = vec![certificate::make_self_signed(identity)?];
        Ok(Self { identity: identity.clone(), chain, authority: None, role: Role::Worker })
    }

    pub(crate) fn authority(&self) -> Option<PublicKey> {
        self.authority
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} {})", self.role, self.node())
    }
}
