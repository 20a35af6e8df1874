//! `jobcache check`: is the configuration right, and is there anybody behind it?
//!
//! Whether Redis and the upstream answer, and what is to be warmed can be read, is information, and not
//! part of the verdict unless that is asked for (`--strict`): jobcache starts without any of them.

use std::{
    fmt::{Display, Write as _},
    io::{self, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jobcache::{
    RunError,
    config::{Config, Loaded, StoreUrl},
    tls,
    upstream::Upstream,
    warm::probe,
};
use percent_encoding::percent_decode_str;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{error::Elapsed, timeout},
};
use url::Url;

use super::Verdict;
use crate::Failure;

/// For each of the two; generous, as a person waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer to a PING that is looked at.
const MAX_REPLY: usize = 512;
/// Of what is as it should be.
const REACHABLE: &str = "reachable";

/// What a strict check has found wrong, in one word each.
#[derive(Debug, thiserror::Error)]
#[error("not everything can be reached: {}", .0.join(", "))]
pub(crate) struct Unreachable(Vec<&'static str>);

/// Prints what was loaded and who can be reached.
pub(crate) async fn run(loaded: &Loaded, verdict: Verdict) -> Result<(), Failure> {
    tls::verify(&loaded.config).map_err(RunError::Tls)?;
    let missing = print(loaded).await?;
    if missing.is_empty() || verdict == Verdict::Configuration {
        return Ok(());
    }
    Err(Failure::Unreachable(Unreachable(missing)))
}

/// Returns what is not as it should be.
async fn print(loaded: &Loaded) -> io::Result<Vec<&'static str>> {
    let mut out =
        String::from("# The configuration is valid. Values without a comment are defaults.\n");
    out.push_str(&loaded.to_toml());
    for warning in &loaded.warnings {
        let _ = write!(out, "\nwarning: {warning}");
    }
    let config = &loaded.config;
    let (store, upstream, list) =
        tokio::join!(store(&config.store.url), upstream(config), warm_list(config));
    let mut missing = Vec::new();
    let mut tell = |what: &'static str, name: String, (found, is_well): Found| {
        let _ = write!(out, "\n# {what:<9} {name}: {found}");
        missing.extend((!is_well).then_some(what));
    };
    tell("store", config.store.url.to_string(), store);
    tell("upstream", config.upstream.url.clone(), upstream);
    if let Some(path) = &config.warm.file {
        tell("warm.file", path.display().to_string(), warm_file(path));
    }
    if let (Some(target), Some(list)) = (&config.warm.list, list) {
        tell("warm.list", target.to_string(), list);
    }
    out.push('\n');
    // All at once: a reader that stops early (`| head`) is no error of ours.
    match io::stdout().write_all(out.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(missing),
    }
}

/// What there is to say, and whether that is as it should be.
type Found = (String, bool);

fn warm_file(path: &Path) -> Found {
    of(probe::file(path))
}

/// The list as it is read at the start.
async fn warm_list(config: &Config) -> Option<Found> {
    config.warm.list.as_ref()?;
    let read = timeout(PATIENCE, probe::list(config)).await;
    Some(read.map_or_else(|elapsed| told::<io::Error>(Err(elapsed)), of))
}

fn of(read: Result<String, String>) -> Found {
    match read {
        Ok(text) => (text, true),
        Err(why) => (why, false),
    }
}

/// As the sidecar itself connects, TLS included.
async fn upstream(config: &Config) -> Found {
    let upstream = match Upstream::new(config, Arc::default()) {
        Ok(upstream) => upstream,
        Err(error) => return (format!("cannot be used: {error}"), false),
    };
    told(timeout(PATIENCE, upstream.probe()).await.map(|made| made.map(|()| REACHABLE.into())))
}

async fn store(url: &StoreUrl) -> Found {
    let StoreUrl::Redis(url) = url else { return ("in this process".to_owned(), true) };
    let Ok(url) = Url::parse(url) else { return ("not a URL".to_owned(), false) };
    told(timeout(PATIENCE, ping(&url)).await)
}

fn told<E: Display>(outcome: Result<Result<String, E>, Elapsed>) -> Found {
    match outcome {
        Ok(Ok(text)) => {
            let is_well = text == REACHABLE;
            (text, is_well)
        }
        Ok(Err(error)) => (format!("not reachable: {error}"), false),
        Err(_) => (format!("not reachable: no answer within {}s", PATIENCE.as_secs()), false),
    }
}

