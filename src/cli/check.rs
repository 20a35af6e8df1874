//! `jobcache check` and `jobcache healthcheck`: whether a configuration, or a running jobcache, works.
//!
//! `check` validates the configuration, prints it, and tries everything that it names. Only with
//! `--strict` does the exit code depend on whether Redis and the API answer, and whether the sources
//! of cache warming can be read: jobcache starts without any of them. `healthcheck` is the HEALTHCHECK
//! of a container, which has no curl.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::{Method, Request, Uri};
use jobcache::{
    RunError,
    config::{Config, ListenAddress, LoadedConfig, StoreUrl},
    observe::metrics::Registry,
    semantics::{
        job_id::JobId,
        route::{Route, Routes, invalidation_rules::RuleMatch},
    },
    store::{self, Diagnosis, ProbedStore, StoreError, StoreErrorKind},
    tls,
    upstream::Upstream,
    warm::sources::{probe_file, probe_list},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::{CheckArgs, print_at_once};
use crate::Failure;

/// Time limit for each attempt, generous because a person waits for the result.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Text for everything that works.
const REACHABLE: &str = "reachable";

/// The finding at an address or file of the configuration, or why it cannot be reached.
type Finding = Result<String, String>;

/// Keywords of everything that a strict check could not reach, or not use.
#[derive(Debug, Default)]
pub(crate) struct Unreachable {
    missing: Vec<&'static str>,
    /// What is wrong with a store that was reached.
    store: Option<StoreFault>,
}

impl std::error::Error for Unreachable {}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fault) = self.store {
            f.write_str(match fault {
                StoreFault::Refuses => "the store was reached, but refuses what jobcache needs",
                StoreFault::Unusable => "the store was reached, but cannot be used",
            })?;
        }
        if !self.missing.is_empty() {
            let join = if self.store.is_some() { "; " } else { "" };
            let missing = self.missing.join(", ");
            write!(f, "{join}not everything can be reached: {missing}")?;
        }
        Ok(())
    }
}

/// What is wrong with a store that was reached.
#[derive(Clone, Copy, Debug)]
enum StoreFault {
    Refuses,
    Unusable,
}

/// Prints the loaded configuration, and what can be reached. Only a strict check fails because of that:
/// jobcache starts without Redis and the API.
pub(crate) async fn run(loaded: &LoadedConfig, args: &CheckArgs) -> Result<(), Failure> {
    if !args.path.is_empty() {
        return Ok(print_at_once(paths(&loaded.config, &args.path)?.as_bytes())?);
    }
    tls::verify(&loaded.config).map_err(RunError::Tls)?;
    let missing = Box::pin(print(loaded)).await?;
    if missing.missing.is_empty() && missing.store.is_none() || !args.strict {
        return Ok(());
    }
    Err(Failure::Unreachable(missing))
}

/// Says what a GET and a PUT of each path mean to the cache, as far as the path tells.
fn paths(config: &Config, paths: &[Uri]) -> Result<String, RunError> {
    let routes = Routes::new(&config.api)?;
    let prefixes = config.prefixes();
    let mut out = String::new();
    for path in paths {
        let request = |method: Method| {
            let mut request = Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = path.clone();
            request
        };
        let (get, put) = (request(Method::GET), request(Method::PUT));
        let key = |job: &JobId| format!("{}{job}", prefixes[job.prefix()]);
        let _ = writeln!(out, "GET {path}: {}", read(&routes, &get, key));
        let _ = writeln!(out, "PUT {path}: {}", write(&routes, &put, key));
    }
    Ok(out)
}

fn read(routes: &Routes, request: &Request<()>, key: impl Fn(&JobId) -> String) -> String {
    let path = request.uri().path();
    match routes.classify(request) {
        Route::Read(job) => {
            let route = routes.route_of(path).unwrap_or_default();
            format!("cached under {}, by the route {route}", key(&job.id()))
        }
        Route::Pass(why) => {
            let setting = routes.setting_for(path, why);
            let remedy = setting.map(|setting| match setting {
                "routes" => "; a route with the same slash at the end would take it".to_owned(),
                setting => format!("; {setting} would take it"),
            });
            format!("passes, and is not cached (detail={why}){}", remedy.unwrap_or_default())
        }
        Route::Write(_) => "is a write: a parameter names another method".to_owned(),
    }
}

