//! A blocking HTTP client that warms caches and checks their answers. It is never timed.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use crate::{Result, cell::Size, server::COUNT};

/// Number of connections that warm a cache.
const WARMERS: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(10);

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// A keep-alive connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Returns the body of a 200; any other status is an error.
    pub(crate) fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        let Answer { status, body } = self.request("GET", path, &[])?;
        if status == 200 { Ok(body) } else { Err(format!("GET {path}: {status}").into()) }
    }

    /// Sends a request with an empty body and reads the whole answer.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Result<Answer> {
        // The same Host as wrk sends; some caches use it in their keys.
        let host = self.stream.get_ref().peer_addr()?;
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let fields = fields.concat();
        let length = if method == "GET" { "" } else { "Content-Length: 0\r\n" };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}{length}\r\n");
        self.stream.get_mut().write_all(head.as_bytes())?;
        let (mut length, mut line) = (None, String::new());
        self.stream.read_line(&mut line)?;
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| format!("{method} {path}: {}", line.trim()))?;
        while line != "\r\n" {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(format!("{method} {path}: the connection closed early").into());
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse()?);
            }
        }
        let mut body = vec![0; length.ok_or("a response without Content-Length")?];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, body })
    }
}

/// Reads jobs `0..count` of this size once each, and checks the lengths of the bodies.
pub(crate) fn read_all(address: SocketAddr, size: Size, count: usize) -> Result<()> {
    thread::scope(|scope| {
        let warm = |first: usize| {
            let mut client = Client::new(address)?;
            for number in (first..count).step_by(WARMERS) {
                let body = client.get(&path(size, number))?;
                if body.len() != size.bytes() {
                    return Err(format!("a body of {} bytes", body.len()).into());
                }
            }
            Ok(())
        };
        let warmers: Vec<_> =
            (0..WARMERS).map(|first| scope.spawn(move || -> Result<()> { warm(first) })).collect();
        warmers.into_iter().try_for_each(|warmer| {
            warmer.join().unwrap_or_else(|_| Err("a warming thread panicked".into()))
        })
    })
}

/// Returns the path of a job as `requests.lua` requests it.
fn path(size: Size, number: usize) -> String {
    format!("/jobs/{}{:06x}-0000-4000-8000-{number:012x}", size.prefix(), number % 0x0100_0000)
}

/// Returns the number of requests that the upstream has answered.
pub(crate) fn upstream_count(upstream: SocketAddr) -> Result<u64> {
    let body = Client::new(upstream)?.get(COUNT)?;
    Ok(String::from_utf8_lossy(&body).parse()?)
}
