//! From the text of one value to the checked value. Pure; an error says what would be right.

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use hyper::{header::HeaderName, http::Uri};
use ipnet::IpNet;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{CacheMode, CredentialMode, LogFormat, NearMode, NearTracking, SampleRate, Secret};
use crate::{pointer::Pointer, proxy::route::Routes};

const MIN_SECRET: usize = 16;
/// Each call is tried against each.
const MAX_SECRETS: usize = 8;
const MAX_PREFIX: usize = 64;
/// Every request is matched against every route.
const MAX_ROUTES: usize = 64;
const MAX_ROUTE: usize = 1024;
/// Every request is searched for every header.
const MAX_HEADERS: usize = 64;
/// Every parameter of a query is compared with every name.
const MAX_PARAMETERS: usize = 64;
const MAX_PARAMETER: usize = 64;
/// Each connection is compared with each.
const MAX_NETWORKS: usize = 64;
/// Fields by which a read would be another one than that of a client that polls, or none at all.
const NOT_OF_A_POLL: [&str; 15] = [
    "accept-encoding",
    "cache-control",
    "connection",
    "content-length",
    "expect",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "pragma",
    "range",
    "te",
    "transfer-encoding",
    "upgrade",
];
const MAX_STATES: usize = 64;
const MAX_STATE: usize = 128;

/// A span of time with its unit, within `limits`.
pub(super) fn time(text: &str, limits: RangeInclusive<Duration>) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|_| r#"must be a time with its unit, such as "50ms", "5s" or "5m""#.to_owned())?;
    within(time, &limits, |limit| humantime::format_duration(*limit).to_string())
}

/// A whole number within `limits`.
pub(super) fn number(text: &str, limits: RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().map_err(|_| "must be a whole number".to_owned())?;
    within(number, &limits, usize::to_string)
}

/// A number of bytes, alone or in KiB, MiB or GiB, within `limits`.
///
/// Decimal units (`MB`) are refused: half the world means 1,048,576 by them.
pub(super) fn size(text: &str, limits: RangeInclusive<usize>) -> Result<usize, String> {
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
    within(number.saturating_mul(unit), &limits, |limit| bytes(*limit))
}

const SIZE: &str = r#"must be a whole number of bytes, KiB, MiB or GiB, such as "1MiB""#;

fn bytes(size: usize) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.into_iter().find(|(unit, _)| size >= *unit && size.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{size}B"), |(unit, name)| format!("{}{name}", size / unit))
}

/// `true` or `false`; 1 and 0 are what many write into an environment.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("must be true or false".to_owned()),
    }
}

/// A webhook secret: any 16 visible ASCII characters or more, or `whsec_` and base64.
///
/// It travels as a bearer token, so it must be what RFC 9110 section 5.5 calls VCHAR. The base64 is
/// judged by what will verify signatures with it.
pub(super) fn secret(text: &str) -> Result<String, String> {
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("must be visible ASCII characters without spaces".to_owned());
    }
    let encoded = text.strip_prefix("whsec_");
    if encoded.is_some() && Secret::new(text).key().is_none() {
        return Err("starts with whsec_, so the rest must be base64 with its padding".to_owned());
    }
    let (length, prefix) =
        (encoded.unwrap_or(text).len(), if encoded.is_some() { " after whsec_" } else { "" });
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
    count(items, "secret", MAX_SECRETS)?;
    let secret = |(index, item): (usize, &String)| {
        let place = |why| match items.len() {
            1 => why,
            all => format!("number {} of {all} {why}", index + 1),
        };
        secret(item).map(Secret::new).map_err(place)
    };
    items.iter().enumerate().map(secret).collect()
}

/// Path templates with one `{id}` segment each, judged by the router that will use them.
pub(super) fn routes(items: &[String]) -> Result<Vec<String>, String> {
    count(items, "route", MAX_ROUTES)?;
    if let Some(long) = items.iter().find(|item| item.len() > MAX_ROUTE) {
        return Err(format!("{long:?} must be at most {MAX_ROUTE} bytes long"));
    }
    Routes::parse(items).map_err(|error| error.to_string())?;
    Ok(items.to_vec())
}

