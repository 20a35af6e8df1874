//! Reads the header of the PROXY protocol, versions 1 and 2. A load balancer that forwards bytes
//! names its client in it.
//!
//! Source: <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>. "The receiver MUST be
//! configured to only receive the protocol described in this specification and MUST not try to
//! guess whether the protocol header is present or not" (section 2): with `server.proxy_protocol`
//! every connection must have the header.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use ppp::{HeaderResult, PartialResult as _, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::connection_metrics::{ConnectionError, Result};

/// "The maximum line lengths the receiver must support including the CRLF" (2.1).
const MAX_V1_BYTES: usize = 107;
/// Length of the signature, the version, the family and the length field (2.2).
const V2_PREFIX: usize = 16;
/// Upper limit of the length field: "receivers [..] may choose to [..] reject" larger headers
/// (2.2). The addresses of unix sockets take 216 bytes, and the fields after them, such as the
/// names of TLS, take a few more.
const MAX_V2_BYTES: usize = 4096;

/// The source of a connection, as the balancer states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxySource {
    /// The balancer itself, for a health check.
    Connection,
    /// A client of the balancer.
    Client(SocketAddr),
    /// A client of the balancer without an IP address: it did not connect by TCP.
    Unknown,
}

/// Reads the header and not a byte more. The caller limits the time.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<ProxySource> {
    let invalid = |why: String| Err(ConnectionError::ProxyHeader(why));
    let mut header = Vec::new();
    extend(stream, &mut header, v2::PROTOCOL_PREFIX.len()).await?;
    if header == v2::PROTOCOL_PREFIX {
        extend(stream, &mut header, V2_PREFIX).await?;
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if length > MAX_V2_BYTES {
            return invalid(format!("its length of {length} bytes is more than {MAX_V2_BYTES}"));
        }
        extend(stream, &mut header, V2_PREFIX + length).await?;
    }
    // Version 1 is read byte by byte: only the line end shows where the header ends, and the bytes
    // after it are not for this parser.
    while !header.starts_with(v2::PROTOCOL_PREFIX) && !header.ends_with(b"\n") {
        if !v1::PROTOCOL_PREFIX.bytes().zip(&header).all(|(expected, byte)| expected == *byte) {
            return invalid("it begins with the signature of neither version".to_owned());
        }
        if header.len() == MAX_V1_BYTES {
            return invalid(format!("no line end within {MAX_V1_BYTES} bytes"));
        }
        header.push(stream.read_u8().await?);
    }
    let parsed = HeaderResult::parse(&header);
    if parsed.is_incomplete() {
        return invalid("it is too short".to_owned());
    }
    match parsed {
        HeaderResult::V1(Ok(header)) => Ok(v1_source(header.addresses)),
        HeaderResult::V2(Ok(header)) => Ok(v2_source(&header)),
        HeaderResult::V1(Err(error)) => invalid(error.to_string()),
        HeaderResult::V2(Err(error)) => invalid(error.to_string()),
    }
}

/// Reads until the header has this length.
async fn extend<S: AsyncRead + Unpin>(
    stream: &mut S,
    header: &mut Vec<u8>,
    length: usize,
) -> io::Result<()> {
    let read = header.len();
    header.resize(length, 0);
    stream.read_exact(&mut header[read..]).await.map(drop)
}

/// `UNKNOWN` stands for protocols other than TCP, and "the receiver must ignore anything presented
/// before the CRLF" (2.1).
fn v1_source(addresses: v1::Addresses) -> ProxySource {
    match addresses {
        v1::Addresses::Tcp4(ip) => client(ip.source_address, ip.source_port),
        v1::Addresses::Tcp6(ip) => client(ip.source_address, ip.source_port),
        v1::Addresses::Unknown => ProxySource::Unknown,
    }
}

