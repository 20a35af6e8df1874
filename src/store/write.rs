//! A write in flight.

use std::{collections::HashSet, time::Duration};

use super::words::{Key, Token};

/// A write in flight over some keys.
#[derive(Debug)]
pub struct Write {
    pub(super) keys: Vec<Key>,
    /// The number of keys, the first ones, that the target names elsewhere than at the place of the
    /// id.
    pub(super) elsewhere: usize,
    pub(super) id: Token,
    pub(super) fence: Duration,
    pub(super) begun: Begun,
}

/// Whether the fence of a write stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// Nothing was sent: the write needs no fence, or the store was down.
    NotSent,
    /// It was sent and not confirmed for every key, so it may still arrive and leave a fence.
    Unconfirmed,
    /// It stands.
    Confirmed,
}

impl Write {
    /// Returns the keys that it invalidates.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Marks the first `count` keys as named elsewhere in the target than at the place of the id.
    pub fn mark_elsewhere(&mut self, count: usize) {
        self.elsewhere = count.min(self.keys.len());
    }

    /// Returns the keys to renew the fence of while the write runs. One slow upload must not keep many
    /// jobs uncached, so those that the target names elsewhere are fenced once. They are invalidated at
    /// the end all the same.
    pub(super) fn renewed(&self) -> &[Key] {
        self.keys.get(self.elsewhere..).unwrap_or_default()
    }

    /// Splits the write into the keys that are named elsewhere and the others, to end each part by
    /// itself; `None` if there are no such keys.
    pub fn split_elsewhere(&self) -> Option<(Self, Self)> {
        let (elsewhere, rest) = self.keys.split_at(self.elsewhere);
        let part = |keys: &[Key]| Self {
            keys: keys.to_vec(),
            elsewhere: 0,
            id: self.id.clone(),
            fence: self.fence,
            begun: self.begun,
        };
        (!elsewhere.is_empty()).then(|| (part(elsewhere), part(rest)))
    }

    /// Adds keys for its end that the write turns out to have changed; they were not fenced.
    pub fn widen(&mut self, keys: impl IntoIterator<Item = Key>) {
        let mut known: HashSet<Key> = self.keys.iter().cloned().collect();
        self.keys.extend(keys.into_iter().filter(|key| known.insert(key.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_of_jobs_named_elsewhere_are_not_renewed() {
        let keys: Vec<Key> = ["8", "9", "7"].map(|id| Key::new("job_status:", id)).into();
        let (id, begun) = (Token::named("w"), Begun::Confirmed);
        let mut write = Write { keys, elsewhere: 0, id, fence: Duration::ZERO, begun };
        assert_eq!(write.renewed().len(), 3);
        write.mark_elsewhere(2);
        assert_eq!(write.renewed(), [Key::new("job_status:", "7")]);
        assert_eq!(write.keys().len(), 3);
    }
}
