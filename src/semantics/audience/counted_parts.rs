//! Headers of which only a part says something about the caller.
//!
//! A part is left out only if every reader takes it the same way. What could be read in two ways
//! counts as it is: two callers with different bytes are then told apart for nothing, which costs a
//! read.
//!
//! A session cookie does not always have exactly the configured name. Values that are too long for one
//! cookie are split over several (`session.0`, `sessionC1`, `session[a]`), some cookies need a prefix
//! in browsers (`__Host-session`), and some frameworks ignore case. A cookie that is missed would make
//! all callers look like the same anonymous one, while a cookie too many costs only a miss. So every
//! cookie that begins with a configured name counts.

/// The part of a value that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CountedParts {
    /// All of it.
    Whole,
    /// `Forwarded` (RFC 7239) without `for` and `by`, which are addresses.
    Forwarded,
    /// `baggage` (W3C Baggage) without the members that Sentry writes into it.
    Baggage,
}

impl CountedParts {
    /// Calls `count` with each part of a value that counts, in order.
    pub(super) fn each<'v>(self, value: &'v [u8], mut count: impl FnMut(&'v [u8])) {
        match self {
            Self::Whole => count(value),
            Self::Forwarded => forwarded(value, count),
            Self::Baggage => baggage_members(value).for_each(count),
        }
    }
}

/// Longest `Forwarded` that is taken apart. No chain of proxies writes a longer one, and tens of thousands of
/// parts would cost a millisecond.
const MAX_FORWARDED: usize = 4 << 10;

/// Counts the pairs of a `Forwarded` other than addresses, and the commas between its elements: an API
/// may go by the first or by the last of them. If nothing but addresses is there, nothing counts.
fn forwarded<'v>(value: &'v [u8], mut count: impl FnMut(&'v [u8])) {
    if value.len() > MAX_FORWARDED {
        return count(value);
    }
    let counted = |element: &'v [u8]| {
        let pairs = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        pairs.filter(|pair| !pair.is_empty() && !is_address(pair))
    };
    let elements = || value.split(|byte| *byte == b',');
    if !elements().any(|element| counted(element).next().is_some()) {
        return;
    }
    for (at, element) in elements().enumerate() {
        if at > 0 {
            count(b",");
        }
        counted(element).for_each(&mut count);
    }
}

/// Returns whether a pair is the address of a client or of a proxy (RFC 7239 6), and nothing that a
/// less careful parser could take for more: quotes stand only around the whole value.
fn is_address(pair: &[u8]) -> bool {
    let Some(equals) = pair.iter().position(|byte| *byte == b'=') else { return false };
    let (name, value) = (&pair[..equals], &pair[equals + 1..]);
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-:[]%".contains(byte);
    (name.eq_ignore_ascii_case(b"for") || name.eq_ignore_ascii_case(b"by"))
        && unquoted.unwrap_or(value).iter().all(is_plain)
}

/// Returns the members of a `baggage` that count. A member of Sentry with properties counts: they may
/// be anything.
fn baggage_members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let members = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    members.filter(|member| {
        let is_sentry = member.starts_with(b"sentry-")
            && member.contains(&b'=')
            && !member.iter().any(|byte| b";\"\\".contains(byte));
        !member.is_empty() && !is_sentry
    })
}

/// Cookie name prefixes of RFC 6265bis 4.1.3.
const PREFIXES: [&str; 4] = ["__Host-", "__Secure-", "__Http-", "__Host-Http-"];

/// Returns whether a cookie with this name is one of `names`, or a part of one.
pub(crate) fn cookie_counts(names: &[String], cookie: &[u8]) -> bool {
    let cookie = cookie.trim_ascii();
    names.iter().any(|name| {
        let bare = PREFIXES.iter().filter_map(|prefix| strip_prefix_ignore_case(cookie, prefix));
        [cookie]
            .into_iter()
            .chain(bare)
            .any(|cookie| strip_prefix_ignore_case(cookie, name).is_some())
    })
}

/// Returns whether a `;`-separated member of `Cookie` holds a cookie that counts.
///
/// Some upstreams also split a member at commas. RFC 2965 3.3.4: "A server SHOULD also accept a comma
/// (,) as the separator between cookie-values", and gateways that join field lines use commas. Others
/// find a further cookie behind white space or a quote, or decode names, so a member with any of these
/// counts.
pub(super) fn cookie_member_counts(names: &[String], member: &[u8]) -> bool {
    let counts = |pair: &[u8]| {
        let end = pair.iter().position(|&b| b == b'=').unwrap_or(pair.len());
        let (name, value) = pair.split_at(end);
        let is_odd = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'"';
        name.contains(&b'%')
            || value.iter().skip(1).any(|&byte| byte == b'=')
                && pair.trim_ascii().iter().any(is_odd)
            || cookie_counts(names, name)
    };
    member.split(|&b| b == b',').any(counts)
}

