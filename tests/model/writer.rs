//! The steps of a write, a purge and a third party, and of the invalidations that are repeated:
//! `WriteInvalidation::conclude`, `Invalidator::invalidate`, `Redis::begin`, `Redis::end` and the retry queue.

use jobcache::mutants::Mutant;

use super::{
    faults::Fault,
    flaws::Flaw,
    keys::{FOREIGN, Keys, Linger, Main, Version},
    run::{Fate, Run},
    state::{Begun, PURGE, Pending, Purge, PurgePhase, ThirdParty, Write, WritePhase},
};

/// Which end of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    /// Before the head is passed on; the bodies have not ended (`FenceEnd::WithBodies`).
    AtHead,
    /// Before the head is passed on; the bodies have ended (`FenceEnd::Now`).
    AtHeadWithBodies,
    /// After the bodies (`WriteInvalidation::run_again`).
    AfterBodies,
    /// After a timeout of the upstream (`WriteOutcome::Unknown`).
    Unknown,
}

impl End {
    fn linger(self, flaw: Option<Flaw>) -> Linger {
        match self {
            Self::AtHead
                if flaw == Some(Flaw::Of(Mutant::EndOnce))
                    || flaw == Some(Flaw::HeadLiftsFence) =>
            {
                Linger::None
            }
            Self::AtHead | Self::Unknown => Linger::Some,
            Self::AtHeadWithBodies | Self::AfterBodies => Linger::None,
        }
    }
}

