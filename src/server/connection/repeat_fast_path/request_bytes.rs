//! Recognises a plain GET in raw bytes. Bytes that could be read in two ways are not recognised.
//!
//! This module reads request lines and finds the ends of heads. It reads no header fields; hyper
//! does.

/// The parts of a request line before and after the path.
pub(super) const REQUEST_LINE: (&[u8], &[u8]) = (b"GET ", b" HTTP/1.1\r\n");

/// Returns the path of a request line if every parser reads it the same way: it has no query and no
/// percent-encoding.
pub(super) fn plain_get_path(line: &[u8]) -> Option<&str> {
    let path = line.strip_prefix(REQUEST_LINE.0)?.strip_suffix(REQUEST_LINE.1)?;
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'/' | b'-');
    // No early exit, so that several bytes are checked at a time.
    let invalid = path.iter().fold(0, |invalid, byte| invalid | u8::from(!is_plain(*byte)));
    let path = path.starts_with(b"/").then_some(path).filter(|_| invalid == 0)?;
    std::str::from_utf8(path).ok()
}

/// Whether the bytes begin as a GET and end in the only empty line among them, whatever a parser
/// accepts as a line end.
pub(super) fn is_single_get(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_suffix(b"\r\n\r\n").filter(|rest| rest.starts_with(b"GET "))
    else {
        return false;
    };
    let equals = |byte: &u8, other: u8| u8::from(*byte == other);
    let next = rest.iter().skip(1).zip(rest.iter().skip(2));
    // Looks at each line feed and the two bytes after it. No early exit, as above.
    let empty = rest.iter().zip(next).fold(0, |empty, (end, (first, second))| {
        let line = equals(first, b'\n') | equals(first, b'\r') & equals(second, b'\n');
        empty | equals(end, b'\n') & line
    });
    empty == 0 && !rest.ends_with(b"\n")
}

#[cfg(test)]
mod tests {
    use super::{is_single_get, plain_get_path};

    #[test]
    fn a_path_is_read_from_one_form_of_a_request_line() {
        for (line, want) in [
            ("GET /jobs/7 HTTP/1.1\r\n", Some("/jobs/7")),
            ("GET /a.b_c~d-E//x HTTP/1.1\r\n", Some("/a.b_c~d-E//x")),
            ("GET /jobs/7?a HTTP/1.1\r\n", None),
            ("GET /jobs/%37 HTTP/1.1\r\n", None),
            ("GET /jobs/7#a HTTP/1.1\r\n", None),
            ("GET  /jobs/7 HTTP/1.1\r\n", None),
            ("GET /jobs/7  HTTP/1.1\r\n", None),
            ("GET /jobs/7 HTTP/1.0\r\n", None),
            ("GET /jobs/7 HTTP/1.1\n", None),
            ("GET /jobs/7 HTTP/1.1\r\nX: HTTP/1.1\r\n", None),
            ("\r\nGET /jobs/7 HTTP/1.1\r\n", None),
            ("HEAD /jobs/7 HTTP/1.1\r\n", None),
            ("get /jobs/7 HTTP/1.1\r\n", None),
            ("GET http://a/jobs/7 HTTP/1.1\r\n", None),
            ("GET * HTTP/1.1\r\n", None),
            ("GET  HTTP/1.1\r\n", None),
            ("GET /\u{e9} HTTP/1.1\r\n", None),
        ] {
            assert_eq!(plain_get_path(line.as_bytes()), want, "{line:?}");
        }
    }

    #[test]
    fn a_head_alone_ends_in_its_only_empty_line() {
        for (bytes, want) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nA: b\r\nC: d\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nA: b\n\r\n\r\n", false),
            ("GET / HTTP/1.1\n\nGET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\n\r\nGET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\r\n\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nA: b\r\n", false),
            ("GET / HTTP/1.1\r\n\n", false),
            ("POST / HTTP/1.1\r\n\r\n", false),
            ("T / HTTP/1.1\r\n\r\n", false),
            ("", false),
            ("\r\n\r\n", false),
        ] {
            assert_eq!(is_single_get(bytes.as_bytes()), want, "{bytes:?}");
        }
    }
}
