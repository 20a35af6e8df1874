//! Who may be given an entry.
//!
//! Two fingerprints make a [`Pair`]. The **credential** is all that tells who asks: `Authorization`,
//! cookies, API keys and what a gateway writes once it knows the caller. The **representation** is
//! what a request says about the form of the answer: the path and query it came by, the host names and
//! the negotiated form. An entry is for the pairs that the upstream itself has served its bytes to, and
//! for nobody else. Nothing is parsed and nothing is trusted: equal bytes in, equal print out.
//!
//! Prints are keyed BLAKE3, so that who can read the store learns no credential by trying.

use std::time::Duration;

use hyper::http::{
    HeaderMap, HeaderName,
    header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_LANGUAGE, COOKIE, FORWARDED, HOST, ORIGIN},
    request::Parts,
};

use super::query::Query;
pub use crate::config::CredentialMode as Mode;
use crate::{config, store::CredentialKey};

/// 128 bits of keyed BLAKE3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

/// Who asks, and for what form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    credential: Fingerprint,
    representation: Fingerprint,
}

/// The pairs that an entry is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    /// Pairs in hexadecimal, as in [`Pair::to_hex`], each with when the upstream has served the entry
    /// to it: `@` and ms since 1970 by the store's clock. Those of older sidecars have no time.
    pub pairs: Vec<String>,
    /// The upstream has said that the credential does not matter.
    pub public: bool,
}

/// How a pair stands to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may be given the entry.
    Included,
    /// The upstream has served the entry to it, too long ago to be believed still.
    Lapsed,
    /// The upstream has not served the entry to it.
    Outside,
}

/// Takes the prints of requests.
#[derive(Debug)]
pub struct Prints {
    mode: Mode,
    /// What tells callers apart.
    headers: Vec<HeaderName>,
    /// Those, and what tells representations apart.
    covered: Vec<HeaderName>,
    /// Cookies that count; all of them where there are none.
    cookies: Vec<String>,
    /// How long a pair is believed.
    recheck: Option<Duration>,
    query: Query,
}

