//! The log filter, checked before anything is logged.

use tracing_subscriber::{EnvFilter, filter::ParseError};

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Checks a filter for [`telemetry::init`](crate::telemetry::init).
///
/// A single word that is not a level is refused although the syntax allows it: it would be a target,
/// so `verbose` would silence everything else.
pub fn filter(text: &str) -> Result<String, String> {
    let directives = || text.split(',').map(str::trim).filter(|s| !s.is_empty());
    let stray = directives().find(|directive| {
        !directive.contains(['=', '[']) && !LEVELS.iter().any(|l| l.eq_ignore_ascii_case(directive))
    });
    if let Some(word) = stray {
        return Err(format!(
            "{word:?} is not a level: must be one of {} or a list such as \"info,jobcache=debug\"",
            LEVELS.join(", ")
        ));
    }
    if text.contains(char::is_control) {
        return Err(format!("{text:?} has a control character, such as a line break: remove it"));
    }
    if directives().next().is_none() || parsed(text).is_err() {
        return Err(format!(
            "{text:?} is not a filter: must be one of {} or a list such as \"info,jobcache=debug\"",
            LEVELS.join(", ")
        ));
    }
    Ok(text.to_owned())
}

/// Parses a filter such as `info` or `info,jobcache=debug`. Values of fields are compared literally: as
/// regular expressions, a few characters could occupy a thread for minutes.
pub fn parsed(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().with_regex(false).parse(text)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::parsed;

    #[test]
    fn a_field_in_a_filter_is_no_pattern() {
        let started = Instant::now();
        assert!(parsed(&format!("info,[request{{x=.*a{}}}]=info", ".".repeat(100))).is_ok());
        // Compiling the field as a pattern would take minutes.
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    }
}
