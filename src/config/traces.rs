//! Destination of spans, read from the environment variables of OpenTelemetry, so that what an operator
//! or a cluster sets for every service applies to jobcache too.
//!
//! "The SDK MUST [..] generate a warning and gracefully ignore the setting" if a value is unknown
//! (OpenTelemetry, environment variable specification), so no value here keeps a sidecar from starting.
//! The SDK itself reads `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES` and the
//! limits of a span; this module only warns of a sampler that the SDK will ignore.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use hyper::http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::address::{self, unquoted};

/// Default address of collectors for OTLP over HTTP.
const DEFAULT_ENDPOINT: &str = "http://localhost:4318";
/// Path appended to the endpoint of all signals.
const PATH: &str = "/v1/traces";
/// The only protocol that is supported.
const PROTOCOL: &str = "http/protobuf";
const SAMPLERS: &str = "always_on, always_off, traceidratio, parentbased_always_on, \
                        parentbased_always_off, parentbased_traceidratio";
const DEFAULT_QUEUE: &str = "2048";
const DEFAULT_BATCH: &str = "512";
const DEFAULT_DELAY_MS: &str = "5000";
const DEFAULT_TIMEOUT_MS: &str = "10000";
/// Upper limit of the spans in memory, regardless of the variable.
const MAX_QUEUE: usize = 65_536;

/// Destination of spans, and how they are sent.
#[derive(Clone, PartialEq, Eq)]
pub struct TracesConfig {
    /// `http://host[:port]` or `https://host[:port]`.
    pub origin: String,
    /// Path and query.
    pub target: String,
    /// Header fields of each message; values may be secrets.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Authorities that may have signed the certificate of an `https` collector; none = those of the
    /// system.
    pub ca: Option<PathBuf>,
    /// Time to deliver one message, retries and pauses included.
    pub timeout: Duration,
    /// Spans that may wait; further ones are dropped.
    pub queue: usize,
    /// Largest number of spans in one message.
    pub batch: usize,
    /// Time for which a span may wait for others.
    pub delay: Duration,
}

/// Hides the headers and the query: either may hold a key.
impl fmt::Debug for TracesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{}{path}", self.origin)
    }
}

/// The variables, and the warnings about them.
struct Reader<'e> {
    env: &'e BTreeMap<String, String>,
    warnings: &'e mut Vec<String>,
}