const REPRESENTATION: [HeaderName; 13] = [
    HOST,
    ORIGIN,
    ACCEPT,
    ACCEPT_CHARSET,
    ACCEPT_LANGUAGE,
    FORWARDED,
    HeaderName::from_static("accept-version"),
    HeaderName::from_static("prefer"),
    HeaderName::from_static("x-api-version"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
];

impl Fingerprint {
    /// Of nobody in particular.
    const WAIVED: Self = Self([0; 16]);

    fn of(key: &CredentialKey, fill: impl FnOnce(&mut blake3::Hasher)) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(key.bytes());
        fill(&mut hasher);
        let mut print = [0; 16];
        hasher.finalize_xof().fill(&mut print);
        Self(print)
    }

    fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

impl Pair {
    /// As it stands in an entry: 64 hexadecimal digits, the credential first.
    pub fn to_hex(self) -> String {
        self.credential.to_hex() + &self.representation.to_hex()
    }

    /// The same form of the answer, whoever asks.
    fn waived(self) -> Self {
        Self { credential: Fingerprint::WAIVED, ..self }
    }
}

impl Audience {
    /// Only this pair; everybody who asks for its form where the response is public.
    pub fn of(pair: Pair, public: bool, served_at_ms: i64) -> Self {
        Self { pairs: vec![format!("{}@{served_at_ms}", pair.to_hex())], public }
    }

    /// When the upstream has served the entry to this pair, if it has.
    fn served_at_ms(&self, pair: Pair) -> Option<i64> {
        let name = pair.to_hex();
        let rest = self.pairs.iter().find_map(|member| member.strip_prefix(&name))?;
        Some(rest.strip_prefix('@').and_then(|ms| ms.parse().ok()).unwrap_or(0))
    }

    fn has_representation(&self, pair: Pair) -> bool {
        let representation = pair.representation.to_hex();
        self.pairs.iter().any(|member| member.get(32..64) == Some(&representation))
    }
}

impl Prints {
    /// As configured.
    pub fn new(config: &config::Credentials) -> Self {
        // The configuration has checked the names.
        let headers: Vec<HeaderName> =
            config.headers.iter().filter_map(|name| name.parse().ok()).collect();
        let covered = headers.iter().cloned().chain(REPRESENTATION).collect();
        let (cookies, recheck) = (config.cookies.clone(), config.recheck);
        Self { mode: config.mode, headers, covered, cookies, recheck, query: Query::default() }
    }

    /// The same, where a read may have a query.
    #[must_use]
    pub fn counting(self, query: Query) -> Self {
        Self { query, ..self }
    }

    /// The request headers that a pair covers. A response may vary by them, and they must reach the
    /// upstream as they were when the print was taken.
    pub fn covered(&self) -> &[HeaderName] {
        &self.covered
    }

    /// Whether a request may not be answered from the cache because it is somebody's.
    pub fn bypasses(&self, headers: &HeaderMap) -> bool {
        let names_caller = |name| self.headers.contains(name) || may_read_as_another(name);
        self.mode == Mode::Bypass && headers.keys().any(names_caller)
    }

    /// The pair of a request.
    pub fn pair(&self, key: &CredentialKey, head: &Parts) -> Pair {
        Pair {
            credential: Fingerprint::of(key, |hasher| self.add_credential(hasher, &head.headers)),
            representation: Fingerprint::of(key, |hasher| self.add_representation(hasher, head)),
        }
    }

    /// Who shares an upstream read with this pair: those who would be given its entry.
    pub fn circle(&self, pair: Pair) -> Pair {
        if self.mode == Mode::Shared { pair.waived() } else { pair }
    }

    /// How a pair stands to an entry of this audience.
    pub fn standing(&self, audience: &Audience, pair: Pair, now_ms: i64) -> Standing {
        if self.mode == Mode::Shared || audience.public {
            // The credential is waived, the representation never; and what does not count cannot
            // expire.
            let has = audience.has_representation(pair);
            return if has { Standing::Included } else { Standing::Outside };
        }
        let Some(served_at_ms) = audience.served_at_ms(pair) else { return Standing::Outside };
        let age_ms = u128::try_from(now_ms - served_at_ms).unwrap_or(0);
        match self.recheck {
            Some(recheck) if age_ms > recheck.as_millis() => Standing::Lapsed,
            _ => Standing::Included,
        }
    }

    fn add_credential(&self, hasher: &mut blake3::Hasher, headers: &HeaderMap) {
        for name in &self.headers {
            for value in headers.get_all(name) {
                if *name == COOKIE && !self.cookies.is_empty() {
                    self.add_cookies(hasher, value.as_bytes());
                } else {
                    add(hasher, name.as_str().as_bytes());
                    add(hasher, value.as_bytes());
                }
            }
        }
        for (name, value) in headers.iter().filter(|(name, _)| may_read_as_another(name)) {
            add(hasher, name.as_str().as_bytes());
            add(hasher, value.as_bytes());
        }
    }

    fn add_representation(&self, hasher: &mut blake3::Hasher, head: &Parts) {
        add(hasher, head.uri.path().as_bytes());
        for parameter in head.uri.query().into_iter().flat_map(|query| self.query.counted(query)) {
            add(hasher, b"?");
            add(hasher, parameter.as_bytes());
        }
        // An absolute-form target or an HTTP/2 `:authority` takes the place of Host.
        let authority = head.uri.authority();
        if let Some(authority) = authority {
            add(hasher, HOST.as_str().as_bytes());
            add(hasher, authority.as_str().as_bytes());
        }
        for name in REPRESENTATION.iter().filter(|name| authority.is_none() || **name != HOST) {
            for value in head.headers.get_all(name) {
                add(hasher, name.as_str().as_bytes());
                add(hasher, value.as_bytes());
            }
        }
    }

    /// The cookies that count, as they stand: who has none of them is nobody in particular. RFC 6265
    /// 4.2.1: pairs are separated by "; ".
    fn add_cookies(&self, hasher: &mut blake3::Hasher, value: &[u8]) {
        for cookie in value.split(|byte| *byte == b';') {
            let cookie = cookie.trim_ascii();
            let name = cookie.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
            if self.cookies.iter().any(|counts| counts.as_bytes() == name) {
                add(hasher, COOKIE.as_str().as_bytes());
                add(hasher, cookie);
            }
        }
    }
}

/// Whether some backends read a header of this name as one of another name. RFC 3875 4.1.18: the
/// name "is converted to upper case, has all occurrences of "-" replaced with "_" and has "HTTP_"
/// prepended", and so WSGI and CGI cannot tell `x_user_id` from `x-user-id`; some turn every
/// character but letters and digits into "_". Such a header tells callers apart, whatever its name.
pub fn may_read_as_another(name: &HeaderName) -> bool {
    !name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Length first, so that no two lists of parts read the same.
fn add(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    const KEY: CredentialKey = CredentialKey::new([7; 32]);

    const NOW_MS: i64 = 1_718_000_000_000;

    fn prints(mode: Mode, cookies: &[&str]) -> Prints {
        let cookies = cookies.iter().map(ToString::to_string).collect();
        let headers = vec!["authorization".into(), "cookie".into(), "x-user-id".into()];
        Prints::new(&config::Credentials {
            mode,
            headers,
            cookies,
            ..config::Credentials::default()
        })
    }

    fn head(path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn pair(path: &str, headers: &[(&str, &str)]) -> Pair {
        prints(Mode::Partition, &[]).pair(&KEY, &head(path, headers))
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
    fn only_the_named_cookies_count() {
        let some = prints(Mode::Partition, &["session"]);
        let pair = |cookie| some.pair(&KEY, &head("/jobs/x", &[("cookie", cookie)]));
        let plain = pair("session=1");
        for same in ["session=1; theme=dark", "theme=dark;  session=1", " session=1 ;_ga=2"] {
            assert_eq!(plain, pair(same), "{same}");
        }
        for other in ["session=2", "theme=dark", "Session=1", "session=1; session=2", "xsession=1"]
        {
            assert_ne!(plain, pair(other), "{other}");
        }
        let nobody = some.pair(&KEY, &head("/jobs/x", &[]));
        assert_eq!(nobody, pair("theme=dark; _ga=2"));
        assert_ne!(nobody, pair("session="));
    }

    #[test]
    fn another_key_gives_other_prints() {
        let request = head("/jobs/x", &[("authorization", "Bearer a")]);
        let prints = prints(Mode::Partition, &[]);
        let other = CredentialKey::new([8; 32]);
        assert_ne!(prints.pair(&KEY, &request), prints.pair(&other, &request));
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
        let audience = Audience { pairs: vec![pair.to_hex()], public: false };
        let mut prints = prints(Mode::Partition, &[]);
        assert_eq!(prints.standing(&audience, pair, NOW_MS), Standing::Included);
        prints.recheck = Some(Duration::from_secs(30));
        assert_eq!(prints.standing(&audience, pair, NOW_MS), Standing::Lapsed);
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
}
