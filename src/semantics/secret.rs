//! A secret that no log shows.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// A secret; `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text` unchecked: the limits of a configured secret are those of its setting.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that compares or signs with it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Key of Standard Webhooks signatures: the decoded base64 after `whsec_`, or else the bytes as
    /// they are. None if the base64 is not valid.
    pub fn key(&self) -> Option<Vec<u8>> {
        match self.0.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded).ok(),
            None => Some(self.0.clone().into_bytes()),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
