//! Shared parts of the fuzz targets.

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
