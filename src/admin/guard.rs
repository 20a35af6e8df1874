//! Who calls the admin listener, and whether he knows the secret, where there is one.

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

/// Bytes of a delivery's id that are kept.
const MAX_CALLER: usize = 64;
/// Seconds past which a skew is warned of: no network and no queue of a healthy sender takes so long,
/// and it leaves time to mend a clock before its deliveries are refused.
const SKEW_TO_TELL: u64 = 60;
/// Seconds of the largest skew that is told apart: a day.
const MAX_SKEW: u64 = 86_400;

/// Who calls, as events tell: the id of the webhook's delivery and the address that it came from.
#[derive(Clone, Debug)]
pub struct Caller {
    by: Arc<str>,
    pub(super) client: Peer,
}

impl Caller {
    /// For the events that it causes.
    pub fn by(self) -> By {
        Some(self.by)
    }

    /// Who made a request.
    pub fn of<B>(request: &Request<B>, client: Peer) -> Self {
        let from = client.ip.map_or_else(|| "a unix socket".to_owned(), |ip| ip.to_string());
        let id = request.headers().get(WEBHOOK_ID).and_then(|id| id.to_str().ok());
        // Whoever may purge may say what he likes here, but not more than is kept.
        let id = id.filter(|id| id.len() <= MAX_CALLER && id.bytes().all(|b| b.is_ascii_graphic()));
        let by = id.map_or_else(|| from.clone(), |id| format!("webhook {id} from {from}"));
        Self { by: by.into(), client }
    }
}

/// What a guard remembers, and the next one after a reload.
#[derive(Default)]
pub struct Watch {
    skews: Throttle,
    failures: TurnsByAddress,
    /// Who hashes a large body: one at a time.
    hashing: Arc<Mutex<()>>,
    /// What each address holds of the room for bodies.
    pub(super) shares: Arc<Shares>,
    /// Of purges.
    pub(super) purges: Turns,
    /// Warnings of refreshes that nobody may have any use of.
    pub(super) bare_refreshes: Throttle,
}

/// Whose the head of a call is, as far as it tells.
#[derive(Debug)]
pub(super) enum Claim {
    /// There is no secret.
    Anybody,
    /// One who shows it.
    Known,
    /// One who knows it, if this is a signature of the body.
    Signed(Signed),
}

