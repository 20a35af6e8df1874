//! The driver of a topic: reads the job for its waiters.
//!
//! A read is an ordinary lookup, and so is what follows: a hit, a joined flight, or an upstream read
//! under a lease. The driver differs from a client in two ways. First, it knows the change since which
//! it has read the job ([`ChangeId`]), so the placeholder, the lease and the fill of one change make
//! it read once, and so does an entry that is replaced by that of another identity. Second, it waits
//! for a fence, because a write is about to end, or its API about to show it.
//!
//! News comes only of what the store has. So after each response of the upstream the driver looks whether the
//! store has it ([`Cause::Confirm`]): the store may have been late, or may have refused it.
//!
//! A read changes keys, and so makes news for other readers and for the driver itself. Two readers must not
//! keep each other reading. So a response that is not stored is read without a lease from then on, an entry
//! of another route or API is left alone, and [`Pace`] limits the remaining reads.

use std::{pin::pin, sync::Arc};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hyper::StatusCode;
use tokio::time::{Instant, sleep_until};

use super::{
    last_read::LastRead,
    pace::Pace,
    read_schedule::{Cause, ReadSchedule},
    topic::{Accepts, Topic, TopicName, Version, VersionSource},
    topic_read::{Began, FoundEntry, PendingRead, ReadResult, ReadStep},
};
use crate::{
    cache::{ChangeId, LeaderRead, Lookup, LookupRequest, NewsListener},
    mutants::{self, Mutant},
    proxy::{lead::LeadTask, proxy_context::ProxyContext},
    semantics::policy::Bypass,
    store::Budget,
};

/// Reads a job for the waiters of a topic.
pub(super) struct Driver {
    context: Arc<ProxyContext>,
    topic: Arc<Topic>,
    name: TopicName,
    lookup: LookupRequest,
    news: NewsListener,
    /// Limits the reads for news.
    pace: Pace,
    /// When the news came that no version has answered yet.
    news_at: Option<Instant>,
    last_read: LastRead,
    /// Whether the last version was shared, but not stored.
    is_unstored: bool,
    /// Whether the upstream's last response was a success that could not be shared.
    is_unshareable: bool,
    schedule: ReadSchedule,
}

impl Driver {
    pub(super) fn new(
        context: Arc<ProxyContext>,
        topic: Arc<Topic>,
        name: TopicName,
        lookup: LookupRequest,
    ) -> Self {
        Self {
            news: context.cache.reader.listen(&name.0),
            pace: Pace::new(Instant::now()),
            schedule: ReadSchedule::new(context.push.config.recheck, Instant::now()),
            context,
            topic,
            name,
            lookup: lookup.for_topic(),
            news_at: None,
            last_read: LastRead::default(),
            is_unstored: false,
            is_unshareable: false,
        }
    }

    /// Reads until the topic has had no waiters for a while, or until a drain or a reload ends it. The
    /// client of a held poll returns soon, and then finds the topic as it was.
    pub(super) async fn run(mut self) {
        let context = Arc::clone(&self.context);
        let mut is_over = pin!(async {
            tokio::select! {
                () = context.push.released() => {}
                () = context.superseded.cancelled() => {}
            }
        });
        let mut is_idle = false;
        loop {
            if self.topic.asked().is_some() {
                if std::mem::take(&mut is_idle) {
                    // The time of a delivery counts from when somebody waits for it.
                    self.news.take();
                    self.news_at = None;
                }
                let is_overdue = self.schedule.is_overdue(Instant::now());
                self.read(if is_overdue { Cause::Recheck } else { Cause::Asked }).await;
                continue;
            }
            let has_waiters = self.topic.has_waiters();
            is_idle |= !has_waiters;
            if !has_waiters && context.push.is_crowded() {
                return;
            }
            let (due, cause) = if has_waiters {
                self.schedule.next_due()
            } else {
                (self.schedule.idle_until(), Cause::Recheck)
            };
            let cause = tokio::select! {
                () = &mut is_over => return,
                () = self.topic.woken() => continue,
                () = self.pace.delay(&mut self.news), if has_waiters => Cause::News,
                () = sleep_until(due) => cause,
            };
            if has_waiters {
                self.read(cause).await;
            } else if context.push.forget(&self.name, &self.topic) {
                return;
            }
        }
    }

