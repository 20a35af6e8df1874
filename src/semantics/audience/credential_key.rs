//! The key of the credential fingerprints.

use std::fmt;

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
    pub(crate) fn derived(secret: &str) -> Self {
        Self(blake3::derive_key("jobcache credential fingerprints v1", secret.as_bytes()))
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
