//! Who calls the admin listener, and whether he knows the secret.

use std::sync::Arc;

use hyper::{
    HeaderMap, Request, StatusCode,
    http::{
        HeaderValue,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
};
use serde_json::json;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_TIMESTAMP};
use subtle::ConstantTimeEq;

use super::page::{Reply, reply};
use crate::{config::Secret, events::By, transport::Peer};

/// Bytes of a delivery's id that are kept.
const MAX_CALLER: usize = 64;

/// Who calls, as events tell: the id of the webhook's delivery and the address that it came from.
#[derive(Clone, Debug)]
pub struct Caller(Arc<str>);

impl Caller {
    /// For the events that it causes.
    pub fn by(self) -> By {
        Some(self.0)
    }

    /// Who made a request.
    pub fn of<B>(request: &Request<B>, client: Peer) -> Self {
        let from = client.ip.map_or_else(|| "a unix socket".to_owned(), |ip| ip.to_string());
        let id = request.headers().get(HEADER_WEBHOOK_ID).and_then(|id| id.to_str().ok());
        // Whoever may purge may say what he likes here, but not more than is kept.
        let id = id.filter(|id| id.len() <= MAX_CALLER && id.bytes().all(|b| b.is_ascii_graphic()));
        let by = id.map_or_else(|| from.clone(), |id| format!("webhook {id} from {from}"));
        Self(by.into())
    }
}

/// Whether a caller knows the secret, where there is one: by a bearer token, or by a Standard
/// Webhooks signature of the body (of no bytes, where the job is named by the path).
pub fn authenticate(
    secret: Option<&Secret>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(), String> {
    let Some(secret) = secret else { return Ok(()) };
    if let Some(token) = bearer(headers) {
        return if token.ct_eq(secret.expose().as_bytes()).into() {
            Ok(())
        } else {
            Err("the bearer token is not the webhook secret".into())
        };
    }
    // The verifier subtracts the time from now, unchecked.
    let time = headers.get(HEADER_WEBHOOK_TIMESTAMP).and_then(|time| time.to_str().ok());
    if time.and_then(|time| time.parse::<i64>().ok()).is_some_and(i64::is_negative) {
        return Err("webhook-timestamp is before 1970".into());
    }
    secret.webhook()?.verify(body, headers).map_err(|error| error.to_string())
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

pub(super) fn unauthorized(reason: &str) -> Reply {
    let error =
        format!("{reason}; send `Authorization: Bearer <secret>` or a Standard Webhooks signature");
    let mut response = reply(StatusCode::UNAUTHORIZED, &json!({ "error": error }));
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
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

    #[test]
    fn a_signature_of_an_impossible_time_is_refused() {
        let secret = Secret::new("0123456789abcdef");
        for timestamp in [i64::MIN, i64::MAX] {
            let signature = secret.webhook().unwrap().sign("a", timestamp, b"{}").unwrap();
            let timestamp = timestamp.to_string();
            let mut headers = HeaderMap::new();
            for (name, value) in [("id", "a"), ("timestamp", &timestamp), ("signature", &signature)]
            {
                let name: hyper::header::HeaderName = format!("webhook-{name}").parse().unwrap();
                headers.insert(name, value.parse().unwrap());
            }
            assert!(authenticate(Some(&secret), &headers, b"{}").is_err(), "{timestamp}");
        }
    }
}
