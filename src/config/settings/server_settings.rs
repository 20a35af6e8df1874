//! Limits for clients.

use super::units::{FIVE_MINUTES, HOUR, KIB, MIB, MS};
use crate::config::{
    parse,
    setter::put,
    setting_spec::{SettingSection, list, number, size, switch, time},
};

pub(super) const SERVER: SettingSection = SettingSection {
    title: "Clients",
    table: "server",
    intro: "",
    settings: &[
        number("server.workers", "0", (0, 1024), |c, v| c.server.workers = v)
            .env(&["JOBCACHE_SERVER_WORKERS"])
            .help("Threads that serve requests.")
            .note(
                "`0` uses half of the CPUs that the process may use (its CPU limit counts) and at \
                 least one; the rest is left to the API and to Redis. One thread answers tens of \
                 thousands of polls a second, at less cost per poll than several: requests of one \
                 thread wait for Redis together, and no thread is woken to look for work.",
            ),
        number("server.max_connections", "10000", (1, 1_000_000), |c, v| {
            c.server.max_connections = v;
        })
        .env(&["JOBCACHE_SERVER_MAX_CONNECTIONS"])
        .help("Client connections at a time.")
        .note(
            "Further ones wait in the listen backlog. An upgraded connection no longer counts here: \
             `upstream.max_connections` limits those.",
        ),
        number("server.max_requests", "20000", (1, 1_000_000), |c, v| c.server.max_requests = v)
            .env(&["JOBCACHE_SERVER_MAX_REQUESTS"])
            .help("Requests that wait for the head of their answer at a time, over all connections.")
            .note("A further request gets 503 at once. It bounds the memory of a burst: some 20 KiB each."),
        time("server.header_timeout", "75s", (MS, FIVE_MINUTES), |c, v| c.server.header_timeout = v)
            .env(&["JOBCACHE_SERVER_HEADER_TIMEOUT"])
            .help("Time from the end of one answer to the end of the next request's head.")
            .note(
                "It limits how long an idle connection is kept and how slowly a head may arrive. It is \
                 checked four times per period, so it may last a quarter longer. Keep it above the idle \
                 timeout of the load balancer in front (often 60 s); otherwise the load balancer sends \
                 requests into connections that jobcache is just closing.",
            ),
        time("server.write_timeout", "60s", (MS, HOUR), |c, v| c.server.write_timeout = v)
            .env(&["JOBCACHE_SERVER_WRITE_TIMEOUT"])
            .help("Time for which a client may accept nothing of an answer that waits for it.")
            .note(
                "Then its connection is closed. A stalled HTTP/2 stream instead gives up what it holds \
                 of the API's connections, and ends in an error when the client reads on. Upgraded \
                 connections (WebSockets) count too.",
            ),
        size("server.min_upload_rate", "256B", (0, MIB), |c, v| c.server.min_upload_rate = v)
            .env(&["JOBCACHE_SERVER_MIN_UPLOAD_RATE"])
            .help("Bytes per second that an upload has to bring on average.")
            .note(
                "`upstream.response_timeout` is granted in addition. A slower upload ends with 408. Only \
                 time spent waiting for the client counts, and only until the API answers. `0B` turns the \
                 limit off, for clients that stream at irregular intervals.",
            ),
        number("server.max_headers", "100", (16, 1024), |c, v| c.server.max_headers = v)
            .env(&["JOBCACHE_SERVER_MAX_HEADERS"])
            .help("Header fields in a head.")
            .note(
                "A request with more gets 431; an answer of the API with more becomes a 502. Above 100 \
                 each head costs a memory allocation.",
            ),
        // The parser holds a head in a buffer of 408 KiB at most.
        size("server.max_header_bytes", "64KiB", (KIB, 256 * KIB), |c, v| {
            c.server.max_header_bytes = v;
        })
        .env(&["JOBCACHE_SERVER_MAX_HEADER_BYTES"])
        .help("Bytes in a head.")
        .note("A larger request gets 431; a larger answer of the API becomes a 502."),
        // The parser accepts 65534 bytes at most.
        size("server.max_uri", "8KiB", (256, 63 * KIB), |c, v| c.server.max_uri = v)
            .env(&["JOBCACHE_SERVER_MAX_URI"])
            .help("Bytes in the path and query of a request.")
            .note("A longer one gets 414."),
        number("server.max_streams", "200", (1, 10_000), |c, v| c.server.max_streams = v)
            .env(&["JOBCACHE_SERVER_MAX_STREAMS"])
            .help("Requests at a time over one HTTP/2 connection.")
            .note("Clients learn this limit; streams beyond it are refused."),
        number("server.max_pending_resets", "20", (1, 10_000), |c, v| {
            c.server.max_pending_resets = v;
        })
        .env(&["JOBCACHE_SERVER_MAX_PENDING_RESETS"])
        .help("HTTP/2 streams of one connection that were reset before jobcache looked at them.")
        .note("Beyond this limit the connection is ended (protection against \"rapid reset\")."),
        number("server.max_faulty_streams", "1024", (1, 1_000_000), |c, v| {
            c.server.max_faulty_streams = v;
        })
        .env(&["JOBCACHE_SERVER_MAX_FAULTY_STREAMS"])
        .help("HTTP/2 streams of one connection that jobcache reset because of a client's mistake.")
        .note("They count over the life of the connection. Beyond this limit it is ended."),
        switch("server.preserve_header_case", "false", |c, v| c.server.preserve_header_case = v)
            .env(&["JOBCACHE_SERVER_PRESERVE_HEADER_CASE"])
            .help("Whether the API sees header names as the client spells them, not in lower case.")
            .note(
                "It costs a memory allocation per request, hits included. Clients always see the \
                 API's own spelling in answers that pass.",
            ),
        switch("server.repeat_fast_path", "true", |c, v| c.server.repeat_fast_path = v)
            .env(&["JOBCACHE_SERVER_REPEAT_FAST_PATH"])
            .on_reload()
            .help(
                "Whether a request with the same header fields as the last hit on its connection is \
                 answered without parsing them again.",
            )
            .note(
                "The answers are the same; without it a repeated hit costs half as much CPU again. A \
                 reload turns it off for all connections, and on for those that begin later.",
            )
            .see("redis"),
        switch("server.reuse_port", "false", |c, v| c.server.reuse_port = v)
            .env(&["JOBCACHE_SERVER_REUSE_PORT"])
            .help("Listen with `SO_REUSEPORT`, so that a new jobcache can take over from this one.")
            .note(
                "No connection is refused during such a takeover. Both processes need the setting, the \
                 same user, and each its own `admin`. A port that is in use by mistake is then an error \
                 only if the other process does not use the option.",
            )
            .see("operations"),
        switch("server.proxy_protocol", "false", |c, v| c.server.proxy_protocol = v)
            .env(&["JOBCACHE_SERVER_PROXY_PROTOCOL"])
            .help("Whether each client connection begins with a PROXY protocol header (version 1 or 2).")
            .note(
                "A load balancer that forwards bytes uses it to name the client. A connection without \
                 the header is closed.",
            ),
        // Each connection is compared with every network.
        list("server.trusted_proxies", "0.0.0.0/0,::/0", (0, 64, "network"), |c, v| {
            put(&mut c.server.trusted_proxies, parse::networks(v))
        })
        .env(&["JOBCACHE_SERVER_TRUSTED_PROXIES"])
        .help("Networks of the proxies in front that may state who the client is.")
        .note(
            "From other addresses a PROXY protocol header is not accepted, and `X-Forwarded-*` \
             (`X-Forwarded-User` too), `Forwarded`, `X-Real-IP` and similar fields are removed. The \
             default trusts everyone, because clients reach a sidecar only through its gateway. `[]` \
             (in the variable: `none`) trusts nobody. Peers on a unix socket are always trusted. Other \
             fields that a gateway writes (`Remote-User`, `X-Auth-Request-*`) the gateway has to \
             remove itself.",
        )
        .see("security"),
    ],
};
