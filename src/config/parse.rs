//! Parsers from the text of one value to the checked value, and the limits of values. They are pure;
//! errors say what would be right. Limits that a document states stand in the table of settings and are
//! passed in: one constant of the table serves the check, its message and the documents.

use std::{fmt::Display, net::IpAddr, path::PathBuf, time::Duration};

use hyper::{
    StatusCode,
    header::{HeaderName, HeaderValue},
    http::Uri,
};
use ipnet::IpNet;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing_subscriber::{EnvFilter, filter::ParseError};

use super::{RouteConfig, SampleRate, Secret, carries_meaning};
use crate::semantics::{
    json_pointer::JsonPointer,
    policy::never_stored,
    route::{Routes, check_route},
};

pub(super) const MIN_SECRET: usize = 16;
const MAX_ROUTE: usize = 1024;
const MAX_PARAMETER: usize = 64;
const MAX_STATE: usize = 128;
/// Fields that would make a warming read differ from the poll of a client, or make it invalid.
const NOT_IN_A_POLL: &str = "\
    accept-encoding cache-control connection content-length expect if-match if-modified-since \
    if-none-match if-range if-unmodified-since pragma range te transfer-encoding upgrade";

/// A span of time with its unit.
pub(super) fn time(text: &str, bounds: Bounds<Duration>) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| r#"must be a time with its unit, such as "50ms", "5s" or "5m""#.to_owned())?;
    within(time, bounds, show_time)
}

/// A whole number.
pub(super) fn number(text: &str, bounds: Bounds<usize>) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "must be a whole number".to_owned())?;
    within(number, bounds, |number| number)
}

/// A number of bytes, alone or in KiB, MiB or GiB.
///
/// Decimal units (`MB`) are refused: for many people 1 MB is 1,048,576 bytes.
pub(super) fn size(text: &str, bounds: Bounds<usize>) -> Result<usize, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit: usize = match unit.trim_start() {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    }
    .ok_or_else(|| SIZE.to_owned())?;
    let number: usize = number.parse().map_err(|_| SIZE.to_owned())?;
    within(number.saturating_mul(unit), bounds, show_bytes)
}

const SIZE: &str = r#"must be a whole number of bytes, KiB, MiB or GiB, such as "1MiB""#;

/// `true` or `false`; also 1 or 0, which are common in environments.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// A secret of 16 or more visible ASCII characters, or `whsec_` and base64.
///
/// A secret is sent as a bearer token, so it must consist of VCHAR (RFC 9110 section 5.5). The base64 is
/// checked by the code that verifies signatures with it.
pub(super) fn secret(text: &str) -> Result<String, String> {
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("must be visible ASCII characters without spaces".to_owned());
    }
    let encoded = text.strip_prefix("whsec_");
    if encoded.is_some() && Secret::new(text).key().is_none() {
        return Err("starts with whsec_, so the rest must be base64 with its padding".to_owned());
    }
    let length = encoded.unwrap_or(text).len();
    let prefix = if encoded.is_some() { " after whsec_" } else { "" };
    if length < MIN_SECRET {
        return Err(format!(
            "has {length} characters{prefix}, and must have at least {MIN_SECRET}: make one with \
             `openssl rand -base64 32`"
        ));
    }
    Ok(text.to_owned())
}

/// Webhook secrets, the newest first.
pub(super) fn secrets(items: &[String]) -> Result<Vec<Secret>, String> {
    let secret = |(index, item): (usize, &String)| {
        let place = |why| match items.len() {
            1 => why,
            all => format!("number {} of {all} {why}", index + 1),
        };
        secret(item).map(Secret::new).map_err(place)
    };
    items.iter().enumerate().map(secret).collect()
}

/// Path templates with one `{id}` segment each, checked by the router that will use them.
pub(super) fn routes(items: &[String]) -> Result<Vec<String>, String> {
    if let Some(long) = items.iter().find(|item| item.len() > MAX_ROUTE) {
        return Err(format!("{long:?} must be at most {MAX_ROUTE} bytes long"));
    }
    Routes::parse(items).map_err(|error| error.to_string())?;
    Ok(items.to_vec())
}

