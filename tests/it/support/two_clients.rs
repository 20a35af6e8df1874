//! Two clients with different credentials; the upstream can reject one of them.

use hyper::{HeaderMap, Method, Response, StatusCode};

use super::{
    Body, Reply, Setup,
    upstream::{json, version},
};

pub(crate) const ALICE: &str = "Bearer alice-0123456789";
pub(crate) const BOB: &str = "Bearer bob-9876543210";

/// Reads the job `x` with a credential.
pub(crate) async fn get(setup: &Setup, who: &str) -> Reply {
    setup.sidecar.client.request(Method::GET, "/jobs/x1").header("authorization", who).send().await
}

/// Answers everyone with the same bytes, except Bob, who is rejected.
pub(crate) fn not_to_bob(headers: &HeaderMap) -> Response<Body> {
    match headers.get("authorization") {
        Some(who) if who == BOB => json(StatusCode::FORBIDDEN, "{}"),
        _ => json(StatusCode::OK, version("x1", 0)),
    }
}
