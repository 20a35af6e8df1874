//! Limits on what may be in use at a time, and the count of how often each was met.
//!
//! A [`Room`] is one such limit: flights, requests, bytes of bodies that are held in memory. Who
//! takes of it gets a [`Held`], which gives it back when it is dropped; so nothing that ends by
//! panic, abort or hang-up is counted for ever. What is in use is the room's gauge itself: the
//! metric cannot differ from what is enforced.
//!
//! What happens past a limit is not decided here.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use hyper::body::Frame;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

/// What a frame takes beside its data: the frame itself, its place in a queue, and the count of who
/// shares its bytes. Bodies in chunks of a byte are mostly that.
const FRAME_OVERHEAD: usize = 128;

/// So much of something may be in use at a time.
pub struct Room {
    limit: usize,
    used: Gauge,
    refused: Counter,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room")
            .field("limit", &self.limit)
            .field("used", &self.used.get())
            .finish_non_exhaustive()
    }
}

/// A part of a room.
#[derive(Debug)]
pub struct Held {
    room: Arc<Room>,
    amount: AtomicUsize,
}

impl Room {
    /// An empty one; `used` tells what is in use, and `refused` how often that was all.
    pub fn new(limit: usize, used: Gauge, refused: Counter) -> Arc<Self> {
        Arc::new(Self { limit, used, refused })
    }

    /// Takes so much, if there is that much.
    pub fn take(self: &Arc<Self>, amount: usize) -> Option<Held> {
        let held = self.nothing();
        held.grow(amount).then_some(held)
    }

    /// Holds nothing yet.
    pub fn nothing(self: &Arc<Self>) -> Held {
        Held { room: Arc::clone(self), amount: AtomicUsize::new(0) }
    }
}

impl Held {
    /// Takes more, if there is more; else it stays as it is, and that is counted.
    pub fn grow(&self, more: usize) -> bool {
        let fits = self.room.used.inc_by(signed(more)).saturating_add(signed(more))
            <= signed(self.room.limit);
        if fits {
            self.amount.fetch_add(more, Ordering::Relaxed);
        } else {
            self.room.used.dec_by(signed(more));
            self.room.refused.inc();
        }
        fits
    }

    /// Takes more, also past the limit: what is there already is better counted than not.
    pub fn grow_past(&self, more: usize) {
        self.room.used.inc_by(signed(more));
        self.amount.fetch_add(more, Ordering::Relaxed);
    }

    fn shrink(&self, less: usize) {
        self.room.used.dec_by(signed(less));
        self.amount.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.used.dec_by(signed(*self.amount.get_mut()));
    }
}

/// One more of what a gauge counts, for as long as it lives.
#[derive(Debug)]
pub struct One(Gauge);

