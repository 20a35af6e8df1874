//! Whether a call proves that its sender knows a secret: by a bearer token, or by a Standard Webhooks
//! signature of the body (of no bytes, where the job is named by the path).
//!
//! While secrets are rotated there are several, and any of them is as good as the others. Each is
//! compared, in constant time and also once one was right, so that neither the text of one nor which of
//! them it was can be told by how long that took.
//!
//! The signature is judged before its time: only of a message that is known to be from a sender of ours
//! is it worth anything to know how far its clock is off.

use std::time::SystemTime;

use hyper::{HeaderMap, http::header::AUTHORIZATION};
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq};

use crate::config::Secret;

/// How far the time of a signature may be off, in seconds: what Standard Webhooks suggests.
pub const TOLERANCE: u64 = 5 * 60;

const SCHEME: &str = "Bearer ";
const HEADERS: [&str; 3] = [HEADER_WEBHOOK_ID, HEADER_WEBHOOK_TIMESTAMP, HEADER_WEBHOOK_SIGNATURE];

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
    /// None of the signatures is one of this message by a secret of ours.
    #[error(
        "no signature in webhook-signature is one of this id, time and body, byte for byte, by a \
         webhook secret of this jobcache"
    )]
    Signature,
    /// A signature that is right, of another time than now.
    #[error(
        "webhook-timestamp is {} s {}, and may be off by {TOLERANCE} s: sign each try anew, and set \
         the clocks of sender and jobcache (NTP)", .0.seconds(), .0.which()
    )]
    Time(Skew),
}

impl Skew {
    pub(super) fn seconds(self) -> u64 {
        self.0.unsigned_abs()
    }

    pub(super) fn which(self) -> &'static str {
        if self.0 < 0 { "ahead" } else { "old" }
    }
}

/// Judges the headers of a call and its body.
pub fn check(
    secrets: &[Secret],
    headers: &HeaderMap,
    body: &[u8],
    now: SystemTime,
) -> Result<Proof, Unproven> {
    if let Some(token) = bearer(headers) {
        let secret = find(secrets, |secret| token.ct_eq(secret.expose().as_bytes()));
        return secret.map(|secret| Proof { secret, skew: None }).ok_or(Unproven::Bearer);
    }
    if !HEADERS.iter().any(|name| headers.contains_key(*name)) {
        return Err(Unproven::Unsigned);
    }
    let (id, time, signatures) = (text(headers, 0)?, text(headers, 1)?, text(headers, 2)?);
    let Ok(time) = time.parse::<i64>() else {
        return Err(Unproven::Malformed("webhook-timestamp is not whole seconds since 1970"));
    };
    if std::str::from_utf8(body).is_err() {
        return Err(Unproven::Malformed("the body is not UTF-8, as what is signed must be"));
    }
    let signed = |secret: &Secret| match secret.webhook().map(|key| key.sign(id, time, body)) {
        Ok(Ok(ours)) => among(signatures, &ours),
        _ => Choice::from(0),
    };
    let secret = find(secrets, signed).ok_or(Unproven::Signature)?;
    let skew = Skew(seconds(now).saturating_sub(time));
    if skew.seconds() > TOLERANCE {
        return Err(Unproven::Time(skew));
    }
    Ok(Proof { secret, skew: Some(skew) })
}

/// The token of a call that has one.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME.as_bytes()).then_some(token)
}

