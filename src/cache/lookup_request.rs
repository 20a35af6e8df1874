//! A read of a job, as the cache sees it.

use super::{decide::Facts, entry::Entry, flight::CoalesceKey};
use crate::{
    semantics::{
        audience::{Caller, Variant},
        identity::RouteIndex,
        policy::RequestDirectives,
    },
    store::{IdentityHash, Key},
};

/// A read of a job, as the cache sees it.
#[derive(Debug)]
pub struct LookupRequest {
    pub(super) key: Key,
    pub(super) route: RouteIndex,
    /// Hash of the API, the route and the job.
    pub(super) identity: IdentityHash,
    pub(super) caller: Caller,
    /// Requests of one job with the same key may share an upstream read.
    pub(super) coalesce_key: CoalesceKey,
    pub(super) directives: RequestDirectives,
    /// The request is a GET.
    pub(super) may_fill: bool,
    /// The request never waits for another request's upstream read.
    pub(super) solo: bool,
    pub(super) variant: Variant,
}

impl LookupRequest {
    /// Makes the request solo: it never has to wait for another request's upstream read. A lookup does
    /// not queue it for a turn, and it may ignore a [`Lookup::Join`](super::Lookup::Join).
    #[must_use]
    pub fn solo(self) -> Self {
        Self { solo: true, ..self }
    }

    pub(super) fn facts(&self, is_hit_for_miss: bool, yields_key: bool) -> Facts {
        let Self { directives, may_fill, solo: is_solo, .. } = *self;
        Facts { directives, may_fill, is_solo, is_hit_for_miss, yields_key }
    }

    pub(super) fn accepts_age(&self, entry: &Entry, now_ms: i64) -> bool {
        self.directives.admit(entry.age(now_ms), entry.ttl(now_ms))
    }
}
