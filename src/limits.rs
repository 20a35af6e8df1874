//! Quotas: limits on what may be in use at a time, and counters of how often each was met.
//!
//! A [`Quota`] is one quota: flights, requests, or bytes of bodies in memory. Taking part of it
//! yields a [`Permit`], which gives that part back when it is dropped. So nothing that ends by panic,
//! abort or hang-up stays counted for ever. The gauge of the quota is the counter that it enforces:
//! the metric cannot differ from the limit in force.
//!
//! [`BufferedFrames`] and [`with_permit`] tie bytes in memory to the permit that they take up.
//!
//! The caller decides what happens at a limit.

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

use crate::{observe::metrics::Registry, semantics::labels::labels};

/// Memory of a frame besides its data, in bytes: the frame itself, its slot in a queue, and the
/// reference count of its bytes. A body in one-byte chunks consists mostly of this.
const FRAME_OVERHEAD: usize = 128;

/// A limit on how much of something may be in use at a time.
pub struct Quota {
    limit: usize,
    used: Gauge,
    refused: Counter,
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quota")
            .field("limit", &self.limit)
            .field("used", &self.used.get())
            .finish_non_exhaustive()
    }
}

/// A part of a quota, given back on drop.
#[derive(Debug)]
pub struct Permit {
    quota: Arc<Quota>,
    amount: AtomicUsize,
}

impl Quota {
    /// Creates a quota with nothing in use. The gauge `used` shows how much is in use; the counter
    /// `refused` counts how often an amount did not fit.
    pub fn new(limit: usize, used: Gauge, refused: Counter) -> Arc<Self> {
        Arc::new(Self { limit, used, refused })
    }

    /// Creates a quota, and counts its refusals as hits of `limit`.
    pub fn of(limit: Limit, max: usize, used: &Gauge, hits: &LimitHits) -> Arc<Self> {
        Self::new(max, used.clone(), hits.counter(limit).clone())
    }

    /// Takes `amount`, or returns `None` and counts a refusal if that exceeds the limit.
    pub fn take(self: &Arc<Self>, amount: usize) -> Option<Permit> {
        let held = self.empty_permit();
        held.grow(amount).then_some(held)
    }

    /// Returns how much is in use.
    pub fn used(&self) -> usize {
        usize::try_from(self.used.get()).unwrap_or(0)
    }

    /// Returns a permit that holds nothing yet.
    pub fn empty_permit(self: &Arc<Self>) -> Permit {
        Permit { quota: Arc::clone(self), amount: AtomicUsize::new(0) }
    }
}

impl Permit {
    /// Takes `more` and returns true if it fits. Otherwise the permit stays as it is, and the
    /// refusal is counted.
    pub fn grow(&self, more: usize) -> bool {
        let fits = self.quota.used.inc_by(signed(more)).saturating_add(signed(more))
            <= signed(self.quota.limit);
        if fits {
            self.amount.fetch_add(more, Ordering::Relaxed);
        } else {
            self.quota.used.dec_by(signed(more));
            self.quota.refused.inc();
        }
        fits
    }

    /// Takes `more`, even past the limit: memory that is already in use is better counted than not.
    pub fn force_grow(&self, more: usize) {
        self.quota.used.inc_by(signed(more));
        self.amount.fetch_add(more, Ordering::Relaxed);
    }

    /// Gives back everything above `amount`.
    pub fn shrink_to(&self, amount: usize) {
        self.shrink(self.amount.load(Ordering::Relaxed).saturating_sub(amount));
    }

