//! Who may be given an entry.
//!
//! Two fingerprints make a [`Pair`]. The **credential** is all that tells who asks: `Authorization`,
//! cookies, API keys and what a gateway writes once it knows the caller. The **representation** is
//! what a request says about the form of the answer: the path and query it came by, the host names and
//! the negotiated form. An entry is for the pairs that the upstream itself has served its bytes to, and
//! for nobody else. Nothing is parsed and nothing is trusted: equal bytes in, equal print out.
//!
//! Prints are keyed BLAKE3, so that who can read the store learns no credential by trying.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasherDefault, Hasher},
    ops::Range,
    time::Duration,
};

use hyper::http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_LANGUAGE, COOKIE, FORWARDED, HOST, ORIGIN},
};

use super::{cookies, query::Query};
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

/// What a representation was told by, from which that of another path is taken: whoever sends the
/// same headers differs in nothing else.
#[derive(Clone, Debug)]
pub struct Form {
    key: CredentialKey,
    /// The parts, each with its length in front; the first is the path.
    text: Vec<u8>,
    path: Range<usize>,
}

/// The pairs that an entry is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    /// Those that it was served to.
    pub members: Box<[Member]>,
    /// The upstream has said that the credential does not matter.
    pub public: bool,
}

/// A pair, and when the upstream has served the entry to it.
///
/// In the store it is the pair in hexadecimal, as in [`Pair::to_hex`], `@`, and ms since 1970 by the
/// store's clock. Those of older sidecars have no time, and were served in 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pair: Pair,
    served_at_ms: i64,
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
#[derive(Clone, Debug)]
pub struct Prints {
    mode: Mode,
    /// What tells callers apart.
    headers: Vec<HeaderName>,
    /// Those, and what tells representations apart.
    covered: Vec<HeaderName>,
    /// The same, to look up what a request has.
    roles: HashMap<HeaderName, Role, BuildHasherDefault<NameHasher>>,
    /// Cookies that count; all of them where there are none.
    cookies: Vec<String>,
    /// How long a pair is believed.
    recheck: Option<Duration>,
    query: Query,
}

/// Bytes of what a usual request tells.
const USUAL_TEXT: usize = 512;

/// What a header tells. Prints take headers in the order of their places, in whatever order they came.
#[derive(Clone, Copy, Debug)]
struct Role {
    place: usize,
    credential: bool,
    representation: bool,
}

/// FNV-1a. Not keyed: what is in the map is from the configuration, so nobody can crowd it, and every
/// header of every request is looked up.
struct NameHasher(u64);

impl Default for NameHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A header that tells something.
struct Told<'h> {
    role: Role,
    name: &'h HeaderName,
    value: &'h HeaderValue,
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
    /// Of who says nothing at all. No hash needs to be taken to know it.
    const NOBODY: Self = Self([0xff; 16]);

    /// Of parts, each with its length in front, so that no two lists of parts read the same. `text` is
    /// for the parts, one after the other.
    fn of<'p>(
        key: &CredentialKey,
        parts: impl Iterator<Item = &'p [u8]>,
        text: &mut Vec<u8>,
    ) -> Self {
        text.clear();
        for part in parts {
            push_part(text, part);
        }
        Self::of_text(key, text)
    }

    fn of_text(key: &CredentialKey, text: &[u8]) -> Self {
        if text.is_empty() {
            return Self::NOBODY;
        }
        let mut print = [0; 16];
        print.copy_from_slice(&blake3::keyed_hash(key.bytes(), text).as_bytes()[..16]);
        Self(print)
    }

    fn from_hex(hex: &[u8; 32]) -> Option<Self> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let mut print = [0; 16];
        for (byte, digits) in print.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        Some(Self(print))
    }

    /// As 32 hexadecimal digits.
    fn write_hex(self, hex: &mut [u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for (digits, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            digits[0] = DIGITS[usize::from(byte >> 4)];
            digits[1] = DIGITS[usize::from(byte & 15)];
        }
    }
}

/// A part with its length in front.
fn push_part(text: &mut Vec<u8>, part: &[u8]) {
    match u8::try_from(part.len()) {
        Ok(len) if len < u8::MAX => text.push(len),
        _ => {
            text.push(u8::MAX);
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
        }
    }
    text.extend_from_slice(part);
}

