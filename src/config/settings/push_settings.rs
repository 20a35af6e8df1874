//! Settings of push: clients that wait for the next version of a job.

use hyper::http::HeaderValue;

use crate::config::{
    PushMode, parse,
    setter::put,
    setting_spec::{
        CACHING, HOUR, SECOND, SettingSection, SettingSpec, choice, list, number, text, time,
    },
};

pub(super) const PUSH: SettingSection = SettingSection {
    title: "Push",
    intro: "A client may wait for the next version of a job instead of polling for it. jobcache reads the \
            job once for all clients that wait for it and may share the answer.",
    settings: &[
        MODE,
        text(
            "push.accept",
            "application/json",
            "the value of a header field that does not name `text/event-stream`",
            |c, v| put(&mut c.push.accept, accept(v)),
        )
        .on_reload()
        .help("`Accept` of the reads for streams of events.")
        .note(
            "The client's own `Accept` asks for the stream, which the API does not have. Name the type \
             that polling clients ask for, so that both share entries.",
        ),
        time("push.max_wait", "60s", (SECOND, HOUR), |c, v| c.push.max_wait = v)
            .on_reload()
            .help("Longest time for which a poll with `Prefer: wait` is held.")
            .note(
                "A client that asks for more gets its answer after this time, which counts in whole \
                 seconds. Keep it below the idle timeout of the proxies in front (often 60 s), or they \
                 close held requests.",
            ),
        number("push.max_reads", "32", (1, 10_000), |c, v| c.push.max_reads = v)
            .on_reload()
            .help("Reads of the API for waiting clients at a time.")
            .note(
                "A job that changes is read once for each caller that waits for it, because the API \
                 decides what each of them may see. This spreads those reads, so that one change does \
                 not flood the API.",
            ),
        time("push.recheck", "30s", (SECOND, HOUR), |c, v| c.push.recheck = v)
            .on_reload()
            .help("Time after which a job without news is read again for the clients that wait for it.")
            .note(
                "It bounds how late a change shows that no write, purge or `DEL` announced, and how late \
                 a stream notices that its caller lost access. Such a read is shared like any other.",
            ),
        number("push.max_waiting", "5000", (1, 1_000_000), |c, v| c.push.max_waiting = v)
            .help("Clients that may wait at a time, polls and streams together.")
            .note(
                "A further client is answered as if push were off. Each takes up to 16 KiB. The default is \
                 half of `server.max_connections`, so that clients that do not wait always find a \
                 connection. With a memory limit (cgroup) it is at most one for each 96 KiB of it.",
            ),
    ],
};

const MODE: SettingSpec = choice(
    "push.mode",
    "off",
    &[
        (PushMode::Off.as_str(), |c| c.push.mode = PushMode::Off),
        (PushMode::LongPoll.as_str(), |c| c.push.mode = PushMode::LongPoll),
        (PushMode::Sse.as_str(), |c| c.push.mode = PushMode::Sse),
        (PushMode::All.as_str(), |c| c.push.mode = PushMode::All),
    ],
)
.flag("push", "MODE", CACHING)
.env(&["JOBCACHE_PUSH"])
.help("How clients may wait for the next version of a job.")
.note(
    "`long-poll`: a `GET` with `Prefer: wait=20` and `If-None-Match` is held until the job has another \
     entity tag. `sse`: a `GET` with `Accept: text/event-stream` gets each version as an event. `all`: \
     both. `off`: neither, and these fields reach the API as they are. Otherwise the API never sees \
     `Prefer: wait` and `Last-Event-ID` of a read, and they do not tell callers apart.",
);

pub(super) const FINAL_STATES: SettingSection = SettingSection {
    title: "Final states of a job",
    intro: "A stream ends after the version in which the job has reached one of these states. In the table \
            `[push]` they may also be written as `final = { pointer = \"/status\", values = [\"COMPLETED\"] \
            }`.",
    settings: &[
        text("push.final.pointer", "/status", "JSON pointer (RFC 6901)", |c, v| {
            put(&mut c.push.final_states.pointer, parse::pointer(v))
        })
        .on_reload()
        .help("Place of the state in the body.")
        .note("The state may be a string, a boolean or an integer."),
        // The state of every version is compared with every value.
        list("push.final.values", "COMPLETED,FAILED,CANCELLED", (0, 64, "state"), |c, v| {
            put(&mut c.push.final_states.values, parse::states(v))
        })
        .on_reload()
        .help("States in which a job no longer changes.")
        .note("The case of letters counts. Without any, a stream lasts until its client ends it."),
    ],
};

/// The value of `Accept`. A read for a stream must have an answer that ends.
fn accept(text: &str) -> Result<HeaderValue, String> {
    if text.to_ascii_lowercase().contains("text/event-stream") {
        return Err(
            "must not name text/event-stream, because such an answer of the API never ends: name \
                    the type of a job, such as application/json"
                .to_owned(),
        );
    }
    parse::header_value(text)
}