/// The text before the job id in a key. Braces would be the hash tag of a cluster slot, and white space
/// and control characters cannot be typed into `redis-cli`.
pub(super) fn prefix(text: &str) -> Result<String, String> {
    if text.contains(|c: char| c == '{' || c == '}' || c.is_whitespace() || c.is_control()) {
        return Err("must not contain braces, white space or control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// The name of an API: it is compared byte for byte, and is shown in logs.
pub(super) fn api(text: &str) -> Result<Option<String>, String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
    if !text.bytes().all(is_plain) {
        return Err("must be letters, digits and . _ ~ - only, such as \"billing\"".to_owned());
    }
    Ok(Some(text.to_owned()))
}

/// Header names, in lower case.
pub(super) fn headers(items: &[String]) -> Result<Vec<String>, String> {
    let name = |item: &String| {
        let name = HeaderName::from_bytes(item.as_bytes());
        name.map(|name| name.as_str().to_owned())
            .map_err(|_| format!("{item:?} is not the name of a header"))
    };
    items.iter().map(name).collect()
}

/// Names of response headers that hits may go without, in lower case.
pub(super) fn volatile_headers(items: &[String]) -> Result<Vec<String>, String> {
    let names = headers(items)?;
    match names.iter().find(|name| carries_meaning(name)) {
        Some(name) => Err(format!(
            "must not have {name}: clients or caches act on it, so hits need it; remove the name, and \
             let the API send the same value as long as the job does not change"
        )),
        None => Ok(names),
    }
}

/// Header fields as `Name: value`. Errors name a field by its number, because a value may be secret.
pub(super) fn fields(items: &[String]) -> Result<Vec<(HeaderName, Secret)>, String> {
    items.iter().enumerate().map(|(at, item)| field(at + 1, item)).collect()
}

fn field(number: usize, text: &str) -> Result<(HeaderName, Secret), String> {
    let form = || format!("header {number} must be of the form \"Name: value\"");
    let (name, value) = text.split_once(':').ok_or_else(form)?;
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| form())?;
    if name == "authorization" {
        return Err("must not have Authorization: set warm.authorization instead".to_owned());
    }
    if NOT_IN_A_POLL.split(' ').any(|other| other == name.as_str()) {
        return Err(format!(
            "must not have {name}: the read would no longer be a plain poll of a job"
        ));
    }
    let value =
        field_value(value.trim()).map_err(|why| format!("the value of header {number} {why}"))?;
    Ok((name, value.ok_or_else(form)?))
}

/// The value of a header field that may be secret.
pub(super) fn field_value(text: &str) -> Result<Option<Secret>, String> {
    header_value(text).map(|_| Some(Secret::new(text)))
}

/// The value of a header field.
pub(super) fn header_value(text: &str) -> Result<HeaderValue, String> {
    let visible = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    let value = HeaderValue::try_from(text).ok();
    value.filter(|_| visible && text.trim() == text && !text.is_empty()).ok_or_else(|| {
        "must be visible ASCII characters; spaces are allowed only between them".to_owned()
    })
}

/// Path and query of a request to the upstream.
pub(super) fn target(text: &str) -> Result<Option<Uri>, String> {
    let uri = text.parse::<Uri>().ok().filter(|uri| uri.authority().is_none());
    // Some servers read a host after two slashes.
    let is_path = text.starts_with('/') && !text.starts_with("//") && !text.contains('#');
    let uri = uri.filter(|_| is_path);
    uri.map(Some).ok_or_else(|| {
        "must be a path of the API, with a query if needed, such as /jobs?status=active".to_owned()
    })
}

/// Names of cookies (RFC 6265 4.1.1: tokens).
pub(super) fn cookies(items: &[String]) -> Result<Vec<String>, String> {
    // The name of a cookie has the syntax of a header's name, but its case counts.
    let name = |item: &String| match HeaderName::from_bytes(item.as_bytes()) {
        Ok(_) => Ok(item.clone()),
        Err(_) => Err(format!("{item:?} is not the name of a cookie")),
    };
    items.iter().map(name).collect()
}

/// Networks or addresses of single hosts; the item `none` in a variable is the empty list.
pub(super) fn networks(items: &[String]) -> Result<Vec<IpNet>, String> {
    if items == ["none"] {
        return Ok(Vec::new());
    }
    let network = |item: &String| {
        let host = || item.parse::<IpAddr>().ok().map(IpNet::from);
        item.parse().ok().or_else(host).ok_or_else(|| {
            format!("{item:?} is not a network: write 10.0.0.0/8 or fd00::/8, or the IP address of a host")
        })
    };
    items.iter().map(network).collect()
}

/// Permissions of a file, in octal.
pub(super) fn mode_bits(text: &str) -> Result<u32, String> {
    let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777);
    bits.ok_or_else(|| "must be permissions in octal, such as 0660".to_owned())
}

