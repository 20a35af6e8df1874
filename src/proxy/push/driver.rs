//! The driver of a topic: reads the job for its waiters.
//!
//! A read is an ordinary lookup, and so is what follows: a hit, a joined flight, or an upstream read
//! under a lease. The driver differs from a client in two ways. First, it knows the change since which
//! it has read the job ([`ChangeId`]), so the placeholder, the lease and the fill of one change make
//! it read once, and so does an entry that is replaced by that of another identity. Second, it waits
//! for a fence, because a write is about to end, or its API about to show it.

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::StatusCode;
use tokio::time::{Instant, sleep_until};

use super::topic::{Topic, TopicName, Version, VersionSource};
use crate::{
    cache::{
        AbandonReason, ChangeId, LeaderRead, Lookup, LookupRequest, NewsListener, entry::Entry,
        flight::Flight,
    },
    mutants::{self, Mutant},
    proxy::{answer::Verdict, lead::LeadTask, proxy_context::ProxyContext},
    semantics::policy::Bypass,
    store::Budget,
};

/// Longest wait for a fence, from the last news and from the first. The fence of a write that has
/// ended stands for `settle`, which is a second by default; the margin lets it fall first.
const FENCE_WAIT: Duration = Duration::from_millis(1_050);
const MAX_FENCE_WAIT: Duration = Duration::from_secs(2);

/// First pause after a read that failed. It doubles up to `push.recheck`.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Most flights that one read joins, because each of them is late.
const MAX_JOINS: usize = 4;

/// Why the driver reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// A waiter has asked for a look.
    Asked,
    /// There is news about the key.
    News,
    /// The fence has stood for long enough.
    Fence,
    /// The last read failed.
    Retry,
    /// There was no news for `push.recheck`.
    Recheck,
}

/// What a read has found.
enum Found {
    Entry(Arc<Entry>, VersionSource, Option<ChangeId>),
    /// No change since the last version was read.
    Unchanged,
    /// A write is under way, or was just answered.
    Fenced,
    /// The upstream has answered with something that cannot be shared.
    Unshareable(StatusCode),
    /// No answer, or one that says nothing about the job.
    Failed,
}

/// A wait for the fence of the job.
#[derive(Clone, Copy)]
struct FenceWait {
    since: Instant,
    until: Instant,
}

