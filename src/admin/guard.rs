//! Authorization of calls to the admin listener by the webhook secret, if one is configured.
//!
//! Failed calls are rate limited per address. A call with a valid secret is never rate limited
//! here, so that other clients behind the same address cannot lock it out.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Request, StatusCode,
    http::{HeaderValue, header::WWW_AUTHENTICATE},
};
use serde_json::json;
use tokio::{
    sync::{Mutex, watch},
    task::spawn_blocking,
};
use tracing::warn;

use super::{
    Lasting,
    pace::{Pace, Turns, TurnsByAddress},
    page::{Reply, later, reply},
    proof::{self, LARGE, Proof, Signed, Skew, TOLERANCE, Unproven, WEBHOOK_ID},
    upload::Shares,
};
use crate::{
    clock,
    config::{Config, Secret},
    events::By,
    metrics::{Limit, Metrics, Refused},
    throttle::Throttle,
    transport::Peer,
};

/// Longest `webhook-id`, in bytes, that is kept for events.
const MAX_CALLER: usize = 64;
/// Clock skew in seconds above which a warning is logged. No network and no queue of a healthy
/// sender takes so long, and it leaves time to set the clock before deliveries are refused.
const SKEW_TO_TELL: u64 = 60;
/// Largest skew in seconds that the metric records: one day.
const MAX_SKEW: u64 = 86_400;

/// The caller as events name it: the `webhook-id` of the delivery and the client's address.
#[derive(Clone, Debug)]
pub struct Caller {
    by: Arc<str>,
    pub(super) client: Peer,
}

impl Caller {
    /// Returns the text for the events that this caller causes.
    pub fn by(self) -> By {
        Some(self.by)
    }

    /// Reads the caller from a request.
    pub fn of<B>(request: &Request<B>, client: Peer) -> Self {
        let from = client.ip.map_or_else(|| "a unix socket".to_owned(), |ip| ip.to_string());
        let id = request.headers().get(WEBHOOK_ID).and_then(|id| id.to_str().ok());
        // The id is free text of the sender. Ids that are long or not printable are left out.
        let id = id.filter(|id| id.len() <= MAX_CALLER && id.bytes().all(|b| b.is_ascii_graphic()));
        let by = id.map_or_else(|| from.clone(), |id| format!("webhook {id} from {from}"));
        Self { by: by.into(), client }
    }
}

/// State of the authorization that survives a reload.
#[derive(Default)]
pub struct Watch {
    skews: Throttle,
    failures: TurnsByAddress,
    /// Held while a large body is hashed, so that only one is hashed at a time.
    hashing: Arc<Mutex<()>>,
    /// Memory that the bodies of each address use.
    pub(super) shares: Arc<Shares>,
    /// Rate of all purges.
    pub(super) purges: Turns,
    /// Warnings of refreshes without `warm.headers`, whose entries may match no client.
    pub(super) bare_refreshes: Throttle,
}

/// Authorization state of a call whose head has been read and whose body has not.
#[derive(Debug)]
pub(super) enum Claim {
    /// No secret is configured.
    Anybody,
    /// The bearer token is a valid secret.
    Known,
    /// There is a signature, which has to be checked against the body.
    Signed(Signed),
}

/// Admits calls that prove one of the secrets, or all calls if no secret is configured.
pub(super) struct Guard {
    secrets: Arc<[Secret]>,
    /// Failed calls per minute and address.
    max_failures: usize,
    /// True once a reload has replaced the secrets.
    is_over: Arc<watch::Sender<bool>>,
    watch: Arc<Watch>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("secrets", &self.secrets.len())
            .field("max_failures", &self.max_failures)
            .finish_non_exhaustive()
    }
}

impl Guard {
    pub(super) fn new(config: &Config, lasting: &Lasting) -> Self {
        let Lasting { watch, metrics, .. } = lasting.clone();
        let secrets = &config.webhook_secret[..];
        let max_failures = config.webhook_max_failures;
        let is_over = Arc::new(watch::Sender::new(false));
        Self { secrets: secrets.into(), max_failures, is_over, watch, metrics }
    }

