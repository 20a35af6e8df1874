//! Allowed values of each setting, and the messages for others.

use std::time::Duration;

use hyper::StatusCode;

use super::super::{CacheMode, Config, Endpoint, ListenAddress, LogFormat, PushMode, setting};
use crate::semantics::json_pointer::JsonPointer;

/// Expects the value to be refused with `why`, the part of the message between origin and default.
#[track_caller]
pub(super) fn bad(name: &'static str, text: &str, why: &str) {
    let spec = setting(name).unwrap();
    assert_eq!(
        spec.setter.apply(&mut Config::default(), &spec.setter.split(text)),
        Err(why.to_owned())
    );
}

/// Expects the value to be accepted.
#[track_caller]
pub(super) fn good(name: &'static str, text: &str) -> Config {
    let spec = setting(name).unwrap();
    let mut config = Config::default();
    spec.setter.apply(&mut config, &spec.setter.split(text)).unwrap();
    config
}

#[test]
fn an_address_is_an_ip_and_a_port() {
    let why = "must be an IP address and a port, such as 127.0.0.1:8080, 0.0.0.0:8080 or \
               [::1]:8080 (the only name accepted is localhost), or unix:/path/to/socket";
    for text in ["8080", ":8080", "127.0.0.1", "example.com:80", "::1:80", "1.2.3.4:65536", ""] {
        bad("listen", text, why);
    }
    assert_eq!(good("listen", "localhost:81").listen, "127.0.0.1:81".parse().unwrap());
    assert_eq!(good("listen", "[::]:81").listen, "[::]:81".parse().unwrap());
}

#[test]
fn an_address_may_be_the_path_of_a_socket() {
    for text in ["unix:/run/a.sock", "unix:///run/a.sock"] {
        assert_eq!(good("admin", text).admin, ListenAddress::Unix("/run/a.sock".into()));
    }
    let absolute = "the path of a socket must be absolute: unix:/path/to/socket";
    for text in ["unix:", "unix:a.sock", "unix:/", "unix:/run/", "unix://"] {
        bad("listen", text, absolute);
    }
    let long = format!("unix:/{}", "a".repeat(96));
    bad("listen", &long, "the path of a socket must be at most 96 bytes long");
    let control = "the path of a socket must not hold ?, # or control characters";
    for text in ["unix:/a\nb", "unix:/a?x=1", "unix:/a#b"] {
        bad("listen", text, control);
    }
    bad("unix_mode", "0999", "must be permissions in octal, such as 0660");
    assert_eq!(good("unix_mode", "0600").unix_mode, 0o600);
}

#[test]
fn networks_are_networks_or_hosts() {
    let trusted = |text: &str| good("server.trusted_proxies", text).server.trusted_proxies;
    let shown = |text: &str| trusted(text).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown("10.0.0.0/8, ::1"), ["10.0.0.0/8", "::1/128"]);
    assert!(shown("none").is_empty());
    for text in ["10.0.0.0/33", "lan", "10.0.0.1:80"] {
        let why = "is not a network: write 10.0.0.0/8 or fd00::/8, or the IP address of a host";
        bad("server.trusted_proxies", text, &format!("{text:?} {why}"));
    }
}

#[test]
fn a_server_name_is_one() {
    for text in ["api.internal", "10.0.0.1", "::1"] {
        assert_eq!(good("upstream.tls.server_name", text).upstream.tls.server_name.unwrap(), text);
    }
    let why = "must be a host name or an IP address";
    bad("upstream.tls.server_name", "https://a", why);
}

#[test]
fn a_size_is_bytes_or_a_binary_unit() {
    let why = "must be a whole number of bytes, KiB, MiB or GiB, such as \"1MiB\"";
    for text in ["", "MiB", "1MB", "1.5MiB", "-1", "1 mib", "99999999999999999999"] {
        bad("max_body", text, why);
    }
    bad("max_body", "65MiB", "must be between 1B and 64MiB");
    bad("max_body", "18446744073709551615GiB", "must be between 1B and 64MiB");
    for (text, bytes) in [("1048576", 1 << 20), ("1MiB", 1 << 20), ("2 KiB", 2048), ("7B", 7)] {
        assert_eq!(good("max_body", text).cache.limits.max_body, bytes);
    }
}

