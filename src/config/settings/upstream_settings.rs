//! The API and how long jobcache waits for it.

use std::time::Duration;

use super::units::{DAY, HOUR, MS};
use crate::config::{
    setter::put,
    setting_spec::{PLACES, SettingSection, Visibility, number, text, time},
    url,
};

pub(super) const UPSTREAM: SettingSection = SettingSection {
    title: "The API",
    table: "upstream",
    intro: "",
    settings: &[
        text(
            "upstream.url",
            "http://127.0.0.1:8000",
            "`http://host[:port]`, `https://host[:port]` or `unix:/path/to/socket`, without a path \
             of requests",
            |c, v| put(&mut c.upstream.url, url::upstream(v)),
        )
        .visibility(Visibility::Url)
        .flag("upstream", "URL", PLACES)
        .env(&["JOBCACHE_UPSTREAM", "JOBCACHE_UPSTREAM_URL", "UPSTREAM_URL"])
        .help("The API that jobcache stands in front of."),
        time("upstream.connect_timeout", "2s", (MS, HOUR), |c, v| c.upstream.connect_timeout = v)
            .env(&["JOBCACHE_UPSTREAM_CONNECT_TIMEOUT"])
            .help("Time to open a connection, or to wait for a free one."),
        time("upstream.response_timeout", "60s", (MS, HOUR), |c, v| {
            c.upstream.response_timeout = v;
        })
        .env(&["JOBCACHE_UPSTREAM_RESPONSE_TIMEOUT"])
        .help("Time from the end of a request to the head of its response.")
        .note("Set it above the response time of the slowest endpoint."),
        time("upstream.body_timeout", "300s", (MS, DAY), |c, v| c.upstream.body_timeout = v)
            .env(&["JOBCACHE_UPSTREAM_BODY_TIMEOUT"])
            .help("Longest silence within a response body.")
            .note("Set it above the heartbeat interval of event streams."),
        time("upstream.idle_timeout", "4s", (Duration::ZERO, HOUR), |c, v| {
            c.upstream.idle_timeout = v;
        })
        .env(&["JOBCACHE_UPSTREAM_IDLE_TIMEOUT"])
        .help("Time for which an unused connection is kept.")
        .note(
            "It must be shorter than the API's keep-alive (uvicorn: 5 s); otherwise requests meet \
             connections that the API is just closing.",
        ),
        number("upstream.max_idle", "256", (0, 65_536), |c, v| c.upstream.max_idle = v)
            .env(&["JOBCACHE_UPSTREAM_MAX_IDLE"])
            .help("Unused connections that are kept."),
        number("upstream.max_connections", "512", (1, 65_536), |c, v| {
            c.upstream.max_connections = v;
        })
        .env(&["JOBCACHE_UPSTREAM_MAX_CONNECTIONS"])
        .help("Connections in use at a time, upgraded ones (WebSockets) included.")
        .note("A request for which none becomes free within `connect_timeout` gets 503."),
        number("upstream.max_waiting", "10000", (0, 1_000_000), |c, v| c.upstream.max_waiting = v)
            .env(&["JOBCACHE_UPSTREAM_MAX_WAITING"])
            .help("Requests that may wait for a free connection at a time.")
            .note(
                "A further request gets 503 at once. The limit bounds the memory of a burst: a \
                 client that asks and hangs up leaves its request waiting.",
            ),
    ],
};
