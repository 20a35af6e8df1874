//! `jobcache check`: is the configuration right, and is there anybody behind it?
//!
//! Whether Redis and the upstream answer is information, not part of the verdict: jobcache starts
//! without either.

use std::{
    fmt::{Display, Write as _},
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use jobcache::{
    RunError,
    config::{Config, Loaded, StoreUrl},
    tls,
    upstream::Upstream,
};
use percent_encoding::percent_decode_str;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::{error::Elapsed, timeout},
};
use url::Url;

use crate::Failure;

/// For each of the two; generous, as a person waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer to a PING that is looked at.
const MAX_REPLY: usize = 512;

/// Prints what was loaded and who can be reached.
pub(crate) async fn run(loaded: &Loaded) -> Result<(), Failure> {
    tls::verify(&loaded.config).map_err(RunError::Tls)?;
    Ok(print(loaded).await?)
}

async fn print(loaded: &Loaded) -> io::Result<()> {
    let mut out =
        String::from("# The configuration is valid. Values without a comment are defaults.\n");
    out.push_str(&loaded.to_toml());
    for warning in &loaded.warnings {
        let _ = write!(out, "\nwarning: {warning}");
    }
    let (store, upstream) = tokio::join!(store(&loaded.config.store.url), upstream(&loaded.config));
    let _ = writeln!(out, "\n# store    {}: {store}", loaded.config.store.url);
    let _ = writeln!(out, "# upstream {}: {upstream}", loaded.config.upstream.url);
    // All at once: a reader that stops early (`| head`) is no error of ours.
    match io::stdout().write_all(out.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// As the sidecar itself connects, TLS included.
async fn upstream(config: &Config) -> String {
    let upstream = match Upstream::new(config, Arc::default()) {
        Ok(upstream) => upstream,
        Err(error) => return format!("cannot be used: {error}"),
    };
    told(timeout(PATIENCE, upstream.probe()).await.map(|made| made.map(|()| "reachable".into())))
}

async fn store(url: &StoreUrl) -> String {
    let StoreUrl::Redis(url) = url else { return "in this process".to_owned() };
    let Ok(url) = Url::parse(url) else { return "not a URL".to_owned() };
    told(timeout(PATIENCE, ping(&url)).await)
}

fn told<E: Display>(outcome: Result<Result<String, E>, Elapsed>) -> String {
    match outcome {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => format!("not reachable: {error}"),
        Err(_) => format!("not reachable: no answer within {}s", PATIENCE.as_secs()),
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
        (None, Some("+PONG")) => "reachable".to_owned(),
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