#[test]
fn numbers_times_and_switches_have_limits() {
    bad("server.max_connections", "0", "must be between 1 and 1000000");
    bad("server.max_connections", "many", "must be a whole number");
    bad("server.preserve_header_case", "yes", "must be true or false");
    bad("server.max_headers", "15", "must be between 16 and 1024");
    bad("server.max_header_bytes", "257KiB", "must be between 1KiB and 256KiB");
    bad("server.max_uri", "64KiB", "must be between 256B and 63KiB");
    bad("pending.limit", "0", "must be between 1 and 1000000");
    bad("settle", "2m", "must be between 0s and 1m");
    bad("settle", "-1s", "must be a time with its unit, such as \"50ms\", \"5s\" or \"5m\"");
    bad("access_log", "yes", "must be true or false");
    assert!(good("access_log", "1").log.access);
    bad("log_format", "xml", "must be human or json");
    assert_eq!(good("log_format", "json").log.format, LogFormat::Json);
    assert_eq!(good("settle", "0s").cache.settle, Duration::ZERO);
}

#[test]
fn the_upstream_is_an_origin_or_a_socket() {
    let bad = |text: &str, why: &str| {
        let accepted = "must be http://host[:port], https://host[:port] or unix:/path/to/socket";
        bad("upstream.url", text, &format!("{accepted}; {why}"));
    };
    bad("backend:8000", "the scheme is missing");
    bad("unix:a.sock", "the path of a socket must be absolute: unix:/path/to/socket");
    bad("ftp://a", "no other scheme is supported");
    bad("http://", "this is not a URL");
    bad("http://a b", "this is not a URL");
    bad("http://:80", "host or port is not valid");
    bad("http://a:99999", "host or port is not valid");
    bad("http://a/api", "remove the path: requests keep their own");
    bad("http://a?x=1", "remove the path: requests keep their own");
    let why = "remove user and password: clients send their own credentials";
    bad("http://u:p@a", why);
    for text in ["http://a", "http://a:81", "http://[::1]:81", "http://10.0.0.1", "http://a_b:1"] {
        assert_eq!(good("upstream.url", text).upstream.url, text);
    }
    assert_eq!(good("upstream.url", "http://a/").upstream.url, "http://a");
    let end = |text: &str| good("upstream.url", text).upstream.endpoint();
    let tcp = |authority: &str| Endpoint::Tcp(authority.to_owned());
    let tls = |authority: &str, name: &str| Endpoint::Tls {
        authority: authority.to_owned(),
        name: name.to_owned(),
    };
    assert_eq!(end("http://a"), tcp("a:80"));
    assert_eq!(end("http://[::1]:81"), tcp("[::1]:81"));
    assert_eq!(end("https://a/"), tls("a:443", "a"));
    assert_eq!(end("https://[::1]:8443"), tls("[::1]:8443", "::1"));
    assert_eq!(end("unix:///run/a.sock"), Endpoint::Unix("/run/a.sock".into()));
}

#[test]
fn a_name_of_an_api_is_short_and_plain() {
    let why = "must be letters, digits and . _ ~ - only, such as \"billing\"";
    for text in ["a b", "a/b", "a:b", "{a}", "\u{e4}", "a\n"] {
        bad("api", text, why);
    }
    bad("api", "", "must be 1 to 64 bytes long");
    bad("api", &"x".repeat(65), "must be 1 to 64 bytes long");
    assert_eq!(good("api", "billing.v2_~-").api.name.as_deref(), Some("billing.v2_~-"));
}

#[test]
fn a_prefix_is_short_and_plain() {
    let why = "must not contain braces, white space or control characters";
    for text in ["a{b", "a}", "a b", "a\tb", "a\u{7f}"] {
        bad("store.prefix", text, why);
    }
    bad("store.prefix", "", "must be 1 to 64 bytes long");
    bad("store.prefix", &"x".repeat(65), "must be 1 to 64 bytes long");
    good("store.prefix", &"x".repeat(64));
}

#[test]
fn a_route_is_one_that_the_router_takes() {
    let bad = |text: &str, why: &str| bad("routes", text, &format!("route '{text}': {why}"));
    bad("jobs/{id}", "it is not absolute; begin it with '/'");
    bad("/jobs", "it has no variable {id} for the job, as in '/jobs/{id}'");
    bad("/jobs/{job_id}", "name the variable of the job {id}: '/jobs/{id}'");
    for named in [":id", "<id>", "<int:job_id>", "*"] {
        let meant = format!("its segment 2 is '{named}'; a variable is a name in braces: write ");
        bad(&format!("/jobs/{named}"), &format!("{meant}'/jobs/{{id}}'"));
        bad(&format!("/jobs/{named}/x"), &format!("{meant}'/jobs/{{id}}/x'"));
    }
    for route in ["/v1/jobs/{id}/status", "/{tenant}/jobs/{id}", "/jobs/{id}/", "/v{v}/{id}.json"] {
        good("routes", route);
    }
}

