//! The faults, each of which happens at most once for each time that a scope names it.

use super::{
    flaws::Flaw,
    keys::{Epoch, Keys},
    model::Step,
    run::{Fate, Run},
    state::{Begun, Behind, PurgePhase, Reader, ReaderPhase, SIDECARS, Sidecar, State, WritePhase},
};

/// The `run_id` of the replica.
const REPLICA: u8 = 2;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    /// Another program commits, and announces it by a plain `DEL`.
    ThirdPartyDel,
    /// A reply does not arrive in time.
    LostReply,
    /// A sidecar dies and starts again. Its journal is kept.
    KilledSidecar,
    /// The server dies and comes back with the data of any earlier moment.
    RestartFromSnapshot,
    /// The server dies, and a replica with the data of any earlier moment becomes the master.
    Promotion,
    /// A command is executed after its sidecar has given it up.
    LateCommand,
    /// After its `DEL` the other program `SET`s the body that it had read before.
    ForeignSet,
}

impl Fault {
    /// The faults of which singles and pairs are checked.
    pub(super) const ALL: [Self; 6] = [
        Self::ThirdPartyDel,
        Self::LostReply,
        Self::KilledSidecar,
        Self::RestartFromSnapshot,
        Self::Promotion,
        Self::LateCommand,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ThirdPartyDel => "third party's DEL",
            Self::LostReply => "lost reply",
            Self::KilledSidecar => "killed sidecar",
            Self::RestartFromSnapshot => "restart from a snapshot",
            Self::Promotion => "promotion",
            Self::LateCommand => "late command",
            Self::ForeignSet => "foreign SET",
        }
    }
}

impl Run<'_> {
    /// Counts the fault that a step is.
    pub(super) fn spend_fault(&mut self, step: Step) {
        let Some(fault) = step.fault() else { return };
        let left = self.scope.faults.iter().zip(&mut self.state.faults_left);
        let one = left.into_iter().find(|(of, left)| **of == Some(fault) && **left > 0);
        if let Some((_, left)) = one {
            *left -= 1;
        }
    }

    /// A sidecar dies and starts again. Commands on their way may still be executed, and the writes
    /// that it has forwarded may still be committed. The journal keeps what is pending.
    pub(super) fn kill(&mut self, at: usize) {
        let died = |of: u8| usize::from(of) == at;
        for one in &mut self.state.readers {
            if died(one.at) {
                one.die();
            }
        }
        for write in &mut self.state.writes {
            if died(write.at) {
                write.phase = match write.phase {
                    WritePhase::Idle => WritePhase::Idle,
                    WritePhase::Arrived | WritePhase::Done => WritePhase::Done,
                    _ => WritePhase::Orphaned,
                };
                write.answered = 0;
                write.is_confirmed = false;
            }
        }
        let purge = &mut self.state.purge;
        if died(purge.at) && purge.phase != PurgePhase::Idle {
            purge.phase = PurgePhase::Done;
        }
        let Sidecar { pending, acknowledged, unconfirmed, .. } = self.state.sidecars[at];
        let pending = pending.filter(|_| self.scope.flaw != Some(Flaw::PendingWithoutJournal));
        let pending = pending.map(|mut item| {
            item.is_repeated = false;
            item
        });
        let session = Some(self.state.epoch);
        self.state.sidecars[at] =
            Sidecar { session, pending, acknowledged, unconfirmed, ..Sidecar::STARTED };
    }

    /// A snapshot is saved, or the replica has all data of this moment.
    pub(super) fn save(&mut self) {
        self.state.other = Some((self.state.keys, REPLICA));
    }

    /// The server dies and starts with the data of the snapshot.
    pub(super) fn restart(&mut self) {
        // Unlike that of any replica.
        let run = self.state.epoch.run + 2;
        if let Some((keys, _)) = self.state.other.take() {
            self.succeed(keys, run);
        }
    }

    /// The replica becomes the master. The data of the old master remain there.
    pub(super) fn promote(&mut self) {
        let old = (self.state.keys, self.state.epoch.run);
        if let Some((keys, run)) = self.state.other.replace(old) {
            self.succeed(keys, run);
        }
    }

    /// Another life of the server begins. All connections break, and what was on its way is lost.
    fn succeed(&mut self, keys: Keys, run: u8) {
        let replication = self.state.epoch.replication + 1;
        self.state.epoch = Epoch { run, replication };
        self.state.keys = keys;
        self.state.fences = keys.fence;
        for at in 0..SIDECARS {
            self.disconnect(at);
            if let Some(item) = &mut self.state.sidecars[at].pending {
                item.is_repeated = false;
            }
        }
        for reader in 0..self.scope.readers {
            if self.state.readers[reader].behind == Behind::LateLease {
                self.state.readers[reader].behind = Behind::Nothing;
                self.state.readers[reader].refused = None;
            }
            if self.state.readers[reader].phase == ReaderPhase::LateFill {
                self.leave(reader);
            }
        }
        for write in &mut self.state.writes {
            write.late_begin = false;
            write.late_ends = [false; 2];
        }
        self.state.purge.late_end = false;
    }

    /// A sidecar connects and learns the epoch: `connect_master` in `src/store/redis/supervisor.rs`.
    pub(super) fn connect(&mut self, at: usize) {
        self.state.sidecars[at].session = Some(self.state.epoch);
    }
}

impl Step {
    /// The fault that this step is.
    fn fault(self) -> Option<Fault> {
        match self {
            Self::Look { fate, .. }
            | Self::Lease { fate, .. }
            | Self::Store { fate, .. }
            | Self::Begin { fate, .. }
            | Self::End { fate, .. }
            | Self::Purge { fate } => match fate {
                Fate::Answered => None,
                Fate::LostReply => Some(Fault::LostReply),
                Fate::Late => Some(Fault::LateCommand),
            },
            Self::CommitElsewhere => Some(Fault::ThirdPartyDel),
            Self::SetForeign => Some(Fault::ForeignSet),
            Self::Kill { .. } => Some(Fault::KilledSidecar),
            Self::Restart => Some(Fault::RestartFromSnapshot),
            Self::Promote => Some(Fault::Promotion),
            _ => None,
        }
    }
}

impl Reader {
    fn die(&mut self) {
        self.is_attached = false;
        match self.phase {
            ReaderPhase::Idle | ReaderPhase::LateFill => {}
            ReaderPhase::Storing => self.phase = ReaderPhase::LateFill,
            _ if self.behind == Behind::LateLease => {
                let Self { at, refused, behind, .. } = *self;
                *self = Self { phase: ReaderPhase::Done, at, refused, behind, ..Self::IDLE };
            }
            _ => *self = Self { phase: ReaderPhase::Done, ..Self::IDLE },
        }
    }
}

impl State {
    /// Whether a write is in flight, so that its fence does not expire: it outlasts the timeouts of
    /// the upstream, and is renewed.
    pub(super) fn is_live(&self, write: usize) -> bool {
        let write = &self.writes[write];
        write.begun != Begun::NotSent
            && !matches!(write.phase, WritePhase::Orphaned | WritePhase::Done)
    }
}
