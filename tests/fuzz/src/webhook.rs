//! Only a caller that knows the secret may purge.
//!
//! Input: header lines, an empty line, the body.

use std::time::SystemTime;

use hyper::HeaderMap;
use jobcache::{
    admin::signature::{AuthError, SignedRequest, VerifiedSecret, verify_token},
    config::Secret,
};

const SECRETS: [&str; 2] = ["0123456789abcdef", "whsec_MDEyMzQ1Njc4OWFiY2RlZg=="];

/// Checks one input.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (lines, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    let headers = super::headers(lines);
    let now = SystemTime::UNIX_EPOCH;
    assert!(check(&[], &headers, body.as_bytes(), now).is_err());
    for text in SECRETS {
        let secret = Secret::new(text);
        let mut headers = headers.clone();
        let accepted = check(std::slice::from_ref(&secret), &headers, body.as_bytes(), now).is_ok();
        // A signature cannot be guessed, so an accepted request carries the token.
        let token = headers.get("authorization").and_then(|value| value.to_str().ok());
        let shown = token
            .and_then(|token| token.split_once(' '))
            .is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token == text);
        assert_eq!(accepted, shown, "{headers:?}");
        headers.remove("authorization");
        let error = check(&[secret], &headers, body.as_bytes(), now).expect_err("no token");
        assert!(!error.to_string().contains(text), "the error contains the secret");
    }
}

fn check(
    secrets: &[Secret],
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> Result<VerifiedSecret, AuthError> {
    let signed = || SignedRequest::parse(headers)?.verify(secrets, body, now);
    verify_token(secrets, headers).or_else(|_| signed())
}
