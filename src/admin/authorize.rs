//! Authorization of calls to the admin listener by the webhook secret, if one is configured.
//!
//! Failed calls are rate limited per address. A call with a valid secret is never rate limited
//! here, so that other clients behind the same address cannot lock it out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Request, StatusCode,
    http::{HeaderValue, header::WWW_AUTHENTICATE},
};
use serde_json::json;
use tokio::{sync::watch, task::spawn_blocking};
use tracing::warn;

use super::{
    admin_state::{AdminMetrics, AdminState, WebhookRefusal},
    caller_limits::{CallerLimits, EventRate},
    reply::{Reply, error_reply, retry_later},
    signature::{
        self, AuthError, LARGE_BODY, MAX_CLOCK_SKEW_S, SignedRequest, Skew, VerifiedSecret,
        WEBHOOK_ID,
    },
};
use crate::{
    clock,
    config::{Config, Secret},
    limits::Limit,
    observe::events::Initiator,
    transport::Peer,
};

/// Longest `webhook-id`, in bytes, that is kept for events.
const MAX_WEBHOOK_ID: usize = 64;
/// Clock skew in seconds above which a warning is logged. No network and no queue of a healthy
/// sender takes so long, and it leaves time to set the clock before deliveries are refused.
const WARN_SKEW_S: u64 = 60;
/// Largest skew in seconds that the metric records: one day.
const MAX_SKEW_S: u64 = 86_400;

/// The caller as events name it: the `webhook-id` of the delivery and the client's address.
#[derive(Clone, Debug)]
pub struct AdminCaller {
    by: Arc<str>,
    pub(super) peer: Peer,
}

impl AdminCaller {
    /// Returns the text for the events that this caller causes.
    pub fn by(self) -> Initiator {
        Some(self.by)
    }

    /// Reads the caller from a request.
    pub fn of<B>(request: &Request<B>, peer: Peer) -> Self {
        let from = peer.ip.map_or_else(|| "a unix socket".to_owned(), |ip| ip.to_string());
        let id = request.headers().get(WEBHOOK_ID).and_then(|id| id.to_str().ok());
        // The id is free text of the sender. Ids that are long or not printable are left out.
        let id =
            id.filter(|id| id.len() <= MAX_WEBHOOK_ID && id.bytes().all(|b| b.is_ascii_graphic()));
        let by = id.map_or_else(|| from.clone(), |id| format!("webhook {id} from {from}"));
        Self { by: by.into(), peer }
    }
}

/// Authorization state of a call after its head and before its body.
#[derive(Debug)]
pub(super) enum AuthState {
    /// No secret is configured.
    Open,
    /// The bearer token is a valid secret.
    ValidToken,
    /// There is a signature, which has to be checked against the body.
    Signed(SignedRequest),
}

/// Admits calls that prove one of the secrets, or all calls if no secret is configured.
pub(super) struct Authorizer {
    secrets: Arc<[Secret]>,
    /// Failed calls per minute and address.
    max_failures: usize,
    /// True once a reload has replaced the secrets.
    secrets_replaced: Arc<watch::Sender<bool>>,
    limits: Arc<CallerLimits>,
    metrics: Arc<AdminMetrics>,
}

impl Authorizer {
    pub(super) fn new(config: &Config, state: &AdminState) -> Self {
        let AdminState { caller_limits: limits, metrics, .. } = state.clone();
        let secrets = &config.webhook.secrets[..];
        let max_failures = config.webhook.max_failures;
        let secrets_replaced = Arc::new(watch::Sender::new(false));
        Self { secrets: secrets.into(), max_failures, secrets_replaced, limits, metrics }
    }

    /// Creates the authorizer of the next configuration. If the secrets changed, the event streams
    /// that were opened with the old ones end.
    pub(super) fn reconfigured(&self, config: &Config, state: &AdminState) -> Self {
        let mut next = Self::new(config, state);
        if next.secrets == self.secrets {
            next.secrets_replaced = Arc::clone(&self.secrets_replaced);
        } else {
            self.secrets_replaced.send_replace(true);
        }
        next
    }

