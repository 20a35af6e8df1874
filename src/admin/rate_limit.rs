//! Rate limits: so many events per period on average, and so many at once.
//!
//! The state of a limiter is one instant, the theoretical arrival time of the generic cell rate
//! algorithm (GCRA, ITU-T I.371). Events that are refused do not count, so a caller that keeps
//! trying is admitted as soon as one that waits.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

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
    pub(super) fn try_acquire(&self, pace: EventRate, now: Instant) -> Result<(), Duration> {
        let mut arrival = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *arrival = Some(pace.next_arrival(*arrival, now)?);
        Ok(())
    }
}

impl AddressRateLimiter {
    /// Counts one event of this address, or returns how long to wait for one.
    pub(super) fn try_acquire(
        &self,
        from: Option<IpAddr>,
        pace: EventRate,
        now: Instant,
    ) -> Result<(), Duration> {
        let from = from.map(address_key);
        let mut known = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ADDRESSES && !known.contains_key(&from) {
            known.retain(|_, arrival| *arrival > now);
        }
        if known.len() >= MAX_ADDRESSES && !known.contains_key(&from) {
            drop(known);
            return self.overflow.try_acquire(pace, now);
        }
        let arrival = pace.next_arrival(known.get(&from).copied(), now)?;
        known.insert(from, arrival);
        Ok(())
    }

    /// Returns how long this address would have to wait now. Counts nothing.
    pub(super) fn wait_time(
        &self,
        from: Option<IpAddr>,
        pace: EventRate,
        now: Instant,
    ) -> Option<Duration> {
        let from = from.map(address_key);
        let known = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = known.contains_key(&from);
        let arrival = known.get(&from).copied();
        let is_full = known.len() >= MAX_ADDRESSES && known.values().all(|arrival| *arrival > now);
        drop(known);
        if is_known || !is_full {
            return pace.next_arrival(arrival, now).err();
        }
        let arrival = *self.overflow.0.lock().unwrap_or_else(PoisonError::into_inner);
        pace.next_arrival(arrival, now).err()
    }
}

/// The key of a client: its IPv4 address, or its IPv6 /64, because a host usually has a whole /64.
pub(super) fn address_key(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn so_many_are_taken_at_once_and_then_one_at_a_time() {
        let (turns, pace, now) =
            (RateLimiter::default(), EventRate::new(4, SECOND), Instant::now());
        for _ in 0..4 {
            assert_eq!(turns.try_acquire(pace, now), Ok(()));
        }
        for _ in 0..9 {
            assert_eq!(
                turns.try_acquire(pace, now),
                Err(SECOND / 4),
                "refused events do not count"
            );
        }
        assert_eq!(turns.try_acquire(pace, now + SECOND / 4), Ok(()));
        assert_eq!(turns.try_acquire(pace, now + SECOND * 3 / 8), Err(SECOND / 8));
        for _ in 0..4 {
            assert_eq!(turns.try_acquire(pace, now + 9 * SECOND), Ok(()));
        }
        assert!(turns.try_acquire(pace, now + 9 * SECOND).is_err());
    }

    #[test]
    fn each_address_has_its_own_turns_and_all_that_are_not_known_share_theirs() {
        let (turns, pace, now) =
            (AddressRateLimiter::default(), EventRate::new(1, SECOND), Instant::now());
        let take = |ip: &str, now| turns.try_acquire(Some(ip.parse().unwrap()), pace, now).is_ok();
        assert!(take("192.0.2.1", now) && !take("192.0.2.1", now));
        assert!(!take("::ffff:192.0.2.1", now), "the same host");
        assert!(take("2001:db8::1", now) && !take("2001:db8::ffff:2", now), "the same host");
        assert!(take("2001:db8:0:1::1", now), "another");
        assert_eq!(turns.try_acquire(None, pace, now), Ok(()));
        for n in 0..MAX_ADDRESSES - 4 {
            assert!(take(&format!("10.0.{}.{}", n / 256, n % 256), now));
        }
        assert!(take("198.51.100.1", now) && !take("198.51.100.2", now), "the table is full");
        assert!(!take("192.0.2.1", now), "known addresses keep their limiter");
        let wait = |ip: &str, now| turns.wait_time(Some(ip.parse().unwrap()), pace, now);
        for ip in ["192.0.2.1", "198.51.100.2"] {
            assert_eq!(wait(ip, now), Some(SECOND));
            assert_eq!(wait(ip, now + SECOND), None, "waiting counts nothing");
        }
        assert_eq!(turns.arrivals.lock().unwrap().len(), MAX_ADDRESSES);
        assert!(take("198.51.100.2", now + 2 * SECOND) && take("198.51.100.3", now + 2 * SECOND));
        assert_eq!(turns.arrivals.lock().unwrap().len(), 2, "idle addresses are removed");
    }
}
