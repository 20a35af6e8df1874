//! Cached paths, and entries in this process.

use std::time::Duration;

use super::units::{GIB, MIB, MINUTE, MS};
use crate::config::{
    CacheMode, NearMode, NearTracking, parse,
    setter::put,
    setting_spec::{
        CACHE as HEADING, SettingSection, choice, list, number, short_text, size, switch, text,
        time,
    },
};

pub(super) const CACHE: SettingSection = SettingSection {
    title: "What is cached",
    table: "",
    intro: "",
    settings: &[
        choice(
            "mode",
            "on",
            &[
                (CacheMode::On.as_str(), |c| c.mode = CacheMode::On),
                (CacheMode::Shadow.as_str(), |c| c.mode = CacheMode::Shadow),
                (CacheMode::Off.as_str(), |c| c.mode = CacheMode::Off),
            ],
        )
        .flag("mode", "MODE", HEADING)
        .on_reload()
        .env(&["JOBCACHE_MODE"])
        .help("Whether reads are answered from the cache.")
        .note(
            "`on`: hits are answered from the cache. `shadow`: the API answers every read; the cache \
             is filled all the same, and each hit that it would have been is compared with the API's \
             answer (`jobcache_shadow_total`). `off`: the API answers every read and nothing is \
             stored. Writes and purges invalidate in every mode.",
        )
        .see("operations"),
        text("verify", "0", "0 to 1", |c, v| put(&mut c.verify, parse::sample_rate(v)))
            .on_reload()
            .env(&["JOBCACHE_VERIFY"])
            .help("Share of the hits that are compared with the API in the background.")
            .note(
                "`0.01` is one in a hundred. The client does not wait for the comparison. An entry \
                 that differs is dropped; `jobcache_verify_total` counts the results.",
            )
            .see("operations"),
        short_text("api", "", (1, 64), |c, v| put(&mut c.api, parse::api(v)))
            .form("letters, digits and . _ ~ -")
            .flag("api", "NAME", HEADING)
            .env(&["JOBCACHE_API"])
            .unset("the sidecars of the Redis are all of one API", "\"billing\"")
            .help("Name of the API, for APIs that share a Redis.")
            .note(
                "All sidecars of one API need the same name. Entries of another name are never \
                 served. Give each API a `store.prefix` of its own as well: with the same one their \
                 entries replace each other.",
            )
            .see("redis"),
        // Every request is matched against every route.
        list("routes", "/jobs/{id},/api/v1/jobs/{id}", (1, 64, "route"), |c, v| {
            put(&mut c.routes, parse::routes(v))
        })
        .flag("route", "PATH", HEADING)
        .on_reload()
        .env(&["JOBCACHE_ROUTES"])
        .help("Paths of the job resource, each with one segment `{id}`.")
        .note(
            "GETs of these paths are cached. A write to such a path, or to anything below it, \
             invalidates the job. A flag (which may be repeated) or a variable replaces the whole \
             list.",
        )
        .see("what-is-cached"),
        size("max_body", "1MiB", (1, 64 * MIB), |c, v| c.max_body = v)
            .on_reload()
            .env(&["JOBCACHE_MAX_BODY"])
            .help("Largest body that is stored.")
            .note("Larger bodies pass through uncached."),
        size("max_captured", "64MiB", (MIB, 64 * GIB), |c, v| c.max_captured = v)
            .env(&["JOBCACHE_MAX_CAPTURED"])
            .help("Memory for all answers that are on their way into the cache.")
            .note(
                "An answer counts until it is stored and every waiting client has it. When this \
                 memory is used up, further answers stream through and are not stored. Keep it at \
                 or above `max_body`, or the largest bodies are never stored.",
            ),
        size("max_inspected", "16MiB", (4 * MIB, 64 * GIB), |c, v| c.max_inspected = v)
            .env(&["JOBCACHE_MAX_INSPECTED"])
            .help("Memory for the bodies of writes that `[[invalidate]]` rules read.")
            .note(
                "The bodies of purge calls have as much again. When it is used up, a further write or \
                 purge gets 503.",
            ),
        number("max_flights", "10000", (1, 1_000_000), |c, v| c.max_flights = v)
            .env(&["JOBCACHE_MAX_FLIGHTS"])
            .help("Reads of the API, running or waiting, that several clients may share at a time.")
            .note("Beyond this limit each miss makes its own read of the API."),
        time("settle", "1s", (Duration::ZERO, MINUTE), |c, v| c.settle = v)
            .flag("settle", "TIME", HEADING)
            .on_reload()
            .env(&["JOBCACHE_SETTLE"])
            .help("Time after a write during which nothing is stored for its job.")
            .note(
                "Set it above the replication lag if the API reads from a replica. `0s` is safe if \
                 the API commits before it answers and reads its own writes.",
            )
            .see("what-is-cached"),
        switch("ignore_client_cache_control", "false", |c, v| c.ignore_client_cache_control = v)
            .on_reload()
            .env(&["JOBCACHE_IGNORE_CLIENT_CACHE_CONTROL"])
            .help("Ignore `Cache-Control` and `Pragma` of requests.")
            .note(
                "A browser sends `no-cache` or `max-age=0` with each reload, and each then costs a \
                 read of the API. `only-if-cached` still works: without an entry it gets 504.",
            ),
    ],
};

