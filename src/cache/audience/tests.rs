//! Who is told apart from whom, and who shares what.

use hyper::{Request, http::request};

use super::*;

const KEY: CredentialKey = CredentialKey::new([7; 32]);

const NOW_MS: i64 = 1_718_000_000_000;

fn prints(mode: Mode, cookies: &[&str]) -> Prints {
    let cookies = cookies.iter().map(ToString::to_string).collect();
    let headers = vec!["authorization".into(), "cookie".into(), "x-user-id".into()];
    Prints::new(&config::CredentialsConfig {
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

fn pair(path: &str, headers: &[(&str, &str)]) -> Pair {
    of(&prints(Mode::Partition, &[]), &KEY, &head(path, headers))
}

fn of(prints: &Prints, key: &CredentialKey, head: &request::Parts) -> Pair {
    prints.pair(key, &head.uri, &head.headers)
}

#[test]
fn each_part_of_a_representation_tells_it_apart() {
    let plain = pair("/jobs/x", &[("host", "a")]);
    assert_eq!(plain, pair("/jobs/x", &[("host", "a"), ("user-agent", "curl")]));
    assert_eq!(plain, pair("http://a/jobs/x", &[("host", "ignored")]));
    for other in [
        pair("/api/v1/jobs/x", &[("host", "a")]),
        pair("/jobs/x?view=a", &[("host", "a")]),
        pair("/jobs/x", &[("host", "b")]),
        pair("/jobs/x", &[("host", "a"), ("origin", "b")]),
        pair("/jobs/x", &[("host", "a"), ("accept", "text/html")]),
        pair("/jobs/x", &[("host", "a"), ("accept-language", "de")]),
        pair("/jobs/x", &[("host", "a"), ("x-forwarded-proto", "https")]),
        pair("http://b/jobs/x", &[("host", "a")]),
    ] {
        assert_ne!(plain.representation, other.representation);
        assert_eq!(plain.credential, other.credential);
    }
}

#[test]
fn each_part_of_a_credential_tells_it_apart() {
    let nobody = pair("/jobs/x", &[]);
    let some = [
        pair("/jobs/x", &[("authorization", "Bearer a")]),
        pair("/jobs/x", &[("authorization", "Bearer b")]),
        pair("/jobs/x", &[("authorization", "bearer a")]),
        pair("/jobs/x", &[("authorization", "Bearer a"), ("authorization", "Bearer b")]),
        pair("/jobs/x", &[("cookie", "Bearer a")]),
        pair("/jobs/x", &[("authorization", "")]),
        pair("/jobs/x", &[("x-user-id", "1")]),
        pair("/jobs/x", &[("x_user_id", "1")]),
        pair("/jobs/x", &[("x.user.id", "1")]),
        pair("/jobs/x", &[("api_key", "1")]),
    ];
    for (at, one) in some.iter().enumerate() {
        assert_ne!(one.credential, nobody.credential);
        assert_eq!(one.representation, nobody.representation);
        for other in &some[at + 1..] {
            assert_ne!(one.credential, other.credential);
        }
    }
}

#[test]
fn the_order_of_headers_does_not_count_but_that_of_their_lines_does() {
    let all = [("host", "a"), ("accept", "b"), ("authorization", "c"), ("cookie", "d")];
    let mut reversed = all;
    reversed.reverse();
    assert_eq!(pair("/jobs/x", &all), pair("/jobs/x", &reversed));
    let lines = [("accept", "a"), ("accept", "b")];
    assert_ne!(pair("/jobs/x", &lines), pair("/jobs/x", &[lines[1], lines[0]]));
}

#[test]
fn only_the_named_cookies_count() {
    let some = prints(Mode::Partition, &["session"]);
    let pair = |cookie| of(&some, &KEY, &head("/jobs/x", &[("cookie", cookie)]));
    let plain = pair("session=1");
    for same in ["session=1; theme=dark", "theme=dark;  session=1", " session=1 ;_ga=2"] {
        assert_eq!(plain, pair(same), "{same}");
    }
    for other in ["session=2", "theme=dark", "Session=1", "session=1; session=2", "xsession=1"] {
        assert_ne!(plain, pair(other), "{other}");
    }
    let nobody = of(&some, &KEY, &head("/jobs/x", &[]));
    assert_eq!(nobody, pair("theme=dark; _ga=2"));
    for name in ["session.0", "sessionC1", "__Host-session", "Session", "_ga=2,session"] {
        let [a, b] = ["a", "b"].map(|value| {
            let cookie = format!("{name}={value}");
            of(&some, &KEY, &head("/jobs/x", &[("cookie", &cookie)]))
        });
        assert!(a != nobody && b != nobody && a != b, "{name}");
    }
    assert_ne!(nobody, pair("session="));
}

#[test]
fn another_key_gives_other_prints() {
    let request = head("/jobs/x", &[("authorization", "Bearer a")]);
    let prints = prints(Mode::Partition, &[]);
    let other = CredentialKey::new([8; 32]);
    assert_ne!(of(&prints, &KEY, &request), of(&prints, &other, &request));
}

#[test]
fn an_entry_is_for_its_pairs_and_modes_waive_only_the_credential() {
    let a = pair("/jobs/x", &[("authorization", "a")]);
    let b = pair("/jobs/x", &[("authorization", "b")]);
    let german = pair("/jobs/x", &[("authorization", "a"), ("accept-language", "de")]);
    let check = |mode, public, pair| {
        let standing = prints(mode, &[]).standing(&Audience::of(a, public, 0), pair, NOW_MS);
        standing == Standing::Included
    };
    assert!(check(Mode::Partition, false, a));
    assert!(!check(Mode::Partition, false, b));
    assert!(!check(Mode::Partition, false, german));
    assert!(check(Mode::Partition, true, b));
    assert!(!check(Mode::Partition, true, german));
    assert!(check(Mode::Shared, false, b));
    assert!(!check(Mode::Shared, false, german));
    assert!(check(Mode::Bypass, false, a) && !check(Mode::Bypass, false, b));
    assert_eq!(prints(Mode::Shared, &[]).circle(a), prints(Mode::Shared, &[]).circle(b));
    assert_ne!(prints(Mode::Partition, &[]).circle(a), prints(Mode::Partition, &[]).circle(b));
}

#[test]
fn a_pair_lapses_when_it_was_served_too_long_ago() {
    let pair = pair("/jobs/x", &[("authorization", "a")]);
    let recheck = Some(Duration::from_secs(30));
    let prints = |mode| Prints { recheck, ..prints(mode, &[]) };
    let check = |mode, public, ago, want| {
        let audience = Audience::of(pair, public, NOW_MS - ago);
        assert_eq!(prints(mode).standing(&audience, pair, NOW_MS), want, "{mode:?} {ago}");
    };
    check(Mode::Partition, false, 0, Standing::Included);
    check(Mode::Partition, false, 30_000, Standing::Included);
    check(Mode::Partition, false, 30_001, Standing::Lapsed);
    // Clocks differ a little.
    check(Mode::Partition, false, -5, Standing::Included);
    check(Mode::Partition, true, 30_001, Standing::Included);
    check(Mode::Shared, false, 30_001, Standing::Included);
}

#[test]
fn a_pair_without_a_time_is_believed_only_where_none_lapses() {
    let pair = pair("/jobs/x", &[("authorization", "a")]);
    let member = Member::parse(&pair.to_hex()).unwrap();
    let audience = Audience { members: Box::new([member]), public: false };
    let mut prints = prints(Mode::Partition, &[]);
    assert_eq!(prints.standing(&audience, pair, NOW_MS), Standing::Included);
    prints.recheck = Some(Duration::from_secs(30));
    assert_eq!(prints.standing(&audience, pair, NOW_MS), Standing::Lapsed);
}

#[test]
fn a_member_reads_as_it_is_written_and_what_is_none_is_nobody() {
    let pair = pair("/jobs/x", &[("authorization", "a")]);
    let member = Member { pair, served_at_ms: NOW_MS };
    let text = member.to_string();
    assert_eq!(Member::parse(&text), Some(member));
    for other in ["", "@1", &text[1..], &text.to_uppercase(), &text.replace('@', "é")] {
        assert!(Member::parse(other).is_none_or(|other| other != member), "{other}");
    }
}

#[test]
fn requests_with_credentials_bypass_in_bypass_mode_only() {
    let request = head("/jobs/x", &[("x-user-id", "1")]);
    assert!(prints(Mode::Bypass, &[]).bypasses(&request.headers));
    let other = head("/jobs/x", &[("x_user_id", "1")]);
    assert!(prints(Mode::Bypass, &[]).bypasses(&other.headers));
    assert!(!prints(Mode::Partition, &[]).bypasses(&request.headers));
    assert!(!prints(Mode::Bypass, &[]).bypasses(&head("/jobs/x", &[]).headers));
}
