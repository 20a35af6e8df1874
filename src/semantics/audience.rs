//! Audiences: which callers an entry may be served to.
//!
//! A caller ([`Caller`]) is two fingerprints. The **credential** covers everything that identifies the
//! client: `Authorization`, cookies, API keys and the headers that a gateway adds once it has
//! authenticated the client. The **variant** covers everything else on which the answer may depend: path
//! and query, host names, content negotiation, and every header that is not known to say nothing about
//! the caller. An entry is only for the callers that the upstream itself has served its bytes to.
//! Headers are not trusted: equal bytes give equal fingerprints.
//!
//! Fingerprints are keyed BLAKE3 hashes, so that a program that can read the store cannot find
//! credentials by guessing.

mod counted_parts;
mod fingerprint;
mod header_roles;
#[cfg(test)]
mod tests;

use std::fmt;

use hyper::http::{
    HeaderMap, HeaderName, Uri,
    header::{COOKIE, HOST},
};

pub(super) use self::counted_parts::cookie_counts;
use self::{
    counted_parts::cookie_member_counts,
    header_roles::{HeaderRole, HeaderRoles, names},
};
pub use self::{
    fingerprint::{CredentialKey, Fingerprint, Variant},
    header_roles::{is_address_header, is_variant_header, may_read_as_another, plain_name},
};
pub use super::settings::CredentialMode as Mode;
use super::settings::{self, QueryConfig};

/// Greatest number of pairs of one entry that have the same credential. A further one replaces the
/// oldest of them, so that nobody fills the audience of others.
pub const MAX_PAIRS_OF_CREDENTIAL: usize = 8;

/// Fingerprints of a request's credential and of the variant that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    credential: Fingerprint,
    variant: Fingerprint,
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
    settings: settings::CredentialsConfig,
    /// Headers that are known to be part of the credential or of the variant, as a whole.
    covered: Vec<HeaderName>,
    /// Headers of `credentials.ignore`.
    ignored: Vec<HeaderName>,
    roles: HeaderRoles,
    query: QueryConfig,
}

/// Capacity for the text of a usual request, in bytes.
const USUAL_TEXT_BYTES: usize = 512;

/// A header that is part of a fingerprint.
struct CoveredHeader<'h> {
    role: HeaderRole,
    name: &'h HeaderName,
    /// The value, or a part of it that counts.
    value: &'h [u8],
}

/// Last pair of every variant. Members of audiences from before every request header counted have none,
/// so they are not believed.
const VARIANT_VERSION: [&[u8]; 2] = [b"", b"2"];

impl Caller {
    /// Returns the format of the store: 64 hexadecimal digits, the credential first.
    pub fn to_hex(self) -> String {
        blake3::Hash::from_bytes(self.to_bytes()).to_hex().as_str().to_owned()
    }

    /// Returns both fingerprints, the credential first.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut both = [0; 32];
        both[..16].copy_from_slice(&self.credential.0);
        both[16..].copy_from_slice(&self.variant.0);
        both
    }

    /// Returns the fingerprint of the credential.
    pub(crate) fn credential(self) -> Fingerprint {
        self.credential
    }

    /// Returns the same variant for any credential.
    fn waived(self) -> Self {
        Self { credential: Fingerprint::WAIVED, ..self }
    }
}

impl AudienceMember {
    /// Parses the format of the store; `None` if `text` is not a valid member.
    pub fn parse(text: &str) -> Option<Self> {
        let (hex, time) = text.split_at_checked(64)?;
        let is_lower = !hex.bytes().any(|digit| digit.is_ascii_uppercase());
        let both = blake3::Hash::from_hex(hex).ok().filter(|_| is_lower)?;
        let (credential, variant) = both.as_bytes().split_first_chunk()?;
        let credential = Fingerprint(*credential);
        let variant = Fingerprint(variant.try_into().ok()?);
        let time = time.strip_prefix('@');
        let served_at_ms = time.and_then(|ms| ms.parse().ok()).unwrap_or(0);
        Some(Self { caller: Caller { credential, variant }, served_at_ms })
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

    /// Returns whether only the caller's credential may get the entry.
    pub fn is_own_of(&self, caller: Caller) -> bool {
        !self.public && self.pairs_of_credential(caller) == self.members.len()
    }

    /// Returns how many members have the caller's credential.
    pub fn pairs_of_credential(&self, caller: Caller) -> usize {
        let same = |member: &&AudienceMember| member.caller.credential == caller.credential;
        self.members.iter().filter(same).count()
    }

    /// Returns the members together with a caller that the upstream has just served. A credential with
    /// too many members loses its own oldest one.
    pub fn joined_by(&self, caller: Caller, served_at_ms: i64) -> Vec<AudienceMember> {
        let others = self.members.iter().filter(|member| member.caller != caller);
        let mut members: Vec<_> =
            [AudienceMember { caller, served_at_ms }].into_iter().chain(others.copied()).collect();
        let is_own = |member: &AudienceMember| member.caller.credential == caller.credential;
        if members.iter().filter(|member| is_own(member)).count() > MAX_PAIRS_OF_CREDENTIAL {
            let own = members.iter().enumerate().skip(1).filter(|(_, member)| is_own(member));
            if let Some((at, _)) = own.min_by_key(|(_, member)| member.served_at_ms) {
                members.remove(at);
            }
        }
        members
    }

    fn has_variant(&self, caller: Caller) -> bool {
        self.members.iter().any(|member| member.caller.variant == caller.variant)
    }
}

impl Fingerprinter {
    /// Creates a fingerprinter from the configuration. Queries are covered whole.
    pub fn new(settings: &settings::CredentialsConfig) -> Self {
        Self {
            settings: settings.clone(),
            covered: HeaderRoles::covered(settings),
            ignored: names(&settings.ignore).collect(),
            roles: HeaderRoles::new(settings),
            query: QueryConfig::default(),
        }
    }

