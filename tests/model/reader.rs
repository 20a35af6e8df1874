//! The steps of a GET: `CacheReader::lookup_near` and `CacheReader::lookup`, the flights, and the fill.

use jobcache::mutants::Mutant;

use super::{
    flaws::Flaw,
    keys::{Epoch, Leasing, Main, Meta, REPLACED, Token, Version},
    run::{Fate, Run},
    state::{Behind, Reader, ReaderPhase, Stale, Target},
};

impl Run<'_> {
    /// The token of the lease of a reader: `Tokens::next`.
    fn token(reader: usize) -> Token {
        u8::try_from(reader).expect("few readers") + 1
    }

    fn number(reader: usize) -> u8 {
        u8::try_from(reader).expect("few readers")
    }

    fn session(&self, reader: usize) -> Option<Epoch> {
        self.state.sidecar_of(reader).session
    }

    /// A GET comes: `CacheReader::lookup_near` and the first line of `CacheReader::lookup` (`Store::trust`). If
    /// there is a near entry, a `PING` is sent and executed in the same step, because a later one
    /// only covers more news.
    pub(super) fn get(&mut self, reader: usize, at: u8, no_cache: bool) {
        let sidecar = self.state.sidecars[usize::from(at)];
        let (acknowledged, fenced) = (sidecar.acknowledged, self.state.fenced());
        let fenced = if fenced > acknowledged { fenced } else { 0 };
        self.state.readers[reader] = Reader { at, no_cache, acknowledged, fenced, ..Reader::IDLE };
        if sidecar.session.is_none() || sidecar.pending.is_some() {
            return self.answer_unconfirmed(reader, Target::Nowhere);
        }
        let has_no_barrier = self.has(Mutant::NearWithoutBarrier);
        if sidecar.near.is_some() && !no_cache {
            let one = &mut self.state.readers[reader];
            one.phase = ReaderPhase::Barrier;
            one.awaits_news = sidecar.has_news && !has_no_barrier;
            return;
        }
        self.miss_near(reader);
    }

    /// The `PONG` comes: `CacheReader::poll_lookup_near` after the barrier.
    pub(super) fn pong(&mut self, reader: usize) {
        if let Some(version) = self.state.sidecar_of(reader).near {
            self.judge(reader, version);
            return self.leave(reader);
        }
        self.miss_near(reader);
    }

    /// `CacheReader::lookup` up to `NearEntries::note`.
    fn miss_near(&mut self, reader: usize) {
        if self.has(Mutant::JoinBeforeLookup)
            && let Some(leader) = self.flight(self.state.readers[reader].at, |_| true)
        {
            return self.join(reader, leader);
        }
        let is_noted = self.scope.near;
        let one = &mut self.state.readers[reader];
        one.phase = ReaderPhase::Look;
        one.is_noted = is_noted;
    }

    /// `Store::read`, and `CacheReader::find_in_store` up to the lease.
    pub(super) fn look(&mut self, reader: usize, fate: Fate) {
        let Some(epoch) = self.session(reader).filter(|_| fate == Fate::Answered) else {
            return self.answer_unconfirmed(reader, Target::Nowhere);
        };
        match self.state.keys.decode(epoch, self.scope.flaw) {
            Ok(meta) => self.answer_with_entry(reader, meta, epoch),
            Err(refused) => {
                let one = &mut self.state.readers[reader];
                one.phase = ReaderPhase::Lease;
                one.is_noted = false;
                one.refused = refused;
            }
        }
    }

    /// `CacheReader::answer`.
    fn answer_with_entry(&mut self, reader: usize, meta: Meta, epoch: Epoch) {
        let one = &mut self.state.readers[reader];
        if one.no_cache {
            one.seen = Some((meta.version, meta.generation));
            one.epoch = epoch;
            return self.answer_unconfirmed(reader, Target::Entry);
        }
        let is_noted = one.is_noted || self.has(Mutant::NearWithoutGeneration);
        self.judge(reader, meta.version);
        if self.scope.near && is_noted {
            let one = &mut self.state.readers[reader];
            one.phase = ReaderPhase::Keep;
            one.version = meta.version;
        } else {
            self.leave(reader);
        }
    }

    /// `NearEntries::insert`.
    pub(super) fn keep(&mut self, reader: usize) {
        let Reader { at, version, is_noted, .. } = self.state.readers[reader];
        if is_noted || self.has(Mutant::NearWithoutGeneration) {
            self.state.sidecars[usize::from(at)].near = Some(version);
        }
        self.leave(reader);
    }

    /// `Store::lease` with `lease.lua`, and what `CacheReader::find_in_store` does with the answer.
    pub(super) fn lease(&mut self, reader: usize, fate: Fate) {
        let Some(epoch) = self.session(reader) else {
            return self.answer_unconfirmed(reader, Target::Nowhere);
        };
        if fate == Fate::Late {
            self.state.readers[reader].behind = Behind::LateLease;
            return self.answer_unconfirmed(reader, Target::Nowhere);
        }
        let (flaw, token) = (self.scope.flaw, Self::token(reader));
        let refused = self.state.readers[reader].refused.take();
        let leasing = self.change(|keys| keys.lease(token, refused, flaw));
        if fate == Fate::LostReply {
            if leasing == Leasing::Granted {
                self.state.readers[reader].behind = Behind::Release;
            }
            return self.answer_unconfirmed(reader, Target::Nowhere);
        }
        match leasing {
            Leasing::Granted => {
                let one = &mut self.state.readers[reader];
                one.phase = ReaderPhase::Reading;
                one.target = Target::Lease;
                one.epoch = epoch;
                one.is_attached = true;
            }
            Leasing::Fenced => self.answer_unconfirmed(reader, Target::Nowhere),
            Leasing::Stored => match self.state.keys.decode(epoch, flaw) {
                Ok(meta) => self.answer_with_entry(reader, meta, epoch),
                Err(_) => self.answer_unconfirmed(reader, Target::Nowhere),
            },
            Leasing::Leased(_) if self.state.readers[reader].no_cache => {
                self.answer_unconfirmed(reader, Target::Nowhere);
            }
            Leasing::Leased(token) => self.follow(reader, token, epoch),
        }
    }

    /// A `lease` that its reader has given up is executed.
    pub(super) fn late_lease(&mut self, reader: usize) {
        let (flaw, token) = (self.scope.flaw, Self::token(reader));
        let refused = self.state.readers[reader].refused.take();
        let leasing = self.change(|keys| keys.lease(token, refused, flaw));
        let is_granted = leasing == Leasing::Granted;
        self.state.readers[reader].behind =
            if is_granted { Behind::Release } else { Behind::Nothing };
    }

    /// `release.lua`.
    pub(super) fn release(&mut self, reader: usize) {
        self.change(|keys| keys.release(Self::token(reader)));
        self.state.readers[reader].behind = Behind::Nothing;
    }

    /// `decide::leased`: joins the flight under the token, or leads one under the lease of another
    /// sidecar (`CacheReader::lead_under_held`).
    fn follow(&mut self, reader: usize, token: Token, epoch: Epoch) {
        if let Some(leader) = self.flight_of(self.state.readers[reader].at, token, epoch) {
            return self.join(reader, leader);
        }
        let one = &mut self.state.readers[reader];
        one.phase = ReaderPhase::Follow;
        one.target = Target::Held;
        one.epoch = epoch;
        one.is_attached = true;
        one.held = Some(token);
        one.is_noted = false;
    }

    /// `SharedState::lease_end`: the store is read again. An entry answers all that have joined
    /// (`LeadTask::answer_from_store`); if there is neither an entry nor a lease, the reader takes the
    /// lease (`Filler::take_free_lease`). One read at any time stands for all of them, because a
    /// read that finds nothing changes nothing.
    pub(super) fn follow_up(&mut self, reader: usize) {
        let Some(epoch) = self.session(reader) else { return };
        match self.state.keys.decode(epoch, self.scope.flaw) {
            Ok(meta) => {
                self.judge(reader, meta.version);
                self.answer_followers(reader, Some(meta.version));
                self.leave(reader);
            }
            Err(None) if self.state.keys.main == Main::Absent => {
                let (flaw, token) = (self.scope.flaw, Self::token(reader));
                if self.change(|keys| keys.lease(token, None, flaw)) == Leasing::Granted {
                    let one = &mut self.state.readers[reader];
                    one.phase = ReaderPhase::Reading;
                    one.target = Target::Lease;
                    one.epoch = epoch;
                    one.is_attached = true;
                    one.held = None;
                }
            }
            Err(_) => {}
        }
    }

    /// Returns the leader of a flight of this sidecar that can be joined: `Flights::join_confirmed`.
    pub(super) fn flight(&self, at: u8, serves: impl Fn(usize) -> bool) -> Option<usize> {
        let is_open = |leader: &usize| {
            let one = &self.state.readers[*leader];
            one.is_attached && one.at == at && serves(*leader)
        };
        (0..self.scope.readers).find(is_open)
    }

    /// `ConfirmedFlight::serves`.
    pub(super) fn flight_of(&self, at: u8, token: Token, epoch: Epoch) -> Option<usize> {
        self.flight(at, |leader| {
            let of = self.state.readers[leader].held.unwrap_or(Self::token(leader));
            (of == token || self.has(Mutant::JoinById))
                && (self.state.readers[leader].epoch == epoch || self.has(Mutant::JoinAcrossEpochs))
        })
    }

    /// `Flight::wait`.
    fn join(&mut self, reader: usize, leader: usize) {
        let of = self.state.readers[leader];
        if of.phase == ReaderPhase::Storing {
            self.judge(reader, of.version);
            return self.leave(reader);
        }
        let one = &mut self.state.readers[reader];
        one.phase = ReaderPhase::Joined;
        one.is_noted = false;
        one.leader = Self::number(leader);
    }

    /// `CacheReader::lead_next` with `Flights::join_or_lead_next`.
    fn answer_unconfirmed(&mut self, reader: usize, target: Target) {
        let at = usize::from(self.state.readers[reader].at);
        let sidecar = &mut self.state.sidecars[at];
        let joins_running = self.scope.flaw == Some(Flaw::Of(Mutant::JoinRunning));
        let phase = match (sidecar.latest_running(), sidecar.next) {
            (Some(leader), _) if joins_running => return self.join(reader, leader),
            (_, Some(leader)) => return self.join(reader, usize::from(leader)),
            (Some(_), None) => {
                sidecar.next = Some(Self::number(reader));
                ReaderPhase::Queued
            }
            (None, None) => {
                sidecar.running = 1 << reader;
                ReaderPhase::Reading
            }
        };
        let one = &mut self.state.readers[reader];
        one.phase = phase;
        one.target = target;
        one.is_noted = false;
    }

    /// The upstream answers a leader.
    pub(super) fn read_upstream(&mut self, reader: usize) {
        let version = self.state.version;
        let one = &mut self.state.readers[reader];
        one.phase = ReaderPhase::Answered;
        one.version = version;
        self.judge(reader, version);
    }

    /// The response arrives: `Leader::publish`, which answers the followers. Without `storable` they
    /// read for themselves, and the lease is released.
    pub(super) fn publish(&mut self, reader: usize, storable: bool) {
        let Reader { version, target, .. } = self.state.readers[reader];
        self.answer_followers(reader, storable.then_some(version));
        if storable && target != Target::Nowhere {
            self.state.readers[reader].phase = ReaderPhase::Storing;
            return;
        }
        if target == Target::Lease {
            self.state.readers[reader].behind = Behind::Release;
        }
        self.leave(reader);
    }

    /// Answers the readers that have joined a leader. Without a version they read for themselves.
    fn answer_followers(&mut self, leader: usize, version: Option<Version>) {
        for follower in 0..self.scope.readers {
            let one = self.state.readers[follower];
            if one.phase == ReaderPhase::Joined && usize::from(one.leader) == leader {
                if let Some(version) = version {
                    self.judge(follower, version);
                }
                self.leave(follower);
            }
        }
    }

    /// `Store::fill` or `Store::replace`.
    pub(super) fn store(&mut self, reader: usize, fate: Fate) {
        if fate == Fate::Late {
            self.state.readers[reader].phase = ReaderPhase::LateFill;
            self.state.readers[reader].is_attached = false;
            return self.pass_the_turn(reader);
        }
        if self.state.readers[reader].target != Target::Lease {
            self.replace(reader);
            return self.leave(reader);
        }
        let stored = self.fill(reader);
        // `RedisLeaseHold` releases the lease after a fill that was not sent or not answered.
        if stored.is_none() || fate == Fate::LostReply {
            self.state.readers[reader].behind = Behind::Release;
        }
        self.leave(reader);
    }

    /// A fill that its sidecar has given up is executed. The release follows it.
    pub(super) fn late_fill(&mut self, reader: usize) {
        if self.state.readers[reader].target == Target::Lease {
            self.fill(reader);
            self.state.readers[reader].behind = Behind::Release;
        } else {
            self.replace(reader);
        }
        self.leave(reader);
    }

    /// `Redis::fill` with `fill.lua`. Returns `None` if the session has another epoch.
    fn fill(&mut self, reader: usize) -> Option<bool> {
        let Reader { version, epoch, .. } = self.state.readers[reader];
        let session = self.session(reader)?;
        let epoch = if self.has(Mutant::EpochAtFill) { session } else { epoch };
        if epoch != session && !self.has(Mutant::NoEpoch) {
            return None;
        }
        let generation = Self::token(reader);
        let flaw = self.scope.flaw;
        let new = Meta { version, generation, epoch };
        Some(self.change(|keys| keys.fill(generation, new, flaw)))
    }

    /// `Redis::replace` with `replace.lua`. A reader under another one's lease looks for
    /// the entry of its holder first (`Filler::entry_to_join`).
    fn replace(&mut self, reader: usize) {
        let Reader { version, epoch, mut seen, held, .. } = self.state.readers[reader];
        if let Some(token) = held {
            let entry = self.state.keys.decode(epoch, self.scope.flaw).ok();
            let any = self.scope.flaw == Some(Flaw::HeldOfAnyGeneration);
            let of_holder = entry.filter(|entry| entry.generation == token || any);
            seen = of_holder.map(|entry| (entry.version, entry.generation));
        }
        let (Some(session), Some((seen, generation))) = (self.session(reader), seen) else {
            return;
        };
        let flaw = self.scope.flaw;
        let epoch = if flaw == Some(Flaw::ReplaceAcrossEpochs) { session } else { epoch };
        if epoch != session {
            return;
        }
        let seen = match self.state.keys.meta {
            Some(meta) if flaw == Some(Flaw::ReplaceOnWhatIsThere) => meta,
            _ => Meta { version: seen, generation, epoch },
        };
        let new = Meta { version, generation: Self::token(reader) + REPLACED, epoch };
        self.change(|keys| keys.replace(seen, new, flaw));
    }

    /// The GET is over. Commands that nobody waits for remain.
    pub(super) fn leave(&mut self, reader: usize) {
        let Reader { behind, refused, at, .. } = self.state.readers[reader];
        let refused = refused.filter(|_| behind == Behind::LateLease);
        let at = if behind == Behind::Nothing { 0 } else { at };
        let left = Reader { phase: ReaderPhase::Done, behind, refused, at, ..Reader::IDLE };
        self.state.readers[reader] = left;
        self.pass_the_turn(reader);
    }

    /// A read without a lease is over: `ReadQueue::leave`. The next one starts if no other runs.
    fn pass_the_turn(&mut self, reader: usize) {
        for at in 0..self.state.sidecars.len() {
            let sidecar = &mut self.state.sidecars[at];
            if sidecar.running & (1 << reader) == 0 {
                continue;
            }
            sidecar.running &= !(1 << reader);
            if sidecar.running == 0
                && let Some(next) = sidecar.next
            {
                self.start_next(usize::from(next));
            }
        }
    }

    /// `ReadQueue::start`. The model has no time, so the next read may start at any moment.
    pub(super) fn start_next(&mut self, reader: usize) {
        let sidecar = &mut self.state.sidecars[usize::from(self.state.readers[reader].at)];
        sidecar.next = None;
        sidecar.running |= 1 << reader;
        self.state.readers[reader].phase = ReaderPhase::Reading;
    }

    /// Compares an answer with what the reader may expect.
    fn judge(&mut self, reader: usize, version: Version) {
        let Reader { acknowledged, fenced, .. } = self.state.readers[reader];
        let stale = Stale::of(version, acknowledged, fenced);
        self.state.stale = self.state.stale.or(stale);
    }
}

impl Stale {
    pub(super) fn of(version: Version, acknowledged: Version, fenced: Version) -> Option<Self> {
        match version {
            _ if version < acknowledged => Some(Self::Acknowledged),
            _ if version < fenced => Some(Self::Fenced),
            _ => None,
        }
    }
}
