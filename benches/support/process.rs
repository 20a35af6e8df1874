//! Servers as child processes on their own loopback ports, which never outlive the benchmark.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::Result;

/// Time limit for a server to accept connections; Varnish compiles its configuration first.
const START: Duration = Duration::from_secs(20);
/// Time limit for a server to end after SIGTERM, before it is killed.
const END: Duration = Duration::from_secs(2);
/// Polling interval.
const STEP: Duration = Duration::from_millis(20);
/// Log lines shown in an error.
const LOG_LINES: usize = 5;

/// A running server.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program that logs into `dir`. The kernel sends it SIGTERM when this process dies in
    /// any way; servers with several processes end all of them on SIGTERM.
    ///
    /// Must be called from the main thread, because the kernel ends the child when the thread that
    /// started it ends.
    pub(crate) fn spawn(program: impl AsRef<Path>, args: &[String], dir: &Path) -> Result<Self> {
        let program = program.as_ref();
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let log = dir.join(format!("{name}-{}.log", fastrand::u32(..)));
        let file = File::create(&log)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(program)
            .args(args)
            .env_clear()
            .env("PATH", search_path())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Only the benchmark handles Ctrl-C; it ends its children in order.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot run setpriv (util-linux): {error}"))?;
        Ok(Self { child, log })
    }

    /// Returns the id of the server, or of its master process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server accepts connections; fails if it has ended instead.
    pub(crate) fn wait_for(&mut self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("ended at once ({status}): {}", self.log()).into());
            }
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            sleep(STEP);
        }
        Err(format!("does not listen on {address} after {START:?}: {}", self.log()).into())
    }

    /// Returns the last lines of the log.
    fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim().to_owned();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join(" | ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        // The process may already have ended.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + END;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            sleep(STEP);
        }
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Returns the path of an installed program. Debian installs servers in `sbin`, which is not in
/// every user's `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    search_path().split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
}

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// Returns a loopback address that was free a moment ago, below the range of outgoing connections.
pub(crate) fn free_address() -> Result<SocketAddr> {
    (0..1_000)
        .map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(10_000..32_000))))
        .find(|address| TcpListener::bind(address).is_ok())
        .ok_or_else(|| "no free port".into())
}
