//! Setup of the log and of tracing.
//!
//! The log consists of lines on standard error, for people (in colour only on a terminal) or as
//! JSON. Call sites limit their own rate: a warning that every request may cause goes through a
//! [`Throttle`](crate::observe::throttle::Throttle).

mod export;

use std::{
    io::{self, IsTerminal},
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterFn, LevelFilter, ParseError},
    fmt::layer,
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
};

pub use self::export::SpanExport;
pub use crate::config::parsed_log_filter as filter;
use crate::{
    config::{LogFormat, TracesConfig},
    observe::spans,
};

/// Handle to the filter of the log, which can be changed at any time. The default belongs to no log
/// and does nothing.
#[derive(Clone, Default)]
pub struct LogFilter(Option<Arc<LogFilterState>>);

struct LogFilterState {
    /// The filter as it was written.
    text: Mutex<String>,
    reload: Box<dyn Fn(EnvFilter) + Send + Sync>,
}

impl LogFilter {
    fn new(text: &str, reload: impl Fn(EnvFilter) + Send + Sync + 'static) -> Self {
        let (text, reload) = (Mutex::new(text.to_owned()), Box::new(reload));
        Self(Some(Arc::new(LogFilterState { text, reload })))
    }

    /// Replaces the filter. Returns the previous one, or `None` if there is no log.
    pub fn set(&self, log: &str) -> Result<Option<String>, ParseError> {
        let filter = filter(log)?;
        Ok(self.0.as_ref().map(|passing| {
            let mut text = passing.text.lock().unwrap_or_else(PoisonError::into_inner);
            (passing.reload)(filter);
            mem::replace(&mut *text, log.to_owned())
        }))
    }

    /// Returns the current filter, or `None` if there is no log.
    pub fn text(&self) -> Option<String> {
        let passing = self.0.as_ref()?;
        Some(passing.text.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// The running log, and the spans to export.
#[derive(Default)]
pub struct Telemetry {
    /// The filter of the log.
    pub filter: LogFilter,
    /// The export of spans, if a collector is configured.
    pub export: Option<SpanExport>,
}

/// Starts logging for the rest of the process, and tracing if a collector is configured.
///
/// If a logger is already installed, as in tests, the new one has no effect.
pub fn init(
    log: &str,
    format: LogFormat,
    traces: Option<&TracesConfig>,
) -> Result<Telemetry, ParseError> {
    let passes = filter(log)?;
    let Some(traces) = traces else {
        let (passes, handle) = reload::Layer::new(passes);
        install(Registry::default().with(line_layer(format)).with(passes));
        let filter = LogFilter::new(log, move |filter| drop(handle.reload(filter)));
        return Ok(Telemetry { filter, export: None });
    };
    let (span_tracer, export) = export::pipeline(traces);
    let spans = tracing_opentelemetry::layer()
        .with_tracer(span_tracer)
        .with_location(false)
        .with_threads(false)
        .with_level(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false);
    // Spans are exported whatever the filter of the log says. Only our own spans are, not those of
    // libraries and not log events.
    let ours = FilterFn::new(spans::is_ours).with_max_level_hint(LevelFilter::DEBUG);
    let (passes, handle) = reload::Layer::new(passes);
    install(
        Registry::default()
            .with(spans.with_filter(ours))
            .with(line_layer(format).with_filter(passes)),
    );
    let filter = LogFilter::new(log, move |filter| drop(handle.reload(filter)));
    Ok(Telemetry { filter, export: Some(export) })
}

fn install(subscriber: impl Subscriber + Send + Sync) {
    // The only error is that a subscriber is already installed.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// The layer that writes each event as one line.
fn line_layer<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let lines = layer().with_writer(io::stderr);
    match format {
        LogFormat::Human => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    }
}
