//! The combined outcome of the ends of several keys.

use super::{
    errors::StoreError,
    receipt::KeyReceipt,
    words::{Ended, Key},
};

/// The combined outcome of several ends.
#[derive(Debug)]
pub(super) struct BatchOutcome<'k> {
    /// The result for all keys together: the last failure, if there was one.
    pub(super) ended: Result<Ended, StoreError>,
    pub(super) unconfirmed: Vec<&'k Key>,
    /// The receipt of each key, in the order of the keys.
    pub(super) receipts: Vec<Option<KeyReceipt>>,
}

impl Default for BatchOutcome<'_> {
    fn default() -> Self {
        let ended = Ok(Ended::Confirmed { entries: 0 });
        Self { ended, unconfirmed: Vec::new(), receipts: Vec::new() }
    }
}

impl<'k> BatchOutcome<'k> {
    pub(super) fn add_results(
        &mut self,
        keys: &'k [Key],
        results: Vec<Result<KeyReceipt, StoreError>>,
    ) {
        for (key, result) in keys.iter().zip(results) {
            match result {
                Ok(was) => {
                    if let Ok(Ended::Confirmed { entries }) = &mut self.ended {
                        *entries += usize::from(was.entry.is_some());
                    }
                    self.receipts.push(Some(was));
                }
                Err(error) => {
                    self.unconfirmed.push(key);
                    self.receipts.push(None);
                    self.ended = Err(error);
                }
            }
        }
    }

    /// Whether the next keys would fail as well: the last failure was not about a single key.
    pub(super) fn is_hopeless(&self) -> bool {
        matches!(&self.ended, Err(error) if !matches!(error, StoreError::Refused(_)))
    }
}