fn write(routes: &Routes, request: &Request<()>, key: impl Fn(&JobId) -> String) -> String {
    /// Most keys that are shown.
    const SHOWN: usize = 20;
    match routes.classify(request) {
        Route::Write(scope)
            if scope.changes_unlisted() || scope.rules.iter().any(RuleMatch::is_all) =>
        {
            "forgets every job".to_owned()
        }
        Route::Write(scope) if scope.all_jobs().is_empty() && scope.rules.is_empty() => {
            "names no job by its path, and forgets none".to_owned()
        }
        Route::Write(scope) => {
            let jobs = scope.all_jobs();
            let shown: Vec<_> = jobs.iter().take(SHOWN).map(key).collect();
            let more = jobs.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let rules = if scope.rules.is_empty() { "" } else { ", and what its rules name" };
            format!("forgets {}{more}{rules}", shown.join(" "))
        }
        Route::Pass(_) | Route::Read(_) => "names no job by its path, and forgets none".to_owned(),
    }
}

/// Returns what could not be reached or used.
async fn print(loaded: &LoadedConfig) -> io::Result<Unreachable> {
    let mut out =
        String::from("# The configuration is valid. Values without a comment are defaults.\n");
    out.push_str(&loaded.to_toml());
    for warning in &loaded.warnings {
        let _ = write!(out, "\nwarning: {warning}");
    }
    let config = &loaded.config;
    let (store, upstream, list) = tokio::join!(store(config), upstream(config), warm_list(config));
    let mismatches = store.iter().flat_map(|probed| &probed.mismatches);
    let mismatches: BTreeSet<String> = mismatches.map(ToString::to_string).collect();
    let far = store.iter().filter_map(|probed| probed.far.as_ref()).map(ToString::to_string);
    for warning in far.chain(mismatches) {
        let _ = write!(out, "\nwarning: {warning}");
    }
    let fault = store.as_ref().err().and_then(store_fault);
    let mut missing = Vec::new();
    let mut report = |what: &'static str, name: String, found: Finding| {
        missing.extend(found.is_err().then_some(what));
        let (Ok(text) | Err(text)) = found;
        let _ = write!(out, "\n# {what:<9} {name}: {text}");
    };
    let is_here = config.store.url == StoreUrl::Memory;
    let reached = |probed: ProbedStore| match probed.far {
        _ if is_here => "in this process",
        Some(_) => "reachable, but too far away for store.budget",
        None => REACHABLE,
    };
    let store = store.map(|probed| reached(probed).to_owned());
    report("store", config.store.url.to_string(), store.map_err(|error| store_trouble(&error)));
    report("upstream", config.upstream.url.clone(), upstream);
    if let Some(path) = &config.warm.file {
        report("warm.file", path.display().to_string(), probe_file(path, config));
    }
    if let (Some(target), Some(list)) = (&config.warm.list, list) {
        report("warm.list", target.to_string(), list);
    }
    out.push('\n');
    print_at_once(out.as_bytes())?;
    missing.retain(|what| *what != "store" || fault.is_none());
    Ok(Unreachable { missing, store: fault })
}

/// Reads the list as it is read at the start.
async fn warm_list(config: &Config) -> Option<Finding> {
    config.warm.list.as_ref()?;
    Some(in_time(probe_list(config)).await.and_then(|read| read))
}

/// Connects as the sidecar itself does, TLS included.
async fn upstream(config: &Config) -> Finding {
    let upstream = Upstream::new(config, &mut Registry::default(), Arc::default());
    let upstream = upstream.map_err(|error| format!("cannot be used: {error}"))?;
    let made = in_time(upstream.probe()).await?;
    made.map(|()| REACHABLE.to_owned()).map_err(|error| format!("not reachable: {error}"))
}

/// Connects likewise, through sentinels if there are any. The server must be a master of a supported
/// version.
async fn store(config: &Config) -> Result<ProbedStore, StoreError> {
    if config.store.url == StoreUrl::Memory {
        return Ok(ProbedStore::default());
    }
    timeout(TIMEOUT, store::probe(config)).await.unwrap_or(Err(StoreError::Timeout))
}

/// What is wrong with a store that was reached; `None` if it was not.
fn store_fault(error: &StoreError) -> Option<StoreFault> {
    match error.kind() {
        StoreErrorKind::Refused | StoreErrorKind::Redirected => Some(StoreFault::Refuses),
        StoreErrorKind::Lost if is_unusable(error) => Some(StoreFault::Unusable),
        _ => None,
    }
}

