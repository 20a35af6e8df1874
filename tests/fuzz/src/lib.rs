//! What the targets share.

/// The first line of an input, and what follows it.
pub fn line(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}

/// The header lines (`name: value`) of a text, as far as they are some.
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
