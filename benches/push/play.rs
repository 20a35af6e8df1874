//! The plays: who waits for changes, in which form, and behind which server.

use serde::{Deserialize, Serialize};

/// Number of watched jobs.
pub(crate) const JOBS: usize = 20;

/// How clients learn of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Form {
    /// A plain `GET` every 5 s.
    Poll,
    /// `Prefer: wait` with `If-None-Match`, sent again at once.
    LongPoll,
    /// A stream of events.
    Stream,
}

/// The credentials of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Identities {
    /// All send the same token.
    Shared,
    /// Each sends a token of its own.
    Own,
}

/// The server between the clients and the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    Jobcache,
    Pushpin,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Play {
    pub(crate) front: Front,
    pub(crate) form: Form,
    pub(crate) identities: Identities,
    pub(crate) clients: usize,
}

/// Returns all plays up to this number of clients.
pub(crate) fn plays(is_quick: bool, max_clients: usize) -> Vec<Play> {
    let sizes: &[usize] = if is_quick { &[1_000] } else { &[100, 1_000, 10_000] };
    let mut plays = Vec::new();
    for form in [Form::Poll, Form::LongPoll, Form::Stream] {
        for identities in [Identities::Shared, Identities::Own] {
            for &clients in sizes {
                plays.push(Play { front: Front::Jobcache, form, identities, clients });
            }
        }
        for &clients in sizes {
            let identities = Identities::Shared;
            plays.push(Play { front: Front::Pushpin, form, identities, clients });
        }
    }
    plays.retain(|play| play.clients <= max_clients && play.takes_part(is_quick));
    plays
}

impl Play {
    /// Whether the play tells more than the others. A poll holds nothing in Pushpin, and few identities
    /// cost as much as one.
    fn takes_part(&self, is_quick: bool) -> bool {
        let is_own = self.identities == Identities::Own;
        let skips_pushpin =
            self.front == Front::Pushpin && (self.form == Form::Poll || self.clients < 1_000);
        let skips_own = is_own
            && (is_quick
                || self.clients < 1_000
                || self.form == Form::Poll && self.clients < 10_000);
        !skips_pushpin && !skips_own
    }

    pub(crate) fn label(&self) -> String {
        let Self { front, form, identities, clients } = self;
        let (front, form, identities) = (front.as_str(), form.as_str(), identities.as_str());
        format!("{front}, {form}, {clients} clients, {identities}")
    }
}

impl Form {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Poll => "poll, 5 s",
            Self::LongPoll => "long poll",
            Self::Stream => "SSE",
        }
    }
}

impl Identities {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "one",
            Self::Own => "each its own",
        }
    }
}

impl Front {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Jobcache => "jobcache",
            Self::Pushpin => "Pushpin",
        }
    }
}
