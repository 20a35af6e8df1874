//! Identities: which API, route and job an entry is of.
//!
//! Two routes, or two APIs that share a Redis, may give two jobs the same key. The key alone
//! therefore never decides: the meta of an entry holds the API, the route and the text of its
//! variable, and all three are compared before the entry is used. Leases and flights carry a hash of
//! the same, so that nobody waits for or joins a read of another job.
//!
//! An API without a name (`api` unset) is one identity. The address of the upstream is no part of
//! it: replicas of one API have different addresses, and different APIs often have the same one
//! (`127.0.0.1:8000` in each pod).

use std::{fmt, sync::Arc};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Hash of the API, the route and the variable that an entry is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IdentityHash(pub u64);

impl fmt::Display for IdentityHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The position of a route in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteIndex(pub(super) usize);

/// The API, the route and the job of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity<'i> {
    /// The name of the API; empty if it has none.
    pub api: &'i str,
    /// The template of the route.
    pub route: &'i str,
    /// The text of the variable.
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
    pub(crate) fn new(api: Option<&str>, routes: &[String]) -> Self {
        let api = api.unwrap_or_default();
        let scope = |route: &String| (route.as_str().into(), scope_seed(api, route));
        Self { api: api.into(), routes: routes.iter().map(scope).collect() }
    }

    /// Returns every route.
    pub(crate) fn indexes(&self) -> impl Iterator<Item = RouteIndex> + use<> {
        (0..self.routes.len()).map(RouteIndex)
    }

    pub(crate) fn identity<'i>(&'i self, route: RouteIndex, id: &'i str) -> Identity<'i> {
        let route = self.routes.get(route.0).map_or("", |(route, _)| route);
        Identity { api: &self.api, route, id }
    }

    /// Returns the hash of [`Scopes::identity`], at the cost of hashing the id.
    pub(crate) fn hash(&self, route: RouteIndex, id: &str) -> IdentityHash {
        let seed = self.routes.get(route.0).map(|(_, seed)| *seed);
        hash_in(seed.unwrap_or_else(|| scope_seed(&self.api, "")), id)
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
        let routes = ["/jobs/{id}".to_owned(), "/api/v1/jobs/{id}".to_owned()];
        let scopes = |api| Scopes::new(api, &routes);
        let [jobs, api_v1] = [RouteIndex(0), RouteIndex(1)];
        let same = scopes(Some("billing"));
        assert_eq!(same.hash(api_v1, "7"), scopes(Some("billing")).identity(api_v1, "7").hash());
        let hashes = [
            scopes(None).hash(jobs, "7"),
            scopes(Some("billing")).hash(jobs, "7"),
            scopes(None).hash(api_v1, "7"),
            scopes(None).hash(jobs, "8"),
        ];
        for (at, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..at].contains(hash), "{at}");
        }
    }
}
