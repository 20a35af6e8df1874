//! Jobs that are read before a client asks for them.

use crate::config::{
    parse,
    setter::put,
    setting_spec::{SettingSection, Visibility, list, number, text},
};

pub(super) const WARM: SettingSection = SettingSection {
    title: "Cache warming",
    table: "warm",
    intro: "jobcache can read jobs before a client asks: at its start those that a file or a list of \
            the API names, and later those of purges with `\"refresh\": true`.",
    settings: &[
        text("warm.file", "", "the path of a file of at most 4 MiB", |c, v| {
            put(&mut c.warm.file, parse::path(v))
        })
        .env(&["JOBCACHE_WARM_FILE"])
        .unset("none", "\"/etc/jobcache/active.txt\"")
        .help("File with the ids of jobs to read at the start.")
        .note("It has one id per line; text after a `#` is a comment.")
        .see("what-is-cached"),
        text("warm.list", "", "a path of the API, with a query if needed", |c, v| {
            put(&mut c.warm.list, parse::target(v))
        })
        .env(&["JOBCACHE_WARM_LIST"])
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
        .env(&["JOBCACHE_WARM_POINTER"])
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
        .env(&["JOBCACHE_WARM_HEADERS"])
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
        .env(&["JOBCACHE_WARM_AUTHORIZATION"])
        .unset("none", "\"Bearer ...\"")
        .help("`Authorization` of these reads, if the API needs one.")
        .note("Prefer the variables to the configuration file, so that the file holds no secret."),
        number("warm.rate", "20", (1, 10_000), |c, v| c.warm.rate = v)
            .env(&["JOBCACHE_WARM_RATE"])
            .help("Such reads per second."),
        number("warm.max", "10000", (1, 100_000), |c, v| c.warm.max = v)
            .env(&["JOBCACHE_WARM_MAX"])
            .help("Jobs that may wait for such a read.")
            .note("Further ones are left to their first client."),
    ],
};
