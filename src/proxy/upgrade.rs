//! Upgrades: after the upstream's 101 two byte streams are tied together.

use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    http::{
        HeaderMap, HeaderValue,
        header::{CONNECTION, TE, UPGRADE},
    },
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::headers;
use crate::upstream::Place;

/// A client's wish to switch protocols.
#[derive(Debug)]
pub struct Upgrade {
    client: OnUpgrade,
    protocol: HeaderValue,
}

impl Upgrade {
    /// The upgrade that a request asks for, if it asks for one that we pass on.
    pub fn of(request: &mut Request<Incoming>) -> Option<Self> {
        // "A server MUST ignore an Upgrade header field that is received in an HTTP/1.0 request."
        // RFC 9110 7.8
        if request.version() != Version::HTTP_11 || !headers::is_upgrade(request.headers()) {
            return None;
        }
        let protocol = request.headers().get(UPGRADE)?.clone();
        Some(Self { client: hyper::upgrade::on(request), protocol })
    }

    /// Asks the upstream the same; the hop-by-hop headers have been stripped.
    pub fn ask(&self, headers: &mut HeaderMap) {
        offer(headers, self.protocol.clone());
    }

    /// Ties the two ends together once both have switched. The upstream connection keeps its place
    /// until they part.
    pub fn tie<B>(self, response: &mut Response<B>, place: Option<Place>, tasks: &TaskTracker) {
        let upstream = hyper::upgrade::on(response);
        tasks.spawn(async move {
            let _place = place;
            let (client, upstream) = match tokio::try_join!(self.client, upstream) {
                Ok(ends) => ends,
                Err(error) => return debug!(%error, "an upgrade failed"),
            };
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            if let Err(error) = copy_bidirectional(&mut client, &mut upstream).await {
                debug!(%error, "an upgraded connection broke");
            }
        });
    }
}

/// What of a response's switch the client has to see.
pub fn keep_switch<B>(response: &Response<B>) -> Option<HeaderValue> {
    (response.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| response.headers().get(UPGRADE).cloned())
        .flatten()
}

/// Writes the headers of an upgrade.
pub fn offer(headers: &mut HeaderMap, protocol: HeaderValue) {
    let connection = if headers.contains_key(TE) { "upgrade, te" } else { "upgrade" };
    headers.insert(CONNECTION, HeaderValue::from_static(connection));
    headers.insert(UPGRADE, protocol);
}