fn text(headers: &HeaderMap, which: usize) -> Result<&str, Unproven> {
    let name = HEADERS[which];
    let value = headers.get(name).ok_or(Unproven::Missing(name))?;
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

/// Whether a signature is in the list. "Signatures are space delimited", one for each secret that the
/// sender has while it rotates them.
fn among(signatures: &str, ours: &str) -> Choice {
    let each = signatures.split(' ').map(|theirs| theirs.as_bytes().ct_eq(ours.as_bytes()));
    each.fold(Choice::from(0), |found, right| found | right)
}

/// Whole seconds, as they are signed.
fn seconds(now: SystemTime) -> i64 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: i64 = 1_700_000_000;
    const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OLD: &str = "an older secret";

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(NOW.unsigned_abs() * 1000 + 999)
    }

    fn signature(secret: &str, time: i64, body: &[u8]) -> String {
        Secret::new(secret).webhook().unwrap().sign("msg_1", time, body).unwrap()
    }

    #[track_caller]
    fn check(
        fields: &[(&str, &str)],
        body: &[u8],
        expected: Result<(usize, Option<i64>), Unproven>,
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: hyper::header::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        let secrets = [NEW, OLD].map(Secret::new);
        let proof = super::check(&secrets, &headers, body, now());
        let proof = proof.map(|proof| (proof.secret, proof.skew.map(|skew| skew.0)));
        assert_eq!(proof, expected, "{fields:?}");
    }

    #[track_caller]
    fn check_signed(signatures: &str, time: i64, expected: Result<(usize, Option<i64>), Unproven>) {
        let time = time.to_string();
        let fields = [HEADERS[0], HEADERS[1], HEADERS[2]];
        let fields = fields.into_iter().zip(["msg_1", &time, signatures]).collect::<Vec<_>>();
        check(&fields, b"{}", expected);
    }

    #[test]
    fn any_of_the_secrets_is_good_for_a_bearer_token() {
        for (secret, place) in [(NEW, 0), (OLD, 1)] {
            check(&[("authorization", &format!("bearer {secret}"))], b"x", Ok((place, None)));
        }
        for token in ["an older", "an older secret2", &format!("{NEW} {OLD}")] {
            check(&[("authorization", &format!("Bearer {token}"))], b"x", Err(Unproven::Bearer));
        }
        check(&[("authorization", "Basic eDp5")], b"x", Err(Unproven::Unsigned));
    }

    #[test]
    fn any_of_the_secrets_is_good_for_any_of_the_signatures() {
        let (new, old) = (signature(NEW, NOW, b"{}"), signature(OLD, NOW, b"{}"));
        let stranger = signature("a secret of somebody else", NOW, b"{}");
        check_signed(&new, NOW, Ok((0, Some(0))));
        check_signed(&old, NOW, Ok((1, Some(0))));
        check_signed(&format!("{stranger} v1a,x {old}"), NOW, Ok((1, Some(0))));
        check_signed(&format!("{old} {new}"), NOW, Ok((0, Some(0))));
        for wrong in [&stranger[..], "", "v1,", "v2,x", new.trim_start_matches("v1,"), &new[..20]] {
            check_signed(wrong, NOW, Err(Unproven::Signature));
        }
        check_signed(&signature(NEW, NOW, b"{} "), NOW, Err(Unproven::Signature));
        check_signed(&new, NOW + 1, Err(Unproven::Signature));
    }

    /// Else anybody could have a say in how far off clocks seem to be.
    #[test]
    fn the_time_is_judged_of_a_right_signature_only() {
        for (time, skew) in [(NOW - 300, 300), (NOW + 300, -300)] {
            check_signed(&signature(NEW, time, b"{}"), time, Ok((0, Some(skew))));
        }
        for (time, skew) in [(NOW - 301, 301), (NOW + 301, -301), (i64::MAX, NOW - i64::MAX)] {
            check_signed(&signature(NEW, time, b"{}"), time, Err(Unproven::Time(Skew(skew))));
            check_signed("v1,x", time, Err(Unproven::Signature));
        }
        let first = signature(NEW, i64::MIN, b"{}");
        check_signed(&first, i64::MIN, Err(Unproven::Time(Skew(i64::MAX))));
    }

    #[test]
    fn a_refusal_names_the_header_and_by_how_much_a_time_is_off() {
        let says = |refused: Unproven, part: &str| {
            assert!(refused.to_string().contains(part), "{refused}");
        };
        check(&[(HEADERS[1], "1")], b"", Err(Unproven::Missing(HEADERS[0])));
        check(&[(HEADERS[0], "a"), (HEADERS[1], "1")], b"", Err(Unproven::Missing(HEADERS[2])));
        says(Unproven::Missing(HEADERS[0]), "webhook-id is missing");
        says(Unproven::Time(Skew(421)), "is 421 s old, and may be off by 300 s");
        says(Unproven::Time(Skew(-421)), "is 421 s ahead");
        let malformed = |time, body| {
            let fields = [(HEADERS[0], "a"), (HEADERS[1], time), (HEADERS[2], "v1,x")];
            let headers = fields.map(|(name, value): (_, &str)| {
                (name.parse::<hyper::header::HeaderName>().unwrap(), value.parse().unwrap())
            });
            let headers: HeaderMap = headers.into_iter().collect();
            super::check(&[Secret::new(NEW)], &headers, body, now()).unwrap_err()
        };
        says(malformed("2026-01-01", b"{}"), "webhook-timestamp is not whole seconds");
        says(malformed("1700000000", b"\xff"), "not UTF-8");
    }
}
