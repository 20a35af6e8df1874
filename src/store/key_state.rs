//! The state of a job in the store, for diagnosis.

use super::words::{Epoch, Seen, Token};

/// Everything that stands under the keys of a job.
#[derive(Clone, Debug)]
pub struct KeyState {
    /// The entry, as a reader sees it.
    pub seen: Seen,
    /// The main key holds a value that is not a string, so it was written by a third party.
    pub is_alien: bool,
    /// The main key holds the placeholder of a lease.
    pub is_placeholder: bool,
    /// The lease under which the key may be filled.
    pub lease: Option<LeaseState>,
    /// Time until the fence expires, in ms; -1 if it never does. `None` without a fence.
    pub fence_left_ms: Option<i64>,
}

/// A lease that is held at present.
#[derive(Clone, Debug)]
pub struct LeaseState {
    /// The token of its holder.
    pub token: Token,
    /// Time until it expires, in ms; -1 if it never does.
    pub left_ms: i64,
}

impl KeyState {
    /// Returns the epoch of the connection that read the state.
    pub fn epoch(&self) -> &Epoch {
        &self.seen.epoch
    }
}
