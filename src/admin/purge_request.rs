//! The body of the purge webhook, parsed.

use serde::Deserialize;

use crate::semantics::{job_id::JobId, route::Routes};

/// Most ids in one purge, and most jobs that all variants of those ids name together.
pub(super) const MAX_IDS: usize = 10_000;

/// `{"job_id": "x"}`, `{"job_ids": ["x", "y"]}` or `{"all": true}`; the first two with
/// `"refresh": true` if the jobs are to be fetched again after the purge.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgePayload {
    job_id: Option<PurgeId>,
    job_ids: Option<Vec<PurgeId>>,
    path: Option<String>,
    all: Option<bool>,
    refresh: Option<bool>,
}

/// An id is a string, or a number as databases have it.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "an id is a string or a whole number")]
enum PurgeId {
    Text(String),
    Number(u64),
}

/// A parsed purge.
#[derive(Debug, PartialEq, Eq)]
pub enum PurgeRequest {
    /// Purge these jobs. They are sorted, without duplicates.
    Jobs(Vec<JobId>),
    /// Purge these jobs and fetch them again. They are sorted, without duplicates.
    JobsWithRefresh(Vec<JobId>),
    /// Purge every job.
    All,
}

impl PurgeRequest {
    /// Parses the body of a purge. The error says what would be valid.
    pub fn parse(body: &[u8], routes: &Routes) -> Result<Self, String> {
        let payload: PurgePayload = serde_json::from_slice(body).map_err(|error| {
            format!(
                "{error}; a purge is {{\"job_id\": \"x\"}}, {{\"job_ids\": [\"x\", \"y\"]}}, \
                 {{\"path\": \"/jobs/x\"}} or {{\"all\": true}}"
            )
        })?;
        let refresh = payload.refresh == Some(true);
        let given = |jobs| if refresh { Self::JobsWithRefresh(jobs) } else { Self::Jobs(jobs) };
        let ids = match (payload.job_id, payload.job_ids, payload.path, payload.all) {
            (Some(id), None, None, None) => vec![id],
            (None, Some(ids), None, None) => ids,
            (None, None, Some(path), None) => {
                return Ok(jobs_at(&path, routes)?.map_or(Self::All, given));
            }
            (_, _, _, Some(true)) if refresh => {
                return Err(
                    "refresh can be combined with job_id, job_ids or path, not with all".into()
                );
            }
            (None, None, None, Some(true)) => return Ok(Self::All),
            _ => return Err("give exactly one of job_id, job_ids, path and \"all\": true".into()),
        };
        Ok(given(all_jobs(ids, routes)?))
    }
}

/// Returns the jobs that these ids name, sorted and without duplicates.
fn all_jobs(ids: Vec<PurgeId>, routes: &Routes) -> Result<Vec<JobId>, String> {
    if ids.is_empty() || ids.len() > MAX_IDS {
        return Err(format!("job_ids contains {} ids; give 1 to {MAX_IDS}", ids.len()));
    }
    let mut jobs = Vec::with_capacity(ids.len());
    for id in ids {
        jobs.extend(match id {
            PurgeId::Text(id) => job_ids(&id, routes)?,
            PurgeId::Number(id) => job_ids(&id.to_string(), routes)?,
        });
    }
    jobs.sort_unstable();
    jobs.dedup();
    if jobs.len() > MAX_IDS {
        let count = jobs.len();
        return Err(format!(
            "job_ids can be read as {count} jobs; the limit is {MAX_IDS}; split the purge"
        ));
    }
    Ok(jobs)
}

/// The beginning of an id, for an error.
pub(super) fn shortened(id: &str) -> String {
    id.chars().take(200).collect()
}

/// Returns the jobs that an id names: the key without its prefix.
pub(super) fn job_ids(id: &str, routes: &Routes) -> Result<Vec<JobId>, String> {
    let jobs = routes.jobs_by_key(id);
    if jobs.is_empty() { Err(not_an_id(id)) } else { Ok(jobs) }
}

/// Says why a text is no id.
pub(super) fn not_an_id(id: &str) -> String {
    let shown = shortened(id);
    format!(
        "{shown:?} is not a job id: ids are 1 to 128 of A-Z a-z 0-9 . _ ~ -, and not . or ..; with \
         ids = \"opaque\" or a key of several variables 1 to 512 bytes without {{ }} and control \
         characters"
    )
}

