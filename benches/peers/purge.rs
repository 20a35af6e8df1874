//! How each peer is told that a job has changed.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{Result, http::Client};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The door for it; it has been opened when [`Purge::purge`] is called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purge {
    /// The webhook of jobcache.
    Webhook(SocketAddr),
    /// The method, of Varnish.
    Method(SocketAddr),
    /// A GET that nginx does not answer from its cache.
    Refresh(SocketAddr),
    /// Bloom's control channel.
    Control(SocketAddr),
}

impl Purge {
    /// Returns once the peer has acknowledged it.
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

/// Bloom asks whoever connects for a hash, and names buckets by theirs.
fn flush_bucket(control: SocketAddr, bucket: &str) -> Result<()> {
    let hash = |text: &str| format!("{:x}", farmhash::fingerprint32(text.as_bytes()));
    let stream = TcpStream::connect(control)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut stream = BufReader::new(stream);
    let mut next = |said: &str| -> Result<String> {
        if !said.is_empty() {
            stream.get_mut().write_all(format!("{said}\r\n").as_bytes())?;
        }
        let mut line = String::new();
        stream.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    };
    next("")?;
    let asked = next("")?;
    let value = asked.strip_prefix("HASHREQ ").ok_or(format!("bloom said {asked}"))?;
    next(&format!("HASHRES {}", hash(value)))?;
    let said = next(&format!("FLUSHB {}", hash(bucket)))?;
    if said == "OK" { Ok(()) } else { Err(format!("bloom said {said}").into()) }
}
