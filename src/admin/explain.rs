//! `/explain/<id>`: what is known of a job, and what a request for it would come to and why.
//!
//! `GET` explains a request that says nothing of who asks. `POST` takes the head of a request as its
//! body, as `curl -v` shows it or a browser copies it: lines of `Name: value`, before them, if the path
//! is another than that of the first route, `GET /path HTTP/1.1`. So the caller's own headers, and
//! `Authorization` with the webhook secret among them, are never taken for those of the client, and no
//! credential stands in a URL. Nothing of a head is kept, logged or answered but its path.
//!
//! An entry is for clients of one form: host, path, `Accept` and the like. Without a `Host` the form is
//! taken for the one that the entry was read in; but a head that says `HTTP/1.1` is taken at its word, and
//! without a `Host` it would be refused.
//!
//! Not foreseen: what the server refuses before it has a request (a head that is too large or is no HTTP),
//! and that there is no room for one more.

mod head;
mod past;
mod words;

use std::{sync::Arc, time::SystemTime};

use hyper::{
    Request, StatusCode,
    http::{Method, header::HOST},
};
use serde::Serialize;
use serde_json::{Value, json};

use self::{
    head::parse,
    words::{because, hit, in_shadow, left, pass, refused, write},
};
use super::page::{Reply, reply};
use crate::{
    cache::{
        Cache,
        audience::Standing,
        entry::{Entry, Reject},
        explain::{Because, Explained, Forecast, Form},
        key::{self, JobId},
        policy::Bypass,
    },
    clock,
    config::{self, CacheMode},
    events::jobs::Past,
    proxy::{
        framing::{self, Refusal},
        headers::{CacheStatus, Forward},
        route::{Route, Routes},
    },
    store::{State, StoreError},
};

pub(super) use self::head::MAX_HEAD;

/// What a request would come to.
#[derive(Debug, Serialize)]
struct Verdict {
    outcome: &'static str,
    detail: Option<&'static str>,
    /// As it would say; of a hit or a miss what it would begin with.
    cache_status: String,
    /// For people.
    why: String,
}

/// What a request would meet.
pub(super) struct Sidecar<'s> {
    pub(super) cache: &'s Arc<Cache>,
    pub(super) routes: &'s Routes,
    pub(super) mode: CacheMode,
    pub(super) limits: &'s config::ServerConfig,
}

impl Sidecar<'_> {
    /// Explains a job to a client that sends this head.
    pub(super) async fn explain(&self, id: &str, head: &[u8]) -> Reply {
        self.explained(id, head).await.unwrap_or_else(|error| bad_request(&error))
    }

    async fn explained(&self, id: &str, head: &[u8]) -> Result<Reply, String> {
        let id = canonical(id)?;
        let request = parse(head, || self.routes.path_of(&id))?;
        let route = self.routes.classify(&request);
        self.same_job(&id, &request, &route)?;
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        let is_given = headers.contains_key(HOST) || uri.authority().is_some();
        let form = if is_given { Form::Given } else { Form::Assumed };
        // Of what never comes to a lookup the job is told all the same.
        let method = if *method == Method::HEAD { method } else { &Method::GET };
        let ask = self.cache.ask(&id, method, uri, headers);
        let ask = if self.mode == CacheMode::Shadow { ask.alone() } else { ask };
        let explained = self.cache.explain(ask, form).await;
        let now = clock::now();
        let mut verdict = match framing::check(&request, self.limits) {
            Err(why) => Verdict::refused(why),
            Ok(()) => self.verdict(&request, &route, &explained, now),
        };
        if head.trim_ascii().is_empty() {
            verdict = verdict.of_nobody(&explained.past);
        }
        Ok(reply(StatusCode::OK, &Told::of(&id, &request, form, &explained, verdict)))
    }

    /// A request that names no job at all is explained; one that names another is a mistake.
    fn same_job(&self, id: &JobId, request: &Request<()>, route: &Route) -> Result<(), String> {
        let named = match route {
            Route::Read(job) => vec![job.clone()],
            _ => self.routes.jobs(request.uri().path()),
        };
        match named.first() {
            Some(other) if !named.contains(id) => Err(format!(
                "the request is for another path than that of this job; ask /explain/{other}"
            )),
            _ => Ok(()),
        }
    }

    fn verdict(
        &self,
        request: &Request<()>,
        route: &Route,
        explained: &Explained,
        now: SystemTime,
    ) -> Verdict {
        match route {
            Route::Read(_) if self.cache.is_personal(request.headers()) => {
                Verdict::pass(Bypass::Credentials)
            }
            Route::Read(_) => Verdict::in_mode(self.mode, explained, now),
            Route::Write(_) => Verdict::write(request.method()),
            Route::Pass(_) if request.method() == Method::CONNECT => {
                Verdict::error("connect", "would be answered 405: jobcache opens no tunnels")
            }
            Route::Pass(why) => Verdict::pass(*why),
        }
    }
}

