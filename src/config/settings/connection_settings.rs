//! Limits for clients, the API and how long jobcache waits for it, and the certificates for clients,
//! for the API and for Redis.

use std::time::Duration;

use crate::config::{
    TlsVerify, address, parse,
    setter::put,
    setting_spec::{
        DAY, FIVE_MINUTES, HOUR, KIB, MIB, MS, PLACES, SettingSection, Visibility, choice, list,
        number, size, switch, text, time,
    },
};

pub(super) const SERVER: SettingSection = SettingSection {
    title: "Clients",
    intro: "",
    settings: &[
        number("server.workers", "0", (0, 1024), |c, v| c.server.workers = v)
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
        .help("Client connections at a time.")
        .note(
            "Further ones wait in the listen backlog. An upgraded connection no longer counts here: \
             `upstream.max_connections` limits those. With a memory limit (cgroup) the default is at \
             most one for each 48 KiB of it.",
        ),
        number("server.max_requests", "20000", (1, 1_000_000), |c, v| c.server.max_requests = v)
            .help("Requests that wait for the head of their answer at a time, over all connections.")
            .note(
                "A further request gets 503 at once. It bounds the memory of a burst: some 20 KiB each. \
                 With a memory limit (cgroup) the default is at most one for each 48 KiB of it.",
            ),
        time("server.header_timeout", "75s", (MS, FIVE_MINUTES), |c, v| c.server.header_timeout = v)
            .help("Time from the end of one answer to the end of the next request's head.")
            .note(
                "It limits how long an idle connection is kept and how slowly a head may arrive. It is \
                 checked four times per period, so it may last a quarter longer. Keep it above the idle \
                 timeout of the load balancer in front (often 60 s); otherwise the load balancer sends \
                 requests into connections that jobcache is just closing.",
            ),
        time("server.write_timeout", "60s", (MS, HOUR), |c, v| c.server.write_timeout = v)
            .help("Time for which a client may accept nothing of an answer that waits for it.")
            .note(
                "Then its connection is closed. A stalled HTTP/2 stream instead gives up what it holds \
                 of the API's connections, and ends in an error when the client reads on. Upgraded \
                 connections (WebSockets) count too.",
            ),
        size("server.min_upload_rate", "256B", (0, MIB), |c, v| c.server.min_upload_rate = v)
            .help("Bytes per second that an upload has to bring on average.")
            .note(
                "`upstream.response_timeout` is granted in addition. A slower upload ends with 408. Only \
                 time spent waiting for the client counts, and only until the API answers. `0B` turns the \
                 limit off, for clients that stream at irregular intervals.",
            ),
        number("server.max_headers", "100", (16, 1024), |c, v| c.server.max_headers = v)
            .help("Header fields in a head.")
            .note(
                "A request with more gets 431; an answer of the API with more becomes a 502. Above 100 \
                 each head costs a memory allocation.",
            ),
        // The parser holds a head in a buffer of 408 KiB at most.
        size("server.max_header_bytes", "64KiB", (KIB, 256 * KIB), |c, v| {
            c.server.max_header_bytes = v;
        })
        .help("Bytes in a head.")
        .note("A larger request gets 431; a larger answer of the API becomes a 502."),
        // The parser accepts 65534 bytes at most.
        size("server.max_uri", "8KiB", (256, 63 * KIB), |c, v| c.server.max_uri = v)
            .help("Bytes in the path and query of a request.")
            .note("A longer one gets 414."),
        number("server.max_streams", "200", (1, 10_000), |c, v| c.server.max_streams = v)
            .help("Requests at a time over one HTTP/2 connection.")
            .note("Clients learn this limit; streams beyond it are refused."),
        number("server.max_pending_resets", "20", (1, 10_000), |c, v| {
            c.server.max_pending_resets = v;
        })
        .help("HTTP/2 streams of one connection that were reset before jobcache looked at them.")
        .note("Beyond this limit the connection is ended (protection against \"rapid reset\")."),
        number("server.max_faulty_streams", "1024", (1, 1_000_000), |c, v| {
            c.server.max_faulty_streams = v;
        })
        .help("HTTP/2 streams of one connection that jobcache reset because of a client's mistake.")
        .note("They count over the life of the connection. Beyond this limit it is ended."),
        switch("server.preserve_header_case", "false", |c, v| c.server.preserve_header_case = v)
            .help("Whether the API sees header names as the client spells them, not in lower case.")
            .note(
                "It costs a memory allocation per request, hits included. Clients always see the \
                 API's own spelling in answers that pass.",
            ),
        switch("server.repeat_fast_path", "true", |c, v| c.server.repeat_fast_path = v)
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
            .help("Listen with `SO_REUSEPORT`, so that a new jobcache can take over from this one.")
            .note(
                "No connection is refused during such a takeover. Both processes need the setting, the \
                 same user, and each its own `admin`. A port that is in use by mistake is then an error \
                 only if the other process does not use the option.",
            )
            .see("operations"),
        switch("server.proxy_protocol", "false", |c, v| c.server.proxy_protocol = v)
            .help("Whether each client connection begins with a PROXY protocol header (version 1 or 2).")
            .note(
                "A load balancer that forwards bytes uses it to name the client. A connection without \
                 the header is closed.",
            ),
        // Each connection is compared with every network.
        list("server.trusted_proxies", "0.0.0.0/0,::/0", (0, 64, "network"), |c, v| {
            put(&mut c.server.trusted_proxies, parse::networks(v))
        })
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

pub(super) const UPSTREAM: SettingSection = SettingSection {
    title: "The API",
    intro: "",
    settings: &[
        text(
            "upstream.url",
            "http://127.0.0.1:8000",
            "`http://host[:port]`, `https://host[:port]` or `unix:/path/to/socket`, without a path \
             of requests",
            |c, v| put(&mut c.upstream.url, address::upstream(v)),
        )
        .visibility(Visibility::Url)
        .flag("upstream", "URL", PLACES)
        .env(&["JOBCACHE_UPSTREAM", "JOBCACHE_UPSTREAM_URL", "UPSTREAM_URL"])
        .help("The API that jobcache stands in front of."),
        time("upstream.connect_timeout", "2s", (MS, HOUR), |c, v| c.upstream.connect_timeout = v)
            .help("Time to open a connection, or to wait for a free one."),
        time("upstream.response_timeout", "60s", (MS, HOUR), |c, v| {
            c.upstream.response_timeout = v;
        })
        .help("Time from the end of a request to the head of its response.")
        .note("Set it above the response time of the slowest endpoint."),
        time("upstream.body_timeout", "300s", (MS, DAY), |c, v| c.upstream.body_timeout = v)
            .help("Longest silence within a response body.")
            .note("Set it above the heartbeat interval of event streams."),
        time("upstream.idle_timeout", "4s", (Duration::ZERO, HOUR), |c, v| {
            c.upstream.idle_timeout = v;
        })
        .help("Time for which an unused connection is kept.")
        .note(
            "It must be shorter than the API's keep-alive (uvicorn: 5 s); otherwise requests meet \
             connections that the API is just closing.",
        ),
        number("upstream.max_idle", "256", (0, 65_536), |c, v| c.upstream.max_idle = v)
            .help("Unused connections that are kept."),
        number("upstream.max_connections", "512", (1, 65_536), |c, v| {
            c.upstream.max_connections = v;
        })
        .help("Connections in use at a time, without those of streams.")
        .note("A request for which none becomes free within `connect_timeout` gets 503."),
        number("upstream.max_streams", "10000", (0, 1_000_000), |c, v| c.upstream.max_streams = v)
            .help(
                "Streams at a time: WebSockets and other upgrades, event streams, and responses \
                 that are still open a second after their head.",
            )
            .note(
                "Another upgrade or event stream gets 503. Half as many further long responses as \
                 `max_connections` go on; then requests that pass without changing anything get 503.",
            ),
        time("upstream.max_age", "60s", (MS, DAY), |c, v| c.upstream.max_age = v)
            .help("Age from which a connection takes no further request.")
            .note(
                "A new connection resolves the API's name again and takes the next one of its \
                 addresses. A connection that belongs to a login is kept.",
            ),
        number("upstream.max_waiting", "10000", (0, 1_000_000), |c, v| c.upstream.max_waiting = v)
            .help("Requests that may wait for a free connection at a time.")
            .note(
                "A further request gets 503 at once. The limit bounds the memory of a burst: a \
                 client that asks and hangs up leaves its request waiting.",
            ),
    ],
};

const PEM: &str = "the path of a PEM file";
const HOST: &str = "a host name or an IP address";
const SYSTEM: &str = "the authorities of the system";
const SAME_FILE: &str = "in the file of the certificate";

pub(super) const UPSTREAM_TLS: SettingSection = SettingSection {
    title: "TLS to the API",
    intro: "These apply to an `https://` API. The files are read again when they change.",
    settings: &[
        text("upstream.tls.ca", "", PEM, |c, v| put(&mut c.upstream.tls.ca, parse::path(v)))
            .unset(SYSTEM, "\"/etc/jobcache/upstream-ca.pem\"")
            .help("Authorities that may have signed the API's certificate, or that certificate itself."),
        text("upstream.tls.cert", "", PEM, |c, v| {
            put(&mut c.upstream.tls.identity.cert, parse::path(v))
        })
        .unset("none", "\"/etc/jobcache/client.pem\"")
        .help("Certificate to present to an API that asks for one."),
        text("upstream.tls.key", "", PEM, |c, v| {
            put(&mut c.upstream.tls.identity.key, parse::path(v))
        })
        .unset(SAME_FILE, "\"/etc/jobcache/client.key\"")
        .help("Key of that certificate."),
        text("upstream.tls.server_name", "", HOST, |c, v| {
            put(&mut c.upstream.tls.server_name, parse::server_name(v))
        })
        .unset("the host of `upstream.url`", "\"api.internal\"")
        .help("Name in the API's certificate."),
    ],
};

pub(super) const STORE_TLS: SettingSection = SettingSection {
    title: "TLS to Redis",
    intro: "These apply to a `rediss://` URL, and likewise for sentinels and clusters. The files are read again when \
            they change.",
    settings: &[
        text("store.tls.ca", "", PEM, |c, v| put(&mut c.store.tls.ca, parse::path(v)))
            .unset(SYSTEM, "\"/etc/jobcache/redis-ca.pem\"")
            .help("Authorities that may have signed the certificate of Redis, or that certificate itself.")
            .note("A certificate in this file is trusted as it is, whatever its name, dates and version.")
            .see("redis"),
        text("store.tls.cert", "", PEM, |c, v| put(&mut c.store.tls.identity.cert, parse::path(v)))
            .unset("none", "\"/etc/jobcache/redis-client.pem\"")
            .help("Certificate to present to Redis.")
            .note("Redis asks for one unless its `tls-auth-clients` is `no`."),
        text("store.tls.key", "", PEM, |c, v| put(&mut c.store.tls.identity.key, parse::path(v)))
            .unset(SAME_FILE, "\"/etc/jobcache/redis-client.key\"")
            .help("Key of that certificate."),
        text("store.tls.server_name", "", HOST, |c, v| {
            put(&mut c.store.tls.server_name, parse::server_name(v))
        })
        .unset("the host that jobcache connects to", "\"redis.internal\"")
        .help("Name in the certificate of Redis."),
        choice(
            "store.tls.verify",
            TlsVerify::Full.as_str(),
            &[
                (TlsVerify::Full.as_str(), |c| c.store.tls.verify = TlsVerify::Full),
                (TlsVerify::Ca.as_str(), |c| c.store.tls.verify = TlsVerify::Ca),
                (TlsVerify::None.as_str(), |c| c.store.tls.verify = TlsVerify::None),
            ],
        )
        .help("What of the certificate of Redis is verified.")
        .note(
            "`full`: the authority that signed it, and its name. `ca`: the authority only. `none`: \
             nothing, so that anyone on the way may read and change what is stored.",
        )
        .see("redis"),
    ],
};

pub(super) const SERVER_TLS: SettingSection = SettingSection {
    title: "TLS for clients",
    intro: "With a certificate `listen` speaks TLS instead of plain HTTP, and HTTP/2 with clients \
            that offer it.",
    settings: &[
        text("tls.cert", "", PEM, |c, v| put(&mut c.tls.cert, parse::path(v)))
            .unset("none: `listen` speaks plain HTTP", "\"/etc/jobcache/tls.crt\"")
            .help("Certificate for clients, with the chain that leads to an authority."),
        text("tls.key", "", PEM, |c, v| put(&mut c.tls.key, parse::path(v)))
            .unset(SAME_FILE, "\"/etc/jobcache/tls.key\"")
            .help("Key of that certificate."),
        time("tls.renew_interval", "10s", (MS, DAY), |c, v| c.tls_renew_interval = v)
            .help("Interval at which all certificate files are checked for changes.")
            .note(
                "It also covers the files of `[upstream.tls]` and `[store.tls]`. Changed files are \
                 used from then on. Files that cannot be used are reported in the log, and the \
                 previous ones stay in use.",
            ),
    ],
};