    /// Reads the job, and tells the waiters. If the read is late and somebody waits for a later one, that
    /// one begins as well, so that a read that never ends delays nobody for long.
    async fn read(&mut self, mut cause: Cause) {
        let context = Arc::clone(&self.context);
        let mut pending = FuturesUnordered::new();
        for number in 0_usize.. {
            let mut turn = context.push.turn().await;
            let began = self.begin(cause);
            let reading = match self.find(cause, began).await {
                ReadStep::Done(found) => return self.conclude(found, began),
                ReadStep::Pending(reading) => reading,
            };
            if cause == Cause::News {
                self.pace.count(Instant::now());
            }
            let is_own = reading.answer.is_some();
            let mut late = pin!(reading.flight.clone().late());
            pending.push(reading.end(number));
            loop {
                tokio::select! {
                    Some((of, began, found)) = pending.next() => {
                        // A failure says nothing as long as another read may succeed.
                        if !matches!(found, ReadResult::Failed) || pending.is_empty() {
                            self.conclude(found, began);
                            if of == number || pending.is_empty() {
                                return;
                            }
                        }
                    }
                    () = &mut late, if turn.is_some() => turn = None,
                    () = self.wanted(began.asked, is_own), if turn.is_none() => break,
                }
            }
            cause = Cause::Asked;
        }
    }

    /// Takes what a read that begins now will answer.
    fn begin(&mut self, cause: Cause) -> Began {
        if let Some(at) = self.news.take() {
            self.context.push.metrics.woken.inc();
            self.news_at.get_or_insert(at);
        }
        if cause == Cause::Recheck {
            self.context.push.metrics.rechecks.inc();
            self.schedule.restart(Instant::now());
        }
        let asked = self.topic.asked();
        let accepts = self.topic.accepts();
        Began { at: Instant::now(), asked, accepts, is_past_fence: false }
    }

    /// Waits until another read is wanted although one is late: for a later look or later news, or because
    /// the late one is not the own.
    async fn wanted(&mut self, asked: Option<u64>, is_own: bool) {
        while is_own && self.topic.asked() <= asked {
            tokio::select! {
                () = self.topic.woken() => {}
                () = self.news.changed() => return,
            }
        }
    }

    /// Publishes what was found, and decides when to read again.
    fn conclude(&mut self, found: ReadResult, began: Began) {
        if mutants::is(Mutant::PushListenLate) {
            self.news.take();
        }
        let asked =
            if mutants::is(Mutant::PushRunningRead) { self.topic.asked() } else { began.asked };
        if let ReadResult::Entry(found) = &found
            && self.may_be_older(found, began)
        {
            // The looks are answered by the read that follows.
            self.last_read.doubt();
            self.schedule.retry_at_once(Instant::now());
            return;
        }
        let version = self.publish(found, began.is_past_fence);
        if let Some(number) = asked {
            self.topic.end_looks(number, version);
        }
    }

    fn publish(&mut self, found: ReadResult, is_past_fence: bool) -> Option<Arc<Version>> {
        let ended = self.schedule.end_waits();
        let now = Instant::now();
        let was_unshareable = std::mem::take(&mut self.is_unshareable);
        match found {
            ReadResult::Entry(FoundEntry { entry, source, change, .. }) => {
                let was_unstored = std::mem::replace(&mut self.is_unstored, entry.is_unstored());
                let now_ms = self.context.cache.store().now_ms();
                self.last_read.replace(change, (now, now_ms));
                if source == VersionSource::Upstream {
                    self.schedule.restart(now);
                    if now_ms < entry.expires_at_ms() && !mutants::is(Mutant::PushListenLate) {
                        self.schedule.confirm(ended, now);
                    }
                }
                if is_past_fence {
                    // The API may show the write later.
                    self.schedule.retry_longer(ended, now);
                } else if was_unstored && !self.is_unstored {
                    // The next read takes a lease, so that its response is stored: only then does Redis
                    // report a `DEL`.
                    self.schedule.retry_at_once(now);
                }
                Some(self.topic.publish(entry, source, self.news_at.take()))
            }
            ReadResult::Unchanged => {
                self.news_at = None;
                self.last_read.confirm();
                self.topic.last()
            }
            ReadResult::Unconfirmed => {
                self.schedule.confirm(ended, now);
                None
            }
            ReadResult::Fenced => {
                self.schedule.await_fence(ended, now);
                None
            }
            ReadResult::Unshareable(status) if was_unshareable => self.refuse(status),
            ReadResult::Refused(status) => self.refuse(status),
            ReadResult::Unshareable(_) => {
                // An API may renew a cookie with one response, and send the next one without.
                self.is_unshareable = true;
                self.schedule.retry_soon(now);
                None
            }
            ReadResult::Failed => {
                self.is_unshareable = was_unshareable;
                self.schedule.retry_longer(ended, now);
                None
            }
        }
    }

