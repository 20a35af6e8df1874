//! What a read ahead of the clients asks the cache.
//!
//! It is told less than a client is: whether there is something to read, never an entry. What is there
//! for others is left to them: read for one more pair it would cost the upstream a read, and take the
//! entry from its audience where the upstream answers each client differently. And without a confirmed
//! lookup there is nothing to read, for it could not be stored.

use tracing::debug;

use super::{
    Ask, Cache, Lookup,
    fill::Lead,
    flight::{Flight, Shown},
    lookup::reason,
    policy::Bypass,
};
use crate::store::{Budget, Grant, StoreError};

/// How a read ahead is to go on.
#[derive(Debug)]
pub enum Ahead {
    /// There is an entry, for whomever.
    Present,
    /// By reading the upstream, for everybody who joins.
    Lead(Box<Lead>),
    /// Somebody else in this process reads it now.
    Join(Flight),
    /// Not now; what stands in the way passes.
    Wait(Bypass),
    /// Not at all: somebody else insists on the key.
    Never,
}

impl Cache {
    /// Looks whether a job is to be read ahead, under the same lease as a client's read would take: so
    /// that what a purge or a write has overtaken is not stored.
    pub async fn look_ahead(&self, ask: &Ask, budget: &mut Budget) -> Ahead {
        self.find_ahead(ask, budget).await.unwrap_or_else(|error| {
            debug!(%error, "lookup failed");
            Ahead::Wait(reason(&error))
        })
    }

    async fn find_ahead(&self, ask: &Ask, budget: &mut Budget) -> Result<Ahead, StoreError> {
        self.store.trust(&ask.key)?;
        let (found, seen) = self.look(&ask.key, budget).await?;
        match found {
            Some(Ok(_)) => return Ok(Ahead::Present),
            Some(Err(reject)) if self.leaves_alone(&ask.key, reject) => {
                return Ok(Ahead::Never);
            }
            _ => {}
        }
        // That its last response could not be stored keeps clients from queueing, and nobody queues here.
        Ok(match self.store.lease(&ask.key, seen.stored.as_ref(), budget).await? {
            Grant::Lease(lease) => match self.lead(ask, lease).await {
                Lookup::Lead(lead) => Ahead::Lead(lead),
                Lookup::Join(flight, _) => Ahead::Join(flight),
                Lookup::Pass(why) => Ahead::Wait(why),
                Lookup::Hit(_) => Ahead::Present,
            },
            Grant::Stored(_) => Ahead::Present,
            Grant::Leased(token, epoch) => {
                let joined = self.flights.join(&ask.key, &Shown { token, epoch }, ask.circle);
                joined.map_or(Ahead::Wait(Bypass::Leased), Ahead::Join)
            }
            Grant::Fenced => Ahead::Wait(Bypass::Fenced),
        })
    }
}
