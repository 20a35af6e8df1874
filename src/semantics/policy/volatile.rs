//! Response headers that describe one exchange: another read of an unchanged job gives another value.
//!
//! Such headers are neither stored nor compared, so they keep no callers apart, and no hit replays
//! the request id of another exchange. The list has the names that gateways, platforms, frameworks and
//! tracers document. A name that an API could use for its jobs, such as `X-Operation-Id`, is not on
//! it: operators add those that mean nothing to them (`responses.volatile`).

use std::{collections::HashSet, sync::LazyLock};

/// Beginnings of names that belong to one product or draft as a whole.
const PREFIXES: [&str; 6] = [
    // The quota of one caller. It changes on every read, and that of another caller would be wrong.
    "ratelimit-",
    "x-ratelimit-",
    "x-rate-limit-",
    "x-ms-ratelimit-",
    // Traces.
    "x-b3-",
    "x-datadog-",
];

/// The other names, in lower case.
const NAMES: [&str; 52] = [
    // Request ids, traces and durations that many programs name alike.
    "correlation-id request-id trace-id x-call-id x-correlation-id x-correlationid x-req-id",
    "x-request-id x-requestid x-span-id x-trace x-trace-id x-traceid x-unique-id",
    // The quota of one caller.
    "ratelimit",
    // Durations: W3C, Rack and Rails, FastAPI and Django, Express.
    "server-timing x-process-time x-process-time-ms x-queue-time x-request-duration",
    "x-request-start x-response-time x-response-time-ms x-runtime",
    // Where browsers report network errors, with a token of the exchange.
    "nel report-to reporting-endpoints",
    // W3C Trace Context, Zipkin, Jaeger, OpenTracing, Sentry, Elastic, Instana, New Relic,
    // Honeycomb.
    "b3 elastic-apm-traceparent jaeger-debug-id ot-tracer-sampled ot-tracer-spanid",
    "ot-tracer-traceid sentry-trace traceparent traceresponse tracestate uber-trace-id",
    "x-honeycomb-trace x-instana-l x-instana-s x-instana-t x-newrelic-app-data x-newrelic-id",
    "x-newrelic-transaction",
    // Profilers of frameworks: Symfony, Clockwork, PHP Debug Bar, MiniProfiler.
    "phpdebugbar-id x-clockwork-id x-debug-token x-debug-token-link x-miniprofiler-ids",
    // Results of caches in front of the API.
    "x-cache x-cache-hits x-cache-info x-cache-key x-cache-lookup x-cache-remote x-cache-status",
    "x-cached-since x-drupal-cache x-drupal-dynamic-cache x-fastcgi-cache x-nginx-cache",
    "x-nginx-cache-status x-proxy-cache x-rack-cache x-served-by x-squid-error x-timer",
    "x-upstream-cache-status x-varnish x-varnish-age x-varnish-backend x-varnish-cache",
    "x-varnish-hits",
    // Headers of gateways, meshes and API management.
    // Envoy and Istio
    "x-envoy-attempt-count x-envoy-decorator-operation x-envoy-degraded",
    "x-envoy-expected-rq-timeout-ms x-envoy-peer-metadata x-envoy-peer-metadata-id",
    "x-envoy-upstream-healthchecked-cluster x-envoy-upstream-service-time",
    "x-envoy-upstream-stream-duration-ms",
    // Linkerd
    "l5d-remote-ip l5d-server-id l5d-success-class",
    // Kong, APISIX
    "apisix-cache-status kong-request-id x-apisix-upstream-status x-kong-request-debug-output",
    "x-kong-request-id",
    // nginx: what its documentation has in examples
    "x-upstream-addr x-upstream-response-time",
    // WSO2, Gravitee, IBM DataPower and API Connect
    "activityid x-backside-transport x-global-transaction-id x-gravitee-request-id",
    "x-gravitee-transaction-id",
    // Azure API Management
    "apim-request-id",
    // Imperva, Sucuri
    "x-iinfo x-sucuri-cache x-sucuri-id",
    // Headers of content delivery networks and of platforms that run applications.
    // Cloudflare
    "cf-apo-via cf-cache-status cf-placement cf-ray cf-request-id",
    // Fastly
    "fastly-debug-digest fastly-debug-path fastly-debug-state fastly-debug-ttl fastly-restarts",
    "fastly-trace x-fastly-request-id x-fastly-trace",
    // Akamai
    "akamai-cache-status akamai-grn akamai-mon-iucid-del akamai-request-bc x-akamai-request-id",
    "x-akamai-session-info x-akamai-transformed x-check-cacheable x-serial x-true-cache-key",
    // AWS: CloudFront, API Gateway, load balancers, S3
    "apigw-requestid x-amz-apigw-id x-amz-cf-id x-amz-cf-pop x-amz-id-2 x-amz-request-id",
    "x-amzn-remapped-connection x-amzn-remapped-content-length x-amzn-remapped-date",
    "x-amzn-request-id x-amzn-requestid x-amzn-trace-id",
    // Azure: Front Door, App Service, Functions, Resource Manager
    "x-azure-ref x-azure-ref-originshield x-azure-requestid x-fd-int-roxy-purgeid",
    "x-ms-activity-id x-ms-client-request-id x-ms-correlation-request-id x-ms-invocation-id",
    "x-ms-middleware-request-id x-ms-request-id x-ms-routing-request-id x-msedge-ref",
    // Google Cloud: load balancers, App Engine, Functions, Storage
    "function-execution-id x-appengine-log-flush-count x-appengine-resource-usage",
    "x-cloud-trace-context x-goog-request-id x-guploader-uploadid",
    // Heroku, Vercel, Netlify, Fly, Render, Railway, Deno Deploy, Pantheon
    "fly-cache-status fly-request-id heroku-request-id rndr-id x-deno-execution-id",
    "x-nf-request-id x-now-cache x-now-id x-now-trace x-pantheon-styx-hostname x-railway-edge",
    "x-railway-request-id x-styx-req-id x-vercel-cache x-vercel-id",
    // bunny.net, KeyCDN, StackPath
    "cdn-cache cdn-cachedat cdn-edgestorageid cdn-requestid cdn-requestpullcode",
    "cdn-requestpullsuccess cdn-requesttime cdn-status x-edge-ip x-edge-location x-edge-pop",
    "x-hw",
    // Alibaba Cloud, Tencent Cloud
    "eagleid x-acs-request-id x-cos-request-id x-cos-trace-id x-log-requestid x-nws-log-uuid",
    "x-oss-request-id x-oss-server-time x-swift-cachetime x-swift-savetime",
    // Services that APIs are often built on or look like: Atlassian, GitHub, GitLab, OpenAI,
    // CouchDB, Twilio
    "atl-request-id atl-traceid gitlab-lb gitlab-sv openai-processing-ms",
    "twilio-request-duration twilio-request-id x-arequestid x-couch-request-id",
    "x-couchdb-body-time x-github-request-id x-gitlab-meta",
];

