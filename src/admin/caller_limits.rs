//! Limits for callers of the admin listener: events per period, and memory for the bodies of purges.
//!
//! The state of a rate limiter is one instant, the theoretical arrival time of the generic cell rate
//! algorithm (GCRA, ITU-T I.371). Events that are refused do not count, so a caller that keeps
//! trying is admitted as soon as one that waits.
//!
//! A signature covers the whole body, so the body has to be read before its sender is known. Three
//! limits bound the memory: the first [`UNCOUNTED_BYTES`] bytes of each body (bounded by the number of
//! connections), a budget for all further bytes, and a share of that budget per address. None of
//! them applies to a sender with a valid bearer token. The caller of this module decides how to answer
//! a body that was not read.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync,
    time::{self, timeout_at},
};

use crate::{
    limits::{Permit, Quota, with_permit},
    observe::throttle::Throttle,
};

/// Rate limits and budgets of callers, which survive a reload.
#[derive(Default)]
pub struct CallerLimits {
    pub(super) skew_warnings: Throttle,
    pub(super) failures: AddressRateLimiter,
    /// Held while a large body is hashed, so that only one is hashed at a time.
    pub(super) hash_lock: Arc<sync::Mutex<()>>,
    /// Memory that the bodies of each address use.
    body_shares: Arc<AddressShares>,
    /// Rate of all purges.
    pub(super) purges: RateLimiter,
    /// Warnings of refreshes without `warm.headers`, whose entries may match no client.
    pub(super) refresh_warnings: Throttle,
}

/// Addresses with a limiter of their own; further addresses share one limiter.
const MAX_ADDRESSES: usize = 1024;

/// A rate: so many events per period.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventRate {
    /// Time that one event uses up.
    interval: Duration,
    /// How far the theoretical arrival time may lie ahead: the burst.
    burst: Duration,
}

/// A limiter for one kind of event. The default admits a full burst.
#[derive(Debug, Default)]
pub(super) struct RateLimiter(Mutex<Option<Instant>>);

/// A limiter for each client address, for up to [`MAX_ADDRESSES`] of them.
#[derive(Default)]
pub(super) struct AddressRateLimiter {
    /// Clients of a unix socket have no address and share the key `None`.
    arrivals: Mutex<HashMap<Option<IpAddr>, Instant>>,
    overflow: RateLimiter,
}

impl EventRate {
    /// The rate of `times` events per `period`; 0 counts as 1.
    pub(super) fn new(times: usize, period: Duration) -> Self {
        let interval = period / u32::try_from(times).unwrap_or(u32::MAX).max(1);
        Self { interval, burst: period.saturating_sub(interval) }
    }

    /// Returns the arrival time after one more event, or how long to wait for one.
    fn next_arrival(self, arrival: Option<Instant>, now: Instant) -> Result<Instant, Duration> {
        let from = arrival.map_or(now, |at| at.max(now));
        match from.duration_since(now).checked_sub(self.burst) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => Ok(from + self.interval),
        }
    }
}

impl RateLimiter {
    /// Counts one event, or returns how long to wait for one.
    pub(super) fn try_acquire(&self, rate: EventRate, now: Instant) -> Result<(), Duration> {
        let mut arrival = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *arrival = Some(rate.next_arrival(*arrival, now)?);
        Ok(())
    }
}

impl AddressRateLimiter {
    /// Counts one event of this address, or returns how long to wait for one.
    pub(super) fn try_acquire(
        &self,
        from: Option<IpAddr>,
        rate: EventRate,
        now: Instant,
    ) -> Result<(), Duration> {
        let from = from.map(address_key);
        let mut known = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ADDRESSES && !known.contains_key(&from) {
            known.retain(|_, arrival| *arrival > now);
        }
        if known.len() >= MAX_ADDRESSES && !known.contains_key(&from) {
            drop(known);
            return self.overflow.try_acquire(rate, now);
        }
        let arrival = rate.next_arrival(known.get(&from).copied(), now)?;
        known.insert(from, arrival);
        Ok(())
    }