    /// Leaves out the query parameters that `query` ignores.
    #[must_use]
    pub fn with_query(self, query: QueryConfig) -> Self {
        Self { query, ..self }
    }

    /// Returns the request headers that are known to count as a whole. A response may vary by them, and
    /// they must reach the upstream as they were when the fingerprint was taken.
    pub fn covered_headers(&self) -> &[HeaderName] {
        &self.covered
    }

    /// Returns the headers that the configuration ignores. A response that varies by them is not stored.
    pub fn ignored_headers(&self) -> &[HeaderName] {
        &self.ignored
    }

    /// Returns whether a request must bypass the cache because it carries a credential.
    pub fn must_bypass(&self, headers: &HeaderMap) -> bool {
        let names_caller = |name| self.roles.of(name).credential || may_read_as_another(name);
        self.settings.mode == Mode::Bypass && headers.keys().any(names_caller)
    }

    /// Returns whether a request has a header that nothing is known about.
    pub fn has_unknown_header(&self, headers: &HeaderMap) -> bool {
        headers.keys().any(|name| self.roles.is_unknown(name))
    }

    /// Returns the headers of a variant that nothing is known about, with the values or parts of values
    /// that count. Those of one header are next to each other.
    pub fn unknown_headers<'v>(
        &self,
        variant: &'v Variant,
    ) -> impl Iterator<Item = (HeaderName, &'v [u8])> {
        let headers = variant
            .pairs()
            .filter_map(|(name, value)| Some((HeaderName::from_bytes(name).ok()?, value)));
        headers.filter(|(name, _)| self.roles.is_unknown(name))
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
        let covered = self.covered(headers);
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

    /// Returns the headers that count, in the order in which they are taken.
    fn covered<'h>(&self, headers: &'h HeaderMap) -> Vec<CoveredHeader<'h>> {
        let mut covered = Vec::with_capacity(headers.len());
        for (name, value) in headers {
            let role = self.roles.of(name);
            if role.counts() {
                role.parts.each(value.as_bytes(), |value| {
                    covered.push(CoveredHeader { role, name, value });
                });
            }
        }
        // Stable: the lines of one header keep their order.
        covered.sort_by(|a, b| HeaderRole::order((a.role, a.name), (b.role, b.name)));
        covered
    }

    /// Returns the coalesce key of a caller. Callers with the same key share upstream reads, because
    /// each of them may get the entry of the other.
    pub fn coalesce_key(&self, caller: Caller) -> Caller {
        if self.settings.mode == Mode::Shared { caller.waived() } else { caller }
    }

    /// Decides whether a caller belongs to an audience.
    pub fn standing(&self, audience: &Audience, caller: Caller, now_ms: i64) -> Standing {
        if self.settings.mode == Mode::Shared || audience.public {
            // Only the credential is waived, never the variant. A membership that does not depend on
            // the credential cannot lapse.
            let has = audience.has_variant(caller);
            return if has { Standing::Included } else { Standing::Outside };
        }
        let Some(served_at_ms) = audience.served_at_ms(caller) else { return Standing::Outside };
        let age_ms = u128::try_from(now_ms.saturating_sub(served_at_ms)).unwrap_or(0);
        match self.settings.recheck {
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
            let some = *header.name == COOKIE && !self.settings.cookies.is_empty();
            let whole = (!some).then_some(header.value);
            let cookies = some.then(|| self.counted_cookies(header.value));
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
        let authority = uri.authority().filter(|_| self.roles.counts_host);
        let host = authority.into_iter();
        let host = host.flat_map(|name| [HOST.as_str().as_bytes(), name.as_str().as_bytes()]);
        let headers = covered.iter().filter(move |header| {
            header.role.variant && (authority.is_none() || *header.name != HOST)
        });
        let headers = headers.flat_map(|header| [header.name.as_str().as_bytes(), header.value]);
        let path = std::iter::once(uri.path().as_bytes());
        path.chain(query).chain(host).chain(headers).chain(VARIANT_VERSION)
    }

    /// Returns the cookies that count, byte for byte. A request with none of them is anonymous. RFC
    /// 6265 4.2.1: cookies are separated by "; ".
    fn counted_cookies<'h>(&'h self, value: &'h [u8]) -> impl Iterator<Item = &'h [u8]> {
        let pairs = value.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        pairs.filter(|pair| cookie_member_counts(&self.settings.cookies, pair))
    }
}