pub(super) const NEAR: SettingSection = SettingSection {
    title: "Entries in this process",
    table: "",
    intro: "jobcache keeps entries in its own memory, in front of Redis. Redis reports every change \
            to it (`CLIENT TRACKING`).",
    settings: &[
        choice(
            "near",
            "strict",
            &[
                (NearMode::Strict.as_str(), |c| c.near.mode = NearMode::Strict),
                (NearMode::Bounded.as_str(), |c| c.near.mode = NearMode::Bounded),
                (NearMode::Off.as_str(), |c| c.near.mode = NearMode::Off),
            ],
        )
        .flag("near", "MODE", HEADING)
        .env(&["JOBCACHE_NEAR"])
        .help("When an entry in this process may be served.")
        .note(
            "`strict`: after Redis has answered a `PING` that was sent after the request arrived. \
             Requests share the `PING`, and nothing is ever older than what Redis itself would \
             serve. `bounded`: without waiting, while the last such answer is younger than \
             `near_max_staleness`; writes and purges through this sidecar show at once, others \
             within that time. `off`: every hit asks Redis.",
        )
        .see("redis"),
        time("near_max_staleness", "1s", (MS, MINUTE), |c, v| c.near.max_staleness = v)
            .env(&["JOBCACHE_NEAR_MAX_STALENESS"])
            .help("How late a change made through another sidecar may show in `near = \"bounded\"`."),
        size("near_max_bytes", "128MiB", (MIB, 64 * GIB), |c, v| c.near.max_bytes = v)
            .env(&["JOBCACHE_NEAR_MAX_BYTES"])
            .help("Memory for entries in this process."),
        choice(
            "near_tracking",
            "broadcast",
            &[
                ("broadcast", |c| c.near.tracking = NearTracking::Broadcast),
                ("keys", |c| c.near.tracking = NearTracking::Keys),
            ],
        )
        .env(&["JOBCACHE_NEAR_TRACKING"])
        .help("Changes that Redis reports to this process.")
        .note(
            "`broadcast`: the changes of every job. `keys`: only those of jobs that this process has \
             read since their last change. Redis remembers them, up to its \
             `tracking-table-max-keys`, and a hit that is read from Redis takes one round trip more. \
             Use `keys` if many sidecars share one Redis.",
        )
        .see("redis"),
    ],
};

pub(super) const QUERY: SettingSection = SettingSection {
    title: "Query parameters of reads",
    table: "query",
    intro: "A read with any other query parameter passes uncached. Names are written decoded and in \
            the case that clients use.",
    settings: &[
        // Every parameter of a query is compared with every name.
        list("query.allow", "", (0, 64, "parameter"), |c, v| {
            put(&mut c.query.allow, parse::parameters(v))
        })
        .on_reload()
        .env(&["JOBCACHE_QUERY_ALLOW"])
        .unset("none", "[\"view\"]")
        .help("Parameters that change only the form of the API's answer.")
        .note(
            "Each spelling of a query asks the API first, and shares the entry of the job only if it \
             got the same answer. So name parameters that all pollers of a job send alike. Never \
             name one that adds other resources to the answer: a write to those would not invalidate \
             it.",
        )
        .see("what-is-cached"),
        list("query.ignore", "", (0, 64, "parameter"), |c, v| {
            put(&mut c.query.ignore, parse::parameters(v))
        })
        .on_reload()
        .env(&["JOBCACHE_QUERY_IGNORE"])
        .unset("none", "[\"_\", \"t\"]")
        .help("Parameters that do not change the API's answer, such as the cache busters `_` and `t`.")
        .note(
            "A read that has only these is answered and stored as one without a query; the API \
             receives the query as it was sent. Never name a parameter that selects or filters: its \
             answers would be mixed up.",
        )
        .see("what-is-cached"),
    ],
};
