//! What the callers of the admin listener use up together, for as long as the process runs.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::{
    body_limit::AddressShares,
    rate_limit::{AddressRateLimiter, RateLimiter},
};
use crate::observe::throttle::Throttle;

/// Rate limits and budgets of callers, which survive a reload.
#[derive(Default)]
pub struct CallerLimits {
    pub(super) skew_warnings: Throttle,
    pub(super) failures: AddressRateLimiter,
    /// Held while a large body is hashed, so that only one is hashed at a time.
    pub(super) hash_lock: Arc<Mutex<()>>,
    /// Memory that the bodies of each address use.
    pub(super) body_shares: Arc<AddressShares>,
    /// Rate of all purges.
    pub(super) purges: RateLimiter,
    /// Warnings of refreshes without `warm.headers`, whose entries may match no client.
    pub(super) refresh_warnings: Throttle,
}
