//! Who we are at a server.

use std::{fs::File, io::Read as _, path::PathBuf};

use redis::RedisConnectionInfo;
use tokio::task::spawn_blocking;

use crate::{
    config::{self, Secret},
    store::StoreError,
};

/// Bytes of a password's file that are read.
const MAX_PASSWORD: u64 = 64 << 10;

/// User, password and database.
#[derive(Clone, Debug)]
pub(in crate::store::redis) struct Login {
    username: Option<String>,
    password: Password,
    database: i64,
}

#[derive(Clone, Debug)]
enum Password {
    None,
    Given(Secret),
    /// Read for each connection, as whoever rotates it puts another one there.
    File(PathBuf),
}

impl Login {
    pub(in crate::store::redis) fn new(login: &config::StoreLogin, database: i64) -> Self {
        let password = match (&login.password_file, &login.password) {
            (Some(path), _) => Password::File(path.clone()),
            (None, Some(password)) => Password::Given(password.clone()),
            (None, None) => Password::None,
        };
        Self { username: login.username.clone(), password, database }
    }

    /// As the URL says, or else as configured.
    pub(super) fn of_url(url: &RedisConnectionInfo, configured: &config::StoreLogin) -> Self {
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

    /// As the client takes it. Who we are by library and version is nobody's business: each command
    /// less is one less that an ACL must allow.
    pub(super) async fn settings(&self) -> Result<RedisConnectionInfo, StoreError> {
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

/// The content of a password's file, without the newline that most editors leave.
async fn read(path: PathBuf) -> Result<String, StoreError> {
    let name = path.display().to_string();
    let read = spawn_blocking(move || {
        let mut text = String::new();
        File::open(path)?.take(MAX_PASSWORD).read_to_string(&mut text).map(|_| text)
    });
    match read.await {
        Ok(Ok(text)) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Ok(Err(error)) => Err(StoreError::Refused(format!("cannot read {name}: {error}"))),
        // The runtime ends.
        Err(_) => Err(StoreError::Down),
    }
}
