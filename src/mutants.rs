//! Deliberate faults in the protocol, for the history checker to catch.
//!
//! A test that cannot fail proves nothing. Built with the feature `mutants`, and only then, the
//! variable `JOBCACHE_MUTANT` switches one of these on; a checker that calls the mutant right is
//! itself wrong. Without the feature [`is`] is `false` at compile time.

/// One fault each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A fill does not look whose lease it is.
    FillWithoutToken,
    /// A fill does not need the placeholder, so a third party's DEL does not void it.
    FillWithoutPlaceholder,
    /// A lease is granted while a write is in flight.
    LeaseWithoutFence,
    /// A write does not drop the entry and the lease when it begins.
    BeginWithoutDel,
    /// A write does not drop the entry and the lease when it ends.
    EndWithoutDel,
    /// A reader joins any flight of its job, whatever token the store has shown.
    JoinById,
    /// A reader joins a flight before it has looked the job up.
    JoinBeforeLookup,
    /// A reader joins the flight of a token that a snapshot has brought back.
    JoinAcrossEpochs,
    /// With the store down a reader joins a read that has begun before it came.
    JoinRunning,
    /// A write that ends lifts the fences of all others, too.
    EndLiftsEveryFence,
    /// A write does not end again when the body of its answer does.
    EndOnce,
    /// An invalidation that the store did not confirm is forgotten.
    NoPending,
    /// Entries of another life of the server are believed.
    NoEpoch,
    /// A value that somebody else has SET, of the same bytes as an entry of ours, is taken for it.
    NoExpiryCheck,
    /// An entry is said to be of the epoch of its fill, not of its lease.
    EpochAtFill,
    /// What was read before the news that it is out of date is put into this process after it.
    NearWithoutGeneration,
    /// What this process holds is used without asking whether it is out of date.
    NearWithoutBarrier,
    /// What this process holds survives the loss of the tracking connection.
    NearWithoutFlush,
    /// What this process holds of a slot survives that it goes to another master.
    NearAcrossMoves,
    /// An invalidation that a node of a cluster did not serve is taken for done.
    RedirectedIsDone,
    /// With tracking by keys, the server was not asked to tell of the key.
    NearUnfollowed,
}

impl Mutant {
    /// Every mutant.
    pub const ALL: [Self; 21] = [
        Self::FillWithoutToken,
        Self::FillWithoutPlaceholder,
        Self::LeaseWithoutFence,
        Self::BeginWithoutDel,
        Self::EndWithoutDel,
        Self::JoinById,
        Self::JoinBeforeLookup,
        Self::JoinAcrossEpochs,
        Self::JoinRunning,
        Self::EndLiftsEveryFence,
        Self::EndOnce,
        Self::NoPending,
        Self::NoEpoch,
        Self::NoExpiryCheck,
        Self::EpochAtFill,
        Self::NearWithoutGeneration,
        Self::NearWithoutBarrier,
        Self::NearWithoutFlush,
        Self::NearAcrossMoves,
        Self::RedirectedIsDone,
        Self::NearUnfollowed,
    ];

    /// The value of `JOBCACHE_MUTANT` that switches it on.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FillWithoutToken => "fill-without-token",
            Self::FillWithoutPlaceholder => "fill-without-placeholder",
            Self::LeaseWithoutFence => "lease-without-fence",
            Self::BeginWithoutDel => "begin-without-del",
            Self::EndWithoutDel => "end-without-del",
            Self::JoinById => "join-by-id",
            Self::JoinBeforeLookup => "join-before-lookup",
            Self::JoinAcrossEpochs => "join-across-epochs",
            Self::JoinRunning => "join-running",
            Self::EndLiftsEveryFence => "end-lifts-every-fence",
            Self::EndOnce => "end-once",
            Self::NoPending => "no-pending",
            Self::NoEpoch => "no-epoch",
            Self::NoExpiryCheck => "no-expiry-check",
            Self::EpochAtFill => "epoch-at-fill",
            Self::NearWithoutGeneration => "near-without-generation",
            Self::NearWithoutBarrier => "near-without-barrier",
            Self::NearWithoutFlush => "near-without-flush",
            Self::NearAcrossMoves => "near-across-moves",
            Self::RedirectedIsDone => "redirected-is-done",
            Self::NearUnfollowed => "near-unfollowed",
        }
    }

    /// The line of a script that it takes out or changes: its file, what stands there, and what
    /// takes its place. `None` for a fault that is not in a script.
    pub fn script(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::FillWithoutToken => {
                Some(("fill", "if redis.call('GET', KEYS[3]) ~= ARGV[1] then return 0 end", ""))
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
                Some(("begin", "redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])", ""))
            }
            Self::EndWithoutDel => {
                Some(("end", "redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) > 0", "true"))
            }
            Self::EndLiftsEveryFence => {
                Some(("end", "redis.call('ZREM', KEYS[4], ARGV[1])", "redis.call('DEL', KEYS[4])"))
            }
            _ => None,
        }
    }
}

/// Whether a mutant is switched on.
#[cfg(not(feature = "mutants"))]
pub const fn is(_mutant: Mutant) -> bool {
    false
}

/// Whether a mutant is switched on.
#[cfg(feature = "mutants")]
pub fn is(mutant: Mutant) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("JOBCACHE_MUTANT").ok()).as_deref() == Some(mutant.as_str())
}

/// A script as the mutant that is switched on has it.
pub fn script(name: &str, source: &str) -> String {
    let on = Mutant::ALL.into_iter().filter(|mutant| is(*mutant)).find_map(Mutant::script);
    match on {
        Some((file, line, instead)) if file == name => source.replace(line, instead),
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
