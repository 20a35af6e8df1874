//! Roles of request headers: which of them tell callers apart, and how.
//!
//! A header is part of the credential, of the variant, of both, or it is known to say nothing about the
//! caller. A header that nothing is known about is part of the variant: the credential may be waived,
//! but nobody can say of an unknown header that it does not matter.
//!
//! No header is both on the built-in list of the variant and on that of the headers that say nothing.
//! The configuration decides before either list.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    sync::LazyLock,
};

use hyper::http::{
    HeaderName,
    header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_LANGUAGE, FORWARDED, HOST, ORIGIN},
};

use super::counted_parts::CountedParts;
use crate::semantics::settings::CredentialsConfig;

/// Headers that are known to be part of the variant, in the order in which they are taken.
const VARIANT_HEADERS: [HeaderName; 13] = [
    HOST,
    ORIGIN,
    ACCEPT,
    ACCEPT_CHARSET,
    ACCEPT_LANGUAGE,
    FORWARDED,
    HeaderName::from_static("accept-version"),
    HeaderName::from_static("prefer"),
    HeaderName::from_static("x-api-version"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
];

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Place of the headers without a place of their own. They are taken in the order of their names.
const LAST: usize = usize::MAX;

/// Role of a header in the fingerprints.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderRole {
    /// Headers are taken in this order, regardless of their order in the request.
    place: usize,
    pub(super) credential: bool,
    pub(super) variant: bool,
    pub(super) parts: CountedParts,
}

impl HeaderRole {
    const IGNORED: Self =
        Self { place: LAST, credential: false, variant: false, parts: CountedParts::Whole };
    const UNKNOWN: Self = Self { variant: true, ..Self::IGNORED };
    /// A credential in a spelling that only some upstreams read as one.
    const ODD_CREDENTIAL: Self = Self { credential: true, ..Self::IGNORED };

    /// Returns whether the header says something about the caller.
    pub(super) fn counts(self) -> bool {
        self.credential || self.variant
    }

    /// Returns the order in which two headers are taken. Only the lines of one header keep the order
    /// of the request.
    pub(super) fn order(
        (role, name): (Self, &HeaderName),
        (other, of): (Self, &HeaderName),
    ) -> Ordering {
        role.place.cmp(&other.place).then_with(|| match role.place {
            LAST => name.as_str().cmp(of.as_str()),
            _ => Ordering::Equal,
        })
    }
}

/// Roles of all headers.
#[derive(Clone, Debug)]
pub(super) struct HeaderRoles {
    /// Roles of the headers that something is known about.
    known: HashMap<HeaderName, HeaderRole, BuildHasherDefault<NameHasher>>,
    /// Whether `Host` counts, and so an authority that takes its place.
    pub(super) counts_host: bool,
}

impl HeaderRoles {
    /// Makes the roles from the configuration. A name in `credentials.headers` counts even where it is
    /// on the built-in list of those that say nothing.
    pub(super) fn new(settings: &CredentialsConfig) -> Self {
        let mut known: HashMap<_, _, _> = HashMap::default();
        known.extend(
            ignored_headers().filter_map(|name| Some((name.parse().ok()?, HeaderRole::IGNORED))),
        );
        known.insert(BAGGAGE, HeaderRole { parts: CountedParts::Baggage, ..HeaderRole::UNKNOWN });
        for (place, name) in VARIANT_HEADERS.into_iter().enumerate() {
            let parts =
                if name == FORWARDED { CountedParts::Forwarded } else { CountedParts::Whole };
            known.insert(name, HeaderRole { place, parts, ..HeaderRole::UNKNOWN });
        }
        for name in names(&settings.ignore) {
            known.insert(name, HeaderRole::IGNORED);
        }
        for (at, name) in names(&settings.headers).enumerate() {
            let variant = VARIANT_HEADERS.contains(&name);
            let place = VARIANT_HEADERS.len() + at;
            let role = HeaderRole { place, variant, ..HeaderRole::ODD_CREDENTIAL };
            known.insert(name, role);
        }
        let counts_host = known.get(&HOST).is_some_and(|role| role.variant);
        Self { known, counts_host }
    }

