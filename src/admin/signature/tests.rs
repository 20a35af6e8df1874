//! Tests of which calls are authorized, and of the errors of the others.

use std::time::Duration;

use standardwebhooks::{
    HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP, Webhook,
};

use super::*;

const NOW: i64 = 1_700_000_000;
const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD: &str = "an-older-secret";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(NOW.unsigned_abs() * 1000 + 999)
}

fn signature(secret: &str, time: i64, body: &[u8]) -> String {
    let webhook = if secret.starts_with("whsec_") {
        Webhook::new(secret)
    } else {
        Webhook::from_bytes(secret.as_bytes().to_vec())
    };
    webhook.unwrap().sign("msg_1", time, body).unwrap()
}

fn verify(
    secrets: &[Secret],
    headers: &HeaderMap,
    body: &[u8],
) -> Result<VerifiedSecret, AuthError> {
    match verify_token(secrets, headers) {
        Err(AuthError::NoCredentials) => {
            SignedRequest::parse(headers)?.verify(secrets, body, now())
        }
        result => result,
    }
}

#[track_caller]
fn check(fields: &[(&str, &str)], body: &[u8], expected: Result<(usize, Option<i64>), AuthError>) {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name: hyper::header::HeaderName = name.parse().unwrap();
        headers.append(name, value.parse().unwrap());
    }
    let secrets = [NEW, OLD].map(Secret::new);
    let proof = verify(&secrets, &headers, body);
    let proof = proof.map(|proof| (proof.secret, proof.skew.map(|skew| skew.0)));
    assert_eq!(proof, expected, "{fields:?}");
}

#[track_caller]
fn check_signed(signatures: &str, time: i64, expected: Result<(usize, Option<i64>), AuthError>) {
    let time = time.to_string();
    let fields = [SIGNATURE_HEADERS[0], SIGNATURE_HEADERS[1], SIGNATURE_HEADERS[2]];
    let fields = fields.into_iter().zip(["msg_1", &time, signatures]).collect::<Vec<_>>();
    check(&fields, b"{}", expected);
}

#[test]
fn the_names_of_the_headers_are_those_of_the_reference_library() {
    assert_eq!(
        SIGNATURE_HEADERS,
        [HEADER_WEBHOOK_ID, HEADER_WEBHOOK_TIMESTAMP, HEADER_WEBHOOK_SIGNATURE]
    );
}

#[test]
fn any_of_the_secrets_is_good_for_a_bearer_token() {
    for (secret, index) in [(NEW, 0), (OLD, 1)] {
        check(&[("authorization", &format!("bearer {secret}"))], b"x", Ok((index, None)));
    }
    check(&[("authorization", &format!("Bearer   {OLD}"))], b"x", Ok((1, None)));
    for token in ["an-older", "an-older-secret2", &format!("{NEW},{OLD}")] {
        check(&[("authorization", &format!("Bearer {token}"))], b"x", Err(AuthError::WrongToken));
    }
    for several in [format!("{NEW} {OLD}"), format!("{OLD}\t{NEW}")] {
        let several = format!("Bearer {several}");
        check(&[("authorization", &several)], b"x", Err(AuthError::SeveralTokens));
    }
    check(&[("authorization", "Basic eDp5")], b"x", Err(AuthError::NoCredentials));
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
        check_signed(wrong, NOW, Err(AuthError::WrongSignature));
    }
    check_signed(&signature(NEW, NOW, b"{} "), NOW, Err(AuthError::WrongSignature));
    check_signed(&new, NOW + 1, Err(AuthError::WrongSignature));
}

/// Otherwise strangers could influence the recorded clock skew.
#[test]
fn the_time_is_judged_of_a_right_signature_only() {
    for (time, skew) in [(NOW - 300, 300), (NOW + 300, -300)] {
        check_signed(&signature(NEW, time, b"{}"), time, Ok((0, Some(skew))));
    }
    for (time, skew) in [(NOW - 301, 301), (NOW + 301, -301), (i64::MAX, NOW - i64::MAX), (0, NOW)]
    {
        check_signed(
            &signature(NEW, time, b"{}"),
            time,
            Err(AuthError::WrongTimestamp(Skew(skew))),
        );
        check_signed("v1,x", time, Err(AuthError::WrongSignature));
    }
}

