//! Location targets: the paths of our own origin that the response to a write names.
//!
//! RFC 9111 4.4: "A cache MUST invalidate the target URI [..] when it receives a non-error status
//! code in response to an unsafe request method", and "A cache MAY invalidate other URIs [..]. In
//! particular, the URI(s) in the Location and Content-Location response header fields (if present)
//! are candidates for invalidation". The target URI is invalidated elsewhere, whatever the status.
//! This module finds the other two.

use hyper::{
    HeaderMap, Request, StatusCode,
    header::{CONTENT_LOCATION, FORWARDED, HOST, HeaderName, HeaderValue, LOCATION},
};
use url::{ParseError, Url};

/// The host name that a gateway in front of us was called by.
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The port that the gateway was called at.
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// The prefix that the gateway took off the path. Frameworks put it back into the URLs that they
/// make.
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The target of a request, to resolve and compare URLs with. It is taken from the head that goes
/// upstream: if the request target was absolute, `Host` already names its host.
#[derive(Clone, Debug)]
pub struct WriteTarget {
    /// Path and query.
    path: String,
    /// The names of our origin: those that the client, gateways, and we ourselves towards the
    /// upstream use.
    authorities: Vec<String>,
    /// The ports that gateways were called at.
    ports: Vec<u16>,
    /// The prefixes that gateways took off the path.
    prefixes: Vec<String>,
}

impl WriteTarget {
    /// Returns the target of a request that is forwarded to `upstream`, a `host:port`.
    pub fn of<B>(request: &Request<B>, upstream: &str) -> Self {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let headers = request.headers();
        let hosts = [HOST, FORWARDED_HOST].into_iter().flat_map(|name| members(headers, name));
        let forwarded = members(headers, FORWARDED).filter_map(forwarded_host);
        let own = [upstream.to_owned()];
        let authorities = hosts.chain(forwarded).map(str::to_owned).chain(own).collect();
        let ports = members(headers, FORWARDED_PORT).filter_map(|port| port.parse().ok());
        let ports = ports.collect();
        Self { path, authorities, ports, prefixes: prefixes(headers) }
    }

    /// Returns the paths of this origin that a response names.
    ///
    /// A response that reports an error names none, and paths of other origins never count: "a
    /// cache MUST NOT trigger an invalidation under these conditions if the origin (Section 4.3.1
    /// of \[HTTP\]) of the URI to be invalidated differs from that of the target URI [..]. This
    /// helps prevent denial-of-service attacks." RFC 9111 4.4. The scheme is ignored, because TLS
    /// may end in front of us.
    pub fn named_by(&self, status: StatusCode, headers: &HeaderMap) -> Vec<String> {
        if !(status.is_success() || status.is_redirection()) {
            return Vec::new();
        }
        let lines = [LOCATION, CONTENT_LOCATION].into_iter().flat_map(|name| headers.get_all(name));
        lines
            .filter_map(|line| self.resolve(line))
            .flat_map(|path| self.with_and_without_prefix(path))
            .collect()
    }

    fn resolve(&self, value: &HeaderValue) -> Option<String> {
        let reference = String::from_utf8_lossy(value.as_bytes());
        let url = match Url::parse(&reference) {
            Err(ParseError::RelativeUrlWithoutBase) => self.base()?.join(&reference).ok()?,
            other => other.ok()?,
        };
        let mut own = self.authorities.iter().filter_map(|authority| origin(authority));
        let same =
            matches!(url.scheme(), "http" | "https") && own.any(|own| self.is_same(&own, &url));
        same.then(|| url.path().to_owned())
    }

    fn is_same(&self, own: &Url, url: &Url) -> bool {
        let (own_host, own_port) = host_and_port(own);
        let (host, port) = host_and_port(url);
        let forwarded = || port.is_some_and(|port| self.ports.contains(&port));
        own_host == host && (own_port == port || forwarded())
    }

    /// Returns a path as it is, and also without each prefix that a gateway may have taken off.
    fn with_and_without_prefix(&self, path: String) -> Vec<String> {
        let rests = self.prefixes.iter().filter_map(|prefix| path.strip_prefix(prefix.as_str()));
        let rests: Vec<_> = rests.filter(|rest| rest.starts_with('/')).map(str::to_owned).collect();
        [path].into_iter().chain(rests).collect()
    }

    fn base(&self) -> Option<Url> {
        let origin = self.authorities.iter().find_map(|authority| origin(authority))?;
        // Not by `join`: a path that begins with `//` would name another host there.
        Url::parse(&format!("{}{}", origin.as_str().trim_end_matches('/'), self.path)).ok()
    }
}

/// Returns the members of every line of a list field, trimmed.
fn members(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Returns the `host` of one hop (RFC 7239 5.3).
fn forwarded_host(hop: &str) -> Option<&str> {
    let mut pairs = hop.split(';').filter_map(|pair| pair.split_once('='));
    let (_, host) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("host"))?;
    Some(host.trim().trim_matches('"'))
}

/// Returns each gateway's prefix, and all of them joined: the gateway that strips first names its
/// own first.
fn prefixes(headers: &HeaderMap) -> Vec<String> {
    let each = members(headers, FORWARDED_PREFIX).map(|prefix| prefix.trim_end_matches('/'));
    let each: Vec<_> = each.filter(|prefix| !prefix.is_empty()).collect();
    let all = (each.len() > 1).then(|| each.concat());
    each.iter().map(|prefix| (*prefix).to_owned()).chain(all).collect()
}

fn origin(authority: &str) -> Option<Url> {
    let is_authority = !authority.is_empty() && !authority.contains(['/', '?', '#', '\\', '@']);
    is_authority.then(|| Url::parse(&format!("http://{authority}")).ok()).flatten()
}