/// "LOCAL: [..] The receiver must accept this connection as valid and must use the real connection
/// endpoints and discard the protocol block including the family" (2.2).
fn v2_source(header: &v2::Header<'_>) -> ProxySource {
    match (header.command, &header.addresses) {
        (v2::Command::Local, _) => ProxySource::Connection,
        (_, v2::Addresses::IPv4(ip)) => client(ip.source_address, ip.source_port),
        (_, v2::Addresses::IPv6(ip)) => client(ip.source_address, ip.source_port),
        (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => ProxySource::Unknown,
    }
}

fn client(ip: impl Into<IpAddr>, port: u16) -> ProxySource {
    ProxySource::Client(SocketAddr::new(ip.into(), port))
}

#[cfg(test)]
mod tests {
    use super::{ConnectionError, MAX_V1_BYTES, ProxySource, read};

    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    /// Reads a header with a request after it, and checks that the request is left unread.
    #[track_caller]
    fn read_of(header: &[u8]) -> Result<ProxySource, String> {
        let bytes = [header, b"GET / HTTP/1.1\r\n"].concat();
        let mut rest = bytes.as_slice();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let got = runtime.block_on(read(&mut rest));
        if got.is_ok() {
            assert_eq!(rest, b"GET / HTTP/1.1\r\n", "{header:?}");
        }
        got.map_err(|error| error.to_string())
    }

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [V2, &[command, family], &length, addresses].concat()
    }

    fn from(address: &str) -> ProxySource {
        ProxySource::Client(address.parse().unwrap())
    }

    #[test]
    fn a_header_of_version_1_names_the_source() {
        assert_eq!(read_of(b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n"), Ok(from("1.2.3.4:9")));
        assert_eq!(read_of(b"PROXY TCP6 fe80::1 ::1 9 10\r\n"), Ok(from("[fe80::1]:9")));
        assert_eq!(read_of(b"PROXY UNKNOWN\r\n"), Ok(ProxySource::Unknown));
        assert_eq!(read_of(b"PROXY UNKNOWN ::1 ::1 9 10\r\n"), Ok(ProxySource::Unknown));
    }

    #[test]
    fn a_header_of_version_2_names_the_source() {
        let four = [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10];
        assert_eq!(read_of(&v2(0x21, 0x11, &four)), Ok(from("1.2.3.4:9")));
        let with_more = [&four[..], &[4, 0, 1, 42]].concat();
        assert_eq!(read_of(&v2(0x21, 0x11, &with_more)), Ok(from("1.2.3.4:9")));
        let six = [&[0xfe; 16][..], &[0; 16], &[0, 9, 0, 10]].concat();
        assert_eq!(
            read_of(&v2(0x21, 0x21, &six)),
            Ok(from("[fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe]:9"))
        );
        assert_eq!(
            read_of(&v2(0x20, 0x11, &four)),
            Ok(ProxySource::Connection),
            "a check of the balancer itself"
        );
        assert_eq!(read_of(&v2(0x20, 0x00, &[])), Ok(ProxySource::Connection));
        assert_eq!(
            read_of(&v2(0x21, 0x31, &[b'a'; 216])),
            Ok(ProxySource::Unknown),
            "unix sockets"
        );
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = [b"PROXY TCP4 ", &b"1".repeat(MAX_V1_BYTES)[..]].concat();
        for header in [
            &b""[..],
            b"POST / HTTP/1.1\r\n",
            b"PROXY\r\n 23456",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 9\r\n",
            b"PROXY TCP4 ::1 ::1 9 10\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 9 99999\r\n",
            &long,
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x2f, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 3]),
            &v2(0x21, 0x11, &[0; 4097]),
        ] {
            assert!(read_of(header).is_err(), "{header:?}");
        }
    }

    #[test]
    fn a_connection_that_ends_within_it_says_so() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for header in [&b"PROXY"[..], b"PROXY TCP4 1.2.3.4", V2, &v2(0x21, 0x11, &[0; 4])[..18]] {
            let got = runtime.block_on(read(&mut &header[..]));
            assert!(matches!(got, Err(ConnectionError::Io(_))), "{header:?}");
        }
    }
}