fn is_unusable(error: &StoreError) -> bool {
    match error {
        StoreError::Denied(diagnosis, _) => !diagnosis.is_unreachable(),
        error => matches!(error, StoreError::Unusable(_)),
    }
}

/// The error of the store as a sentence, with its remedy.
fn store_trouble(error: &StoreError) -> String {
    let said = match error {
        StoreError::Refused(said) | StoreError::Unusable(said) => said.clone(),
        StoreError::Denied(diagnosis, said) => format!("{said}; {}", diagnosis.remedy()),
        StoreError::Timeout => {
            let remedy = Diagnosis::NoAnswer.remedy();
            return format!("not reachable: no answer within 1s; {remedy}");
        }
        error => error.to_string(),
    };
    match store_fault(error) {
        Some(StoreFault::Refuses) => format!("reachable, but it refuses jobcache: {said}"),
        Some(StoreFault::Unusable) => format!("cannot be used: {said}"),
        None => format!("not reachable: {error}"),
    }
}

async fn in_time<T>(attempt: impl Future<Output = T>) -> Result<T, String> {
    let late = |_| format!("not reachable: no answer within {}s", TIMEOUT.as_secs());
    timeout(TIMEOUT, attempt).await.map_err(late)
}

/// Length of `HTTP/1.1 200`.
const STATUS_LEN: usize = 12;

/// Sends `GET /livez` to the admin address; the error is the sentence to print.
pub(crate) async fn health(admin: &ListenAddress) -> Result<(), String> {
    let admin = dial_address(admin);
    let page = match &admin {
        ListenAddress::Tcp(admin) => format!("http://{admin}/livez"),
        ListenAddress::Unix(_) => format!("/livez at {admin}"),
    };
    match timeout(TIMEOUT, livez(&admin)).await {
        Ok(Ok(status)) if status == "200" => Ok(()),
        Ok(Ok(status)) => Err(format!("{page} answers {status}")),
        Ok(Err(error)) => Err(format!("{page} does not answer: {error}")),
        Err(_) => Err(format!("{page} does not answer within {}s", TIMEOUT.as_secs())),
    }
}

async fn livez(admin: &ListenAddress) -> io::Result<String> {
    match admin {
        ListenAddress::Tcp(admin) => {
            ask(TcpStream::connect(admin).await?, &admin.to_string()).await
        }
        ListenAddress::Unix(path) => ask(UnixStream::connect(path).await?, "localhost").await,
    }
}

async fn ask(mut io: impl AsyncRead + AsyncWrite + Unpin, host: &str) -> io::Result<String> {
    let request = format!("GET /livez HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    let mut line = [0; STATUS_LEN];
    io.read_exact(&mut line).await?;
    let line = String::from_utf8_lossy(&line);
    let status = line.strip_prefix("HTTP/1.1 ").ok_or(io::ErrorKind::InvalidData)?;
    Ok(status.to_owned())
}

/// Replaces a wildcard address by loopback.
fn dial_address(admin: &ListenAddress) -> ListenAddress {
    let ListenAddress::Tcp(admin) = admin else { return admin.clone() };
    let ip = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, admin.port()).into()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn an_address_that_listens_everywhere_is_dialled_as_loopback() {
        for (admin, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("unix:/a", "unix:/a"),
        ] {
            let admin = admin.parse().unwrap();
            assert_eq!(dial_address(&admin).to_string(), expected);
        }
    }

    async fn answered(reply: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let admin = listener.local_addr().unwrap();
        let address = ListenAddress::from(admin);
        let server = async {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut request = [0; 64];
            let read = io.read(&mut request).await.unwrap();
            assert!(
                request.iter().take(read).copied().collect::<Vec<_>>().starts_with(b"GET /livez")
            );
            io.write_all(reply.as_bytes()).await.unwrap();
        };
        let (outcome, ()) = tokio::join!(health(&address), server);
        outcome.map_err(|error| error.replace(&admin.to_string(), "ADMIN"))
    }

    #[tokio::test]
    async fn only_a_200_is_healthy() {
        assert_eq!(answered("HTTP/1.1 200 OK\r\n\r\n").await, Ok(()));
        let error = Err("http://ADMIN/livez answers 503".to_owned());
        assert_eq!(answered("HTTP/1.1 503 No\r\n\r\n").await, error);
        assert!(answered("SSH-2.0-OpenSSH_9.2\r\n").await.is_err());
    }
}
