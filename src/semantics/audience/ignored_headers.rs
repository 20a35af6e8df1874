//! Request headers that say nothing about the caller, and on which no entry depends.
//!
//! Every other header counts, so a name that is missing here costs hits, and a wrong one shows a job
//! to a stranger. That is why each name stands alone: a pattern such as `x-envoy-*` would also match
//! `x-envoy-downstream-service-cluster`, which names the calling service. The names come from the
//! documentation of browsers, gateways, platforms and tracers.
//!
//! Not here, although they look alike: `X-Requested-With` (frameworks choose a form by it),
//! `X-Forwarded-Host`, `CF-Visitor` and the like (links are made from host and scheme), certificates of
//! clients, `X-Azure-FDID` (proves that the request came through one's own Front Door), and bags of
//! context that may name a user (`baggage`, `Correlation-Context`, `X-Amzn-Request-Context`).

/// The names in lower case, by group.
pub(super) const IGNORED_HEADERS: &[&[&str]] = &[
    NEGOTIATION,
    BROWSERS,
    CACHING,
    CONNECTION,
    BODY,
    CLIENT_ADDRESSES,
    REQUEST_IDS,
    TRACERS,
    PROXIES,
    PLATFORMS,
];

/// Fills do not send it: jobcache itself chooses the coding of an answer.
const NEGOTIATION: &[&str] = &["accept-encoding"];

/// Fetch metadata, client hints, and what else browsers say about themselves. Only browsers may set
/// names that begin with `Sec-`.
const BROWSERS: &[&str] = &[
    "user-agent",
    "referer",
    "dnt",
    "save-data",
    "priority",
    "purpose",
    "x-purpose",
    "x-moz",
    "upgrade-insecure-requests",
    "device-memory",
    "downlink",
    "ect",
    "rtt",
    "sec-gpc",
    "sec-purpose",
    "sec-fetch-dest",
    "sec-fetch-frame-top",
    "sec-fetch-mode",
    "sec-fetch-site",
    "sec-fetch-storage-access",
    "sec-fetch-user",
    "sec-ch-device-memory",
    "sec-ch-downlink",
    "sec-ch-dpr",
    "sec-ch-ect",
    "sec-ch-forced-colors",
    "sec-ch-lang",
    "sec-ch-partitioned-cookies",
    "sec-ch-prefers-color-scheme",
    "sec-ch-prefers-contrast",
    "sec-ch-prefers-reduced-data",
    "sec-ch-prefers-reduced-motion",
    "sec-ch-prefers-reduced-transparency",
    "sec-ch-rtt",
    "sec-ch-save-data",
    "sec-ch-ua",
    "sec-ch-ua-arch",
    "sec-ch-ua-bitness",
    "sec-ch-ua-form-factor",
    "sec-ch-ua-form-factors",
    "sec-ch-ua-full",
    "sec-ch-ua-full-version",
    "sec-ch-ua-full-version-list",
    "sec-ch-ua-high-entropy-values",
    "sec-ch-ua-mobile",
    "sec-ch-ua-model",
    "sec-ch-ua-platform",
    "sec-ch-ua-platform-version",
    "sec-ch-ua-robot",
    "sec-ch-ua-wow64",
    "sec-ch-viewport-height",
    "sec-ch-viewport-width",
    "sec-ch-width",
];

/// Conditions, and what the client says about caches. A lookup obeys them, or the read passes.
const CACHING: &[&str] = &[
    "cache-control",
    "pragma",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
];