/// An id as reads are cached under.
fn canonical(id: &str) -> Result<JobId, String> {
    if let Some(id) = JobId::canonical(id) {
        return Ok(id);
    }
    let shown: String = id.chars().take(200).collect();
    Err(match key::readings(id).first() {
        Some(other) => format!(
            "reads of {shown:?} are not cached (detail=spelling); ask for its canonical spelling, \
             {other:?}",
            other = other.as_str()
        ),
        None => format!(
            "{shown:?} is no job id: ids are 1 to 128 of A-Z a-z 0-9 . _ ~ -, and not . or .."
        ),
    })
}

pub(super) fn bad_request(error: &str) -> Reply {
    reply(StatusCode::BAD_REQUEST, &json!({ "error": error }))
}

impl Verdict {
    fn in_mode(mode: CacheMode, explained: &Explained, now: SystemTime) -> Self {
        match (mode, explained.forecast) {
            (CacheMode::Off, _) => Self::pass(Bypass::Off),
            (CacheMode::Shadow, Forecast::Hit(_)) => Self::pass(Bypass::ShadowHit),
            (CacheMode::Shadow, Forecast::Join) => Self::pass(Bypass::Shadow),
            // Nobody is turned away, and nobody waits.
            (CacheMode::Shadow, Forecast::Pass(why)) => {
                let text = in_shadow(why).map_or_else(|| left(why, explained, now), Into::into);
                Self { why: text, ..Self::forwarded("pass", Some(why), false) }
            }
            _ => Self::of(explained, now),
        }
    }

    fn of(explained: &Explained, now: SystemTime) -> Self {
        match explained.forecast {
            Forecast::Hit(ttl) => Self {
                outcome: "hit",
                detail: None,
                cache_status: format!("jobcache; hit; ttl={}", ttl.as_secs()),
                why: hit(explained, ttl),
            },
            Forecast::Miss { why, because: reason } => {
                let text = match reason {
                    Because::Unconfirmed(why) => left(why, explained, now),
                    reason => because(reason).to_owned(),
                };
                Self { why: text, ..Self::forwarded("miss", why, false) }
            }
            Forecast::Join => Self {
                why: "would get the answer of a read of the API that is under way here".to_owned(),
                ..Self::forwarded("miss", None, true)
            },
            Forecast::Pass(why) => Self { why: left(why, explained, now), ..Self::pass(why) },
        }
    }

    /// What is known of a request without a head is its path; what clients really send may come to
    /// something else, and the last ones tell.
    fn of_nobody(self, past: &Past) -> Self {
        let but = past::most(past)
            .filter(|most| (most.outcome, most.why) != (self.outcome, self.detail.unwrap_or("")))
            .map(|most| format!("; but {most}"));
        let but = but.unwrap_or_default();
        Self { why: format!("a client that says nothing of itself {}{but}", self.why), ..self }
    }

    fn pass(why: Bypass) -> Self {
        if why == Bypass::OnlyIfCached {
            return Self::error(why.as_str(), pass(why));
        }
        Self { why: pass(why).to_owned(), ..Self::forwarded("pass", Some(why), false) }
    }

    fn refused(why: Refusal) -> Self {
        let status = why.status().as_u16();
        Self::error(why.as_str(), &format!("would be answered {status}: {}", refused(why)))
    }

