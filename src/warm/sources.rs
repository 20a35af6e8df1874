//! What the configuration says about the reads: their headers, and the list of jobs.

use hyper::{
    HeaderMap, Uri,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use tokio::task::spawn_blocking;

use super::ids;
use crate::{
    config::{self, Config},
    proxy::{JobListError, Proxy},
};

/// Maximum size of a list or file in bytes. A parsed document takes many times its size in memory.
pub(super) const MAX_LIST: usize = 4 << 20;

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
) -> Result<ids::FoundIds, ListError> {
    let body = proxy.prefetch_list(target, headers, MAX_LIST).await?;
    let pointer = config.pointer.clone();
    let read = spawn_blocking(move || ids::in_json(&body, &pointer)).await;
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
}
