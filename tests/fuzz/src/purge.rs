//! The body of a purge.
//!
//! Input: the body; or `*`, two bytes and an id, for a purge of many ids that consist of that id
//! and a number.

use jobcache::{
    admin::purge_request::PurgeRequest,
    semantics::{
        job_id::{JobId, is_canonical},
        route::Routes,
    },
};
use serde_json::{Value, json};

const MAX_IDS: usize = 10_000;

/// Checks one input.
pub fn run(data: &[u8]) {
    match data {
        [b'*', high, low, id @ ..] => {
            let low = usize::from(*low);
            // Reach the limit with short ids only: such inputs cost a thousand times as much.
            let many = *high == 0 && id.len() < 3;
            let times = if many { MAX_IDS - 10 + low % 20 } else { low % 16 };
            let Ok(id) = std::str::from_utf8(id) else { return };
            let ids: Vec<_> = (0..times).map(|number| format!("{id}{number}")).collect();
            check(json!({ "job_ids": ids }).to_string().as_bytes());
        }
        body => check(body),
    }
}

fn parse(body: &[u8]) -> Result<PurgeRequest, String> {
    PurgeRequest::parse(body, &Routes::parse(&["/jobs/{id}"]).expect("a valid template"))
}

fn check(body: &[u8]) {
    let request = match parse(body) {
        Ok(request) => request,
        Err(why) => return assert!(why.len() < 4_096 + body.len(), "{why}"),
    };
    // Accepted bodies are checked with serde_json: an object with one of the four keys, and
    // possibly `refresh`.
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let refresh = value.get("refresh").and_then(Value::as_bool).unwrap_or_default();
    let keys = value.as_object().into_iter().flatten();
    let given: Vec<_> = keys.filter(|(k, v)| *k != "refresh" && !v.is_null()).collect();
    // Refreshed jobs are purged like any others.
    let request = match (request, refresh) {
        (PurgeRequest::JobsWithRefresh(jobs), true) => PurgeRequest::Jobs(jobs),
        (request @ PurgeRequest::Jobs(_), true) => panic!("{request:?} ignores `refresh`"),
        (request, _) => request,
    };
    match (request, &given[..]) {
        (PurgeRequest::All, [(key, Value::Bool(true))]) => assert_eq!(*key, "all"),
        (PurgeRequest::Jobs(jobs), [(key, Value::Array(ids))]) => {
            assert_eq!(*key, "job_ids");
            check_jobs(&jobs, ids);
        }
        (PurgeRequest::Jobs(jobs), [(key, Value::String(_))]) if *key == "path" => {
            assert!((1..=MAX_IDS).contains(&jobs.len()));
        }
        (PurgeRequest::Jobs(jobs), [(key, id)]) => {
            assert_eq!(*key, "job_id");
            check_jobs(&jobs, std::slice::from_ref(id));
        }
        (request, given) => panic!("{given:?} is parsed as {request:?}"),
    }
}

fn check_jobs(jobs: &[JobId], ids: &[Value]) {
    assert!((1..=MAX_IDS).contains(&ids.len()));
    assert!((1..=MAX_IDS).contains(&jobs.len()), "{} jobs", jobs.len());
    assert!(jobs.is_sorted_by(|a, b| a < b), "not sorted, or with duplicates");
    for job in jobs {
        assert!(is_canonical(job.as_str()), "{job}");
    }
    // A purge finds the job under which a read with the same spelling is cached.
    for id in ids {
        let spelling = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
        if is_canonical(&spelling) {
            let job = JobId::new(&spelling, 0);
            assert!(jobs.binary_search(&job).is_ok(), "{job} is not purged");
        }
    }
    let again = json!({ "job_ids": jobs.iter().map(JobId::as_str).collect::<Vec<_>>() });
    assert_eq!(
        parse(again.to_string().as_bytes()).as_ref(),
        Ok(&PurgeRequest::Jobs(jobs.to_vec()))
    );
}
