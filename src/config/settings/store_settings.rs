//! Redis, its sentinels, and invalidations that it has not confirmed.

use std::time::Duration;

use crate::config::{
    parse,
    setter::put,
    setting_spec::{
        CACHING, FIVE_MINUTES, GIB, KIB, MIB, MINUTE, MS, PLACES, SECOND, SettingSection,
        Visibility, number, short_text, size, switch, text, time,
    },
    store_url,
};

const USER: &str = "the name of a user of Redis, without white space";
const PASSWORD: &str = "any text";
const FILE: &str = "the path of a file";

pub(super) const STORE: SettingSection = SettingSection {
    title: "Store",
    intro: "Entries are kept in Redis, or in this process.",
    settings: &[
        text(
            "store.url",
            "redis://127.0.0.1:6379",
            "a URL of one of the listed forms",
            |c, v| {
                let (url, options) = store_url::parse(v)?;
                c.store.client_name = options.client_name;
                put(&mut c.store.url, Ok(url))
            },
        )
        .visibility(Visibility::Url)
        .env_file()
        .flag("redis-url", "URL", PLACES)
        .env(&["JOBCACHE_REDIS_URL", "REDIS_URL"])
        .help("URL of Redis, or memory:// to run a single sidecar without Redis.")
        .note(
            "Forms: `redis://[user:password@]host[:port][/db]`; `unix:///path/to/socket`; \
             `redis-sentinel://[user:password@]host,host/master[/db]`, which asks sentinels for the \
             master; `redis-cluster://[user:password@]host,host`, which names some nodes of a Redis \
             Cluster; `memory://` for a store in this process, which no other sidecar sees. Each host \
             may have a `:port`. `rediss://`, `rediss-sentinel://` and `rediss-cluster://` use TLS. \
             Percent-encode special characters of the password. Query options of redis-py, Celery, \
             ioredis and go-redis are understood; a setting of `[store.tls]` wins over an option.",
        )
        .see("redis"),
        text("store.username", "", USER, |c, v| {
            put(&mut c.store.login.username, parse::username(v))
        })
        .unset("the URL's, or the default user of Redis", "\"jobcache\"")
        .help("User of Redis, unless the URL names one."),
        text("store.password", "", PASSWORD, |c, v| {
            put(&mut c.store.login.password, parse::password(v))
        })
        .visibility(Visibility::Hidden)
        .unset("the URL's", "\"...\"")
        .help("Password of Redis, unless the URL has one."),
        text("store.password_file", "", FILE, |c, v| {
            put(&mut c.store.login.password_file, parse::path(v))
        })
        .unset("none", "\"/run/secrets/redis-password\"")
        .help("File with the password of Redis.")
        .note("It is read for each connection, so a changed password is used at the next one."),
        time("store.budget", "50ms", (MS, Duration::from_secs(10)), |c, v| c.store.budget = v)
            .flag("store-budget", "TIME", CACHING)
            .help("Time that Redis may cost a read, over all operations. A write may wait twice as long.")
            .note("When it is used up, the request goes to the API. Raise it if Redis is far away: two round trips must fit."),
        short_text("store.prefix", "job_status:", (1, 64), |c, v| {
            put(&mut c.store.prefix, parse::prefix(v))
        })
        .form("no braces, white space or control characters")
        .help("Text before the job id in a Redis key.")
        .note("The application may also invalidate a job by `DEL` of the prefix and the id."),
        time("store.lease", "10s", (SECOND, FIVE_MINUTES), |c, v| c.store.lease = v)
            .help("Time that one sidecar has to fetch a job before another one may fetch it.")
            .note("Set it above the response time of the job endpoint."),
        time("store.linger", "10s", (SECOND, FIVE_MINUTES), |c, v| c.store.linger = v)
            .help("Time during which nothing is stored for a job after a write of unknown outcome.")
            .note("The outcome is unknown if the API timed out or reset the connection."),
        time("store.reconnect_grace", "1s", (Duration::ZERO, MINUTE), |c, v| {
            c.store.reconnect_grace = v;
        })
        .help("Time for which no hit is served after Redis has restarted or failed over.")
        .note(
            "By then every sidecar has connected again, and has repeated the invalidations that \
             Redis had not confirmed. It counts from the first sidecar that connects. `0s`: a \
             sidecar that connects early may serve what another one has yet to invalidate.",
        )
        .see("guarantee"),
        size("store.compress_above", "", (KIB, 64 * MIB), |c, v| c.store.compress_above = Some(v))
            .on_reload()
            .unset("no body is compressed", "\"16KiB\"")
            .help("Bodies of more bytes are stored compressed (Zstandard).")
            .note(
                "`redis-cli GET`, and an application that reads the key, then find compressed bytes \
                 instead of JSON. Set it only when every sidecar of the store supports compression: \
                 older versions treat compressed entries as misses.",
            )
            .see("redis"),
        size("store.memory_max", "256MiB", (MIB, 64 * GIB), |c, v| c.store.memory_max = v)
            .help("Bytes of bodies that `memory://` keeps.")
            .note("With a memory limit (cgroup) the default is at most a quarter of it."),
    ],
};

pub(super) const SENTINEL: SettingSection = SettingSection {
    title: "Sentinels",
    intro: "These apply to a `redis-sentinel://` URL. User and password of Redis are never sent to \
            the sentinels.",
    settings: &[
        text("store.sentinel.username", "", USER, |c, v| {
            put(&mut c.store.sentinel.login.username, parse::username(v))
        })
        .unset("none", "\"jobcache\"")
        .help("User of the sentinels."),
        text("store.sentinel.password", "", PASSWORD, |c, v| {
            put(&mut c.store.sentinel.login.password, parse::password(v))
        })
        .visibility(Visibility::Hidden)
        .unset("none", "\"...\"")
        .help("Password of the sentinels."),
        text("store.sentinel.password_file", "", FILE, |c, v| {
            put(&mut c.store.sentinel.login.password_file, parse::path(v))
        })
        .unset("none", "\"/run/secrets/sentinel-password\"")
        .help("File with the password of the sentinels, read for each connection."),
        switch("store.sentinel.tls", "", |c, v| c.store.sentinel.tls = Some(v))
            .unset("as the scheme of the URL says of Redis", "false")
            .help("Whether the sentinels use TLS.")
            .note("They then use the files of `[store.tls]`."),
    ],
};

pub(super) const PENDING: SettingSection = SettingSection {
    title: "Unconfirmed invalidations",
    intro: "Invalidations that Redis has not confirmed are repeated until it has.",
    settings: &[
        number("pending.limit", "10000", (1, 1_000_000), |c, v| c.pending.limit = v)
            .help("Jobs with an unconfirmed invalidation that are remembered.")
            .note(
                "Beyond this limit each further one takes all jobs of its slot out of the cache until \
                 everything in the slot has been purged. There are 16,384 slots, as in a Redis \
                 Cluster, and also without one.",
            )
            .see("redis"),
        text("pending.journal", "", FILE, |c, v| put(&mut c.pending.journal, parse::path(v)))
            .unset("none", "\"/var/lib/jobcache/pending.journal\"")
            .help("File in which unconfirmed invalidations survive a restart.")
            .note(
                "It is synced before a write is answered. Without it, a sidecar that restarts while \
                 Redis is down may serve what was changed meanwhile, until the TTL ends.",
            ),
    ],
};
