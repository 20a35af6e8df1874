//! Two clients with a credential each, one of whom the upstream may come to turn away.

use hyper::{HeaderMap, Method, Response, StatusCode};

use super::{
    Body, Reply, Setup,
    upstream::{json, version},
};

pub(crate) const ALICE: &str = "Bearer alice-0123456789";
pub(crate) const BOB: &str = "Bearer bob-9876543210";

/// Asks for the job `x` as one of them.
pub(crate) async fn get(setup: &Setup, who: &str) -> Reply {
    setup.sidecar.client.request(Method::GET, "/jobs/x").header("authorization", who).send().await
}

/// The same bytes for all, and Bob is turned away.
pub(crate) fn not_to_bob(headers: &HeaderMap) -> Response<Body> {
    match headers.get("authorization") {
        Some(who) if who == BOB => json(StatusCode::FORBIDDEN, "{}"),
        _ => json(StatusCode::OK, version("x", 0)),
    }
}
