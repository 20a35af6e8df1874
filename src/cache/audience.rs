//! Audiences: which callers an entry may be served to.
//!
//! A caller ([`Caller`]) is two fingerprints. The **credential** covers everything that identifies the
//! client: `Authorization`, cookies, API keys and the headers that a gateway adds once it has
//! authenticated the client. The **variant** covers everything that selects a form of the answer: path
//! and query, host names and content negotiation. An entry is only for the callers that the upstream
//! itself has served its bytes to. Headers are neither parsed nor trusted: equal bytes give equal
//! fingerprints.
//!
//! Fingerprints are keyed BLAKE3 hashes, so that a program that can read the store cannot find
//! credentials by guessing.

mod joined;
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

/// Keyed BLAKE3 hash, cut to 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

/// Fingerprints of a request's credential and of the variant that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    credential: Fingerprint,
    variant: Fingerprint,
}

/// The text that a variant's fingerprint was made from. It gives the fingerprint of another path with
/// the same headers, because nothing else differs then.
#[derive(Clone, Debug)]
pub struct Variant {
    key: CredentialKey,
    /// The parts, each preceded by its length. The first is the path.
    text: Vec<u8>,
    path: Range<usize>,
}

/// The callers that an entry is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    /// Callers that the upstream has served the entry's bytes to.
    pub members: Box<[AudienceMember]>,
    /// Whether the upstream has declared that the credential does not matter.
    pub public: bool,
}

/// A caller, and when the upstream has served it the entry.
///
/// Format in the store: the caller in hexadecimal (see [`Caller::to_hex`]), `@`, and the time in ms since
/// 1970 by the store's clock. Members written by older sidecars have no time, which counts as 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudienceMember {
    caller: Caller,
    served_at_ms: i64,
}

/// Whether a caller belongs to an entry's audience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The entry may be served to the caller.
    Included,
    /// The upstream has served the entry to the caller, but too long ago to rely on it.
    Lapsed,
    /// The upstream has not served the entry to the caller.
    Outside,
}

/// Takes the fingerprints of requests.
#[derive(Clone, Debug)]
pub struct Fingerprinter {
    mode: Mode,
    /// Headers of the credential.
    credential_headers: Vec<HeaderName>,
    /// Headers of the credential and of the variant.
    covered: Vec<HeaderName>,
    /// Roles of the covered headers, by name.
    roles: HashMap<HeaderName, HeaderRole, BuildHasherDefault<NameHasher>>,
    /// Names of the cookies that count; if empty, all cookies count.
    cookies: Vec<String>,
    /// How long a membership lasts; if unset, it does not lapse.
    recheck: Option<Duration>,
    query: Query,
}

/// Capacity for the text of a usual request, in bytes.
const USUAL_TEXT_BYTES: usize = 512;

/// Role of a header in the fingerprints. Headers are taken in the order of `order`, regardless of
/// their order in the request.
#[derive(Clone, Copy, Debug)]
struct HeaderRole {
    order: usize,
    credential: bool,
    variant: bool,
}

/// FNV-1a hash. A fast hash matters, because every header of every request is looked up. No key is
/// needed: the map holds only names from the configuration, so clients cannot force collisions.
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

/// A header that is part of a fingerprint.
struct CoveredHeader<'h> {
    role: HeaderRole,
    name: &'h HeaderName,
    value: &'h HeaderValue,
}

const VARIANT_HEADERS: [HeaderName; 13] = [
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
    /// Credential fingerprint for uses in which the credential does not matter.
    const WAIVED: Self = Self([0; 16]);
    /// Fingerprint of a request without any credential. Needs no hash.
    const NOBODY: Self = Self([0xff; 16]);

    /// Takes the fingerprint of a list of parts. Each part is preceded by its length, so that different
    /// lists never give the same text. The text is left in `text`.
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
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::keyed_hash(key.bytes(), text).as_bytes()[..16]);
        Self(bytes)
    }

    fn from_hex(hex: &[u8; 32]) -> Option<Self> {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 16];
        for (byte, digits) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = digit(digits[0])? << 4 | digit(digits[1])?;
        }
        Some(Self(bytes))
    }

    /// Writes the fingerprint as 32 hexadecimal digits.
    fn write_hex(self, hex: &mut [u8]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for (digits, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            digits[0] = DIGITS[usize::from(byte >> 4)];
            digits[1] = DIGITS[usize::from(byte & 15)];
        }
    }
}

/// Appends a part, preceded by its length.
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

impl Variant {
    /// Returns the path that the text was made for.
    pub fn path(&self) -> &[u8] {
        &self.text[self.path.clone()]
    }