/// Fields for one hop. `Proxy-Authorization` is a credential.
const CONNECTION: &[&str] = &[
    "connection",
    "expect",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields about a body. Reads with a body pass.
const BODY: &[&str] = &[
    "content-digest",
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "digest",
    "repr-digest",
];

/// Addresses and ports of clients and proxies, and what is derived from an address or its TLS
/// handshake. `X-Forwarded-Port` is the port that the client connected to, and counts.
const CLIENT_ADDRESSES: &[&str] = &[
    "x-forwarded-for",
    "x-forwarded-for-original",
    "x-forwarded-by",
    "x-forwarded-server",
    "x-forwarded-client-ip",
    "x-forwarded-client-port",
    "x-original-forwarded-for",
    "x-original-for",
    "x-originating-ip",
    "x-real-ip",
    "x-real-port",
    "x-remote-addr",
    "x-remote-ip",
    "x-remote-port",
    "x-client-ip",
    "x-client-port",
    "x-cluster-client-ip",
    "x-proxyuser-ip",
    "remote-addr",
    "client-ip",
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "forwarded-for",
    "true-client-ip",
    "true-client-port",
    // Cloudflare
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-connecting-o2o",
    "cf-pseudo-ipv4",
    "cf-ipcountry",
    "cf-ipcontinent",
    "cf-ipcity",
    "cf-iplatitude",
    "cf-iplongitude",
    "cf-region",
    "cf-region-code",
    "cf-metro-code",
    "cf-postal-code",
    "cf-timezone",
    // CloudFront
    "cloudfront-viewer-address",
    "cloudfront-viewer-asn",
    "cloudfront-viewer-city",
    "cloudfront-viewer-country",
    "cloudfront-viewer-country-name",
    "cloudfront-viewer-country-region",
    "cloudfront-viewer-country-region-name",
    "cloudfront-viewer-header-count",
    "cloudfront-viewer-header-order",
    "cloudfront-viewer-http-version",
    "cloudfront-viewer-ja3-fingerprint",
    "cloudfront-viewer-ja4-fingerprint",
    "cloudfront-viewer-latitude",
    "cloudfront-viewer-longitude",
    "cloudfront-viewer-metro-code",
    "cloudfront-viewer-postal-code",
    "cloudfront-viewer-time-zone",
    "cloudfront-viewer-tls",
    // Fastly, Akamai, Fly.io, Netlify, Vercel, DigitalOcean, Imperva, Sucuri, Alibaba,
    // Google, Azure, Linkerd, Envoy
    "fastly-client-ip",
    "fastly-client-port",
    "akamai-client-ip",
    "x-akamai-edgescape",
    "fly-client-ip",
    "x-nf-client-connection-ip",
    "x-vercel-forwarded-for",
    "x-vercel-proxied-for",
    "x-vercel-ip-as-number",
    "x-vercel-ip-city",
    "x-vercel-ip-continent",
    "x-vercel-ip-country",
    "x-vercel-ip-country-region",
    "x-vercel-ip-latitude",
    "x-vercel-ip-longitude",
    "x-vercel-ip-postal-code",
    "x-vercel-ip-timezone",
    "x-vercel-ja4-digest",
    "do-connecting-ip",
    "incap-client-ip",
    "x-sucuri-clientip",
    "x-sucuri-country",
    "ali-cdn-real-ip",
    "x-appengine-user-ip",
    "x-appengine-city",
    "x-appengine-citylatlong",
    "x-appengine-country",
    "x-appengine-region",
    "x-azure-clientip",
    "x-azure-socketip",
    "l5d-remote-ip",
    "x-envoy-external-address",
    "x-envoy-ip-tags",
];

/// Ids of one request, and when it was received.
const REQUEST_IDS: &[&str] = &[
    "request-id",
    "request-context",
    "correlation-id",
    "transaction-id",
    "x-request-id",
    "x-request-start",
    "x-request-received",
    "x-request-time",
    "x-requestid",
    "x-req-id",
    "x-correlation-id",
    "x-correlationid",
    "x-client-request-id",
    "x-client-trace-id",
    "x-global-transaction-id",
    "x-kong-request-id",
    "x-queue-start",
    "x-queue-time",
    "x-queue-depth",
    "x-span-id",
    "x-trace",
    "x-trace-id",
    "x-transaction-id",
    "x-unique-id",
    "x-arr-log-id",
    "x-amz-cf-id",
    "x-amz-request-id",
    "x-amzn-request-id",
    "x-amzn-requestid",
    "x-appengine-request-id-hash",
    "x-appengine-request-log-id",
    "x-azure-ref",
    "x-azure-ref-originshield",
    "x-ms-client-request-id",
    "x-ms-correlation-request-id",
    "x-ms-request-id",
    "x-fb-trace-id",
    "x-github-request-id",
    "x-nf-request-id",
    "x-railway-request-id",
    "x-vercel-id",
    "x-varnish",
    "fly-request-id",
    "rndr-id",
    "cf-ray",
    "cf-request-id",
    "cdn-requestid",
    "eagleeye-rpcid",
    "eagleeye-traceid",
    "function-execution-id",
    "x-akamai-request-id",
    "x-amz-apigw-id",
    "x-apigee-message-id",
    "x-sigsci-requestid",
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "l5d-reqid",
];

/// Trace contexts. `baggage` counts, except for the members that Sentry writes.
const TRACERS: &[&str] = &[
    // W3C Trace Context, and its drafts
    "traceparent",
    "tracestate",
    "traceresponse",
    // Zipkin
    "b3",
    "x-b3-flags",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    // Jaeger, OpenTracing, OpenCensus, Lightstep, SkyWalking
    "uber-trace-id",
    "jaeger-debug-id",
    "ot-tracer-sampled",
    "ot-tracer-spanid",
    "ot-tracer-traceid",
    "x-ot-span-context",
    "grpc-trace-bin",
    "sw8",
    "sw8-x",
    // AWS X-Ray, Google Cloud Trace
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    // Datadog
    "x-datadog-origin",
    "x-datadog-parent-id",
    "x-datadog-sampled",
    "x-datadog-sampling-priority",
    "x-datadog-tags",
    "x-datadog-trace-id",
    // Sentry, New Relic, Elastic, Honeycomb, Dynatrace, Instana, AppDynamics, SolarWinds
    "sentry-trace",
    "newrelic",
    "x-newrelic-id",
    "x-newrelic-synthetics",
    "x-newrelic-transaction",
    "elastic-apm-traceparent",
    "x-honeycomb-trace",
    "x-dynatrace",
    "x-dynatrace-application",
    "x-dynatrace-test",
    "x-dynatrace-tracestate",
    "x-dtpc",
    "x-dtreferer",
    "x-instana-l",
    "x-instana-s",
    "x-instana-synthetic",
    "x-instana-t",
    "singularityheader",
    "adrum",
    "adrum_0",
    "adrum_1",
    "x-tv-options",
    "x-tv-options-signature",
    // Linkerd 1
    "l5d-ctx-deadline",
    "l5d-ctx-trace",
    "l5d-sample",
];

/// Messages between proxies about a request: loops, attempts, timeouts, the protocol of the first
/// hop. Linkerd's `l5d-client-id` and Envoy's `x-forwarded-client-cert`,
/// `x-envoy-downstream-service-cluster` and `-node` are identities.
const PROXIES: &[&str] = &[
    "via",
    "cdn-loop",
    "surrogate-capability",
    // Envoy
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-is-timeout-retry",
    "x-envoy-max-retries",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-service-time",
    "x-envoy-upstream-stream-duration-ms",
    // Linkerd
    "l5d-max-retries",
    "l5d-orig-proto",
    "l5d-proxy-connection",
    "l5d-response-timeout",
    "l5d-retry-http",
    "l5d-retry-limit",
    "l5d-retry-timeout",
    "l5d-timeout",
    // Kong, Traefik, HAProxy, Squid
    "x-kong-proxy-latency",
    "x-kong-upstream-latency",
    "x-traefik-fast-proxy",
    "x-haproxy-server-state",
    "x-bluecoat-via",
    "x-nginx-proxy",
    // The TLS session of the first hop
    "x-amzn-tls-cipher-suite",
    "x-amzn-tls-version",
    "x-forwarded-tlsversion",
    "x-ssl-cipher",
    "x-ssl-protocol",
    "x-tls-cipher",
    "x-tls-version",
];

/// Fields that platforms and content delivery networks add about themselves. `CF-Worker` names the zone of
/// the Worker that asks, and counts.
const PLATFORMS: &[&str] = &[
    // Cloudflare
    "cf-ew-via",
    // Fastly, Akamai
    "fastly-client",
    "fastly-ff",
    "fastly-orig-accept-encoding",
    "fastly-temp-xff",
    "x-akamai-config-log-detail",
    "akamai-origin-hop",
    "x-edgeconnect-cache-status",
    "x-edgeconnect-midmile-rtt",
    "x-edgeconnect-origin-mex-latency",
    "x-edgeconnect-session-id",
    // Azure: Front Door, Application Gateway, App Service
    "x-azure-requestchain",
    "x-azure-jarawa-geography",
    "x-azure-ja4-fingerprint",
    "x-fd-clientip",
    "x-fd-edgeenvironment",
    "x-fd-impressionguid",
    "x-fd-ref",
    "x-fd-routekey",
    "x-fd-socketip",
    "x-appgw-trace-id",
    "x-waws-unencoded-url",
    "was-default-hostname",
    // Heroku, Fly.io, Google App Engine, Render, Railway, Netlify
    "connect-time",
    "total-route-time",
    "x-heroku-dynos-in-use",
    "x-heroku-queue-depth",
    "x-heroku-queue-wait-time",
    "fly-region",
    "fly-tracestate",
    "fly-traceparent",
    "x-appengine-default-version-hostname",
    "x-appengine-timeout-ms",
    "x-render-origin-server",
    "render-proxy-ttl",
    "x-railway-edge",
    "x-nf-geo",
    // Vercel
    "x-vercel-edge-region",
    "x-vercel-internal-ingress-bucket",
    "x-vercel-internal-ingress-port",
    "x-vercel-internal-intra-session",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::config::CredentialsConfig;

    #[test]
    fn each_name_is_a_name_in_lower_case_and_stands_there_once_and_is_no_default_credential() {
        let credentials = CredentialsConfig::default().headers;
        let mut seen = HashSet::new();
        for name in IGNORED_HEADERS.iter().copied().flatten() {
            assert!(seen.insert(*name), "{name} stands there twice");
            let parsed = hyper::http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            assert_eq!(parsed.as_str(), *name);
            assert!(!credentials.iter().any(|credential| credential == name), "{name}");
        }
    }
}
