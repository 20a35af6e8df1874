//! The combined outcome of the ends of several keys.

use super::{Ended, Key, StoreError, Was};

/// The combined outcome of several ends.
#[derive(Debug)]
pub(super) struct Tally<'k> {
    /// The result for all keys together: the last failure, if there was one.
    pub(super) ended: Result<Ended, StoreError>,
    pub(super) unsure: Vec<&'k Key>,
    /// The receipt of each key, in the order of the keys.
    pub(super) was: Vec<Option<Was>>,
}

impl Default for Tally<'_> {
    fn default() -> Self {
        let ended = Ok(Ended::Confirmed { entries: 0 });
        Self { ended, unsure: Vec::new(), was: Vec::new() }
    }
}

impl<'k> Tally<'k> {
    pub(super) fn take(&mut self, keys: &'k [Key], results: Vec<Result<Was, StoreError>>) {
        for (key, result) in keys.iter().zip(results) {
            match result {
                Ok(was) => {
                    if let Ok(Ended::Confirmed { entries }) = &mut self.ended {
                        *entries += usize::from(was.entry.is_some());
                    }
                    self.was.push(Some(was));
                }
                Err(error) => self.miss(std::slice::from_ref(key), error),
            }
        }
    }

    pub(super) fn miss(&mut self, keys: &'k [Key], error: StoreError) {
        self.unsure.extend(keys);
        self.was.resize(self.was.len() + keys.len(), None);
        self.ended = Err(error);
    }

    /// Whether the next keys would fail as well: the last failure was not about a single key.
    pub(super) fn is_hopeless(&self) -> bool {
        matches!(&self.ended, Err(error) if !matches!(error, StoreError::Refused(_)))
    }
}