/// What stands before the job id in a key. Braces are the hash tag of a cluster slot, and the rest
/// cannot be typed into `redis-cli`.
pub(super) fn prefix(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_PREFIX {
        return Err(format!("must be 1 to {MAX_PREFIX} bytes long"));
    }
    if text.contains(|c: char| c == '{' || c == '}' || c.is_whitespace() || c.is_control()) {
        return Err("must not contain braces, white space or control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// Header names, in lower case.
pub(super) fn headers(items: &[String]) -> Result<Vec<String>, String> {
    count(items, "header", MAX_HEADERS)?;
    let name = |item: &String| {
        let name = HeaderName::from_bytes(item.as_bytes());
        name.map(|name| name.as_str().to_owned())
            .map_err(|_| format!("{item:?} is not the name of a header"))
    };
    items.iter().map(name).collect()
}

/// Header fields as `Name: value`. What is wrong is told by their number: a value may be secret.
pub(super) fn fields(items: &[String]) -> Result<Vec<(HeaderName, Secret)>, String> {
    count(items, "header", MAX_HEADERS)?;
    items.iter().enumerate().map(|(at, item)| field(at + 1, item)).collect()
}

fn field(number: usize, text: &str) -> Result<(HeaderName, Secret), String> {
    let form = || format!("header {number} must be of the form \"Name: value\"");
    let (name, value) = text.split_once(':').ok_or_else(form)?;
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| form())?;
    if name == "authorization" {
        return Err("must not have Authorization: that is warm.authorization".to_owned());
    }
    if NOT_OF_A_POLL.contains(&name.as_str()) {
        return Err(format!("must not have {name}: with it a read is no plain poll of a job"));
    }
    let value = field_value(value.trim()).map_err(|why| format!("{why} in header {number}"))?;
    Ok((name, value.ok_or_else(form)?))
}

/// The value of a header field.
pub(super) fn field_value(text: &str) -> Result<Option<Secret>, String> {
    let visible = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if !visible || text.trim() != text || text.is_empty() {
        return Err("must be visible ASCII characters, with spaces within at most".to_owned());
    }
    Ok(Some(Secret::new(text)))
}

/// Path and query of a request to the upstream.
pub(super) fn target(text: &str) -> Result<Option<Uri>, String> {
    let uri = text.parse::<Uri>().ok().filter(|uri| uri.authority().is_none());
    // What begins with two slashes names a host to some.
    let is_path = text.starts_with('/') && !text.starts_with("//") && !text.contains('#');
    let uri = uri.filter(|_| is_path);
    uri.map(Some).ok_or_else(|| {
        "must be a path of your backend, with a query if need be, such as /jobs?status=active"
            .to_owned()
    })
}

/// Names of cookies (RFC 6265 4.1.1: tokens).
pub(super) fn cookies(items: &[String]) -> Result<Vec<String>, String> {
    count(items, "cookie", MAX_HEADERS)?;
    // The syntax of a cookie's name is that of a header's, but its case counts.
    let name = |item: &String| match HeaderName::from_bytes(item.as_bytes()) {
        Ok(_) => Ok(item.clone()),
        Err(_) => Err(format!("{item:?} is not the name of a cookie")),
    };
    items.iter().map(name).collect()
}

/// Networks, or single addresses of hosts; `none` is how a variable says that there are none.
pub(super) fn networks(items: &[String]) -> Result<Vec<IpNet>, String> {
    if items.len() > MAX_NETWORKS {
        return Err(format!("must name at most {MAX_NETWORKS} networks"));
    }
    if items == ["none"] {
        return Ok(Vec::new());
    }
    let network = |item: &String| {
        let host = || item.parse::<IpAddr>().ok().map(IpNet::from);
        item.parse().ok().or_else(host).ok_or_else(|| {
            format!("{item:?} is no network: name it as 10.0.0.0/8 or fd00::/8, or name a host")
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
        Err(_) => Err("must be the name of a host, or an IP address".to_owned()),
    }
}

/// A user of Redis' ACL.
pub(super) fn username(text: &str) -> Result<Option<String>, String> {
    let plain = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    let refused = || "must be the name of a user, without white space".to_owned();
    plain.then(|| Some(text.to_owned())).ok_or_else(refused)
}

/// A password of Redis: any text.
#[allow(clippy::unnecessary_wraps, reason = "the shape of every parser in the table")]
pub(super) fn password(text: &str) -> Result<Option<Secret>, String> {
    Ok(Some(Secret::new(text)))
}

/// Names of query parameters, decoded, none at all included.
///
/// What has a meaning in a query is refused, and so is `*`: whoever writes `utm_*` means a pattern.
pub(super) fn parameters(items: &[String]) -> Result<Vec<String>, String> {
    if items.len() > MAX_PARAMETERS {
        return Err(format!("must name at most {MAX_PARAMETERS} parameters"));
    }
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

/// Where a body tells the state of its job.
pub(super) fn pointer(text: &str) -> Result<Pointer, String> {
    Pointer::parse(text).map_err(|why| why.to_string())
}

/// States and the time of each, within `limits`.
pub(super) fn states(
    pairs: &[(String, String)],
    limits: RangeInclusive<Duration>,
) -> Result<Vec<(String, Duration)>, String> {
    if pairs.len() > MAX_STATES {
        return Err(format!("must name at most {MAX_STATES} states"));
    }
    let mut states: Vec<(String, Duration)> = Vec::with_capacity(pairs.len());
    for (state, text) in pairs {
        if state.len() > MAX_STATE {
            return Err(format!("{state:?} must be at most {MAX_STATE} bytes long"));
        }
        if states.iter().any(|(other, _)| other == state) {
            return Err(format!("{state:?} is named twice"));
        }
        let ttl = time(text, limits.clone())
            .map_err(|why| format!("the time of {state:?}, {text:?}, {why}"))?;
        states.push((state.clone(), ttl));
    }
    Ok(states)
}

/// What becomes of reads that the cache could answer.
pub(super) fn serving(text: &str) -> Result<CacheMode, String> {
    let found = [CacheMode::On, CacheMode::Shadow, CacheMode::Off]
        .into_iter()
        .find(|mode| mode.as_str() == text);
    found.ok_or_else(|| "must be on, shadow or off".to_owned())
}

/// A part of a whole, from 0 to 1.
pub(super) fn share(text: &str) -> Result<SampleRate, String> {
    let part = text.parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part));
    let part = part.ok_or_else(|| r#"must be a number from 0 to 1, such as "0.01""#.to_owned())?;
    // Between 0 and the whole, which fits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as above")]
    let millionths = (part * f64::from(SampleRate::WHOLE)).round() as u32;
    if millionths == 0 && part > 0.0 {
        return Err("must be 0, or at least 0.000001".to_owned());
    }
    Ok(SampleRate::of_millionths(millionths))
}

/// When an entry in this process may be used.
pub(super) fn near(text: &str) -> Result<NearMode, String> {
    let all = [NearMode::Strict, NearMode::Bounded, NearMode::Off];
    let found = all.into_iter().find(|mode| mode.as_str() == text);
    found.ok_or_else(|| "must be strict, bounded or off".to_owned())
}

/// Of which changes in Redis this process is told.
pub(super) fn near_tracking(text: &str) -> Result<NearTracking, String> {
    match text {
        "broadcast" => Ok(NearTracking::Broadcast),
        "keys" => Ok(NearTracking::Keys),
        _ => Err("must be broadcast or keys".to_owned()),
    }
}

/// How a line of the log looks.
pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be human or json".to_owned()),
    }
}

/// How requests with a credential are treated.
pub(super) fn mode(text: &str) -> Result<CredentialMode, String> {
    let all = [CredentialMode::Partition, CredentialMode::Shared, CredentialMode::Bypass];
    let found = all.into_iter().find(|mode| mode.as_str() == text);
    found.ok_or_else(|| "must be partition, shared or bypass".to_owned())
}

fn count(items: &[String], what: &str, most: usize) -> Result<(), String> {
    if items.is_empty() || items.len() > most {
        return Err(format!("must name 1 to {most} {what}s"));
    }
    Ok(())
}

fn within<T: PartialOrd>(
    value: T,
    limits: &RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) -> Result<T, String> {
    if limits.contains(&value) {
        return Ok(value);
    }
    Err(format!("must be between {} and {}", show(limits.start()), show(limits.end())))
}

/// Whether only this machine can reach the address.
pub(super) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// The path of a file. Whether it can be opened shows when it is.
#[allow(clippy::unnecessary_wraps, reason = "the shape of every parser in the table")]
pub(super) fn path(text: &str) -> Result<Option<PathBuf>, String> {
    Ok(Some(PathBuf::from(text)))
}
