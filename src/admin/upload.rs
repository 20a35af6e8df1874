//! Reads the body of a purge from a client that may not be authorized yet.
//!
//! A signature covers the whole body, so the body has to be read before its sender is known. Three
//! limits bound the memory: the first [`FREE`] bytes of each body (bounded by the number of
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

use super::pace::neighbourhood;
use crate::limits::{Held, Room, counted};

/// Largest body of a purge, in bytes: enough for [`MAX_IDS`](super::wanted::MAX_IDS) ids of the
/// longest kind.
pub(super) const MAX_BODY: usize = 2 << 20;
/// First bytes of a body, which do not count towards the budget. Nearly all purges are smaller.
pub(super) const FREE: usize = 8 << 10;
/// Time limit for the whole body.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that have to arrive in each [`STEP_TIMEOUT`] after the first [`FREE`] bytes, unless the
/// body ends.
const STEP: usize = 64 << 10;
/// Time limit for each [`STEP`].
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The sender of a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sender {
    /// A sender with a valid bearer token.
    Known,
    /// A sender that is not authorized yet.
    Stranger,
    /// A sender from an address with too many failures, which has to wait this long.
    Waiting(Duration),
}

/// Why a body was not read completely.
#[derive(Debug)]
pub(super) enum Unread {
    /// The body is larger than [`MAX_BODY`].
    TooLarge,
    /// The body did not arrive in time.
    Slow,
    /// The connection failed with this error.
    Broken(String),
    /// The budget for all bodies is used up.
    Full,
    /// The share of its address is used up.
    Share,
    /// The body is larger than [`FREE`], and its address has to wait this long.
    Waiting(Duration),
}

/// Bytes that each address uses of the budget. Addresses that use none have no entry.
#[derive(Default)]
pub(super) struct Shares(Mutex<HashMap<Option<IpAddr>, usize>>);

/// Bytes that one body uses of the share of its address.
struct Share {
    shares: Arc<Shares>,
    from: Option<IpAddr>,
    amount: usize,
}

/// Reads bodies within the budget.
pub(super) struct Uploads {
    room: Arc<Room>,
    shares: Arc<Shares>,
    /// Bytes that one address may use.
    share: usize,
}

/// The budget use of one body while it is read.
struct Upload {
    sender: Sender,
    held: Held,
    share: Share,
    /// Bytes that the address may use.
    limit: usize,
}

impl Uploads {
    /// Each address may use a quarter of `size`, and at least one body.
    pub(super) fn new(room: Arc<Room>, size: usize, shares: Arc<Shares>) -> Self {
        Self { room, shares, share: (size / 4).max(MAX_BODY) }
    }

    /// Reads a whole body. Its share of the budget is released when the last clone is dropped.
    pub(super) async fn read(
        &self,
        mut body: Incoming,
        from: Option<IpAddr>,
        sender: Sender,
    ) -> Result<Bytes, Unread> {
        let mut upload = Upload {
            sender,
            held: self.room.nothing(),
            share: self.shares.of(from),
            limit: self.share,
        };
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        upload.may_be(announced)?;
        let last = Instant::now() + BODY_TIMEOUT;
        let mut until = last;
        let mut due = FREE;
        let mut whole = BytesMut::new();
        while let Some(frame) = timeout_at(until, body.frame()).await.map_err(|_| Unread::Slow)? {
            let frame = frame.map_err(|error| Unread::Broken(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            upload.make_room(whole.len(), whole.len() + data.len())?;
            // Copied, because a chunk can keep a larger buffer alive, and chunks of one byte have a
            // large overhead. The copy uses exactly the bytes that are counted.
            whole.extend_from_slice(&data);
            if whole.len() > due {
                due = whole.len() + STEP;
                until = last.min(Instant::now() + STEP_TIMEOUT);
            }
        }
        let Upload { held, share, .. } = upload;
        Ok(counted(whole.freeze(), (held, share)))
    }
}

impl Upload {
    /// Checks that a body of this size may be read.
    fn may_be(&self, size: usize) -> Result<(), Unread> {
        match self.sender {
            _ if size > MAX_BODY => Err(Unread::TooLarge),
            Sender::Waiting(wait) if size > FREE => Err(Unread::Waiting(wait)),
            _ => Ok(()),
        }
    }

    /// Reserves memory for a body that grows from `old_size` to `size` bytes.
    fn make_room(&mut self, old_size: usize, size: usize) -> Result<(), Unread> {
        self.may_be(size)?;
        let more = size.max(FREE) - old_size.max(FREE);
        if more == 0 {
            return Ok(());
        }
        if matches!(self.sender, Sender::Known) {
            if !self.held.grow(more) {
                self.held.grow_past(more);
            }
            return Ok(());
        }
        if !self.share.grow(more, self.limit) {
            return Err(Unread::Share);
        }
        if self.held.grow(more) { Ok(()) } else { Err(Unread::Full) }
    }
}

impl Shares {
    /// Returns an empty share for an address.
    fn of(self: &Arc<Self>, from: Option<IpAddr>) -> Share {
        Share { shares: Arc::clone(self), from: from.map(neighbourhood), amount: 0 }
    }
}

impl Share {
    /// Takes `more` bytes unless the address would then use more than `limit`.
    fn grow(&mut self, more: usize, limit: usize) -> bool {
        let mut held = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = held.get(&self.from).copied().unwrap_or(0) + more;
        if all > limit {
            return false;
        }
        held.insert(self.from, all);
        self.amount += more;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut held = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = held.get(&self.from).map_or(0, |all| all.saturating_sub(self.amount));
        if left == 0 {
            held.remove(&self.from);
        } else {
            held.insert(self.from, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_so_much_at_most_and_is_forgotten_when_it_holds_nothing() {
        let shares = Arc::new(Shares::default());
        let share_of = |ip: &str| shares.of(Some(ip.parse().unwrap()));
        let (mut one, mut two) = (share_of("2001:db8::1"), share_of("2001:db8::2"));
        assert!(one.grow(3, 4) && one.grow(1, 4) && !two.grow(1, 4), "the same host");
        assert!(share_of("192.0.2.1").grow(4, 4) && shares.of(None).grow(4, 4), "others");
        drop(two);
        assert_eq!(shares.0.lock().unwrap().len(), 1);
        drop(one);
        assert!(shares.0.lock().unwrap().is_empty());
        assert!(share_of("2001:db8::3").grow(4, 4));
    }
}
