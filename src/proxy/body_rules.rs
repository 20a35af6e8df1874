//! Body rules: the jobs that the bodies of a write name, by the rules of `[[invalidate]]`.
//!
//! A rule looks at the beginning of a body, which is then sent on byte for byte. Jobs that a
//! request body names are known before the request is forwarded, so they are fenced like the jobs
//! of the path. Jobs that a response body names are invalidated before the response head is sent
//! on; the body is held back until then. Nothing here fails a write, except that a request body
//! without room in memory is refused.
//!
//! The upstream may act on a body that a rule cannot read: one that is too large, compressed, not
//! JSON to us, or without an id at any pointer. If it accepts such a write, or its answer is
//! unknown, the write counts as one that changes every job (`on_miss = "all"`). Only an empty body
//! names nothing.
//!
//! `Location` and `Content-Location` of the response are not handled here but in `route`.

mod document;

use std::{collections::HashSet, sync::Arc};

use hyper::{
    Response,
    http::{
        header::{ACCEPT_ENCODING, EXPECT},
        request,
    },
};
use prometheus_client::metrics::counter::Counter;
use tracing::warn;

use self::document::{ParsedBody, RuleMiss, WhenFull, inspectable, is_json, read_document};
use super::body::Body;
use crate::{
    config::OnMiss,
    limits::{BufferedFrames, Quota},
    observe::{
        metrics::{Counters, Registry},
        throttle::HourlyPerName,
    },
    semantics::{
        job_id::JobId,
        policy::is_endless,
        route::{
            MAX_NAMED, WriteScope,
            invalidation_rules::{BodySide, InvalidationRule, RuleMatch},
        },
    },
    upstream::{RequestBody, ResponseBody, UpstreamError},
};

type Rules = [RuleMatch];

/// A parsed body, `None` if it is empty, or why it could not be parsed.
type Inspected = Result<Option<ParsedBody>, RuleMiss>;

/// Inspects the bodies of writes.
pub(super) struct BodyInspector {
    warnings: HourlyPerName,
    /// Limits the memory of the bodies that are being inspected.
    room: Arc<Quota>,
    /// Misses by body, `request` or `response`, and reason.
    misses: Counters<2>,
    /// Writes that dropped every job because a rule missed some.
    pub(super) fallbacks: Counter,
}

/// Why a request could not be inspected and is not forwarded.
pub(super) enum InspectError {
    /// The client broke off the body.
    Broken(UpstreamError),
    /// The quota has no room for the body.
    NoRoom,
}

/// Whether a rule may have missed jobs that a write changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleFinding {
    /// No rule with `on_miss = "all"` has missed any.
    Complete,
    /// An accepted write counts as one that changes every job.
    Incomplete,
}

/// A response that was inspected.
pub(super) struct InspectedResponse {
    pub(super) response: Response<Body>,
    pub(super) named: NamedInBody,
}

/// Result of the rules for a body.
pub(super) struct NamedInBody {
    pub(super) jobs: Vec<JobId>,
    pub(super) finding: RuleFinding,
}

impl NamedInBody {
    const NOTHING: Self = Self { jobs: Vec::new(), finding: RuleFinding::Complete };
}

impl BodyInspector {
    pub(super) fn new(room: Arc<Quota>, registry: &mut Registry) -> Self {
        // Without room a write is refused, so nothing is missed.
        let misses = RuleMiss::ALL.into_iter().filter(|miss| *miss != RuleMiss::Memory);
        let misses =
            misses.flat_map(|miss| ["request", "response"].map(|body| [body, miss.as_str()]));
        Self {
            warnings: HourlyPerName::default(),
            room,
            misses: registry.counters(
                "rule_misses",
                "Bodies in which a rule of [[invalidate]] did not find the ids it looked for",
                ["body", "reason"],
                misses,
            ),
            fallbacks: registry.counter(
                "rule_fallbacks",
                "Writes that dropped every job because a rule of [[invalidate]] did not find all",
            ),
        }
    }

    /// Adds the jobs that a request body names to what the write may change. Returns the body from
    /// its beginning.
    ///
    /// A body without room is refused rather than sent on without inspection: the jobs that it
    /// changes would stay cached for the whole TTL, and a client could cause that for others by
    /// sending bodies that use up the quota.
    pub(super) async fn request(
        &self,
        scope: &mut WriteScope,
        head: &mut request::Parts,
        mut body: RequestBody,
    ) -> Result<(RequestBody, RuleFinding), InspectError> {
        if max_inspected(&scope.rules, BodySide::Response).is_some() {
            head.headers.remove(ACCEPT_ENCODING);
        }
        let Some(max) = max_inspected(&scope.rules, BodySide::Request) else {
            return Ok((body, RuleFinding::Complete));
        };
        // The upstream cannot answer the expectation here: nothing is sent to it before the body
        // has been inspected.
        if inspectable(&head.headers, &body, max).is_ok() && body.begin() {
            head.headers.remove(EXPECT);
        }
        let mut read = BufferedFrames::new(&self.room);
        let full = WhenFull::Refuse;
        let document = read_document(&head.headers, &mut body, max, full, &mut read).await;
        let broken = |error| InspectError::Broken(UpstreamError::ClientGone(error));
        let mut document = document.map_err(broken)?;
        if document == Err(RuleMiss::Memory) {
            return Err(InspectError::NoRoom);
        }
        if let Ok(Some(document)) = &mut document
            && !is_json(&head.headers)
        {
            document.doubt = Some(RuleMiss::ContentType);
        }
        let named = self.named(&scope.rules, BodySide::Request, &document);
        let mut known: HashSet<JobId> = scope.jobs.iter().cloned().collect();
        scope.jobs.extend(named.jobs.into_iter().filter(|job| known.insert(job.clone())));
        Ok((body.resumed(read), named.finding))
    }