    fn refuse(&mut self, status: StatusCode) -> Option<Arc<Version>> {
        self.last_read.forget_change();
        self.topic.refuse(status);
        None
    }

    fn may_be_older(&self, found: &FoundEntry, began: Began) -> bool {
        self.last_read.may_be_older(self.topic.last().as_deref(), found, began)
    }

    /// Looks the job up, and begins to read the upstream if that is what the lookup says.
    async fn find(&mut self, cause: Cause, mut began: Began) -> ReadStep {
        let reader = &self.context.cache.reader;
        let lookup = &self.lookup_for(cause, began.accepts);
        let mut budget = self.context.cache.budget();
        let mut change = None;
        let mut found = reader.lookup_change(lookup, &mut budget, &mut change).await;
        let awaits_nothing = began.asked.is_none() && self.news_at.is_none();
        if cause == Cause::Confirm && awaits_nothing && change.is_none() {
            return ReadStep::Done(ReadResult::Unconfirmed);
        }
        let is_known = began.accepts == Accepts::Entries && self.is_known(change.as_ref(), cause);
        let is_fenced = found.bypass() == Some(Bypass::Fenced);
        // Without a lease no fence is seen.
        began.is_past_fence = is_fenced || (self.is_unstored && cause == Cause::News);
        // A client that has just come reads past a fence, as in an ordinary read.
        let awaits_fence = cause == Cause::News && began.asked.is_none();
        if let Lookup::Pass(why) = found
            && !is_known
        {
            // Waiters of one identity share what nobody else may have.
            found = reader.lead_next(lookup, why);
        }
        match found {
            Lookup::Hit(entry) => {
                let (source, is_own) = (VersionSource::Cache, false);
                let found = FoundEntry { entry, source, change, is_own };
                if is_known && self.may_be_older(&found, began) {
                    return ReadStep::Done(ReadResult::Unchanged);
                }
                ReadStep::Done(ReadResult::Entry(found))
            }
            // A flight or lease that is not used is given up when it is dropped.
            _ if is_known => ReadStep::Done(ReadResult::Unchanged),
            _ if awaits_fence && is_fenced => ReadStep::Done(ReadResult::Fenced),
            Lookup::Lead(lead) => self.lead(*lead, began, change, budget).await,
            Lookup::Join(flight, _) => {
                ReadStep::Pending(PendingRead { began, change, flight, answer: None })
            }
            Lookup::Pass(_) => ReadStep::Done(ReadResult::Failed),
        }
    }

    fn lookup_for(&self, cause: Cause, accepts: Accepts) -> LookupRequest {
        let mut lookup = self.lookup.clone();
        if cause == Cause::Recheck || self.last_read.is_doubtful() || accepts == Accepts::Confirmed
        {
            lookup = lookup.rechecking();
        }
        if self.is_unstored {
            lookup = lookup.without_fill();
        }
        lookup
    }

    /// Whether the last version was read since this change, and is still as good as an entry.
    fn is_known(&self, change: Option<&ChangeId>, cause: Cause) -> bool {
        let now_ms = self.context.cache.store().now_ms();
        self.last_read.is_since(change)
            && !matches!(cause, Cause::Recheck | Cause::Retry)
            && self.topic.last().is_some_and(|last| now_ms < last.entry.expires_at_ms())
    }

    /// Begins to read the upstream, for this topic and all readers that join.
    async fn lead(
        &self,
        lead: LeaderRead,
        began: Began,
        change: Option<ChangeId>,
        budget: Budget,
    ) -> ReadStep {
        let reader = self.topic.reader();
        let flight = lead.leader.flight();
        let request = self.context.fill_request(&reader.head, reader.peer);
        let client = ((*reader.head).clone(), reader.peer);
        match LeadTask::spawn(&self.context, lead, client, request, budget).await {
            Some((_, answer)) => {
                ReadStep::Pending(PendingRead { began, change, flight, answer: Some(answer) })
            }
            None => ReadStep::Done(ReadResult::Failed),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.context.push.end(&self.name, &self.topic);
    }
}
