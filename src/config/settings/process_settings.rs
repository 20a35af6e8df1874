//! Addresses to listen on, the purge webhook, log and shutdown.

use std::time::Duration;

use crate::config::{
    LogFormat, parse,
    setter::put,
    setting_spec::{
        FIVE_MINUTES, HOUR, LOGS, PLACES, SettingSection, Visibility, choice, number, switch, text,
        time, words,
    },
};

const ADDRESS: &str = "`ip:port` or `unix:/path/to/socket`";

pub(super) const LISTENERS: SettingSection = SettingSection {
    title: "Listeners",
    intro: "",
    settings: &[
        text("listen", "127.0.0.1:8080", ADDRESS, |c, v| put(&mut c.listen, v.parse()))
            .flag("listen", "ADDR", PLACES)
            .with_variables()
            .help("Address on which clients connect.")
            .note(
                "Use `0.0.0.0` only if other machines must be able to connect. `$PORT` or `${PORT}` (any \
                 name) stands for the value of that environment variable.",
            ),
        text("admin", "127.0.0.1:9090", ADDRESS, |c, v| put(&mut c.admin, v.parse()))
            .flag("admin", "ADDR", PLACES)
            .with_variables()
            .help("Address of the purge webhook, the health checks, the metrics and the status page.")
            .note(
                "Any address other than loopback or a unix socket needs `webhook_secret`: anyone who \
                 can connect can purge. `$PORT` is replaced as in `listen`.",
            )
            .see("security"),
        text("unix_mode", "0660", "permissions in octal, at most 0777", |c, v| {
            put(&mut c.unix_mode, parse::mode_bits(v))
        })
        .help("File permissions of `listen` and `admin` where they are unix sockets.")
        .note("A client needs write permission to connect."),
    ],
};

pub(super) const WEBHOOK: SettingSection = SettingSection {
    title: "Purge webhook",
    intro: "",
    settings: &[
        // Each call is compared with every secret.
        words("webhook_secret", (1, 8, "secret"), |c, v| {
            put(&mut c.webhook.secrets, parse::secrets(v))
        })
        .form("each 16 visible ASCII characters or more, or `whsec_` and base64")
        .visibility(Visibility::Hidden)
        .env_file()
        .on_reload()
        .unset("none: every caller may purge", "[\"...\"]")
        .help("Secret of the purge webhook.")
        .note(
            "Callers send it as a bearer token, or sign `POST /purge` with it (Standard Webhooks). \
             During a rotation list several, the newest first; all of them are accepted. A variable \
             or a secret file separates them by spaces or newlines. Prefer the variables to the \
             configuration file, so that the file holds no secret.",
        )
        .see("purging"),
        number("webhook_max_purges", "5000", (1, 1_000_000), |c, v| c.webhook.max_purges = v)
            .on_reload()
            .help("Purge calls that the webhook accepts per second, of any number of jobs each.")
            .note(
                "A call beyond this limit gets 429 with `Retry-After` and purges nothing; the sender \
                 has to repeat it.",
            ),
        number("webhook_max_failures", "60", (1, 1_000_000), |c, v| c.webhook.max_failures = v)
            .on_reload()
            .help("Calls per minute that one address may make without a valid secret or signature.")
            .note(
                "Calls with a body that does not arrive count too; all addresses of an IPv6 /64 count as \
                 one. Further calls get 429 instead of 401, and signed bodies of more than 8 KiB are \
                 then refused unread. A call with a valid secret is accepted even then.",
            ),
    ],
};

pub(super) const LOG: SettingSection = SettingSection {
    title: "Log",
    intro: "The log goes to standard error. Traces are set up by the variables of OpenTelemetry \
            (`OTEL_EXPORTER_OTLP_ENDPOINT` and others), not here.",
    settings: &[
        switch("access_log", "false", |c, v| c.log.access = v)
            .flag("access-log", "BOOL", LOGS)
            .on_reload()
            .help("Log one INFO line for each request, with its outcome."),
        text("log", "info", "a level or a list such as `info,jobcache=debug`", |c, v| {
            put(&mut c.log.filter, parse::log_filter(v))
        })
        .flag("log", "LEVEL", LOGS)
        .on_reload()
        .help("Log level: off, error, warn, info, debug or trace.")
        .note("`PUT /log` on the admin listener changes it until the next reload."),
        choice(
            "log_format",
            "human",
            &[
                ("human", |c| c.log.format = LogFormat::Human),
                ("json", |c| c.log.format = LogFormat::Json),
            ],
        )
        .flag("log-format", "FORMAT", LOGS)
        .help("Format of a log line.")
        .note("With `json` each line is one JSON object with all fields at its top level."),
    ],
};

pub(super) const SHUTDOWN: SettingSection = SettingSection {
    title: "Shutdown",
    intro: "",
    settings: &[
        time("drain_delay", "0s", (Duration::ZERO, FIVE_MINUTES), |c, v| c.drain.delay = v)
            .help(
                "Time during which a shutdown still accepts connections, while `/readyz` says 503.",
            )
            .note(
                "It gives a load balancer time to notice: use at least twice the interval of its \
                 health checks.",
            ),
        time("drain_timeout", "25s", (Duration::ZERO, HOUR), |c, v| c.drain.timeout = v)
            .help("Time that a shutdown then waits for running requests.")
            .note(
                "Keep the sum of `drain_delay` and `drain_timeout` below the orchestrator's grace \
                 period (Kubernetes: 30 s).",
            ),
    ],
};
