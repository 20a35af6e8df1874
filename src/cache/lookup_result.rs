//! How a read is answered, and what the store has shown on the way there.

use std::sync::Arc;

use super::{
    decide::Uncached,
    entry::{Entry, Reject},
    fill::{KnownEntry, LeaderRead},
    flight::Flight,
};
use crate::{
    semantics::{identity::Identity, policy::Bypass},
    store::{Lease, Seen, Token},
};

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
    pub(super) fn may_be_split(&self) -> bool {
        match self {
            Self::Lead(_) | Self::Join(..) => true,
            Self::Pass(why) => matches!(why, Bypass::Audience | Bypass::Leased),
            Self::Hit(_) => false,
        }
    }
}

/// The value that the store holds for a read.
pub(super) enum Found {
    /// An entry of this job.
    Entry(KnownEntry),
    /// No value, or one that is not a valid entry for the request.
    NoEntry(Option<Reject>, Seen),
}

impl Found {
    /// Decodes what the store has shown for a read of this identity.
    pub(super) fn of(seen: Seen, identity: &Identity<'_>) -> Self {
        match Entry::decode_of(&seen, identity) {
            Some(Ok(entry)) => Self::Entry(KnownEntry { entry: Arc::new(entry), seen }),
            Some(Err(reject)) => Self::NoEntry(Some(reject), seen),
            None => Self::NoEntry(None, seen),
        }
    }
}

/// How a read goes on that has asked for the lease.
pub(super) enum LeaseStep {
    /// It may fill.
    Fill(Lease),
    /// It joins the flight of the reader that holds the lease.
    Join(Flight),
    /// It waits for the entry that another sidecar reads under this token.
    Wait(Token),
    /// The store has a value by now.
    Overtaken(Seen),
    /// It goes to the upstream without the lease.
    Uncached(Uncached),
}
