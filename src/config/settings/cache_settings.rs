//! Settings of the cache: reads, lifetimes, responses, and jobs that are read before a client asks.

use std::time::Duration;

use crate::config::{
    CacheMode, Ids, NearMode, NearTracking, parse,
    setter::put,
    setting_spec::{
        CACHING, DAY, GIB, MIB, MINUTE, MS, SECOND, SettingSection, Visibility, choice, list,
        number, short_text, size, switch, text, time, times,
    },
};

pub(super) const CACHE: SettingSection = SettingSection {
    title: "What is cached",
    intro: "",
    settings: &[
        choice(
            "mode",
            "on",
            &[
                (CacheMode::On.as_str(), |c| c.cache.mode = CacheMode::On),
                (CacheMode::Shadow.as_str(), |c| c.cache.mode = CacheMode::Shadow),
                (CacheMode::Off.as_str(), |c| c.cache.mode = CacheMode::Off),
            ],
        )
        .flag("mode", "MODE", CACHING)
        .on_reload()
        .help("Whether reads are answered from the cache.")
        .note(
            "`on`: hits are answered from the cache. `shadow`: the API answers every read; the cache \
             is filled all the same, and each hit that it would have been is compared with the API's \
             answer (`jobcache_shadow_total`). `off`: the API answers every read and nothing is \
             stored. Writes and purges invalidate in every mode.",
        )
        .see("operations"),
        text("verify", "0", "0 to 1", |c, v| put(&mut c.cache.verify, parse::sample_rate(v)))
            .on_reload()
            .help("Share of the hits that are compared with the API in the background.")
            .note(
                "`0.01` is one in a hundred. The client does not wait for the comparison. An entry \
                 that differs is dropped; `jobcache_verify_total` counts the results.",
            )
            .see("operations"),
        short_text("api", "", (1, 64), |c, v| put(&mut c.api.name, parse::api(v)))
            .form("letters, digits and . _ ~ -")
            .flag("api", "NAME", CACHING)
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
            put(&mut c.api.paths, parse::routes(v))
        })
        .flag("route", "PATH", CACHING)
        .on_reload()
        .help("Paths of the jobs, each with the variable `{id}`.")
        .note(
            "GETs of these paths are cached. A write to such a path, or to anything below it, \
             invalidates the job. A path may have further variables (`/t/{tenant}/jobs/{id}`), literal \
             text around each (`{id}.json`), and a slash at the end. `[[route]]` gives a path a key, \
             lifetimes or statuses of its own. A flag (which may be repeated) or a variable replaces \
             the whole list.",
        )
        .see("what-is-cached"),
        choice(
            "ids",
            "auto",
            &[
                (Ids::Auto.as_str(), |c| c.api.ids = Ids::Auto),
                (Ids::Opaque.as_str(), |c| c.api.ids = Ids::Opaque),
            ],
        )
        .flag("ids", "WORD", CACHING)
        .on_reload()
        .help("How the API reads the ids in its paths.")
        .note(
            "`auto`: not known, so only ids with a digit are cached, and only in the spelling that every \
             parser of numbers and UUIDs leaves as it is. `opaque`: the API compares ids as text, so any \
             segment is an id. Set it only if `/jobs/7` and `/jobs/007` are different jobs to the API.",
        )
        .see("what-is-cached"),
        list("except", "", (0, 64, "path"), |c, v| put(&mut c.api.except, parse::except(v)))
            .flag("except", "PATH", CACHING)
            .on_reload()
            .unset("no path", "[\"/jobs/latest\"]")
            .help("Paths that are never cached, although a route matches them.")
            .note("They may have variables, as routes have.")
            .see("what-is-cached"),
        times("statuses", (0, 64, "code"), (SECOND, DAY), |c, v| {
            put(&mut c.api.statuses, parse::statuses(v))
        })
        .flag("statuses", "PAIRS", CACHING)
        .on_reload()
        .unset("only 200 is stored", "{ 202 = \"5s\", 303 = \"300s\", 404 = \"2s\" }")
        .help("Statuses that are stored besides 200, and for how long.")
        .note(
            "For APIs that answer 202 while a job runs, 303 when it is done, 404 before it is there or \
             410 after it is gone. An application that reads such a key from Redis finds an empty text, \
             never a job.",
        )
        .see("what-is-cached"),
        size("max_body", "256KiB", (1, 64 * MIB), |c, v| c.cache.limits.max_body = v)
            .on_reload()
            .help("Largest body that is stored.")
            .note("Larger bodies pass through uncached."),
        size("max_captured", "64MiB", (MIB, 64 * GIB), |c, v| c.cache.limits.max_captured = v)
            .help("Memory for all answers that are on their way into the cache.")
            .note(
                "An answer counts until it is stored and every waiting client has it. When this \
                 memory is used up, further answers stream through and are not stored. Keep it at \
                 or above `max_body`, or the largest bodies are never stored. With a memory limit \
                 (cgroup) the default is at most an eighth of it.",
            ),
        size("max_inspected", "16MiB", (4 * MIB, 64 * GIB), |c, v| c.cache.limits.max_inspected = v)
            .help("Memory for the bodies of writes that `[[invalidate]]` rules read.")
            .note(
                "The bodies of purge calls have as much again. When it is used up, a further write or \
                 purge gets 503. With a memory limit (cgroup) the default is at most 1/24 of it.",
            ),
        number("max_flights", "10000", (1, 1_000_000), |c, v| c.cache.limits.max_flights = v)
            .help("Reads of the API, running or waiting, that several clients may share at a time.")
            .note("Beyond this limit each miss makes its own read of the API."),
        time("settle", "1s", (Duration::ZERO, MINUTE), |c, v| c.cache.settle = v)
            .flag("settle", "TIME", CACHING)
            .on_reload()
            .help("Time after a write during which nothing is stored for its job.")
            .note(
                "Set it above the replication lag if the API reads from a replica. `0s` is safe if \
                 the API commits before it answers and reads its own writes.",
            )
            .see("what-is-cached"),
        switch("ignore_client_cache_control", "false", |c, v| c.cache.ignore_client_cache_control = v)
            .on_reload()
            .help("Ignore `Cache-Control` and `Pragma` of requests.")
            .note(
                "A browser sends `no-cache` or `max-age=0` with each reload, and each then costs a \
                 read of the API. `only-if-cached` still works: without an entry it gets 504.",
            ),
    ],
};

