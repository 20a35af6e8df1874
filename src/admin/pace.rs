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
const ADDRESSES: usize = 1024;

/// A rate: so many events per period.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Time that one event uses up.
    each: Duration,
    /// How far the theoretical arrival time may lie ahead: the burst.
    credit: Duration,
}

/// A limiter for one kind of event. The default admits a full burst.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<Option<Instant>>);

/// A limiter for each client address, for up to [`ADDRESSES`] of them.
#[derive(Default)]
pub(super) struct TurnsByAddress {
    /// Clients of a unix socket have no address and share the key `None`.
    known: Mutex<HashMap<Option<IpAddr>, Instant>>,
    others: Turns,
}

impl Pace {
    /// The rate of `times` events per `period`; 0 counts as 1.
    pub(super) fn new(times: usize, period: Duration) -> Self {
        let each = period / u32::try_from(times).unwrap_or(u32::MAX).max(1);
        Self { each, credit: period.saturating_sub(each) }
    }

    /// Returns the arrival time after one more event, or how long to wait for one.
    fn turn(self, arrival: Option<Instant>, now: Instant) -> Result<Instant, Duration> {
        let from = arrival.map_or(now, |at| at.max(now));
        match from.duration_since(now).checked_sub(self.credit) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => Ok(from + self.each),
        }
    }
}

impl Turns {
    /// Counts one event, or returns how long to wait for one.
    pub(super) fn take(&self, pace: Pace, now: Instant) -> Result<(), Duration> {
        let mut arrival = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *arrival = Some(pace.turn(*arrival, now)?);
        Ok(())
    }
}

impl TurnsByAddress {
    /// Counts one event of this address, or returns how long to wait for one.
    pub(super) fn take(
        &self,
        from: Option<IpAddr>,
        pace: Pace,
        now: Instant,
    ) -> Result<(), Duration> {
        let from = from.map(neighbourhood);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES && !known.contains_key(&from) {
            known.retain(|_, arrival| *arrival > now);
        }
        if known.len() >= ADDRESSES && !known.contains_key(&from) {
            drop(known);
            return self.others.take(pace, now);
        }
        let arrival = pace.turn(known.get(&from).copied(), now)?;
        known.insert(from, arrival);
        Ok(())
    }

    /// Returns how long this address would have to wait now. Counts nothing.
    pub(super) fn wait(&self, from: Option<IpAddr>, pace: Pace, now: Instant) -> Option<Duration> {
        let from = from.map(neighbourhood);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = known.contains_key(&from);
        let arrival = known.get(&from).copied();
        let is_full = known.len() >= ADDRESSES && known.values().all(|arrival| *arrival > now);
        drop(known);
        if is_known || !is_full {
            return pace.turn(arrival, now).err();
        }
        let arrival = *self.others.0.lock().unwrap_or_else(PoisonError::into_inner);
        pace.turn(arrival, now).err()
    }
}

/// The key of a client: its IPv4 address, or its IPv6 /64, because a host usually has a whole /64.
pub(super) fn neighbourhood(ip: IpAddr) -> IpAddr {
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
        let (turns, pace, now) = (Turns::default(), Pace::new(4, SECOND), Instant::now());
        for _ in 0..4 {
            assert_eq!(turns.take(pace, now), Ok(()));
        }
        for _ in 0..9 {
            assert_eq!(turns.take(pace, now), Err(SECOND / 4), "refused events do not count");
        }
        assert_eq!(turns.take(pace, now + SECOND / 4), Ok(()));
        assert_eq!(turns.take(pace, now + SECOND * 3 / 8), Err(SECOND / 8));
        for _ in 0..4 {
            assert_eq!(turns.take(pace, now + 9 * SECOND), Ok(()));
        }
        assert!(turns.take(pace, now + 9 * SECOND).is_err());
    }

    #[test]
    fn each_address_has_its_own_turns_and_all_that_are_not_known_share_theirs() {
        let (turns, pace, now) = (TurnsByAddress::default(), Pace::new(1, SECOND), Instant::now());
        let take = |ip: &str, now| turns.take(Some(ip.parse().unwrap()), pace, now).is_ok();
        assert!(take("192.0.2.1", now) && !take("192.0.2.1", now));
        assert!(!take("::ffff:192.0.2.1", now), "the same host");
        assert!(take("2001:db8::1", now) && !take("2001:db8::ffff:2", now), "the same host");
        assert!(take("2001:db8:0:1::1", now), "another");
        assert_eq!(turns.take(None, pace, now), Ok(()));
        for n in 0..ADDRESSES - 4 {
            assert!(take(&format!("10.0.{}.{}", n / 256, n % 256), now));
        }
        assert!(take("198.51.100.1", now) && !take("198.51.100.2", now), "the table is full");
        assert!(!take("192.0.2.1", now), "known addresses keep their limiter");
        let wait = |ip: &str, now| turns.wait(Some(ip.parse().unwrap()), pace, now);
        for ip in ["192.0.2.1", "198.51.100.2"] {
            assert_eq!(wait(ip, now), Some(SECOND));
            assert_eq!(wait(ip, now + SECOND), None, "waiting counts nothing");
        }
        assert_eq!(turns.known.lock().unwrap().len(), ADDRESSES);
        assert!(take("198.51.100.2", now + 2 * SECOND) && take("198.51.100.3", now + 2 * SECOND));
        assert_eq!(turns.known.lock().unwrap().len(), 2, "idle addresses are removed");
    }
}
