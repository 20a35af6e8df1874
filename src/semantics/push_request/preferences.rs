//! `Prefer` (RFC 7240), of which only `wait` means something to jobcache.

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

use crate::semantics::headers::rewrite;

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Removes every `wait` from `Prefer`, and returns the seconds of the first one; `None` if it is no
/// number. Lines without a `wait` stay as they are.
///
/// "If any preference is specified more than once, only the first instance is to be considered." RFC
/// 7240 2
pub(super) fn take_wait(headers: &mut HeaderMap) -> Option<u64> {
    let lines = || headers.get_all(PREFER).into_iter().map(HeaderValue::as_bytes);
    let wait = lines().flat_map(|line| list_members(line, b',')).find(|member| is_wait(member))?;
    let seconds = seconds(wait);
    rewrite(headers, |name, value| if *name == PREFER { without_wait(value) } else { Some(value) });
    seconds
}

/// Returns the trimmed members of a list that are not empty, split at the separators outside of quoted
/// strings (RFC 9110 5.6.1 and 5.6.4). A string that does not end goes to the end of the line.
pub(super) fn list_members(line: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    let is_separator = move |byte: &u8| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        !quoted && *byte == separator
    };
    line.split(is_separator).map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Returns a preference without its parameters, as a name and a value.
fn name_and_value(member: &[u8]) -> (&[u8], &[u8]) {
    let preference = list_members(member, b';').next().unwrap_or_default();
    let end = preference.iter().position(|&b| b == b'=').unwrap_or(preference.len());
    let (name, value) = preference.split_at(end);
    (name.trim_ascii(), value.strip_prefix(b"=").unwrap_or_default().trim_ascii())
}

/// "preference tokens are case insensitive" RFC 7240 2
fn is_wait(member: &[u8]) -> bool {
    name_and_value(member).0.eq_ignore_ascii_case(b"wait")
}

/// "wait = "wait" BWS "=" BWS delta-seconds" RFC 7240 4.3. A value may be quoted (section 2). A number
/// that is too large for any clock is as large as any.
fn seconds(wait: &[u8]) -> Option<u64> {
    let (_, value) = name_and_value(wait);
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let digits = unquoted.unwrap_or(value);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit =
        |number: u64, byte: &u8| number.saturating_mul(10).saturating_add((byte - b'0').into());
    Some(digits.iter().fold(0, digit))
}

/// Returns a line without its `wait`; `None` if nothing else is there.
fn without_wait(line: HeaderValue) -> Option<HeaderValue> {
    let members = || list_members(line.as_bytes(), b',');
    if !members().any(is_wait) {
        return Some(line);
    }
    let others: Vec<&[u8]> = members().filter(|member| !is_wait(member)).collect();
    // Parts of a valid value joined by visible characters form a valid value.
    HeaderValue::from_bytes(&others.join(&b", "[..])).ok().filter(|rest| !rest.is_empty())
}