    /// Returns the role of a header.
    pub(super) fn of(&self, name: &HeaderName) -> HeaderRole {
        if let Some(role) = self.known.get(name) {
            return *role;
        }
        if may_read_as_another(name) && self.reads_as_credential(name) {
            return HeaderRole::ODD_CREDENTIAL;
        }
        HeaderRole::UNKNOWN
    }

    /// Returns whether nothing is known about a header, except that part of it may not count.
    pub(super) fn is_unknown(&self, name: &HeaderName) -> bool {
        let role = self.of(name);
        role.variant && role.place == LAST
    }

    /// Returns the headers that are known to count as a whole: a response may vary by them.
    pub(super) fn covered(settings: &CredentialsConfig) -> Vec<HeaderName> {
        let ignored: Vec<HeaderName> = names(&settings.ignore).collect();
        let variant = VARIANT_HEADERS.into_iter();
        let variant = variant.filter(|name| *name != FORWARDED && !ignored.contains(name));
        names(&settings.headers).chain(variant).collect()
    }

    fn reads_as_credential(&self, name: &HeaderName) -> bool {
        let plain = HeaderName::try_from(plain_name(name)).ok();
        plain.and_then(|plain| self.known.get(&plain)).is_some_and(|role| role.credential)
    }
}

/// Parses names. Never fails: they were checked when the configuration was loaded.
pub(super) fn names(names: &[String]) -> impl Iterator<Item = HeaderName> {
    names.iter().filter_map(|name| name.parse().ok())
}

