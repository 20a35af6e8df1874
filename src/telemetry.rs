//! What goes to the log, and how it looks.
//!
//! Human-readable lines on standard error, in colour only on a terminal. Call sites own their rate:
//! nothing is sampled here.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, filter::ParseError};

/// Starts logging, for the rest of the process.
///
/// Does nothing if logging has already been started, as tests do.
pub fn init(log: &str) -> Result<(), ParseError> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(log)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .finish();
    // The only error is that there is a subscriber already.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// Parses a filter such as `info` or `info,jobcache=debug`.
pub fn filter(log: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(log)
}
