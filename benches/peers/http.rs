//! A plain, blocking HTTP client: it warms caches and checks what they serve, and is never timed.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use crate::{Result, cell::Size, server::COUNT};

/// Connections that warm a cache.
const WARMERS: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(10);

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// One keep-alive connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects.
    pub(crate) fn new(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The body of a 200; anything else is an error.
    pub(crate) fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        let Answer { status, body } = self.request("GET", path, &[])?;
        if status == 200 { Ok(body) } else { Err(format!("GET {path}: {status}").into()) }
    }

    /// Asks for a path with an empty body, and waits for the whole answer.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Result<Answer> {
        // The Host of wrk, by which some caches tell their entries apart.
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
                return Err(format!("{method} {path}: cut off").into());
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

/// Reads jobs `0..count` of this size once each, and checks the bodies.
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
            warmer.join().unwrap_or_else(|_| Err("a warming thread died".into()))
        })
    })
}

/// As `requests.lua` asks for it.
fn path(size: Size, number: usize) -> String {
    format!("/jobs/{}{:06x}-0000-4000-8000-{number:012x}", size.prefix(), number % 0x0100_0000)
}

/// Requests that the upstream has answered so far.
pub(crate) fn upstream_count(upstream: SocketAddr) -> Result<u64> {
    let body = Client::new(upstream)?.get(COUNT)?;
    Ok(String::from_utf8_lossy(&body).parse()?)
}