/// Reads the variables; empty ones have already been removed. Returns none if no spans are sent, as
/// without an endpoint.
pub(super) fn read(
    env: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Option<TracesConfig> {
    let mut reader = Reader { env, warnings };
    let asked = reader.exporter()?;
    let (origin, target) = reader.endpoint(asked)?;
    reader.protocol()?;
    reader.sampler();
    if let Some((name, how)) = reader.of_traces("COMPRESSION").filter(|(_, how)| how != "none") {
        reader.ignored(&name, &format!("{how:?}: spans are sent uncompressed"));
    }
    let queue = reader.number("OTEL_BSP_MAX_QUEUE_SIZE", DEFAULT_QUEUE).clamp(1, MAX_QUEUE);
    let timeout = reader.of_traces("TIMEOUT").map_or_else(String::new, |(name, _)| name);
    let timeout_ms = reader.number(&timeout, DEFAULT_TIMEOUT_MS);
    let delay_ms = reader.number("OTEL_BSP_SCHEDULE_DELAY", DEFAULT_DELAY_MS);
    Some(TracesConfig {
        origin,
        target,
        headers: reader.headers(),
        ca: reader.of_traces("CERTIFICATE").map(|(_, path)| path.into()),
        timeout: millis(timeout_ms.max(1)),
        queue,
        batch: reader.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", DEFAULT_BATCH).clamp(1, queue),
        delay: millis(delay_ms),
    })
}

impl Reader<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(|text| unquoted(text)).filter(|text| !text.is_empty())
    }

    /// A variable of the exporter: the one for traces wins over the one for all signals.
    fn of_traces(&self, name: &str) -> Option<(String, String)> {
        ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].into_iter().find_map(|prefix| {
            let name = format!("{prefix}{name}");
            let text = self.get(&name)?.to_owned();
            Some((name, text))
        })
    }

    fn ignored(&mut self, name: &str, what: &str) {
        self.warnings.push(format!("the environment variable {name}: {what}"));
    }

    /// Whether spans are requested explicitly, or only if there is an endpoint; none if they are turned
    /// off.
    fn exporter(&mut self) -> Option<bool> {
        if self.get("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return None;
        }
        let name = "OTEL_TRACES_EXPORTER";
        let Some(wanted) = self.get(name).map(str::to_owned) else { return Some(false) };
        let each: Vec<_> = wanted.split(',').map(str::trim).collect();
        if each.contains(&"otlp") {
            return Some(true);
        }
        if each != ["none"] {
            let what = format!("{wanted:?}: must be otlp or none; no spans are sent");
            self.ignored(name, &what);
        }
        None
    }

    /// Origin and target.
    fn endpoint(&mut self, asked: bool) -> Option<(String, String)> {
        let (name, text) = match self.of_traces("ENDPOINT") {
            Some(given) => given,
            None if asked => ("OTEL_TRACES_EXPORTER".to_owned(), DEFAULT_ENDPOINT.to_owned()),
            None => return None,
        };
        let shown = address::redacted(&text);
        let split = split(&text).map_err(|why| self.ignored(&name, &format!("{shown:?}: {why}")));
        let (origin, own) = split.ok()?;
        // "the URL MUST be used as-is without any modification" (OTLP exporter specification)
        let is_complete = name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let target = if is_complete { own } else { format!("{}{PATH}", own.trim_end_matches('/')) };
        Some((origin, target))
    }

    /// Returns none for another protocol: the receiver would not understand the messages.
    fn protocol(&mut self) -> Option<()> {
        match self.of_traces("PROTOCOL") {
            Some((name, protocol)) if protocol != PROTOCOL => {
                let what =
                    format!("{protocol} is not supported, only {PROTOCOL}; no spans are sent");
                self.ignored(&name, &what);
                None
            }
            _ => Some(()),
        }
    }

    fn sampler(&mut self) {
        let (name, arg) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
        let Some(sampler) = self.get(name).map(str::to_owned) else { return };
        if !SAMPLERS.split(", ").any(|known| known == sampler) {
            let what = format!("{sampler:?} must be one of {SAMPLERS}; ignored");
            self.ignored(name, &what);
        } else if sampler.ends_with("ratio") {
            let ratio = self.get(arg).and_then(|text| text.parse::<f64>().ok());
            if !ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio)) {
                let given = self.get(arg).unwrap_or_default().to_owned();
                let what =
                    format!("{given:?} must be a number from 0 to 1; every trace is sampled");
                self.ignored(arg, &what);
            }
        }
    }

    fn number(&mut self, name: &str, default: &str) -> usize {
        let text = self.get(name).unwrap_or(default).to_owned();
        text.parse()
            .or_else(|_| {
                let what = format!("{text:?} must be a whole number; {default} is used instead");
                self.ignored(name, &what);
                default.parse()
            })
            .unwrap_or_default()
    }

    /// `key=value,key=value`, values percent-encoded.
    fn headers(&mut self) -> Vec<(HeaderName, HeaderValue)> {
        let Some((name, text)) = self.of_traces("HEADERS") else { return Vec::new() };
        let mut headers = Vec::new();
        for member in text.split(',').filter(|member| !member.trim().is_empty()) {
            match header(member) {
                Some(header) => headers.push(header),
                // The value may be a secret, and so may a text without `=`.
                None => self.ignored(&name, "must be key=value,key=value; one of them is ignored"),
            }
        }
        headers
    }
}

fn header(member: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = member.split_once('=')?;
    let value: Vec<u8> = percent_decode_str(value.trim()).collect();
    Some((name.trim().parse().ok()?, HeaderValue::from_bytes(&value).ok()?))
}

