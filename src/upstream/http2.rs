//! HTTP/2 to the upstream, for gRPC only. Nothing else needs it, and HTTP/1.1 passes more on
//! (upgrades, informational responses) and costs less.

use hyper::{Method, Version, client::conn::http2::Builder, header::CONTENT_TYPE, http::request};
use hyper_util::rt::TokioExecutor;

use crate::config;

/// Configures HTTP/2 with the same limits for responses as for requests.
pub(super) fn builder(limits: &config::ServerConfig) -> Builder<TokioExecutor> {
    let mut http2 = Builder::new(TokioExecutor::new());
    http2.max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
    http2
}

/// Whether a request needs HTTP/2 to the upstream: gRPC is only defined over HTTP/2, and the
/// trailers say how a call has ended. A call is a POST. gRPC-Web (`application/grpc-web`) does not
/// need it: it was made for HTTP/1.1.
pub(super) fn is_needed(head: &request::Parts) -> bool {
    let is_grpc = |value: &[u8]| match value.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    };
    head.version == Version::HTTP_2
        && head.method == Method::POST
        && head.headers.get(CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use hyper::{Request, Version};

    use super::is_needed;

    #[track_caller]
    fn check(version: Version, content_type: &str, want: bool) {
        let request = Request::post("/").version(version).header("content-type", content_type);
        let head = request.body(()).unwrap().into_parts().0;
        assert_eq!(is_needed(&head), want, "{version:?} {content_type}");
    }

    #[test]
    fn grpc_needs_http2() {
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc;a=b"] {
            check(Version::HTTP_2, grpc, true);
            check(Version::HTTP_11, grpc, false);
        }
        for other in ["application/grpc-web", "application/grpc-web+proto", "application/json", ""]
        {
            check(Version::HTTP_2, other, false);
        }
        let read = Request::get("/").version(Version::HTTP_2);
        let read = read.header("content-type", "application/grpc").body(()).unwrap();
        assert!(!is_needed(&read.into_parts().0));
    }
}
