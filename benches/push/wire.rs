//! A client connection with as little of HTTP/1.1 as the clients need, so that ten thousand of them
//! leave the processor to the server.

use std::net::SocketAddr;

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::Result;

/// Most bytes of a head, a body or an event.
const MAX_BYTES: usize = 65_536;

/// A connection, and the bytes that were read but not used yet.
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// The part of a response head that the clients use.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) etag: Option<String>,
    length: Length,
}

/// How the length of a body is given.
#[derive(Clone, Copy, Debug)]
enum Length {
    Known(usize),
    Chunked,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    pub(crate) async fn send(&mut self, request: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(request).await?)
    }

    /// Reads the head of a response.
    pub(crate) async fn head(&mut self) -> Result<Head> {
        let head = self.until(b"\r\n\r\n").await?;
        Head::parse(std::str::from_utf8(&head)?)
    }

    /// Reads the body that belongs to a head.
    pub(crate) async fn body(&mut self, head: &Head) -> Result<Vec<u8>> {
        match head.length {
            _ if head.status == 304 => Ok(Vec::new()),
            Length::Known(bytes) => self.exactly(bytes).await,
            Length::Chunked => self.chunks().await,
        }
    }

    /// Reads the next event of a stream. The frames of chunks are left in, because an event is never
    /// split where the clients look.
    pub(crate) async fn event(&mut self) -> Result<Vec<u8>> {
        self.until(b"\n\n").await
    }

    async fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n").await?;
            let size = usize::from_str_radix(std::str::from_utf8(&line)?.trim(), 16)?;
            let chunk = self.exactly(size + 2).await?;
            if size == 0 {
                return Ok(body);
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }

    /// Takes everything up to and including this mark.
    async fn until(&mut self, mark: &[u8]) -> Result<Vec<u8>> {
        loop {
            if let Some(at) = memmem::find(&self.buffer, mark) {
                return Ok(self.take(at + mark.len()));
            }
            self.fill().await?;
        }
    }

    async fn exactly(&mut self, bytes: usize) -> Result<Vec<u8>> {
        while self.buffer.len() < bytes {
            self.fill().await?;
        }
        Ok(self.take(bytes))
    }

    fn take(&mut self, bytes: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(bytes);
        std::mem::replace(&mut self.buffer, rest)
    }

    async fn fill(&mut self) -> Result<()> {
        if self.buffer.len() > MAX_BYTES {
            return Err("a response is too long".into());
        }
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err("the server has closed the connection".into()),
            _ => Ok(()),
        }
    }
}

impl Head {
    fn parse(text: &str) -> Result<Self> {
        let status = text.split(' ').nth(1).ok_or("a response without a status")?.parse()?;
        let mut head = Self { status, etag: None, length: Length::Known(0) };
        for (name, value) in text.lines().filter_map(|line| line.split_once(": ")) {
            if name.eq_ignore_ascii_case("etag") {
                head.etag = Some(value.to_owned());
            } else if name.eq_ignore_ascii_case("content-length") {
                head.length = Length::Known(value.parse()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.length = Length::Chunked;
            }
        }
        Ok(head)
    }
}

/// Returns the version that a body or an event names.
pub(crate) fn version(bytes: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"version\":";
    let digits = &bytes[memmem::find(bytes, NAME)? + NAME.len()..];
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}
