//! `/explain/<id>`: the state of a job, and what jobcache would do with a request for it and why.
//!
//! `GET` explains a request without headers. `POST` takes the head of a request as its body, as
//! `curl -v` shows it or a browser copies it: lines of `Name: value`, after a request line such as
//! `GET /path HTTP/1.1` if the path differs from that of the first route. The head is in the body so
//! that the caller's own headers, such as `Authorization` with the webhook secret, are not mistaken
//! for those of the client, and so that no credential is part of a URL. The answer shows only the
//! method and the path of a head; nothing else is kept or logged.
//!
//! An entry is for one variant of a request: host, path, `Accept` and the like. Without a `Host`
//! the variant is assumed to be that of the entry. A head that says `HTTP/1.1` is taken literally,
//! and is refused without a `Host`.
//!
//! Not predicted: requests that the server refuses before it has parsed them (a head that is too
//! large or is not HTTP), limits on the number of requests, and bypasses that do not follow from the
//! head (a connection that belongs to a login, an HTTP/2 body that no header announces).

mod request_head;
mod wording;

use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    Request, StatusCode,
    body::Incoming,
    http::{Method, header::HOST},
};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use self::{
    request_head::parse,
    wording::{
        bypass_reason_text, bypass_text, hit_text, lease_left_ms, miss_text, push_text,
        refused_text, shadow_text, splitting_text, wait_text, write_text,
    },
};
use super::{
    Admin,
    purge_request::{not_an_id, shortened},
    reply::{Reply, error_reply, json_reply},
};
use crate::{
    cache::{
        BeforeLookup,
        entry::{Entry, Reject},
        forecast::{Forecast, ForecastReport, JobMarks, VariantOrigin},
    },
    clock,
    config::CacheMode,
    observe::events::jobs::JobHistory,
    proxy::framing::{self, Refusal},
    semantics::{
        audience::Standing,
        headers::{self, CacheStatus, Forward},
        identity::ReadJob,
        job_id::JobId,
        policy::Bypass,
        push_request::PushRequest,
        route::Route,
    },
    store::KeyState,
};

/// Longest head, in bytes. It has room for more fields than any limit allows.
const MAX_HEAD: usize = 32 << 10;

/// Time limit for the body, which is the head of the request to explain.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The predicted result of a request.
#[derive(Debug, Serialize)]
struct ExplainVerdict {
    outcome: &'static str,
    detail: Option<&'static str>,
    /// The predicted `Cache-Status` field; of a hit or a miss only how it begins.
    cache_status: String,
    /// The reason, for people.
    why: String,
}

impl Admin {
    /// Explains what a request with the head in this body would get. The body may be empty.
    pub(super) async fn explain(&self, id: &str, body: Incoming) -> Reply {
        let explained = match timeout(BODY_TIMEOUT, Limited::new(body, MAX_HEAD).collect()).await {
            Ok(Ok(head)) => self.try_explain(id, &head.to_bytes()).await,
            _ => Err(format!(
                "cannot read the body; send the head of a request, at most {MAX_HEAD} bytes"
            )),
        };
        explained.unwrap_or_else(|error| error_reply(StatusCode::BAD_REQUEST, &error))
    }

    async fn try_explain(&self, id: &str, head: &[u8]) -> Result<Reply, String> {
        let id = percent_decode_str(id).decode_utf8_lossy();
        let first = self.canonical_id(&id)?;
        let path = self.routes.path_of(&first);
        let mut request = parse(head, || path.clone().unwrap_or_else(|| "/".to_owned()))?;
        let route = self.routes.classify(&request);
        // Two prefixes may have a job of this name: the request says which one is meant.
        let asked = self.routes.job_at(request.uri().path()).map(|job| job.id());
        let id = asked.filter(|asked| asked.as_str() == first.as_str()).unwrap_or(first);
        headers::strip_listed(request.headers_mut(), self.cache.fingerprinter().covered_headers());
        let waits = self.take_push(&mut request, &route);
        self.check_job(&id, &request, &route)?;
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        // The variant of an entry says nothing about the values of unknown headers.
        let is_given = headers.contains_key(HOST)
            || uri.authority().is_some()
            || self.cache.fingerprinter().has_unknown_header(headers);
        let form = if is_given { VariantOrigin::Given } else { VariantOrigin::Assumed };
        // Writes and bypassed requests do no lookup. Their job is shown as a GET would find it.
        let method = if *method == Method::HEAD { method } else { &Method::GET };
        let job = self.routes.job_at(uri.path()).or_else(|| self.routes.job_at(path.as_deref()?));
        let job = job.unwrap_or_else(|| ReadJob::of(&id));
        let lookup = self.cache.lookup_request(&job, method, uri, headers);
        let is_shadow = self.status_config.cache == CacheMode::Shadow;
        let lookup = if is_shadow { lookup.solo() } else { lookup };
        let explained = self.cache.reader.explain(lookup, form).await;
        let now = clock::now();
        let mut verdict = match framing::check(&request, &self.limits) {
            Err(refusal) => ExplainVerdict::refused(refusal),
            Ok(()) => self.verdict(&request, &route, &explained, now),
        };
        if head.trim_ascii().is_empty() {
            verdict = verdict.without_headers(&explained.history);
        }
        verdict.why.push_str(&push_text(verdict.outcome, waits));
        verdict.why.push_str(&splitting_text(&explained.marks.splitting_headers));
        Ok(json_reply(StatusCode::OK, &Explanation::of(&id, &request, form, &explained, verdict)))
    }

