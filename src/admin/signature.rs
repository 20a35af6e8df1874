//! Verification of a bearer token or of a Standard Webhooks signature of the body.
//!
//! A signature covers neither method nor path, so it is only good for calls whose body says what to
//! do. The caller of this module decides which calls those are.
//!
//! While secrets are rotated several are valid, and all of them are equal. Every secret is
//! compared, in constant time and even after a match, so that timing reveals neither the text of a
//! secret nor which one matched. Tokens are compared by their digests, because comparing the texts
//! would reveal the length of a secret.
//!
//! The signature is verified before its timestamp, because the clock skew is meaningful only for
//! messages of a known sender. The exception is a large body with a wrong timestamp: hashing it
//! would cost too much.

#[cfg(test)]
mod tests;

use std::time::SystemTime;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac_sha256::{HMAC, Hash};
use hyper::{
    HeaderMap,
    http::{HeaderValue, header::AUTHORIZATION},
};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq};

use crate::config::Secret;

/// Largest clock skew of a signature, in seconds, as Standard Webhooks suggests.
pub const MAX_CLOCK_SKEW_S: u64 = 5 * 60;
/// Size in bytes above which a body is costly to hash: with 8 secrets, this many take about 2 ms.
pub const LARGE_BODY: usize = 64 << 10;

/// Most signatures of one message that are checked: more than a sender has secrets.
const MAX_SIGNATURES: usize = 32;
const SCHEME: &str = "Bearer ";

/// The header names of the Standard Webhooks specification, "Webhook headers".
pub(super) const WEBHOOK_ID: &str = "webhook-id";
const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
const WEBHOOK_SIGNATURE: &str = "webhook-signature";
const SIGNATURE_HEADERS: [&str; 3] = [WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE];

/// A successful verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedSecret {
    /// Index of the secret; 0 is the newest.
    pub secret: usize,
    /// Clock skew of a signature; `None` for a bearer token.
    pub skew: Option<Skew>,
}

/// Seconds from the timestamp of a signature until now; negative if the timestamp lies ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew(pub i64);

/// Why a call is not authorized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There is neither token nor signature.
    #[error("the webhook secret is required")]
    NoCredentials,
    /// The token is none of the secrets.
    #[error("the bearer token is not the webhook secret of this jobcache")]
    WrongToken,
    /// A header of the signature is missing.
    #[error("{0} is missing; a signature needs all three webhook headers")]
    MissingHeader(&'static str),
    /// A header cannot be read, or is repeated.
    #[error("{0}")]
    MalformedHeader(&'static str),
    /// The token contains white space, as the setting does that lists several secrets.
    #[error("the bearer token contains white space, like a list of secrets; send one of them")]
    SeveralTokens,
    /// There is a signature, but the call is not `POST /purge`.
    #[error(
        "a signature is accepted only for POST /purge, whose body says what to do: it covers neither \
         method nor path"
    )]
    SignatureNotAccepted,
    /// No signature matches the message with any of the secrets.
    #[error(
        "no signature in webhook-signature matches this id, timestamp and body, byte for byte, with a \
         webhook secret of this jobcache"
    )]
    WrongSignature,
    /// The signature is valid, but its timestamp is too far off.
    #[error("{}", wrong_timestamp_text(*.0))]
    WrongTimestamp(Skew),
    /// The timestamp is too far off and the body is large, so the signature was not checked.
    #[error("{}", wrong_timestamp_text(*.0))]
    UncheckedTimestamp(Skew),
}

fn wrong_timestamp_text(skew: Skew) -> String {
    format!(
        "webhook-timestamp is {} s {}, and may be off by {MAX_CLOCK_SKEW_S} s: sign each attempt again, and \
         set the clocks of sender and jobcache (NTP)",
        skew.seconds(),
        skew.direction()
    )
}

impl Skew {
    pub(super) fn seconds(self) -> u64 {
        self.0.unsigned_abs()
    }

    pub(super) fn direction(self) -> &'static str {
        if self.0 < 0 { "ahead" } else { "old" }
    }
}

/// A signature that is not checked yet, with the other signed parts except the body.
#[derive(Debug)]
pub struct SignedRequest {
    id: String,
    /// The text of the header, which is signed.
    timestamp: String,
    timestamp_s: i64,
    /// A sender that rotates its secrets signs with each of them.
    signatures: Vec<[u8; 32]>,
}

/// Verifies the bearer token of a call.
pub fn verify_token(secrets: &[Secret], headers: &HeaderMap) -> Result<VerifiedSecret, AuthError> {
    let value = single_field(headers, AUTHORIZATION.as_str())?.map(HeaderValue::as_bytes);
    let parts = value.and_then(|value| value.split_at_checked(SCHEME.len()));
    let Some((scheme, token)) = parts else { return Err(AuthError::NoCredentials) };
    if !scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) {
        return Err(AuthError::NoCredentials);
    }
    // RFC 9110 (11.4): `auth-scheme [ 1*SP ( token68 / .. ) ]`.
    let token = token.trim_ascii_start();
    if token.iter().any(u8::is_ascii_whitespace) {
        return Err(AuthError::SeveralTokens);
    }
    let digest = Hash::hash(token);
    let secret =
        find_secret(secrets, |secret| Hash::hash(secret.expose().as_bytes()).ct_eq(&digest));
    secret.map(|secret| VerifiedSecret { secret, skew: None }).ok_or(AuthError::WrongToken)
}