    /// Turns true once a reload has replaced the secrets.
    pub(super) fn secrets_replaced(&self) -> watch::Receiver<bool> {
        self.secrets_replaced.subscribe()
    }

    /// Whether no secret is configured.
    pub(super) fn is_open(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Refuses a call without a valid bearer token. A signature is not enough, because it covers
    /// neither method nor path.
    ///
    /// An address with more than `webhook_max_failures` failures a minute gets 429. A valid token
    /// is accepted even then, because it is checked first.
    pub(super) fn reject_without_token(&self, headers: &HeaderMap, client: Peer) -> Option<Reply> {
        if self.is_open() {
            return None;
        }
        let unproven = match self.token_error(headers)? {
            AuthError::NoCredentials if signature::has_signature_header(headers) => {
                AuthError::SignatureNotAccepted
            }
            unproven => unproven,
        };
        Some(self.reject(unproven, "; send `Authorization: Bearer <secret>`", client))
    }

    /// Returns why the bearer token is not valid, or counts it if it is.
    fn token_error(&self, headers: &HeaderMap) -> Option<AuthError> {
        let verified = signature::verify_token(&self.secrets, headers);
        verified.map(|proof| self.metrics.count_accepted(proof.secret)).err()
    }

    /// Checks the head of a call whose body says what to do. Calls that cannot be authorized are
    /// refused before the body is read. A valid signature is enough even next to a wrong token.
    pub(super) fn check_head(
        &self,
        headers: &HeaderMap,
        client: Peer,
    ) -> Result<AuthState, Box<Reply>> {
        if self.is_open() {
            return Ok(AuthState::Open);
        }
        let unproven = match self.token_error(headers) {
            None => return Ok(AuthState::ValidToken),
            Some(malformed @ AuthError::MalformedHeader(_)) => malformed,
            Some(unproven) if !signature::has_signature_header(headers) => unproven,
            Some(_) => match SignedRequest::parse(headers) {
                Ok(signed) => return Ok(AuthState::Signed(signed)),
                Err(unproven) => unproven,
            },
        };
        let remedy = "; send `Authorization: Bearer <secret>` or a Standard Webhooks signature";
        Err(Box::new(self.reject(unproven, remedy, client)))
    }

    /// Checks a signature against the body and refuses the call if it does not match.
    pub(super) async fn reject_bad_signature(
        &self,
        signed: SignedRequest,
        body: &Bytes,
        client: Peer,
    ) -> Option<Reply> {
        let checked = if body.len() > LARGE_BODY {
            self.check_on_blocking_thread(signed, body.clone()).await
        } else {
            signed.verify(&self.secrets, body, clock::now())
        };
        match checked {
            Ok(proof) => {
                self.metrics.count_accepted(proof.secret);
                if let Some(skew) = proof.skew {
                    self.record_skew(skew);
                }
                None
            }
            Err(unproven) => Some(self.reject(unproven, "", client)),
        }
    }

    /// Hashes a large body on a blocking thread, one body at a time. The lock moves into the
    /// closure, because blocking work cannot be cancelled: it has to be held until the hash is
    /// done.
    async fn check_on_blocking_thread(
        &self,
        signed: SignedRequest,
        body: Bytes,
    ) -> Result<VerifiedSecret, AuthError> {
        let lock = Arc::clone(&self.limits.hash_lock).lock_owned().await;
        let secrets = Arc::clone(&self.secrets);
        let hash = move || {
            let _lock = lock;
            signed.verify(&secrets, &body, clock::now())
        };
        // The closure does not panic. If it did, the call would be refused.
        spawn_blocking(hash).await.unwrap_or(Err(AuthError::WrongSignature))
    }

    /// Counts a failure, also for a call whose body broke off before the check. Returns how long to
    /// wait if the address is over its limit.
    pub(super) fn count_failure(&self, client: Peer) -> Result<(), Duration> {
        self.limits.failures.try_acquire(client.ip, self.failure_rate(), Instant::now())
    }

    /// Returns how long an address has to wait if it is over its limit of failures. Counts nothing.
    pub(super) fn failure_wait(&self, client: Peer) -> Option<Duration> {
        self.limits.failures.wait_time(client.ip, self.failure_rate(), Instant::now())
    }

    /// Answers 429 to a large body from an address that is over its limit. The body is not read.
    pub(super) fn reject_large_body(&self, wait: Duration) -> Reply {
        self.metrics.limits.count(Limit::WebhookFailures);
        self.metrics.count_refused(WebhookRefusal::Rate);
        too_many_failures("the body is large", wait)
    }

    fn failure_rate(&self) -> EventRate {
        EventRate::new(self.max_failures, Duration::from_mins(1))
    }

    /// Refuses a call and counts the failure. The skew is recorded only if the failure is within
    /// the rate limit, because an old signed message can be replayed for ever.
    fn reject(&self, unproven: AuthError, remedy: &str, client: Peer) -> Reply {
        self.metrics.count_refused(refused_reason(unproven));
        if let Err(wait) = self.count_failure(client) {
            self.metrics.limits.count(Limit::WebhookFailures);
            return too_many_failures(&unproven.to_string(), wait);
        }
        if let AuthError::WrongTimestamp(skew) = unproven {
            self.record_skew(skew);
        }
        let remedy = match unproven {
            AuthError::NoCredentials | AuthError::SignatureNotAccepted => remedy,
            _ => "",
        };
        let error = format!("{unproven}{remedy}");
        with_challenge(error_reply(StatusCode::UNAUTHORIZED, &error))
    }

    /// Records the skew of a message with a valid signature, whether it is accepted or not.
    fn record_skew(&self, skew: Skew) {
        let seconds = skew.seconds();
        // Capped, so that a few messages that are years old do not dominate the sum.
        self.metrics.record_skew(seconds.min(MAX_SKEW_S));
        if seconds <= WARN_SKEW_S {
            return;
        }
        let signed = skew.direction();
        if let Some(suppressed) = self.limits.skew_warnings.admit(signed) {
            warn!(
                signed,
                seconds,
                limit = MAX_CLOCK_SKEW_S,
                suppressed,
                "the timestamp of a signature differs from our clock; above the limit such calls are \
                 refused. If it is ahead, the sender's clock is ahead; if it is old, the sender's \
                 clock is behind, or the call was signed long before it was sent"
            );
        }
    }
}

/// Returns the reason under which the refusal is counted.
fn refused_reason(unproven: AuthError) -> WebhookRefusal {
    match unproven {
        AuthError::NoCredentials => WebhookRefusal::Unsigned,
        AuthError::WrongToken | AuthError::SeveralTokens => WebhookRefusal::Bearer,
        AuthError::MissingHeader(_) | AuthError::MalformedHeader(_) => WebhookRefusal::Header,
        AuthError::WrongSignature | AuthError::SignatureNotAccepted => WebhookRefusal::Signature,
        AuthError::WrongTimestamp(_) | AuthError::UncheckedTimestamp(_) => {
            WebhookRefusal::Timestamp
        }
    }
}

/// Adds `WWW-Authenticate`, by which the status page knows that its secret is wrong (401 and 429).
fn with_challenge(mut response: Reply) -> Reply {
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn too_many_failures(reason: &str, wait: Duration) -> Reply {
    let error = format!(
        "{reason}; and too many recent calls from this address had no valid webhook secret \
         (webhook_max_failures): wait, or send the secret as a bearer token, or sign a small body; \
         both are accepted at any time"
    );
    with_challenge(retry_later(StatusCode::TOO_MANY_REQUESTS, &json!({ "error": error }), wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_told_by_its_delivery_and_its_address() {
        let check = |id: &str, expected: &str| {
            let request = Request::builder().header(WEBHOOK_ID, id).body(()).unwrap();
            let ip = Some([192, 0, 2, 7].into());
            let client = Peer { ip, is_tls: false, is_trusted: false, connection: None };
            assert_eq!(AdminCaller::of(&request, client).by().as_deref(), Some(expected));
        };
        check("msg_1", "webhook msg_1 from 192.0.2.7");
        check("two words", "192.0.2.7");
        check(&"x".repeat(MAX_WEBHOOK_ID + 1), "192.0.2.7");
    }
}
