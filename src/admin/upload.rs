//! The body of a purge, read of one who may be a stranger.
//!
//! A signature needs all of the body, so who sends it is known too late. What a body takes in memory is
//! therefore bounded thrice: by the first bytes that are anybody's (the limit of connections bounds those),
//! by a room for all the others, and by a share of it for each address. Who shows the secret itself is
//! kept out by none of them.
//!
//! What is answered to a body that is not read is not decided here.

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

/// Largest body of a purge, in bytes: room for [`MAX_IDS`](super::wanted::MAX_IDS) of the longest ids.
pub(super) const MAX_BODY: usize = 2 << 20;
/// Its first bytes, which take nothing of the room: nearly all purges are smaller.
pub(super) const FREE: usize = 8 << 10;
/// For all of it to come.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What has to come of it, past its first bytes, in each [`STEP_TIMEOUT`]; or else the rest.
const STEP: usize = 64 << 10;
/// For each [`STEP`].
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Who sends a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sender {
    /// One who shows the secret.
    Known,
    /// Anybody else.
    Stranger,
    /// One from whose address so much has been refused that it has to wait so long.
    Waiting(Duration),
}

/// Why a body is not read, or not to its end.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is larger than [`MAX_BODY`].
    TooLarge,
    /// It did not come in time.
    Slow,
    /// It broke off, with this error.
    Broken(String),
    /// Others' bodies take all of the room.
    Full,
    /// Bodies of its address take the share of it.
    Share,
    /// It is larger than [`FREE`], and its sender has to wait so long.
    Waiting(Duration),
}

/// What each address holds of a room, of those that hold something.
#[derive(Default)]
pub(super) struct Shares(Mutex<HashMap<Option<IpAddr>, usize>>);

/// What one body holds of its address's share.
struct Share {
    shares: Arc<Shares>,
    from: Option<IpAddr>,
    amount: usize,
}

/// Where bodies are read into.
pub(super) struct Uploads {
    room: Arc<Room>,
    shares: Arc<Shares>,
    /// What an address may hold.
    share: usize,
}

/// A body on its way.
struct Upload {
    sender: Sender,
    held: Held,
    share: Share,
    /// What the share may come to.
    limit: usize,
}

impl Uploads {
    /// An address may hold a quarter of a room of this size, or one body where that is more.
    pub(super) fn new(room: Arc<Room>, size: usize, shares: Arc<Shares>) -> Self {
        Self { room, shares, share: (size / 4).max(MAX_BODY) }
    }

    /// Reads all of a body. It takes its room until the last who has it drops it.
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
        let told = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        upload.may_be(told)?;
        let last = Instant::now() + BODY_TIMEOUT;
        let (mut until, mut due) = (last, FREE);
        let mut whole = BytesMut::new();
        while let Some(frame) = timeout_at(until, body.frame()).await.map_err(|_| Unread::Slow)? {
            let frame = frame.map_err(|error| Unread::Broken(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            upload.make_room(whole.len(), whole.len() + data.len())?;
            // Copied: what comes byte by byte, or as a part of something larger, takes what it says.
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
    /// Whether a body of this size is read at all.
    fn may_be(&self, size: usize) -> Result<(), Unread> {
        match self.sender {
            _ if size > MAX_BODY => Err(Unread::TooLarge),
            Sender::Waiting(wait) if size > FREE => Err(Unread::Waiting(wait)),
            _ => Ok(()),
        }
    }

    fn make_room(&mut self, was: usize, size: usize) -> Result<(), Unread> {
        self.may_be(size)?;
        let more = size.max(FREE) - was.max(FREE);
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
    /// Nothing yet.
    fn of(self: &Arc<Self>, from: Option<IpAddr>) -> Share {
        Share { shares: Arc::clone(self), from: from.map(neighbourhood), amount: 0 }
    }
}

impl Share {
    /// Takes more, if that is not more than an address may hold.
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
        let of = |ip: &str| shares.of(Some(ip.parse().unwrap()));
        let (mut one, mut two) = (of("2001:db8::1"), of("2001:db8::2"));
        assert!(one.grow(3, 4) && one.grow(1, 4) && !two.grow(1, 4), "the same host");
        assert!(of("192.0.2.1").grow(4, 4) && shares.of(None).grow(4, 4), "others");
        drop(two);
        assert_eq!(shares.0.lock().unwrap().len(), 1);
        drop(one);
        assert!(shares.0.lock().unwrap().is_empty());
        assert!(of("2001:db8::3").grow(4, 4));
    }
}
