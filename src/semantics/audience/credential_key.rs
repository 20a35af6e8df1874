//! The key of the credential fingerprints.

use std::fmt;

use crate::semantics::secret::Secret;

/// The key of the credential fingerprints. All sidecars of one store share it.
#[derive(Clone, PartialEq, Eq)]
pub struct CredentialKey([u8; 32]);

impl CredentialKey {
    /// Makes a key of these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Makes a random key.
    pub(crate) fn random() -> Self {
        Self(std::array::from_fn(|_| fastrand::u8(..)))
    }

    /// Derives the key from a configured secret.
    fn derived(secret: &str) -> Self {
        Self(blake3::derive_key("jobcache credential fingerprints v1", secret.as_bytes()))
    }

    /// Returns the key of a process before its store provides one that all sidecars share.
    pub(crate) fn initial(secret: Option<&Secret>) -> Self {
        secret.map_or_else(Self::random, |secret| Self::derived(secret.expose()))
    }

    /// Returns the bytes of the key, for the hash.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for CredentialKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
