//! The configured parts of the reads: their headers, and the ids in a file or a list. `probe_file` and
//! `probe_list` check the sources for `jobcache check`, which warms nothing.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use hyper::{
    HeaderMap, Uri,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::{
    cache::Cache,
    config::{self, Config, StoreUrl},
    observe::metrics::Registry,
    proxy::{JobListError, Proxy},
    run_error::RunError,
    semantics::{job_id::JobId, json_pointer::JsonPointer, route::Routes},
    upstream::Upstream,
};

/// Maximum size of a list or file in bytes. A parsed document takes many times its size in memory.
const MAX_LIST: usize = 4 << 20;

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Reason why the list gave no jobs.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    /// The list could not be fetched.
    #[error(transparent)]
    Unlisted(#[from] JobListError),
    /// The answer is not JSON.
    #[error("the answer is not JSON: {0}; check warm.list and Accept in warm.headers")]
    NotJson(#[from] serde_json::Error),
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopped,
}

impl ListError {
    /// Whether the upstream gave an answer, other than a server error.
    pub(super) fn is_an_answer(&self) -> bool {
        match self {
            Self::Unlisted(JobListError::Status(status)) => !status.is_server_error(),
            Self::Unlisted(JobListError::Upstream(_) | JobListError::Broken(_)) | Self::Stopped => {
                false
            }
            Self::Unlisted(JobListError::Encoded | JobListError::TooLarge(_))
            | Self::NotJson(_) => true,
        }
    }
}

/// Fetches and parses the list once.
pub(super) async fn listed(
    proxy: &Proxy,
    target: &Uri,
    headers: &HeaderMap,
    config: &config::WarmConfig,
) -> Result<FoundIds, ListError> {
    let body = proxy.prefetch_list(target, headers, MAX_LIST).await?;
    let pointer = config.pointer.clone();
    let routes = Arc::clone(proxy.routes());
    let read = spawn_blocking(move || in_json(&body, &pointer, &routes)).await;
    Ok(read.map_err(|_| ListError::Stopped)??)
}

/// Headers of the reads. Behind our TLS the request of a client is forwarded with
/// `X-Forwarded-Proto: https`, and so are these.
pub(super) fn headers(config: &Config) -> HeaderMap {
    let warm = &config.warm;
    let given = warm.headers.iter().map(|(name, value)| (name.clone(), value));
    let credential = warm.authorization.iter().map(|value| (AUTHORIZATION, value));
    let mut headers = HeaderMap::new();
    for (name, value) in given.chain(credential) {
        // The configuration has validated the values.
        if let Ok(mut value) = HeaderValue::from_str(value.expose()) {
            value.set_sensitive(true);
            headers.append(name, value);
        }
    }
    if config.tls.identity().is_some() {
        headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("https"));
    }
    headers
}

/// Characters of an invalid id that are shown in a message.
const MAX_SHOWN: usize = 80;

/// The ids that were found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FoundIds {
    pub(super) jobs: Vec<JobId>,
    /// Number of values that are not ids.
    pub(super) unreadable: usize,
    /// The first of these values, with its line in a file.
    pub(super) first_unreadable: Option<String>,
}

impl FoundIds {
    /// Adds the most literal reading of an id, because that one is read from the upstream.
    fn take(&mut self, spellings: Vec<JobId>, place: impl FnOnce() -> String) {
        if let Some(job) = spellings.into_iter().next() {
            self.jobs.push(job);
        } else {
            self.unreadable += 1;
            self.first_unreadable.get_or_insert_with(place);
        }
    }
}

