//! How a read is answered.

use std::sync::Arc;

use super::{entry::Entry, fill::LeaderRead, flight::Flight};
use crate::semantics::policy::Bypass;

/// How a read is answered.
#[derive(Debug)]
pub enum Lookup {
    /// The entry is the answer.
    Hit(Arc<Entry>),
    /// The reader reads the upstream, for itself and all that join.
    Lead(Box<LeaderRead>),
    /// The reader shares another reader's upstream read. The reason is the one for `Cache-Status`, if
    /// there is one.
    Join(Flight, Option<Bypass>),
    /// The reader reads the upstream for itself only.
    Pass(Bypass),
}

impl Lookup {
    /// Returns the word for spans.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Hit(_) => "hit",
            Self::Lead(_) => "lead",
            Self::Join(..) => "join",
            Self::Pass(_) => "pass",
        }
    }

    /// Whether other callers of the job may have an entry that this caller did not get.
    pub(super) fn is_kept_apart(&self) -> bool {
        match self {
            Self::Lead(_) | Self::Join(..) => true,
            Self::Pass(why) => matches!(why, Bypass::Audience | Bypass::Leased),
            Self::Hit(_) => false,
        }
    }
}
