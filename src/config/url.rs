//! The URL of the upstream, and how URLs are shown without their passwords.

use std::path::PathBuf;

use hyper::Uri;
use url::Url;

use super::{
    address::socket_path,
    store_url::{self, StoreUrl},
};

const UPSTREAM: &str = "must be http://host[:port], https://host[:port] or unix:/path/to/socket";

/// The origin of the upstream without a trailing slash, or its socket as `unix:/path`.
pub(super) fn upstream(text: &str) -> Result<String, String> {
    let why = |why: &str| Err(format!("{UPSTREAM}; {why}"));
    if let Some(path) = text.strip_prefix("unix:") {
        let path = socket_path(path).or_else(|fault| why(&fault).map(PathBuf::from))?;
        return Ok(format!("unix:{}", path.display()));
    }
    // The parser would take `localhost:8000` for a scheme.
    let scheme = match text.split_once("://") {
        Some((scheme @ ("http" | "https"), _)) => scheme,
        Some(_) => return why("no other scheme is supported"),
        None => return why("the scheme is missing"),
    };
    let Ok(uri) = text.parse::<Uri>() else { return why("this is not a URL") };
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return why("remove user and password: clients send their own credentials");
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
        return why("remove the path: requests keep their own");
    }
    // `Uri` accepts ports that do not exist.
    if uri.host().is_none_or(str::is_empty) || Url::parse(text).is_err() {
        return why("host or port is not valid");
    }
    Ok(format!("{scheme}://{authority}"))
}

/// [`redacted`] for a URL that takes no credentials: a bare `host:port` without a scheme is shown.
///
/// A forgotten scheme is the most common mistake, and the message has to show it. Anything else that
/// is unclear stays hidden.
pub(super) fn shown_origin(text: &str) -> String {
    let (authority, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let is_place = authority
        .rsplit_once(':')
        .is_some_and(|(host, port)| is_name(host) && port.parse::<u16>().is_ok());
    let is_path = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b));
    if is_place && is_path { text.to_owned() } else { redacted(text) }
}

/// The URL without user, password, query and fragment; `***` where its parts are ambiguous.
///
/// An unescaped `/`, `?`, `#` or `@` in a password shifts the boundaries that a parser sees, so a stray
/// `@` hides everything.
pub(super) fn redacted(text: &str) -> String {
    const HIDDEN: &str = "***";
    if socket_path(text.strip_prefix("unix:").unwrap_or_default()).is_ok()
        && !text.contains(['?', '#', '@'])
    {
        return text.to_owned();
    }
    if let Ok(url @ (StoreUrl::Sentinel(_) | StoreUrl::Cluster(_))) = store_url::store(text) {
        return url.to_string();
    }
    let Ok(url) = Url::parse(text) else { return HIDDEN.to_owned() };
    let Some((scheme, rest)) = text.split_once("://") else { return HIDDEN.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
    if path.contains('@') || user.is_some_and(|user| user.contains('@')) || url.cannot_be_a_base() {
        return HIDDEN.to_owned();
    }
    let (path, query) = path.split_at(path.find(['?', '#']).unwrap_or(path.len()));
    let user = user.map_or("", |_| "***@");
    let query = if query.is_empty() { "" } else { "?***" };
    format!("{scheme}://{user}{host}{path}{query}")
}
