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
pub const TOLERANCE: u64 = 5 * 60;
/// Size in bytes above which a body is costly to hash: with 8 secrets, this many take about 2 ms.
pub const LARGE: usize = 64 << 10;

/// Most signatures of one message that are checked: more than a sender has secrets.
const MAX_SIGNATURES: usize = 32;
const SCHEME: &str = "Bearer ";

/// The header names of the Standard Webhooks specification, "Webhook headers".
pub(super) const WEBHOOK_ID: &str = "webhook-id";
const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
const WEBHOOK_SIGNATURE: &str = "webhook-signature";
const HEADERS: [&str; 3] = [WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE];

/// A successful verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
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
pub enum Unproven {
    /// There is neither token nor signature.
    #[error("the webhook secret is required")]
    Unsigned,
    /// The token is none of the secrets.
    #[error("the bearer token is not the webhook secret of this jobcache")]
    Bearer,
    /// A header of the signature is missing.
    #[error("{0} is missing; a signature needs all three webhook headers")]
    Missing(&'static str),
    /// A header cannot be read, or is repeated.
    #[error("{0}")]
    Malformed(&'static str),
    /// The token contains white space, as the setting does that lists several secrets.
    #[error("the bearer token contains white space, like a list of secrets; send one of them")]
    Several,
    /// There is a signature, but the call is not `POST /purge`.
    #[error(
        "a signature is accepted only for POST /purge, whose body says what to do: it covers neither \
         method nor path"
    )]
    Elsewhere,
    /// No signature matches the message with any of the secrets.
    #[error(
        "no signature in webhook-signature matches this id, timestamp and body, byte for byte, with a \
         webhook secret of this jobcache"
    )]
    Signature,
    /// The signature is valid, but its timestamp is too far off.
    #[error("{}", of_another_time(*.0))]
    Time(Skew),
    /// The timestamp is too far off and the body is large, so the signature was not checked.
    #[error("{}", of_another_time(*.0))]
    Stale(Skew),
}

fn of_another_time(skew: Skew) -> String {
    format!(
        "webhook-timestamp is {} s {}, and may be off by {TOLERANCE} s: sign each attempt again, and \
         set the clocks of sender and jobcache (NTP)",
        skew.seconds(),
        skew.which()
    )
}

impl Skew {
    pub(super) fn seconds(self) -> u64 {
        self.0.unsigned_abs()
    }

    pub(super) fn which(self) -> &'static str {
        if self.0 < 0 { "ahead" } else { "old" }
    }
}

/// A signature that is not checked yet, with the other signed parts except the body.
#[derive(Debug)]
pub struct Signed {
    id: String,
    /// The text of the header, which is signed.
    timestamp: String,
    time: i64,
    /// A sender that rotates its secrets signs with each of them.
    signatures: Vec<[u8; 32]>,
}

/// Verifies the bearer token of a call.
pub fn token(secrets: &[Secret], headers: &HeaderMap) -> Result<Proof, Unproven> {
    let value = once(headers, AUTHORIZATION.as_str())?.map(HeaderValue::as_bytes);
    let parts = value.and_then(|value| value.split_at_checked(SCHEME.len()));
    let Some((scheme, token)) = parts else { return Err(Unproven::Unsigned) };
    if !scheme.eq_ignore_ascii_case(SCHEME.as_bytes()) {
        return Err(Unproven::Unsigned);
    }
    // RFC 9110 (11.4): `auth-scheme [ 1*SP ( token68 / .. ) ]`.
    let token = token.trim_ascii_start();
    if token.iter().any(u8::is_ascii_whitespace) {
        return Err(Unproven::Several);
    }
    let digest = Hash::hash(token);
    let secret = find(secrets, |secret| Hash::hash(secret.expose().as_bytes()).ct_eq(&digest));
    secret.map(|secret| Proof { secret, skew: None }).ok_or(Unproven::Bearer)
}

