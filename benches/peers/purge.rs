//! How each peer learns that a job has changed.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{Result, http::Client};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The purge interface of a peer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purge {
    /// jobcache's webhook.
    Webhook(SocketAddr),
    /// Varnish's PURGE method.
    Method(SocketAddr),
    /// A GET that nginx does not answer from its cache.
    Refresh(SocketAddr),
    /// Bloom's control channel.
    Control(SocketAddr),
}

impl Purge {
    /// Purges a job. Returns once the peer has acknowledged it.
    pub(crate) fn purge(self, id: &str) -> Result<()> {
        let job = format!("/jobs/{id}");
        let answer = match self {
            Self::Webhook(admin) => {
                Client::new(admin)?.request("POST", &format!("/purge/{id}"), &[])?
            }
            Self::Method(proxy) => Client::new(proxy)?.request("PURGE", &job, &[])?,
            Self::Refresh(proxy) => {
                Client::new(proxy)?.request("GET", &job, &[("X-Refresh", "1")])?
            }
            Self::Control(control) => return flush_bucket(control, id),
        };
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}").into()) }
    }
}

/// Purges a bucket through Bloom's control channel. Bloom asks every new connection for a hash, and
/// names buckets by their hashes.
fn flush_bucket(control: SocketAddr, bucket: &str) -> Result<()> {
    let hash = |text: &str| format!("{:x}", farmhash::fingerprint32(text.as_bytes()));
    let stream = TcpStream::connect(control)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut stream = BufReader::new(stream);
    let mut next = |reply: &str| -> Result<String> {
        if !reply.is_empty() {
            stream.get_mut().write_all(format!("{reply}\r\n").as_bytes())?;
        }
        let mut line = String::new();
        stream.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    };
    next("")?;
    let request = next("")?;
    let value =
        request.strip_prefix("HASHREQ ").ok_or(format!("unexpected line from bloom: {request}"))?;
    next(&format!("HASHRES {}", hash(value)))?;
    let result = next(&format!("FLUSHB {}", hash(bucket)))?;
    if result == "OK" { Ok(()) } else { Err(format!("bloom rejects the purge: {result}").into()) }
}
