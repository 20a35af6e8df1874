//! Identities: which API, route and job an entry is of.
//!
//! Two routes, or two APIs that share a Redis, may give two jobs the same key. The key alone
//! therefore never decides: the meta of an entry holds the API, the route and the text of its
//! variables, and all of them are compared before the entry is used. Leases and flights carry a hash of
//! the same, and of the caller, so that nobody waits for or joins a read of another job.
//!
//! An API without a name (`api` unset) is one identity. The address of the upstream is no part of
//! it: replicas of one API have different addresses, and different APIs often have the same one
//! (`127.0.0.1:8000` in each pod).

use std::{borrow::Cow, fmt, sync::Arc};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::job_id::JobId;

/// Hash of the API, the route and the variable that an entry is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IdentityHash(pub u64);

impl fmt::Display for IdentityHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The position of a route in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RouteIndex(pub(super) usize);

impl RouteIndex {
    /// Returns the position, from 0.
    pub fn position(self) -> usize {
        self.0
    }
}

/// Where a job is read: its route and the texts of the variables there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The route.
    pub route: RouteIndex,
    /// The texts of all variables in their order, joined by a slash, which none of them has; none if
    /// that is the key.
    pub variables: Option<Box<str>>,
}

/// A job as the path of a read names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadJob<'p> {
    /// The key without its prefix.
    pub key: Cow<'p, str>,
    /// The position of the prefix among the configured ones.
    pub prefix: u8,
    /// Where it is read.
    pub place: Place,
}

impl<'p> ReadJob<'p> {
    /// A job by its name alone, as if it were read by the first route.
    pub fn of(id: &'p JobId) -> Self {
        let prefix = u8::try_from(id.prefix()).unwrap_or_default();
        Self { key: Cow::Borrowed(id.as_str()), prefix, place: Place::default() }
    }

    /// Returns the same job apart from the path that names it.
    pub fn into_owned(self) -> ReadJob<'static> {
        let Self { key, prefix, place } = self;
        ReadJob { key: Cow::Owned(key.into_owned()), prefix, place }
    }

    /// Returns the name of the job.
    pub fn id(&self) -> JobId {
        JobId::new(&self.key, self.prefix)
    }
}

/// The API, the route and the job of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity<'i> {
    /// The name of the API; empty if it has none.
    pub api: &'i str,
    /// The template of the route.
    pub route: &'i str,
    /// The texts of the variables, joined by a slash.
    pub id: &'i str,
}

impl Identity<'_> {
    /// Returns the hash of all parts, the same in every sidecar.
    pub fn hash(&self) -> IdentityHash {
        hash_in(scope_seed(self.api, self.route), self.id)
    }
}

/// The API and its routes.
#[derive(Clone, Debug)]
pub(crate) struct Scopes {
    api: Arc<str>,
    /// Templates, each with the seed for its hashes.
    routes: Arc<[(Box<str>, u64)]>,
}

impl Scopes {
    pub(crate) fn new<'r>(api: Option<&str>, routes: impl Iterator<Item = &'r str>) -> Self {
        let api = api.unwrap_or_default();
        let routes = routes.map(|route| (route.into(), scope_seed(api, route))).collect();
        Self { api: api.into(), routes }
    }

    /// Returns every route.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = RouteIndex> + use<> {
        (0..self.routes.len()).map(RouteIndex)
    }

    /// Returns what an entry is of, for requests at this place of the job with this key.
    pub(crate) fn identity<'i>(&'i self, place: &'i Place, key: &'i str) -> Identity<'i> {
        let route = self.routes.get(place.route.0).map_or("", |(route, _)| route);
        Identity { api: &self.api, route, id: place.variables.as_deref().unwrap_or(key) }
    }

    /// Returns the hash of [`Scopes::identity`], at the cost of hashing the variables.
    pub(crate) fn hash(&self, place: &Place, key: &str) -> IdentityHash {
        let seed = self.routes.get(place.route.0).map(|(_, seed)| *seed);
        let seed = seed.unwrap_or_else(|| scope_seed(&self.api, ""));
        hash_in(seed, place.variables.as_deref().unwrap_or(key))
    }
}

/// Neither a name of an API nor a template contains NUL, so the two parts cannot be shifted.
fn scope_seed(api: &str, route: &str) -> u64 {
    xxh3_64([api, "\0", route].concat().as_bytes())
}

fn hash_in(seed: u64, id: &str) -> IdentityHash {
    IdentityHash(xxh3_64_with_seed(id.as_bytes(), seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_route_and_id_each_make_another_identity_and_every_sidecar_the_same_one() {
        let scopes = |api| Scopes::new(api, ["/jobs/{id}", "/t/{tenant}/jobs/{id}"].into_iter());
        let place = |route, variables: Option<&str>| Place {
            route: RouteIndex(route),
            variables: variables.map(Into::into),
        };
        let same = scopes(Some("billing"));
        let there = place(1, Some("a/7"));
        assert_eq!(
            same.hash(&there, "a:7"),
            scopes(Some("billing")).identity(&there, "a:7").hash()
        );
        let hashes = [
            scopes(None).hash(&place(0, None), "7"),
            scopes(Some("billing")).hash(&place(0, None), "7"),
            scopes(None).hash(&place(1, None), "7"),
            scopes(None).hash(&place(0, None), "8"),
            scopes(None).hash(&place(1, Some("a:b/c")), "a:b:c"),
            scopes(None).hash(&place(1, Some("a/b:c")), "a:b:c"),
        ];
        for (at, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..at].contains(hash), "{at}");
        }
    }
}
