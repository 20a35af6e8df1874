//! Which requests get different fingerprints, and which share entries.

use std::time::Duration;

use hyper::{Request, http::request};

use super::*;
use crate::config;

const KEY: CredentialKey = CredentialKey::new([7; 32]);

const NOW_MS: i64 = 1_718_000_000_000;

fn fingerprinter(mode: Mode, cookies: &[&str]) -> Fingerprinter {
    let cookies = cookies.iter().map(ToString::to_string).collect();
    let headers = ["authorization", "cookie", "x-user-id", "api-key"].map(Into::into).to_vec();
    Fingerprinter::new(&config::CredentialsConfig {
        mode,
        headers,
        cookies,
        ..config::CredentialsConfig::default()
    })
}

fn head(path: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn caller(path: &str, headers: &[(&str, &str)]) -> Caller {
    caller_of(&fingerprinter(Mode::Partition, &[]), &KEY, &head(path, headers))
}

fn caller_of(fingerprinter: &Fingerprinter, key: &CredentialKey, head: &request::Parts) -> Caller {
    fingerprinter.caller(key, &head.uri, &head.headers)
}

#[test]
fn each_part_of_a_representation_tells_it_apart() {
    let plain = caller("/jobs/x", &[("host", "a")]);
    assert_eq!(plain, caller("/jobs/x", &[("host", "a"), ("user-agent", "curl")]));
    assert_eq!(plain, caller("http://a/jobs/x", &[("host", "ignored")]));
    for other in [
        caller("/api/v1/jobs/x", &[("host", "a")]),
        caller("/jobs/x?view=a", &[("host", "a")]),
        caller("/jobs/x", &[("host", "b")]),
        caller("/jobs/x", &[("host", "a"), ("origin", "b")]),
        caller("/jobs/x", &[("host", "a"), ("accept", "text/html")]),
        caller("/jobs/x", &[("host", "a"), ("accept-language", "de")]),
        caller("/jobs/x", &[("host", "a"), ("x-forwarded-proto", "https")]),
        caller("http://b/jobs/x", &[("host", "a")]),
        caller("/jobs/x", &[("host", "a"), ("x-token", "1")]),
        caller("/jobs/x", &[("host", "a"), ("x-token", "")]),
        caller("/jobs/x", &[("host", "a"), ("x_org", "1")]),
        caller("/jobs/x", &[("host", "a"), ("user_agent", "1")]),
        caller("/jobs/x", &[("host", "a"), ("forwarded", "for=a;host=b")]),
        caller("/jobs/x", &[("host", "a"), ("baggage", "sentry-a=1,user=b")]),
    ] {
        assert_ne!(plain.variant, other.variant);
        assert_eq!(plain.credential, other.credential);
    }
    for same in [
        ("user-agent", "curl"),
        ("accept-encoding", "zstd"),
        ("x-request-id", "1"),
        ("if-none-match", "\"a\""),
        ("forwarded", "for=\"192.0.2.1:4711\""),
        ("baggage", "sentry-a=1"),
    ] {
        assert_eq!(plain, caller("/jobs/x", &[("host", "a"), same]), "{same:?}");
    }
}

#[test]
fn the_configuration_decides_about_a_header_before_the_built_in_lists_do() {
    let credentials = config::CredentialsConfig {
        headers: vec!["user-agent".into(), "forwarded".into()],
        ignore: vec!["x-nonce".into(), "host".into(), "baggage".into()],
        ..config::CredentialsConfig::default()
    };
    let fingerprinter = Fingerprinter::new(&credentials);
    let caller =
        |uri, headers: &[(&str, &str)]| caller_of(&fingerprinter, &KEY, &head(uri, headers));
    let plain = caller("/jobs/x", &[]);
    for same in [("x-nonce", "1"), ("host", "b"), ("baggage", "user=b")] {
        assert_eq!(plain, caller("/jobs/x", &[same]), "{same:?}");
    }
    assert_eq!(plain, caller("http://b/jobs/x", &[]));
    for other in [("user-agent", "1"), ("forwarded", "for=a")] {
        let other = caller("/jobs/x", &[other]);
        assert_ne!(plain.credential, other.credential);
    }
    assert!(!fingerprinter.covered_headers().contains(&HOST), "a response may not vary by it");
}

#[test]
fn the_unknown_headers_of_a_variant_are_found_in_its_text() {
    let fingerprinter = fingerprinter(Mode::Partition, &[]);
    let long = "v".repeat(300);
    let request = head(
        &format!("http://a/jobs/{long}?t=1"),
        &[("x-b", "1"), ("accept", "a"), ("x-a", &long), ("x-b", "2"), ("x-user-id", "3")],
    );
    let (_, variant) = fingerprinter.caller_and_variant(KEY, &request.uri, &request.headers);
    let found: Vec<_> = fingerprinter.unknown_headers(&variant).collect();
    let want = [("x-a", long.as_str()), ("x-b", "1"), ("x-b", "2")];
    let want = want.map(|(name, value)| (HeaderName::from_static(name), value.as_bytes()));
    assert_eq!(found, want);
}

#[test]
fn each_part_of_a_credential_tells_it_apart() {
    let nobody = caller("/jobs/x", &[]);
    let some = [
        caller("/jobs/x", &[("authorization", "Bearer a")]),
        caller("/jobs/x", &[("authorization", "Bearer b")]),
        caller("/jobs/x", &[("authorization", "bearer a")]),
        caller("/jobs/x", &[("authorization", "Bearer a"), ("authorization", "Bearer b")]),
        caller("/jobs/x", &[("cookie", "Bearer a")]),
        caller("/jobs/x", &[("authorization", "")]),
        caller("/jobs/x", &[("x-user-id", "1")]),
        caller("/jobs/x", &[("x_user_id", "1")]),
        caller("/jobs/x", &[("x.user.id", "1")]),
        caller("/jobs/x", &[("api_key", "1")]),
    ];
    for (at, one) in some.iter().enumerate() {
        assert_ne!(one.credential, nobody.credential);
        assert_eq!(one.variant, nobody.variant);
        for other in &some[at + 1..] {
            assert_ne!(one.credential, other.credential);
        }
    }
}

#[test]
fn the_order_of_headers_does_not_count_but_that_of_their_lines_does() {
    let all = [
        ("host", "a"),
        ("accept", "b"),
        ("authorization", "c"),
        ("cookie", "d"),
        ("x-b", "e"),
        ("x-a", "f"),
        ("x_user_id", "g"),
        ("api.key", "h"),
    ];
    let mut reversed = all;
    reversed.reverse();
    assert_eq!(caller("/jobs/x", &all), caller("/jobs/x", &reversed));
    for name in ["accept", "x-a"] {
        let lines = [(name, "a"), (name, "b")];
        assert_ne!(caller("/jobs/x", &lines), caller("/jobs/x", &[lines[1], lines[0]]));
    }
}

#[test]
fn only_the_named_cookies_count() {
    let some = fingerprinter(Mode::Partition, &["session"]);
    let caller = |cookie| caller_of(&some, &KEY, &head("/jobs/x", &[("cookie", cookie)]));
    let plain = caller("session=1");
    for same in ["session=1; theme=dark", "theme=dark;  session=1", " session=1 ;_ga=2"] {
        assert_eq!(plain, caller(same), "{same}");
    }
    for other in ["session=2", "theme=dark", "Session=1", "session=1; session=2", "xsession=1"] {
        assert_ne!(plain, caller(other), "{other}");
    }
    let nobody = caller_of(&some, &KEY, &head("/jobs/x", &[]));
    assert_eq!(nobody, caller("theme=dark; _ga=2"));
    for name in ["session.0", "sessionC1", "__Host-session", "Session", "_ga=2,session"] {
        let [a, b] = ["a", "b"].map(|value| {
            let cookie = format!("{name}={value}");
            caller_of(&some, &KEY, &head("/jobs/x", &[("cookie", &cookie)]))
        });
        assert!(a != nobody && b != nobody && a != b, "{name}");
    }
    assert_ne!(nobody, caller("session="));
}

#[test]
fn another_key_gives_other_prints() {
    let request = head("/jobs/x", &[("authorization", "Bearer a")]);
    let fingerprinter = fingerprinter(Mode::Partition, &[]);
    let other = CredentialKey::new([8; 32]);
    assert_ne!(
        caller_of(&fingerprinter, &KEY, &request),
        caller_of(&fingerprinter, &other, &request)
    );
}

#[test]
fn an_entry_is_for_its_pairs_and_modes_waive_only_the_credential() {
    let a = caller("/jobs/x", &[("authorization", "a")]);
    let b = caller("/jobs/x", &[("authorization", "b")]);
    let german = caller("/jobs/x", &[("authorization", "a"), ("accept-language", "de")]);
    let unknown = caller("/jobs/x", &[("authorization", "a"), ("x-org-id", "1")]);
    let check = |mode, public, caller| {
        let standing =
            fingerprinter(mode, &[]).standing(&Audience::of(a, public, 0), caller, NOW_MS);
        standing == Standing::Included
    };
    assert!(check(Mode::Partition, false, a));
    assert!(!check(Mode::Partition, false, b));
    assert!(check(Mode::Partition, true, b));
    assert!(check(Mode::Shared, false, b));
    for other in [german, unknown] {
        assert!(!check(Mode::Partition, false, other));
        assert!(!check(Mode::Partition, true, other));
        assert!(!check(Mode::Shared, false, other));
    }
    assert!(check(Mode::Bypass, false, a) && !check(Mode::Bypass, false, b));
    assert_eq!(
        fingerprinter(Mode::Shared, &[]).coalesce_key(a),
        fingerprinter(Mode::Shared, &[]).coalesce_key(b)
    );
    assert_ne!(
        fingerprinter(Mode::Partition, &[]).coalesce_key(a),
        fingerprinter(Mode::Partition, &[]).coalesce_key(b)
    );
}

#[test]
fn a_pair_lapses_when_it_was_served_too_long_ago() {
    let caller = caller("/jobs/x", &[("authorization", "a")]);
    let recheck = Some(Duration::from_secs(30));
    let fingerprinter = |mode| {
        let mut fingerprinter = fingerprinter(mode, &[]);
        fingerprinter.settings.recheck = recheck;
        fingerprinter
    };
    let check = |mode, public, ago, want| {
        let audience = Audience::of(caller, public, NOW_MS - ago);
        assert_eq!(fingerprinter(mode).standing(&audience, caller, NOW_MS), want, "{mode:?} {ago}");
    };
    check(Mode::Partition, false, 0, Standing::Included);
    check(Mode::Partition, false, 30_000, Standing::Included);
    check(Mode::Partition, false, 30_001, Standing::Lapsed);
    // Clocks differ slightly.
    check(Mode::Partition, false, -5, Standing::Included);
    check(Mode::Partition, true, 30_001, Standing::Included);
    check(Mode::Shared, false, 30_001, Standing::Included);
}

#[test]
fn a_pair_without_a_time_is_believed_only_where_none_lapses() {
    let caller = caller("/jobs/x", &[("authorization", "a")]);
    let member = AudienceMember::parse(&caller.to_hex()).unwrap();
    let audience = Audience { members: Box::new([member]), public: false };
    let mut fingerprinter = fingerprinter(Mode::Partition, &[]);
    assert_eq!(fingerprinter.standing(&audience, caller, NOW_MS), Standing::Included);
    fingerprinter.settings.recheck = Some(Duration::from_secs(30));
    assert_eq!(fingerprinter.standing(&audience, caller, NOW_MS), Standing::Lapsed);
}

#[test]
fn a_member_reads_as_it_is_written_and_what_is_none_is_nobody() {
    let caller = caller("/jobs/x", &[("authorization", "a")]);
    let member = AudienceMember { caller, served_at_ms: NOW_MS };
    let text = member.to_string();
    assert_eq!(AudienceMember::parse(&text), Some(member));
    for other in ["", "@1", &text[1..], &text.to_uppercase(), &text.replace('@', "é")] {
        assert!(AudienceMember::parse(other).is_none_or(|other| other != member), "{other}");
    }
}

#[test]
fn requests_with_credentials_bypass_in_bypass_mode_only() {
    let request = head("/jobs/x", &[("x-user-id", "1")]);
    assert!(fingerprinter(Mode::Bypass, &[]).must_bypass(&request.headers));
    let other = head("/jobs/x", &[("x_user_id", "1")]);
    assert!(fingerprinter(Mode::Bypass, &[]).must_bypass(&other.headers));
    assert!(!fingerprinter(Mode::Partition, &[]).must_bypass(&request.headers));
    assert!(!fingerprinter(Mode::Bypass, &[]).must_bypass(&head("/jobs/x", &[]).headers));
}

fn member_caller(credential: u8, variant: u8) -> Caller {
    Caller { credential: Fingerprint([credential; 16]), variant: Fingerprint([variant; 16]) }
}

#[test]
fn a_caller_joins_once_and_pushes_out_its_own_oldest_variant_only() {
    let mut audience = Audience::of(member_caller(1, 0), false, 5);
    let mut join = |who, at| {
        audience.members = audience.joined_by(who, at).into();
        let times = audience.members.iter().map(|member| member.served_at_ms);
        times.collect::<Vec<_>>()
    };
    assert_eq!(join(member_caller(2, 0), 6), [6, 5]);
    assert_eq!(join(member_caller(1, 0), 7), [7, 6]);
    for variant in 1..8 {
        join(member_caller(1, variant), 7 + i64::from(variant));
    }
    assert_eq!(join(member_caller(1, 8), 20), [20, 14, 13, 12, 11, 10, 9, 8, 6]);
}
