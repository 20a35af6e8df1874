//! Files of certificates. Only paths: the code that speaks TLS reads the files.

use std::path::PathBuf;

/// A certificate to present, and its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPair {
    /// PEM, with the chain that leads to an authority.
    pub cert: Option<PathBuf>,
    /// PEM; none = the key is in the file of the certificate.
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

/// How a TLS server is verified, and what is presented to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// PEM file of the trusted authorities; none = those of the system.
    pub ca: Option<PathBuf>,
    /// Certificate for a server that asks for one.
    pub identity: KeyPair,
    /// Name that the server's certificate must have; none = the host of the URL.
    pub server_name: Option<String>,
}

impl KeyPair {
    /// The files of both; none without a certificate.
    pub fn identity(&self) -> Option<Identity> {
        let cert = self.cert.clone()?;
        let key = self.key.clone().unwrap_or_else(|| cert.clone());
        Some(Identity { cert, key })
    }
}