/// Returns whether a response header is on the built-in list. `name` is in lower case.
pub(super) fn is_volatile(name: &str) -> bool {
    static KNOWN: LazyLock<HashSet<&str>> =
        LazyLock::new(|| NAMES.iter().flat_map(|line| line.split(' ')).collect());
    // `X-Kong-Proxy-Latency`, `X-Kong-Upstream-Latency` and others of that form.
    let is_kong_latency = name.starts_with("x-kong-") && name.ends_with("-latency");
    is_kong_latency
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || KNOWN.contains(name)
}

#[cfg(test)]
mod tests {
    use super::is_volatile;

    #[test]
    fn headers_of_one_exchange_are_volatile() {
        for name in [
            "server-timing",
            "x-request-id",
            "x-runtime",
            "x-process-time",
            "x-response-time",
            "x-served-by",
            "x-cache",
            "x-envoy-upstream-service-time",
            "x-kong-proxy-latency",
            "x-kong-upstream-latency",
            "x-kong-request-id",
            "cf-ray",
            "x-cloud-trace-context",
            "x-amzn-trace-id",
            "x-amz-cf-id",
            "x-datadog-trace-id",
            "report-to",
            "nel",
            "x-timer",
            "x-azure-ref",
            "x-vercel-id",
            "x-nf-request-id",
            "fly-request-id",
            "rndr-id",
            "traceparent",
            "x-b3-traceid",
            "ratelimit-remaining",
            "x-ratelimit-remaining-minute",
            "apigw-requestid",
        ] {
            assert!(is_volatile(name), "{name}");
        }
    }

    #[test]
    fn headers_that_may_say_something_about_a_job_are_not() {
        for name in [
            "content-type",
            "etag",
            "last-modified",
            "cache-control",
            "location",
            "retry-after",
            "link",
            "x-operation-id",
            "x-transaction-id",
            "x-pod",
            "x-kong-upstream-status",
            "x-kong-latency-class",
            "x-ratelimits",
            "x-job-state",
            "x-id",
            "server",
        ] {
            assert!(!is_volatile(name), "{name}");
        }
    }
}
