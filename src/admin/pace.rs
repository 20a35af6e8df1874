//! How often something may happen: so many times a period on average, and so many at once.
//!
//! What is remembered is one moment, that by which all that has happened is made up for (the generic cell
//! rate algorithm, ITU-T I.371). Who is told to wait is not counted: however often he tries, his turn
//! comes.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Addresses that are remembered each for itself; further ones share one memory.
const ADDRESSES: usize = 1024;

/// So many times a period.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// What one time costs.
    each: Duration,
    /// How much may be owed by who comes.
    credit: Duration,
}

/// One thing that happens at a pace. The default has never happened.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<Option<Instant>>);

/// The same for each address that it comes from, of as many as are remembered.
#[derive(Default)]
pub(super) struct TurnsByAddress {
    /// Who connects to a unix socket has no address.
    known: Mutex<HashMap<Option<IpAddr>, Instant>>,
    others: Turns,
}

impl Pace {
    /// At least once.
    pub(super) fn new(times: usize, period: Duration) -> Self {
        let each = period / u32::try_from(times).unwrap_or(u32::MAX).max(1);
        Self { each, credit: period.saturating_sub(each) }
    }

    /// Takes a turn: when it is made up for, or how long to wait for one.
    fn turn(self, made_up: Option<Instant>, now: Instant) -> Result<Instant, Duration> {
        let from = made_up.map_or(now, |at| at.max(now));
        match from.duration_since(now).checked_sub(self.credit) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => Ok(from + self.each),
        }
    }
}

impl Turns {
    /// Takes a turn, or says how long to wait for one.
    pub(super) fn take(&self, pace: Pace, now: Instant) -> Result<(), Duration> {
        let mut made_up = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *made_up = Some(pace.turn(*made_up, now)?);
        Ok(())
    }
}

impl TurnsByAddress {
    /// The same for who comes from here.
    pub(super) fn take(
        &self,
        from: Option<IpAddr>,
        pace: Pace,
        now: Instant,
    ) -> Result<(), Duration> {
        let from = from.map(neighbourhood);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ADDRESSES && !known.contains_key(&from) {
            known.retain(|_, made_up| *made_up > now);
        }
        if known.len() >= ADDRESSES && !known.contains_key(&from) {
            drop(known);
            return self.others.take(pace, now);
        }
        let made_up = pace.turn(known.get(&from).copied(), now)?;
        known.insert(from, made_up);
        Ok(())
    }

    /// How long who comes from here would have to wait for a turn now; he takes none.
    pub(super) fn wait(&self, from: Option<IpAddr>, pace: Pace, now: Instant) -> Option<Duration> {
        let from = from.map(neighbourhood);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = known.contains_key(&from);
        let made_up = known.get(&from).copied();
        let is_full = known.len() >= ADDRESSES && known.values().all(|made_up| *made_up > now);
        drop(known);
        if is_known || !is_full {
            return pace.turn(made_up, now).err();
        }
        let made_up = *self.others.0.lock().unwrap_or_else(PoisonError::into_inner);
        pace.turn(made_up, now).err()
    }
}

/// A host of IPv6 has a whole /64 to itself.
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
            assert_eq!(turns.take(pace, now), Err(SECOND / 4), "who waits is not counted");
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
        assert!(take("198.51.100.1", now) && !take("198.51.100.2", now), "there is no room");
        assert!(!take("192.0.2.1", now), "who is known stays so");
        let wait = |ip: &str, now| turns.wait(Some(ip.parse().unwrap()), pace, now);
        for ip in ["192.0.2.1", "198.51.100.2"] {
            assert_eq!(wait(ip, now), Some(SECOND));
            assert_eq!(wait(ip, now + SECOND), None, "and takes none");
        }
        assert_eq!(turns.known.lock().unwrap().len(), ADDRESSES);
        assert!(take("198.51.100.2", now + 2 * SECOND) && take("198.51.100.3", now + 2 * SECOND));
        assert_eq!(turns.known.lock().unwrap().len(), 2, "what is made up for is forgotten");
    }
}
