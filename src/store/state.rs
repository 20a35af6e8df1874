//! What the store shows of a job to who asks for nothing.

use super::{Epoch, Seen, Token};

/// All that stands under the keys of a job.
#[derive(Clone, Debug)]
pub struct State {
    /// As a reader sees it.
    pub seen: Seen,
    /// Under the main key stands something that is no string, which only somebody else can have put
    /// there.
    pub is_alien: bool,
    /// Under it stands the placeholder of a lease.
    pub is_placeholder: bool,
    /// Who may fill.
    pub lease: Option<Leased>,
    /// For how long no fill is granted, in ms; -1 for ever.
    pub fence_left_ms: Option<i64>,
}

/// A lease that stands.
#[derive(Clone, Debug)]
pub struct Leased {
    /// Whose it is.
    pub token: Token,
    /// For how long it stands, in ms; -1 for ever.
    pub left_ms: i64,
}

impl State {
    /// The epoch of the connection that showed it.
    pub fn epoch(&self) -> &Epoch {
        &self.seen.epoch
    }
}
