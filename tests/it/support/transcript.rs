//! Requests and answers as text, for the tests that print what a user sees.

use std::fmt::Write as _;

use super::Reply;

/// Requests and answers in their order.
#[derive(Default)]
pub(crate) struct Transcript(pub(crate) String);

impl Transcript {
    /// Adds a line.
    pub(crate) fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    /// Adds an answer: who asked, what, the status, `Cache-Status`, these headers of the answer where it
    /// has them, and the body.
    pub(crate) fn note(&mut self, who: &str, what: &str, reply: &Reply, headers: &[&str]) {
        // The only number that depends on the clock.
        let said = match reply.cache_status().split_once("ttl=") {
            Some((before, _)) => format!("{before}ttl=..."),
            None => reply.cache_status().to_owned(),
        };
        let _ = writeln!(self.0, "{who:<7} {what:<31} {}  {said}", reply.status.as_u16());
        for name in headers.iter().filter(|name| !reply.header(name).is_empty()) {
            let _ = writeln!(self.0, "        {name}: {}", reply.header(name));
        }
        if headers.is_empty() || !reply.text().is_empty() {
            let _ = writeln!(self.0, "        {}", reply.text());
        }
    }
}