/// The name of a server in its certificate.
pub(super) fn server_name(text: &str) -> Result<Option<String>, String> {
    match ServerName::try_from(text) {
        Ok(_) => Ok(Some(text.to_owned())),
        Err(_) => Err("must be a host name or an IP address".to_owned()),
    }
}

/// A user of Redis (ACL).
pub(super) fn username(text: &str) -> Result<Option<String>, String> {
    let plain = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    let refused = || "must be the name of a user without white space".to_owned();
    plain.then(|| Some(text.to_owned())).ok_or_else(refused)
}

/// A password of Redis: any text.
#[allow(clippy::unnecessary_wraps, reason = "the shape of every parser in the table")]
pub(super) fn password(text: &str) -> Result<Option<Secret>, String> {
    Ok(Some(Secret::new(text)))
}

/// Names of query parameters, decoded.
///
/// Characters with a meaning in a query are refused, and `*` too: `utm_*` would look like a pattern.
pub(super) fn parameters(items: &[String]) -> Result<Vec<String>, String> {
    let is_name = |item: &&String| {
        (1..=MAX_PARAMETER).contains(&item.len())
            && item.bytes().all(|b| b.is_ascii_graphic() && !b"&=;+%#?*".contains(&b))
    };
    match items.iter().find(|item| !is_name(item)) {
        Some(item) => Err(format!(
            "{item:?} is not the name of a query parameter: write each name out, decoded, in 1 to \
             {MAX_PARAMETER} visible ASCII characters other than & = ; + % # ? *"
        )),
        None => Ok(items.to_vec()),
    }
}

/// A JSON pointer.
pub(super) fn pointer(text: &str) -> Result<JsonPointer, String> {
    JsonPointer::parse(text).map_err(str::to_owned)
}

/// Keys of the user's own, such as states, and the time of each.
pub(super) fn times(
    pairs: &[(String, String)],
    count: ItemCount,
    bounds: Bounds<Duration>,
) -> Result<Vec<(String, Duration)>, String> {
    check_count(pairs.len(), count)?;
    let mut states: Vec<(String, Duration)> = Vec::with_capacity(pairs.len());
    for (state, text) in pairs {
        if state.len() > MAX_STATE {
            return Err(too_long(state));
        }
        if states.iter().any(|(other, _)| other == state) {
            return Err(format!("{state:?} is named twice"));
        }
        let ttl =
            time(text, bounds).map_err(|why| format!("the time of {state:?}, {text:?}, {why}"))?;
        states.push((state.clone(), ttl));
    }
    Ok(states)
}

/// States of a job.
pub(super) fn states(items: &[String]) -> Result<Vec<String>, String> {
    let long = items.iter().find(|state| state.len() > MAX_STATE);
    long.map_or_else(|| Ok(items.to_vec()), |state| Err(too_long(state)))
}

fn too_long(state: &str) -> String {
    format!("{state:?} must be at most {MAX_STATE} bytes long")
}

/// Final statuses that may be stored besides 200.
pub(super) fn statuses(
    times: Vec<(String, Duration)>,
) -> Result<Vec<(StatusCode, Duration)>, String> {
    let status = |(text, ttl): (String, Duration)| {
        let status = text.parse::<StatusCode>();
        let status =
            status.map_err(|_| format!("{text:?} is not a status; give one such as 404"))?;
        let is_ok = status == StatusCode::OK;
        let why = if is_ok {
            Some("is always stored; set its time by ttl")
        } else {
            never_stored(status)
        };
        why.map_or(Ok((status, ttl)), |why| Err(format!("{text} {why}; remove it")))
    };
    times.into_iter().map(status).collect()
}

/// Paths that are never cached.
pub(super) fn except(items: &[String]) -> Result<Vec<String>, String> {
    let route = RouteConfig { except: items.to_vec(), ..RouteConfig::at("/{id}") };
    check_route(&route)?;
    Ok(items.to_vec())
}

