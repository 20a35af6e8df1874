//! Whether a call proves that its sender knows a secret: by a bearer token, or by a Standard Webhooks
//! signature of the body.
//!
//! A signature covers neither method nor path, so it says what is to be done only where the body does.
//! Which pages those are is not decided here.
//!
//! While secrets are rotated there are several, and any of them is as good as the others. Each is
//! compared, in constant time and also once one was right, so that neither the text of one nor which of
//! them it was can be told by how long that took. Tokens are compared by their digests: else the length of
//! a secret could be told.
//!
//! The signature is judged before its time: only of a message that is known to be from a sender of ours
//! is it worth anything to know how far its clock is off. But a large body of another time is not worth
//! its hashing.

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

/// How far the time of a signature may be off, in seconds: what Standard Webhooks suggests.
pub const TOLERANCE: u64 = 5 * 60;
/// Bytes of a body past which it is dear to hash: with each of 8 secrets this many take about 2 ms.
pub const LARGE: usize = 64 << 10;

/// Signatures of one message that are looked at: as many as a sender may have secrets, and to spare.
const MAX_SIGNATURES: usize = 32;
const SCHEME: &str = "Bearer ";

/// The header names of the Standard Webhooks specification, "Webhook headers".
pub(super) const WEBHOOK_ID: &str = "webhook-id";
const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
const WEBHOOK_SIGNATURE: &str = "webhook-signature";
const HEADERS: [&str; 3] = [WEBHOOK_ID, WEBHOOK_TIMESTAMP, WEBHOOK_SIGNATURE];

/// What was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Which of the secrets is known, counted from 0, which is the newest.
    pub secret: usize,
    /// Of a signature.
    pub skew: Option<Skew>,
}

/// Seconds from the time that a sender has signed with until now: what is before 0 lies ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew(pub i64);

/// Why nothing was proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// There is neither token nor signature.
    #[error("nothing shows that you know the webhook secret")]
    Unsigned,
    /// A token, and not one of ours.
    #[error("the bearer token is not the webhook secret of this jobcache")]
    Bearer,
    /// A signature without all that belongs to it.
    #[error("{0} is missing beside the other headers of a signature")]
    Missing(&'static str),
    /// What belongs to a signature and cannot be read.
    #[error("{0}")]
    Malformed(&'static str),
    /// A token of several words, as the variable has that is to be split into secrets.
    #[error("the bearer token has white space in it, as several secrets have; send one of them")]
    Several,
    /// A signature where it could be one of anything.
    #[error(
        "a signature says what is to be done only to POST /purge, whose body says so: it covers \
         neither method nor path"
    )]
    Elsewhere,
    /// None of the signatures is one of this message by a secret of ours.
    #[error(
        "no signature in webhook-signature is one of this id, time and body, byte for byte, by a \
         webhook secret of this jobcache"
    )]
    Signature,
    /// A signature that is right, of another time than now.
    #[error("{}", of_another_time(*.0))]
    Time(Skew),
    /// A signature of a large body, right or not, of another time than now.
    #[error("{}", of_another_time(*.0))]
    Stale(Skew),
}

fn of_another_time(skew: Skew) -> String {
    format!(
        "webhook-timestamp is {} s {}, and may be off by {TOLERANCE} s: sign each try anew, and set \
         the clocks of sender and jobcache (NTP)",
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

/// A signature that is to be judged, and what it is one of beside the body.
#[derive(Debug)]
pub struct Signed {
    id: String,
    /// As it is signed.
    timestamp: String,
    time: i64,
    /// One for each secret that the sender has while it rotates them.
    signatures: Vec<[u8; 32]>,
}

/// Judges the bearer token of a call.
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
    let theirs = Hash::hash(token);
    let secret = find(secrets, |secret| Hash::hash(secret.expose().as_bytes()).ct_eq(&theirs));
    secret.map(|secret| Proof { secret, skew: None }).ok_or(Unproven::Bearer)
}

/// Whether there is anything of a signature.
pub fn is_signed(headers: &HeaderMap) -> bool {
    HEADERS.iter().any(|name| headers.contains_key(*name))
}

impl Signed {
    /// Reads the headers of a call. What cannot be right is told before its body is read, or hashed.
    pub fn read(headers: &HeaderMap) -> Result<Self, Unproven> {
        if !is_signed(headers) {
            return Err(Unproven::Unsigned);
        }
        let (id, timestamp) = (text(headers, HEADERS[0])?, text(headers, HEADERS[1])?);
        let mut lists = headers.get_all(HEADERS[2]).iter().peekable();
        lists.peek().ok_or(Unproven::Missing(HEADERS[2]))?;
        // `id.time.body` is what is signed: with another dot it could be split in another way.
        if id.is_empty() || id.contains('.') {
            return Err(Unproven::Malformed("webhook-id is empty or has a dot in it"));
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

    /// Judges it to be one of this body. That takes time for each byte and each secret.
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
        let is_right = |secret: &Secret| {
            let ours = secret.key().map(|key| self.sign(&key, body));
            ours.map_or(Choice::from(0), |ours| among(&self.signatures, &ours))
        };
        let secret = find(secrets, is_right).ok_or(Unproven::Signature)?;
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

/// One of a list. "Signatures are space delimited", and `v1` is the only version of shared secrets.
fn signature(item: &str) -> Option<[u8; 32]> {
    let encoded = item.strip_prefix("v1,").filter(|encoded| encoded.len() == 44)?;
    STANDARD.decode(encoded).ok()?.try_into().ok()
}

/// The only field of this name. Of two, others may judge another one than we do.
fn once<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h HeaderValue>, Unproven> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(Unproven::Malformed(
            "authorization, webhook-id and webhook-timestamp may each be there once",
        )),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Unproven> {
    let value = once(headers, name)?.ok_or(Unproven::Missing(name))?;
    value.to_str().map_err(|_| Unproven::Malformed("a webhook header is not visible ASCII"))
}

/// The first that is right. Each is asked.
fn find(secrets: &[Secret], is_right: impl Fn(&Secret) -> Choice) -> Option<usize> {
    let (mut found, mut place) = (Choice::from(0), 0_u32);
    for (at, secret) in (0_u32..).zip(secrets) {
        let right = is_right(secret);
        place.conditional_assign(&at, right & !found);
        found |= right;
    }
    bool::from(found).then_some(place as usize)
}

fn among(signatures: &[[u8; 32]], ours: &[u8; 32]) -> Choice {
    let each = signatures.iter().map(|theirs| theirs.ct_eq(ours));
    each.fold(Choice::from(0), |found, right| found | right)
}

/// Whole seconds, as they are signed.
fn seconds(now: SystemTime) -> i64 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
