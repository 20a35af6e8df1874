//! The state of the model: the server, two sidecars, and their clients.

use super::keys::{Epoch, Keys, Linger, Token, Version};

/// Most readers, writes and sidecars.
pub(super) const READERS: usize = 3;
pub(super) const WRITES: usize = 2;
pub(super) const SIDECARS: usize = 2;
/// The fence of a purge, which has one only while it lingers for a write that was pending before.
pub(super) const PURGE: u8 = 2;

/// A wrong answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stale {
    /// Older than what was acknowledged before the reader came.
    Acknowledged,
    /// Older than the commit of a write with a standing fence, at the time when the reader came.
    Fenced,
}

/// The step at which a reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReaderPhase {
    Idle,
    /// Waits for a `PONG` (`Barrier::poll_pass`).
    Barrier,
    /// Reads the store (`Store::read`).
    Look,
    /// Inserts what it has read (`NearEntries::insert`).
    Keep,
    /// Asks for a lease (`Store::lease`).
    Lease,
    /// Leads a flight under the lease of another sidecar: waits for its entry, and may read the
    /// upstream at any time (`LeadTask::run`).
    Follow,
    /// Leads the next read without a lease, which may start at any time (`Leader::start`).
    Queued,
    /// Has joined the flight of a leader.
    Joined,
    /// Reads the upstream for a flight.
    Reading,
    /// The upstream has answered; the response is on its way.
    Answered,
    /// The response of the flight is published, and is being stored (`cache::fill`).
    Storing,
    /// A fill that the sidecar has given up, and that the server may still execute.
    LateFill,
    Done,
}

/// Where a leader stores the response: `FillTarget` in `src/cache/fill.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Nowhere,
    Lease,
    /// In place of the entry that the holder of a lease stores.
    Held,
    Entry,
}

/// Commands for the lease of a reader that nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Behind {
    Nothing,
    /// A `lease` that timed out and may still be executed; a `release` follows it.
    LateLease,
    /// A `release` is due (`RedisLeaseHold`).
    Release,
}

/// A GET.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reader {
    pub(super) phase: ReaderPhase,
    pub(super) at: u8,
    pub(super) no_cache: bool,
    /// The version acknowledged, and the newer version fenced, when it came.
    pub(super) acknowledged: Version,
    pub(super) fenced: Version,
    /// The upstream's answer, or the version read for the near entry.
    pub(super) version: Version,
    pub(super) target: Target,
    /// The epoch of the lease, or of the read of the entry.
    pub(super) epoch: Epoch,
    /// Whether others can join its flight by its version.
    pub(super) is_attached: bool,
    /// The token of another reader's lease, if its flight is under that one and not under its own.
    pub(super) held: Option<Token>,
    /// Leader of the flight that it has joined.
    pub(super) leader: u8,
    /// The entry that it has seen and wants to replace, or the expiry of a refused value.
    pub(super) seen: Option<(Version, Token)>,
    pub(super) refused: Option<Token>,
    /// Whether there was no news since it noted the key (`NearEntries::note`).
    pub(super) is_noted: bool,
    /// Whether news come before its `PONG`.
    pub(super) awaits_news: bool,
    pub(super) behind: Behind,
}

/// Whether the fence of a write is known to stand: `Begun` in `src/store/write.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Begun {
    NotSent,
    Confirmed(Epoch),
    Unconfirmed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum WritePhase {
    Idle,
    /// Its flights are detached; it has not begun.
    Arrived,
    /// Begun and forwarded.
    Forwarded,
    /// Ended before its head is passed on, and not replied. `bodies` is whether they have ended.
    HeadEnded {
        bodies: bool,
    },
    /// The head is passed on; the bodies have not ended.
    Streaming,
    /// Ended after its bodies, and not replied.
    LastEnded,
    /// Ended after a timeout of the upstream, and not replied.
    UnknownEnded,
    /// The client has a 504, or its sidecar is dead. The upstream may commit.
    Orphaned,
    Done,
}

/// A write through a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Write {
    pub(super) phase: WritePhase,
    pub(super) at: u8,
    /// Version that it has committed; 0 before.
    pub(super) version: Version,
    pub(super) begun: Begun,
    /// Version that the upstream had committed when it sent the head, or the end of the response,
    /// that waits for its end. A head acknowledges nothing that is committed after it.
    pub(super) answered: Version,
    /// Whether the end that is not replied yet is confirmed.
    pub(super) is_confirmed: bool,
    /// Whether its begin may still be executed.
    pub(super) late_begin: bool,
    /// Ends that may still be executed: with and without a linger.
    pub(super) late_ends: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PurgePhase {
    Idle,
    Committed,
    Ended { is_confirmed: bool },
    Done,
}

/// A purge through a sidecar, for a commit that went past the sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Purge {
    pub(super) phase: PurgePhase,
    pub(super) at: u8,
    pub(super) version: Version,
    pub(super) late_end: bool,
}

