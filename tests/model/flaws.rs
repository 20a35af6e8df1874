//! Faults of the protocol that the model must find; otherwise a clean run would prove nothing.

use jobcache::mutants::Mutant;

use super::{faults::Fault, scope::Scope};

/// A flaw in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    Of(Mutant),
    /// Any value under the key is a hit.
    AnyValue,
    /// The end before the head lifts the fence, although the upstream may still commit.
    HeadLiftsFence,
    /// `replace.lua` checks the generation and not the value.
    ReplaceWithoutValue,
    /// A replacement compares the entry at its end instead of the one that was seen.
    ReplaceOnWhatIsThere,
    /// A replacement is sent over any connection, with the epoch of that connection.
    ReplaceAcrossEpochs,
    /// A read under another reader's lease replaces any entry that it finds afterwards.
    HeldOfAnyGeneration,
    /// The epoch is the `run_id` alone.
    EpochIsRunId,
    /// Pending invalidations do not survive the sidecar.
    PendingWithoutJournal,
    /// A confirmation removes what was added after its end was sent.
    ConfirmForgetsAdditions,
}

/// Mutants of mechanisms that the model does not have: slots that move, and tracking by keys.
pub(super) const LEFT_OUT: [Mutant; 5] = [
    Mutant::NearAcrossMoves,
    Mutant::RedirectedIsDone,
    Mutant::NearUntracked,
    Mutant::PushListenLate,
    Mutant::PushRunningRead,
];

impl Flaw {
    pub(super) fn name(self) -> String {
        match self {
            Self::Of(mutant) => mutant.as_str().to_owned(),
            _ => format!("{self:?}"),
        }
    }
}

/// Each flaw, with a scope in which it shows.
pub(super) fn flaws() -> Vec<(Flaw, Scope)> {
    let base = Scope::BASE;
    let purge = Scope { writes: 0, ..base };
    let near = Scope { near: true, ..purge };
    let no_cache = Scope { no_cache: true, ..purge };
    let of = |mutant: Mutant, scope: Scope| (Flaw::Of(mutant), scope);
    vec![
        of(Mutant::FillWithoutToken, purge),
        of(Mutant::FillWithoutPlaceholder, purge.with(Fault::ThirdPartyDel)),
        of(Mutant::LeaseWithoutFence, base),
        of(Mutant::BeginWithoutDel, base),
        of(Mutant::EndWithoutDel, base),
        of(Mutant::EndLiftsEveryFence, Scope { readers: 1, writes: 2, has_purge: false, ..base }),
        of(Mutant::EndOnce, base),
        of(Mutant::JoinById, purge),
        of(Mutant::JoinBeforeLookup, base),
        of(Mutant::JoinRunning, base),
        of(Mutant::JoinAcrossEpochs, purge.with(Fault::RestartFromSnapshot)),
        of(Mutant::NoPending, purge.with(Fault::LateCommand)),
        of(Mutant::NoEpoch, purge.with(Fault::RestartFromSnapshot)),
        of(Mutant::NoPurgeToken, Scope { purges_all: true, ..purge }),
        of(Mutant::EpochAtFill, purge.with(Fault::Promotion)),
        of(Mutant::NoExpiryCheck, purge.with_both(Fault::ThirdPartyDel, Fault::ForeignSet)),
        of(Mutant::NearWithoutGeneration, near),
        of(Mutant::NearWithoutBarrier, near),
        of(Mutant::NearWithoutFlush, near.with(Fault::RestartFromSnapshot)),
        (Flaw::AnyValue, purge.with_both(Fault::ThirdPartyDel, Fault::ForeignSet)),
        (Flaw::HeadLiftsFence, base),
        (Flaw::ReplaceWithoutValue, no_cache.with(Fault::ThirdPartyDel)),
        (Flaw::ReplaceOnWhatIsThere, no_cache),
        (Flaw::ReplaceAcrossEpochs, no_cache.with(Fault::Promotion)),
        (Flaw::HeldOfAnyGeneration, Scope { readers: 3, ..purge }),
        (Flaw::EpochIsRunId, purge.with_both(Fault::Promotion, Fault::Promotion)),
        (Flaw::PendingWithoutJournal, purge.with_both(Fault::LateCommand, Fault::KilledSidecar)),
        (
            Flaw::ConfirmForgetsAdditions,
            Scope { readers: 1, ..base }.with_both(Fault::LateCommand, Fault::LateCommand),
        ),
    ]
}
