//! Servers as child processes, on loopback ports of their own, that never outlive the benchmark.

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

/// How long a server may take to accept connections: Varnish compiles its configuration first.
const START: Duration = Duration::from_secs(20);
/// How long it may take to end when asked to; then it is killed.
const END: Duration = Duration::from_secs(2);
/// Between two looks.
const STEP: Duration = Duration::from_millis(20);
/// What a failure shows of a log.
const LOG_LINES: usize = 5;

/// A running server.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program that logs into `dir`. The kernel ends it when this process dies, however it
    /// dies; with SIGTERM, upon which servers of many processes end all of them.
    ///
    /// To be called from the main thread: the kernel goes by the thread that started the child.
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
            // Ctrl-C is for the benchmark alone, which then ends its children in order.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cannot run setpriv (util-linux): {error}"))?;
        Ok(Self { child, log })
    }

    /// Of the server, or of the master of its processes.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it accepts connections; fails when it has ended instead.
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

    /// The last lines that it logged.
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
        // One that is gone already has ended as asked.
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + END;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            sleep(STEP);
        }
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Where a program is installed. Debian keeps servers in `sbin`, which is not in everybody's `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    search_path().split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
}

fn search_path() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin")
}

/// A loopback address that was free a moment ago, below the range of outgoing connections.
pub(crate) fn free_address() -> Result<SocketAddr> {
    (0..1_000)
        .map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(10_000..32_000))))
        .find(|address| TcpListener::bind(address).is_ok())
        .ok_or_else(|| "no free port".into())
}