/// Reads a job for the waiters of a topic.
pub(super) struct Driver {
    context: Arc<ProxyContext>,
    topic: Arc<Topic>,
    name: TopicName,
    lookup: LookupRequest,
    /// The same lookup, which accepts no entry as it is.
    recheck: LookupRequest,
    news: NewsListener,
    /// When the news came that no version has answered yet.
    news_at: Option<Instant>,
    /// The change since which the last version was read.
    known: Option<ChangeId>,
    fence: Option<FenceWait>,
    /// Whether the last read went past a fence. The API may show the write later.
    is_past_fence: bool,
    /// When to read again, and the pause before that.
    retry: Option<(Instant, Duration)>,
    recheck_at: Instant,
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
            recheck: lookup.clone().rechecking(),
            recheck_at: Instant::now() + context.push.config.recheck,
            context,
            topic,
            name,
            lookup,
            news_at: None,
            known: None,
            fence: None,
            is_past_fence: false,
            retry: None,
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
        loop {
            if self.topic.asked().is_some() {
                let is_overdue = Instant::now() >= self.recheck_at;
                self.read(if is_overdue { Cause::Recheck } else { Cause::Asked }).await;
                continue;
            }
            let has_waiters = self.topic.has_waiters();
            if !has_waiters && context.push.is_crowded() {
                return;
            }
            let (due, cause) = if has_waiters { self.next_due() } else { self.idle_due() };
            let cause = tokio::select! {
                () = &mut is_over => return,
                () = self.topic.woken() => continue,
                () = self.news.changed(), if has_waiters => Cause::News,
                () = sleep_until(due) => cause,
            };
            if has_waiters {
                self.read(cause).await;
            } else if context.push.forget(&self.name, &self.topic) {
                return;
            }
        }
    }

    /// Returns when to read without news, and why.
    fn next_due(&self) -> (Instant, Cause) {
        let fence = self.fence.map(|fence| (fence.until, Cause::Fence));
        let retry = self.retry.map(|(at, _)| (at, Cause::Retry));
        let recheck = (self.recheck_at, Cause::Recheck);
        let due = [fence, retry].into_iter().flatten();
        due.fold(recheck, |first, next| if next.0 < first.0 { next } else { first })
    }

    /// Returns when a topic without waiters ends.
    fn idle_due(&self) -> (Instant, Cause) {
        (self.recheck_at + self.context.push.config.recheck, Cause::Recheck)
    }

    /// Reads the job once, and tells the waiters.
    async fn read(&mut self, cause: Cause) {
        let context = Arc::clone(&self.context);
        let _turn = context.push.turn().await;
        // Before the read: later looks and later news are not answered by it.
        let asked = self.topic.asked();
        if let Some(at) = self.news.take() {
            self.news_at.get_or_insert(at);
        }
        if cause == Cause::Recheck {
            context.push.metrics.rechecks.inc();
            self.recheck_at = Instant::now() + context.push.config.recheck;
        }
        let found = self.find(cause, asked.is_some()).await;
        let asked = if mutants::is(Mutant::PushRunningRead) { self.topic.asked() } else { asked };
        if mutants::is(Mutant::PushListenLate) {
            self.news.take();
        }
        let found = self.conclude(found);
        if let Some(number) = asked {
            self.topic.end_looks(number, found);
        }
    }

    /// Publishes what was found, and decides when to read again.
    fn conclude(&mut self, found: Found) -> Option<Arc<Version>> {
        let (fence, retry) = (self.fence.take(), self.retry.take());
        match found {
            Found::Entry(entry, source, change) => {
                if source == VersionSource::Upstream {
                    self.recheck_at = Instant::now() + self.context.push.config.recheck;
                }
                if self.is_past_fence {
                    self.retry_after(retry);
                }
                self.known = change;
                Some(self.topic.publish(entry, source, self.news_at.take()))
            }
            Found::Unchanged => {
                self.news_at = None;
                self.topic.last()
            }
            Found::Fenced => {
                let now = Instant::now();
                let since = fence.map_or(now, |fence| fence.since);
                let until = (now + FENCE_WAIT).min(since + MAX_FENCE_WAIT);
                self.fence = Some(FenceWait { since, until });
                self.retry = retry;
                None
            }
            Found::Unshareable(status) => {
                self.known = None;
                self.topic.refuse(status);
                None
            }
            Found::Failed => {
                self.retry_after(retry);
                None
            }
        }
    }

    /// Reads again after a pause, which doubles.
    fn retry_after(&mut self, last: Option<(Instant, Duration)>) {
        let most = self.context.push.config.recheck;
        let pause = last.map_or(FIRST_RETRY, |(_, pause)| pause * 2).min(most);
        self.retry = Some((Instant::now() + pause, pause));
    }

    /// Looks the job up, and reads the upstream if that is what the lookup says.
    async fn find(&mut self, cause: Cause, is_asked: bool) -> Found {
        let context = Arc::clone(&self.context);
        // A client that has just come reads past a fence, as in an ordinary read.
        let awaits_fence = cause == Cause::News && !is_asked;
        for _ in 0..MAX_JOINS {
            let mut budget = context.cache.budget();
            let lookup = if cause == Cause::Recheck { &self.recheck } else { &self.lookup };
            let reader = &context.cache.reader;
            let mut change = None;
            let mut found = reader.lookup_change(lookup, &mut budget, &mut change).await;
            let is_known = self.is_known(change.as_ref(), cause);
            self.is_past_fence = found.bypass() == Some(Bypass::Fenced);
            let is_enough = is_known || self.is_past_fence && awaits_fence;
            if let Lookup::Pass(why) = found
                && !is_enough
            {
                // Waiters of one identity share what nobody else may have.
                found = reader.lead_next(lookup, why);
            }
            match found {
                Lookup::Hit(entry) => return Found::Entry(entry, VersionSource::Cache, change),
                _ if is_enough => {
                    if let Lookup::Lead(lead) = found {
                        context.cache.filler.abandon(*lead, AbandonReason::Superseded).await;
                    }
                    return if is_known { Found::Unchanged } else { Found::Fenced };
                }
                Lookup::Lead(lead) => return self.lead(*lead, change, budget).await,
                Lookup::Join(flight, _) => {
                    if let Some(found) = join(flight, change).await {
                        return found;
                    }
                }
                Lookup::Pass(_) => return Found::Failed,
            }
        }
        Found::Failed
    }

    /// Whether the last version was read since this change, and is still as good as an entry.
    fn is_known(&self, change: Option<&ChangeId>, cause: Cause) -> bool {
        let now_ms = self.context.cache.store().now_ms();
        change.is_some()
            && change == self.known.as_ref()
            && !matches!(cause, Cause::Recheck | Cause::Retry)
            && self.topic.last().is_some_and(|last| now_ms < last.entry.expires_at_ms())
    }

    /// Reads the upstream for this topic and all readers that join.
    async fn lead(&self, lead: LeaderRead, change: Option<ChangeId>, budget: Budget) -> Found {
        let reader = self.topic.reader();
        let flight = lead.leader.flight();
        let request = self.context.fill_request(&reader.head, reader.peer);
        let client = ((*reader.head).clone(), reader.peer);
        let task = LeadTask::spawn(&self.context, lead, client, request, budget).await;
        let Some((_, answer)) = task else { return Found::Failed };
        if let Some(entry) = flight.wait().await {
            return Found::Entry(entry, VersionSource::Upstream, change);
        }
        match answer.await {
            Ok(answer) if is_about_the_job(&answer.verdict, answer.response.status()) => {
                Found::Unshareable(answer.response.status())
            }
            _ => Found::Failed,
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.context.push.end(&self.name, &self.topic);
    }
}

/// Waits for the result of a flight; `None` if it is late.
async fn join(flight: Flight, change: Option<ChangeId>) -> Option<Found> {
    tokio::select! {
        biased;
        entry = flight.clone().wait() => Some(entry.map_or(Found::Failed, |entry| {
            Found::Entry(entry, VersionSource::Upstream, change)
        })),
        () = flight.late() => None,
    }
}

/// Whether an answer says that the upstream does not give the job to this identity. A server that fails
/// or is overloaded says nothing about it.
fn is_about_the_job(verdict: &Verdict, status: StatusCode) -> bool {
    let is_from_upstream = !matches!(verdict, Verdict::Failed(_) | Verdict::Refused(_));
    let is_transient = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    is_from_upstream && !status.is_server_error() && !is_transient.contains(&status)
}
