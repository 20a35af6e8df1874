//! The topics of one configuration, and the limits of push.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hyper::{
    HeaderMap, Method,
    header::{ACCEPT, HeaderName, HeaderValue},
};
use memchr::memmem;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::{
    push_metrics::PushMetrics,
    topic::{Topic, TopicName, TopicReader, Waiter},
};
use crate::{
    config::{CacheMode, Config, PushConfig, PushMode},
    limits::{Limit, LimitHits, Permit, Quota},
    semantics::push_request::PushRequest,
};

const PREFER: HeaderName = HeaderName::from_static("prefer");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The topics of one configuration, and the limits of push.
pub(in crate::proxy) struct Topics {
    pub(super) config: PushConfig,
    pub(super) metrics: Arc<PushMetrics>,
    is_on: bool,
    by_name: Mutex<HashMap<TopicName, Arc<Topic>>>,
    /// Limits the waiters of all configurations.
    waiting: Arc<Quota>,
    /// Limits the reads that are under way.
    reads: Semaphore,
    /// Cancelled when a drain begins.
    released: CancellationToken,
}

/// A read that asks for push, with its place among the waiters.
pub(in crate::proxy) struct PushedRead {
    pub(super) wants: PushRequest,
    pub(super) permit: Permit,
}

/// A topic that a waiter has joined.
pub(super) enum Joined {
    /// The topic has a driver.
    Driven(Waiter),
    /// The topic is new and needs a driver.
    New(Waiter, Arc<Topic>),
}

impl Topics {
    /// `released` is shared by all configurations.
    pub(in crate::proxy) fn new(
        config: &Config,
        metrics: Arc<PushMetrics>,
        hits: &LimitHits,
        released: CancellationToken,
    ) -> Self {
        let Config { push, cache, .. } = config;
        Self {
            is_on: push.mode != PushMode::Off && cache.mode == CacheMode::On,
            by_name: Mutex::default(),
            waiting: Quota::of(Limit::Waiting, push.max_waiting, &metrics.waiting, hits),
            reads: Semaphore::new(push.max_reads),
            config: push.clone(),
            metrics,
            released,
        }
    }

    /// Returns the topics of another configuration.
    pub(in crate::proxy) fn revised(&self, config: &Config, hits: &LimitHits) -> Self {
        Self::new(config, Arc::clone(&self.metrics), hits, self.released.clone())
    }

    /// Takes from the head of a read what it asks of push, which makes it the head of an ordinary read.
    /// Returns `None` for every other read, and past the limit of waiters.
    pub(in crate::proxy) fn admit(
        &self,
        method: &Method,
        headers: &mut HeaderMap,
    ) -> Option<PushedRead> {
        if !self.is_on || !may_ask(headers) {
            return None;
        }
        let original = headers.clone();
        let wants = PushRequest::take(&self.config, method, headers)?;
        let is_released = self.is_released();
        let permit = if is_released { None } else { self.waiting.take(1) };
        if permit.is_none() {
            if !is_released {
                self.metrics.refused.inc();
            }
            // The API may have a stream of its own.
            if let PushRequest::Stream { .. } = wants {
                *headers = original;
            }
        }
        permit.map(|permit| PushedRead { wants, permit })
    }

    /// Adds a waiter to a topic.
    pub(super) fn join(&self, name: &TopicName, reader: TopicReader, permit: Permit) -> Joined {
        let mut topics = self.lock();
        if let Some(topic) = topics.get(name) {
            topic.set_reader(reader);
            return Joined::Driven(Waiter::new(topic, permit));
        }
        let topic = Arc::new(Topic::new(reader, self.metrics.count_topic()));
        topics.insert(name.clone(), Arc::clone(&topic));
        Joined::New(Waiter::new(&topic, permit), topic)
    }

    /// Forgets a topic that has no waiters. Returns whether it had none.
    pub(super) fn forget(&self, name: &TopicName, topic: &Arc<Topic>) -> bool {
        let mut topics = self.lock();
        let is_idle = !topic.has_waiters();
        if is_idle {
            remove(&mut topics, name, topic);
        }
        is_idle
    }

    /// Ends a topic: nobody joins it any more, and its waiters are notified.
    pub(super) fn end(&self, name: &TopicName, topic: &Arc<Topic>) {
        remove(&mut self.lock(), name, topic);
        topic.end();
    }

    /// Whether there are so many topics that those without waiters should go.
    pub(super) fn is_crowded(&self) -> bool {
        self.lock().len() > self.config.max_waiting
    }

    /// Waits for a turn to read the upstream.
    pub(in crate::proxy) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.reads.acquire().await.ok()
    }

    /// Ends all waits: polls are answered, and streams end.
    pub(in crate::proxy) fn release(&self) {
        self.released.cancel();
    }

    pub(super) async fn released(&self) {
        self.released.cancelled().await;
    }

    fn is_released(&self) -> bool {
        self.released.is_cancelled()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TopicName, Arc<Topic>>> {
        // No code that holds the lock can panic half-way through a change.
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a head may ask for push, at little cost for all that do not.
fn may_ask(headers: &HeaderMap) -> bool {
    let names_stream =
        |accept: &HeaderValue| memmem::find(accept.as_bytes(), b"event-stream").is_some();
    headers.contains_key(PREFER)
        || headers.contains_key(LAST_EVENT_ID)
        || headers.get_all(ACCEPT).iter().any(names_stream)
}

/// Removes a topic, but not another one that has begun under its name.
fn remove(topics: &mut HashMap<TopicName, Arc<Topic>>, name: &TopicName, topic: &Arc<Topic>) {
    if topics.get(name).is_some_and(|known| Arc::ptr_eq(known, topic)) {
        topics.remove(name);
    }
}
