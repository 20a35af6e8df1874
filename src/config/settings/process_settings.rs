//! Log and shutdown.

use std::time::Duration;

use super::units::{FIVE_MINUTES, HOUR};
use crate::config::{
    LogFormat, log_directives,
    setter::put,
    setting_spec::{LOGS, SettingSection, choice, switch, text, time},
};

pub(super) const LOG: SettingSection = SettingSection {
    title: "Log",
    table: "",
    intro: "The log goes to standard error. Traces are set up by the variables of OpenTelemetry \
            (`OTEL_EXPORTER_OTLP_ENDPOINT` and others), not here.",
    settings: &[
        switch("access_log", "false", |c, v| c.access_log = v)
            .flag("access-log", "BOOL", LOGS)
            .on_reload()
            .env(&["JOBCACHE_ACCESS_LOG"])
            .help("Log one INFO line for each request, with its outcome."),
        text("log", "info", "a level or a list such as `info,jobcache=debug`", |c, v| {
            put(&mut c.log, log_directives::filter(v))
        })
        .flag("log", "LEVEL", LOGS)
        .on_reload()
        .env(&["JOBCACHE_LOG"])
        .help("Log level: off, error, warn, info, debug or trace.")
        .note("`PUT /log` on the admin listener changes it until the next reload."),
        choice(
            "log_format",
            "human",
            &[
                ("human", |c| c.log_format = LogFormat::Human),
                ("json", |c| c.log_format = LogFormat::Json),
            ],
        )
        .flag("log-format", "FORMAT", LOGS)
        .env(&["JOBCACHE_LOG_FORMAT"])
        .help("Format of a log line.")
        .note("With `json` each line is one JSON object with all fields at its top level."),
    ],
};

pub(super) const SHUTDOWN: SettingSection = SettingSection {
    title: "Shutdown",
    table: "",
    intro: "",
    settings: &[
        time("drain_delay", "0s", (Duration::ZERO, FIVE_MINUTES), |c, v| c.drain_delay = v)
            .env(&["JOBCACHE_DRAIN_DELAY"])
            .help(
                "Time during which a shutdown still accepts connections, while `/readyz` says 503.",
            )
            .note(
                "It gives a load balancer time to notice: use at least twice the interval of its \
                 health checks.",
            ),
        time("drain_timeout", "25s", (Duration::ZERO, HOUR), |c, v| c.drain_timeout = v)
            .env(&["JOBCACHE_DRAIN_TIMEOUT"])
            .help("Time that a shutdown then waits for running requests.")
            .note(
                "Keep the sum of `drain_delay` and `drain_timeout` below the orchestrator's grace \
                 period (Kubernetes: 30 s).",
            ),
    ],
};