/// Another program, which commits and announces it by a plain `DEL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ThirdParty {
    Idle,
    Committed(Version),
    /// A `SET` of the first body, read before the commit, may follow.
    Deleted,
    Done,
}

/// `PendingItem` in `src/store/pending.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pending {
    pub(super) write: u8,
    pub(super) linger: Linger,
    pub(super) linger_of_others: Linger,
    /// Whether it was repeated since it was last added, and waits for the answer.
    pub(super) is_repeated: bool,
}

/// A sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sidecar {
    /// Epoch of the session; `None` while it has no connection.
    pub(super) session: Option<Epoch>,
    /// Leaders of the running reads without a lease, one bit each, and of the next one (`ReadQueue`).
    pub(super) running: u8,
    pub(super) next: Option<u8>,
    /// Version of the near entry.
    pub(super) near: Option<Version>,
    /// Whether news of a change are on their way to it.
    pub(super) has_news: bool,
    pub(super) pending: Option<Pending>,
    /// Newest version acknowledged to clients of this sidecar.
    pub(super) acknowledged: Version,
    /// Newest version acknowledged while Redis had not confirmed the end.
    pub(super) unconfirmed: Version,
}

/// The whole state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) keys: Keys,
    pub(super) epoch: Epoch,
    /// A snapshot, or the data of the replica, and the `run_id` of the replica.
    pub(super) other: Option<(Keys, u8)>,
    /// The writes with a fence that has to stand. Without a flaw it is the fence of `keys`.
    pub(super) fences: u8,
    /// Number of commits at the upstream.
    pub(super) version: Version,
    pub(super) readers: [Reader; READERS],
    pub(super) sidecars: [Sidecar; SIDECARS],
    pub(super) writes: [Write; WRITES],
    pub(super) purge: Purge,
    pub(super) third_party: ThirdParty,
    /// Faults that have not happened yet, by their place in the scope.
    pub(super) faults_left: [u8; 2],
    pub(super) stale: Option<Stale>,
}

/// The first life of the server.
pub(super) const FIRST_EPOCH: Epoch = Epoch { run: 1, replication: 1 };

impl Reader {
    pub(super) const IDLE: Self = Self {
        phase: ReaderPhase::Idle,
        at: 0,
        no_cache: false,
        acknowledged: 0,
        fenced: 0,
        version: 0,
        target: Target::Nowhere,
        epoch: FIRST_EPOCH,
        is_attached: false,
        held: None,
        leader: 0,
        seen: None,
        refused: None,
        is_noted: false,
        awaits_news: false,
        behind: Behind::Nothing,
    };
}

impl ThirdParty {
    /// The version that it has committed and not acknowledged.
    pub(super) fn version(&mut self) -> Option<&mut Version> {
        match self {
            Self::Committed(version) => Some(version),
            Self::Idle | Self::Deleted | Self::Done => None,
        }
    }
}

impl Write {
    pub(super) const IDLE: Self = Self {
        phase: WritePhase::Idle,
        at: 0,
        version: 0,
        begun: Begun::NotSent,
        answered: 0,
        is_confirmed: false,
        late_begin: false,
        late_ends: [false; 2],
    };
}

impl Sidecar {
    pub(super) const STARTED: Self = Self {
        session: Some(FIRST_EPOCH),
        running: 0,
        next: None,
        near: None,
        has_news: false,
        pending: None,
        acknowledged: 0,
        unconfirmed: 0,
    };
}

impl Sidecar {
    /// Leader of a read that runs without a lease.
    pub(super) fn latest_running(&self) -> Option<usize> {
        (0..READERS).rfind(|reader| self.running & (1 << reader) != 0)
    }
}

impl State {
    /// No client has come, and these keys are in Redis.
    pub(super) fn start(keys: Keys, faults_left: [u8; 2]) -> Self {
        Self {
            keys,
            epoch: FIRST_EPOCH,
            other: None,
            fences: keys.fence,
            version: 0,
            readers: [Reader::IDLE; READERS],
            sidecars: [Sidecar::STARTED; SIDECARS],
            writes: [Write::IDLE; WRITES],
            purge: Purge { phase: PurgePhase::Idle, at: 0, version: 0, late_end: false },
            third_party: ThirdParty::Idle,
            faults_left,
            stale: None,
        }
    }

    pub(super) fn sidecar_of(&self, reader: usize) -> &Sidecar {
        &self.sidecars[usize::from(self.readers[reader].at)]
    }

    /// Newest version committed by a write with a fence that has to stand.
    pub(super) fn fenced(&self) -> Version {
        let stands = |(number, write): (usize, &Write)| {
            if self.fences & (1 << number) == 0 { 0 } else { write.version }
        };
        self.writes.iter().enumerate().map(stands).max().unwrap_or(0)
    }
}
