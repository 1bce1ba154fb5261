//! A node's own key.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ED25519};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use shoal_core::NodeId;

use super::{PublicKey, TrustError};
use crate::files;

/// A PKCS#8 Ed25519 key has about 85 bytes; a file beyond this is not one.
const KEY_FILE_BYTES: u64 = 1024;

/// A node's Ed25519 key. Cloning shares it; its secret part is never printed.
#[derive(Clone)]
pub struct Identity {
    key: Arc<KeyPair>,
    public: PublicKey,
}

impl Identity {
    /// The key kept in `dir` as `node.key`, made at the first call (folder 0700, file 0600).
    ///
    /// # Errors
    /// When the folder cannot be used, others can read the file, or it holds no Ed25519 key.
    pub fn load_or_create(dir: &Path) -> Result<Self, TrustError> {
        Self::load_or_create_as(dir, "node.key")
    }

    /// A key that is kept nowhere.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn ephemeral() -> Result<Self, TrustError> {
        Self::new(KeyPair::generate_for(&PKCS_ED25519)?)
    }

    /// The id of the node with this key.
    pub fn node(&self) -> NodeId {
        self.public.node()
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(super) fn load_or_create_as(dir: &Path, name: &str) -> Result<Self, TrustError> {
        let path = dir.join(name);
        files::ensure_dir(dir)?;
        if let Some(bytes) = files::read_private(&path, KEY_FILE_BYTES)? {
            let key = PrivatePkcs8KeyDer::from(bytes);
            let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519)
                .map_err(|source| TrustError::Key { file: path.display().to_string(), source })?;
            return Self::new(key);
        }
        let identity = Self::ephemeral()?;
        files::write_private(&path, identity.key.serialized_der())?;
        Ok(identity)
    }

    pub(super) fn key(&self) -> &KeyPair {
        &self.key
    }

    pub(crate) fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    fn new(key: KeyPair) -> Result<Self, TrustError> {
        let public =
            key.public_key_raw().try_into().map_err(|_| rcgen::Error::UnsupportedSignatureAlgorithm)?;
        Ok(Self { key: Arc::new(key), public: PublicKey(public) })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.node())
    }
}
