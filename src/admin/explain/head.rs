//! The head of a client's request, as an operator gives it.

use hyper::{
    Request,
    http::{HeaderName, HeaderValue, Method, Uri},
};

/// Bytes of a head.
pub(in crate::admin) const MAX_HEAD: usize = 32 << 10;
/// Fields of a head.
const MAX_FIELDS: usize = 200;

/// Reads it; `path` is where it goes that does not say. An error says what is wrong with which line,
/// and nothing of what stands there.
pub(super) fn parse(head: &[u8], path: impl FnOnce() -> String) -> Result<Request<()>, String> {
    let text = std::str::from_utf8(head).map_err(|_| "the head is not UTF-8".to_owned())?;
    let mut lines = text.lines().enumerate().peekable();
    let first = lines.next_if(|(_, line)| is_request_line(line));
    let (method, uri) = match first {
        Some((_, line)) => target(line)?,
        None => (Method::GET, uri(&path())?),
    };
    let mut request = Request::new(());
    (*request.method_mut(), *request.uri_mut()) = (method, uri);
    for (at, line) in lines.take_while(|(_, line)| !line.is_empty()) {
        if request.headers().len() >= MAX_FIELDS {
            return Err(format!("the head has more than {MAX_FIELDS} fields"));
        }
        let (name, value) = field(line)
            .ok_or_else(|| format!("line {} of the head is not `Name: value`", at + 1))?;
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

/// `GET /path HTTP/1.1`, where the version may be missing. A field has no space before its colon.
fn is_request_line(line: &str) -> bool {
    line.split_once(' ').is_some_and(|(method, _)| {
        !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase())
    })
}

fn target(line: &str) -> Result<(Method, Uri), String> {
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default();
    let method = method.parse().map_err(|_| "line 1 of the head names no method".to_owned())?;
    Ok((method, uri(words.next().unwrap_or_default())?))
}

fn uri(target: &str) -> Result<Uri, String> {
    target.parse().map_err(|_| "line 1 of the head names no path".to_owned())
}

fn field(line: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = line.split_once(':')?;
    let value = HeaderValue::from_str(value.trim()).ok()?;
    Some((name.parse().ok()?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &str, want: Result<&str, &str>) {
        let got = parse(head.as_bytes(), || "/jobs/x".into()).map(|request| {
            let fields = request
                .headers()
                .iter()
                .map(|(name, value)| format!(" {name}={}", value.to_str().unwrap()));
            format!("{} {}{}", request.method(), request.uri(), fields.collect::<String>())
        });
        assert_eq!(got.as_deref(), want.map_err(ToOwned::to_owned).as_ref().copied(), "{head:?}");
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
    }

    #[test]
    fn what_is_wrong_with_a_head_is_told_without_what_stands_there() {
        check("Host: a\nsecret", Err("line 2 of the head is not `Name: value`"));
        check("a secret: b", Err("line 1 of the head is not `Name: value`"));
        check("GET  secret", Err("line 1 of the head names no path"));
        let many = "a: b\n".repeat(MAX_FIELDS + 1);
        check(&many, Err("the head has more than 200 fields"));
    }
}
