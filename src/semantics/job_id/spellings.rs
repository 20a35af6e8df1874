//! The spellings that an upstream may read as the same id.
//!
//! An upstream may know one job under many spellings: `7`, `007`, `%37`, or a UUID in either case.
//! An entry stored under one spelling would survive a write under another. So reads and writes are
//! treated differently:
//!
//! - A read is cached only under the canonical spelling ([`is_canonical`]). An id that some
//!   common parser reads as another id bypasses the cache, even if this upstream would not read it so.
//! - A write invalidates every id that any parser may read from its spelling ([`possible_ids`]).
//!
//! So accepting one spelling too many costs a miss, and missing one costs a stale answer.
//!
//! These ways to read an id are covered: UUID parsers (Python, Java, .NET and the `uuid` crate: case,
//! hyphens, braces, `urn:uuid:`), integer parsers (Python, pydantic, Go, JavaScript: sign, leading
//! zeros, `_` between digits, a zero fraction, white space), format suffixes (Rails and Django REST:
//! `7.json`), percent and form encoding, matrix parameters.
//!
//! A read is also not cached if its id is a word ([`is_word`]).
//!
//! Not covered: upstreams that read a numeric prefix (`parseInt("7abc")`), exponents and radix
//! prefixes (`1e3`, `0x7`), or digits outside ASCII. Of upstreams that compare ids without regard to
//! case, the case sent, lower and upper case are covered; mixed case is not.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Length of the longest id, in bytes. Reads with a longer one bypass the cache.
pub const MAX_ID_LEN: usize = 128;

/// How often a spelling is percent-decoded: once for a gateway, once for a framework, and once to
/// spare. This bounds [`possible_ids`]: a round yields at most four texts, and a text at most six ids.
pub const MAX_DECODES: usize = 3;

/// Longest text that is parsed as a UUID, in bytes: `urn:uuid:{8-4-4-4-12}` and some slack for extra
/// hyphens.
const MAX_UUID_LEN: usize = 96;

/// Length of an `ObjectId` in hexadecimal digits.
const OBJECT_ID_LEN: usize = 24;

/// Suffixes that frameworks strip from the id and read as the format of the answer.
const FORMAT_SUFFIXES: [&str; 12] =
    ["api", "csv", "htm", "html", "js", "json", "jsonp", "md", "txt", "xml", "yaml", "yml"];

/// Returns whether `raw` is the canonical spelling of an id: `[A-Za-z0-9._~-]{1,128}`, not `.` or `..`.
///
/// It is not if some parser would read another id from it: a UUID that is not lower-case hyphenated
/// 8-4-4-4-12 (so a bare `uuid4().hex` is not cached), a number with leading zeros, an unnecessary
/// sign, `_` or `.0` (so `20240101_1200` is not cached), or `7.json`.
pub fn is_canonical(raw: &str) -> bool {
    let same = |reading: Option<String>| reading.is_none_or(|id| id == raw);
    is_plainly_canonical(raw)
        || has_id_syntax(raw)
            && same(canonical_uuid(raw))
            && same(canonical_integer(raw))
            && without_format_suffix(raw).is_none()
}

/// Returns whether a canonical spelling is a word. An id has a digit, or is a UUID or an `ObjectId`. A
/// segment without one (`/jobs/stats`) most likely names something else, which no write to a job
/// would invalidate.
pub fn is_word(id: &str) -> bool {
    let is_hex = |id: &str| id.bytes().all(|b| b.is_ascii_hexdigit());
    let has_digit = id.bytes().any(|b| b.is_ascii_digit());
    let is_object_id = id.len() == OBJECT_ID_LEN && is_hex(id);
    !(has_digit || is_object_id || is_plainly_canonical(id))
}

/// Calls `each` with a segment and with what remains after each decoding.
pub(super) fn for_each_decoding(segment: &str, mut each: impl FnMut(&str)) {
    let mut text = Cow::Borrowed(segment);
    for _ in 0..=MAX_DECODES {
        each(&text);
        let decoded = percent_decode_str(&text).decode_utf8_lossy();
        if decoded == text {
            break;
        }
        text = Cow::Owned(decoded.into_owned());
    }
}

