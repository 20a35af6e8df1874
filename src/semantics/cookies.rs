//! Which cookies distinguish callers, if not all of them do.
//!
//! A session cookie does not always have exactly the configured name. Values that are too long for one
//! cookie are split over several (`session.0`, `sessionC1`, `session[a]`), some cookies need a prefix
//! in browsers (`__Host-session`), and some frameworks ignore case. A cookie that is missed would make
//! all callers look like the same anonymous one, while a cookie too many costs only a miss. So every
//! cookie that begins with a configured name counts.

/// Cookie name prefixes of RFC 6265bis 4.1.3.
const PREFIXES: [&str; 4] = ["__Host-", "__Secure-", "__Http-", "__Host-Http-"];

/// Returns whether a cookie with this name is one of `names`, or a part of one.
pub fn name_counts(names: &[String], cookie: &[u8]) -> bool {
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
pub fn member_counts(names: &[String], member: &[u8]) -> bool {
    let counts = |pair: &[u8]| {
        let end = pair.iter().position(|&b| b == b'=').unwrap_or(pair.len());
        let (name, value) = pair.split_at(end);
        let is_odd = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'"';
        name.contains(&b'%')
            || value.iter().skip(1).any(|&byte| byte == b'=')
                && pair.trim_ascii().iter().any(is_odd)
            || name_counts(names, name)
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
    use super::{member_counts, name_counts};

    fn names() -> [String; 2] {
        ["session".to_owned(), "__Secure-id".to_owned()]
    }

    #[test]
    fn a_cookie_counts_in_parts_with_a_prefix_and_in_any_case() {
        for cookie in ["session", " Session ", "session.0", "sessionC1", "session[a]"] {
            assert!(name_counts(&names(), cookie.as_bytes()), "{cookie}");
        }
        for cookie in ["__Host-session", "__secure-session.1", "__Secure-id", "__Host-Http-session"]
        {
            assert!(name_counts(&names(), cookie.as_bytes()), "{cookie}");
        }
        for cookie in ["", "sessio", "xsession", "_ga", "id", "AWSALB", "__Host-", "é"] {
            assert!(!name_counts(&names(), cookie.as_bytes()), "{cookie}");
        }
    }

    #[test]
    fn a_comma_may_separate_pairs() {
        for member in ["session=1", "session", "a=1,session=2", "a=1, Session.0=2,b", ",session="] {
            assert!(member_counts(&names(), member.as_bytes()), "{member}");
        }
        for member in ["a=1 session=2", "a=1\tsession=2", "a=\"1\" session=2", "%73ession=1"] {
            assert!(member_counts(&names(), member.as_bytes()), "{member}");
        }
        for member in ["", " a=session", "a=1,b=session", "a", "=session", "a=\"b c\""] {
            assert!(!member_counts(&names(), member.as_bytes()), "{member}");
        }
    }
}