/// Returns whether some upstreams read a header with this name as a header with another name.
///
/// RFC 3875 4.1.18: the name "is converted to upper case, has all occurrences of "-" replaced with "_"
/// and has "HTTP_" prepended". So WSGI and CGI cannot distinguish `x_user_id` from `x-user-id`, and
/// some servers replace every character other than letters and digits by "_". Such a header counts as
/// part of the credential if its name may be read as that of a credential, and otherwise of the variant.
pub fn may_read_as_another(name: &HeaderName) -> bool {
    !name.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Returns the name as which such upstreams may read it.
pub fn plain_name(name: &HeaderName) -> String {
    name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

/// FNV-1a hash. A fast hash matters, because every header of every request is looked up. No key is
/// needed: the map holds only names from the configuration and the built-in lists, so clients cannot
/// force collisions.
pub(super) struct NameHasher(u64);

impl Default for NameHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Request headers that say nothing about the caller, and on which no entry depends, in lower case.
///
/// Every other header counts, so a name that is missing here costs hits, and a wrong one shows a job
/// to a stranger. That is why each name stands alone: a pattern such as `x-envoy-*` would also match
/// `x-envoy-downstream-service-cluster`, which names the calling service. The names come from the
/// documentation of browsers, gateways, platforms and tracers.
///
/// Not here, although they look alike: `X-Requested-With` (frameworks choose a form by it),
/// `X-Forwarded-Host`, `CF-Visitor` and the like (links are made from host and scheme), certificates of
/// clients, `X-Azure-FDID` (proves that the request came through one's own Front Door), and bags of
/// context that may name a user (`baggage`, `Correlation-Context`, `X-Amzn-Request-Context`).
const IGNORED_HEADERS: [&str; 69] = [
    // Fills do not send it: jobcache itself chooses the coding of an answer.
    "accept-encoding",
    // Fetch metadata, client hints, and what else browsers say about themselves. Only browsers may set
    // names that begin with `Sec-`.
    "user-agent referer dnt save-data priority purpose x-purpose x-moz",
    "upgrade-insecure-requests device-memory downlink ect rtt sec-gpc sec-purpose",
    "sec-fetch-dest sec-fetch-frame-top sec-fetch-mode sec-fetch-site sec-fetch-storage-access",
    "sec-fetch-user sec-ch-device-memory sec-ch-downlink sec-ch-dpr sec-ch-ect",
    "sec-ch-forced-colors sec-ch-lang sec-ch-partitioned-cookies sec-ch-prefers-color-scheme",
    "sec-ch-prefers-contrast sec-ch-prefers-reduced-data sec-ch-prefers-reduced-motion",
    "sec-ch-prefers-reduced-transparency sec-ch-rtt sec-ch-save-data sec-ch-ua sec-ch-ua-arch",
    "sec-ch-ua-bitness sec-ch-ua-form-factor sec-ch-ua-form-factors sec-ch-ua-full",
    "sec-ch-ua-full-version sec-ch-ua-full-version-list sec-ch-ua-high-entropy-values",
    "sec-ch-ua-mobile sec-ch-ua-model sec-ch-ua-platform sec-ch-ua-platform-version",
    "sec-ch-ua-robot sec-ch-ua-wow64 sec-ch-viewport-height sec-ch-viewport-width sec-ch-width",
    // Conditions, and what the client says about caches. A lookup obeys them, or the read passes.
    "cache-control pragma if-match if-modified-since if-none-match if-range if-unmodified-since",
    "range",
    // Fields for one hop. `Proxy-Authorization` is a credential.
    "connection expect http2-settings keep-alive max-forwards proxy-authenticate",
    "proxy-connection te trailer transfer-encoding upgrade",
    // Fields about a body. Reads with a body pass.
    "content-digest content-encoding content-language content-length content-md5 content-type",
    "digest repr-digest",
    // Ids of one request, and when it was received.
    "request-id request-context correlation-id transaction-id x-request-id x-request-start",
    "x-request-received x-request-time x-requestid x-req-id x-correlation-id x-correlationid",
    "x-client-request-id x-client-trace-id x-global-transaction-id x-kong-request-id",
    "x-queue-start x-queue-time x-queue-depth x-span-id x-trace x-trace-id x-transaction-id",
    "x-unique-id x-arr-log-id x-amz-cf-id x-amz-request-id x-amzn-request-id x-amzn-requestid",
    "x-appengine-request-id-hash x-appengine-request-log-id x-azure-ref",
    "x-azure-ref-originshield x-ms-client-request-id x-ms-correlation-request-id",
    "x-ms-request-id x-fb-trace-id x-github-request-id x-nf-request-id x-railway-request-id",
    "x-vercel-id x-varnish fly-request-id rndr-id cf-ray cf-request-id cdn-requestid",
    "eagleeye-rpcid eagleeye-traceid function-execution-id x-akamai-request-id x-amz-apigw-id",
    "x-apigee-message-id x-sigsci-requestid amz-sdk-invocation-id amz-sdk-request l5d-reqid",
    // Trace contexts. `baggage` counts, except for the members that Sentry writes.
    // W3C Trace Context, and its drafts
    "traceparent tracestate traceresponse",
    // Zipkin
    "b3 x-b3-flags x-b3-parentspanid x-b3-sampled x-b3-spanid x-b3-traceid",
    // Jaeger, OpenTracing, OpenCensus, Lightstep, SkyWalking
    "uber-trace-id jaeger-debug-id ot-tracer-sampled ot-tracer-spanid ot-tracer-traceid",
    "x-ot-span-context grpc-trace-bin sw8 sw8-x",
    // AWS X-Ray, Google Cloud Trace
    "x-amzn-trace-id x-cloud-trace-context",
    // Datadog
    "x-datadog-origin x-datadog-parent-id x-datadog-sampled x-datadog-sampling-priority",
    "x-datadog-tags x-datadog-trace-id",
    // Sentry, New Relic, Elastic, Honeycomb, Dynatrace, Instana, AppDynamics, SolarWinds
    "sentry-trace newrelic x-newrelic-id x-newrelic-synthetics x-newrelic-transaction",
    "elastic-apm-traceparent x-honeycomb-trace x-dynatrace x-dynatrace-application",
    "x-dynatrace-test x-dynatrace-tracestate x-dtpc x-dtreferer x-instana-l x-instana-s",
    "x-instana-synthetic x-instana-t singularityheader adrum adrum_0 adrum_1 x-tv-options",
    "x-tv-options-signature",
    // Linkerd 1
    "l5d-ctx-deadline l5d-ctx-trace l5d-sample",
    // Messages between proxies about a request: loops, attempts, timeouts, the protocol of the first
    // hop. Linkerd's `l5d-client-id` and Envoy's `x-forwarded-client-cert`,
    // `x-envoy-downstream-service-cluster` and `-node` are identities.
    "via cdn-loop surrogate-capability",
    // Envoy
    "x-envoy-attempt-count x-envoy-decorator-operation x-envoy-expected-rq-timeout-ms",
    "x-envoy-force-trace x-envoy-hedge-on-per-try-timeout x-envoy-is-timeout-retry",
    "x-envoy-max-retries x-envoy-retriable-header-names x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on x-envoy-retry-on x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-rq-per-try-timeout-ms x-envoy-upstream-rq-timeout-alt-response",
    "x-envoy-upstream-rq-timeout-ms x-envoy-upstream-service-time",
    "x-envoy-upstream-stream-duration-ms",
    // Linkerd
    "l5d-max-retries l5d-orig-proto l5d-proxy-connection l5d-response-timeout l5d-retry-http",
    "l5d-retry-limit l5d-retry-timeout l5d-timeout",
    // Kong, Traefik, HAProxy, Squid
    "x-kong-proxy-latency x-kong-upstream-latency x-traefik-fast-proxy x-haproxy-server-state",
    "x-bluecoat-via x-nginx-proxy",
    // The TLS session of the first hop
    "x-amzn-tls-cipher-suite x-amzn-tls-version x-forwarded-tlsversion x-ssl-cipher",
    "x-ssl-protocol x-tls-cipher x-tls-version",
    // Fields that platforms and content delivery networks add about themselves.
    // Cloudflare. `CF-Worker` names the zone of the Worker that asks, and counts.
    "cf-ew-via",
    // Fastly, Akamai
    "fastly-client fastly-ff fastly-orig-accept-encoding fastly-temp-xff",
    "x-akamai-config-log-detail akamai-origin-hop x-edgeconnect-cache-status",
    "x-edgeconnect-midmile-rtt x-edgeconnect-origin-mex-latency x-edgeconnect-session-id",
    // Azure: Front Door, Application Gateway, App Service
    "x-azure-requestchain x-azure-jarawa-geography x-azure-ja4-fingerprint x-fd-clientip",
    "x-fd-edgeenvironment x-fd-impressionguid x-fd-ref x-fd-routekey x-fd-socketip",
    "x-appgw-trace-id x-waws-unencoded-url was-default-hostname",
    // Heroku, Fly.io, Google App Engine, Render, Railway, Netlify
    "connect-time total-route-time x-heroku-dynos-in-use x-heroku-queue-depth",
    "x-heroku-queue-wait-time fly-region fly-tracestate fly-traceparent",
    "x-appengine-default-version-hostname x-appengine-timeout-ms x-render-origin-server",
    "render-proxy-ttl x-railway-edge x-nf-geo",
    // Vercel
    "x-vercel-edge-region x-vercel-internal-ingress-bucket x-vercel-internal-ingress-port",
    "x-vercel-internal-intra-session",
];

/// Ignored headers with the addresses and ports of clients and proxies, and what is derived from an
/// address or its TLS handshake. Gateways write them, so they are removed if the peer is none.
/// `X-Forwarded-Port` is the port that the client connected to, and counts.
const ADDRESS_HEADERS: [&str; 23] = [
    "x-forwarded-for x-forwarded-for-original x-forwarded-by x-forwarded-server",
    "x-forwarded-client-ip x-forwarded-client-port x-original-forwarded-for x-original-for",
    "x-originating-ip x-real-ip x-real-port x-remote-addr x-remote-ip x-remote-port x-client-ip",
    "x-client-port x-cluster-client-ip x-proxyuser-ip remote-addr client-ip proxy-client-ip",
    "wl-proxy-client-ip forwarded-for true-client-ip true-client-port",
    // Cloudflare
    "cf-connecting-ip cf-connecting-ipv6 cf-connecting-o2o cf-pseudo-ipv4 cf-ipcountry",
    "cf-ipcontinent cf-ipcity cf-iplatitude cf-iplongitude cf-region cf-region-code",
    "cf-metro-code cf-postal-code cf-timezone",
    // CloudFront
    "cloudfront-viewer-address cloudfront-viewer-asn cloudfront-viewer-city",
    "cloudfront-viewer-country cloudfront-viewer-country-name cloudfront-viewer-country-region",
    "cloudfront-viewer-country-region-name cloudfront-viewer-header-count",
    "cloudfront-viewer-header-order cloudfront-viewer-http-version",
    "cloudfront-viewer-ja3-fingerprint cloudfront-viewer-ja4-fingerprint",
    "cloudfront-viewer-latitude cloudfront-viewer-longitude cloudfront-viewer-metro-code",
    "cloudfront-viewer-postal-code cloudfront-viewer-time-zone cloudfront-viewer-tls",
    // Fastly, Akamai, Fly.io, Netlify, Vercel, DigitalOcean, Imperva, Sucuri, Alibaba,
    // Google, Azure, Linkerd, Envoy
    "fastly-client-ip fastly-client-port akamai-client-ip x-akamai-edgescape fly-client-ip",
    "x-nf-client-connection-ip x-vercel-forwarded-for x-vercel-proxied-for",
    "x-vercel-ip-as-number x-vercel-ip-city x-vercel-ip-continent x-vercel-ip-country",
    "x-vercel-ip-country-region x-vercel-ip-latitude x-vercel-ip-longitude",
    "x-vercel-ip-postal-code x-vercel-ip-timezone x-vercel-ja4-digest do-connecting-ip",
    "incap-client-ip x-sucuri-clientip x-sucuri-country ali-cdn-real-ip x-appengine-user-ip",
    "x-appengine-city x-appengine-citylatlong x-appengine-country x-appengine-region",
    "x-azure-clientip x-azure-socketip l5d-remote-ip x-envoy-external-address x-envoy-ip-tags",
];

fn ignored_headers() -> impl Iterator<Item = &'static str> {
    IGNORED_HEADERS.iter().chain(&ADDRESS_HEADERS).flat_map(|line| line.split(' '))
}

/// Returns whether gateways state the address of a client in a header with this name.
pub fn is_address_header(name: &str) -> bool {
    static NAMES: LazyLock<HashSet<&str, BuildHasherDefault<NameHasher>>> =
        LazyLock::new(|| ADDRESS_HEADERS.iter().flat_map(|line| line.split(' ')).collect());
    NAMES.contains(name)
}

/// Returns whether every variant covers a header with this name as a whole, unless it is ignored.
pub fn is_variant_header(name: &str) -> bool {
    let mut names = VARIANT_HEADERS.into_iter().filter(|known| *known != FORWARDED);
    names.any(|known| known.as_str().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_header_is_on_both_built_in_lists() {
        let ignored: Vec<&str> = ignored_headers().collect();
        let both = VARIANT_HEADERS.into_iter().chain([BAGGAGE]);
        let both: Vec<_> = both.filter(|name| ignored.contains(&name.as_str())).collect();
        assert_eq!(both, Vec::<HeaderName>::new());
    }

    #[test]
    fn each_ignored_name_is_in_lower_case_and_stands_there_once_and_is_no_default_credential() {
        let credentials = CredentialsConfig::default().headers;
        let mut seen = HashSet::new();
        for name in ignored_headers() {
            assert!(seen.insert(name), "{name} stands there twice");
            assert_eq!(HeaderName::from_bytes(name.as_bytes()).unwrap().as_str(), name);
            assert!(!credentials.iter().any(|credential| credential == name), "{name}");
        }
    }
}