/// Lets in who knows one of the secrets; anybody, where there is none.
pub(super) struct Guard {
    secrets: Arc<[Secret]>,
    /// In a minute, from one address.
    max_failures: usize,
    /// Whether other secrets are in force by now.
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
        let (secrets, max_failures) = (&config.webhook_secret[..], config.webhook_max_failures);
        let is_over = Arc::new(watch::Sender::new(false));
        Self { secrets: secrets.into(), max_failures, is_over, watch, metrics }
    }

    /// The one that follows this one. What goes on because a secret was shown ends with the secrets.
    pub(super) fn revised(&self, config: &Config, lasting: &Lasting) -> Self {
        let mut next = Self::new(config, lasting);
        if next.secrets == self.secrets {
            next.is_over = Arc::clone(&self.is_over);
        } else {
            self.is_over.send_replace(true);
        }
        next
    }

    /// Turns true once other secrets are in force.
    pub(super) fn is_over(&self) -> watch::Receiver<bool> {
        self.is_over.subscribe()
    }

    /// Whether anybody may call.
    pub(super) fn is_open(&self) -> bool {
        self.secrets.is_empty()
    }

    /// What is answered to who does not show a secret itself. A signature does not open: it does not say
    /// what page it is for.
    ///
    /// Past so many of them a minute an address is told to wait. Who knows one is never kept out for what
    /// others behind his address do: he is not asked how often he has called.
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

    /// Judges a call whose body says what is to be done, by its head: what cannot be right is refused
    /// before the body is read. A right signature is enough beside a wrong token.
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
        let mend = "; send `Authorization: Bearer <secret>` or a Standard Webhooks signature";
        Err(Box::new(self.refuse(unproven, mend, client)))
    }

    /// What is answered if a signature is not one of this body.
    pub(super) async fn disproves(
        &self,
        signed: Signed,
        body: &Bytes,
        client: Peer,
    ) -> Option<Reply> {
        let judged = if body.len() > LARGE {
            self.aside(signed, body.clone()).await
        } else {
            signed.check(&self.secrets, body, clock::now())
        };
        match judged {
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

    /// Hashes off the threads that serve, and not on as many others as there are calls. The turn goes
    /// with the work, which nobody can call off.
    async fn aside(&self, signed: Signed, body: Bytes) -> Result<Proof, Unproven> {
        let turn = Arc::clone(&self.watch.hashing).lock_owned().await;
        let secrets = Arc::clone(&self.secrets);
        let hash = move || {
            let _turn = turn;
            signed.check(&secrets, &body, clock::now())
        };
        // It does not panic; if it did, nothing would be proven.
        spawn_blocking(hash).await.unwrap_or(Err(Unproven::Signature))
    }

    /// Of a call that is given up before it can be judged: it counts as one that proves nothing.
    pub(super) fn failed(&self, client: Peer) -> Result<(), Duration> {
        self.watch.failures.take(client.ip, self.pace(), Instant::now())
    }

    /// How long a caller has to wait before another failure of his is answered.
    pub(super) fn waits(&self, client: Peer) -> Option<Duration> {
        self.watch.failures.wait(client.ip, self.pace(), Instant::now())
    }

    /// What is answered to who has to wait and sends a large body, which is not read.
    pub(super) fn puts_off(&self, wait: Duration) -> Reply {
        self.metrics.limits.hit(Limit::WebhookFailures);
        self.metrics.webhook.refused(Refused::Rate);
        too_many("the body is a large one", wait)
    }

    fn pace(&self) -> Pace {
        Pace::new(self.max_failures, Duration::from_mins(1))
    }

    /// What was signed long ago can be sent for ever. So its skew is noted as often as it is answered.
    fn refuse(&self, unproven: Unproven, mend: &str, client: Peer) -> Reply {
        self.metrics.webhook.refused(counted(unproven));
        if let Err(wait) = self.failed(client) {
            self.metrics.limits.hit(Limit::WebhookFailures);
            return too_many(&unproven.to_string(), wait);
        }
        if let Unproven::Time(skew) = unproven {
            self.note(skew);
        }
        unauthorized(unproven, mend)
    }

    /// Of a message that was rightly signed, taken or not.
    fn note(&self, skew: Skew) {
        let seconds = skew.seconds();
        // The sum of the metric is not to be made of a few that are years off.
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
                "the time of a signature is off, and past the limit such calls are refused; if it is \
                 ahead, the sender's clock is ahead of ours; if it is old, the sender's clock is \
                 behind, or it has signed long before it has sent"
            );
        }
    }
}

/// The word for metrics.
fn counted(unproven: Unproven) -> Refused {
    match unproven {
        Unproven::Unsigned => Refused::Unsigned,
        Unproven::Bearer | Unproven::Several => Refused::Bearer,
        Unproven::Missing(_) | Unproven::Malformed(_) => Refused::Header,
        Unproven::Signature | Unproven::Elsewhere => Refused::Signature,
        Unproven::Time(_) | Unproven::Stale(_) => Refused::Timestamp,
    }
}

fn unauthorized(unproven: Unproven, mend: &str) -> Reply {
    let mend = match unproven {
        Unproven::Unsigned | Unproven::Elsewhere => mend,
        _ => "",
    };
    let error = format!("{unproven}{mend}");
    challenging(reply(StatusCode::UNAUTHORIZED, &json!({ "error": error })))
}

/// By this field the status page knows that its secret is wrong, whatever the status.
fn challenging(mut response: Reply) -> Reply {
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn too_many(what: &str, wait: Duration) -> Reply {
    let error = format!(
        "{what}; and too many calls from here showed no webhook secret of late (webhook_max_failures): \
         wait, or show one as a bearer token, or sign a small body, which is taken at any time"
    );
    challenging(later(StatusCode::TOO_MANY_REQUESTS, &json!({ "error": error }), wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_told_by_its_delivery_and_its_address() {
        let check = |id: &str, want: &str| {
            let request = Request::builder().header(WEBHOOK_ID, id).body(()).unwrap();
            let ip = Some([192, 0, 2, 7].into());
            let client = Peer { ip, is_tls: false, is_trusted: false };
            assert_eq!(Caller::of(&request, client).by().as_deref(), Some(want));
        };
        check("msg_1", "webhook msg_1 from 192.0.2.7");
        check("two words", "192.0.2.7");
        check(&"x".repeat(MAX_CALLER + 1), "192.0.2.7");
    }
}
