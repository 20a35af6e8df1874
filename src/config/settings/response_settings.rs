//! Response headers that keep no callers apart.

use crate::config::{
    parse,
    setter::put,
    setting_spec::{CACHE, SettingSection, list},
};

pub(super) const RESPONSES: SettingSection = SettingSection {
    title: "Responses",
    table: "responses",
    intro: "Two callers share an entry if the API gives them the same response.",
    settings: &[
        // Every header of a response is compared with every name.
        list("responses.volatile", "", (0, 64, "header"), |c, v| {
            put(&mut c.responses.volatile, parse::volatile_headers(v))
        })
        .on_reload()
        .flag("responses-volatile", "NAME", CACHE)
        .env(&["JOBCACHE_RESPONSES_VOLATILE"])
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
