//! How callers are told apart, and what a caller may get from the cache.

use std::time::Duration;

use super::Secret;

/// How callers are told apart, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsConfig {
    /// Treatment of requests with a credential.
    pub mode: CredentialMode,
    /// Header names in lower case.
    pub headers: Vec<String>,
    /// Names in lower case of further headers that say nothing about the caller.
    pub ignore: Vec<String>,
    /// Names of the cookies that count; if it is empty, all of them count.
    pub cookies: Vec<String>,
    /// Key of the fingerprints. Without one, the sidecars share a key that the store keeps.
    pub secret: Option<Secret>,
    /// Most pairs of credential and variant that the audience of an entry may hold.
    pub audience: usize,
    /// Time for which a pair is trusted after the upstream has served an entry to it; none = as long
    /// as the entry is kept.
    pub recheck: Option<Duration>,
}

/// Treatment of requests with a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialMode {
    /// Only what the upstream itself has served to this credential.
    Partition,
    /// The same as everyone: a gateway in front has authorised the request.
    Shared,
    /// Nothing: the request passes uncached.
    Bypass,
}

impl CredentialMode {
    /// The word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Shared => "shared",
            Self::Bypass => "bypass",
        }
    }
}