    /// Makes an ordinary read of one that asks for push, and returns what it asks for. Only the mode
    /// `on` answers that.
    fn take_push(&self, request: &mut Request<()>, route: &Route) -> Option<PushRequest> {
        let Route::Read(_) = route else { return None };
        let (method, config) = (request.method().clone(), &self.status_config);
        let waits = PushRequest::take(&config.push, &method, request.headers_mut());
        waits.filter(|_| config.cache == CacheMode::On)
    }

    /// Parses an id in the canonical spelling, under which reads are cached.
    fn canonical_id(&self, id: &str) -> Result<JobId, String> {
        let jobs = self.routes.jobs_by_key(id);
        if let Some(job) = jobs.iter().find(|job| job.as_str() == id) {
            return Ok(job.clone());
        }
        let shown = shortened(id);
        Err(match jobs.first() {
            Some(other) => format!(
                "reads of {shown:?} are not cached (detail=spelling); use the canonical spelling \
                 {other:?}, or set ids = \"opaque\" if the API compares ids as text",
                other = other.as_str()
            ),
            None => not_an_id(id),
        })
    }

    /// Returns an error if the request names other jobs, but not this one. A request that names no
    /// job is explained.
    fn check_job(&self, id: &JobId, request: &Request<()>, route: &Route) -> Result<(), String> {
        let named = match route {
            Route::Read(job) => vec![job.id()],
            _ => self.routes.named_by_path(request.uri().path()).all_jobs(),
        };
        match named.first() {
            Some(other) if !named.contains(id) => {
                Err(format!("the request has the path of another job; use /explain/{other}"))
            }
            _ => Ok(()),
        }
    }

    fn verdict(
        &self,
        request: &Request<()>,
        route: &Route,
        explained: &ForecastReport,
        now: SystemTime,
    ) -> ExplainVerdict {
        match route {
            Route::Read(job) => {
                let (mode, fingerprinter) = (self.status_config.cache, self.cache.fingerprinter());
                let facts = BeforeLookup {
                    has_barred_credential: fingerprinter.must_bypass(request.headers()),
                    is_off: mode == CacheMode::Off,
                    is_aside: self.cache.is_aside(job.prefix),
                    ..BeforeLookup::default()
                };
                let in_mode = || ExplainVerdict::in_mode(mode, explained, now);
                facts.bypass().map_or_else(in_mode, ExplainVerdict::bypass)
            }
            Route::Write(_) => ExplainVerdict::write(request.method()),
            Route::Pass(why) => {
                let setting = self.routes.setting_for(request.uri().path(), *why);
                ExplainVerdict::bypass(*why).with_setting(setting)
            }
        }
    }
}

impl ExplainVerdict {
    fn in_mode(mode: CacheMode, explained: &ForecastReport, now: SystemTime) -> Self {
        match (mode, explained.forecast) {
            (CacheMode::Shadow, Forecast::Hit(_)) => Self::bypass(Bypass::ShadowHit),
            (CacheMode::Shadow, Forecast::Join) => Self::bypass(Bypass::Shadow),
            // Shadow mode never refuses a request and never lets one wait.
            (CacheMode::Shadow, Forecast::Pass(why)) => {
                let text =
                    shadow_text(why).map_or_else(|| bypass_text(why, explained, now), Into::into);
                Self::forwarded("pass", Some(why), false, text)
            }
            _ => Self::in_service(explained, now),
        }
    }

    fn in_service(explained: &ForecastReport, now: SystemTime) -> Self {
        match explained.forecast {
            Forecast::Hit(ttl) => Self {
                outcome: "hit",
                detail: None,
                cache_status: format!("jobcache; hit; ttl={}", ttl.as_secs()),
                why: hit_text(explained, ttl),
            },
            Forecast::Miss { bypass, reason } => {
                Self::forwarded("miss", bypass, false, miss_text(reason, explained, now))
            }
            Forecast::Join => {
                let text = "would share the answer to a read of the API that is in flight here";
                Self::forwarded("miss", None, true, text)
            }
            Forecast::Wait => {
                Self::forwarded("miss", Some(Bypass::Leased), false, wait_text(explained))
            }
            Forecast::Pass(why) => Self::pass(why, bypass_text(why, explained, now)),
        }
    }

