//! HTTP/1.1 to the upstream.

use hyper::client::conn::http1::Builder;

use crate::config::{self, HEADERS_ON_STACK};

/// Configures HTTP/1 with the same limits for responses as for requests. Harmless defects of a
/// response are repaired: "A proxy [..] MUST remove any such whitespace" between a name and its
/// colon (RFC 9112 5.1), and may "replace each received obs-fold with one or more SP octets" (5.2).
pub(super) fn builder(limits: &config::ServerConfig) -> Builder {
    let mut http1 = Builder::new();
    http1
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(limits.buffer())
        // Field names reach the client in the upstream's spelling. Requests carry their own
        // spelling.
        .preserve_header_case(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    if limits.max_headers > HEADERS_ON_STACK {
        http1.max_headers(limits.max_headers);
    }
    http1
}