/// Returns the host, and the port unless it is the default of a scheme: `Host: a` may stand for
/// both.
fn host_and_port(url: &Url) -> (Option<&str>, Option<u16>) {
    (url.host_str(), url.port().filter(|port| !matches!(port, 80 | 443)))
}

#[cfg(test)]
mod tests {
    use hyper::{Request, Response};

    use super::WriteTarget;

    /// Checks the path that `value` names in the response to `POST <path>` with these headers.
    #[track_caller]
    fn check_at(path: &str, host: &str, forwarded: &str, value: &str, want: Option<&str>) {
        let mut request = Request::post(path);
        for (name, value) in [("host", host), ("x-forwarded-host", forwarded)] {
            if !value.is_empty() {
                request = request.header(name, value);
            }
        }
        let target = WriteTarget::of(&request.body(()).unwrap(), "127.0.0.1:8000");
        for name in ["location", "content-location"] {
            let answer = Response::builder().status(201).header(name, value).body(()).unwrap();
            let named = target.named_by(answer.status(), answer.headers());
            assert_eq!(named.first().map(String::as_str), want, "{path} {host} {value}");
        }
    }

    #[track_caller]
    fn check(value: &str, want: Option<&str>) {
        check_at("/jobs/", "Jobs.example", "front.example, jobs.internal:81", value, want);
    }

    #[test]
    fn references_are_resolved_against_the_target() {
        check("17", Some("/jobs/17"));
        check("./17?a=b#c", Some("/jobs/17"));
        check("../jobs/17", Some("/jobs/17"));
        check("/jobs/17", Some("/jobs/17"));
        check("?page=2", Some("/jobs/"));
        check_at("/jobs", "a", "", "jobs/17", Some("/jobs/17"));
        check_at("/jobs?x=/y/", "a", "", "17", Some("/17"));
        check_at("//jobs", "a", "", "/jobs/17", Some("/jobs/17"));
        check_at("/jobs/", "", "", "17", Some("/jobs/17"));
        check_at("/jobs/", "not a host", "", "17", Some("/jobs/17"));
    }

    #[test]
    fn absolute_urls_count_if_they_are_ours() {
        for authority in ["jobs.example", "JOBS.example:80", "jobs.example:443", "127.0.0.1:8000"] {
            check(&format!("http://{authority}/jobs/17"), Some("/jobs/17"));
        }
        for ours in [
            "https://jobs.example",
            "//jobs.example",
            "http://front.example",
            "https://jobs.internal:81",
        ] {
            check(&format!("{ours}/jobs/17"), Some("/jobs/17"));
        }
        check_at("/jobs", "[::1]:8080", "", "http://[0:0::1]:8080/jobs/17", Some("/jobs/17"));
    }

    #[test]
    fn other_origins_and_other_schemes_do_not_count() {
        for other in
            ["http://evil.example", "//evil.example", "\\\\evil.example", "http://jobs.example:81"]
        {
            check(&format!("{other}/jobs/17"), None);
        }
        for other in
            ["ftp://jobs.example/jobs/17", "mailto:jobs.example/jobs/17", "http://", "http://a b/"]
        {
            check(other, None);
        }
        check_at("/jobs", "a@evil.example", "", "http://evil.example/jobs/17", None);
    }

    #[track_caller]
    fn check_behind(gateway: (&str, &str), value: &str, want: &[&str]) {
        let request = Request::post("/jobs").header("host", "a").header(gateway.0, gateway.1);
        let target = WriteTarget::of(&request.body(()).unwrap(), "127.0.0.1:8000");
        let answer = Response::builder().status(201).header("location", value).body(()).unwrap();
        assert_eq!(target.named_by(answer.status(), answer.headers()), want, "{gateway:?} {value}");
    }

    #[test]
    fn what_a_gateway_said_of_itself_counts() {
        let forwarded = ("forwarded", "for=1.2.3.4;Host=\"front:81\";proto=https, host=inner");
        check_behind(forwarded, "https://front:81/jobs/7", &["/jobs/7"]);
        check_behind(forwarded, "https://inner/jobs/7", &["/jobs/7"]);
        check_behind(forwarded, "https://1.2.3.4/jobs/7", &[]);
        check_behind(("x-forwarded-port", "8443"), "https://a:8443/jobs/7", &["/jobs/7"]);
        check_behind(("x-forwarded-port", "8443"), "https://a:8444/jobs/7", &[]);
        check_behind(("x-forwarded-port", "8443"), "https://b:8443/jobs/7", &[]);
    }

    #[test]
    fn a_path_counts_with_and_without_the_prefix_that_a_gateway_took_off() {
        let prefix = "x-forwarded-prefix";
        check_behind((prefix, "/api/"), "/api/jobs/7", &["/api/jobs/7", "/jobs/7"]);
        check_behind((prefix, "/api"), "/apis/jobs/7", &["/apis/jobs/7"]);
        check_behind((prefix, ""), "/jobs/7", &["/jobs/7"]);
        let all = ["/a/b/jobs/7", "/b/jobs/7", "/jobs/7"];
        check_behind((prefix, "/a, /b"), "/a/b/jobs/7", &all);
    }

    #[test]
    fn an_error_names_nothing() {
        let target = WriteTarget::of(&Request::post("/jobs").body(()).unwrap(), "a");
        for (status, want) in [(200, 1), (201, 1), (303, 1), (400, 0), (409, 0), (500, 0)] {
            let answer =
                Response::builder().status(status).header("location", "/jobs/17").body(()).unwrap();
            assert_eq!(target.named_by(answer.status(), answer.headers()).len(), want, "{status}");
        }
    }
}
