//! The load generator: `wrk` with one thread and the script `requests.lua`.

use std::{
    io::Read as _,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use serde::Deserialize;
use tempfile::TempDir;

use crate::{Result, cell::Cell, interrupt::Interrupt, process};

/// Jobs that are requested in turn.
pub(crate) const IDS: usize = 1_000;
const SCRIPT: &str = include_str!("requests.lua");

/// An installed `wrk`.
#[derive(Debug)]
pub(crate) struct Wrk {
    program: PathBuf,
    dir: TempDir,
    seconds: u32,
    /// Number of the run, so that no two runs miss the same ids.
    runs: u16,
    interrupt: Interrupt,
}

/// The result that the script prints.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    duration_us: u64,
    p50_us: u64,
    p99_us: u64,
    /// Connections, reads and writes that failed, timeouts, and statuses above 399.
    pub(crate) errors: u64,
}

impl Wrk {
    /// Finds `wrk`. Each of its runs takes `seconds`.
    pub(crate) fn new(seconds: u32, interrupt: Interrupt) -> Result<Self> {
        let program = process::find("wrk").ok_or("wrk is missing: apt-get install wrk")?;
        let dir = TempDir::with_prefix("jobcache-bench-wrk-")?;
        std::fs::write(dir.path().join("requests.lua"), SCRIPT)?;
        Ok(Self { program, dir, seconds, runs: 0, interrupt })
    }

    /// Sends the requests of a load.
    pub(crate) fn run(&mut self, address: SocketAddr, cell: Cell) -> Result<Load> {
        self.runs += 1;
        let child = Command::new(&self.program)
            .args(["-t1", &format!("-c{}", cell.connections), &format!("-d{}s", self.seconds)])
            .arg("-s")
            .arg(self.dir.path().join("requests.lua"))
            .arg(format!("http://{address}"))
            .env("WORK", cell.work.as_str())
            .env("SIZE", cell.size.prefix())
            .env("IDS", IDS.to_string())
            .env("RUN", self.runs.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = self.wait(Running(child))?;
        let line = output.lines().find(|line| line.starts_with('{'));
        Ok(serde_json::from_str(
            line.ok_or_else(|| format!("unexpected output of wrk: {output}"))?,
        )?)
    }

    fn wait(&self, mut wrk: Running) -> Result<String> {
        while wrk.0.try_wait()?.is_none() {
            self.interrupt.check()?;
            sleep(Duration::from_millis(20));
        }
        // An interrupt also reaches wrk, which then ends early.
        self.interrupt.check()?;
        let mut output = String::new();
        // The output is smaller than a pipe buffer.
        wrk.0.stdout.take().ok_or("no pipe from wrk")?.read_to_string(&mut output)?;
        Ok(output)
    }
}

/// A child process that is killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Load {
    pub(crate) fn per_second(&self) -> f64 {
        crate::stats::real(self.requests) * 1e6 / crate::stats::real(self.duration_us.max(1))
    }

    pub(crate) fn p50_ms(&self) -> f64 {
        crate::stats::real(self.p50_us) / 1e3
    }

    pub(crate) fn p99_ms(&self) -> f64 {
        crate::stats::real(self.p99_us) / 1e3
    }
}
