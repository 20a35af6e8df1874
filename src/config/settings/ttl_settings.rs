//! How long entries are kept.

use super::units::{DAY, SECOND};
use crate::config::{
    parse,
    setter::put,
    setting_spec::{CACHE, SettingSection, switch, text, time, times},
};

pub(super) const TTL: SettingSection = SettingSection {
    title: "Lifetime of entries",
    table: "ttl",
    intro: "",
    settings: &[
        time("ttl.default", "300s", (SECOND, DAY), |c, v| c.ttl = v)
            .flag("ttl", "TIME", CACHE)
            .on_reload()
            .env(&["JOBCACHE_TTL"])
            .help("Longest time for which an entry is kept.")
            .note(
                "A response that states a shorter lifetime is kept for that time. A new value applies \
                 to what is stored from then on; to shorten existing entries, purge all.",
            ),
        switch("ttl.stated_only", "false", |c, v| c.ttl_stated_only = v)
            .on_reload()
            .env(&["JOBCACHE_TTL_STATED_ONLY"])
            .help("Store only responses that state a lifetime (`s-maxage`, `max-age` or `Expires`).")
            .note("Use it if the API already says what may be cached."),
    ],
};

pub(super) const STATES: SettingSection = SettingSection {
    title: "Lifetime by state of the job",
    table: "ttl.states",
    intro: "Shorter lifetimes for jobs that still run, so that a lost purge cannot freeze them on a \
            screen. An entry is never kept longer than `ttl.default` or than its response states.",
    settings: &[
        text("ttl.states.pointer", "/status", "JSON pointer (RFC 6901)", |c, v| {
            put(&mut c.states.pointer, parse::pointer(v))
        })
        .on_reload()
        .env(&["JOBCACHE_TTL_STATES_POINTER"])
        .help("Place of the state in the body.")
        .note("The state may be a string, a boolean or an integer."),
        times("ttl.states.map", (64, "state"), (SECOND, DAY), |c, v| c.states.map = v)
            .on_reload()
            .env(&["JOBCACHE_TTL_STATES_MAP"])
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
