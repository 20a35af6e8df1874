//! The measured peers, and how each is started.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Result,
    cell::Work,
    forward::Client,
    nginx::{MICROCACHE, Nginx},
    peer_files::PeerFiles,
    process::{self, Process},
    purge::Purge,
    report::first_line,
    servers::{Redis, Sidecar},
};

/// A peer, by its name in the tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entrant {
    pub(crate) name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// jobcache with these flags, and with its own Redis or the embedded store.
    Jobcache {
        flags: &'static [&'static str],
        store: Store,
        build: Build,
    },
    Nginx {
        sendfile: &'static str,
    },
    Microcache,
    Haproxy,
    Varnish,
    Bloom,
    Hyper,
    /// A bare proxy.
    Forward(Client),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Redis,
    Memory,
}

/// The binary of a jobcache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    UnderTest,
    /// That of `--before`.
    Before,
}

/// The lower bound of cost and latency for any HTTP server.
pub(crate) const LIMIT: &str = "hyper";

/// All peers. Variants of jobcache that the binary rejects and peers that are not installed are
/// skipped.
pub(crate) const ROSTER: [Entrant; 17] = [
    jobcache("jobcache-strict", &["--near=strict"], Store::Redis),
    jobcache("jobcache-bounded", &["--near=bounded"], Store::Redis),
    jobcache("jobcache-off", &["--near=off"], Store::Redis),
    jobcache("jobcache-memory", &["--near=off"], Store::Memory),
    before("before-strict", &["--near=strict"]),
    before("before-bounded", &["--near=bounded"]),
    before("before-off", &["--near=off"]),
    Entrant { name: "nginx", kind: Kind::Nginx { sendfile: "off" } },
    Entrant { name: "nginx-sendfile", kind: Kind::Nginx { sendfile: "on" } },
    Entrant { name: "nginx-microcache", kind: Kind::Microcache },
    Entrant { name: "haproxy", kind: Kind::Haproxy },
    Entrant { name: "varnish", kind: Kind::Varnish },
    Entrant { name: "bloom", kind: Kind::Bloom },
    Entrant { name: LIMIT, kind: Kind::Hyper },
    Entrant { name: "forward-own", kind: Kind::Forward(Client::Own) },
    Entrant { name: "forward-legacy", kind: Kind::Forward(Client::Legacy) },
    Entrant { name: "forward-pool", kind: Kind::Forward(Client::Pool) },
];

const fn jobcache(name: &'static str, flags: &'static [&'static str], store: Store) -> Entrant {
    Entrant { name, kind: Kind::Jobcache { flags, store, build: Build::UnderTest } }
}

const fn before(name: &'static str, flags: &'static [&'static str]) -> Entrant {
    Entrant { name, kind: Kind::Jobcache { flags, store: Store::Redis, build: Build::Before } }
}

/// State shared by all peers.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The binary under test.
    pub(crate) jobcache: PathBuf,
    /// An earlier build to compare it with.
    pub(crate) before: Option<PathBuf>,
    pub(crate) upstream: SocketAddr,
}

/// A running peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) entrant: Entrant,
    /// The address for clients.
    pub(crate) address: SocketAddr,
    process: Running,
    pub(crate) redis: Option<Redis>,
    /// The purge interface, if there is one.
    purge: Option<Purge>,
    _dir: Option<TempDir>,
}

#[derive(Debug)]
enum Running {
    Other(Process),
    Jobcache(Sidecar),
}

/// The result of starting a peer.
#[derive(Debug)]
pub(crate) enum Started {
    Running(Box<Peer>),
    /// The peer does not take part, for this reason.
    Skipped(String),
}

impl Entrant {
    /// Returns whether the peer is jobcache.
    pub(crate) fn is_jobcache(self) -> bool {
        matches!(self.kind, Kind::Jobcache { .. })
    }

    /// Returns whether the peer is an earlier build of jobcache.
    pub(crate) fn is_before(self) -> bool {
        matches!(self.kind, Kind::Jobcache { build: Build::Before, .. })
    }

    /// Returns whether the peer forwards what it does not have; only the bare server does not.
    pub(crate) fn forwards(self) -> bool {
        !matches!(self.kind, Kind::Hyper)
    }

    /// Returns whether the peer is a cache.
    pub(crate) fn caches(self) -> bool {
        !matches!(self.kind, Kind::Hyper | Kind::Forward(_))
    }

