//! Push: polls that are held until the job changes, and streams of events.
//!
//! A *waiter* is a client that already knows the current state of a job. All waiters of one job and one
//! identity (the key by which reads are shared) form a *topic*. The driver of a topic is one more
//! reader of the job: it listens to the news about the key, reads through the ordinary lookup when
//! there is news, and hands each new version to the waiters. So push has no cache and no invalidation
//! of its own, and a change costs one upstream read per identity, however many wait.
//!
//! Three rules keep the promises:
//!
//! - **No lost change.** A topic listens before it reads, and news during a read leads to another one.
//! - **Never stale.** A waiter takes only versions of reads that began after it came: it first asks for
//!   a look, and then waits for what follows. The reads of a topic do not overlap, so its versions are
//!   in order.
//! - **Never in the way.** Waiters, topics, reads under way and kept versions are bounded. Past the
//!   limit of waiters a request is answered as if push were off.
//!
//! Without news a topic reads the job once every `push.recheck`, so push needs neither a webhook nor
//! Redis.
//!
//! `topics` has the topics of a configuration and the limits, `topic` what waiters and driver share,
//! `driver` reads the job: `read_schedule` and `pace` say when, `topic_read` is one read, and `last_read`
//! orders the versions. `long_poll` and `live_stream` are the two forms of waiting.

mod driver;
mod last_read;
mod live_stream;
mod long_poll;
mod pace;
mod push_metrics;
mod read_schedule;
mod topic;
mod topic_read;
mod topics;

use std::sync::Arc;

use hyper::http::request::Parts;

use self::{driver::Driver, topic::TopicReader, topics::Joined};
use super::{answer::Answer, proxy_context::ProxyContext};
use crate::{
    cache::LookupRequest, limits::Permit, semantics::push_request::PushRequest, transport::Peer,
};

pub(crate) use self::push_metrics::PushMetrics;
pub(super) use self::{
    topic::Unpushed,
    topics::{PushedRead, Topics},
};

/// Answers a read that asks for push. A held poll gives `admission` back while it waits.
pub(super) async fn answer(
    context: &Arc<ProxyContext>,
    lookup: &LookupRequest,
    (head, client): (&Parts, Peer),
    PushedRead { wants, permit }: PushedRead,
    admission: &Permit,
) -> Result<Answer, Unpushed> {
    // Such a client gets no read of the upstream, and 504 without an entry.
    if lookup.is_for_entries_only() {
        return Err(Unpushed::Ordinary);
    }
    // A topic may outlive the connection.
    let peer = Peer { connection: None, ..client };
    let reader = TopicReader { head: Arc::new(head.clone()), peer };
    let name = (lookup.key().clone(), lookup.coalesce_key());
    let waiter = match context.push.join(&name, reader, permit) {
        Joined::Driven(waiter) => waiter,
        Joined::New(waiter, topic) => {
            let driver = Driver::new(Arc::clone(context), topic, name, lookup.clone());
            context.tasks.spawn(driver.run());
            waiter
        }
    };
    match wants {
        PushRequest::Poll { wait } => {
            long_poll::answer(context, (lookup, head), waiter, wait, admission).await
        }
        PushRequest::Stream { last_event_id } => {
            let answer = live_stream::answer(context, head, waiter, last_event_id).await;
            answer.ok_or(Unpushed::Ordinary)
        }
    }
}