    /// Adapts the verdict to a request without a head. Real clients send headers and may get
    /// something else, so the text adds what most recent requests got if that differs.
    fn without_headers(self, past: &JobHistory) -> Self {
        let own = (self.outcome, self.detail.unwrap_or(""));
        let contrast = wording::usual_outcome(past)
            .filter(|(most, _)| (most.what.as_str(), most.why) != own)
            .map(|(_, text)| format!("; but {text}"));
        let contrast = contrast.unwrap_or_default();
        Self { why: format!("a request without headers {}{contrast}", self.why), ..self }
    }

    fn bypass(why: Bypass) -> Self {
        Self::pass(why, bypass_reason_text(why))
    }

    fn pass(why: Bypass, text: impl Into<String>) -> Self {
        match why {
            Bypass::OnlyIfCached => Self::error(why.as_str(), text),
            _ => Self::forwarded("pass", Some(why), false, text),
        }
    }

    /// Adds the setting with which the request would be cached.
    fn with_setting(mut self, setting: Option<&'static str>) -> Self {
        if let Some(setting) = setting {
            self.cache_status.extend(["; setting=\"", setting, "\""]);
        }
        self
    }

    fn refused(why: Refusal) -> Self {
        let (status, text) = (why.status().as_u16(), refused_text(why));
        Self::error(why.as_str(), format!("would be answered {status}: {text}"))
    }

    fn error(detail: &'static str, text: impl Into<String>) -> Self {
        let cache_status = CacheStatus::Refused { detail }.to_string();
        Self { outcome: "error", detail: Some(detail), cache_status, why: text.into() }
    }

    fn write(method: &Method) -> Self {
        let cache_status = "jobcache; fwd=method".to_owned();
        Self { outcome: "write", detail: None, cache_status, why: write_text(method).to_owned() }
    }

    fn forwarded(
        outcome: &'static str,
        why: Option<Bypass>,
        collapsed: bool,
        text: impl Into<String>,
    ) -> Self {
        let detail = why.map(Bypass::as_str);
        let forward = why.map_or(Forward::Miss, Into::into);
        let status = CacheStatus::Forwarded {
            why: forward,
            collapsed,
            stored: false,
            detail,
            setting: None,
        };
        Self { outcome, detail, cache_status: status.to_string(), why: text.into() }
    }
}

/// The answer of `/explain`, most important fields first.
#[derive(Debug, Serialize)]
struct Explanation<'t> {
    verdict: ExplainVerdict,
    job: &'t str,
    request: Value,
    #[serde(flatten)]
    key: ExplainedKey,
    marks: &'t JobMarks,
    events: Value,
    all_purged: Option<Value>,
    now: String,
}

/// The state of the key.
#[derive(Debug, Serialize)]
struct ExplainedKey {
    store: Value,
    value: Option<&'static str>,
    entry: Option<Value>,
    lease: Option<Value>,
    fence: Option<Value>,
    near: bool,
}

impl<'t> Explanation<'t> {
    fn of(
        id: &'t JobId,
        request: &Request<()>,
        form: VariantOrigin,
        explained: &'t ForecastReport,
        verdict: ExplainVerdict,
    ) -> Self {
        Self {
            verdict,
            job: id.as_str(),
            request: json!({
                "method": request.method().as_str(),
                "path": request.uri().path(),
                "form_assumed": form == VariantOrigin::Assumed,
            }),
            key: ExplainedKey::of(explained),
            marks: &explained.marks,
            events: explained.history.events.iter().map(wording::event_json).collect(),
            all_purged: explained.history.all_purged.as_ref().map(wording::event_json),
            now: wording::rfc3339(clock::now()),
        }
    }
}

impl ExplainedKey {
    fn of(explained: &ForecastReport) -> Self {
        let state = explained.state.as_ref();
        let left = |left_ms: i64| json!({ "left_ms": left_ms });
        let place = explained.cluster_slot.as_ref();
        Self {
            store: json!({
                "answered": state.is_ok(),
                "error": state.err().map(|error| error.kind().as_str()),
                "pending": explained.pending,
                "slot": place.map(|(slot, _)| slot),
                "node": place.and_then(|(_, node)| node.as_ref()),
            }),
            value: value_kind(explained),
            entry: entry_json(explained),
            lease: lease_left_ms(explained).map(left),
            fence: state.ok().and_then(|state| state.fence_left_ms).map(left),
            near: explained.near,
        }
    }
}

/// Returns the kind of value in the store, or `None` if the store did not answer.
fn value_kind(explained: &ForecastReport) -> Option<&'static str> {
    let state: &KeyState = explained.state.as_ref().ok()?;
    Some(match &explained.value {
        _ if state.is_alien => "foreign",
        Some(Ok(_)) => "entry",
        Some(Err(Reject::Foreign)) => "foreign",
        Some(Err(Reject::Corrupt)) => "unreadable",
        Some(Err(Reject::Epoch)) => "other-epoch",
        Some(Err(Reject::Purged)) => "purged",
        Some(Err(Reject::Identity)) => "other-route",
        None if state.seen.is_leased => "placeholder",
        None => "none",
    })
}

fn entry_json(explained: &ForecastReport) -> Option<Value> {
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