    /// Returns how long this address would have to wait now. Counts nothing.
    pub(super) fn wait_time(
        &self,
        from: Option<IpAddr>,
        rate: EventRate,
        now: Instant,
    ) -> Option<Duration> {
        let from = from.map(address_key);
        let known = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = known.len() >= MAX_ADDRESSES && known.values().all(|arrival| *arrival > now);
        let arrival = match known.get(&from) {
            None if is_full => *self.overflow.0.lock().unwrap_or_else(PoisonError::into_inner),
            arrival => arrival.copied(),
        };
        rate.next_arrival(arrival, now).err()
    }
}

/// The key of a client: its IPv4 address, or its IPv6 /64, because a host usually has a whole /64.
fn address_key(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Largest body of a purge, in bytes: enough for [`MAX_IDS`](super::purge_request::MAX_IDS) ids of the
/// longest kind.
pub(super) const MAX_BODY: usize = 2 << 20;
/// First bytes of a body, which do not count towards the budget. Nearly all purges are smaller.
const UNCOUNTED_BYTES: usize = 8 << 10;
/// Time limit for the whole body.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that have to arrive in each [`STEP_TIMEOUT`] after the first [`UNCOUNTED_BYTES`] bytes,
/// unless the body ends.
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
struct AddressShares(Mutex<HashMap<Option<IpAddr>, usize>>);

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
    pub(super) fn new(quota: Arc<Quota>, size: usize, limits: &CallerLimits) -> Self {
        let shares = Arc::clone(&limits.body_shares);
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
        let last = time::Instant::now() + BODY_TIMEOUT;
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
                until = last.min(time::Instant::now() + STEP_TIMEOUT);
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

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn so_many_are_taken_at_once_and_then_one_at_a_time() {
        let (turns, rate, now) =
            (RateLimiter::default(), EventRate::new(4, SECOND), Instant::now());
        for _ in 0..4 {
            assert_eq!(turns.try_acquire(rate, now), Ok(()));
        }
        for _ in 0..9 {
            assert_eq!(
                turns.try_acquire(rate, now),
                Err(SECOND / 4),
                "refused events do not count"
            );
        }
        assert_eq!(turns.try_acquire(rate, now + SECOND / 4), Ok(()));
        assert_eq!(turns.try_acquire(rate, now + SECOND * 3 / 8), Err(SECOND / 8));
        for _ in 0..4 {
            assert_eq!(turns.try_acquire(rate, now + 9 * SECOND), Ok(()));
        }
        assert!(turns.try_acquire(rate, now + 9 * SECOND).is_err());
    }

    #[test]
    fn each_address_has_its_own_turns_and_all_that_are_not_known_share_theirs() {
        let (turns, rate, now) =
            (AddressRateLimiter::default(), EventRate::new(1, SECOND), Instant::now());
        let take = |ip: &str, now| turns.try_acquire(Some(ip.parse().unwrap()), rate, now).is_ok();
        assert!(take("192.0.2.1", now) && !take("192.0.2.1", now));
        assert!(!take("::ffff:192.0.2.1", now), "the same host");
        assert!(take("2001:db8::1", now) && !take("2001:db8::ffff:2", now), "the same host");
        assert!(take("2001:db8:0:1::1", now), "another");
        assert_eq!(turns.try_acquire(None, rate, now), Ok(()));
        for n in 0..MAX_ADDRESSES - 4 {
            assert!(take(&format!("10.0.{}.{}", n / 256, n % 256), now));
        }
        assert!(take("198.51.100.1", now) && !take("198.51.100.2", now), "the table is full");
        assert!(!take("192.0.2.1", now), "known addresses keep their limiter");
        let wait = |ip: &str, now| turns.wait_time(Some(ip.parse().unwrap()), rate, now);
        for ip in ["192.0.2.1", "198.51.100.2"] {
            assert_eq!(wait(ip, now), Some(SECOND));
            assert_eq!(wait(ip, now + SECOND), None, "waiting counts nothing");
        }
        assert_eq!(turns.arrivals.lock().unwrap().len(), MAX_ADDRESSES);
        assert!(take("198.51.100.2", now + 2 * SECOND) && take("198.51.100.3", now + 2 * SECOND));
        assert_eq!(turns.arrivals.lock().unwrap().len(), 2, "idle addresses are removed");
    }

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