/// Returns the jobs that a path names, or `None` if they cannot be listed.
pub(super) fn jobs_at(path: &str, routes: &Routes) -> Result<Option<Vec<JobId>>, String> {
    let named = routes.named_by_path(path);
    if named.changes_unlisted() {
        return Ok(None);
    }
    let jobs = named.all_jobs();
    if jobs.is_empty() {
        let shown: String = path.chars().take(200).collect();
        return Err(format!("{shown:?} names no job; give the path of a job, such as /jobs/<id>"));
    }
    Ok(Some(jobs))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: &str) -> Result<PurgeRequest, String> {
        PurgeRequest::parse(body.as_bytes(), &Routes::parse(&["/jobs/{id}"]).unwrap())
    }

    #[track_caller]
    fn accepts(body: &str, expected: &[&str]) {
        match parse(body) {
            Ok(PurgeRequest::Jobs(jobs)) => {
                assert_eq!(jobs.iter().map(JobId::as_str).collect::<Vec<_>>(), expected, "{body}");
            }
            other => panic!("{body}: {other:?}"),
        }
    }

    #[track_caller]
    fn refuses(body: &str, part: &str) {
        let error = parse(body).unwrap_err();
        assert!(error.contains(part), "{body}: {error:?} lacks {part:?}");
    }

    #[test]
    fn a_purge_takes_one_id_several_or_all() {
        accepts(r#"{"job_id":"x"}"#, &["x"]);
        accepts(r#"{"job_id":42}"#, &["42"]);
        accepts(r#"{"job_ids":["b","a","b"]}"#, &["a", "b"]);
        accepts(
            r#"{"job_id":"9F86D081-884C-4D65-9A2F-EAA0C55AD015"}"#,
            &["9f86d081-884c-4d65-9a2f-eaa0c55ad015"],
        );
        assert_eq!(parse(r#"{"all":true}"#).unwrap(), PurgeRequest::All);
        assert_eq!(parse(r#"{"all":true,"refresh":false}"#).unwrap(), PurgeRequest::All);
    }

    #[test]
    fn jobs_may_be_read_anew_and_all_of_them_may_not() {
        let x = || vec![JobId::new("x", 0)];
        let parse = |body: &str| super::tests::parse(body).unwrap();
        assert_eq!(parse(r#"{"job_id":"x","refresh":true}"#), PurgeRequest::JobsWithRefresh(x()));
        assert_eq!(
            parse(r#"{"job_ids":["x"],"refresh":true}"#),
            PurgeRequest::JobsWithRefresh(x())
        );
        assert_eq!(parse(r#"{"job_id":"x","refresh":false}"#), PurgeRequest::Jobs(x()));
        refuses(r#"{"all":true,"refresh":true}"#, "not with all");
        refuses(r#"{"job_id":"x","refresh":1}"#, "a purge is");
        refuses(r#"{"refresh":true}"#, "exactly one");
    }

    /// 32 digits can be read as a number and as a UUID. The limit counts the jobs that the store is
    /// asked to delete.
    #[test]
    fn a_purge_of_more_jobs_than_it_has_ids_is_refused_past_the_limit() {
        let ids = |count: usize| {
            let ids: Vec<_> =
                (0..count).map(|id| format!("0{:031}", 10_usize.pow(18) + id)).collect();
            json!({ "job_ids": ids }).to_string()
        };
        assert!(
            matches!(parse(&ids(5_000)), Ok(PurgeRequest::Jobs(jobs)) if jobs.len() == MAX_IDS)
        );
        refuses(&ids(5_001), "10002 jobs");
    }

    #[test]
    fn a_malformed_purge_is_told_what_is_wrong() {
        refuses("", "a purge is");
        refuses("[]", "a purge is");
        refuses(r#"{"job":"x"}"#, "unknown field `job`");
        refuses(r#"{"job_id":1.5}"#, "an id is a string or a whole number");
        refuses(r#"{"job_id":"x","all":true}"#, "exactly one");
        refuses(r#"{"all":false}"#, "exactly one");
        refuses("{}", "exactly one");
        refuses(r#"{"job_ids":[]}"#, "0 ids");
        refuses(r#"{"job_id":"a b"}"#, "\"a b\" is not a job id");
        refuses(r#"{"job_id":".."}"#, "is not a job id");
    }
}
