//! Where a Redis Cluster is found.

use std::fmt;

use super::Login;

/// Nodes of a Redis Cluster, of which one will do to find the others.
#[derive(Clone, PartialEq, Eq)]
pub struct Seeds {
    /// Host and port of each.
    pub hosts: Vec<(String, u16)>,
    /// Whether they speak TLS.
    pub is_tls: bool,
    /// Who we are there.
    pub login: Login,
}

/// Without user and password.
impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tls { "rediss-cluster://" } else { "redis-cluster://" })?;
        if self.login.password.is_some() {
            f.write_str("***@")?;
        }
        for (place, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            if host.contains(':') {
                write!(f, "{comma}[{host}]:{port}")?;
            } else {
                write!(f, "{comma}{host}:{port}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
