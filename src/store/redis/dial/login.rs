//! The login at a server.

use std::{fs::File, io::Read as _, path::PathBuf};

use redis::RedisConnectionInfo;
use tokio::task::spawn_blocking;

use crate::{
    config::{self, Secret},
    store::errors::StoreError,
};

/// Maximum size of a password file, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

/// User name, password and database.
#[derive(Clone, Debug)]
pub(in crate::store::redis) struct RedisLogin {
    username: Option<String>,
    password: Password,
    database: i64,
}

#[derive(Clone, Debug)]
enum Password {
    None,
    Given(Secret),
    /// Read for each connection, so that a rotated password is used.
    File(PathBuf),
}

impl RedisLogin {
    pub(in crate::store::redis) fn new(login: &config::StoreLogin, database: i64) -> Self {
        let password = match (&login.password_file, &login.password) {
            (Some(path), _) => Password::File(path.clone()),
            (None, Some(password)) => Password::Given(password.clone()),
            (None, None) => Password::None,
        };
        Self { username: login.username.clone(), password, database }
    }

    /// The login in the URL, or else the configured one.
    pub(super) fn from_url(url: &RedisConnectionInfo, configured: &config::StoreLogin) -> Self {
        if url.username().is_none() && url.password().is_none() {
            return Self::new(configured, url.db());
        }
        let login = config::StoreLogin {
            username: url.username().map(str::to_owned),
            password: url.password().map(Secret::new),
            password_file: None,
        };
        Self::new(&login, url.db())
    }

    /// The login as the `redis` crate takes it. Library name and version are not sent: an ACL then
    /// needs to allow one command less.
    pub(super) async fn connection_info(&self) -> Result<RedisConnectionInfo, StoreError> {
        let mut info = RedisConnectionInfo::default().set_db(self.database).set_skip_set_lib_name();
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        Ok(match &self.password {
            Password::None => info,
            Password::Given(password) => info.set_password(password.expose()),
            Password::File(path) => info.set_password(read(path.clone()).await?),
        })
    }
}

/// Reads a password file, without the trailing newline that most editors add.
async fn read(path: PathBuf) -> Result<String, StoreError> {
    let name = path.display().to_string();
    let read = spawn_blocking(move || {
        let mut text = String::new();
        File::open(path)?.take(MAX_PASSWORD).read_to_string(&mut text).map(|_| text)
    });
    match read.await {
        Ok(Ok(text)) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Ok(Err(error)) => Err(StoreError::Refused(format!("cannot read {name}: {error}"))),
        // The runtime is shutting down.
        Err(_) => Err(StoreError::Down),
    }
}