    /// Creates the authorizer of the next configuration. If the secrets changed, the event streams
    /// that were opened with the old ones end.
    pub(super) fn revised(&self, config: &Config, lasting: &Lasting) -> Self {
        let mut next = Self::new(config, lasting);
        if next.secrets == self.secrets {
            next.is_over = Arc::clone(&self.is_over);
        } else {
            self.is_over.send_replace(true);
        }
        next
    }

    /// Turns true once a reload has replaced the secrets.
    pub(super) fn is_over(&self) -> watch::Receiver<bool> {
        self.is_over.subscribe()
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
    pub(super) fn refuses(&self, headers: &HeaderMap, client: Peer) -> Option<Reply> {
        if self.is_open() {
            return None;
        }
        let unproven = match proof::token(&self.secrets, headers) {
            Ok(proof) => {
                self.metrics.webhook.accepted(proof.secret);
                return None;
            }
            Err(Unproven::Unsigned) if proof::is_signed(headers) => Unproven::Elsewhere,
            Err(unproven) => unproven,
        };
        Some(self.refuse(unproven, "; send `Authorization: Bearer <secret>`", client))
    }

    /// Checks the head of a call whose body says what to do. Calls that cannot be authorized are
    /// refused before the body is read. A valid signature is enough even next to a wrong token.
    pub(super) fn claim(&self, headers: &HeaderMap, client: Peer) -> Result<Claim, Box<Reply>> {
        if self.is_open() {
            return Ok(Claim::Anybody);
        }
        let unproven = match proof::token(&self.secrets, headers) {
            Ok(proof) => {
                self.metrics.webhook.accepted(proof.secret);
                return Ok(Claim::Known);
            }
            Err(malformed @ Unproven::Malformed(_)) => malformed,
            Err(unproven) if !proof::is_signed(headers) => unproven,
            Err(_) => match Signed::read(headers) {
                Ok(signed) => return Ok(Claim::Signed(signed)),
                Err(unproven) => unproven,
            },
        };
        let remedy = "; send `Authorization: Bearer <secret>` or a Standard Webhooks signature";
        Err(Box::new(self.refuse(unproven, remedy, client)))
    }

    /// Checks a signature against the body and refuses the call if it does not match.
    pub(super) async fn disproves(
        &self,
        signed: Signed,
        body: &Bytes,
        client: Peer,
    ) -> Option<Reply> {
        let checked = if body.len() > LARGE {
            self.aside(signed, body.clone()).await
        } else {
            signed.check(&self.secrets, body, clock::now())
        };
        match checked {
            Ok(proof) => {
                self.metrics.webhook.accepted(proof.secret);
                if let Some(skew) = proof.skew {
                    self.note(skew);
                }
                None
            }
            Err(unproven) => Some(self.refuse(unproven, "", client)),
        }
    }

    /// Hashes a large body on a blocking thread, one body at a time. The lock moves into the
    /// closure, because blocking work cannot be cancelled: it has to be held until the hash is
    /// done.
    async fn aside(&self, signed: Signed, body: Bytes) -> Result<Proof, Unproven> {
        let lock = Arc::clone(&self.watch.hashing).lock_owned().await;
        let secrets = Arc::clone(&self.secrets);
        let hash = move || {
            let _lock = lock;
            signed.check(&secrets, &body, clock::now())
        };
        // The closure does not panic. If it did, the call would be refused.
        spawn_blocking(hash).await.unwrap_or(Err(Unproven::Signature))
    }

    /// Counts a failure, also for a call whose body broke off before the check. Returns how long to
    /// wait if the address is over its limit.
    pub(super) fn failed(&self, client: Peer) -> Result<(), Duration> {
        self.watch.failures.take(client.ip, self.pace(), Instant::now())
    }

    /// Returns how long an address has to wait if it is over its limit of failures. Counts nothing.
    pub(super) fn waits(&self, client: Peer) -> Option<Duration> {
        self.watch.failures.wait(client.ip, self.pace(), Instant::now())
    }

    /// Answers 429 to a large body from an address that is over its limit. The body is not read.
    pub(super) fn puts_off(&self, wait: Duration) -> Reply {
        self.metrics.limits.hit(Limit::WebhookFailures);
        self.metrics.webhook.refused(Refused::Rate);
        too_many("the body is large", wait)
    }

    fn pace(&self) -> Pace {
        Pace::new(self.max_failures, Duration::from_mins(1))
    }

    /// Refuses a call and counts the failure. The skew is recorded only if the failure is within
    /// the rate limit, because an old signed message can be replayed for ever.
    fn refuse(&self, unproven: Unproven, remedy: &str, client: Peer) -> Reply {
        self.metrics.webhook.refused(counted(unproven));
        if let Err(wait) = self.failed(client) {
            self.metrics.limits.hit(Limit::WebhookFailures);
            return too_many(&unproven.to_string(), wait);
        }
        if let Unproven::Time(skew) = unproven {
            self.note(skew);
        }
        unauthorized(unproven, remedy)
    }

    /// Records the skew of a message with a valid signature, whether it is accepted or not.
    fn note(&self, skew: Skew) {
        let seconds = skew.seconds();
        // Capped, so that a few messages that are years old do not dominate the sum.
        self.metrics.webhook.skew(seconds.min(MAX_SKEW));
        if seconds <= SKEW_TO_TELL {
            return;
        }
        let signed = skew.which();
        if let Some(suppressed) = self.watch.skews.admit(signed) {
            warn!(
                signed,
                seconds,
                limit = TOLERANCE,
                suppressed,
                "the timestamp of a signature differs from our clock; above the limit such calls are \
                 refused. If it is ahead, the sender's clock is ahead; if it is old, the sender's \
                 clock is behind, or the call was signed long before it was sent"
            );
        }
    }
}

/// Returns the reason under which the refusal is counted.
fn counted(unproven: Unproven) -> Refused {
    match unproven {
        Unproven::Unsigned => Refused::Unsigned,
        Unproven::Bearer | Unproven::Several => Refused::Bearer,
        Unproven::Missing(_) | Unproven::Malformed(_) => Refused::Header,
        Unproven::Signature | Unproven::Elsewhere => Refused::Signature,
        Unproven::Time(_) | Unproven::Stale(_) => Refused::Timestamp,
    }
}

fn unauthorized(unproven: Unproven, remedy: &str) -> Reply {
    let remedy = match unproven {
        Unproven::Unsigned | Unproven::Elsewhere => remedy,
        _ => "",
    };
    let error = format!("{unproven}{remedy}");
    challenging(reply(StatusCode::UNAUTHORIZED, &json!({ "error": error })))
}

/// Adds `WWW-Authenticate`, by which the status page knows that its secret is wrong (401 and 429).
fn challenging(mut response: Reply) -> Reply {
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn too_many(reason: &str, wait: Duration) -> Reply {
    let error = format!(
        "{reason}; and too many recent calls from this address had no valid webhook secret \
         (webhook_max_failures): wait, or send the secret as a bearer token, or sign a small body; \
         both are accepted at any time"
    );
    challenging(later(StatusCode::TOO_MANY_REQUESTS, &json!({ "error": error }), wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_told_by_its_delivery_and_its_address() {
        let check = |id: &str, expected: &str| {
            let request = Request::builder().header(WEBHOOK_ID, id).body(()).unwrap();
            let ip = Some([192, 0, 2, 7].into());
            let client = Peer { ip, is_tls: false, is_trusted: false };
            assert_eq!(Caller::of(&request, client).by().as_deref(), Some(expected));
        };
        check("msg_1", "webhook msg_1 from 192.0.2.7");
        check("two words", "192.0.2.7");
        check(&"x".repeat(MAX_CALLER + 1), "192.0.2.7");
    }
}