/// Reads a file of at most [`MAX_LIST`] bytes: one id per line, and comments that start with `#`.
pub(super) fn in_file(path: &Path, routes: &Routes) -> io::Result<FoundIds> {
    let mut text = String::new();
    File::open(path)?.take(MAX_LIST as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_LIST {
        let error = format!("the file is larger than {MAX_LIST} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
    }
    Ok(in_lines(&text, routes))
}

fn in_lines(text: &str, routes: &Routes) -> FoundIds {
    let mut found = FoundIds::default();
    // An id does not contain `#`.
    let ids = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    for (line, id) in (1..).zip(ids).filter(|(_, id)| !id.is_empty()) {
        found.take(routes.jobs_by_key(id), || format!("line {line}: {:?}", shortened(id)));
    }
    found
}

/// Reads a document in which `pointer` leads to the ids: strings, whole numbers, or arrays of them.
fn in_json(
    document: &[u8],
    pointer: &JsonPointer,
    routes: &Routes,
) -> serde_json::Result<FoundIds> {
    let document: Value = serde_json::from_slice(document)?;
    let mut found = FoundIds::default();
    let mut take = |id: &Value| {
        let jobs = match id {
            Value::String(text) => routes.jobs_by_key(text),
            Value::Number(number) => routes.jobs_by_key(&number.to_string()),
            _ => Vec::new(),
        };
        found.take(jobs, || shortened(&id.to_string()));
    };
    pointer.find(&document, &mut |value| match value {
        Value::Array(ids) => ids.iter().for_each(&mut take),
        id => take(id),
    });
    Ok(found)
}

/// Shortens a value for a message.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}

/// Describes the ids in a file. The error says what is wrong with it.
pub fn probe_file(path: &Path, config: &Config) -> Result<String, String> {
    let routes = Routes::new(&config.api).map_err(|error| error.to_string())?;
    let found = in_file(path, &routes).map_err(|error| format!("cannot be read: {error}"))?;
    describe(&found, "use a file with one id per line")
}

/// Describes the ids in the list, which is fetched from the upstream as at startup.
pub async fn probe_list(config: &Config) -> Result<String, String> {
    let Some(target) = &config.warm.list else { return Ok("is not set".to_owned()) };
    let proxy = probe_proxy(config).map_err(|error| error.to_string())?;
    let found = listed(&proxy, target, &headers(config), &config.warm).await;
    let remedy = format!("warm.pointer = \"{}\" must lead to ids", config.warm.pointer);
    describe(&found.map_err(|error| error.to_string())?, &remedy)
}

fn describe(found: &FoundIds, remedy: &str) -> Result<String, String> {
    let jobs = found.jobs.len();
    match &found.first_unreadable {
        Some(first) => {
            let count = found.unreadable;
            Err(format!("has {jobs} ids and {count} invalid ones ({first}); {remedy}"))
        }
        None if jobs == 0 => Err(format!("has no ids; {remedy}")),
        None => Ok(format!("has {jobs} ids")),
    }
}

/// Builds a proxy that asks the upstream and stores nothing.
fn probe_proxy(config: &Config) -> Result<Proxy, RunError> {
    let mut config = config.clone();
    config.store.url = StoreUrl::Memory;
    let registry = &mut Registry::default();
    let routes = Arc::new(Routes::new(&config.api)?);
    let upstream = Upstream::new(&config, registry, Arc::default())?;
    let cache = Arc::new(Cache::open(&config, registry, Arc::default())?);
    Ok(Proxy::new(routes, cache, upstream, &config, registry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_says_what_is_configured_and_shows_no_secret() {
        let mut config = Config::default();
        config.warm.authorization = Some(config::Secret::new("Bearer swordfish"));
        config.warm.headers = vec![(hyper::header::ACCEPT, config::Secret::new("a/b"))];
        let headers = headers(&config);
        assert_eq!(headers[AUTHORIZATION], "Bearer swordfish");
        assert_eq!(headers[hyper::header::ACCEPT], "a/b");
        assert!(!format!("{headers:?}").contains("swordfish"));
        assert!(!headers.contains_key(FORWARDED_PROTO));
        config.tls.cert = Some("cert.pem".into());
        assert_eq!(super::headers(&config)[FORWARDED_PROTO], "https");
    }

    fn routes() -> Routes {
        Routes::parse(&["/jobs/{id}"]).unwrap()
    }

    #[track_caller]
    fn check(found: &FoundIds, jobs: &[&str], unreadable: usize) {
        assert_eq!(found.jobs.iter().map(JobId::as_str).collect::<Vec<_>>(), jobs);
        assert_eq!(found.unreadable, unreadable);
    }

    #[test]
    fn what_is_no_id_is_told_with_its_place() {
        let found = in_lines("# active\na\nb c\n..\n", &routes());
        assert_eq!(found.first_unreadable.as_deref(), Some("line 3: \"b c\""));
        let found =
            in_json(br#"["a", null, "b c"]"#, &JsonPointer::parse("/*").unwrap(), &routes())
                .unwrap();
        assert_eq!(found.first_unreadable.as_deref(), Some("null"));
    }

    #[test]
    fn a_file_has_an_id_a_line_and_comments() {
        check(
            &in_lines("# active\n\n a \r\nb # the second\n007\n", &routes()),
            &["a", "b", "7"],
            0,
        );
        check(&in_lines("a b\n..\nc", &routes()), &["c"], 2);
    }

    #[test]
    fn a_list_has_ids_where_the_pointer_leads() {
        let json = br#"{"items":[{"id":"a"},{"id":7},{"id":null},{"name":"x"}],"ids":["b",8]}"#;
        let found =
            |pointer| in_json(json, &JsonPointer::parse(pointer).unwrap(), &routes()).unwrap();
        check(&found("/items/*/id"), &["a", "7"], 1);
        check(&found("/ids"), &["b", "8"], 0);
        check(&found("/ids/*"), &["b", "8"], 0);
        check(&found("/nowhere"), &[], 0);
        assert!(in_json(b"<html>", &JsonPointer::parse("").unwrap(), &routes()).is_err());
    }
}