    /// Changes the path and returns the new fingerprint.
    fn retarget(&mut self, path: &[u8]) -> Fingerprint {
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

impl Caller {
    /// Returns the format of the store: 64 hexadecimal digits, the credential first.
    pub fn to_hex(self) -> String {
        let mut hex = [0; 64];
        self.credential.write_hex(&mut hex[..32]);
        self.variant.write_hex(&mut hex[32..]);
        hex.iter().copied().map(char::from).collect()
    }

    /// Returns the same variant for any credential.
    fn waived(self) -> Self {
        Self { credential: Fingerprint::WAIVED, ..self }
    }
}

impl AudienceMember {
    /// Parses the format of the store; `None` if `text` is not a valid member.
    pub fn parse(text: &str) -> Option<Self> {
        let (credential, rest) = text.as_bytes().split_first_chunk()?;
        let (representation, time) = rest.split_first_chunk()?;
        let credential = Fingerprint::from_hex(credential)?;
        let representation = Fingerprint::from_hex(representation)?;
        let time = std::str::from_utf8(time).ok()?.strip_prefix('@');
        let served_at_ms = time.and_then(|ms| ms.parse().ok()).unwrap_or(0);
        Some(Self { caller: Caller { credential, variant: representation }, served_at_ms })
    }
}

impl fmt::Display for AudienceMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.caller.to_hex(), self.served_at_ms)
    }
}

impl Audience {
    /// Creates the audience of a response that was served to one caller. If the response is `public`,
    /// every credential that asks for the same variant is included.
    pub fn of(caller: Caller, public: bool, served_at_ms: i64) -> Self {
        Self { members: Box::new([AudienceMember { caller, served_at_ms }]), public }
    }

    /// Returns when the upstream has served the entry to this caller, if it has.
    fn served_at_ms(&self, caller: Caller) -> Option<i64> {
        let member = self.members.iter().find(|member| member.caller == caller)?;
        Some(member.served_at_ms)
    }

    /// Returns whether the upstream has served the entry to the caller's credential, in any variant.
    pub fn has_credential(&self, caller: Caller) -> bool {
        self.members.iter().any(|member| member.caller.credential == caller.credential)
    }

    fn has_variant(&self, caller: Caller) -> bool {
        self.members.iter().any(|member| member.caller.variant == caller.variant)
    }
}

impl Fingerprinter {
    /// Creates a fingerprinter from the configuration. Queries are covered whole.
    pub fn new(config: &config::CredentialsConfig) -> Self {
        // Parsing never fails: the names were checked when the configuration was loaded.
        let credential_headers: Vec<HeaderName> =
            config.headers.iter().filter_map(|name| name.parse().ok()).collect();
        let covered: Vec<HeaderName> =
            credential_headers.iter().cloned().chain(VARIANT_HEADERS).collect();
        let role = |(place, name): (usize, &HeaderName)| {
            let credential = credential_headers.contains(name);
            let representation = VARIANT_HEADERS.contains(name);
            (name.clone(), HeaderRole { order: place, credential, variant: representation })
        };
        let roles = covered.iter().enumerate().map(role).collect();
        Self {
            mode: config.mode,
            credential_headers,
            covered,
            roles,
            cookies: config.cookies.clone(),
            recheck: config.recheck,
            query: Query::default(),
        }
    }

    /// Leaves out the query parameters that `query` ignores.
    #[must_use]
    pub fn with_query(self, query: Query) -> Self {
        Self { query, ..self }
    }

    /// Returns the request headers that fingerprints cover. A response may vary by them, and they must
    /// reach the upstream as they were when the fingerprint was taken.
    pub fn covered_headers(&self) -> &[HeaderName] {
        &self.covered
    }

    /// Returns whether a request must bypass the cache because it carries a credential.
    pub fn must_bypass(&self, headers: &HeaderMap) -> bool {
        let names_caller =
            |name| self.credential_headers.contains(name) || may_read_as_another(name);
        self.mode == Mode::Bypass && headers.keys().any(names_caller)
    }

    /// Returns the caller of a request.
    pub fn caller(&self, key: &CredentialKey, uri: &Uri, headers: &HeaderMap) -> Caller {
        self.caller_and_variant(key.clone(), uri, headers).0
    }