    /// Returns whether the cost of the peer is measured. A microcache costs what nginx does.
    pub(crate) fn has_costs(self) -> bool {
        !matches!(self.kind, Kind::Microcache)
    }

    /// Returns whether the peer is measured under this work; bare proxies only forward.
    pub(crate) fn takes_part_in(self, work: Work) -> bool {
        !matches!(self.kind, Kind::Forward(_)) || work == Work::Pass
    }

    /// Returns the version of the peer.
    pub(crate) fn version(self) -> Value {
        let version = |program: &str, flag: &str| match process::find(program) {
            Some(path) => json!(first_line(Command::new(path).arg(flag))),
            None => Value::Null,
        };
        match self.kind {
            Kind::Jobcache { flags, .. } => json!(flags.join(" ")),
            Kind::Nginx { .. } | Kind::Microcache => version("nginx", "-v"),
            Kind::Haproxy => version("haproxy", "-v"),
            Kind::Varnish => version("varnishd", "-V"),
            Kind::Bloom => version("bloom", "--version"),
            Kind::Hyper | Kind::Forward(_) => json!("hyper 1"),
        }
    }

    /// Starts the peer on a free port in front of the upstream.
    pub(crate) fn start(self, stage: &Stage) -> Result<Started> {
        let started = match self.kind {
            Kind::Jobcache { flags, store, .. } => self.start_jobcache(stage, flags, store),
            Kind::Nginx { sendfile } => self.start_nginx(stage, sendfile),
            Kind::Microcache => self.start_microcache(stage),
            Kind::Haproxy => self.start_haproxy(stage),
            Kind::Varnish => self.start_varnish(stage),
            Kind::Bloom => self.start_bloom(stage),
            Kind::Hyper => {
                let (process, address) = start_hyper()?;
                Ok(Started::running(self.running(Running::Other(process), address, None)))
            }
            Kind::Forward(client) => self.start_forward(stage, client),
        };
        started.map_err(|error| format!("{}: {error}", self.name).into())
    }

    fn start_jobcache(self, stage: &Stage, flags: &[&str], store: Store) -> Result<Started> {
        let binary = if self.is_before() { stage.before.as_ref() } else { Some(&stage.jobcache) };
        let binary = binary.ok_or("no --before")?;
        if let Some(why) = refusal(binary, flags)? {
            return Ok(Started::Skipped(why));
        }
        let redis = if store == Store::Redis { Some(Redis::start()?) } else { None };
        let url = redis.as_ref().map_or_else(|| "memory://".to_owned(), Redis::url);
        let mut args: Vec<String> = flags.iter().map(ToString::to_string).collect();
        args.push(format!("--redis-url={url}"));
        args.push(format!("--upstream=http://{}", stage.upstream));
        let sidecar = Sidecar::start(binary, &args, "")?;
        let (address, purge) = (sidecar.listen, Purge::Webhook(sidecar.admin));
        let peer = self.running(Running::Jobcache(sidecar), address, None);
        Ok(Started::running(Peer { redis, purge: Some(purge), ..peer }))
    }

    fn start_nginx(self, stage: &Stage, sendfile: &str) -> Result<Started> {
        let config = include_str!("nginx.conf").replace("@SENDFILE@", sendfile);
        let Some(nginx) = Nginx::start(&config, stage.upstream)? else {
            return Ok(missing("nginx"));
        };
        let purge = Some(Purge::Refresh(nginx.files.listen));
        Ok(Started::running(Peer { purge, ..self.running_nginx(nginx) }))
    }

    fn start_microcache(self, stage: &Stage) -> Result<Started> {
        let Some(nginx) = Nginx::start(MICROCACHE, stage.upstream)? else {
            return Ok(missing("nginx"));
        };
        Ok(Started::running(self.running_nginx(nginx)))
    }

    fn running_nginx(self, Nginx { process, files }: Nginx) -> Peer {
        self.running(Running::Other(process), files.listen, Some(files.dir))
    }

    fn start_haproxy(self, stage: &Stage) -> Result<Started> {
        let Some(program) = process::find("haproxy") else { return Ok(missing("haproxy")) };
        let place = PeerFiles::new(stage.upstream)?;
        let config = place.write("haproxy.cfg", include_str!("haproxy.cfg"))?;
        let args = ["-db".to_owned(), "-f".to_owned(), config];
        self.start_other(&program, &args, place).map(Started::running)
    }

