//! The present problem of the store, for `/status`, and the throttle of the warnings about it.
//!
//! A command that Redis refuses fails with every request that needs it, on each of its masters, and
//! in several parts of the store. All of them share one warning a minute.
//!
//! A problem ends with a new session, with another problem, or when the refused commands work again
//! (`redis/refusals.rs`).

use std::{
    borrow::Cow,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{FarStore, StoreError, diagnosis::Diagnosis};
use crate::observe::throttle::Throttle;

/// How long a refusal is shown after the last one. Without requests there is no other sign of it.
const SHOWN_FOR: Duration = Duration::from_mins(2);

/// A problem of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The fault of the server.
    pub diagnosis: Diagnosis,
    /// The commands that are refused, as far as known.
    pub commands: Vec<&'static str>,
    /// What to do about it.
    pub remedy: Cow<'static, str>,
}

impl Problem {
    fn new(diagnosis: Diagnosis, commands: Vec<&'static str>) -> Self {
        Self { diagnosis, commands, remedy: diagnosis.remedy().into() }
    }

    /// The server is too far away for the budget.
    pub(super) fn far(far: &FarStore) -> Self {
        Self { remedy: far.remedy().into(), ..Self::new(Diagnosis::Far, Vec::new()) }
    }
}

/// The last problem, and the throttle of warnings about refused commands.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    refusals: Throttle,
    last: Mutex<Option<(Problem, Instant)>>,
}

impl Problems {
    /// Notes the error. Returns `Some` if a warning about it should be logged now, with the number
    /// of warnings that were suppressed; `others` throttles errors that are no refused commands.
    pub(super) fn admit(&self, error: &StoreError, others: &Throttle) -> Option<u64> {
        // While commands are refused, the store may be down because of that.
        let known = || self.current().filter(|_| matches!(error, StoreError::Down));
        let diagnosis = error.diagnosis().or_else(|| known().map(|problem| problem.diagnosis));
        if let Some(diagnosis) = diagnosis {
            self.note(diagnosis, Vec::new());
        }
        if diagnosis.is_some_and(Diagnosis::refuses_commands) {
            return self.admit_refusal();
        }
        others.admit(&error.to_string())
    }

    /// The same for an operation of a session. The session reports refused commands itself, with
    /// their names.
    pub(super) fn admit_in_session(&self, error: &StoreError, others: &Throttle) -> Option<u64> {
        match error.diagnosis().filter(|is| is.refuses_commands()) {
            Some(diagnosis) => {
                self.note(diagnosis, Vec::new());
                None
            }
            None => self.admit(error, others),
        }
    }

    /// Returns `Some` if a warning about refused commands should be logged now.
    pub(super) fn admit_refusal(&self) -> Option<u64> {
        self.refusals.admit("")
    }

    /// Notes a problem for `/status`. Commands that are known already stay.
    pub(super) fn note(&self, diagnosis: Diagnosis, mut commands: Vec<&'static str>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, _)) = last.take()
            && known.diagnosis == diagnosis
            && commands.is_empty()
        {
            commands = known.commands;
        }
        *last = Some((Problem::new(diagnosis, commands), Instant::now()));
    }

    /// Forgets the problem: the store can be used again.
    pub(super) fn clear(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Forgets the problem if it is this one.
    pub(super) fn clear_if(&self, diagnosis: Diagnosis) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.take_if(|(problem, _)| problem.diagnosis == diagnosis);
    }

    /// The present problem.
    pub(super) fn current(&self) -> Option<Problem> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (problem, _) = last.as_ref().filter(|(_, at)| at.elapsed() < SHOWN_FOR)?;
        Some(problem.clone())
    }
}

/// The last command that a session was refused.
#[derive(Debug, Default)]
pub(super) struct RefusedCommand {
    error: Mutex<Option<(Diagnosis, String)>>,
    noted: Notify,
}

impl RefusedCommand {
    /// Notes the error of an operation, if it is about a command.
    pub(super) fn note(&self, error: &StoreError) {
        let StoreError::Denied(diagnosis, said) = error else { return };
        if diagnosis.refuses_commands() {
            let refused = Some((*diagnosis, said.clone()));
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = refused;
            self.noted.notify_one();
        }
    }

    /// Forgets what a session that has ended was refused.
    pub(super) fn forget(&self) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits for a refused command, and takes it.
    pub(super) async fn next(&self) -> (Diagnosis, String) {
        loop {
            let noted = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
            match noted {
                Some(refused) => return refused,
                None => self.noted.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_replaced_by_a_newer_one_and_ends_when_it_is_over() {
        let problems = Problems::default();
        problems.note(Diagnosis::Acl, vec!["MGET"]);
        problems.note(Diagnosis::Memory, Vec::new());
        problems.clear_if(Diagnosis::Acl);
        let current = problems.current().unwrap();
        assert_eq!((current.diagnosis, current.commands.len()), (Diagnosis::Memory, 0));
        problems.clear_if(Diagnosis::Memory);
        assert_eq!(problems.current(), None);
    }

    #[test]
    fn a_session_names_its_refused_commands_itself() {
        let (problems, others) = (Problems::default(), Throttle::default());
        let refused = StoreError::Denied(Diagnosis::Acl, "set".to_owned());
        assert_eq!(problems.admit_in_session(&refused, &others), None);
        assert_eq!(problems.current().unwrap().diagnosis, Diagnosis::Acl);
        assert_eq!(problems.admit_refusal(), Some(0), "the warning is not used up");
    }

    #[test]
    fn all_refused_commands_share_one_warning_a_minute() {
        let (problems, others) = (Problems::default(), Throttle::default());
        let refused = |words: &str| StoreError::Denied(Diagnosis::Acl, words.to_owned());
        assert_eq!(problems.admit(&refused("mget"), &others), Some(0));
        assert_eq!(problems.admit(&refused("scan"), &Throttle::default()), None);
        assert_eq!(problems.admit(&StoreError::Lost("x".into()), &others), Some(0));
        assert_eq!(problems.admit(&StoreError::Down, &Throttle::default()), None);
        problems.note(Diagnosis::Acl, vec!["MGET"]);
        assert_eq!(problems.admit(&refused("mget"), &others), None);
        let commands = problems.current().unwrap().commands;
        assert_eq!(commands, ["MGET"], "the names are kept");
        problems.clear();
        assert_eq!(problems.current(), None);
    }
}