    fn shrink(&self, less: usize) {
        self.quota.used.dec_by(signed(less));
        self.amount.fetch_sub(less, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.quota.used.dec_by(signed(*self.amount.get_mut()));
    }
}

/// Raises a gauge by one for as long as it lives.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    /// Raises `gauge` until the guard is dropped.
    pub fn increment(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn signed(amount: usize) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// Body frames in memory, and the permit for the memory that they take.
#[derive(Debug)]
pub struct BufferedFrames {
    frames: VecDeque<Frame<Bytes>>,
    held: Permit,
}

impl BufferedFrames {
    /// Creates an empty buffer that counts its frames against `quota`.
    pub fn new(quota: &Arc<Quota>) -> Self {
        Self { frames: VecDeque::new(), held: quota.empty_permit() }
    }

    /// Buffers a frame and returns whether it fits the quota. A frame that does not fit is buffered
    /// and counted all the same: it has been read and must not be lost, and the excess is at most
    /// one frame.
    #[must_use = "nothing more may be buffered once the quota is used up"]
    pub fn push(&mut self, frame: Frame<Bytes>) -> bool {
        let more = frame_cost(&frame);
        let fits = self.held.grow(more);
        if !fits {
            self.held.force_grow(more);
        }
        self.frames.push_back(frame);
        fits
    }

    /// Buffers a frame, even past the limit.
    pub fn force_push(&mut self, frame: Frame<Bytes>) {
        self.held.force_grow(frame_cost(&frame));
        self.frames.push_back(frame);
    }

    /// Returns the oldest frame and gives its memory back to the quota.
    pub fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.frames.pop_front()?;
        self.held.shrink(frame_cost(&frame));
        Some(frame)
    }

    /// Whether no frame is buffered.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Returns the data of each frame.
    pub fn data(&self) -> impl Iterator<Item = &Bytes> + Clone {
        self.frames.iter().filter_map(Frame::data_ref)
    }

    /// Returns the data as one buffer, which counts against the quota until its last clone is
    /// dropped.
    pub fn join(self) -> Bytes {
        let whole = join(self.data());
        self.held.shrink_to(whole.len());
        with_permit(whole, self.held)
    }
}

/// Returns the memory that a frame takes, in bytes.
pub fn frame_cost(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len) + FRAME_OVERHEAD
}

