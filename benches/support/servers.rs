//! jobcache and its Redis, as an operator would run them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{
    Result,
    process::{self, Process},
};

/// A Redis without persistence.
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    _dir: TempDir,
}

impl Redis {
    /// Starts a Redis.
    pub(crate) fn start() -> Result<Self> {
        let program = process::find("redis-server")
            .ok_or("redis-server is missing: apt-get install redis-server")?;
        let dir = TempDir::with_prefix("jobcache-bench-redis-")?;
        let address = process::free_address()?;
        let args = format!("--bind 127.0.0.1 --port {} --appendonly no --dir", address.port());
        let mut args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        args.extend([dir.path().display().to_string(), "--save".to_owned(), String::new()]);
        let mut process = Process::spawn(program, &args, dir.path())?;
        process.wait_for(address).map_err(|error| format!("redis-server: {error}"))?;
        Ok(Self { process, address, _dir: dir })
    }

    /// Returns the URL for jobcache's configuration.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

/// The release build of jobcache.
#[derive(Debug)]
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    _dir: TempDir,
}

impl Sidecar {
    /// Starts a sidecar on its own ports. Settings that are in neither `flags` nor `settings` (`key
    /// = value` lines of the configuration file) keep their defaults.
    pub(crate) fn start(binary: &Path, flags: &[String], settings: &str) -> Result<Self> {
        let dir = TempDir::with_prefix("jobcache-bench-")?;
        let (listen, admin) = (process::free_address()?, process::free_address()?);
        let file = dir.path().join("jobcache.toml");
        std::fs::write(&file, settings)?;
        let mut args = vec![
            format!("--listen={listen}"),
            format!("--admin={admin}"),
            format!("--config={}", file.display()),
            "--log=error".to_owned(),
        ];
        args.extend_from_slice(flags);
        let process = Process::spawn(binary, &args, dir.path())?;
        let mut sidecar = Self { process, listen, admin, _dir: dir };
        sidecar.process.wait_for(sidecar.listen)?;
        sidecar.process.wait_for(sidecar.admin)?;
        Ok(sidecar)
    }
}

/// Returns the build under test, unless another is named.
pub(crate) fn binary(named: Option<&PathBuf>) -> PathBuf {
    named.cloned().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_jobcache")))
}