/// A share of a whole, from 0 to 1.
pub(super) fn sample_rate(text: &str) -> Result<SampleRate, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    let share =
        share.ok_or_else(|| r#"must be a number from 0 to 1, such as "0.01""#.to_owned())?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share is between 0 and 1"
    )]
    let millionths = (share * f64::from(SampleRate::WHOLE)).round() as u32;
    if millionths == 0 && share > 0.0 {
        return Err("must be 0, or at least 0.000001".to_owned());
    }
    Ok(SampleRate::of_millionths(millionths))
}

/// The path of a file. Whether it can be opened is checked when it is opened.
#[allow(clippy::unnecessary_wraps, reason = "the shape of every parser in the table")]
pub(super) fn path(text: &str) -> Result<Option<PathBuf>, String> {
    Ok(Some(PathBuf::from(text)))
}

/// Smallest and largest allowed value.
pub(super) type Bounds<T> = (T, T);
/// Smallest and largest number of items, and the word for one of them.
pub(super) type ItemCount = (usize, usize, &'static str);

/// Returns `value` if it is within the bounds; otherwise the error names both of them.
fn within<T: PartialOrd + Copy, D: Display>(
    value: T,
    (min, max): Bounds<T>,
    show: impl Fn(T) -> D,
) -> Result<T, String> {
    let refused = || format!("must be between {} and {}", show(min), show(max));
    (min..=max).contains(&value).then_some(value).ok_or_else(refused)
}

/// Fails unless a list of `count` items is allowed.
pub(super) fn check_count(count: usize, allowed: ItemCount) -> Result<(), String> {
    let refused = || format!("must name {}", show_count(allowed));
    (allowed.0..=allowed.1).contains(&count).then_some(()).ok_or_else(refused)
}

/// Both bounds for a document, such as `1ms to 10s`.
pub(super) fn show_bounds<T, D: Display>((min, max): Bounds<T>, show: impl Fn(T) -> D) -> String {
    format!("{} to {}", show(min), show(max))
}

/// The limit for a document, such as `1 to 64 routes`.
pub(super) fn show_count((min, max, item): ItemCount) -> String {
    if min == 0 { format!("at most {max} {item}s") } else { format!("{min} to {max} {item}s") }
}

/// A time as it is written in a configuration, such as `50ms` or `1day`.
pub(super) fn show_time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// A number of bytes in the largest unit that divides it, such as `64KiB`.
pub(super) fn show_bytes(size: usize) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.into_iter().find(|(unit, _)| size >= *unit && size.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{size}B"), |(unit, name)| format!("{}{name}", size / unit))
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks a filter for [`telemetry::init`](crate::telemetry::init).
///
/// A single word that is not a level is refused although the syntax allows it: it would be a target,
/// so `verbose` would silence everything else.
pub fn log_filter(text: &str) -> Result<String, String> {
    let directives = || text.split(',').map(str::trim).filter(|s| !s.is_empty());
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let refused = |text: &str, kind| {
        let levels = LEVELS.join(", ");
        format!(
            "{text:?} is not a {kind}: must be one of {levels} or a list such as \"info,jobcache=debug\""
        )
    };
    let stray = directives().find(|text| !text.contains(['=', '[']) && !is_level(text));
    if let Some(word) = stray {
        return Err(refused(word, "level"));
    }
    if text.contains(char::is_control) {
        return Err(format!("{text:?} has a control character, such as a line break: remove it"));
    }
    if directives().next().is_none() || parsed_log_filter(text).is_err() {
        return Err(refused(text, "filter"));
    }
    Ok(text.to_owned())
}

/// Parses a filter such as `info` or `info,jobcache=debug`. Values of fields are compared literally: as
/// regular expressions, a few characters could occupy a thread for minutes.
pub fn parsed_log_filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().with_regex(false).parse(text)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::parsed_log_filter;

    #[test]
    fn a_field_in_a_filter_is_no_pattern() {
        let started = Instant::now();
        assert!(
            parsed_log_filter(&format!("info,[request{{x=.*a{}}}]=info", ".".repeat(100))).is_ok()
        );
        // Compiling the field as a pattern would take minutes.
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    }
}
