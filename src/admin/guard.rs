//! Who calls the admin listener, and whether he knows the secret, where there is one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    HeaderMap, Request, StatusCode,
    http::{HeaderValue, header::WWW_AUTHENTICATE},
};
use serde_json::json;
use standardwebhooks::HEADER_WEBHOOK_ID;
use tracing::warn;

use super::{
    Lasting,
    pace::{Pace, Turns, TurnsByAddress},
    page::{Reply, later, reply},
    proof::{self, Skew, TOLERANCE, Unproven},
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
        let id = request.headers().get(HEADER_WEBHOOK_ID).and_then(|id| id.to_str().ok());
        // Whoever may purge may say what he likes here, but not more than is kept.
        let id = id.filter(|id| id.len() <= MAX_CALLER && id.bytes().all(|b| b.is_ascii_graphic()));
        let by = id.map_or_else(|| from.clone(), |id| format!("webhook {id} from {from}"));
        Self { by: by.into(), client }
    }
}

/// What a guard remembers, and the next one after a reload.
#[derive(Debug, Default)]
pub struct Watch {
    skews: Throttle,
    failures: TurnsByAddress,
    /// Of purges.
    pub(super) purges: Turns,
    /// Warnings of refreshes that nobody may have any use of.
    pub(super) bare_refreshes: Throttle,
}

/// Lets in who knows one of the secrets; anybody, where there is none.
#[derive(Debug)]
pub(super) struct Guard {
    secrets: Vec<Secret>,
    /// In a minute, from one address.
    max_failures: usize,
    watch: Arc<Watch>,
    metrics: Arc<Metrics>,
}

impl Guard {
    pub(super) fn new(config: &Config, lasting: &Lasting) -> Self {
        let Lasting { watch, metrics, .. } = lasting.clone();
        let (secrets, max_failures) = (config.webhook_secret.clone(), config.webhook_max_failures);
        Self { secrets, max_failures, watch, metrics }
    }

    /// Whether anybody may call.
    pub(super) fn is_open(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Whether a call shows a secret itself, so that its body need not be read to tell. Counts nothing.
    pub(super) fn shows_secret(&self, headers: &HeaderMap) -> bool {
        proof::bearer(headers).is_some()
            && proof::check(&self.secrets, headers, &[], clock::now()).is_ok()
    }

    /// What is answered to who does not know a secret.
    ///
    /// Past so many of them a minute an address is told to wait. Who knows one is never kept out for what
    /// others behind his address do: he is not asked how often he has called.
    pub(super) fn refuses(&self, headers: &HeaderMap, body: &[u8], client: Peer) -> Option<Reply> {
        if self.is_open() {
            return None;
        }
        let unproven = match proof::check(&self.secrets, headers, body, clock::now()) {
            Ok(proof) => {
                self.metrics.webhook.accepted(proof.secret);
                if let Some(skew) = proof.skew {
                    self.note(skew);
                }
                return None;
            }
            Err(unproven) => unproven,
        };
        if let Unproven::Time(skew) = unproven {
            self.note(skew);
        }
        self.metrics.webhook.refused(counted(unproven));
        let pace = Pace::new(self.max_failures, Duration::from_mins(1));
        match self.watch.failures.take(client.ip, pace, Instant::now()) {
            Ok(()) => Some(unauthorized(unproven)),
            Err(wait) => {
                self.metrics.limits.hit(Limit::WebhookFailures);
                Some(too_many(unproven, wait))
            }
        }
    }

    /// Of a message that was rightly signed, taken or not.
    fn note(&self, skew: Skew) {
        let seconds = skew.seconds();
        self.metrics.webhook.skew(seconds);
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
        Unproven::Bearer => Refused::Bearer,
        Unproven::Missing(_) | Unproven::Malformed(_) => Refused::Header,
        Unproven::Signature => Refused::Signature,
        Unproven::Time(_) => Refused::Timestamp,
    }
}

fn unauthorized(unproven: Unproven) -> Reply {
    let mend = match unproven {
        Unproven::Unsigned => {
            "; send `Authorization: Bearer <secret>` or a Standard Webhooks signature"
        }
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

fn too_many(unproven: Unproven, wait: Duration) -> Reply {
    let error = format!(
        "{unproven}; and too many calls from here were like that of late (webhook_max_failures): wait, \
         or call as one who knows a webhook secret, which is taken at any time"
    );
    challenging(later(StatusCode::TOO_MANY_REQUESTS, &json!({ "error": error }), wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_told_by_its_delivery_and_its_address() {
        let check = |id: &str, want: &str| {
            let request = Request::builder().header(HEADER_WEBHOOK_ID, id).body(()).unwrap();
            let ip = Some([192, 0, 2, 7].into());
            let client = Peer { ip, is_tls: false, is_trusted: false };
            assert_eq!(Caller::of(&request, client).by().as_deref(), Some(want));
        };
        check("msg_1", "webhook msg_1 from 192.0.2.7");
        check("two words", "192.0.2.7");
        check(&"x".repeat(MAX_CALLER + 1), "192.0.2.7");
    }
}