impl Form {
    /// The path that it is of.
    pub fn path(&self) -> &[u8] {
        &self.text[self.path.clone()]
    }

    /// The print of another path with the same headers.
    fn turn(&mut self, path: &[u8]) -> Fingerprint {
        if path.len() == self.path.len() {
            self.text[self.path.clone()].copy_from_slice(path);
        } else {
            let mut text = Vec::with_capacity(self.text.len() + path.len());
            push_part(&mut text, path);
            let end = text.len();
            text.extend_from_slice(&self.text[self.path.end..]);
            (self.text, self.path) = (text, end - path.len()..end);
        }
        Fingerprint::of_text(&self.key, &self.text)
    }
}

impl Pair {
    /// As it stands in an entry: 64 hexadecimal digits, the credential first.
    pub fn to_hex(self) -> String {
        let mut hex = [0; 64];
        self.credential.write_hex(&mut hex[..32]);
        self.representation.write_hex(&mut hex[32..]);
        hex.iter().copied().map(char::from).collect()
    }

    /// The same form of the answer, whoever asks.
    fn waived(self) -> Self {
        Self { credential: Fingerprint::WAIVED, ..self }
    }
}

impl Member {
    /// As it stands in an entry; `None` of what nobody could be.
    pub fn parse(text: &str) -> Option<Self> {
        let (credential, rest) = text.as_bytes().split_first_chunk()?;
        let (representation, time) = rest.split_first_chunk()?;
        let credential = Fingerprint::from_hex(credential)?;
        let representation = Fingerprint::from_hex(representation)?;
        let time = std::str::from_utf8(time).ok()?.strip_prefix('@');
        let served_at_ms = time.and_then(|ms| ms.parse().ok()).unwrap_or(0);
        Some(Self { pair: Pair { credential, representation }, served_at_ms })
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pair.to_hex(), self.served_at_ms)
    }
}

impl Audience {
    /// Only this pair; everybody who asks for its form where the response is public.
    pub fn of(pair: Pair, public: bool, served_at_ms: i64) -> Self {
        Self { members: Box::new([Member { pair, served_at_ms }]), public }
    }

    /// When the upstream has served the entry to this pair, if it has.
    fn served_at_ms(&self, pair: Pair) -> Option<i64> {
        let member = self.members.iter().find(|member| member.pair == pair)?;
        Some(member.served_at_ms)
    }

    /// Whether it was served to whoever shows this credential, in whatever form.
    pub fn has_credential(&self, pair: Pair) -> bool {
        self.members.iter().any(|member| member.pair.credential == pair.credential)
    }

    fn has_representation(&self, pair: Pair) -> bool {
        self.members.iter().any(|member| member.pair.representation == pair.representation)
    }
}