/// Concatenates `parts`. A single non-empty part is not copied.
pub fn join<'p>(parts: impl Iterator<Item = &'p Bytes> + Clone) -> Bytes {
    let mut non_empty = parts.clone().filter(|part| !part.is_empty());
    let (first, second) = (non_empty.next(), non_empty.next());
    if second.is_none() {
        return first.cloned().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(parts.clone().map(Bytes::len).sum());
    parts.for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}

/// Returns `bytes` tied to `held`, which is dropped with their last clone.
pub fn with_permit<H: Send + 'static>(bytes: Bytes, held: H) -> Bytes {
    struct Counted<H>(Bytes, H);
    impl<H> AsRef<[u8]> for Counted<H> {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    if bytes.is_empty() { bytes } else { Bytes::from_owner(Counted(bytes, held)) }
}

labels! {
    /// A limit that was reached. Each has the name of its setting, so that the metric says what to
    /// change. Floods of HTTP/2 are counted in `jobcache_connection_errors_total`.
    pub enum Limit {
        /// All client connections were in use, so the next client has to wait.
        Connections = "server.max_connections",
        /// A request was refused because too many were being answered.
        Requests = "server.max_requests",
        /// A connection was closed because no complete request head arrived in time. Idle connections
        /// count too.
        HeaderTimeout = "server.header_timeout",
        /// A client read nothing of its response for too long.
        WriteTimeout = "server.write_timeout",
        /// An upload was too slow.
        UploadRate = "server.min_upload_rate",
        /// A request head was too long or, over HTTP/1, had too many fields: the parser does not
        /// distinguish the two.
        HeaderBytes = "server.max_header_bytes",
        /// A request head had too many fields.
        Headers = "server.max_headers",
        /// A path with its query was too long.
        Uri = "server.max_uri",
        /// An HTTP/2 connection reached its number of streams; further streams are refused.
        Streams = "server.max_streams",
        /// A read of a job went to the upstream on its own because too many flights were under way.
        Flights = "max_flights",
        /// A request for push was answered as if push were off because too many clients were waiting.
        Waiting = "push.max_waiting",
        /// A response was not stored because too many bytes of responses were held in memory.
        Captured = "max_captured",
        /// A write or a purge was refused because too many bytes of them were held in memory.
        Inspected = "max_inspected",
        /// All connections to the upstream were in use, so a request had to wait.
        UpstreamConnections = "upstream.max_connections",
        /// An upgrade or an event stream was refused, or a long answer stayed counted among the
        /// connections, because too many streams to the upstream were open.
        UpstreamStreams = "upstream.max_streams",
        /// A request was refused because too many were waiting for a connection.
        UpstreamWaiting = "upstream.max_waiting",
        /// A purge was refused because too many arrived within a second.
        WebhookPurges = "webhook_max_purges",
        /// A call without the webhook secret was answered 429 because too many came from its address.
        WebhookFailures = "webhook_max_failures",
    }
}

/// The counters of the limits. All parts count in the same.
#[derive(Debug)]
pub struct LimitHits([Counter; Limit::ALL.len()]);

impl LimitHits {
    /// Returns the counters, which the first part to call this registers.
    pub fn shared(registry: &mut Registry) -> Arc<Self> {
        registry.shared(|registry| Arc::new(Self::register(registry)))
    }

    fn register(registry: &mut Registry) -> Self {
        let hits = registry.counters_by(
            "limit",
            "limits_hit",
            "Times that a limit was reached, by the name of its setting",
            Limit::WORDS,
        );
        // Looked up once.
        Self(Limit::WORDS.map(|key| hits.handle([key])))
    }

    /// Counts that a limit was reached.
    pub fn count(&self, limit: Limit) {
        self.counter(limit).inc();
    }

    /// The counter of a limit.
    pub fn counter(&self, limit: Limit) -> &Counter {
        &self.0[limit as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::{Limit, LimitHits, *};
    use crate::{config::setting, observe::metrics::Registry};

    fn quota(limit: usize) -> Arc<Quota> {
        Quota::new(limit, Gauge::default(), Counter::default())
    }

    fn data(bytes: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(bytes.as_bytes()))
    }

    #[test]
    fn what_is_taken_is_given_back_and_no_more_than_there_is_can_be_taken() {
        let quota = quota(3);
        let two = quota.take(2).unwrap();
        assert!(quota.take(2).is_none());
        let one = quota.take(1).unwrap();
        assert!(!one.grow(1));
        drop(two);
        assert!(one.grow(2));
        assert_eq!((quota.used.get(), quota.refused.get()), (3, 2));
        one.shrink_to(1);
        assert_eq!(quota.used.get(), 1);
        drop(one);
        assert_eq!(quota.used.get(), 0);
    }

    #[test]
    fn kept_frames_take_room_until_they_are_taken_out() {
        let quota = quota(2 * FRAME_OVERHEAD + 5);
        let mut buffer = BufferedFrames::new(&quota);
        assert!(buffer.push(data("ab")) && buffer.push(data("cde")));
        assert!(!buffer.push(data("f")), "one more than the quota allows");
        assert_eq!(quota.used.get(), signed(3 * FRAME_OVERHEAD + 6));
        assert_eq!(buffer.pop().unwrap().into_data().unwrap(), "ab");
        assert_eq!(quota.used.get(), signed(2 * FRAME_OVERHEAD + 4));
        drop(buffer);
        assert_eq!(quota.used.get(), 0);
    }

    #[test]
    fn joined_bytes_take_room_until_the_last_of_them_is_gone() {
        for parts in [&["ab"][..], &["a", "", "b"]] {
            let quota = quota(1 << 10);
            let mut buffer = BufferedFrames::new(&quota);
            assert!(parts.iter().all(|part| buffer.push(data(part))));
            let whole = buffer.join();
            let shared = whole.slice(1..);
            assert_eq!((&*whole, quota.used.get()), (&b"ab"[..], 2));
            drop(whole);
            assert_eq!(quota.used.get(), 2);
            drop(shared);
            assert_eq!(quota.used.get(), 0);
        }
    }

    #[test]
    fn nothing_takes_no_room() {
        let quota = quota(1 << 10);
        let mut buffer = BufferedFrames::new(&quota);
        assert!(buffer.push(data("")));
        let whole = buffer.join();
        assert_eq!((whole.len(), quota.used.get()), (0, 0));
    }

    #[test]
    fn a_limit_is_counted_under_the_name_of_a_setting_that_there_is() {
        let limits = LimitHits::shared(&mut Registry::default());
        for limit in Limit::ALL {
            assert!(setting(limit.as_str()).is_some(), "{limit:?}");
            limits.count(limit);
            assert_eq!(limits.counter(limit).get(), 1, "{limit:?} has a counter of its own");
        }
    }
}
