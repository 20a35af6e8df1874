//! Certificates: for clients, for the API and for Redis.

use super::units::{DAY, MS};
use crate::config::{
    parse,
    setter::put,
    setting_spec::{SettingSection, text, time},
};

const PEM: &str = "the path of a PEM file";
const HOST: &str = "a host name or an IP address";
const SYSTEM: &str = "the authorities of the system";
const SAME_FILE: &str = "in the file of the certificate";

pub(super) const UPSTREAM_TLS: SettingSection = SettingSection {
    title: "TLS to the API",
    table: "upstream.tls",
    intro: "These apply to an `https://` API. The files are read again when they change.",
    settings: &[
        text("upstream.tls.ca", "", PEM, |c, v| put(&mut c.upstream.tls.ca, parse::path(v)))
            .env(&["JOBCACHE_UPSTREAM_TLS_CA"])
            .unset(SYSTEM, "\"/etc/jobcache/upstream-ca.pem\"")
            .help("Authorities that may have signed the API's certificate."),
        text("upstream.tls.cert", "", PEM, |c, v| {
            put(&mut c.upstream.tls.identity.cert, parse::path(v))
        })
        .env(&["JOBCACHE_UPSTREAM_TLS_CERT"])
        .unset("none", "\"/etc/jobcache/client.pem\"")
        .help("Certificate to present to an API that asks for one."),
        text("upstream.tls.key", "", PEM, |c, v| {
            put(&mut c.upstream.tls.identity.key, parse::path(v))
        })
        .env(&["JOBCACHE_UPSTREAM_TLS_KEY"])
        .unset(SAME_FILE, "\"/etc/jobcache/client.key\"")
        .help("Key of that certificate."),
        text("upstream.tls.server_name", "", HOST, |c, v| {
            put(&mut c.upstream.tls.server_name, parse::server_name(v))
        })
        .env(&["JOBCACHE_UPSTREAM_TLS_SERVER_NAME"])
        .unset("the host of `upstream.url`", "\"api.internal\"")
        .help("Name in the API's certificate."),
    ],
};

pub(super) const STORE_TLS: SettingSection = SettingSection {
    title: "TLS to Redis",
    table: "store.tls",
    intro: "These apply to a `rediss://` URL, and likewise for sentinels and clusters. The files are read again when \
            they change.",
    settings: &[
        text("store.tls.ca", "", PEM, |c, v| put(&mut c.store.tls.ca, parse::path(v)))
            .env(&["JOBCACHE_STORE_TLS_CA"])
            .unset(SYSTEM, "\"/etc/jobcache/redis-ca.pem\"")
            .help("Authorities that may have signed the certificate of Redis.")
            .see("redis"),
        text("store.tls.cert", "", PEM, |c, v| put(&mut c.store.tls.identity.cert, parse::path(v)))
            .env(&["JOBCACHE_STORE_TLS_CERT"])
            .unset("none", "\"/etc/jobcache/redis-client.pem\"")
            .help("Certificate to present to Redis.")
            .note("Redis asks for one unless its `tls-auth-clients` is `no`."),
        text("store.tls.key", "", PEM, |c, v| put(&mut c.store.tls.identity.key, parse::path(v)))
            .env(&["JOBCACHE_STORE_TLS_KEY"])
            .unset(SAME_FILE, "\"/etc/jobcache/redis-client.key\"")
            .help("Key of that certificate."),
        text("store.tls.server_name", "", HOST, |c, v| {
            put(&mut c.store.tls.server_name, parse::server_name(v))
        })
        .env(&["JOBCACHE_STORE_TLS_SERVER_NAME"])
        .unset("the host that jobcache connects to", "\"redis.internal\"")
        .help("Name in the certificate of Redis."),
    ],
};

pub(super) const SERVER_TLS: SettingSection = SettingSection {
    title: "TLS for clients",
    table: "tls",
    intro: "With a certificate `listen` speaks TLS instead of plain HTTP, and HTTP/2 with clients \
            that offer it.",
    settings: &[
        text("tls.cert", "", PEM, |c, v| put(&mut c.tls.cert, parse::path(v)))
            .env(&["JOBCACHE_TLS_CERT"])
            .unset("none: `listen` speaks plain HTTP", "\"/etc/jobcache/tls.crt\"")
            .help("Certificate for clients, with the chain that leads to an authority."),
        text("tls.key", "", PEM, |c, v| put(&mut c.tls.key, parse::path(v)))
            .env(&["JOBCACHE_TLS_KEY"])
            .unset(SAME_FILE, "\"/etc/jobcache/tls.key\"")
            .help("Key of that certificate."),
        time("tls.renew_interval", "10s", (MS, DAY), |c, v| c.tls_renew_interval = v)
            .env(&["JOBCACHE_TLS_RENEW_INTERVAL"])
            .help("Interval at which all certificate files are checked for changes.")
            .note(
                "It also covers the files of `[upstream.tls]` and `[store.tls]`. Changed files are \
                 used from then on. Files that cannot be used are reported in the log, and the \
                 previous ones stay in use.",
            ),
    ],
};
