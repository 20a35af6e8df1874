//! The keys of the job in Redis, and the scripts that change them. Each function is one script of
//! `src/store/lua`, and atomic as the script is.

use jobcache::mutants::Mutant;

use super::flaws::Flaw;

/// Number of commits before a body was read.
pub(super) type Version = u8;
/// Token of a lease, generation of an entry, and in place of the expiry: no two entries have the
/// same expiry here.
pub(super) type Token = u8;
/// `run_id` and `master_replid` of a server; see [`Epoch::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Epoch {
    pub(super) run: u8,
    pub(super) replication: u8,
}

/// The generation of the entry that is there at the start.
pub(super) const FIRST: Token = 14;
/// The expiry of a value that another program has `SET`.
pub(super) const FOREIGN: Token = 15;
/// Added to the token of a reader for the generation of its replacement.
pub(super) const REPLACED: Token = 6;

/// `job_status:<id>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Main {
    Absent,
    /// `""`.
    Placeholder,
    /// A body. `expiry` names the `SET` that wrote it.
    Body {
        version: Version,
        expiry: Token,
    },
}

/// `{job_status:<id>}:meta`. The digest is the version, and the expiry is the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Meta {
    pub(super) version: Version,
    pub(super) generation: Token,
    pub(super) epoch: Epoch,
}

/// The four keys of the job, and what the purge token says of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Keys {
    pub(super) main: Main,
    pub(super) meta: Option<Meta>,
    /// `{job_status:<id>}:lease`: the token of the reader that may fill.
    pub(super) lease: Option<Token>,
    /// `{job_status:<id>}:fence`: the writes in flight, one bit each.
    pub(super) fence: u8,
    /// Whether entry and lease are of a purge token that is no longer in force.
    pub(super) is_entry_purged: bool,
    pub(super) is_lease_purged: bool,
}

/// The replies of `lease.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leasing {
    Stored,
    Fenced,
    Leased(Token),
    Granted,
}

/// The fence after an end: the linger of `end.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Linger {
    /// The fence falls.
    None,
    /// The fence stands on until it expires.
    Some,
}

impl Keys {
    pub(super) const EMPTY: Self = Self {
        main: Main::Absent,
        meta: None,
        lease: None,
        fence: 0,
        is_entry_purged: false,
        is_lease_purged: false,
    };

    /// An entry of version 0, filled in this epoch.
    pub(super) fn filled(epoch: Epoch) -> Self {
        let main = Main::Body { version: 0, expiry: FIRST };
        let meta = Some(Meta { version: 0, generation: FIRST, epoch });
        Self { main, meta, ..Self::EMPTY }
    }

    fn is_fenced(&self) -> bool {
        self.fence != 0
    }

    /// `lease.lua`. `refused` is the expiry of a value that the reader has seen and refused.
    pub(super) fn lease(
        &mut self,
        token: Token,
        refused: Option<Token>,
        flaw: Option<Flaw>,
    ) -> Leasing {
        if let Main::Body { expiry, .. } = self.main {
            if refused != Some(expiry) {
                return Leasing::Stored;
            }
            self.drop_entry();
        }
        if self.is_fenced() && flaw != Some(Flaw::Of(Mutant::LeaseWithoutFence)) {
            return Leasing::Fenced;
        }
        if self.main == Main::Placeholder
            && !self.is_lease_purged
            && let Some(holder) = self.lease
        {
            return Leasing::Leased(holder);
        }
        let lease = Some(token);
        *self = Self { main: Main::Placeholder, lease, fence: self.fence, ..Self::EMPTY };
        Leasing::Granted
    }

    /// `fill.lua`. Returns whether the entry is stored.
    pub(super) fn fill(&mut self, token: Token, new: Meta, flaw: Option<Flaw>) -> bool {
        let is_placeholder = self.main == Main::Placeholder
            || flaw == Some(Flaw::Of(Mutant::FillWithoutPlaceholder));
        let is_holder = self.lease == Some(token) && !self.is_lease_purged
            || flaw == Some(Flaw::Of(Mutant::FillWithoutToken));
        if !is_placeholder || !is_holder {
            return false;
        }
        self.set(new);
        self.lease = None;
        self.is_lease_purged = false;
        true
    }

    fn set(&mut self, new: Meta) {
        self.main = Main::Body { version: new.version, expiry: new.generation };
        self.meta = Some(new);
        self.is_entry_purged = false;
    }

    /// A purge of all: a new purge token.
    pub(super) fn purge_all(&mut self) {
        self.is_entry_purged = self.meta.is_some();
        self.is_lease_purged = self.lease.is_some();
    }

    /// `release.lua`.
    pub(super) fn release(&mut self, token: Token) {
        if self.lease != Some(token) {
            return;
        }
        self.lease = None;
        self.is_lease_purged = false;
        if self.main == Main::Placeholder {
            self.main = Main::Absent;
        }
    }

    /// `begin.lua`.
    pub(super) fn begin(&mut self, write: u8, flaw: Option<Flaw>) {
        if flaw != Some(Flaw::Of(Mutant::BeginWithoutDel)) {
            self.drop_entry();
        }
        self.fence |= 1 << write;
    }

    /// `end.lua`.
    pub(super) fn end(&mut self, write: u8, linger: Linger, flaw: Option<Flaw>) {
        if flaw != Some(Flaw::Of(Mutant::EndWithoutDel)) {
            self.drop_entry();
        }
        match linger {
            Linger::Some => self.fence |= 1 << write,
            Linger::None if flaw == Some(Flaw::Of(Mutant::EndLiftsEveryFence)) => self.fence = 0,
            Linger::None => self.fence &= !(1 << write),
        }
    }

    /// `replace.lua`. `seen` is the entry that the reader has seen.
    pub(super) fn replace(&mut self, seen: Meta, new: Meta, flaw: Option<Flaw>) -> bool {
        let is_same = self.main == Main::Body { version: seen.version, expiry: seen.generation }
            || flaw == Some(Flaw::ReplaceWithoutValue);
        let is_generation = self.meta.is_some_and(|meta| meta.generation == seen.generation);
        if !is_same || self.is_fenced() || !is_generation || self.is_entry_purged {
            return false;
        }
        self.set(new);
        true
    }

    /// `DEL` of the main key, the lease and the metadata, as in `begin.lua` and `end.lua`.
    fn drop_entry(&mut self) {
        *self = Self { fence: self.fence, ..Self::EMPTY };
    }

    /// The entry, as a reader sees it on a connection of this epoch: `Entry::decode` in
    /// `src/cache/entry.rs`.
    pub(super) fn decode(&self, epoch: Epoch, flaw: Option<Flaw>) -> Result<Meta, Option<Token>> {
        let Main::Body { version, expiry } = self.main else { return Err(None) };
        let of_any_value = Meta { version, generation: expiry, epoch };
        if flaw == Some(Flaw::AnyValue) {
            return Ok(of_any_value);
        }
        let Some(meta) = self.meta else { return Err(Some(expiry)) };
        let is_epoch = match flaw {
            Some(Flaw::Of(Mutant::NoEpoch)) => true,
            Some(Flaw::EpochIsRunId) => meta.epoch.run == epoch.run,
            _ => meta.epoch == epoch,
        };
        let is_purged = self.is_entry_purged && flaw != Some(Flaw::Of(Mutant::NoPurgeToken));
        let is_expiry = meta.generation == expiry || flaw == Some(Flaw::Of(Mutant::NoExpiryCheck));
        if meta.version == version && is_expiry && is_epoch && !is_purged {
            Ok(meta)
        } else {
            Err(Some(expiry))
        }
    }
}
