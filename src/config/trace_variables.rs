//! The variables of OpenTelemetry, for the documents. The module `traces` reads them.

use std::fmt::Display;

use super::traces::{
    DEFAULT_BATCH, DEFAULT_DELAY_MS, DEFAULT_ENDPOINT, DEFAULT_QUEUE, DEFAULT_TIMEOUT_MS, PROTOCOL,
};

/// One row of the documents.
pub(super) struct TraceVariable {
    pub(super) names: &'static [&'static str],
    pub(super) default: String,
    pub(super) help: String,
}

/// Introduction for the documents.
pub(super) const INTRO: &str = "\
    Traces have no settings of their own: the standard variables of OpenTelemetry set them, and a change \
    needs a restart. Without an endpoint nothing is traced. A value that cannot be used is reported as a \
    warning; jobcache starts all the same. Where a variable has a form for traces, such as \
    `OTEL_EXPORTER_OTLP_TRACES_HEADERS`, that form wins.";

fn variable(
    names: &'static [&'static str],
    default: &dyn Display,
    help: impl Into<String>,
) -> TraceVariable {
    TraceVariable { names, default: default.to_string(), help: help.into() }
}

/// All variables, in the order of the documents.
pub(super) fn trace_variables() -> impl Iterator<Item = TraceVariable> {
    endpoint().into_iter().chain(messages()).chain(spans())
}

fn endpoint() -> Vec<TraceVariable> {
    vec![
        variable(
            &["OTEL_EXPORTER_OTLP_ENDPOINT"],
            &"none",
            "Collector for OTLP over HTTP (usually port 4318; gRPC uses 4317). `/v1/traces` is appended.",
        ),
        variable(
            &["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"],
            &"none",
            "The same, used as it is. It wins over the endpoint of all signals.",
        ),
        variable(
            &["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"],
            &PROTOCOL,
            format!("Only `{PROTOCOL}` is supported; with another value no spans are sent."),
        ),
    ]
}

fn messages() -> Vec<TraceVariable> {
    vec![
        variable(
            &["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"],
            &"none",
            "Header fields of each message, such as credentials: `key=value,key=value`, values \
             percent-encoded.",
        ),
        variable(
            &["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"],
            &DEFAULT_TIMEOUT_MS,
            "Milliseconds to deliver one message, retries included.",
        ),
        variable(
            &["OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"],
            &"the authorities of the system",
            "Authorities that may have signed the certificate of an `https` collector.",
        ),
        variable(
            &["OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"],
            &"none",
            "Ignored with a warning: spans are sent uncompressed.",
        ),
    ]
}

fn spans() -> Vec<TraceVariable> {
    vec![
        variable(
            &["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"],
            &"jobcache",
            "Name and attributes of this service.",
        ),
        variable(
            &["OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"],
            &"parentbased_always_on",
            "Which traces are sampled, such as `parentbased_traceidratio` with `0.01`.",
        ),
        variable(
            &["OTEL_TRACES_EXPORTER"],
            &"otlp if there is an endpoint",
            format!(
                "`none` sends no spans. `otlp` without an endpoint sends to `{DEFAULT_ENDPOINT}`."
            ),
        ),
        variable(&["OTEL_SDK_DISABLED"], &"false", "`true` sends no spans."),
        variable(&["OTEL_BSP_MAX_QUEUE_SIZE"], &DEFAULT_QUEUE, "Spans that may wait to be sent."),
        variable(
            &["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"],
            &DEFAULT_BATCH,
            "Largest number of spans in one message.",
        ),
        variable(
            &["OTEL_BSP_SCHEDULE_DELAY"],
            &DEFAULT_DELAY_MS,
            "Milliseconds for which a span may wait for others.",
        ),
    ]
}
