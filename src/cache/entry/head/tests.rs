//! Every answer has exactly the lines that a map of the same headers would give.

use super::*;

const NOW: HeadSeconds = HeadSeconds { age: 87, ttl: 213 };

/// Parses headers, one per line, in Latin-1.
fn map(lines: &str) -> HeaderMap {
    let lines = lines.lines().filter_map(|line| line.split_once(": "));
    let line = |(name, value): (&str, &str)| {
        let value: Vec<u8> = value.chars().map(|c| u8::try_from(c).unwrap()).collect();
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(&value).unwrap())
    };
    let mut headers = HeaderMap::with_capacity(20);
    for (name, value) in lines.map(line) {
        headers.append(name, value);
    }
    headers
}

fn head(status: u16, lines: &str) -> Head {
    Head::new(HeadForm::Only, StatusCode::from_u16(status).unwrap(), map(lines), 600, || {
        "d1".into()
    })
}

/// Lists headers in the order in which they are sent.
fn list(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Returns a head as it is written, with readable line ends.
fn written(head: &Head, seconds: HeadSeconds) -> Option<String> {
    let mut text = b"before".to_vec();
    let written = head.write(&mut text, seconds);
    let text: String = text.iter().map(|byte| char::from(*byte)).collect();
    let text = text.strip_prefix("before").unwrap().replace("\r\n", "|");
    assert_eq!(written, !text.is_empty());
    written.then_some(text)
}

/// Returns the expected headers of `full` and of `hit`, made from a map.
fn maps(lines: &str) -> [HeaderMap; 2] {
    let mut full = map(lines);
    let etag = full.get(ETAG).cloned().unwrap_or(HeaderValue::from_static("\"d1\""));
    full.insert(CONTENT_LENGTH, 600.into());
    full.insert(ETAG, etag);
    full.insert(AGE, 87.into());
    let mut hit = full.clone();
    hit.append(VIA, VIA_JOBCACHE);
    hit.append(CACHE_STATUS, HeaderValue::from_static("jobcache; hit; ttl=213"));
    [full, hit]
}

#[track_caller]
fn check(lines: &str, stored: &str) {
    let head = head(200, lines);
    let [full, hit] = maps(lines);
    assert_eq!(list(&head.headers(NOW, AnswerKind::Fresh)), list(&full), "{lines}");
    assert_eq!(list(&head.headers(NOW, AnswerKind::Hit)), list(&hit), "{lines}");
    let fields: Vec<_> = head.fields(|_| true).collect();
    assert_eq!(fields, list(&map(stored)), "{lines}");
    assert_eq!(head.etag().as_ref(), hit.get(ETAG), "{lines}");
    let mut text = "HTTP/1.1 200 OK|".to_owned();
    for (name, value) in &hit {
        let value: String = value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
        text = format!("{text}{name}: {value}|");
    }
    assert_eq!(written(&head, NOW), Some(format!("{text}|")), "{lines}");
}

#[test]
fn a_text_says_what_a_map_would_in_the_same_order() {
    for lines in [
        "date: d",
        "date: d\nserver: nginx\ncontent-type: application/json",
        "date: d\netag: \"7\"\nlast-modified: l",
        "etag: W/\"7\"\ndate: d",
        "etag: \ndate: d",
        "date: d\nx-empty: \nx-next: 1",
        "date: d\nx-last: ",
        "date: d\nx-colons: a: b: c\nx-more: :\nx-url: https://a/b:c",
        "date: d\nx-spaces:  a  \nx-tab: \ta\t",
        "date: d\nx-latin: caf\u{e9} \u{80}\u{ff}",
        "date: d\nx_user_id: 1\nx-very-long-name-that-no-table-holds-and-that-nobody-would-choose-at-all: 1",
        "date: d\nx: 1\nvary: a\nx: 2\nvary: b\nx: 3",
        "date: d\nlink: a\nlink: b\nx: age: 7\ny: via: 1.1 a",
        "viaduct: 1\ndate: d\nage-of: 2\netags: 3",
        "date: d\nvia-b: 1",
    ] {
        check(lines, lines_together(lines).as_str());
    }
}

/// A map keeps lines of one name together.
fn lines_together(lines: &str) -> String {
    let mut together: Vec<(&str, Vec<&str>)> = vec![];
    for line in lines.lines() {
        let name = line.split_once(": ").unwrap().0;
        match together.iter_mut().find(|(known, _)| *known == name) {
            Some((_, lines)) => lines.push(line),
            None => together.push((name, vec![line])),
        }
    }
    together.into_iter().flat_map(|(_, lines)| lines).collect::<Vec<_>>().join("\n")
}

/// Such lines are not stored, but any program that can write to the store can write a meta.
#[test]
fn ours_are_told_from_theirs_of_the_same_name() {
    check("date: d\nvia: 1.0 a\nvia: 1.1 jobcache", "date: d\nvia: 1.0 a\nvia: 1.1 jobcache");
    check("via: 1.0 a\ndate: d", "via: 1.0 a\ndate: d");
    let theirs = "cache-status: jobcache; hit; ttl=\ndate: d\ncache-status: a; hit";
    check(theirs, "cache-status: jobcache; hit; ttl=\ncache-status: a; hit\ndate: d");
    check("age: 7\ndate: d\nage: 8", "date: d");
    check("content-length: 7\ndate: d", "date: d");
    check("etag: \"1\"\ndate: d\netag: \"2\"", "etag: \"1\"\ndate: d");
}

#[test]
fn two_numbers_are_put_in_wherever_they_stand() {
    let seconds = HeadSeconds { age: 7, ttl: u64::MAX };
    for (lines, want) in [
        (
            "date: d",
            "date: d|content-length: 600|etag: \"d1\"|age: 7|via: 1.1 jobcache|\
             cache-status: jobcache; hit; ttl=18446744073709551615||",
        ),
        (
            "cache-status: a\ndate: d\netag: e",
            "cache-status: a|cache-status: jobcache; hit; ttl=18446744073709551615|date: d|etag: e|\
             content-length: 600|age: 7|via: 1.1 jobcache||",
        ),
    ] {
        let want = format!("HTTP/1.1 200 OK|{want}");
        assert_eq!(written(&head(200, lines), seconds), Some(want), "{lines}");
    }
}

#[test]
fn what_hyper_would_not_just_write_is_left_to_it() {
    assert_eq!(written(&head(200, "x: y"), NOW), None);
    assert_eq!(written(&head(201, "date: d"), NOW), None);
    for line in ["connection: close", "trailer: x", "transfer-encoding: chunked", "upgrade: a"] {
        assert_eq!(written(&head(200, &format!("date: d\n{line}")), NOW), None, "{line}");
    }
    let empty = Head::new(HeadForm::Only, StatusCode::OK, map("date: d"), 0, || "d1".into());
    assert_eq!(written(&empty, NOW), None);
}

#[test]
fn a_number_is_written_whole() {
    for number in [0, 9, 10, 300, u64::MAX] {
        assert_eq!(numbered("", number), number.to_string());
        assert_eq!(numbered(HIT_STATUS, number), format!("{HIT_STATUS}{number}"));
    }
}