    /// Returns the caller of a request, and the text from which the variant of another path can be
    /// made. Runs for every read, so it passes over the headers only once.
    pub fn caller_and_variant(
        &self,
        key: CredentialKey,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> (Caller, Variant) {
        let mut covered: Vec<CoveredHeader<'_>> =
            headers.iter().filter_map(|line| self.covered_header(line)).collect();
        covered.sort_by_key(|header| header.role.order);
        let mut text = Vec::with_capacity(USUAL_TEXT_BYTES);
        let credential = Fingerprint::of(&key, self.credential_parts(&covered), &mut text);
        let variant = Fingerprint::of(&key, self.variant_parts(&covered, uri), &mut text);
        let path_len = uri.path().len();
        let start = if path_len < usize::from(u8::MAX) { 1 } else { 1 + size_of::<u64>() };
        let caller = Caller { credential, variant };
        (caller, Variant { key, text, path: start..start + path_len })
    }

    /// Returns the caller of a request with the same headers and another path.
    pub fn retarget(&self, caller: Caller, variant: &mut Variant, path: &str) -> Caller {
        Caller { variant: variant.retarget(path.as_bytes()), ..caller }
    }

    fn covered_header<'h>(
        &self,
        (name, value): (&'h HeaderName, &'h HeaderValue),
    ) -> Option<CoveredHeader<'h>> {
        let role = self.roles.get(name).copied().or_else(|| {
            let last = HeaderRole { order: usize::MAX, credential: true, variant: false };
            may_read_as_another(name).then_some(last)
        })?;
        Some(CoveredHeader { role, name, value })
    }

    /// Returns the coalesce key of a caller. Callers with the same key share upstream reads, because
    /// each of them may get the entry of the other.
    pub fn coalesce_key(&self, caller: Caller) -> Caller {
        if self.mode == Mode::Shared { caller.waived() } else { caller }
    }

    /// Decides whether a caller belongs to an audience.
    pub fn standing(&self, audience: &Audience, caller: Caller, now_ms: i64) -> Standing {
        if self.mode == Mode::Shared || audience.public {
            // Only the credential is waived, never the variant. A membership that does not depend on
            // the credential cannot lapse.
            let has = audience.has_variant(caller);
            return if has { Standing::Included } else { Standing::Outside };
        }
        let Some(served_at_ms) = audience.served_at_ms(caller) else { return Standing::Outside };
        let age_ms = u128::try_from(now_ms.saturating_sub(served_at_ms)).unwrap_or(0);
        match self.recheck {
            Some(recheck) if age_ms > recheck.as_millis() => Standing::Lapsed,
            _ => Standing::Included,
        }
    }

    /// Returns the caller with the variant that an operator, who does not know it, most likely means:
    /// the one in which the entry was last served to this credential, or else that of any member.
    pub fn assume_variant(&self, audience: &Audience, caller: Caller) -> Caller {
        let of_credential =
            audience.members.iter().filter(|member| member.caller.credential == caller.credential);
        let latest = of_credential.max_by_key(|member| member.served_at_ms);
        match latest.or_else(|| audience.members.first()) {
            Some(member) => Caller { variant: member.caller.variant, ..caller },
            None => caller,
        }
    }

    fn credential_parts<'h>(
        &'h self,
        covered: &'h [CoveredHeader<'h>],
    ) -> impl Iterator<Item = &'h [u8]> {
        let headers = covered.iter().filter(|header| header.role.credential);
        headers.flat_map(|header| {
            let some = *header.name == COOKIE && !self.cookies.is_empty();
            let whole = (!some).then(|| header.value.as_bytes());
            let cookies = some.then(|| self.counted_cookies(header.value.as_bytes()));
            let values = whole.into_iter().chain(cookies.into_iter().flatten());
            values.flat_map(|value| [header.name.as_str().as_bytes(), value])
        })
    }

    fn variant_parts<'h>(
        &'h self,
        covered: &'h [CoveredHeader<'h>],
        uri: &'h Uri,
    ) -> impl Iterator<Item = &'h [u8]> {
        let query = uri.query().into_iter().flat_map(|query| self.query.counted(query));
        let query = query.flat_map(|parameter| [b"?".as_slice(), parameter.as_bytes()]);
        // An absolute-form target or an HTTP/2 `:authority` replaces `Host`.
        let authority = uri.authority();
        let host = authority.into_iter();
        let host = host.flat_map(|name| [HOST.as_str().as_bytes(), name.as_str().as_bytes()]);
        let headers = covered.iter().filter(move |header| {
            header.role.variant && (authority.is_none() || *header.name != HOST)
        });
        let headers =
            headers.flat_map(|header| [header.name.as_str().as_bytes(), header.value.as_bytes()]);
        std::iter::once(uri.path().as_bytes()).chain(query).chain(host).chain(headers)
    }

    /// Returns the cookies that count, byte for byte. A request with none of them is anonymous. RFC
    /// 6265 4.2.1: cookies are separated by "; ".
    fn counted_cookies<'h>(&'h self, value: &'h [u8]) -> impl Iterator<Item = &'h [u8]> {
        let pairs = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        pairs.filter(|pair| cookies::member_counts(&self.cookies, pair))
    }
}

/// Returns whether some upstreams read a header with this name as a header with another name.
///
/// RFC 3875 4.1.18: the name "is converted to upper case, has all occurrences of "-" replaced with "_"
/// and has "HTTP_" prepended". So WSGI and CGI cannot distinguish `x_user_id` from `x-user-id`, and
/// some servers replace every character other than letters and digits by "_". Such a header counts as
/// part of the credential, whatever its name is.
pub fn may_read_as_another(name: &HeaderName) -> bool {
    !name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}
