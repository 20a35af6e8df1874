//! `/explain/<id>`: what is known of a job, and what a request for it would come to and why.
//!
//! `GET` explains a request that says nothing of who asks. `POST` takes the head of a request as its
//! body, as `curl -v` shows it or a browser copies it: lines of `Name: value`, before them, if the path
//! is another than that of the first route, `GET /path HTTP/1.1`. So the caller's own headers, and
//! `Authorization` with the webhook secret among them, are never taken for those of the client, and no
//! credential stands in a URL. Nothing of a head is kept, logged or answered but its path.
//!
//! An entry is for clients of one form: host, path, `Accept` and the like. Without a `Host` the form is
//! taken for the one that the entry was read in.

mod head;
mod words;

use std::sync::Arc;

use hyper::{
    Request, StatusCode,
    http::{Method, header::HOST},
};
use serde_json::{Value, json};

use self::{
    head::parse,
    words::{because, hit, left, pass},
};
use super::page::{Reply, reply};
use crate::{
    cache::{
        Cache,
        audience::Standing,
        entry::{Entry, Reject},
        explain::{Explained, Forecast, Form},
        key::{self, JobId},
        policy::Bypass,
    },
    config::Mode,
    events::jobs::{Happening, Past},
    proxy::{
        headers::CacheStatus,
        route::{Route, Routes},
    },
    store::{State, StoreError},
};

pub(super) use self::head::MAX_HEAD;

/// What a request would come to.
#[derive(Debug)]
struct Verdict {
    outcome: &'static str,
    /// As `Cache-Status` would say; of a hit or a miss what it would begin with.
    status: String,
    detail: Option<&'static str>,
    /// For people.
    why: String,
}

/// Explains a job to a client that sends this head, while the cache is in this mode.
pub(super) async fn explain(
    cache: &Arc<Cache>,
    routes: &Routes,
    mode: Mode,
    id: &str,
    head: &[u8],
) -> Reply {
    let id = match canonical(id) {
        Ok(id) => id,
        Err(error) => return bad_request(&error),
    };
    let request = match parse(head, || routes.path_of(&id)) {
        Ok(request) => request,
        Err(error) => return bad_request(&error),
    };
    let route = routes.classify(&request);
    let named = match &route {
        Route::Read(job) => *job == id,
        _ => routes.jobs(request.uri().path()).contains(&id),
    };
    if !named {
        return bad_request("the request is for another path than that of this job");
    }
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    let is_given = headers.contains_key(HOST) || uri.authority().is_some();
    let form = if is_given { Form::Given } else { Form::Assumed };
    // Of what never comes to a lookup the job is told all the same.
    let method = if *method == Method::HEAD { method } else { &Method::GET };
    let ask = cache.ask(&id, method, uri, headers);
    let explained = cache.explain(ask, form).await;
    let verdict = match &route {
        Route::Read(_) if cache.is_personal(headers) => Verdict::pass(Bypass::Credentials),
        Route::Read(_) => Verdict::in_mode(mode, &explained),
        Route::Write(_) => Verdict::write(),
        Route::Pass(why) => Verdict::pass(*why),
    };
    reply(StatusCode::OK, &told(&id, &request, form, &explained, &verdict))
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
    fn in_mode(mode: Mode, explained: &Explained) -> Self {
        match (mode, explained.forecast) {
            (Mode::Off, _) => Self::pass(Bypass::Off),
            (Mode::Shadow, Forecast::Hit(_)) => Self::pass(Bypass::ShadowHit),
            (Mode::Shadow, Forecast::Join) => Self::pass(Bypass::Shadow),
            _ => Self::of(explained),
        }
    }

    fn of(explained: &Explained) -> Self {
        match explained.forecast {
            Forecast::Hit(ttl) => Self {
                outcome: "hit",
                status: format!("jobcache; hit; ttl={}", ttl.as_secs()),
                detail: None,
                why: hit(explained, ttl),
            },
            Forecast::Miss { why, because: reason } => {
                Self { why: because(reason).to_owned(), ..Self::forwarded("miss", why, false) }
            }
            Forecast::Join => Self {
                why: "would get the answer of a read of the API that is under way here".to_owned(),
                ..Self::forwarded("miss", None, true)
            },
            Forecast::Pass(why) => Self { why: left(why, explained), ..Self::pass(why) },
        }
    }

    fn pass(why: Bypass) -> Self {
        if why == Bypass::OnlyIfCached {
            let detail = why.as_str();
            return Self {
                outcome: "error",
                status: CacheStatus::Refused { detail }.to_string(),
                detail: Some(detail),
                why: pass(why).to_owned(),
            };
        }
        Self { why: pass(why).to_owned(), ..Self::forwarded("pass", Some(why), false) }
    }

    fn write() -> Self {
        let why = "would be forwarded as a write, and the entry dropped before it is answered";
        let status = "jobcache; fwd=method".to_owned();
        Self { outcome: "write", status, detail: None, why: why.to_owned() }
    }

    fn forwarded(outcome: &'static str, why: Option<Bypass>, collapsed: bool) -> Self {
        let detail = why.map(Bypass::as_str);
        let forward = why.map_or(crate::proxy::headers::Forward::Miss, Into::into);
        let status =
            CacheStatus::Forwarded { why: forward, collapsed, stored: false, detail }.to_string();
        Self { outcome, status, detail, why: String::new() }
    }
}

fn told(
    id: &JobId,
    request: &Request<()>,
    form: Form,
    explained: &Explained,
    verdict: &Verdict,
) -> Value {
    let state = explained.state.as_ref();
    json!({
        "job": id.as_str(),
        "verdict": {
            "outcome": verdict.outcome,
            "detail": verdict.detail,
            "cache_status": verdict.status,
            "why": verdict.why,
        },
        "request": {
            "method": request.method().as_str(),
            "path": request.uri().path(),
            "form_assumed": form == Form::Assumed,
        },
        "store": {
            "answered": state.is_ok(),
            "error": state.err().map(store_error),
            "pending": explained.pending,
        },
        "value": value(explained),
        "entry": entry(explained),
        "lease": state.ok().and_then(|state| state.lease.as_ref())
            .map(|lease| json!({ "left_ms": lease.left_ms })),
        "fence": state.ok().and_then(|state| state.fence_left_ms)
            .map(|left_ms| json!({ "left_ms": left_ms })),
        "near": explained.near,
        "marks": {
            "uncacheable": explained.uncacheable,
            "replaced": explained.replaced,
            "foreign": explained.foreign,
        },
        "events": past(&explained.past),
        "all_purged": explained.past.all_purged.as_ref().map(happening),
    })
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

fn past(past: &Past) -> Value {
    past.happenings.iter().map(happening).collect()
}

fn happening(it: &Happening) -> Value {
    let mut told = json!({
        "what": it.what.as_str(),
        "at_ms": it.last_ms,
        "times": it.times,
    });
    if it.times > 1 {
        told["since_ms"] = it.first_ms.into();
    }
    if !it.why.is_empty() {
        told["why"] = it.why.into();
    }
    if let Some(by) = &it.by {
        told["by"] = by.as_ref().into();
    }
    told
}

/// What the server says may name its address, which is for the log.
fn store_error(error: &StoreError) -> &'static str {
    match error {
        StoreError::Down => "down",
        StoreError::Pending => "pending",
        StoreError::Timeout | StoreError::Spent => "timeout",
        StoreError::Lost(_) => "lost",
        StoreError::Refused(_) | StoreError::Journal { .. } => "refused",
    }
}