    fn start_varnish(self, stage: &Stage) -> Result<Started> {
        let Some(program) = process::find("varnishd") else { return Ok(missing("varnish")) };
        let place = PeerFiles::new(stage.upstream)?;
        let config = place.write("varnish.vcl", include_str!("varnish.vcl"))?;
        let mut args = words(
            "-F -j none -T none -s malloc,512m -p thread_pools=2 -p thread_pool_min=100 \
             -p thread_pool_max=1000 -p timeout_idle=60",
        );
        let dir = place.dir.path().join("varnish").display().to_string();
        args.extend(["-a".to_owned(), place.listen.to_string()]);
        args.extend(["-f".to_owned(), config, "-n".to_owned(), dir]);
        let purge = Some(Purge::Method(place.listen));
        let peer = self.start_other(&program, &args, place)?;
        Ok(Started::running(Peer { purge, ..peer }))
    }

    fn start_bloom(self, stage: &Stage) -> Result<Started> {
        let Some(program) = process::find("bloom") else {
            return Ok(Started::Skipped("not installed: cargo install bloom-server".to_owned()));
        };
        let (place, redis, control) =
            (PeerFiles::new(stage.upstream)?, Redis::start()?, process::free_address()?);
        let config = include_str!("bloom.cfg")
            .replace("@REDIS_PORT@", &redis.address.port().to_string())
            .replace("@CONTROL@", &control.to_string());
        let config = place.write("bloom.cfg", &config)?;
        let peer = self.start_other(&program, &["-c".to_owned(), config], place)?;
        let purge = Some(Purge::Control(control));
        Ok(Started::running(Peer { redis: Some(redis), purge, ..peer }))
    }

    fn start_forward(self, stage: &Stage, client: Client) -> Result<Started> {
        let (listen, upstream) = (process::free_address()?, stage.upstream);
        let client = client.as_str();
        let args = [listen, upstream].map(|address| address.to_string());
        let args = [&format!("--forward={client}"), &args[0], &args[1]].map(String::clone);
        let mut process = Process::spawn(std::env::current_exe()?, &args, &std::env::temp_dir())?;
        process.wait_for(listen)?;
        Ok(Started::running(self.running(Running::Other(process), listen, None)))
    }

    fn start_other(self, program: &Path, args: &[String], place: PeerFiles) -> Result<Peer> {
        let mut process = Process::spawn(program, args, place.dir.path())?;
        process.wait_for(place.listen)?;
        Ok(self.running(Running::Other(process), place.listen, Some(place.dir)))
    }

    fn running(self, process: Running, address: SocketAddr, dir: Option<TempDir>) -> Peer {
        Peer { entrant: self, address, process, redis: None, purge: None, _dir: dir }
    }
}

impl Started {
    fn running(peer: Peer) -> Self {
        Self::Running(Box::new(peer))
    }
}

impl Peer {
    /// Returns the id of the peer's first process.
    pub(crate) fn pid(&self) -> u32 {
        match &self.process {
            Running::Other(process) => process.pid(),
            Running::Jobcache(sidecar) => sidecar.process.pid(),
        }
    }

    /// Returns the purge interface; HAProxy and bare proxies have none.
    pub(crate) fn purge(&self) -> Option<Purge> {
        self.purge
    }

    /// Returns the process id of the peer's Redis.
    pub(crate) fn redis_pid(&self) -> Option<u32> {
        self.redis.as_ref().map(|redis| redis.process.pid())
    }
}

/// Starts the bare server: this program in a new process.
pub(crate) fn start_hyper() -> Result<(Process, SocketAddr)> {
    let address = process::free_address()?;
    let args = [format!("--serve={address}")];
    let mut process = Process::spawn(std::env::current_exe()?, &args, &std::env::temp_dir())?;
    process.wait_for(address)?;
    Ok((process, address))
}

/// Returns jobcache's reason for rejecting these flags, or `None` if it accepts them.
fn refusal(binary: &Path, flags: &[&str]) -> Result<Option<String>> {
    let mut check = Command::new(binary);
    check.arg("check").args(flags).env_clear().stdin(Stdio::null());
    let output = check.output().map_err(|error| format!("{}: {error}", binary.display()))?;
    // Wrong usage or a bad configuration. Unreachable servers do not matter here.
    if !matches!(output.status.code(), Some(2 | 78)) {
        return Ok(None);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = stderr.lines().find(|line| line.contains("near")).unwrap_or("refused").trim();
    Ok(Some(format!("this jobcache rejects {}: {line}", flags.join(" "))))
}

fn missing(package: &str) -> Started {
    Started::Skipped(format!("not installed: apt-get install {package}"))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
