//! The address of a node of a cluster.

use std::fmt;

/// The address at which a node is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeAddress {
    /// A host name, or an IP address without brackets.
    pub host: Box<str>,
    /// The port of the protocol that we speak, plain or TLS.
    pub port: u16,
}

impl NodeAddress {
    /// Parses `host:port` as in a redirection, where an IPv6 address has no brackets.
    pub(in crate::store) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self { host: host.into(), port: port.parse().ok()? })
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}
