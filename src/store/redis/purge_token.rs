//! The purge tokens: random texts that a purge of all renews.
//!
//! Each prefix has one token or, in a cluster, one in each slot. A token is part of the epoch of an
//! entry and of the value of a lease, so a new one voids all entries and leases under the prefix at once,
//! however many there are. A lease that finds no token makes one (`lua/lease.lua`), which voids what is
//! older. Tokens are read with the keys of a job, and tracked as they are. `purge_all.rs` renews them.
//!
//! The name is `{job_status:}:purge-token` or, in a cluster, `{job_status:{17}:purge-token`: there the
//! number puts the token into the slot of its jobs, because a script may name keys of one slot only.
//! Keys of jobs begin with no brace, and their companions have only one, so no id gives such a name.

use std::{
    borrow::Cow,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::store::{
    Key,
    slots::{SlotSet, numbers_by_slot, slot_of, slot_of_key},
};

/// The names of the tokens.
pub(super) struct PurgeTokens {
    prefixes: Vec<TokensOfPrefix>,
    /// Whether each slot has tokens of its own. A cluster of one master may be used as a single server, and
    /// refuses commands with keys in several slots as well; so that is known only with a connection.
    are_by_slot: AtomicBool,
}

struct TokensOfPrefix {
    prefix: String,
    /// The name if there is no cluster.
    name: String,
    /// In a cluster, the number that puts a name into each slot.
    tags: OnceLock<Vec<u32>>,
}

/// One token. Its name is made when it is needed: there may be thousands.
#[derive(Clone, Copy)]
pub(super) struct TokenOfSlot<'t> {
    pub(super) slot: u16,
    of: &'t TokensOfPrefix,
    tokens: &'t PurgeTokens,
}

impl TokenOfSlot<'_> {
    pub(super) fn name(&self) -> Cow<'_, str> {
        self.tokens.name_in(self.of, || self.slot)
    }
}

impl PurgeTokens {
    pub(super) fn new(prefixes: &[String]) -> Self {
        let of_prefix = |prefix: &String| TokensOfPrefix {
            name: format!("{{{prefix}}}:purge-token"),
            tags: OnceLock::new(),
            prefix: prefix.clone(),
        };
        let prefixes = prefixes.iter().map(of_prefix).collect();
        Self { prefixes, are_by_slot: AtomicBool::new(false) }
    }

    /// Sets whether the server is one of a cluster. All sidecars that use it see the same.
    pub(super) fn set_by_slot(&self, are_by_slot: bool) {
        self.are_by_slot.store(are_by_slot, Ordering::Relaxed);
    }

    /// A new token.
    pub(super) fn random() -> String {
        format!("{:032x}", fastrand::u128(..))
    }

    /// Whether one token is in force for all keys of a prefix.
    pub(super) fn is_one_for_all(&self) -> bool {
        !self.are_by_slot.load(Ordering::Relaxed)
    }

    /// Returns the name of the token for a key.
    pub(super) fn of_key(&self, key: &Key) -> Cow<'_, str> {
        let is_of = |tokens: &&TokensOfPrefix| key.main().starts_with(&tokens.prefix);
        // Every key begins with one of the prefixes, and none of those with another one.
        let tokens = self.prefixes.iter().find(is_of).unwrap_or(&self.prefixes[0]);
        self.name_in(tokens, || slot_of_key(key))
    }

    /// Returns the name of the token for a name under this prefix, which need not be that of a job.
    pub(super) fn of_name(&self, prefix: &str, name: &[u8]) -> Cow<'_, str> {
        let is_of = |tokens: &&TokensOfPrefix| tokens.prefix == prefix;
        let tokens = self.prefixes.iter().find(is_of).unwrap_or(&self.prefixes[0]);
        self.name_in(tokens, || slot_of(name))
    }

    /// Returns the tokens in these slots. Without a cluster the tokens are in force for all of them.
    pub(super) fn in_slots(&self, slots: &SlotSet) -> impl Iterator<Item = TokenOfSlot<'_>> {
        let slots: Vec<u16> = if self.is_one_for_all() { vec![0] } else { slots.iter().collect() };
        let of_slot =
            move |slot| self.prefixes.iter().map(move |of| TokenOfSlot { slot, of, tokens: self });
        slots.into_iter().flat_map(of_slot)
    }

    /// Returns the beginnings that these names have, and no others.
    pub(super) fn beginnings(&self) -> impl Iterator<Item = String> {
        self.prefixes.iter().map(|TokensOfPrefix { prefix, name, .. }| {
            if self.is_one_for_all() { name.clone() } else { format!("{{{prefix}{{") }
        })
    }

    fn name_in<'t>(&self, of: &'t TokensOfPrefix, slot: impl FnOnce() -> u16) -> Cow<'t, str> {
        if self.is_one_for_all() {
            return Cow::Borrowed(&of.name);
        }
        let tags = of.tags.get_or_init(|| numbers_by_slot(format!("{}{{", of.prefix).as_bytes()));
        let tag = tags[usize::from(slot())];
        Cow::Owned(name_with(&of.prefix, tag))
    }
}

fn name_with(prefix: &str, tag: u32) -> String {
    format!("{{{prefix}{{{tag}}}:purge-token")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::slots::SLOTS;

    /// Older sidecars look for the smallest number, too.
    #[test]
    fn the_token_of_a_slot_has_the_smallest_number() {
        let tokens = PurgeTokens::new(&["p:".into()]);
        tokens.set_by_slot(true);
        let mut smallest = vec![None; usize::from(SLOTS)];
        for tag in (0..300_000).rev() {
            let name = name_with("p:", tag);
            let slot = slot_of(name.as_bytes());
            smallest[usize::from(slot)] = Some(name);
        }
        for token in tokens.in_slots(&SlotSet::ALL) {
            assert_eq!(smallest[usize::from(token.slot)].as_deref(), Some(&*token.name()));
        }
    }

    #[test]
    fn a_token_is_in_the_slot_of_its_keys() {
        let tokens = PurgeTokens::new(&["job_status:".into(), "p:".into()]);
        tokens.set_by_slot(true);
        for (prefix, id) in [("job_status:", "7"), ("p:", "a-1"), ("p:", "b")] {
            let key = Key::new(prefix, id);
            let name = tokens.of_key(&key);
            assert_eq!(slot_of(name.as_bytes()), slot_of_key(&key), "{name}");
            assert!(name.starts_with(&format!("{{{prefix}{{")), "{name}");
            let slots = SlotSet::of_name(key.main().as_bytes());
            assert!(tokens.in_slots(&slots).any(|token| token.name() == name));
        }
        assert_eq!(tokens.in_slots(&SlotSet::ALL).count(), 2 * usize::from(SLOTS));
    }

    #[test]
    fn without_a_cluster_a_prefix_has_one_token() {
        let tokens = PurgeTokens::new(&["job_status:".into(), "p:".into()]);
        assert_eq!(tokens.of_key(&Key::new("p:", "7")), "{p:}:purge-token");
        let names: Vec<_> =
            tokens.in_slots(&SlotSet::ALL).map(|token| token.name().into_owned()).collect();
        assert_eq!(names, ["{job_status:}:purge-token", "{p:}:purge-token"]);
        assert_eq!(tokens.beginnings().collect::<Vec<_>>(), names);
    }
}
