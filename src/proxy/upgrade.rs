//! Protocol upgrades: joins two byte streams after the upstream's 101.

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

use crate::{semantics::headers, upstream::ConnectionPermit};

/// A client's request to switch protocols.
#[derive(Debug)]
pub(super) struct Upgrade {
    client: OnUpgrade,
    protocols: HeaderValue,
}

impl Upgrade {
    /// Returns the upgrade that a request asks for, if it is one that we pass on.
    pub(super) fn of(request: &mut Request<Incoming>) -> Option<Self> {
        // "A server MUST ignore an Upgrade header field that is received in an HTTP/1.0 request."
        // RFC 9110 7.8
        if request.version() != Version::HTTP_11 {
            return None;
        }
        let protocols = headers::offered_protocols(request.headers())?;
        Some(Self { client: hyper::upgrade::on(request), protocols })
    }

    /// Adds the upgrade to a request for the upstream, after its hop-by-hop fields were stripped.
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        set_upgrade(headers, self.protocols.clone());
    }

    /// Returns whether a 101 switches to a protocol that was forwarded.
    pub(super) fn admits<B>(&self, response: &Response<B>) -> bool {
        let protocol = switched_protocol(response);
        protocol.is_some_and(|protocol| headers::is_offered(&self.protocols, &protocol))
    }

    /// Copies bytes between the two ends once both have switched. The upstream connection keeps its
    /// permit until the end of the copy.
    pub(super) fn spawn_copy<B>(
        self,
        response: &mut Response<B>,
        permit: Option<ConnectionPermit>,
        tasks: &TaskTracker,
    ) {
        let upstream = hyper::upgrade::on(response);
        tasks.spawn(async move {
            let _permit = permit;
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

/// Returns the protocol that a 101 switches to, which the client has to see.
pub(super) fn switched_protocol<B>(response: &Response<B>) -> Option<HeaderValue> {
    (response.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| response.headers().get(UPGRADE).cloned())
        .flatten()
}

/// Sets the header fields of an upgrade.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    let connection = if headers.contains_key(TE) { "upgrade, te" } else { "upgrade" };
    headers.insert(CONNECTION, HeaderValue::from_static(connection));
    headers.insert(UPGRADE, protocol);
}