/// Strips the prefix `start` without regard to case.
fn strip_prefix_ignore_case<'c>(cookie: &'c [u8], start: &str) -> Option<&'c [u8]> {
    let (head, rest) = cookie.split_at_checked(start.len())?;
    head.eq_ignore_ascii_case(start.as_bytes()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(parts: CountedParts, value: &str, want: &[&str]) {
        let mut got = Vec::new();
        parts.each(value.as_bytes(), |part| got.push(std::str::from_utf8(part).unwrap()));
        assert_eq!(got, want, "{value}");
    }

    #[test]
    fn addresses_in_forwarded_do_not_count_and_what_only_looks_like_one_does() {
        let check = |value, want: &[&str]| check(CountedParts::Forwarded, value, want);
        for value in [
            "for=192.0.2.1",
            "For=\"192.0.2.1:4711\"",
            "for=\"[2001:db8::1]:4711\";BY=10.0.0.1, for=_hidden, for=unknown",
            " for=a , ",
            "",
        ] {
            check(value, &[]);
        }
        check("for=a;proto=https;host=\"a:1\"", &["proto=https", "host=\"a:1\""]);
        check("proto=https;for=a, for=b;host=c", &["proto=https", ",", "host=c"]);
        check("for=a, for=b;host=c", &[",", "host=c"]);
        check("for=a;host=c, for=b", &["host=c", ","]);
        check("for=a;secret=x", &["secret=x"]);
        check("for=\"a;host=b\"", &["for=\"a", "host=b\""]);
        check("for=\"a\\\";host=b\"", &["for=\"a\\\"", "host=b\""]);
        check("for = a", &["for = a"]);
        let long = "for=1.2.3.4,".repeat(400);
        check(&long, &[&long]);
        check("for", &["for"]);
    }

    #[test]
    fn only_the_members_of_sentry_do_not_count_in_baggage() {
        let check = |value, want: &[&str]| check(CountedParts::Baggage, value, want);
        check("sentry-trace_id=1, sentry-sampled=true,", &[]);
        check("sentry-trace_id=1,tenant=a , user=b;p=1", &["tenant=a", "user=b;p=1"]);
        check("sentry-a=1;user=b", &["sentry-a=1;user=b"]);
        check("sentry-a=\"1,user=b\"", &["sentry-a=\"1", "user=b\""]);
        check("Sentry-a=1,sentry=2,sentry-x", &["Sentry-a=1", "sentry=2", "sentry-x"]);
    }

    #[test]
    fn every_byte_of_another_header_counts() {
        check(CountedParts::Whole, "for=a, sentry-a=1", &["for=a, sentry-a=1"]);
        check(CountedParts::Whole, "", &[""]);
    }

    fn names() -> [String; 2] {
        ["session".to_owned(), "__Secure-id".to_owned()]
    }

    #[test]
    fn a_cookie_counts_in_parts_with_a_prefix_and_in_any_case() {
        for cookie in ["session", " Session ", "session.0", "sessionC1", "session[a]"] {
            assert!(cookie_counts(&names(), cookie.as_bytes()), "{cookie}");
        }
        for cookie in ["__Host-session", "__secure-session.1", "__Secure-id", "__Host-Http-session"]
        {
            assert!(cookie_counts(&names(), cookie.as_bytes()), "{cookie}");
        }
        for cookie in ["", "sessio", "xsession", "_ga", "id", "AWSALB", "__Host-", "é"] {
            assert!(!cookie_counts(&names(), cookie.as_bytes()), "{cookie}");
        }
    }

    #[test]
    fn a_comma_may_separate_pairs() {
        for member in ["session=1", "session", "a=1,session=2", "a=1, Session.0=2,b", ",session="] {
            assert!(cookie_member_counts(&names(), member.as_bytes()), "{member}");
        }
        for member in ["a=1 session=2", "a=1\tsession=2", "a=\"1\" session=2", "%73ession=1"] {
            assert!(cookie_member_counts(&names(), member.as_bytes()), "{member}");
        }
        for member in ["", " a=session", "a=1,b=session", "a", "=session", "a=\"b c\""] {
            assert!(!cookie_member_counts(&names(), member.as_bytes()), "{member}");
        }
    }
}
