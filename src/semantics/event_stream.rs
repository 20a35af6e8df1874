//! The text of a stream of events about a job, in the format of `EventSource` (WHATWG HTML, 9.2).
//!
//! Each function returns the bytes of one block, which ends with a blank line, so blocks may be sent
//! in any order. When a block is sent is decided elsewhere.

use std::time::Duration;

use bytes::Bytes;

use super::{json_pointer::JsonPointer, policy::opaque_tag};

/// Returns the event of one version of a job. `id` is the `ETag` with its quotes.
///
/// A browser joins the lines of `data` with `\n`, whichever line breaks `data` has. "If the field value
/// does not contain U+0000 NULL, then set the last event ID buffer to the field value. Otherwise, ignore
/// the field" WHATWG HTML 9.2.6. So such an id is left out, as is one with a line break, which would
/// begin another field.
pub fn event(id: &str, data: &str) -> Bytes {
    let mut block = String::with_capacity(id.len() + data.len() + 16);
    if !id.is_empty() && !id.contains(['\0', '\n', '\r']) {
        push_field(&mut block, "id", id);
    }
    for line in lines(data) {
        push_field(&mut block, "data", line);
    }
    block.push('\n');
    block.into()
}

/// Returns the event after the final state of a job: the client must not connect again.
///
/// "If the data buffer is an empty string, set the data buffer and the event type buffer to the empty
/// string and return" WHATWG HTML 9.2.6. An empty `data` line makes the buffer a line break, so browsers
/// dispatch the event.
pub fn end() -> Bytes {
    Bytes::from_static(b"event: end\ndata:\n\n")
}

/// Returns the event for a read that the upstream refused with this status.
pub fn error(status: u16) -> Bytes {
    format!("event: error\ndata: {{\"status\": {status}}}\n\n").into()
}

/// Returns the time that a client waits before it connects again.
pub fn retry(time: Duration) -> Bytes {
    format!("retry: {}\n\n", time.as_millis()).into()
}

/// Returns a comment, which keeps middleboxes from closing a stream without news.
pub fn comment() -> Bytes {
    Bytes::from_static(b":\n\n")
}

/// Returns whether two entity tags are the same by the weak comparison function (RFC 9110 8.8.3.2), as
/// for `Last-Event-ID` and an `ETag`.
pub fn is_same_tag(one: &str, other: &str) -> bool {
    opaque_tag(one.as_bytes()) == opaque_tag(other.as_bytes())
}

/// Returns whether a job with this body is in one of the states `values`, after which it no longer
/// changes. A body that is not JSON has no state.
pub fn is_final(body: &[u8], pointer: &JsonPointer, values: &[String]) -> bool {
    !values.is_empty() && pointer.scalar(body).is_some_and(|state| values.contains(&state))
}

fn push_field(block: &mut String, name: &str, value: &str) {
    // A parser removes one space after the colon, so a value may itself begin with one.
    for part in [name, ": ", value, "\n"] {
        block.push_str(part);
    }
}

/// Splits at `\r\n`, `\n` and `\r`, as a parser does.
fn lines(data: &str) -> impl Iterator<Item = &str> {
    let lines = data.split('\n');
    let last = lines.clone().count() - 1;
    lines.enumerate().flat_map(move |(at, line)| {
        // Before a `\n`, a `\r` is a part of the same line break.
        let line = if at < last { line.strip_suffix('\r').unwrap_or(line) } else { line };
        line.split('\r')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(block: &Bytes, want: &str) {
        assert_eq!(std::str::from_utf8(block).unwrap(), want);
    }

    #[test]
    fn an_event_has_its_tag_and_each_line_of_its_data() {
        check(&event("\"1\"", "{}"), "id: \"1\"\ndata: {}\n\n");
        check(&event("W/\"é\"", " a"), "id: W/\"é\"\ndata:  a\n\n");
        check(&event("\"1\"", "a\nb\r\nc\rd"), "id: \"1\"\ndata: a\ndata: b\ndata: c\ndata: d\n\n");
    }

    #[test]
    fn every_line_break_of_the_data_is_kept() {
        let data = |text: &str| {
            let block = event("", text);
            let block = std::str::from_utf8(&block).unwrap().strip_suffix("\n\n").unwrap();
            let lines = block.split('\n').map(|line| line.strip_prefix("data: ").unwrap());
            lines.collect::<Vec<_>>().join("|")
        };
        for (text, want) in [
            ("", ""),
            ("a", "a"),
            ("a\n", "a|"),
            ("a\r\n", "a|"),
            ("a\r", "a|"),
            ("\n\n", "||"),
            ("\r\r", "||"),
            ("\r\n\r\n", "||"),
            ("\n\r", "||"),
            ("\r\r\n", "||"),
            ("a\u{2028}b", "a\u{2028}b"),
            ("id: 1\nevent: end\n\ndata: x", "id: 1|event: end||data: x"),
        ] {
            assert_eq!(data(text), want, "{text:?}");
        }
    }

    #[test]
    fn an_id_that_would_not_be_one_field_is_left_out() {
        for id in ["", "\"a\0\"", "\"a\nevent: end\"", "\"a\r\"", "\n", "\0"] {
            check(&event(id, "x"), "data: x\n\n");
        }
    }

    #[test]
    fn the_other_blocks_are_complete() {
        check(&end(), "event: end\ndata:\n\n");
        check(&error(403), "event: error\ndata: {\"status\": 403}\n\n");
        check(&retry(Duration::from_millis(2500)), "retry: 2500\n\n");
        check(&retry(Duration::ZERO), "retry: 0\n\n");
        check(&comment(), ":\n\n");
    }

    #[test]
    fn tags_are_compared_weakly() {
        for (one, other) in [("\"1\"", "\"1\""), ("W/\"1\"", "\"1\""), ("W/\"1\"", "W/\"1\"")] {
            assert!(is_same_tag(one, other) && is_same_tag(other, one), "{one} {other}");
        }
        for (one, other) in [("\"1\"", "\"2\""), ("w/\"1\"", "\"1\""), ("1", "\"1\""), ("", "\"\"")]
        {
            assert!(!is_same_tag(one, other) && !is_same_tag(other, one), "{one} {other}");
        }
    }

    #[test]
    fn only_a_listed_state_is_final() {
        let pointer = JsonPointer::parse("/job/status").unwrap();
        let values = ["COMPLETED", "true", "3"].map(str::to_owned);
        let check = |status: &str, values: &[String]| {
            is_final(format!(r#"{{"job":{{"status":{status}}}}}"#).as_bytes(), &pointer, values)
        };
        for status in ["\"COMPLETED\"", "true", "3", "\"3\""] {
            assert!(check(status, &values), "{status}");
            assert!(!check(status, &[]), "{status}");
        }
        for status in ["\"completed\"", "\"COMPLETED \"", "false", "3.0", "null", "[3]", "{}"] {
            assert!(!check(status, &values), "{status}");
        }
        for body in [&b""[..], b"COMPLETED", b"{\"job\":{\"status\":\"COMPLETED\"}", b"\xff"] {
            assert!(!is_final(body, &pointer, &values), "{body:?}");
        }
    }
}