impl One {
    /// Counts it.
    pub fn more(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn signed(amount: usize) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// Frames of a body that are held in memory, and the room that they take.
#[derive(Debug)]
pub struct Kept {
    frames: VecDeque<Frame<Bytes>>,
    held: Held,
}

impl Kept {
    /// None yet.
    pub fn new(room: &Arc<Room>) -> Self {
        Self { frames: VecDeque::new(), held: room.nothing() }
    }

    /// Keeps a frame; false if it has no room. It is kept, and counted, all the same: what has been
    /// read is not to be lost, and one frame too many is as much as comes of it.
    #[must_use = "nothing more may be kept where there is no room"]
    pub fn push(&mut self, frame: Frame<Bytes>) -> bool {
        let more = cost(&frame);
        let fits = self.held.grow(more);
        if !fits {
            self.held.grow_past(more);
        }
        self.frames.push_back(frame);
        fits
    }

    /// Keeps a frame, whether or not it has room.
    pub fn push_past(&mut self, frame: Frame<Bytes>) {
        self.held.grow_past(cost(&frame));
        self.frames.push_back(frame);
    }

    /// The next frame, which is the caller's from now on.
    pub fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.frames.pop_front()?;
        self.held.shrink(cost(&frame));
        Some(frame)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The data of each frame.
    pub fn data(&self) -> impl Iterator<Item = &Bytes> + Clone {
        self.frames.iter().filter_map(Frame::data_ref)
    }

    /// The data as one, which takes its room until the last who has it drops it.
    pub fn join(self) -> Bytes {
        let whole = join(self.data());
        self.held.shrink_to(whole.len());
        counted(whole, self.held)
    }
}

impl Held {
    /// Gives back all but so much.
    pub fn shrink_to(&self, amount: usize) {
        self.shrink(self.amount.load(Ordering::Relaxed).saturating_sub(amount));
    }
}

/// What a frame takes in memory.
pub fn cost(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len) + FRAME_OVERHEAD
}

/// Parts as one; a single one is not copied.
pub fn join<'p>(parts: impl Iterator<Item = &'p Bytes> + Clone) -> Bytes {
    let mut some = parts.clone().filter(|part| !part.is_empty());
    let (first, second) = (some.next(), some.next());
    if second.is_none() {
        return first.cloned().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(parts.clone().map(Bytes::len).sum());
    parts.for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}

/// Bytes that take room until the last who has them drops them.
pub fn counted<H: Send + 'static>(bytes: Bytes, held: H) -> Bytes {
    struct Counted<H>(Bytes, H);
    impl<H> AsRef<[u8]> for Counted<H> {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    if bytes.is_empty() { bytes } else { Bytes::from_owner(Counted(bytes, held)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(limit: usize) -> Arc<Room> {
        Room::new(limit, Gauge::default(), Counter::default())
    }

    fn data(bytes: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(bytes.as_bytes()))
    }

    #[test]
    fn what_is_taken_is_given_back_and_no_more_than_there_is_can_be_taken() {
        let room = room(3);
        let two = room.take(2).unwrap();
        assert!(room.take(2).is_none());
        let one = room.take(1).unwrap();
        assert!(!one.grow(1));
        drop(two);
        assert!(one.grow(2));
        assert_eq!((room.used.get(), room.refused.get()), (3, 2));
        one.shrink_to(1);
        assert_eq!(room.used.get(), 1);
        drop(one);
        assert_eq!(room.used.get(), 0);
    }

    #[test]
    fn kept_frames_take_room_until_they_are_taken_out() {
        let room = room(2 * FRAME_OVERHEAD + 5);
        let mut kept = Kept::new(&room);
        assert!(kept.push(data("ab")) && kept.push(data("cde")));
        assert!(!kept.push(data("f")), "one more than there is room for");
        assert_eq!(room.used.get(), signed(3 * FRAME_OVERHEAD + 6));
        assert_eq!(kept.pop().unwrap().into_data().unwrap(), "ab");
        assert_eq!(room.used.get(), signed(2 * FRAME_OVERHEAD + 4));
        drop(kept);
        assert_eq!(room.used.get(), 0);
    }

    #[test]
    fn joined_bytes_take_room_until_the_last_of_them_is_gone() {
        for parts in [&["ab"][..], &["a", "", "b"]] {
            let room = room(1 << 10);
            let mut kept = Kept::new(&room);
            assert!(parts.iter().all(|part| kept.push(data(part))));
            let whole = kept.join();
            let shared = whole.slice(1..);
            assert_eq!((&*whole, room.used.get()), (&b"ab"[..], 2));
            drop(whole);
            assert_eq!(room.used.get(), 2);
            drop(shared);
            assert_eq!(room.used.get(), 0);
        }
    }

    #[test]
    fn nothing_takes_no_room() {
        let room = room(1 << 10);
        let mut kept = Kept::new(&room);
        assert!(kept.push(data("")));
        let whole = kept.join();
        assert_eq!((whole.len(), room.used.get()), (0, 0));
    }
}