impl Run<'_> {
    pub(super) fn write(number: usize) -> u8 {
        u8::try_from(number).expect("few writes")
    }

    /// A write comes: the first half of `Invalidator::begin`.
    pub(super) fn put(&mut self, number: usize, at: u8) {
        self.state.writes[number].at = at;
        self.state.writes[number].phase = WritePhase::Arrived;
        self.detach(at);
    }

    /// `Store::begin` with `begin.lua`. Then the write is forwarded.
    pub(super) fn begin(&mut self, number: usize, fate: Fate) {
        let at = usize::from(self.state.writes[number].at);
        let begun = match (self.state.sidecars[at].session, fate) {
            (None, _) => Begun::NotSent,
            (Some(_), Fate::Late) => {
                self.state.writes[number].late_begin = true;
                Begun::Unconfirmed
            }
            (Some(epoch), _) => {
                self.begin_at_server(Self::write(number));
                if fate == Fate::Answered { Begun::Confirmed(epoch) } else { Begun::Unconfirmed }
            }
        };
        let write = &mut self.state.writes[number];
        write.begun = begun;
        write.phase = WritePhase::Forwarded;
    }

    /// A begin that its sidecar has given up is executed.
    pub(super) fn late_begin(&mut self, number: usize) {
        self.state.writes[number].late_begin = false;
        self.begin_at_server(Self::write(number));
    }

    /// `begin.lua` is executed.
    fn begin_at_server(&mut self, write: u8) {
        let flaw = self.scope.flaw;
        self.change(|keys| keys.begin(write, flaw));
        self.state.fences |= 1 << write;
    }

    /// `end.lua` is executed.
    fn end_at_server(&mut self, write: u8, linger: Linger) {
        let flaw = self.scope.flaw;
        if write == PURGE && self.scope.purges_all {
            self.change(Keys::purge_all);
        } else {
            self.change(|keys| keys.end(write, linger, flaw));
        }
        match linger {
            Linger::Some => self.state.fences |= 1 << write,
            Linger::None => self.state.fences &= !(1 << write),
        }
    }

    fn next_version(&mut self) -> Version {
        self.state.version += 1;
        self.state.version
    }

    /// The upstream commits a write.
    pub(super) fn commit(&mut self, number: usize) {
        self.state.writes[number].version = self.next_version();
    }

    /// `Redis::end` with `end.lua`.
    pub(super) fn end(&mut self, number: usize, end: End, fate: Fate) {
        let linger = end.linger(self.scope.flaw);
        let Write { at, .. } = self.state.writes[number];
        let is_skipped = end == End::AfterBodies && self.has(Mutant::EndOnce);
        let is_confirmed =
            is_skipped || self.send_end(usize::from(at), Self::write(number), linger, fate);
        // It has to stand until the bodies have ended, even if a flaw lifts it.
        if end == End::AtHead && (is_confirmed || fate == Fate::LostReply) {
            self.state.fences |= 1 << Self::write(number);
        }
        let write = &mut self.state.writes[number];
        if !is_confirmed && fate == Fate::Late {
            write.late_ends[usize::from(linger == Linger::Some)] = true;
        }
        write.is_confirmed = is_confirmed;
        write.answered = write.version;
        write.phase = match end {
            End::AtHead => WritePhase::HeadEnded { bodies: false },
            End::AtHeadWithBodies => WritePhase::HeadEnded { bodies: true },
            End::AfterBodies => WritePhase::LastEnded,
            End::Unknown => WritePhase::UnknownEnded,
        };
    }

    /// Sends an end, and returns whether it is confirmed.
    fn send_end(&mut self, at: usize, write: u8, linger: Linger, fate: Fate) -> bool {
        if self.state.sidecars[at].session.is_none() || fate == Fate::Late {
            return false;
        }
        self.end_at_server(write, linger);
        fate == Fate::Answered
    }

    /// An end that its sidecar has given up is executed.
    pub(super) fn late_end(&mut self, number: usize, linger: Linger) {
        self.state.writes[number].late_ends[usize::from(linger == Linger::Some)] = false;
        self.end_at_server(Self::write(number), linger);
    }

    /// The rest of `Redis::end` and `Invalidator::invalidate` after an end. Then the head, or the end of
    /// the response, goes to the client.
    pub(super) fn reply(&mut self, number: usize) {
        let Write { phase, at, answered, begun, is_confirmed, .. } = self.state.writes[number];
        let (next, end) = match phase {
            WritePhase::HeadEnded { bodies: false } => (WritePhase::Streaming, End::AtHead),
            WritePhase::HeadEnded { bodies: true } => (WritePhase::Done, End::AtHeadWithBodies),
            WritePhase::UnknownEnded => (WritePhase::Orphaned, End::Unknown),
            _ => (WritePhase::Done, End::AfterBodies),
        };
        let linger = end.linger(self.scope.flaw);
        let write = Self::write(number);
        self.relax(at, write, linger);
        if !is_confirmed || begun == Begun::Unconfirmed {
            self.remember(at, write, linger);
        }
        self.detach(at);
        let write = &mut self.state.writes[number];
        write.phase = next;
        write.is_confirmed = false;
        write.answered = 0;
        if next != WritePhase::Streaming {
            write.begun = Begun::NotSent;
        }
        if end == End::Unknown {
            return;
        }
        // While its fence stands nothing older is served, whether or not the end is confirmed.
        let is_fenced = begun == Begun::Confirmed(self.state.epoch);
        self.acknowledge(at, answered, is_confirmed || is_fenced);
    }

    /// Applies the linger of an end to the earlier ends of the same write: `PendingSet::relax`.
    fn relax(&mut self, at: u8, write: u8, linger: Linger) {
        let pending = &mut self.state.sidecars[usize::from(at)].pending;
        if let Some(item) = pending.as_mut().filter(|item| item.write == write) {
            item.linger = linger.longer(item.linger_of_others);
        }
    }

    /// `RetryQueue::add`: the key is pending until this invalidation is confirmed.
    fn remember(&mut self, at: u8, write: u8, linger: Linger) {
        if self.has(Mutant::NoPending) {
            return;
        }
        let pending = &mut self.state.sidecars[usize::from(at)].pending;
        let linger_of_others = match pending {
            Some(item) if item.write == write => item.linger_of_others,
            Some(item) => item.linger,
            None => Linger::None,
        };
        let linger = linger.longer(linger_of_others);
        let is_repeated = self.scope.flaw == Some(Flaw::ConfirmForgetsAdditions)
            && pending.is_some_and(|item| item.is_repeated);
        *pending = Some(Pending { write, linger, linger_of_others, is_repeated });
    }

    /// `RetryQueue::replay` repeats an end.
    pub(super) fn repeat(&mut self, at: usize) {
        let Some(Pending { write, linger, .. }) = self.state.sidecars[at].pending else { return };
        self.send_end(at, write, linger, Fate::Answered);
        if let Some(item) = &mut self.state.sidecars[at].pending {
            item.is_repeated = true;
        }
    }

    /// The repeated end is confirmed: `PendingSet::confirm`. The step does not exist after a further
    /// addition.
    pub(super) fn confirm(&mut self, at: usize) {
        self.state.sidecars[at].pending = None;
        let covered = self.state.sidecars[at].unconfirmed;
        for sidecar in &mut self.state.sidecars {
            sidecar.acknowledged = sidecar.acknowledged.max(covered);
        }
        self.state.sidecars[at].unconfirmed = 0;
    }

    /// Something that has committed this version is acknowledged, to the clients of all sidecars or
    /// within a documented limit to those of one.
    fn acknowledge(&mut self, at: u8, version: Version, everywhere: bool) {
        for (number, sidecar) in self.state.sidecars.iter_mut().enumerate() {
            let is_here = number == usize::from(at);
            if everywhere || is_here {
                sidecar.acknowledged = sidecar.acknowledged.max(version);
            }
            if !everywhere && is_here {
                sidecar.unconfirmed = sidecar.unconfirmed.max(version);
            }
        }
    }

    /// The fence of a write expires: its sidecar is dead, or it has ended with a linger.
    pub(super) fn expire_fence(&mut self, write: u8) {
        self.state.keys.fence &= !(1 << write);
        self.state.fences &= !(1 << write);
    }

    /// The change that a purge is for is committed, past the sidecars.
    pub(super) fn commit_purge(&mut self, at: u8) {
        let version = self.next_version();
        self.state.purge = Purge { phase: PurgePhase::Committed, at, version, late_end: false };
    }

    /// `Redis::purge` with `end.lua`, or `RedisEngine::purge_all`.
    pub(super) fn purge(&mut self, fate: Fate) {
        let at = usize::from(self.state.purge.at);
        let is_confirmed = self.send_end(at, PURGE, Linger::None, fate);
        self.state.purge.late_end = fate == Fate::Late;
        self.state.purge.phase = PurgePhase::Ended { is_confirmed };
    }

    /// The end of a purge that its sidecar has given up is executed.
    pub(super) fn late_purge(&mut self) {
        self.state.purge.late_end = false;
        self.end_at_server(PURGE, Linger::None);
    }

    /// The rest of `Invalidator::purge_keys`. The answer is 200 or 503.
    pub(super) fn reply_purge(&mut self, is_confirmed: bool) {
        let Purge { at, version, .. } = self.state.purge;
        if !is_confirmed {
            self.remember(at, PURGE, Linger::None);
        }
        self.detach(at);
        self.state.purge.phase = PurgePhase::Done;
        self.acknowledge(at, version, is_confirmed);
    }

    /// A third party commits.
    pub(super) fn commit_elsewhere(&mut self) {
        self.state.third_party = ThirdParty::Committed(self.next_version());
    }

    /// A third party's plain `DEL`, which Redis acknowledges.
    pub(super) fn del(&mut self, version: Version) {
        self.change(|keys| keys.main = Main::Absent);
        self.state.third_party = if self.scope.has_fault(Fault::ForeignSet) {
            ThirdParty::Deleted
        } else {
            ThirdParty::Done
        };
        self.acknowledge(0, version, true);
    }

    /// A third party `SET`s the first body, which it had read before its commit.
    pub(super) fn set_foreign(&mut self) {
        self.change(|keys| keys.main = Main::Body { version: 0, expiry: FOREIGN });
        self.state.third_party = ThirdParty::Done;
    }
}

impl Linger {
    fn longer(self, other: Self) -> Self {
        if self == Self::Some { self } else { other }
    }
}
