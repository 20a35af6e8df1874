//! Reads the body of a purge from a client that may not be authorized yet.
//!
//! A signature covers the whole body, so the body has to be read before its sender is known. Three
//! limits bound the memory: the first [`UNCOUNTED_BYTES`] bytes of each body (bounded by the number of
//! connections), a budget for all further bytes, and a share of that budget per address. None of
//! them applies to a sender with a valid bearer token.
//!
//! The caller of this module decides how to answer a body that was not read.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout_at};

use super::rate_limit::address_key;
use crate::limits::{Permit, Quota, with_permit};

/// Largest body of a purge, in bytes: enough for [`MAX_IDS`](super::purge_request::MAX_IDS) ids of the
/// longest kind.
pub(super) const MAX_BODY: usize = 2 << 20;
/// First bytes of a body, which do not count towards the budget. Nearly all purges are smaller.
pub(super) const UNCOUNTED_BYTES: usize = 8 << 10;
/// Time limit for the whole body.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that have to arrive in each [`STEP_TIMEOUT`] after the first [`UNCOUNTED_BYTES`] bytes, unless the
/// body ends.
const STEP_BYTES: usize = 64 << 10;
/// Time limit for each [`STEP_BYTES`].
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The sender of a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum BodySender {
    /// A sender with a valid bearer token.
    ValidToken,
    /// A sender that is not authorized yet.
    NotAuthorized,
    /// A sender from an address with too many failures, which has to wait this long.
    RateLimited(Duration),
}

/// Why a body was not read completely.
#[derive(Debug)]
pub(super) enum PurgeBodyError {
    /// The body is larger than [`MAX_BODY`].
    TooLarge,
    /// The body did not arrive in time.
    TimedOut,
    /// The connection failed with this error.
    Broken(String),
    /// The budget for all bodies is used up.
    QuotaFull,
    /// The share of its address is used up.
    ShareFull,
    /// The body is larger than [`UNCOUNTED_BYTES`], and its address has to wait this long.
    RateLimited(Duration),
}

/// Bytes that each address uses of the budget. Addresses that use none have no entry.
#[derive(Default)]
pub(super) struct AddressShares(Mutex<HashMap<Option<IpAddr>, usize>>);

/// Bytes that one body uses of the share of its address.
struct AddressShare {
    shares: Arc<AddressShares>,
    address: Option<IpAddr>,
    amount: usize,
}

/// Reads bodies within the budget.
pub(super) struct BodyReader {
    quota: Arc<Quota>,
    shares: Arc<AddressShares>,
    /// Bytes that one address may use.
    share_limit: usize,
}

/// The budget use of one body while it is read.
struct BodyQuota {
    sender: BodySender,
    permit: Permit,
    share: AddressShare,
    /// Bytes that the address may use.
    limit: usize,
}

impl BodyReader {
    /// Each address may use a quarter of `size`, and at least one body.
    pub(super) fn new(quota: Arc<Quota>, size: usize, shares: Arc<AddressShares>) -> Self {
        Self { quota, shares, share_limit: (size / 4).max(MAX_BODY) }
    }

    /// Reads a whole body. Its share of the budget is released when the last clone is dropped.
    pub(super) async fn read(
        &self,
        mut body: Incoming,
        from: Option<IpAddr>,
        sender: BodySender,
    ) -> Result<Bytes, PurgeBodyError> {
        let mut upload = BodyQuota {
            sender,
            permit: self.quota.empty_permit(),
            share: self.shares.share_of(from),
            limit: self.share_limit,
        };
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        upload.check_size(announced)?;
        let last = Instant::now() + BODY_TIMEOUT;
        let mut until = last;
        let mut due = UNCOUNTED_BYTES;
        let mut whole = BytesMut::new();
        while let Some(frame) =
            timeout_at(until, body.frame()).await.map_err(|_| PurgeBodyError::TimedOut)?
        {
            let frame = frame.map_err(|error| PurgeBodyError::Broken(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            upload.reserve(whole.len(), whole.len() + data.len())?;
            // Copied, because a chunk can keep a larger buffer alive, and chunks of one byte have a
            // large overhead. The copy uses exactly the bytes that are counted.
            whole.extend_from_slice(&data);
            if whole.len() > due {
                due = whole.len() + STEP_BYTES;
                until = last.min(Instant::now() + STEP_TIMEOUT);
            }
        }
        let BodyQuota { permit: held, share, .. } = upload;
        Ok(with_permit(whole.freeze(), (held, share)))
    }
}

impl BodyQuota {
    /// Checks that a body of this size may be read.
    fn check_size(&self, size: usize) -> Result<(), PurgeBodyError> {
        match self.sender {
            _ if size > MAX_BODY => Err(PurgeBodyError::TooLarge),
            BodySender::RateLimited(wait) if size > UNCOUNTED_BYTES => {
                Err(PurgeBodyError::RateLimited(wait))
            }
            _ => Ok(()),
        }
    }

    /// Reserves memory for a body that grows from `old_size` to `size` bytes.
    fn reserve(&mut self, old_size: usize, size: usize) -> Result<(), PurgeBodyError> {
        self.check_size(size)?;
        let more = size.max(UNCOUNTED_BYTES) - old_size.max(UNCOUNTED_BYTES);
        if more == 0 {
            return Ok(());
        }
        if matches!(self.sender, BodySender::ValidToken) {
            if !self.permit.grow(more) {
                self.permit.force_grow(more);
            }
            return Ok(());
        }
        if !self.share.grow(more, self.limit) {
            return Err(PurgeBodyError::ShareFull);
        }
        if self.permit.grow(more) { Ok(()) } else { Err(PurgeBodyError::QuotaFull) }
    }
}

impl AddressShares {
    /// Returns an empty share for an address.
    fn share_of(self: &Arc<Self>, from: Option<IpAddr>) -> AddressShare {
        AddressShare { shares: Arc::clone(self), address: from.map(address_key), amount: 0 }
    }
}

impl AddressShare {
    /// Takes `more` bytes unless the address would then use more than `limit`.
    fn grow(&mut self, more: usize, limit: usize) -> bool {
        let mut held = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = held.get(&self.address).copied().unwrap_or(0) + more;
        if all > limit {
            return false;
        }
        held.insert(self.address, all);
        self.amount += more;
        true
    }
}

impl Drop for AddressShare {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut held = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = held.get(&self.address).map_or(0, |all| all.saturating_sub(self.amount));
        if left == 0 {
            held.remove(&self.address);
        } else {
            held.insert(self.address, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_so_much_at_most_and_is_forgotten_when_it_holds_nothing() {
        let shares = Arc::new(AddressShares::default());
        let share_of = |ip: &str| shares.share_of(Some(ip.parse().unwrap()));
        let (mut one, mut two) = (share_of("2001:db8::1"), share_of("2001:db8::2"));
        assert!(one.grow(3, 4) && one.grow(1, 4) && !two.grow(1, 4), "the same host");
        assert!(share_of("192.0.2.1").grow(4, 4) && shares.share_of(None).grow(4, 4), "others");
        drop(two);
        assert_eq!(shares.0.lock().unwrap().len(), 1);
        drop(one);
        assert!(shares.0.lock().unwrap().is_empty());
        assert!(share_of("2001:db8::3").grow(4, 4));
    }
}
