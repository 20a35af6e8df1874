//! Deliberate faults in the protocol, which the history checker has to detect.
//!
//! A test that cannot fail proves nothing. With the feature `mutants`, and only then, the
//! environment variable `JOBCACHE_MUTANT` activates one fault. A checker that accepts the mutant is
//! wrong. Without the feature, [`is`] is `false` at compile time.

use crate::semantics::labels::labels;

labels! {
    /// A fault in the protocol.
    pub enum Mutant {
        /// A fill does not check that it holds the lease.
        FillWithoutToken = "fill-without-token",
        /// A fill does not check the placeholder, so a third party's `DEL` does not void it.
        FillWithoutPlaceholder = "fill-without-placeholder",
        /// A lease is granted while a write is in flight.
        LeaseWithoutFence = "lease-without-fence",
        /// A write does not drop the entry and the lease when it begins.
        BeginWithoutDel = "begin-without-del",
        /// A write does not drop the entry and the lease when it ends.
        EndWithoutDel = "end-without-del",
        /// A reader joins any flight of its job, whatever token the store showed.
        JoinById = "join-by-id",
        /// A reader joins a flight before it has looked the job up.
        JoinBeforeLookup = "join-before-lookup",
        /// A reader joins the flight of a token that a snapshot has restored.
        JoinAcrossEpochs = "join-across-epochs",
        /// While the store is down, a reader joins a read that began before the reader arrived.
        JoinRunning = "join-running",
        /// A write that ends also lifts the fences of all other writes.
        EndLiftsEveryFence = "end-lifts-every-fence",
        /// A write does not end a second time when the body of its answer ends.
        EndOnce = "end-once",
        /// An invalidation that the store did not confirm is not retried.
        NoPending = "no-pending",
        /// Entries from before a restart of the server are accepted.
        NoEpoch = "no-epoch",
        /// Entries from before a purge of all are accepted.
        NoPurgeToken = "no-purge-token",
        /// A value that another program has `SET` is accepted if it has the same bytes as our entry.
        NoExpiryCheck = "no-expiry-check",
        /// An entry gets the epoch of its fill instead of that of its lease.
        EpochAtFill = "epoch-at-fill",
        /// A value that was read before its invalidation is stored in this process after it.
        NearWithoutGeneration = "near-without-generation",
        /// An entry in this process is used without waiting for the barrier.
        NearWithoutBarrier = "near-without-barrier",
        /// Entries in this process survive the loss of the tracking connection.
        NearWithoutFlush = "near-without-flush",
        /// Entries in this process survive the move of their slot to another master.
        NearAcrossMoves = "near-across-moves",
        /// An invalidation that a cluster node redirected counts as confirmed.
        RedirectedIsDone = "redirected-is-done",
        /// An entry is kept although tracking by keys does not cover its key.
        NearUntracked = "near-unfollowed",
        /// News that came during a read for held clients counts as answered by it, and no later look at the
        /// store makes up for that.
        PushListenLate = "push-listen-late",
        /// A client that waits gets what a read has found that began before the client came.
        PushRunningRead = "push-running-read",
    }
}

impl Mutant {
    /// Returns the script that it changes, the line in it, and the replacement. `None` for a fault
    /// that is not in a script.
    pub fn script(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::FillWithoutToken => {
                let line = "if type(purge) ~= 'string' or redis.call('GET', KEYS[3]) ~= ARGV[1] .. ' ' .. purge then return 0 end";
                Some(("fill", line, ""))
            }
            Self::FillWithoutPlaceholder => Some((
                "fill",
                "if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('STRLEN', KEYS[1]) ~= 0 then \
                 return 0 end",
                "",
            )),
            Self::LeaseWithoutFence => Some((
                "lease",
                "if redis.call('EXISTS', KEYS[4]) == 1 then return {'fenced'} end",
                "",
            )),
            Self::BeginWithoutDel => {
                Some(("begin", "redis.call('DEL', KEYS[at], KEYS[at + 1], KEYS[at + 2])", ""))
            }
            Self::EndWithoutDel => {
                Some(("end", "redis.call('DEL', main, KEYS[at + 1], KEYS[at + 2]) > 0", "true"))
            }
            Self::EndLiftsEveryFence => {
                Some(("end", "redis.call('ZREM', fence, ARGV[1])", "redis.call('DEL', fence)"))
            }
            _ => None,
        }
    }
}

/// Whether this mutant is active.
#[cfg(not(feature = "mutants"))]
pub const fn is(_mutant: Mutant) -> bool {
    false
}

/// Whether this mutant is active.
#[cfg(feature = "mutants")]
pub fn is(mutant: Mutant) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("JOBCACHE_MUTANT").ok()).as_deref() == Some(mutant.as_str())
}

/// Returns a script with the change of the active mutant, if it changes this script.
pub fn mutated_script(name: &str, source: &str) -> String {
    let change = Mutant::ALL.into_iter().filter(|mutant| is(*mutant)).find_map(Mutant::script);
    match change {
        Some((file, line, replacement)) if file == name => source.replace(line, replacement),
        _ => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_of_a_script_finds_its_line() {
        let sources = [
            ("fill", include_str!("store/lua/fill.lua")),
            ("lease", include_str!("store/lua/lease.lua")),
            ("begin", include_str!("store/lua/begin.lua")),
            ("end", include_str!("store/lua/end.lua")),
        ];
        for (file, line, _) in Mutant::ALL.into_iter().filter_map(Mutant::script) {
            let (_, source) = sources.iter().find(|(name, _)| *name == file).unwrap();
            assert_eq!(source.matches(line).count(), 1, "{file}: {line}");
        }
    }
}
