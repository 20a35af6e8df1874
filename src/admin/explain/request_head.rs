//! Parser for the head of a client's request, as an operator pastes it.

use hyper::{
    Request, Version,
    http::{HeaderName, HeaderValue, Method, Uri},
};

/// Parses a head; `path` is the path if the head has no request line. An error names the line and
/// the remedy, but never quotes the line, because it may contain a credential.
///
/// Without a version the request is HTTP/1.0, which needs no `Host`.
pub(super) fn parse(head: &[u8], path: impl FnOnce() -> String) -> Result<Request<()>, String> {
    let text =
        std::str::from_utf8(head).map_err(|error| not_text_error(head, error.valid_up_to()))?;
    let mut lines = sent_lines(text).peekable();
    let first = lines.next_if(|(_, line)| is_request_line(line));
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_10;
    match first {
        Some((at, line)) => parse_request_line(at, line, &mut request)?,
        None => *request.uri_mut() = path().parse().map_err(|_| no_path_error(1))?,
    }
    for (at, line) in lines.take_while(|(_, line)| !line.is_empty()) {
        let (name, value) = parse_field(line).ok_or_else(|| {
            format!(
                "line {at} of the head is not `Name: value`; write one field per line, such as `Host: \
                 api.example`; the first line may be a request line, such as `GET /jobs/x HTTP/1.1`"
            )
        })?;
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

/// Returns the lines of the head with their numbers. `curl -v` marks sent lines with `>`; its other
/// lines, about the response and the connection, are skipped.
fn sent_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_from_curl = text.lines().any(|line| line.starts_with('>'));
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    lines.filter_map(move |(at, line)| {
        if !is_from_curl {
            return Some((at, line));
        }
        let line = line.strip_prefix('>')?;
        Some((at, line.strip_prefix(' ').unwrap_or(line)))
    })
}

/// Whether a line is a request line such as `GET /path HTTP/1.1`, with or without the version. A
/// field is not one, because it has no space before its colon. A lower-case method counts if a
/// target follows: it is a valid method with another name.
fn is_request_line(line: &str) -> bool {
    let Some((method, rest)) = line.split_once(' ') else { return false };
    let is_method = |byte: u8| byte.is_ascii_alphabetic() || byte == b'-';
    let is_upper = !method.bytes().any(|byte| byte.is_ascii_lowercase());
    let has_target = ["/", "*", "http://", "https://"].iter().any(|start| rest.starts_with(start));
    !method.is_empty() && method.bytes().all(is_method) && (is_upper || has_target)
}

fn parse_request_line(at: usize, line: &str, request: &mut Request<()>) -> Result<(), String> {
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default();
    let method: Method = method.parse().map_err(|_| {
        format!("line {at} of the head has no valid method; begin it with one, such as GET")
    })?;
    let uri: Uri = words.next().unwrap_or_default().parse().map_err(|_| no_path_error(at))?;
    let version = match words.next() {
        None | Some("HTTP/1.0") => Version::HTTP_10,
        Some("HTTP/1.1") => Version::HTTP_11,
        Some("HTTP/2" | "HTTP/2.0") => Version::HTTP_2,
        Some(_) => {
            return Err(format!(
                "line {at} of the head ends in a version that is not supported; write HTTP/1.1, or \
                 nothing after the path"
            ));
        }
    };
    (*request.method_mut(), *request.uri_mut(), *request.version_mut()) = (method, uri, version);
    Ok(())
}

fn no_path_error(at: usize) -> String {
    format!("line {at} of the head has no valid path; write it as `GET /jobs/x HTTP/1.1`")
}

fn not_text_error(head: &[u8], valid: usize) -> String {
    let at = head[..valid].split(|byte| *byte == b'\n').count();
    format!("line {at} of the head is not UTF-8; send the head as text, or without that field")
}

fn parse_field(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let value = HeaderValue::from_bytes(value.trim().as_bytes()).ok()?;
    Some((name.parse().ok()?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `expected` is the request, or how the error begins.
    #[track_caller]
    fn check(head: &str, expected: Result<&str, &str>) {
        let got = parse(head.as_bytes(), || "/jobs/x".into()).map(|request| {
            let fields = request
                .headers()
                .iter()
                .map(|(name, value)| format!(" {name}={}", value.to_str().unwrap()));
            format!("{} {}{}", request.method(), request.uri(), fields.collect::<String>())
        });
        match (got, expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{head:?}"),
            (Err(got), Err(expected)) => {
                assert!(got.starts_with(expected) && !got.contains("secret"), "{head:?}: {got}");
                assert!(got.contains("; "), "{got} names no remedy");
            }
            (got, expected) => panic!("{head:?}: {got:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_head_is_read_as_it_is_copied() {
        check("", Ok("GET /jobs/x"));
        check("Host: a\nCookie: b=c", Ok("GET /jobs/x host=a cookie=b=c"));
        check(
            "HEAD /api/v1/jobs/x HTTP/1.1\r\nHost: a\r\n\r\nbody",
            Ok("HEAD /api/v1/jobs/x host=a"),
        );
        check("GET /jobs/x?t=1", Ok("GET /jobs/x?t=1"));
        check("HOST: a", Ok("GET /jobs/x host=a"));
        check("get /jobs/x HTTP/1.1\nHost: a", Ok("get /jobs/x host=a"));
        check("GET * HTTP/1.1", Ok("GET *"));
        check("CONNECT a:1 HTTP/1.1\nHost: a:1", Ok("CONNECT a:1 host=a:1"));
    }

    #[test]
    fn what_curl_shows_is_read_as_far_as_it_was_sent() {
        check("> GET /jobs/x HTTP/1.1\n> Host: a\n>\n", Ok("GET /jobs/x host=a"));
        let all = "* Connected to a port 80\n> HEAD /jobs/x HTTP/2\r\n> Host: a\r\n> \r\n* done\n\
                   < HTTP/1.1 200 OK\n< age: 1\n{\"id\": 1}";
        check(all, Ok("HEAD /jobs/x host=a"));
        check("> Host: a\n> secret", Err("line 2 of the head is not `Name: value`"));
    }

    #[test]
    fn the_version_is_the_one_that_is_said() {
        let version = |head: &str| parse(head.as_bytes(), || "/jobs/x".into()).unwrap().version();
        assert_eq!(version("Host: a"), Version::HTTP_10);
        assert_eq!(version("GET /jobs/x"), Version::HTTP_10);
        assert_eq!(version("GET /jobs/x HTTP/1.1"), Version::HTTP_11);
        assert_eq!(version("GET /jobs/x HTTP/2"), Version::HTTP_2);
    }

    #[test]
    fn what_is_wrong_with_a_head_is_told_without_what_stands_there() {
        check("Host: a\nsecret", Err("line 2 of the head is not `Name: value`"));
        check("a secret: b", Err("line 1 of the head is not `Name: value`"));
        check("GET  secret", Err("line 1 of the head has no valid path"));
        check(
            "GET /jobs/x secret",
            Err("line 1 of the head ends in a version that is not supported"),
        );
        let error = parse(b"a: b\nc: \xff", || "/jobs/x".into()).unwrap_err();
        assert!(error.starts_with("line 2 of the head is not UTF-8"), "{error}");
    }
}
