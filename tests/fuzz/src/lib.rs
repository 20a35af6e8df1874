//! The checks of the fuzz targets, as functions.
//!
//! Each takes one input and panics if a property does not hold. `targets/` has a program of libFuzzer for
//! each. The integration tests compile this module too, and run every check with its seeds.

pub mod config;
pub mod entry;
pub mod location;
pub mod policy;
pub mod purge;
pub mod query;
pub mod route;
pub mod rules;
pub mod templates;
pub mod webhook;

/// A check of one input.
pub type Check = fn(&[u8]);

/// All checks, by the names of their targets.
pub const CHECKS: [(&str, Check); 10] = [
    ("config", config::run),
    ("entry", entry::run),
    ("location", location::run),
    ("policy", policy::run),
    ("purge", purge::run),
    ("query", query::run),
    ("route", route::run),
    ("rules", rules::run),
    ("templates", templates::run),
    ("webhook", webhook::run),
];

/// Splits an input into its first line and the rest.
pub fn line(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}

/// Parses header lines (`name: value`) and skips lines that are not valid headers.
pub fn headers(text: &str) -> hyper::HeaderMap {
    let pair = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        let name: hyper::header::HeaderName = name.parse().ok()?;
        Some((name, hyper::header::HeaderValue::from_bytes(value.as_bytes()).ok()?))
    };
    let mut headers = hyper::HeaderMap::new();
    for (name, value) in text.split('\n').filter_map(pair).take(32) {
        headers.append(name, value);
    }
    headers
}
