//! Held polls: `GET` with `Prefer: wait` and `If-None-Match`.
//!
//! RFC 7240 4.3: "The 'wait' preference can be used to establish an upper bound on the length of time,
//! in seconds, the client expects it will take the server to process the request once it has been
//! received." A poll is held while it would be answered with 304.

use std::{sync::Arc, time::Duration};

use hyper::http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use tokio::time::{Instant, sleep_until};

use super::topic::{Accepts, Unpushed, Update, Version, VersionSource, Waiter};
use crate::{
    cache::LookupRequest,
    limits::Permit,
    proxy::{
        answer::{Answer, Verdict, entry_response},
        proxy_context::ProxyContext,
    },
};

const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Answers a poll: at once if the client does not know the current version, else when the job changes
/// or the time is over.
pub(super) async fn answer(
    context: &ProxyContext,
    (lookup, head): (&LookupRequest, &Parts),
    mut waiter: Waiter,
    wait: Duration,
    admission: &Permit,
) -> Result<Answer, Unpushed> {
    let deadline = Instant::now() + wait;
    let current = look(context, lookup, &mut waiter).await.ok_or(Unpushed::Ordinary)?;
    if !current.entry.is_held_by(&head.headers) {
        return Ok(version_answer(context, head, &current));
    }
    // A held client keeps no body.
    drop(current);
    admission.shrink_to(0);
    let _held = context.push.metrics.hold_poll();
    let version = tokio::select! {
        version = next_unknown(&mut waiter, &head.headers) => {
            version.inspect(|version| context.push.metrics.count_poll(version))
        }
        // A look reads the store, so it sees every change that was acknowledged before it.
        () = sleep_until(deadline) => waiter.look(Accepts::Entries).await.ok_or(Unpushed::Ordinary),
    }?;
    let response = entry_response(&version.entry, head, context.cache.store().now_ms());
    let verdict = Verdict::Held { is_hit: version.source == VersionSource::Cache };
    let mut answer = Answer::new(response, verdict);
    if let Ok(applied) = HeaderValue::try_from(format!("wait={}", wait.as_secs())) {
        answer.response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok(answer)
}

/// Returns the current version, which the upstream confirms if the client accepts no entry of its age.
async fn look(
    context: &ProxyContext,
    lookup: &LookupRequest,
    waiter: &mut Waiter,
) -> Option<Arc<Version>> {
    if !lookup.takes_no_entry() {
        let current = waiter.look(Accepts::Entries).await?;
        if lookup.admits(&current.entry, context.cache.store().now_ms()) {
            return Some(current);
        }
    }
    waiter.look(Accepts::Confirmed).await
}

/// Waits for a version that the client does not know.
async fn next_unknown(waiter: &mut Waiter, headers: &HeaderMap) -> Result<Arc<Version>, Unpushed> {
    loop {
        match waiter.next().await {
            Update::Version(version) if version.entry.is_held_by(headers) => {}
            Update::Version(version) => return Ok(version),
            Update::Refused(_) => return Err(Unpushed::Refused),
            Update::Over => return Err(Unpushed::Ordinary),
        }
    }
}

/// Answers with a version.
fn version_answer(context: &ProxyContext, head: &Parts, version: &Version) -> Answer {
    let (entry, now_ms) = (&version.entry, context.cache.store().now_ms());
    if version.source == VersionSource::Cache {
        return Answer::hit(entry, &head.method, &head.headers, now_ms);
    }
    context.metrics.requests.joined.inc();
    let verdict = Verdict::Miss { filled: None, collapsed: true, why: None };
    Answer::new(entry_response(entry, head, now_ms), verdict)
}
