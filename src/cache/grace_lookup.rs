//! Reads during the grace after a restart or failover of the store.
//!
//! Another sidecar may not have connected yet, and may hold an invalidation that the store has never
//! seen. Until it has had the time to repeat it, no entry is a hit, and a token that the store shows
//! proves nothing about the read behind it. So a read shares only upstream reads that begin after it
//! arrived, as without a store. Fills go on: what another sidecar still owes deletes them in time, as
//! it deletes what was filled in its presence.

use std::sync::Arc;

use super::{
    Cache, Lookup, LookupRequest,
    entry::{Entry, Reject},
    fill::{FillTarget, LeaderRead},
    flight::FlightTicket,
};
use crate::{
    semantics::policy::Bypass,
    store::{Budget, Grant, Seen},
};

impl Cache {
    /// Answers a read for which the store has shown `seen` during the grace.
    pub(super) async fn answer_in_grace(
        &self,
        request: &LookupRequest,
        found: Option<&Result<Arc<Entry>, Reject>>,
        seen: &Seen,
        budget: &mut Budget,
    ) -> Lookup {
        let may_fill = !request.never_coalesces()
            && !self.is_hit_for_miss(request)
            && !matches!(found, Some(Ok(_) | Err(Reject::Foreign)));
        if !may_fill {
            return self.answer_unconfirmed(request, Bypass::Grace);
        }
        let leader = match self.flights.join_or_lead_next(request.key.clone(), request.coalesce_key)
        {
            FlightTicket::Lead(leader) => leader,
            FlightTicket::Join(flight) => return Lookup::Join(flight, Some(Bypass::Grace)),
            FlightTicket::Full => return Lookup::Pass(Bypass::Flights),
        };
        let (key, identity) = (&request.key, request.identity);
        let target = match self.store.lease(key, identity, seen.stored.as_ref(), budget).await {
            Ok(Grant::Lease(lease)) => FillTarget::Lease(lease),
            _ => FillTarget::Nowhere,
        };
        Lookup::Lead(Box::new(LeaderRead::new(request, leader, target, Some(Bypass::Grace))))
    }
}