    fn error(detail: &'static str, why: &str) -> Self {
        let cache_status = CacheStatus::Refused { detail }.to_string();
        Self { outcome: "error", detail: Some(detail), cache_status, why: why.to_owned() }
    }

    fn write(method: &Method) -> Self {
        let (cache_status, why) = ("jobcache; fwd=method".to_owned(), write(method).to_owned());
        Self { outcome: "write", detail: None, cache_status, why }
    }

    fn forwarded(outcome: &'static str, why: Option<Bypass>, collapsed: bool) -> Self {
        let detail = why.map(Bypass::as_str);
        let forward = why.map_or(Forward::Miss, Into::into);
        let status = CacheStatus::Forwarded { why: forward, collapsed, stored: false, detail };
        Self { outcome, detail, cache_status: status.to_string(), why: String::new() }
    }
}

/// All of it, what matters most first.
#[derive(Debug, Serialize)]
struct Told<'t> {
    verdict: Verdict,
    job: &'t str,
    request: Value,
    store: Value,
    value: Option<&'static str>,
    entry: Option<Value>,
    lease: Option<Value>,
    fence: Option<Value>,
    near: bool,
    marks: Value,
    events: Value,
    all_purged: Option<Value>,
    now: String,
}

impl<'t> Told<'t> {
    fn of(
        id: &'t JobId,
        request: &Request<()>,
        form: Form,
        explained: &Explained,
        verdict: Verdict,
    ) -> Self {
        let state = explained.state.as_ref();
        let lease_left_ms = state.ok().and_then(|state| state.lease.as_ref()).map(|it| it.left_ms);
        let fence_left_ms = state.ok().and_then(|state| state.fence_left_ms);
        let left = |left_ms| json!({ "left_ms": left_ms });
        Self {
            verdict,
            job: id.as_str(),
            request: json!({
                "method": request.method().as_str(),
                "path": request.uri().path(),
                "form_assumed": form == Form::Assumed,
            }),
            store: json!({
                "answered": state.is_ok(),
                "error": state.err().map(StoreError::as_str),
                "pending": explained.pending,
                "slot": explained.place.as_ref().map(|(slot, _)| slot),
                "node": explained.place.as_ref().and_then(|(_, node)| node.as_ref()),
            }),
            value: value(explained),
            entry: entry(explained),
            lease: lease_left_ms.map(left),
            fence: fence_left_ms.map(left),
            near: explained.near,
            marks: json!({
                "uncacheable": explained.uncacheable,
                "replaced": explained.replaced,
                "foreign": explained.foreign,
            }),
            events: past::told(&explained.past),
            all_purged: explained.past.all_purged.as_ref().map(past::happening),
            now: past::time(clock::now()),
        }
    }
}

/// What kind of value there is in the store; none where that is not known.
fn value(explained: &Explained) -> Option<&'static str> {
    let state: &State = explained.state.as_ref().ok()?;
    Some(match &explained.value {
        _ if state.is_alien => "foreign",
        Some(Ok(_)) => "entry",
        Some(Err(Reject::Foreign)) => "foreign",
        Some(Err(Reject::Corrupt)) => "unreadable",
        Some(Err(Reject::Epoch)) => "other-epoch",
        None if state.is_placeholder => "placeholder",
        None => "none",
    })
}

fn entry(explained: &Explained) -> Option<Value> {
    let (Ok(state), Some(Ok(entry))) = (&explained.state, &explained.value) else { return None };
    let entry: &Entry = entry;
    let now_ms = state.seen.now_ms;
    Some(json!({
        "age_s": entry.age(now_ms).as_secs(),
        "ttl_s": entry.ttl(now_ms).as_secs(),
        "size": entry.body().len(),
        "stored_size": state.seen.stored.as_ref().map(|stored| stored.body.len()),
        "generation": entry.generation(),
        "audience": entry.audience().members.len(),
        "public": entry.audience().public,
        "standing": explained.standing.map(|standing| match standing {
            Standing::Included => "included",
            Standing::Lapsed => "lapsed",
            Standing::Outside => "outside",
        }),
    }))
}
