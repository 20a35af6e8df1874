//! Roles of request headers: which of them tell callers apart, and how.
//!
//! A header is part of the credential, of the variant, of both, or it is known to say nothing about the
//! caller. A header that nothing is known about is part of the variant: the credential may be waived,
//! but nobody can say of an unknown header that it does not matter.
//!
//! No header is both on the built-in list of the variant and on that of the headers that say nothing.
//! The configuration decides before either list.

use std::{
    cmp::Ordering,
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use hyper::http::{
    HeaderName,
    header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_LANGUAGE, FORWARDED, HOST, ORIGIN},
};

use super::{counted_parts::CountedParts, ignored_headers::IGNORED_HEADERS};
use crate::semantics::settings::CredentialsConfig;

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

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Place of the headers without a place of their own. They are taken in the order of their names.
const LAST: usize = usize::MAX;

/// Role of a header in the fingerprints.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderRole {
    /// Headers are taken in this order, regardless of their order in the request.
    place: usize,
    pub(super) credential: bool,
    pub(super) variant: bool,
    pub(super) parts: CountedParts,
}

impl HeaderRole {
    const IGNORED: Self =
        Self { place: LAST, credential: false, variant: false, parts: CountedParts::Whole };
    const UNKNOWN: Self = Self { variant: true, ..Self::IGNORED };
    /// A credential in a spelling that only some upstreams read as one.
    const ODD_CREDENTIAL: Self = Self { credential: true, ..Self::IGNORED };

    /// Returns whether the header says something about the caller.
    pub(super) fn counts(self) -> bool {
        self.credential || self.variant
    }

    /// Returns the order in which two headers are taken. It is that of the request for the lines of one
    /// header only.
    pub(super) fn order(
        (role, name): (Self, &HeaderName),
        (other, of): (Self, &HeaderName),
    ) -> Ordering {
        role.place.cmp(&other.place).then_with(|| match role.place {
            LAST => name.as_str().cmp(of.as_str()),
            _ => Ordering::Equal,
        })
    }
}

/// Roles of all headers.
#[derive(Clone, Debug)]
pub(super) struct HeaderRoles {
    /// Roles of the headers that something is known about.
    known: HashMap<HeaderName, HeaderRole, BuildHasherDefault<NameHasher>>,
    /// Whether `Host` counts, and so an authority that takes its place.
    pub(super) counts_host: bool,
}

impl HeaderRoles {
    /// Makes the roles from the configuration. A name in `credentials.headers` counts even where it is
    /// on the built-in list of those that say nothing.
    pub(super) fn new(settings: &CredentialsConfig) -> Self {
        let mut known: HashMap<_, _, _> = HashMap::default();
        let ignored = IGNORED_HEADERS.iter().copied().flatten().copied();
        known.extend(ignored.filter_map(|name| Some((name.parse().ok()?, HeaderRole::IGNORED))));
        known.insert(BAGGAGE, HeaderRole { parts: CountedParts::Baggage, ..HeaderRole::UNKNOWN });
        for (place, name) in VARIANT_HEADERS.into_iter().enumerate() {
            let parts =
                if name == FORWARDED { CountedParts::Forwarded } else { CountedParts::Whole };
            known.insert(name, HeaderRole { place, parts, ..HeaderRole::UNKNOWN });
        }
        for name in names(&settings.ignore) {
            known.insert(name, HeaderRole::IGNORED);
        }
        for (at, name) in names(&settings.headers).enumerate() {
            let variant = VARIANT_HEADERS.contains(&name);
            let place = VARIANT_HEADERS.len() + at;
            let role = HeaderRole { place, variant, ..HeaderRole::ODD_CREDENTIAL };
            known.insert(name, role);
        }
        let counts_host = known.get(&HOST).is_some_and(|role| role.variant);
        Self { known, counts_host }
    }

    /// Returns the role of a header.
    pub(super) fn of(&self, name: &HeaderName) -> HeaderRole {
        if let Some(role) = self.known.get(name) {
            return *role;
        }
        if may_read_as_another(name) && self.reads_as_credential(name) {
            return HeaderRole::ODD_CREDENTIAL;
        }
        HeaderRole::UNKNOWN
    }

    /// Returns whether nothing is known about a header, except that part of it may not count.
    pub(super) fn is_unknown(&self, name: &HeaderName) -> bool {
        let role = self.of(name);
        role.variant && role.place == LAST
    }

    /// Returns the headers that are known to count as a whole: a response may vary by them.
    pub(super) fn covered(settings: &CredentialsConfig) -> Vec<HeaderName> {
        let ignored: Vec<HeaderName> = names(&settings.ignore).collect();
        let variant = VARIANT_HEADERS.into_iter();
        let variant = variant.filter(|name| *name != FORWARDED && !ignored.contains(name));
        names(&settings.headers).chain(variant).collect()
    }

    fn reads_as_credential(&self, name: &HeaderName) -> bool {
        let plain = name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let plain = HeaderName::try_from(plain).ok();
        plain.and_then(|plain| self.known.get(&plain)).is_some_and(|role| role.credential)
    }
}

/// Parses names. Never fails: they were checked when the configuration was loaded.
pub(super) fn names(names: &[String]) -> impl Iterator<Item = HeaderName> {
    names.iter().filter_map(|name| name.parse().ok())
}

/// Returns whether some upstreams read a header with this name as a header with another name.
///
/// RFC 3875 4.1.18: the name "is converted to upper case, has all occurrences of "-" replaced with "_"
/// and has "HTTP_" prepended". So WSGI and CGI cannot distinguish `x_user_id` from `x-user-id`, and
/// some servers replace every character other than letters and digits by "_". Such a header counts as
/// part of the credential if its name may be read as that of a credential, and otherwise of the variant.
pub fn may_read_as_another(name: &HeaderName) -> bool {
    !name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// FNV-1a hash. A fast hash matters, because every header of every request is looked up. No key is
/// needed: the map holds only names from the configuration and the built-in lists, so clients cannot
/// force collisions.
pub(super) struct NameHasher(u64);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_header_is_on_both_built_in_lists() {
        let ignored: Vec<&str> = IGNORED_HEADERS.iter().copied().flatten().copied().collect();
        let both = VARIANT_HEADERS.into_iter().chain([BAGGAGE]);
        let both: Vec<_> = both.filter(|name| ignored.contains(&name.as_str())).collect();
        assert_eq!(both, Vec::<HeaderName>::new());
    }
}
