//! What is shown and believed where TLS is spoken. Paths only: whoever speaks it reads the files.

use std::path::PathBuf;

/// A certificate to show, and its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPair {
    /// PEM, with the chain that leads to an authority.
    pub cert: Option<PathBuf>,
    /// PEM; none = it is in the same file.
    pub key: Option<PathBuf>,
}

/// Files of a certificate with its chain and of its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// How a server is believed that is spoken to over TLS, and what it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// PEM, the authorities that are believed; none = those of the system.
    pub ca: Option<PathBuf>,
    /// What the server is shown where it asks.
    pub identity: KeyPair,
    /// The name that its certificate must have; none = the host of the URL.
    pub server_name: Option<String>,
}

impl KeyPair {
    /// The files of both.
    pub fn identity(&self) -> Option<Identity> {
        let cert = self.cert.clone()?;
        let key = self.key.clone().unwrap_or_else(|| cert.clone());
        Some(Identity { cert, key })
    }
}
