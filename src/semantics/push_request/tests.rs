use super::*;
use crate::config::Config;

fn config(mode: PushMode) -> PushConfig {
    PushConfig { mode, ..Config::default().push }
}

fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn shown(headers: &HeaderMap) -> Vec<String> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| format!("{name}: {}", text(value))).collect()
}

/// Takes the request of a GET in this mode, and returns the headers that are left.
fn take(mode: PushMode, lines: &[(&'static str, &str)]) -> (Option<PushRequest>, Vec<String>) {
    let mut headers = map(lines);
    let request = PushRequest::take(&config(mode), &Method::GET, &mut headers);
    (request, shown(&headers))
}

const TAG: (&str, &str) = ("if-none-match", "\"1\"");

/// The seconds of a poll with these lines of `Prefer`, and the lines that are left.
#[track_caller]
fn check_prefer(lines: &[&str], want: Option<u64>, left: &[&str]) {
    let mut all = vec![TAG];
    all.extend(lines.iter().map(|line| ("prefer", *line)));
    let (request, headers) = take(PushMode::All, &all);
    let poll = |seconds| PushRequest::Poll { wait: Duration::from_secs(seconds) };
    assert_eq!(request, want.map(poll), "{lines:?}");
    let left = left.iter().map(|line| format!("prefer: {line}"));
    let want: Vec<_> = ["if-none-match: \"1\"".to_owned()].into_iter().chain(left).collect();
    assert_eq!(headers, want, "{lines:?}");
}

#[test]
fn the_seconds_of_wait_are_read_by_rfc_7240() {
    for (line, want) in [
        ("wait=20", Some(20)),
        ("WAIT=20", Some(20)),
        ("wait = \"20\"", Some(20)),
        ("wait=20;a=b", Some(20)),
        (" wait=020 ; a=\"b,wait=3\"; c ", Some(20)),
        ("wait=20, wait=30", Some(20)),
        ("wait=60", Some(60)),
        ("wait=61", Some(60)),
        ("wait=99999999999999999999999999999999999999", Some(60)),
        ("wait=0", None),
        ("wait=0, wait=30", None),
        ("wait", None),
        ("wait=", None),
        ("wait=\"\"", None),
        ("wait=-1", None),
        ("wait=+1", None),
        ("wait=1.5", None),
        ("wait=1s", None),
        ("wait=1 2", None),
        ("wait=\"1", None),
        ("wait==1", None),
        ("wait;wait=5", None),
    ] {
        check_prefer(&[line], want, &[]);
    }
    check_prefer(&["wait=20", "wait=5"], Some(20), &[]);
    check_prefer(&["wait=x", "wait=5"], None, &[]);
    check_prefer(&[], None, &[]);
}

#[test]
fn other_preferences_stay() {
    check_prefer(&["return=minimal, wait=20"], Some(20), &["return=minimal"]);
    check_prefer(
        &["wait=20,,a=\"x, y\" ;b,respond-async"],
        Some(20),
        &["a=\"x, y\" ;b, respond-async"],
    );
    check_prefer(&["a,b", "wait=20", " c , d"], Some(20), &["a,b", " c , d"]);
    for line in
        ["waiting=20", "a=wait", "a=\"wait=20\"", "a;wait=20", "a=\", wait=20", "await=20", ","]
    {
        check_prefer(&[line], None, &[line]);
    }
    check_prefer(&["a=\"\\\", wait=1\", wait=2"], Some(2), &["a=\"\\\", wait=1\""]);
    check_prefer(&["é, wait=20"], Some(20), &["é"]);
}

#[test]
fn many_members_are_read_once() {
    let members: Vec<_> = (0..20_000).map(|n| format!("a{n}=\"{n},\",")).collect();
    let long = members.concat();
    let want: Vec<_> = (0..20_000).map(|n| format!("a{n}=\"{n},\"")).collect();
    check_prefer(&[&format!("{long}wait=5")], Some(5), &[&want.join(", ")]);
    check_prefer(&[&"wait=1,".repeat(20_000)], Some(1), &[]);
    let types = format!("{}text/event-stream", "a/b;q=0.5,".repeat(20_000));
    assert!(take(PushMode::Sse, &[("accept", &types)]).0.is_some());
}

#[test]
fn bytes_that_are_not_utf_8_are_no_request() {
    let mut headers = map(&[TAG]);
    headers.append("prefer", HeaderValue::from_bytes(b"\xff, wait=7, \xfe=\"\xff\"").unwrap());
    headers.append("last-event-id", HeaderValue::from_bytes(b"\"\xff\"").unwrap());
    let request = PushRequest::take(&config(PushMode::All), &Method::GET, &mut headers);
    assert_eq!(request, Some(PushRequest::Poll { wait: Duration::from_secs(7) }));
    assert_eq!(headers.get("prefer").unwrap().as_bytes(), b"\xff, \xfe=\"\xff\"");
    let mut headers = map(&[("accept", "text/event-stream")]);
    headers.append("last-event-id", HeaderValue::from_bytes(b"\"\xff\"").unwrap());
    let request = PushRequest::take(&config(PushMode::All), &Method::GET, &mut headers);
    assert_eq!(request, Some(PushRequest::Stream { last_event_id: None }));
    let mut headers = HeaderMap::new();
    headers.append("accept", HeaderValue::from_bytes(b"text/event-stream;a=\xff, \xff").unwrap());
    let request = PushRequest::take(&config(PushMode::All), &Method::GET, &mut headers);
    assert_eq!(request, Some(PushRequest::Stream { last_event_id: None }));
}

#[test]
fn a_stream_is_asked_for_by_its_type_unless_another_is_preferred() {
    for (lines, want) in [
        (&["text/event-stream"][..], true),
        (&["Text/Event-Stream; charset=utf-8"], true),
        (&["text/event-stream;q=0.001"], true),
        (&["text/event-stream, */*"], true),
        (&["application/json, text/event-stream"], true),
        (&["application/json;q=0.9", "text/event-stream"], true),
        (&["text/event-stream;q=0.5, */*;q=0.5"], true),
        (&["text/event-stream;q=0.2, text/event-stream;q=0.9, a/b;q=0.8"], true),
        (&["text/event-stream;a=\"q=0\""], true),
        (&["text/event-stream ; Q = 1.000"], true),
        (&["a/b;q=7, text/event-stream;q=0.1"], true),
        (&["text/event-stream;q=0"], false),
        (&["text/event-stream;q=0.000"], false),
        (&["text/event-stream;q=0.9, application/json"], false),
        (&["text/event-stream;q=0.5", "*/*"], false),
        (&["text/*", "*/*"], false),
        (&["text/event-streams"], false),
        (&["a/b;c=\"text/event-stream\""], false),
        (&["a/b;c=\", text/event-stream"], false),
        (&[""], false),
        (&[], false),
    ] {
        let lines: Vec<_> = lines.iter().map(|line| ("accept", *line)).collect();
        assert_eq!(prefers_stream(&map(&lines)), want, "{lines:?}");
    }
    for q in ["x", "", "-1", "1.1", "2", "0.1234", "1e3", ".5", "0,5", "\"1\"", "00", "1 "] {
        let line = format!("text/event-stream;q={q}");
        assert_eq!(prefers_stream(&map(&[("accept", &line)])), q == "1 ", "{q}");
    }
}

#[test]
fn the_read_for_a_stream_is_a_plain_one() {
    let lines = [
        ("host", "a"),
        ("accept", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("authorization", "Bearer x"),
        ("pragma", "no-cache"),
        ("if-none-match", "\"1\""),
        ("if-match", "\"1\""),
        ("if-modified-since", "x"),
        ("accept", "*/*;q=0.1"),
        ("if-unmodified-since", "x"),
        ("if-range", "\"1\""),
        ("range", "bytes=0-1"),
        ("te", "trailers"),
        ("last-event-id", "W/\"é\""),
        ("prefer", "wait=20, return=minimal"),
        ("x-tenant", "b"),
    ];
    let (request, headers) = take(PushMode::Sse, &lines);
    assert_eq!(request, Some(PushRequest::Stream { last_event_id: Some("W/\"é\"".to_owned()) }));
    let want = [
        "host: a",
        "accept: application/json",
        "authorization: Bearer x",
        "prefer: return=minimal",
        "x-tenant: b",
    ];
    assert_eq!(headers, want);
    let (request, _) =
        take(PushMode::All, &[("accept", "text/event-stream"), ("last-event-id", "")]);
    assert_eq!(request, Some(PushRequest::Stream { last_event_id: None }));
}

#[test]
fn each_mode_takes_its_own_requests_and_what_is_for_push_from_every_read() {
    let poll = [("host", "a"), ("prefer", "wait=5, b"), TAG, ("last-event-id", "\"1\"")];
    let stream = [("accept", "text/event-stream"), ("last-event-id", "\"1\""), ("host", "a")];
    let (held, streams) = (PushRequest::Poll { wait: Duration::from_secs(5) }, |mode| {
        take(mode, &stream).0.is_some()
    });
    for (mode, is_held, is_stream) in [
        (PushMode::Off, false, false),
        (PushMode::LongPoll, true, false),
        (PushMode::Sse, false, true),
        (PushMode::All, true, true),
    ] {
        let (request, headers) = take(mode, &poll);
        assert_eq!(request, is_held.then(|| held.clone()), "{mode}");
        assert_eq!(streams(mode), is_stream, "{mode}");
        if mode == PushMode::Off {
            assert_eq!(headers, shown(&map(&poll)));
            assert_eq!(take(mode, &stream).1, shown(&map(&stream)));
        } else {
            assert_eq!(headers, ["host: a", "prefer: b", "if-none-match: \"1\""], "{mode}");
        }
    }
    let (_, headers) = take(PushMode::LongPoll, &stream);
    assert_eq!(headers, ["accept: text/event-stream", "host: a"]);
}

#[test]
fn without_a_tag_or_with_another_method_nothing_is_held() {
    let (request, headers) = take(PushMode::All, &[("prefer", "wait=5"), ("host", "a")]);
    assert_eq!((request, headers), (None, vec!["host: a".to_owned()]));
    for method in [Method::HEAD, Method::POST] {
        let mut headers = map(&[("accept", "text/event-stream"), ("prefer", "wait=5"), TAG]);
        assert_eq!(PushRequest::take(&config(PushMode::All), &method, &mut headers), None);
        assert_eq!(shown(&headers), ["accept: text/event-stream", "if-none-match: \"1\""]);
    }
}

#[test]
fn a_wait_is_at_most_the_longest_in_whole_seconds() {
    let config = PushConfig { max_wait: Duration::from_millis(2900), ..config(PushMode::LongPoll) };
    let mut headers = map(&[("prefer", "wait=20"), TAG]);
    let request = PushRequest::take(&config, &Method::GET, &mut headers);
    assert_eq!(request, Some(PushRequest::Poll { wait: Duration::from_secs(2) }));
}