pub(super) const NEAR: SettingSection = SettingSection {
    title: "Entries in this process",
    intro: "jobcache keeps entries in its own memory, in front of Redis. Redis reports every change \
            to it (`CLIENT TRACKING`).",
    settings: &[
        choice(
            "near",
            "strict",
            &[
                (NearMode::Strict.as_str(), |c| c.cache.near.mode = NearMode::Strict),
                (NearMode::Bounded.as_str(), |c| c.cache.near.mode = NearMode::Bounded),
                (NearMode::Off.as_str(), |c| c.cache.near.mode = NearMode::Off),
            ],
        )
        .flag("near", "MODE", CACHING)
        .help("When an entry in this process may be served.")
        .note(
            "`strict`: after Redis has answered a `PING` that was sent after the request arrived. \
             Requests share the `PING`, and nothing is ever older than what Redis itself would \
             serve. `bounded`: without waiting, while the last such answer is younger than \
             `near_max_staleness`; writes and purges through this sidecar show at once, others \
             within that time. `off`: every hit asks Redis.",
        )
        .see("redis"),
        time("near_max_staleness", "1s", (MS, MINUTE), |c, v| c.cache.near.max_staleness = v)
            .help("How late a change made through another sidecar may show in `near = \"bounded\"`."),
        size("near_max_bytes", "128MiB", (MIB, 64 * GIB), |c, v| c.cache.near.max_bytes = v)
            .help("Memory for entries in this process.")
            .note("With a memory limit (cgroup) the default is at most a quarter of it.")
            .see("deploy"),
        choice(
            "near_tracking",
            "broadcast",
            &[
                ("broadcast", |c| c.cache.near.tracking = NearTracking::Broadcast),
                ("keys", |c| c.cache.near.tracking = NearTracking::Keys),
            ],
        )
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
    intro: "A read with any other query parameter passes uncached. Names are written decoded and in \
            the case that clients use.",
    settings: &[
        // Every parameter of a query is compared with every name.
        list("query.allow", "", (0, 64, "parameter"), |c, v| {
            put(&mut c.api.query.allow, parse::parameters(v))
        })
        .on_reload()
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
            put(&mut c.api.query.ignore, parse::parameters(v))
        })
        .on_reload()
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

pub(super) const TTL: SettingSection = SettingSection {
    title: "Lifetime of entries",
    intro: "",
    settings: &[
        time("ttl.default", "300s", (SECOND, DAY), |c, v| c.cache.lifetimes.ttl = v)
            .flag("ttl", "TIME", CACHING)
            .on_reload()
            .env(&["JOBCACHE_TTL"])
            .help("Longest time for which an entry is kept.")
            .note(
                "A response that states a shorter lifetime is kept for that time. A new value applies \
                 to what is stored from then on; to shorten existing entries, purge all.",
            ),
        switch("ttl.stated_only", "false", |c, v| c.cache.lifetimes.stated_only = v)
            .on_reload()
            .help("Store only responses that state a lifetime (`s-maxage`, `max-age` or `Expires`).")
            .note("Use it if the API already says what may be cached."),
    ],
};

pub(super) const STATES: SettingSection = SettingSection {
    title: "Lifetime by state of the job",
    intro: "Shorter lifetimes for jobs that still run, so that a lost purge cannot freeze them on a \
            screen. An entry is never kept longer than `ttl.default` or than its response states.",
    settings: &[
        text("ttl.states.pointer", "/status", "JSON pointer (RFC 6901)", |c, v| {
            put(&mut c.cache.lifetimes.states.pointer, parse::pointer(v))
        })
        .on_reload()
        .help("Place of the state in the body.")
        .note("The state may be a string, a boolean or an integer."),
        times("ttl.states.map", (0, 64, "state"), (SECOND, DAY), |c, v| {
            c.cache.lifetimes.states.map = v;
            Ok(())
        })
        .on_reload()
        .unset(
            "states do not matter",
            "{ completed = \"300s\", failed = \"300s\", running = \"10s\" }",
        )
        .help("States, and how long a job is kept in each of them.")
        .note(
            "A state that is not listed, or cannot be found in the body, gets the shortest of \
                 these times. In the variable: `completed=300s,failed=300s,running=10s`.",
        ),
    ],
};

pub(super) const RESPONSES: SettingSection = SettingSection {
    title: "Responses",
    intro: "Two callers share an entry if the API gives them the same response.",
    settings: &[
        // Every header of a response is compared with every name.
        list("responses.volatile", "", (0, 64, "header"), |c, v| {
            put(&mut c.cache.responses.volatile, parse::volatile_headers(v))
        })
        .on_reload()
        .flag("responses-volatile", "NAME", CACHING)
        .unset("only those that jobcache knows", "[\"X-Pod\"]")
        .help("Response headers that say nothing about the job and may differ from read to read.")
        .note(
            "They are neither stored nor compared, so hits do not have them. A header that differs \
             and is not named here keeps callers apart; a warning names it. Request ids, traces, \
             durations and rate limits of common gateways and platforms are known.",
        )
        .see("what-is-cached"),
    ],
};

pub(super) const WARM: SettingSection = SettingSection {
    title: "Cache warming",
    intro: "jobcache can read jobs before a client asks: at its start those that a file or a list of \
            the API names, and later those of purges with `\"refresh\": true`.",
    settings: &[
        text("warm.file", "", "the path of a file of at most 4 MiB", |c, v| {
            put(&mut c.warm.file, parse::path(v))
        })
        .unset("none", "\"/etc/jobcache/active.txt\"")
        .help("File with the ids of jobs to read at the start.")
        .note("It has one id per line; text after a `#` is a comment.")
        .see("what-is-cached"),
        text("warm.list", "", "a path of the API, with a query if needed", |c, v| {
            put(&mut c.warm.list, parse::target(v))
        })
        .unset("none", "\"/jobs?status=active\"")
        .help("Path and query at which the API lists the jobs to read at the start.")
        .note(
            "The answer is one JSON document of at most 4 MiB. jobcache asks for two minutes until \
             the API answers 200, because the API may start at the same time.",
        ),
        // Both FastAPI and Spring paginate a list as an object with `items`.
        text("warm.pointer", "/items/*/id", "JSON pointer (RFC 6901)", |c, v| {
            put(&mut c.warm.pointer, parse::pointer(v))
        })
        .help("Place of the ids in that list.")
        .note(
            "`*` stands for every element of a list and every member of an object. Strings and whole \
             numbers are ids.",
        ),
        list("warm.headers", "", (1, 64, "header"), |c, v| {
            put(&mut c.warm.headers, parse::fields(v))
        })
        .form("each `Name: value`")
        .visibility(Visibility::Hidden)
        .env_file()
        .unset("none", "[\"Host: jobs.example.com\", \"Accept: application/json\"]")
        .help("Header fields of these reads, as polling clients send them.")
        .note(
            "An entry belongs to the `Host`, `Accept` and similar fields that it was read with. A \
             variable separates the fields by commas, so no value may contain one.",
        ),
        text("warm.authorization", "", "the value of a header field", |c, v| {
            put(&mut c.warm.authorization, parse::field_value(v))
        })
        .visibility(Visibility::Hidden)
        .env_file()
        .unset("none", "\"Bearer ...\"")
        .help("`Authorization` of these reads, if the API needs one.")
        .note("Prefer the variables to the configuration file, so that the file holds no secret."),
        number("warm.rate", "20", (1, 10_000), |c, v| c.warm.rate = v)
            .help("Such reads per second."),
        number("warm.max", "10000", (1, 100_000), |c, v| c.warm.max = v)
            .help("Jobs that may wait for such a read.")
            .note("Further ones are left to their first client."),
    ],
};
