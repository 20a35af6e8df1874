//! What goes to the log, and how it looks.
//!
//! Human-readable lines on standard error, in colour only on a terminal. Call sites own their rate:
//! a warning that every request may give goes through a [`Throttle`].

use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt::{
        self, fmt,
        format::{DefaultFields, Format},
    },
    reload::Handle,
};

/// A warning that says the same is given as often as this.
const REPEAT_AFTER: Duration = Duration::from_mins(1);
/// One that says something new, as often as this.
const RENEW_AFTER: Duration = Duration::from_secs(1);

/// Holds back a warning that has been given of late, unless it says something new, and counts how
/// often it did.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Option<Given>>);

#[derive(Debug)]
struct Given {
    text: String,
    at: Instant,
    suppressed: u64,
}

impl Throttle {
    /// Whether to give the warning now: how many were held back since the last.
    pub fn admit(&self, text: &str) -> Option<u64> {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut suppressed = 0;
        if let Some(last) = given.as_mut() {
            let pause = if last.text == text { REPEAT_AFTER } else { RENEW_AFTER };
            if last.at.elapsed() < pause {
                last.suppressed += 1;
                return None;
            }
            suppressed = last.suppressed;
        }
        *given = Some(Given { text: text.to_owned(), at: Instant::now(), suppressed: 0 });
        Some(suppressed)
    }
}

/// What passes to the log, to be changed while it is written. The default changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Filter(Option<Handle<EnvFilter, Formatter>>);

type Formatter = fmt::Formatter<DefaultFields, Format, fn() -> io::Stderr>;

impl Filter {
    /// Lets pass what `log` says from now on.
    pub fn set(&self, log: &str) -> Result<(), ParseError> {
        let filter = filter(log)?;
        if let Some(handle) = &self.0 {
            // The only error is that there was a subscriber before this one, which then counts.
            let _ = handle.reload(filter);
        }
        Ok(())
    }
}

/// Starts logging, for the rest of the process.
///
/// Does nothing if logging has already been started, as tests do.
pub fn init(log: &str) -> Result<Filter, ParseError> {
    let builder = fmt()
        .with_env_filter(filter(log)?)
        .with_writer(io::stderr as fn() -> io::Stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_filter_reloading();
    let handle = builder.reload_handle();
    // The only error is that there is a subscriber already.
    let _ = tracing::subscriber::set_global_default(builder.finish());
    Ok(Filter(Some(handle)))
}

/// Parses a filter such as `info` or `info,jobcache=debug`.
pub fn filter(log: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_given_once_a_minute_and_sooner_if_it_says_something_new() {
        let throttle = Throttle::default();
        assert_eq!(throttle.admit("refused"), Some(0));
        assert_eq!((throttle.admit("refused"), throttle.admit("no auth")), (None, None));
        let earlier = |by| {
            let mut given = throttle.0.lock().unwrap();
            let given = given.as_mut().unwrap();
            given.at = given.at.checked_sub(by).unwrap();
        };
        earlier(RENEW_AFTER);
        assert_eq!(throttle.admit("refused"), None);
        assert_eq!(throttle.admit("no auth"), Some(3));
        earlier(REPEAT_AFTER);
        assert_eq!(throttle.admit("no auth"), Some(0));
    }
}