#[test]
fn a_status_beside_200_is_one_that_says_something_about_the_job() {
    let statuses = good("statuses", "202=5s,404=2s").api.statuses;
    let seconds = |(status, ttl): &(StatusCode, Duration)| (status.as_u16(), ttl.as_secs());
    assert_eq!(statuses.iter().map(seconds).collect::<Vec<_>>(), [(202, 5), (404, 2)]);
    for (status, why) in [
        ("101", "is not the end of an answer"),
        ("200", "is always stored; set its time by ttl"),
        ("206", "is an answer about a part"),
        ("304", "is an answer about what the client has"),
        ("403", "is an answer about who asks and how"),
        ("429", "says nothing about the job"),
        ("503", "says nothing about the job"),
    ] {
        bad("statuses", &format!("{status}=5s"), &format!("{status} {why}; remove it"));
    }
    bad("statuses", "x=5s", "\"x\" is not a status; give one such as 404");
}

#[test]
fn a_secret_is_long_enough_and_fits_a_header() {
    let short = |has: &str| {
        format!("{has}, and must have at least 16: make one with `openssl rand -base64 32`")
    };
    bad("webhook_secret", "0123456789abcde", &short("has 15 characters"));
    bad("credentials.secret", "0123456789abcde", &short("has 15 characters"));
    bad("webhook_secret", "whsec_MTIzNDU2Nzg=", &short("has 12 characters after whsec_"));
    bad("webhook_secret", "0123456789abcdef short", &short("number 2 of 2 has 5 characters"));
    bad("webhook_secret", " ", "must name 1 to 8 secrets");
    bad(
        "webhook_secret",
        "whsec_not-base64-at-all",
        "starts with whsec_, so the rest must be base64 with its padding",
    );
    bad(
        "webhook_secret",
        "correct-horse-battery\u{e9}",
        "must be visible ASCII characters without spaces",
    );
    bad(
        "credentials.secret",
        "correct horse battery",
        "must be visible ASCII characters without spaces",
    );
    good("webhook_secret", "0123456789abcdef");
    good("webhook_secret", "whsec_MTIzNDU2Nzg5MDEyMzQ1Ng==");
}

#[test]
fn headers_are_names() {
    bad("credentials.headers", "x y", "\"x y\" is not the name of a header");
    bad("credentials.headers", "", "must name 1 to 512 headers");
    bad("responses.volatile", "x y", "\"x y\" is not the name of a header");
    for name in ["Content-Type", "ETag", "Set-Cookie", "Vary", "Access-Control-Allow-Origin"] {
        let why = "clients or caches act on it, so hits need it; remove the name, and let the API \
                   send the same value as long as the job does not change";
        let name_lower = name.to_lowercase();
        bad("responses.volatile", name, &format!("must not have {name_lower}: {why}"));
    }
    let names = good("responses.volatile", "X-Pod, last-modified,server").cache.responses.volatile;
    assert_eq!(names, ["x-pod", "last-modified", "server"]);
    assert!(good("responses.volatile", "").cache.responses.volatile.is_empty());
}

#[test]
fn what_is_read_ahead_is_a_plain_poll_of_the_upstream() {
    good("warm.headers", "Host: jobs.example:8443, X-Api-Key: a=b");
    bad("warm.headers", "", "must name 1 to 64 headers");
    for text in ["x", "x y: z", "x:"] {
        let why = match text {
            "x:" => {
                "the value of header 1 must be visible ASCII characters; spaces are allowed only \
                     between them"
            }
            _ => "header 1 must be of the form \"Name: value\"",
        };
        bad("warm.headers", text, why);
    }
    let why = "must not have Authorization: set warm.authorization instead";
    bad("warm.headers", "Authorization: Bearer a", why);
    let why = "must not have range: the read would no longer be a plain poll of a job";
    bad("warm.headers", "Range: bytes=0-1", why);
    good("warm.authorization", "Bearer a b");
    for text in ["Bearer a ", "a\nb"] {
        let why = "must be visible ASCII characters; spaces are allowed only between them";
        bad("warm.authorization", text, why);
    }
    good("warm.list", "/jobs?status=active");
    for text in ["jobs", "http://elsewhere/jobs", "//elsewhere", "/a b", "/a#b"] {
        let why = "must be a path of the API, with a query if needed, such as \
                   /jobs?status=active";
        bad("warm.list", text, why);
    }
}