/// Whether a call has any header of a signature.
pub fn has_signature_header(headers: &HeaderMap) -> bool {
    SIGNATURE_HEADERS.iter().any(|name| headers.contains_key(*name))
}

impl SignedRequest {
    /// Parses the headers of a call. Fails early, before the body is read or hashed.
    pub fn parse(headers: &HeaderMap) -> Result<Self, AuthError> {
        if !has_signature_header(headers) {
            return Err(AuthError::NoCredentials);
        }
        let id = field_text(headers, SIGNATURE_HEADERS[0])?;
        let timestamp = field_text(headers, SIGNATURE_HEADERS[1])?;
        let mut lists = headers.get_all(SIGNATURE_HEADERS[2]).iter().peekable();
        lists.peek().ok_or(AuthError::MissingHeader(SIGNATURE_HEADERS[2]))?;
        // The signed text is `id.timestamp.body`: a dot in the id would make it ambiguous.
        if id.is_empty() || id.contains('.') {
            return Err(AuthError::MalformedHeader("webhook-id is empty or contains a dot"));
        }
        let is_digits = timestamp.bytes().all(|b| b.is_ascii_digit());
        let Some(time) = timestamp.parse().ok().filter(|_| is_digits) else {
            return Err(AuthError::MalformedHeader(
                "webhook-timestamp is not whole seconds since 1970",
            ));
        };
        let lists = lists.filter_map(|list| list.to_str().ok());
        let signatures = lists.flat_map(|list| list.split(' ')).filter_map(parse_signature);
        let signatures: Vec<_> = signatures.take(MAX_SIGNATURES).collect();
        if signatures.is_empty() {
            return Err(AuthError::WrongSignature);
        }
        Ok(Self {
            id: id.to_owned(),
            timestamp: timestamp.to_owned(),
            timestamp_s: time,
            signatures,
        })
    }

    /// Verifies the signature for this body. The cost grows with the body and the number of
    /// secrets.
    pub fn verify(
        &self,
        secrets: &[Secret],
        body: &[u8],
        now: SystemTime,
    ) -> Result<VerifiedSecret, AuthError> {
        let skew = Skew(unix_seconds(now).saturating_sub(self.timestamp_s));
        let is_late = skew.seconds() > MAX_CLOCK_SKEW_S;
        if is_late && body.len() > LARGE_BODY {
            return Err(AuthError::UncheckedTimestamp(skew));
        }
        let matches = |secret: &Secret| {
            let expected = secret.key().map(|key| self.sign(&key, body));
            expected
                .map_or(Choice::from(0), |expected| contains_signature(&self.signatures, &expected))
        };
        let secret = find_secret(secrets, matches).ok_or(AuthError::WrongSignature)?;
        if is_late {
            Err(AuthError::WrongTimestamp(skew))
        } else {
            Ok(VerifiedSecret { secret, skew: Some(skew) })
        }
    }

    fn sign(&self, key: &[u8], body: &[u8]) -> [u8; 32] {
        let mut mac = HMAC::new(key);
        for part in [self.id.as_bytes(), b".", self.timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac.finalize()
    }
}

/// Decodes one signature of a list. "Signatures are space delimited", and `v1` is the only version
/// for shared secrets.
fn parse_signature(item: &str) -> Option<[u8; 32]> {
    let encoded = item.strip_prefix("v1,").filter(|encoded| encoded.len() == 44)?;
    STANDARD.decode(encoded).ok()?.try_into().ok()
}

/// Returns the only field of this name. Repeated fields are refused, because readers disagree on
/// which one counts.
fn single_field<'h>(
    headers: &'h HeaderMap,
    name: &str,
) -> Result<Option<&'h HeaderValue>, AuthError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(AuthError::MalformedHeader(
            "authorization, webhook-id and webhook-timestamp may each appear once",
        )),
    }
}

fn field_text<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, AuthError> {
    let value = single_field(headers, name)?.ok_or(AuthError::MissingHeader(name))?;
    value.to_str().map_err(|_| AuthError::MalformedHeader("a webhook header is not visible ASCII"))
}

/// Returns the index of the first secret that matches. Every secret is compared.
fn find_secret(secrets: &[Secret], matches: impl Fn(&Secret) -> Choice) -> Option<usize> {
    let (mut found, mut first) = (Choice::from(0), 0_u32);
    for (index, secret) in (0_u32..).zip(secrets) {
        let is_match = matches(secret);
        first.conditional_assign(&index, is_match & !found);
        found |= is_match;
    }
    bool::from(found).then_some(first as usize)
}

fn contains_signature(signatures: &[[u8; 32]], expected: &[u8; 32]) -> Choice {
    let matches = signatures.iter().map(|signature| signature.ct_eq(expected));
    matches.fold(Choice::from(0), |found, is_match| found | is_match)
}

/// Whole seconds since 1970, the unit of the signed timestamp.
fn unix_seconds(now: SystemTime) -> i64 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