async fn ping(url: &Url) -> io::Result<String> {
    if url.scheme().ends_with("unix") {
        return ask(UnixStream::connect(url.path()).await?, url).await;
    }
    let address = address(url, 6379).ok_or(io::ErrorKind::InvalidInput)?;
    ask(TcpStream::connect(address).await?, url).await
}

/// Host and port as `TcpStream::connect` takes them: an IPv6 address keeps its brackets.
fn address(url: &Url, default_port: u16) -> Option<String> {
    Some(format!("{}:{}", url.host_str()?, url.port().unwrap_or(default_port)))
}

async fn ask(mut io: impl AsyncRead + AsyncWrite + Unpin, url: &Url) -> io::Result<String> {
    let commands = question(url);
    io.write_all(&commands.concat()).await?;
    let mut reply = Vec::new();
    let mut part = [0; MAX_REPLY];
    // Both AUTH and PING are answered by one line.
    while reply.len() < MAX_REPLY && reply.split(|b| *b == b'\n').count() <= commands.len() {
        let read = io.read(&mut part).await?;
        if read == 0 {
            break;
        }
        reply.extend(part.iter().take(read));
    }
    let last = String::from_utf8_lossy(&reply);
    let errors: Vec<_> = last.lines().filter_map(|line| line.strip_prefix('-')).collect();
    Ok(match (errors.first(), last.lines().last()) {
        (Some(error), _) => format!("reachable, but it refuses us: {error}"),
        (None, Some("+PONG")) => REACHABLE.to_owned(),
        _ => "reachable, but this is not Redis".to_owned(),
    })
}

/// AUTH where the URL has a password, and PING.
fn question(url: &Url) -> Vec<Vec<u8>> {
    let auth = match login(url) {
        (Some(user), Some(password)) => Some(command(&[b"AUTH", &user, &password])),
        (None, Some(password)) => Some(command(&[b"AUTH", &password])),
        (_, None) => None,
    };
    auth.into_iter().chain([command(&[b"PING"])]).collect()
}

type Login = (Option<Vec<u8>>, Option<Vec<u8>>);

fn login(url: &Url) -> Login {
    if url.scheme().ends_with("unix") {
        let named = |name: &str| {
            let mut pairs = url.query_pairs();
            pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned().into_bytes())
        };
        return (named("user"), named("pass"));
    }
    let decoded = |text: &str| percent_decode_str(text).collect();
    let user = Some(url.username()).filter(|user| !user.is_empty());
    (user.map(decoded), url.password().map(decoded))
}

/// RESP with lengths, which takes any bytes.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).into_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// What `check` says about a store of the given URL that replies so.
    async fn said(url: &str, replies: &[&str]) -> (String, String) {
        let (ours, mut theirs) = duplex(1024);
        let url = Url::parse(url).unwrap();
        let server = async move {
            let mut question = [0; 256];
            let read = theirs.read(&mut question).await.unwrap();
            for reply in replies {
                theirs.write_all(reply.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
            String::from_utf8_lossy(question.get(..read).unwrap()).replace("\r\n", " ")
        };
        let (said, asked) = tokio::join!(ask(ours, &url), server);
        (asked, said.unwrap())
    }

    #[tokio::test]
    async fn redis_is_asked_with_the_login_of_the_url() {
        let (asked, said) = said("redis://u:p%40@a", &["+OK\r\n", "+PONG\r\n"]).await;
        assert_eq!(asked, "*3 $4 AUTH $1 u $2 p@ *1 $4 PING ");
        assert_eq!(said, "reachable");
    }

    #[tokio::test]
    async fn what_answers_otherwise_is_told() {
        let refused = said("redis://a", &["-NOAUTH Authentication required.\r\n"]).await.1;
        assert_eq!(refused, "reachable, but it refuses us: NOAUTH Authentication required.");
        let other = said("redis://a", &["HTTP/1.1 400 Bad Request\r\n"]).await.1;
        assert_eq!(other, "reachable, but this is not Redis");
        let socket = said("unix:///a?pass=p", &["+OK\r\n+PONG\r\n"]).await;
        assert_eq!(socket, ("*2 $4 AUTH $1 p *1 $4 PING ".to_owned(), "reachable".to_owned()));
    }
}