#[test]
fn a_log_filter_that_would_silence_everything_is_refused() {
    let levels = "off, error, warn, info, debug, trace or a list such as \"info,jobcache=debug\"";
    let why = |text: &str| format!("{text:?} is not a filter: must be one of {levels}");
    bad("log", "jobcache=loud", &why("jobcache=loud"));
    bad("log", " ", &why(" "));
    for text in ["debug", "WARN", "info,jobcache=debug", "off,jobcache::store=trace"] {
        good("log", text);
    }
}

#[test]
fn the_state_is_told_at_a_json_pointer() {
    assert_eq!(
        good("ttl.states.pointer", "").cache.lifetimes.states.pointer,
        JsonPointer::parse("").unwrap()
    );
    let why = "is not a JSON pointer (RFC 6901); begin it with '/', as in '/job/id'";
    bad("ttl.states.pointer", "status", why);
    let why = "is not a JSON pointer (RFC 6901); write '~' as '~0' and '/' within a name as '~1'";
    bad("ttl.states.pointer", "/a~b", why);
    let why = "is too long for a JSON pointer; use at most 256 bytes";
    bad("ttl.states.pointer", &"/".repeat(257), why);
}

#[test]
fn parameters_to_ignore_are_written_out() {
    assert_eq!(good("query.ignore", "_,t,utm_source").api.query.ignore, ["_", "t", "utm_source"]);
    assert!(good("query.ignore", "").api.query.ignore.is_empty());
    let why = |name: &str| {
        format!(
            "{name:?} is not the name of a query parameter: write each name out, decoded, in 1 to 64 \
             visible ASCII characters other than & = ; + % # ? *"
        )
    };
    for name in ["utm_*", "a=1", "?t", "a b", "%5f", "é", &"a".repeat(65)] {
        bad("query.ignore", name, &why(name));
    }
    let many = vec!["a"; 65].join(",");
    bad("query.ignore", &many, "must name at most 64 parameters");
}

#[test]
fn a_share_is_a_part_of_one() {
    for (text, millionths) in
        [("0", 0), ("0.0", 0), ("0.01", 10_000), ("1e-6", 1), ("1", 1_000_000)]
    {
        assert_eq!(good("verify", text).cache.verify.millionths(), millionths, "{text}");
    }
    for text in ["1.01", "-0.1", "1%", "NaN", "inf", ""] {
        bad("verify", text, r#"must be a number from 0 to 1, such as "0.01""#);
    }
    bad("verify", "1e-7", "must be 0, or at least 0.000001");
}

#[test]
fn a_mode_is_one_of_three() {
    assert_eq!(good("mode", "shadow").cache.mode, CacheMode::Shadow);
    bad("mode", "dry-run", "must be on, shadow or off");
}

#[test]
fn push_is_a_word_and_its_limits_are_named() {
    let modes = ["off", "long-poll", "sse", "all"].map(|word| good("push.mode", word).push.mode);
    assert_eq!(modes, PushMode::ALL);
    assert_eq!(Config::default().push.mode, PushMode::Off);
    bad("push.mode", "on", "must be off, long-poll, sse or all");
    bad("push.max_wait", "61m", "must be between 1s and 1h");
    bad("push.recheck", "999ms", "must be between 1s and 1h");
    bad("push.max_reads", "0", "must be between 1 and 10000");
    bad("push.max_waiting", "0", "must be between 1 and 1000000");
    bad(
        "push.final.pointer",
        "status",
        "is not a JSON pointer (RFC 6901); begin it with '/', as in '/job/id'",
    );
    let long = "a".repeat(129);
    bad("push.final.values", &long, &format!("{long:?} must be at most 128 bytes long"));
    let states = good("push.final.values", "done, gone").push.final_states;
    assert_eq!(states.values, ["done", "gone"]);
}

#[test]
fn the_reads_for_streams_do_not_ask_for_a_stream() {
    let accept = good("push.accept", "application/json, */*;q=0.1").push.accept;
    assert_eq!(accept, "application/json, */*;q=0.1");
    let endless = "must not name text/event-stream, because such an answer of the API never ends: name \
                   the type of a job, such as application/json";
    for text in ["text/event-stream", "a/b, TEXT/Event-Stream;q=0.1"] {
        bad("push.accept", text, endless);
    }
    let visible = "must be visible ASCII characters; spaces are allowed only between them";
    for text in ["", " a/b", "a/b\n", "a/\u{e9}", "a\tb"] {
        bad("push.accept", text, visible);
    }
}