/// Whether a call has any header of a signature.
pub fn is_signed(headers: &HeaderMap) -> bool {
    HEADERS.iter().any(|name| headers.contains_key(*name))
}

impl Signed {
    /// Parses the headers of a call. Fails early, before the body is read or hashed.
    pub fn read(headers: &HeaderMap) -> Result<Self, Unproven> {
        if !is_signed(headers) {
            return Err(Unproven::Unsigned);
        }
        let id = text(headers, HEADERS[0])?;
        let timestamp = text(headers, HEADERS[1])?;
        let mut lists = headers.get_all(HEADERS[2]).iter().peekable();
        lists.peek().ok_or(Unproven::Missing(HEADERS[2]))?;
        // The signed text is `id.timestamp.body`: a dot in the id would make it ambiguous.
        if id.is_empty() || id.contains('.') {
            return Err(Unproven::Malformed("webhook-id is empty or contains a dot"));
        }
        let is_digits = timestamp.bytes().all(|b| b.is_ascii_digit());
        let Some(time) = timestamp.parse().ok().filter(|_| is_digits) else {
            return Err(Unproven::Malformed("webhook-timestamp is not whole seconds since 1970"));
        };
        let lists = lists.filter_map(|list| list.to_str().ok());
        let signatures = lists.flat_map(|list| list.split(' ')).filter_map(signature);
        let signatures: Vec<_> = signatures.take(MAX_SIGNATURES).collect();
        if signatures.is_empty() {
            return Err(Unproven::Signature);
        }
        Ok(Self { id: id.to_owned(), timestamp: timestamp.to_owned(), time, signatures })
    }

    /// Verifies the signature for this body. The cost grows with the body and the number of
    /// secrets.
    pub fn check(
        &self,
        secrets: &[Secret],
        body: &[u8],
        now: SystemTime,
    ) -> Result<Proof, Unproven> {
        let skew = Skew(seconds(now).saturating_sub(self.time));
        let is_late = skew.seconds() > TOLERANCE;
        if is_late && body.len() > LARGE {
            return Err(Unproven::Stale(skew));
        }
        let matches = |secret: &Secret| {
            let expected = secret.key().map(|key| self.sign(&key, body));
            expected.map_or(Choice::from(0), |expected| among(&self.signatures, &expected))
        };
        let secret = find(secrets, matches).ok_or(Unproven::Signature)?;
        if is_late { Err(Unproven::Time(skew)) } else { Ok(Proof { secret, skew: Some(skew) }) }
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
fn signature(item: &str) -> Option<[u8; 32]> {
    let encoded = item.strip_prefix("v1,").filter(|encoded| encoded.len() == 44)?;
    STANDARD.decode(encoded).ok()?.try_into().ok()
}

/// Returns the only field of this name. Repeated fields are refused, because readers disagree on
/// which one counts.
fn once<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h HeaderValue>, Unproven> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(Unproven::Malformed(
            "authorization, webhook-id and webhook-timestamp may each appear once",
        )),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Unproven> {
    let value = once(headers, name)?.ok_or(Unproven::Missing(name))?;
    value.to_str().map_err(|_| Unproven::Malformed("a webhook header is not visible ASCII"))
}

/// Returns the index of the first secret that matches. Every secret is compared.
fn find(secrets: &[Secret], matches: impl Fn(&Secret) -> Choice) -> Option<usize> {
    let (mut found, mut first) = (Choice::from(0), 0_u32);
    for (index, secret) in (0_u32..).zip(secrets) {
        let is_match = matches(secret);
        first.conditional_assign(&index, is_match & !found);
        found |= is_match;
    }
    bool::from(found).then_some(first as usize)
}

fn among(signatures: &[[u8; 32]], expected: &[u8; 32]) -> Choice {
    let matches = signatures.iter().map(|signature| signature.ct_eq(expected));
    matches.fold(Choice::from(0), |found, is_match| found | is_match)
}

/// Whole seconds since 1970, the unit of the signed timestamp.
fn seconds(now: SystemTime) -> i64 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