/// Splits a URL into origin and the rest.
fn split(text: &str) -> Result<(String, String), String> {
    let uri: Uri = text.parse().map_err(|_| "this is not a URL; no spans are sent".to_owned())?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        let mend = "put credentials into OTEL_EXPORTER_OTLP_HEADERS; no spans are sent";
        return Err(mend.to_owned());
    }
    let scheme = uri.scheme_str().unwrap_or_default();
    let origin = format!("{scheme}://{authority}");
    if !matches!(scheme, "http" | "https") || address::upstream(&origin).is_err() {
        return Err("must be http://host[:port] or https://host[:port]; no spans are sent".into());
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    Ok((origin, target.to_owned()))
}

fn millis(number: usize) -> Duration {
    // A day is long enough for any timeout, and can be added to a clock.
    Duration::from_millis(number as u64).min(Duration::from_hours(24))
}

/// Names, default and explanation of a variable, for the documents.
type TraceVariable = (&'static [&'static str], &'static str, &'static str);

/// Introduction for the documents.
pub(super) const TRACES_INTRO: &str = "\
    Traces have no settings of their own: the standard variables of OpenTelemetry set them, and a change \
    needs a restart. Without an endpoint nothing is traced. A value that cannot be used is reported as a \
    warning; jobcache starts all the same. Where a variable has a form for traces, such as \
    `OTEL_EXPORTER_OTLP_TRACES_HEADERS`, that form wins.";

