//! The login at Redis and at sentinels.

use std::path::PathBuf;

use super::Secret;

/// User and password of Redis or of sentinels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreLogin {
    /// User name; none = the default user of the server.
    pub username: Option<String>,
    /// Password; none = no password is sent.
    pub password: Option<Secret>,
    /// File with the password instead; it is read for each connection.
    pub password_file: Option<PathBuf>,
}

impl StoreLogin {
    /// Whether any part is set.
    pub fn is_some(&self) -> bool {
        *self != Self::default()
    }
}
