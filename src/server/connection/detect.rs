//! Detects the protocol of a connection from its first bytes.
//!
//! hyper-util's `auto` is not used: it waits for the 24 bytes of an HTTP/2 preface without any time
//! limit, before hyper's own header timeout begins.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use super::layer::{Layer, Layered};

/// "The client connection preface starts with a sequence of 24 octets" RFC 9113 3.4
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol of a client connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientProtocol {
    Http1,
    Http2,
}

/// Reads until the protocol is known. The returned stream yields the bytes that were read once
/// more. The caller limits the time. A connection that ends early counts as HTTP/1: hyper then ends
/// it without a response.
pub(super) async fn detect<S>(mut stream: S) -> io::Result<(ClientProtocol, RewoundStream<S>)>
where
    S: AsyncRead + Unpin,
{
    let mut read = [0; PREFACE.len()];
    let mut filled = 0;
    let protocol = loop {
        let count = stream.read(&mut read[filled..]).await?;
        filled += count;
        match protocol_of(&read[..filled]) {
            Some(protocol) => break protocol,
            None if count == 0 => break ClientProtocol::Http1,
            None => {}
        }
    };
    Ok((protocol, Layered(Rewound { prefix: read, next: 0, filled, stream })))
}

/// Returns the protocol that begins with these bytes, once that is certain.
fn protocol_of(read: &[u8]) -> Option<ClientProtocol> {
    if !PREFACE.starts_with(read) {
        return Some(ClientProtocol::Http1);
    }
    (read.len() == PREFACE.len()).then_some(ClientProtocol::Http2)
}

/// A stream that yields bytes once more that were already read from it.
pub(super) type RewoundStream<S> = Layered<Rewound<S>>;

/// The layer of [`RewoundStream`].
#[derive(Debug)]
pub(super) struct Rewound<S> {
    prefix: [u8; PREFACE.len()],
    next: usize,
    filled: usize,
    stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Layer for Rewound<S> {
    type Below = S;

    fn below(&self) -> &S {
        &self.stream
    }

    fn below_mut(&mut self) -> Pin<&mut S> {
        Pin::new(&mut self.stream)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.next == self.filled {
            return self.below_mut().poll_read(cx, buf);
        }
        let rest = &self.prefix[self.next..self.filled];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.next += count;
        // Also read the bytes that follow: a head that arrived whole then reaches hyper whole, and
        // is not first parsed in part. An error of the stream shows again at the next read.
        let _ = self.below_mut().poll_read(cx, buf);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientProtocol, PREFACE, protocol_of};

    #[test]
    fn a_protocol_is_told_from_as_few_bytes_as_tell_it() {
        for length in 0..PREFACE.len() {
            assert_eq!(protocol_of(&PREFACE[..length]), None, "{length}");
        }
        assert_eq!(protocol_of(PREFACE), Some(ClientProtocol::Http2));
        for other in [&b"G"[..], b"PU", b"PRI /", b"PRI * HTTP/1.1", b"\x16\x03"] {
            assert_eq!(protocol_of(other), Some(ClientProtocol::Http1), "{other:?}");
        }
    }
}