/// All variables, in the order of the documents.
pub(super) static TRACE_VARIABLES: [TraceVariable; 14] = [
    (
        &["OTEL_EXPORTER_OTLP_ENDPOINT"],
        "none",
        "Collector for OTLP over HTTP (usually port 4318; gRPC uses 4317). `/v1/traces` is appended.",
    ),
    (
        &["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"],
        "none",
        "The same, used as it is. It wins over the endpoint of all signals.",
    ),
    (
        &["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"],
        PROTOCOL,
        "Only `http/protobuf` is supported; with another value no spans are sent.",
    ),
    (
        &["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"],
        "none",
        "Header fields of each message, such as credentials: `key=value,key=value`, values \
         percent-encoded.",
    ),
    (
        &["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"],
        DEFAULT_TIMEOUT_MS,
        "Milliseconds to deliver one message, retries included.",
    ),
    (
        &["OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"],
        "the authorities of the system",
        "Authorities that may have signed the certificate of an `https` collector.",
    ),
    (
        &["OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"],
        "none",
        "Ignored with a warning: spans are sent uncompressed.",
    ),
    (
        &["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"],
        "jobcache",
        "Name and attributes of this service.",
    ),
    (
        &["OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"],
        "parentbased_always_on",
        "Which traces are sampled, such as `parentbased_traceidratio` with `0.01`.",
    ),
    (
        &["OTEL_TRACES_EXPORTER"],
        "otlp if there is an endpoint",
        "`none` sends no spans. `otlp` without an endpoint sends to `http://localhost:4318`.",
    ),
    (&["OTEL_SDK_DISABLED"], "false", "`true` sends no spans."),
    (&["OTEL_BSP_MAX_QUEUE_SIZE"], DEFAULT_QUEUE, "Spans that may wait to be sent."),
    (&["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"], DEFAULT_BATCH, "Largest number of spans in one message."),
    (
        &["OTEL_BSP_SCHEDULE_DELAY"],
        DEFAULT_DELAY_MS,
        "Milliseconds for which a span may wait for others.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(env: &[(&str, &str)]) -> (Option<TracesConfig>, Vec<String>) {
        let env = env.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let mut warnings = Vec::new();
        (read(&env, &mut warnings), warnings)
    }

    /// Expects spans to go to this URL.
    #[track_caller]
    fn go(env: &[(&str, &str)], url: &str) -> TracesConfig {
        let (traces, warnings) = traces(env);
        let traces = traces.unwrap_or_else(|| panic!("{env:?}: {warnings:?}"));
        assert_eq!(format!("{}{}", traces.origin, traces.target), url, "{env:?}");
        assert!(warnings.is_empty(), "{warnings:?}");
        traces
    }

    /// Expects no spans to be sent, and this warning.
    #[track_caller]
    fn stay(env: &[(&str, &str)], says: &str) {
        let (traces, warnings) = traces(env);
        assert_eq!(traces, None, "{env:?}");
        assert_eq!(warnings.is_empty(), says.is_empty(), "{env:?}: {warnings:?}");
        assert!(warnings.concat().contains(says), "{env:?}: {warnings:?}");
    }

    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const OWN: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

    #[test]
    fn the_endpoint_of_traces_is_taken_as_it_is_and_that_of_all_signals_extended() {
        go(&[(ALL, "http://c:4318")], "http://c:4318/v1/traces");
        go(&[(ALL, "https://c/otlp/")], "https://c/otlp/v1/traces");
        go(&[(ALL, "http://c"), (OWN, "http://d/x?y=1")], "http://d/x?y=1");
        go(&[(OWN, "http://d")], "http://d/");
        go(&[("OTEL_TRACES_EXPORTER", "otlp")], "http://localhost:4318/v1/traces");
    }

    #[test]
    fn spans_go_nowhere_unless_there_is_an_endpoint_that_we_can_speak_to() {
        stay(&[], "");
        stay(&[("OTEL_SERVICE_NAME", "x")], "");
        stay(&[(ALL, "http://c"), ("OTEL_SDK_DISABLED", "True")], "");
        stay(&[(ALL, "http://c"), ("OTEL_TRACES_EXPORTER", "none")], "");
        stay(&[(ALL, "http://c"), ("OTEL_TRACES_EXPORTER", "zipkin")], "must be otlp or none");
        stay(
            &[(ALL, "http://c"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
            "grpc is not supported",
        );
        stay(&[(ALL, "c:4318")], "must be http://host");
        stay(&[(ALL, "http://u:hunter2@c")], "OTEL_EXPORTER_OTLP_HEADERS");
        stay(&[(ALL, "not a URL")], "not a URL");
    }

    #[test]
    fn headers_are_decoded_and_never_shown() {
        let traces = go(
            &[
                (ALL, "http://c"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2, a=b="),
            ],
            "http://c/v1/traces",
        );
        assert_eq!(traces.headers[0].1, "Bearer hunter2");
        assert_eq!(traces.headers[1], ("a".parse().unwrap(), HeaderValue::from_static("b=")));
        assert_eq!(format!("{traces:?}"), "http://c/v1/traces");
        assert_eq!(
            format!("{:?}", go(&[(OWN, "http://d/x?key=1")], "http://d/x?key=1")),
            "http://d/x"
        );
    }

    #[test]
    fn what_cannot_be_used_is_warned_of_and_the_rest_holds() {
        for (name, text, says) in [
            ("OTEL_TRACES_SAMPLER", "sometimes", "\"sometimes\" must be one of"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "\"10s\" must be a whole number; 10000 is used"),
            ("OTEL_BSP_SCHEDULE_DELAY", "-1", "\"-1\" must be a whole number; 5000 is used"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "\"gzip\": spans are sent uncompressed"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2", "one of them is ignored"),
        ] {
            let (traces, warnings) = traces(&[(ALL, "http://c"), (name, text)]);
            assert!(traces.is_some(), "{name}");
            assert!(warnings.concat().contains(says), "{name}: {warnings:?}");
            assert!(!warnings.concat().contains("hunter2"), "{warnings:?}");
        }
        let ratio = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
        let (_, warnings) = traces(&[&[(ALL, "http://c")], &ratio[..]].concat());
        assert!(warnings.concat().contains("\"2\" must be a number from 0 to 1"), "{warnings:?}");
    }

    #[test]
    fn what_waits_is_bounded_whatever_is_asked_for() {
        let huge = "18446744073709551615";
        let traces = go(
            &[
                (ALL, "http://c"),
                ("OTEL_BSP_MAX_QUEUE_SIZE", huge),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", huge),
            ],
            "http://c/v1/traces",
        );
        assert_eq!((traces.queue, traces.batch), (MAX_QUEUE, 512));
        assert_eq!(traces.timeout, Duration::from_hours(24));
    }
}
