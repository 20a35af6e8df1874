//! nginx as a cache of jobs.

use std::net::SocketAddr;

use crate::{
    Result,
    peer_files::PeerFiles,
    process::{self, Process},
};

/// The configuration of a microcache: one entry for all callers of a job.
pub(crate) const MICROCACHE: &str = include_str!("../peers/microcache.conf");

/// A running nginx.
#[derive(Debug)]
pub(crate) struct Nginx {
    pub(crate) process: Process,
    pub(crate) files: PeerFiles,
}

impl Nginx {
    /// Starts nginx with this configuration, or returns `None` if it is not installed.
    pub(crate) fn start(config: &str, upstream: SocketAddr) -> Result<Option<Self>> {
        let Some(program) = process::find("nginx") else { return Ok(None) };
        let files = PeerFiles::new(upstream)?;
        let config = files.write("nginx.conf", config)?;
        let mut args = ["-e", "stderr", "-c", config.as_str()].map(str::to_owned).to_vec();
        if rustix::process::geteuid().is_root() {
            // nginx workers would switch to a user that cannot write here.
            args.extend(["-g", "user root;"].map(str::to_owned));
        }
        let mut process = Process::spawn(program, &args, files.dir.path())?;
        process.wait_for(files.listen)?;
        Ok(Some(Self { process, files }))
    }
}
