//! The directory of another cache, and its configuration.

use std::{fs, net::SocketAddr, process::Command};

use tempfile::TempDir;

use crate::{Result, process, report::cores};

/// Files of a peer, and the values for its configuration.
#[derive(Debug)]
pub(crate) struct PeerFiles {
    pub(crate) dir: TempDir,
    pub(crate) listen: SocketAddr,
    upstream: SocketAddr,
}

impl PeerFiles {
    /// Makes a directory, in memory if possible, and picks a free address.
    pub(crate) fn new(upstream: SocketAddr) -> Result<Self> {
        let dir = match memory_dir() {
            Some(memory) => TempDir::with_prefix_in("jobcache-bench-", memory)?,
            None => TempDir::with_prefix("jobcache-bench-")?,
        };
        Ok(Self { dir, listen: process::free_address()?, upstream })
    }

    /// Writes a configuration with the placeholders replaced, and returns its path.
    pub(crate) fn write(&self, name: &str, config: &str) -> Result<String> {
        let config = config
            .replace("@LISTEN@", &self.listen.to_string())
            .replace("@UPSTREAM@", &self.upstream.to_string())
            .replace("@UPSTREAM_PORT@", &self.upstream.port().to_string())
            .replace("@THREADS@", &cores().to_string())
            .replace("@DIR@", &self.dir.path().display().to_string());
        let path = self.dir.path().join(name);
        fs::write(&path, config)?;
        Ok(path.display().to_string())
    }
}

/// Returns an in-memory file system that has room for nginx's cache (1 GiB) and from which Varnish
/// may load compiled code. Containers often lack one.
fn memory_dir() -> Option<&'static str> {
    let dir = "/dev/shm";
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(1) == Some(dir))?;
    let df = Command::new("df").args(["--output=avail", "--block-size=M", dir]).output().ok()?;
    let free = String::from_utf8_lossy(&df.stdout)
        .lines()
        .nth(1)?
        .trim()
        .trim_end_matches('M')
        .parse::<u64>()
        .ok()?;
    (!mount.contains("noexec") && free > 2_048).then_some(dir)
}
