//! A reader that comes in every state and takes all its steps at once.
//!
//! This probe stands for further readers that leave nothing behind. Such a reader gets a hit of the
//! store or joins a flight in one step. In the state before that step, a reader that comes only then
//! expects no less and gets the same, unless its sidecar has become pending meanwhile.

use jobcache::mutants::Mutant;

use super::{
    keys::{Leasing, Version},
    run::Run,
    state::{ReaderPhase, SIDECARS, Stale},
};

impl Run<'_> {
    /// Judges a reader that comes now and takes all its steps at once, at each sidecar.
    pub(super) fn probe(&self) -> Option<Stale> {
        let fenced = self.state.fenced();
        (0..SIDECARS).find_map(|at| {
            let acknowledged = self.state.sidecars[at].acknowledged;
            if acknowledged == 0 && fenced == 0 {
                return None;
            }
            let version = self.answer_at_once(u8::try_from(at).expect("few sidecars"))?;
            Stale::of(version, acknowledged, fenced)
        })
    }

    /// Returns the answer of a reader that takes all its steps at once, unless it reads the upstream
    /// or joins a read that the upstream has not answered.
    fn answer_at_once(&self, at: u8) -> Option<Version> {
        let sidecar = &self.state.sidecars[usize::from(at)];
        let answered = |leader: usize| {
            let one = self.state.readers[leader];
            let is_answered = matches!(one.phase, ReaderPhase::Answered | ReaderPhase::Storing);
            is_answered.then_some(one.version)
        };
        let running = || {
            let leader = sidecar.latest_running().filter(|_| self.has(Mutant::JoinRunning))?;
            answered(leader)
        };
        let Some(epoch) = sidecar.session.filter(|_| sidecar.pending.is_none()) else {
            return running();
        };
        if sidecar.near.is_some() && (!sidecar.has_news || self.has(Mutant::NearWithoutBarrier)) {
            return sidecar.near;
        }
        if self.has(Mutant::JoinBeforeLookup)
            && let Some(leader) = self.flight(at, |_| true)
        {
            return answered(leader);
        }
        let mut keys = self.state.keys;
        match keys.decode(epoch, self.scope.flaw) {
            Ok(meta) => Some(meta.version),
            Err(refused) => match keys.lease(0, refused, self.scope.flaw) {
                Leasing::Leased(token) => answered(self.flight_of(at, token, epoch)?),
                Leasing::Fenced => running(),
                Leasing::Granted | Leasing::Stored => None,
            },
        }
    }
}