#[test]
fn a_large_body_of_another_time_is_not_hashed() {
    let large = vec![b' '; LARGE_BODY + 1];
    let check = |secret, time: i64, expected| {
        let signature = signature(secret, time, &large);
        let time = time.to_string();
        let values = ["msg_1", &time, &signature];
        check(&[0, 1, 2].map(|n| (SIGNATURE_HEADERS[n], values[n])), &large, expected);
    };
    check(NEW, NOW - 300, Ok((0, Some(300))));
    for secret in [NEW, "a secret of somebody else"] {
        check(secret, NOW - 301, Err(AuthError::UncheckedTimestamp(Skew(301))));
        check(secret, NOW + 301, Err(AuthError::UncheckedTimestamp(Skew(-301))));
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_malformed() {
    let time = NOW.to_string();
    let right = signature(NEW, NOW, b"{}");
    let fields = [
        (SIGNATURE_HEADERS[0], "msg_1"),
        (SIGNATURE_HEADERS[1], &time),
        (SIGNATURE_HEADERS[2], &right),
    ];
    check(&fields, b"{}", Ok((0, Some(0))));
    let malformed = |fields: &[(&str, &str)]| {
        let headers = fields.iter().map(|(name, value)| {
            (name.parse::<hyper::header::HeaderName>().unwrap(), value.parse().unwrap())
        });
        let headers = headers.fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        });
        let result = verify(&[Secret::new(NEW)], &headers, b"{}");
        assert!(matches!(result, Err(AuthError::MalformedHeader(_))), "{fields:?}: {result:?}");
    };
    for twice in [fields[0], fields[1], ("authorization", "Basic eDp5")] {
        malformed(&[&fields[..], &[twice, ("authorization", "Basic eDp5")]].concat());
    }
    for id in ["", ".", "msg_1.1700000000", "msg."] {
        malformed(&[(SIGNATURE_HEADERS[0], id), fields[1], fields[2]]);
    }
    for time in ["", "+1700000000", "-1", "1700000000.0", " 1", "99999999999999999999"] {
        malformed(&[fields[0], (SIGNATURE_HEADERS[1], time), fields[2]]);
    }
}

/// RFC 9110 (5.3) lets a recipient join field lines of the same name.
#[test]
fn signatures_on_several_lines_are_read_together() {
    let time = NOW.to_string();
    let (stranger, right) = (signature("somebody else", NOW, b"{}"), signature(OLD, NOW, b"{}"));
    let fields = [(SIGNATURE_HEADERS[0], "msg_1"), (SIGNATURE_HEADERS[1], &time)];
    for lists in [[&stranger, &right], [&right, &stranger]] {
        let lists = lists.map(|list| (SIGNATURE_HEADERS[2], list.as_str()));
        check(&[fields, lists].concat(), b"{}", Ok((1, Some(0))));
    }
}

#[test]
fn a_refusal_names_the_header_and_by_how_much_a_time_is_off() {
    let says = |refused: AuthError, part: &str| {
        assert!(refused.to_string().contains(part), "{refused}");
    };
    check(&[(SIGNATURE_HEADERS[1], "1")], b"", Err(AuthError::MissingHeader(SIGNATURE_HEADERS[0])));
    check(
        &[(SIGNATURE_HEADERS[0], "a"), (SIGNATURE_HEADERS[1], "1")],
        b"",
        Err(AuthError::MissingHeader(SIGNATURE_HEADERS[2])),
    );
    says(AuthError::MissingHeader(SIGNATURE_HEADERS[0]), "webhook-id is missing");
    says(AuthError::WrongTimestamp(Skew(421)), "is 421 s old, and may be off by 300 s");
    says(AuthError::WrongTimestamp(Skew(-421)), "is 421 s ahead");
    says(AuthError::UncheckedTimestamp(Skew(421)), "is 421 s old");
    says(AuthError::SignatureNotAccepted, "POST /purge");
    says(AuthError::SeveralTokens, "send one of them");
}