impl Prints {
    /// As configured.
    pub fn new(config: &config::CredentialsConfig) -> Self {
        // The configuration has checked the names.
        let headers: Vec<HeaderName> =
            config.headers.iter().filter_map(|name| name.parse().ok()).collect();
        let covered: Vec<HeaderName> = headers.iter().cloned().chain(REPRESENTATION).collect();
        let role = |(place, name): (usize, &HeaderName)| {
            let credential = headers.contains(name);
            let representation = REPRESENTATION.contains(name);
            (name.clone(), Role { place, credential, representation })
        };
        let roles = covered.iter().enumerate().map(role).collect();
        let (cookies, recheck) = (config.cookies.clone(), config.recheck);
        let (mode, query) = (config.mode, Query::default());
        Self { mode, headers, covered, roles, cookies, recheck, query }
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
    pub fn pair(&self, key: &CredentialKey, uri: &Uri, headers: &HeaderMap) -> Pair {
        self.take(key.clone(), uri, headers).0
    }

    /// The pair of a request, and what another path with the same headers needs for its own. One pass
    /// over the headers: it is taken for every read.
    pub fn take(&self, key: CredentialKey, uri: &Uri, headers: &HeaderMap) -> (Pair, Form) {
        let mut told: Vec<Told<'_>> = headers.iter().filter_map(|line| self.told(line)).collect();
        told.sort_by_key(|told| told.role.place);
        let mut text = Vec::with_capacity(USUAL_TEXT);
        let credential = Fingerprint::of(&key, self.credential(&told), &mut text);
        let representation = Fingerprint::of(&key, self.representation(&told, uri), &mut text);
        let path = uri.path().len();
        let start = if path < usize::from(u8::MAX) { 1 } else { 1 + size_of::<u64>() };
        let form = Form { key, text, path: start..start + path };
        (Pair { credential, representation }, form)
    }

    /// The pair of a request with the same headers and another path.
    pub fn turn(&self, pair: Pair, form: &mut Form, path: &str) -> Pair {
        Pair { representation: form.turn(path.as_bytes()), ..pair }
    }

    fn told<'h>(&self, (name, value): (&'h HeaderName, &'h HeaderValue)) -> Option<Told<'h>> {
        let role = self.roles.get(name).copied().or_else(|| {
            let last = Role { place: usize::MAX, credential: true, representation: false };
            may_read_as_another(name).then_some(last)
        })?;
        Some(Told { role, name, value })
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
        let age_ms = u128::try_from(now_ms.saturating_sub(served_at_ms)).unwrap_or(0);
        match self.recheck {
            Some(recheck) if age_ms > recheck.as_millis() => Standing::Lapsed,
            _ => Standing::Included,
        }
    }

    /// The pair as it is if whoever it is asks for the form that the entry was served to him in, or, if
    /// it was not, for one that it was served in: for an operator, who does not know the form.
    pub fn assume(&self, audience: &Audience, pair: Pair) -> Pair {
        let of_credential =
            audience.members.iter().filter(|member| member.pair.credential == pair.credential);
        let latest = of_credential.max_by_key(|member| member.served_at_ms);
        match latest.or_else(|| audience.members.first()) {
            Some(member) => Pair { representation: member.pair.representation, ..pair },
            None => pair,
        }
    }

    fn credential<'h>(&'h self, told: &'h [Told<'h>]) -> impl Iterator<Item = &'h [u8]> {
        let told = told.iter().filter(|told| told.role.credential);
        told.flat_map(|told| {
            let some = *told.name == COOKIE && !self.cookies.is_empty();
            let whole = (!some).then(|| told.value.as_bytes());
            let cookies = some.then(|| self.cookies_that_count(told.value.as_bytes()));
            let values = whole.into_iter().chain(cookies.into_iter().flatten());
            values.flat_map(|value| [told.name.as_str().as_bytes(), value])
        })
    }

    fn representation<'h>(
        &'h self,
        told: &'h [Told<'h>],
        uri: &'h Uri,
    ) -> impl Iterator<Item = &'h [u8]> {
        let query = uri.query().into_iter().flat_map(|query| self.query.counted(query));
        let query = query.flat_map(|parameter| [b"?".as_slice(), parameter.as_bytes()]);
        // An absolute-form target or an HTTP/2 `:authority` takes the place of Host.
        let authority = uri.authority();
        let host = authority.into_iter();
        let host = host.flat_map(|it| [HOST.as_str().as_bytes(), it.as_str().as_bytes()]);
        let told = told.iter().filter(move |told| {
            told.role.representation && (authority.is_none() || *told.name != HOST)
        });
        let told = told.flat_map(|told| [told.name.as_str().as_bytes(), told.value.as_bytes()]);
        std::iter::once(uri.path().as_bytes()).chain(query).chain(host).chain(told)
    }

    /// The cookies that count, as they stand: who has none of them is nobody in particular. RFC 6265
    /// 4.2.1: pairs are separated by "; ".
    fn cookies_that_count<'h>(&'h self, value: &'h [u8]) -> impl Iterator<Item = &'h [u8]> {
        let pairs = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        pairs.filter(|pair| cookies::pair_counts(&self.cookies, pair))
    }
}

/// Whether some backends read a header of this name as one of another name. RFC 3875 4.1.18: the
/// name "is converted to upper case, has all occurrences of "-" replaced with "_" and has "HTTP_"
/// prepended", and so WSGI and CGI cannot tell `x_user_id` from `x-user-id`; some turn every
/// character but letters and digits into "_". Such a header tells callers apart, whatever its name.
pub fn may_read_as_another(name: &HeaderName) -> bool {
    !name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}
