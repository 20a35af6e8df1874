//! What goes to the log, and how it looks.
//!
//! Lines on standard error, for people (in colour only on a terminal) or as JSON. Call sites own their
//! rate: a warning that every request may give goes through a
//! [`Throttle`](crate::throttle::Throttle).

mod export;

use std::{
    fmt,
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

pub use self::export::Export;
pub use crate::config::parsed_log_filter as filter;
use crate::{
    config::{LogFormat, TracesConfig},
    spans,
};

/// What passes to the log, to be changed while it is written. The default is of no log, and changes
/// nothing.
#[derive(Clone, Default)]
pub struct Filter(Option<Arc<Passing>>);

struct Passing {
    /// As it was given.
    text: Mutex<String>,
    reload: Box<dyn Fn(EnvFilter) + Send + Sync>,
}

impl Filter {
    fn new(text: &str, reload: impl Fn(EnvFilter) + Send + Sync + 'static) -> Self {
        let (text, reload) = (Mutex::new(text.to_owned()), Box::new(reload));
        Self(Some(Arc::new(Passing { text, reload })))
    }

    /// Lets pass what `log` says from now on. Returns what did before, where there is a log.
    pub fn set(&self, log: &str) -> Result<Option<String>, ParseError> {
        let filter = filter(log)?;
        Ok(self.0.as_ref().map(|passing| {
            let mut text = passing.text.lock().unwrap_or_else(PoisonError::into_inner);
            (passing.reload)(filter);
            mem::replace(&mut *text, log.to_owned())
        }))
    }

    /// What passes now; `None` where there is no log.
    pub fn text(&self) -> Option<String> {
        let passing = self.0.as_ref()?;
        Some(passing.text.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.text()).finish()
    }
}

/// What becomes of what is logged and traced.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Of the log.
    pub filter: Filter,
    /// Spans to be sent, where there is a collector.
    pub export: Option<Export>,
}

/// Starts logging and, where there is a collector, tracing, for the rest of the process.
///
/// Does nothing if logging has already been started, as tests do.
pub fn init(
    log: &str,
    format: LogFormat,
    traces: Option<&TracesConfig>,
) -> Result<Telemetry, ParseError> {
    let passes = filter(log)?;
    let Some(traces) = traces else {
        let (passes, handle) = reload::Layer::new(passes);
        start(Registry::default().with(lines(format)).with(passes));
        let filter = Filter::new(log, move |filter| drop(handle.reload(filter)));
        return Ok(Telemetry { filter, export: None });
    };
    let (maker, export) = export::pipeline(traces);
    let spans = tracing_opentelemetry::layer()
        .with_tracer(maker)
        .with_location(false)
        .with_threads(false)
        .with_level(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false);
    // Whatever the log lets pass; and nothing of what others trace or we log.
    let ours = FilterFn::new(spans::is_ours).with_max_level_hint(LevelFilter::DEBUG);
    let (passes, handle) = reload::Layer::new(passes);
    start(
        Registry::default().with(spans.with_filter(ours)).with(lines(format).with_filter(passes)),
    );
    let filter = Filter::new(log, move |filter| drop(handle.reload(filter)));
    Ok(Telemetry { filter, export: Some(export) })
}

fn start(subscriber: impl Subscriber + Send + Sync) {
    // The only error is that there is a subscriber already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Writes each event as a line.
fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let lines = layer().with_writer(io::stderr);
    match format {
        LogFormat::Human => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
    }
}