    /// Finds the jobs that a response body names.
    pub(super) async fn response(
        &self,
        rules: &Rules,
        response: Response<ResponseBody>,
    ) -> Result<InspectedResponse, UpstreamError> {
        let (head, mut body) = response.into_parts();
        let Some(max) = max_inspected(rules, BodySide::Response) else {
            let response = Response::from_parts(head, Body::Upstream(body));
            return Ok(InspectedResponse { response, named: NamedInBody::NOTHING });
        };
        let mut read = BufferedFrames::new(&self.room);
        let document = if is_endless(&head.headers) {
            Err(RuleMiss::EventStream)
        } else {
            // The body is read while it holds its upstream connection permit, so the limit on those
            // bounds the memory too.
            let full = WhenFull::Exceed;
            read_document(&head.headers, &mut body, max, full, &mut read).await?
        };
        let is_error = head.status.is_client_error() || head.status.is_server_error();
        let named = match &document {
            // Most error responses name no job: that is not a fault of the rule.
            Ok(Some(document)) if is_error => NamedInBody {
                jobs: named_by(rules, BodySide::Response, document),
                finding: RuleFinding::Complete,
            },
            _ if is_error => NamedInBody::NOTHING,
            document => self.named(rules, BodySide::Response, document),
        };
        let body = if read.is_empty() { Body::Upstream(body) } else { Body::Resumed(read, body) };
        Ok(InspectedResponse { response: Response::from_parts(head, body), named })
    }

    /// Returns what a document names, and counts the misses.
    fn named(&self, rules: &Rules, side: BodySide, document: &Inspected) -> NamedInBody {
        let mut named = NamedInBody::NOTHING;
        for rule in rules.iter().filter(|rule| rule.max_body(side).is_some()) {
            let miss = match document {
                Ok(None) => None,
                Err(why) => Some(*why),
                Ok(Some(document)) => {
                    let before = named.jobs.len();
                    named.jobs.extend(rule.jobs(side, &document.value));
                    if named.jobs.len() > MAX_NAMED {
                        Some(RuleMiss::TooMany)
                    } else if named.jobs.len() == before {
                        Some(RuleMiss::NotFound)
                    } else if rule.leads_elsewhere(side, &document.value) {
                        Some(RuleMiss::NotId)
                    } else {
                        document.doubt
                    }
                }
            };
            named.jobs.truncate(MAX_NAMED);
            if let Some(why) = miss {
                self.report_miss(rule, side, why);
                if rule.on_miss() == OnMiss::All {
                    named.finding = RuleFinding::Incomplete;
                }
            }
        }
        named
    }

    fn report_miss(&self, rule: &InvalidationRule, side: BodySide, why: RuleMiss) {
        let (number, body, reason) = (rule.number(), side.as_str(), why.as_str());
        self.misses.inc([body, reason]);
        if !self.warnings.admits(&number.to_string()) {
            return;
        }
        match rule.on_miss() {
            OnMiss::All => warn!(
                rule = number,
                body,
                reason,
                "an [[invalidate]] rule did not find every job that a write changes; such a write \
                 drops every job if the API accepts it. Correct the rule, or set on_miss = \
                 \"ignore\" in it"
            ),
            OnMiss::Ignore => warn!(
                rule = number,
                body,
                reason,
                "an [[invalidate]] rule did not find every job that a write changes; a job that it \
                 missed may be served until its TTL ends"
            ),
        }
    }
}

/// Whether a rule for the response has to assume a miss if the response is unknown.
pub(super) fn misses_unknown_response(rules: &Rules) -> bool {
    let reads = |rule: &RuleMatch| rule.max_body(BodySide::Response).is_some();
    rules.iter().any(|rule| reads(rule) && rule.on_miss() == OnMiss::All)
}

/// Returns the largest size that a rule reads of this body, if any rule reads it.
fn max_inspected(rules: &Rules, side: BodySide) -> Option<usize> {
    rules.iter().filter_map(|rule| rule.max_body(side)).max()
}

fn named_by(rules: &Rules, side: BodySide, document: &ParsedBody) -> Vec<JobId> {
    rules.iter().flat_map(|rule| rule.jobs(side, &document.value)).take(MAX_NAMED).collect()
}
