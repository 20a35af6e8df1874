//! One step of the model: the scope, and the state that the step changes.

use jobcache::mutants::Mutant;

use super::{flaws::Flaw, keys::Keys, scope::Scope, state::State};

/// The fate of a command that a sidecar sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fate {
    /// Executed, and the reply arrives in time.
    Answered,
    /// Executed, and the reply does not arrive in time.
    LostReply,
    /// Not executed in time. The server executes it at any later moment, or never.
    Late,
}

/// A step under way.
pub(super) struct Run<'s> {
    pub(super) scope: &'s Scope,
    pub(super) state: State,
}

impl Run<'_> {
    /// Whether the protocol has this fault.
    pub(super) fn has(&self, mutant: Mutant) -> bool {
        self.scope.flaw == Some(Flaw::Of(mutant))
    }

    /// Executes a command at the server. If it changes the body or the purge token, the server sends
    /// news to every sidecar on its tracking connection.
    pub(super) fn change<T>(&mut self, command: impl FnOnce(&mut Keys) -> T) -> T {
        let seen = |keys: &Keys| (keys.main, keys.is_entry_purged);
        let before = seen(&self.state.keys);
        let reply = command(&mut self.state.keys);
        if self.scope.near && seen(&self.state.keys) != before {
            for at in 0..self.state.sidecars.len() {
                let is_news = self.state.sidecars[at].session.is_some() && self.would_change(at);
                self.state.sidecars[at].has_news |= is_news;
            }
        }
        reply
    }

    /// Whether news would change anything at a sidecar: it has a near entry, or a reader that may
    /// insert one. Other news are delivered at once, because a delay would only refuse more.
    fn would_change(&self, at: usize) -> bool {
        let sidecar = &self.state.sidecars[at];
        let may_insert = |of: &usize| {
            let one = &self.state.readers[*of];
            one.is_noted && usize::from(one.at) == at
        };
        sidecar.near.is_some() || (0..self.scope.readers).any(|reader| may_insert(&reader))
    }

    /// News arrive: `Watcher::evict`. All that are on their way arrive together: after the first,
    /// the others find nothing that was read before them.
    pub(super) fn evict(&mut self, at: usize) {
        let sidecar = &mut self.state.sidecars[at];
        sidecar.has_news = false;
        self.forget_near(at);
        for reader in &mut self.state.readers {
            if usize::from(reader.at) == at {
                reader.awaits_news = false;
            }
        }
    }

    /// `NearEntries::evict`: the entry is gone, and what was noted before is not inserted.
    fn forget_near(&mut self, at: usize) {
        self.state.sidecars[at].near = None;
        for reader in &mut self.state.readers {
            if usize::from(reader.at) == at {
                reader.is_noted = false;
            }
        }
    }

    /// `SharedState::detach`: no reader joins the flights of this sidecar any more, and the near entry is
    /// gone.
    pub(super) fn detach(&mut self, at: u8) {
        for reader in &mut self.state.readers {
            if reader.at == at {
                reader.is_attached = false;
            }
        }
        self.forget_near(usize::from(at));
    }

    /// The connections of a sidecar break: `Watcher::flush`.
    pub(super) fn disconnect(&mut self, at: usize) {
        if !self.has(Mutant::NearWithoutFlush) {
            self.forget_near(at);
        }
        let sidecar = &mut self.state.sidecars[at];
        sidecar.session = None;
        sidecar.has_news = false;
    }
}