/// Returns every id that some parser reads from a path segment or from an id in a purge.
///
/// The ids are canonical and distinct, the most literal one comes first, and their number is bounded
/// by [`MAX_DECODES`]. If there are none, nothing can be cached under the segment either.
pub fn possible_ids(segment: &str) -> Vec<String> {
    // Every parser reads a canonical spelling as itself.
    if is_canonical(segment) {
        return vec![segment.to_owned()];
    }
    let mut ids = Vec::new();
    for_each_decoding(segment, |text| add_ids_of_text(text, &mut ids));
    ids
}

/// Adds the ids that `text` gives without decoding: with and without its parameters, with `+` kept
/// and with `+` read as a space (form encoding).
fn add_ids_of_text(text: &str, ids: &mut Vec<String>) {
    // Decoding may produce a `?` or `#`, which a second parser reads as the end of the path.
    let bare = text.split([';', '?', '#']).next().unwrap_or_default();
    for spelling in [text, bare] {
        add_ids_of_spelling(spelling, ids);
        if spelling.contains('+') {
            add_ids_of_spelling(&spelling.replace('+', " "), ids);
        }
    }
}

/// Adds the ids that one spelling gives, with and without its format suffix.
fn add_ids_of_spelling(spelling: &str, ids: &mut Vec<String>) {
    let trimmed = spelling.trim_matches(|c: char| c.is_whitespace() || c.is_control());
    for text in [Some(trimmed), without_format_suffix(trimmed)].into_iter().flatten() {
        let parsed = [canonical_uuid(text), canonical_integer(text)].into_iter().flatten();
        for id in [text.to_owned()].into_iter().chain(parsed) {
            if is_canonical(&id) && !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
}

/// Returns whether `raw` is plainly canonical, as nearly every id is: a UUID or a number in its usual
/// format. This saves the copies that `canonical_uuid` and `canonical_integer` make, which were a
/// tenth of the cost of a hit.
pub fn is_plainly_canonical(raw: &str) -> bool {
    let is_hex = |bytes: &[u8]| bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match raw.as_bytes() {
        // 32 digits are excluded: a UUID parser accepts them.
        [b'1'..=b'9', rest @ ..] if rest.len() < 31 && rest.iter().all(u8::is_ascii_digit) => true,
        id if id.len() == 36 => {
            let hyphens = [8, 13, 18, 23].iter().all(|at| id[*at] == b'-');
            let groups = [&id[..8], &id[9..13], &id[14..18], &id[19..23], &id[24..]];
            hyphens && groups.into_iter().all(is_hex)
        }
        _ => false,
    }
}

fn has_id_syntax(raw: &str) -> bool {
    raw.len() <= MAX_ID_LEN && is_unreserved(raw)
}

/// Whether a segment has only unreserved characters (RFC 3986 2.3), which a client has no reason to
/// encode.
fn is_unreserved(segment: &str) -> bool {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-');
    !segment.is_empty() && segment.bytes().all(unreserved) && !matches!(segment, "." | "..")
}

/// Returns the canonical UUID if a UUID parser accepts `text`: 32 hexadecimal digits, with hyphens
/// anywhere (Python), in braces or parentheses, after `urn:uuid:` (RFC 9562 4), or five groups without
/// their leading zeros (Java).
pub(super) fn canonical_uuid(text: &str) -> Option<String> {
    if let Some(uuid) = uuid_of_groups(text) {
        return Some(uuid);
    }
    if !(32..=MAX_UUID_LEN).contains(&text.len()) {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    // Python removes the prefixes at any position.
    let bare = lower.replace("urn:", "").replace("uuid:", "");
    let hex = bare.trim_matches(['{', '}', '(', ')']).replace('-', "");
    if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let groups = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    Some(groups.join("-"))
}

/// Returns the canonical UUID of five hexadecimal groups that may lack leading zeros.
fn uuid_of_groups(text: &str) -> Option<String> {
    const LENGTHS: [usize; 5] = [8, 4, 4, 4, 12];
    if text.len() > 36 || text.bytes().filter(|&byte| byte == b'-').count() != 4 {
        return None;
    }
    let pad = |(group, length): (&str, usize)| {
        let is_hex =
            (1..=length).contains(&group.len()) && group.bytes().all(|b| b.is_ascii_hexdigit());
        is_hex.then(|| format!("{:0>length$}", group.to_ascii_lowercase()))
    };
    let groups: Option<Vec<String>> = text.split('-').zip(LENGTHS).map(pad).collect();
    groups.map(|groups| groups.join("-"))
}

/// Returns the canonical number if an integer parser accepts `text`: no leading zeros, no `+`, no
/// `-0`. It is a string because ids may exceed every integer type.
fn canonical_integer(text: &str) -> Option<String> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => ("-", unsigned),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let is_group = |group: &str| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit());
    if !whole.split('_').all(is_group) || !fraction.bytes().all(|b| b == b'0') {
        return None;
    }
    let digits = whole.replace('_', "");
    match digits.trim_start_matches('0') {
        "" => Some("0".to_owned()),
        significant => Some(format!("{sign}{significant}")),
    }
}

/// Returns `text` without its format suffix, if it has one. The rest may be empty: some frameworks
/// read `/jobs/.json` as the list of all jobs. It must not be cached as a job, because a write to a
/// job would not invalidate it.
pub(super) fn without_format_suffix(text: &str) -> Option<&str> {
    let (stem, suffix) = text.rsplit_once('.')?;
    let is_format = FORMAT_SUFFIXES.iter().any(|format| format.eq_ignore_ascii_case(suffix));
    is_format.then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[track_caller]
    fn check_canonical(raw: &str, want: bool) {
        assert_eq!(is_canonical(raw), want, "{raw:?}");
    }

    #[track_caller]
    fn check(segment: &str, want: &[&str]) {
        let ids = possible_ids(segment);
        assert_eq!(ids, want, "{segment:?}");
        for id in &ids {
            assert!(is_canonical(id), "{segment:?}");
        }
        if is_canonical(segment) {
            assert_eq!(ids, [segment], "a canonical spelling has one reading");
        }
    }

    #[test]
    fn what_is_usual_is_what_every_parser_leaves_as_it_is() {
        let numbers = ["7", "10", "4294967296", "9".repeat(31).as_str()].map(str::to_owned);
        for raw in [UUID.to_owned()].iter().chain(&numbers) {
            assert!(is_plainly_canonical(raw), "{raw}");
            let same = |reading: Option<String>| reading.is_none_or(|id| id == *raw);
            assert!(
                has_id_syntax(raw)
                    && same(canonical_uuid(raw))
                    && same(canonical_integer(raw))
                    && without_format_suffix(raw).is_none()
            );
        }
        let upper = UUID.to_uppercase();
        let digits = "1".repeat(32);
        for raw in ["", "0", "-7", "007", "7a", "job", &upper, &digits, &UUID.replace('-', "")] {
            assert!(!is_plainly_canonical(raw), "{raw}");
        }
    }

    #[test]
    fn an_id_is_canonical_only_if_no_parser_reads_another_one() {
        for raw in ["7", "0", "-7", "a", "A.b_c~d-e", "job.2024.1", "7.5", "v1.0.0", "1e3", "0x1f"]
        {
            check_canonical(raw, true);
        }
        for raw in ["12345678901234567890123", "2024-01-01", "a7", "_7", "7_", "1__0", "...", ".x"]
        {
            check_canonical(raw, true);
        }
        for raw in ["007", "00", "-0", "-07", "7.0", "7.", "7.00", "1_000", "20240101_120000"] {
            check_canonical(raw, false);
        }
        for raw in ["", ".", "..", "a b", "a/b", "a%20", "7;a", "+7", "é", "a:b", "{x}", "a\0"] {
            check_canonical(raw, false);
        }
        for raw in ["7.json", "7.JSON", "abc.xml", "a.b.html", ".json", ".Xml"] {
            check_canonical(raw, false);
        }
    }

    #[test]
    fn an_id_without_a_digit_is_a_word() {
        for id in ["7", "job-7", "a1", "-7", UUID, "01ARZ3NDEKTSV4RRFFQ69G5FAV"] {
            assert!(!is_word(id), "{id}");
        }
        for id in ["abcdefab-cdef-abcd-efab-cdefabcdefab", "abcdefabcdefabcdefabcdef"] {
            assert!(!is_word(id), "{id}");
        }
        for word in ["stats", "latest", "next", "x", "batch-cancel", "...", "feed.atom"] {
            assert!(is_word(word), "{word}");
        }
    }

    #[test]
    fn a_uuid_is_canonical_in_one_spelling() {
        check_canonical(UUID, true);
        check_canonical(&UUID.to_uppercase(), false);
        check_canonical("0f8fad5b-d9cb-469f-a165-70867728950E", false);
        check_canonical(&UUID.replace('-', ""), false);
        check_canonical("0f8fad5bd9cb-469f-a165-70867728950e", false);
        // Decimal digits are hexadecimal digits as well.
        check_canonical("12345678901234567890123456789012", false);
        check_canonical(&format!("{UUID}0"), true);
        check_canonical(&format!("job-{UUID}"), true);
    }

    #[test]
    fn an_id_has_at_most_128_bytes() {
        check_canonical(&"a".repeat(MAX_ID_LEN), true);
        check_canonical(&"a".repeat(MAX_ID_LEN + 1), false);
        check(&format!("{}7", "0".repeat(MAX_ID_LEN)), &["7"]);
    }

    #[test]
    fn a_canonical_spelling_reads_as_itself() {
        for raw in ["7", "0", "-7", "abc", "job.2024.1", "ABC", UUID] {
            check(raw, &[raw]);
        }
    }

    #[test]
    fn every_spelling_of_a_uuid_reads_as_the_canonical_one() {
        let simple = UUID.replace('-', "");
        for spelling in [
            UUID.to_uppercase(),
            simple.clone(),
            simple.to_uppercase(),
            format!("{{{UUID}}}"),
            format!("({UUID})"),
            format!("urn:uuid:{UUID}"),
            format!("URN:UUID:{}", UUID.to_uppercase()),
            format!("urn%3Auuid%3A{UUID}"),
            format!("{{urn:{UUID}uuid:}}"),
            format!("%7B{simple}%7d"),
            format!(" {UUID}\n"),
            format!("{simple}.json"),
        ] {
            check(&spelling, &[UUID]);
        }
        // Java takes five groups without their leading zeros.
        let short = "f8fad5b-d9cb-69f-a165-867728950e";
        check(short, &["0f8fad5b-d9cb-069f-a165-00867728950e"]);
        check("1-2-3-4-5", &["00000001-0002-0003-0004-000000000005"]);
        for text in ["1-2-3-4", "1-2-3-4-", "1-2-3-4-5-6", "1-2-3-4-g5", "1-2-30000-4-5"] {
            check(text, &[text]);
        }
    }

    #[test]
    fn every_spelling_of_a_number_reads_as_the_canonical_one() {
        for spelling in
            ["007", "+7", "+07", "7.0", "07.00", "0_7", " 7 ", "\t7\n", "7+", "%2B7", "7%20", "7."]
        {
            check(spelling, &["7"]);
        }
        check("1_000", &["1000"]);
        check("-0", &["0"]);
        check("0000", &["0"]);
        check("-007", &["-7"]);
        check("7.json", &["7"]);
        check("007.JSON", &["7"]);
        // Both a number and a UUID.
        let uuid = "00123456-7890-1234-5678-901234567890";
        check("00123456789012345678901234567890", &[uuid, "123456789012345678901234567890"]);
    }

    #[test]
    fn percent_encoding_is_read_at_every_depth() {
        check("%37", &["7"]);
        check("%61%62c", &["abc"]);
        check("%2537", &["7"]);
        check("%252537", &["7"]);
        check("%25252537", &[]);
        check("a%2Db", &["a-b"]);
        check("a%2db", &["a-b"]);
        check("7%00", &["7"]);
        assert_eq!(MAX_DECODES, 3);
    }

    #[test]
    fn parameters_do_not_belong_to_the_id() {
        check("7;v=1", &["7"]);
        check("abc;jsessionid=x;y", &["abc"]);
        check("7%3Bv=1", &["7"]);
        check("7%3Fv=1", &["7"]);
        check("7%23x", &["7"]);
        check("%37;v=1", &["7"]);
        check("7.json;v=1", &["7"]);
    }

    #[test]
    fn what_cannot_be_an_id_has_no_reading() {
        for segment in
            ["", ".", "..", "%2e%2e", ";", "a b", "a%2Fb", "a:b", "%", "%zz", "%ff", "{}"]
        {
            check(segment, &[]);
        }
        check(&"a".repeat(64 << 10), &[]);
    }
}
