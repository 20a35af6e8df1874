//! The shared state of the actors of one schedule, and the judgement of their answers.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
};

use fastrand::Rng;

use super::{
    Flaw,
    link::Link,
    scenario::Scenario,
    scheduler::{Actor, step},
    server::Server,
    sidecar::Sidecar,
};

/// The sidecars that the acknowledgement of a write binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AckScope {
    /// Every sidecar.
    Everywhere,
    /// Only the sidecar that gave it, because Redis had not confirmed the end and nothing else
    /// protects the others. A documented limit.
    Here,
}

/// Number of credentials. In most scenarios only the first one reads.
pub(super) const CREDENTIALS: usize = 3;
/// The credential with its own bodies, in scenarios with personal bodies.
const PERSONAL: usize = CREDENTIALS - 1;

/// A state of the upstream; its index is the number of commits before it.
#[derive(Clone, Copy, Debug)]
struct State {
    version: u64,
    admits: [bool; CREDENTIALS],
}

/// Probability that a write changes who may read instead of the bytes.
const ACCESS_CHANGES: f64 = 0.7;
/// Less than the TTL, by more than the length of a schedule.
const COINCIDENCE_MS: i64 = 200_000;

/// An answer to a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Body(String),
    /// 401 or 403.
    Refused,
}

/// Readers with wrong answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stale {
    /// S: older than a version acknowledged before the reader came. There must be none.
    pub(super) acknowledged: u32,
    /// L: not served to the credential by the upstream since then, or ever. There must be none.
    pub(super) leaked: u32,
    /// U: older than a version committed before the reader came, by a write that was not
    /// acknowledged but still has its fence. There must be none.
    pub(super) fenced: u32,
    /// Within the documented limits.
    pub(super) limits: u32,
}

/// The versions that a reader may expect, determined when it arrives.
pub(super) struct Claim {
    pub(super) reader: String,
    pub(super) who: usize,
    acknowledged: u64,
    fenced: u64,
    limits: u64,
}

pub(super) struct World {
    pub(super) server: Rc<Server>,
    pub(super) scenario: &'static Scenario,
    pub(super) flaw: Flaw,
    pub(super) seed: u64,
    pub(super) rng: RefCell<Rng>,
    pub(super) sidecars: [Sidecar; 2],
    spawned: RefCell<Vec<Actor>>,
    /// States by number; the first is 1.
    states: RefCell<Vec<State>>,
    /// The newest state in which the upstream gave a credential an answer.
    served: RefCell<Vec<(usize, Answer, u64)>>,
    /// The current epoch of the server.
    epoch: Cell<u64>,
    /// Common expiry of all entries, if there is one: a coincidence after which only their
    /// generations distinguish them.
    pub(super) expires_at_ms: Option<i64>,
    names: Cell<u64>,
    /// Newest acknowledged version for each sidecar.
    acknowledged: [Cell<u64>; 2],
    fenced: Cell<u64>,
    limits: Cell<u64>,
    stale: Cell<Stale>,
    log: RefCell<Vec<String>>,
}

impl World {
    pub(super) fn new(
        server: Rc<Server>,
        scenario: &'static Scenario,
        flaw: Flaw,
        seed: u64,
    ) -> Rc<Self> {
        let mut rng = Rng::with_seed(seed);
        let coincide = scenario.is_shared && rng.bool();
        let expires_at_ms = coincide.then(|| server.now_ms() + COINCIDENCE_MS);
        let first = State { version: 1, admits: [true; CREDENTIALS] };
        Rc::new(Self {
            server,
            scenario,
            flaw,
            seed,
            rng: RefCell::new(rng),
            expires_at_ms,
            sidecars: Default::default(),
            spawned: RefCell::default(),
            // State numbers start at 1, so the first place is filled as well.
            states: RefCell::new(vec![first, first]),
            served: RefCell::default(),
            epoch: Cell::new(1),
            names: Cell::new(0),
            acknowledged: [Cell::new(1), Cell::new(1)],
            fenced: Cell::new(0),
            limits: Cell::new(0),
            stale: Cell::default(),
            log: RefCell::default(),
        })
    }

    pub(super) fn chance(&self, probability: f64) -> bool {
        self.rng.borrow_mut().f64() < probability
    }

    pub(super) fn below(&self, limit: usize) -> usize {
        self.rng.borrow_mut().usize(..limit)
    }

    /// Takes fewer than `limit` steps.
    pub(super) async fn some_steps(&self, limit: usize) {
        for _ in 0..self.below(limit) {
            step().await;
        }
    }

    /// Returns a new name for a token or a write.
    pub(super) fn name(&self, kind: &str) -> String {
        self.names.set(self.names.get() + 1);
        format!("{kind}{}", self.names.get())
    }

    /// Adds a line to the log, which is printed for a violation.
    pub(super) fn say(&self, line: String) {
        self.log.borrow_mut().push(line);
    }

    pub(super) fn spawn(&self, actor: impl Future<Output = ()> + 'static) {
        self.spawned.borrow_mut().push(Box::pin(actor));
    }

    pub(super) fn take_spawned(&self) -> Vec<Actor> {
        self.spawned.take()
    }

    pub(super) fn link(&self, at: usize) -> Rc<Link> {
        Rc::clone(&self.sidecars[at].link.borrow())
    }

    /// Returns the current version of the upstream.
    pub(super) fn version(&self) -> u64 {
        self.now().1.version
    }

    fn now(&self) -> (u64, State) {
        let states = self.states.borrow();
        (states.len() as u64 - 1, states[states.len() - 1])
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Starts a new epoch of the server.
    pub(super) fn end_epoch(&self) {
        self.epoch.set(self.epoch.get() + 1);
    }

    /// Returns the bytes of a version for a credential.
    pub(super) fn body(&self, version: u64, who: usize) -> String {
        if self.scenario.personal && who == PERSONAL {
            format!("{version} of {who}")
        } else {
            version.to_string()
        }
    }

    /// Returns the current answer of the upstream.
    pub(super) fn serve(&self, who: usize) -> Answer {
        let (number, state) = self.now();
        let answer = if state.admits[who] {
            Answer::Body(self.body(state.version, who))
        } else {
            Answer::Refused
        };
        self.served.borrow_mut().push((who, answer.clone(), number));
        answer
    }

    /// Reads the upstream: the answer is that of some moment in between.
    pub(super) async fn read_upstream(&self, reader: &str, who: usize) -> Answer {
        step().await;
        let answer = self.serve(who);
        self.say(format!("{reader}: upstream read, {answer:?}"));
        step().await;
        answer
    }

    /// Commits at the upstream: the next version or, with several credentials, usually a change of
    /// who may read. Returns the number of the state.
    pub(super) fn commit(&self, who: &str) -> u64 {
        let (number, mut state) = self.now();
        if self.scenario.is_shared && self.chance(ACCESS_CHANGES) {
            let changed = self.below(CREDENTIALS);
            state.admits[changed] ^= true;
        } else {
            state.version += 1;
        }
        self.states.borrow_mut().push(state);
        self.say(format!("{who}: COMMIT {}, {state:?}", number + 1));
        number + 1
    }

    /// Records an acknowledgement: no reader within reach may get an older version from now on.
    pub(super) fn acknowledge(&self, who: &str, at: usize, version: u64, reach: AckScope) {
        self.say(format!("{who}: ACK {version} {reach:?}"));
        match reach {
            AckScope::Everywhere => self.acknowledged.iter().for_each(|cell| raise(cell, version)),
            AckScope::Here => {
                raise(&self.acknowledged[at], version);
                raise(&self.limits, version);
                raise(&self.sidecars[at].unconfirmed, version);
            }
        }
    }

    /// Confirms the end of a version that a sidecar acknowledged for itself alone.
    pub(super) fn confirm(&self, version: u64) {
        self.say(format!("CONFIRMED {version}"));
        self.acknowledged.iter().for_each(|cell| raise(cell, version));
    }

    /// Records a write that committed and was not acknowledged.
    pub(super) fn leave_unacknowledged(&self, version: u64, fence_stands: bool) {
        raise(if fence_stands { &self.fenced } else { &self.limits }, version);
    }

    pub(super) fn claim(&self, at: usize) -> Claim {
        let who = if self.scenario.is_shared { self.below(CREDENTIALS) } else { 0 };
        let claim = Claim {
            reader: self.name("r"),
            who,
            acknowledged: self.acknowledged[at].get(),
            fenced: self.fenced.get(),
            limits: self.limits.get(),
        };
        let Claim { reader, acknowledged, .. } = &claim;
        self.say(format!("{reader}: GET by {who} through sidecar {at}, expects {acknowledged}"));
        claim
    }

    pub(super) fn judge(&self, claim: &Claim, answer: &Answer) {
        let served = self.served.borrow();
        let to_it = served.iter().filter(|(who, what, _)| *who == claim.who && what == answer);
        let proof = to_it.map(|(.., state)| *state).max().unwrap_or(0);
        let mut stale = self.stale.get();
        let verdict = if proof < claim.acknowledged && self.is_leak(claim, answer) {
            stale.leaked += 1;
            "  <-- L: not served to this credential by the upstream since the acknowledged state"
        } else if proof < claim.acknowledged {
            stale.acknowledged += 1;
            "  <-- S: a newer version was acknowledged before the reader came"
        } else if proof < claim.fenced {
            stale.fenced += 1;
            "  <-- U: a newer version was committed and fenced before the reader came"
        } else if proof < claim.limits {
            stale.limits += 1;
            "  (a documented limit)"
        } else {
            ""
        };
        self.stale.set(stale);
        self.say(format!("{}: answered {answer:?}{verdict}", claim.reader));
    }

    /// Returns whether the answer is wrong for this credential rather than old: no state since
    /// admits the credential, or the bytes are not an older body of its own.
    fn is_leak(&self, claim: &Claim, answer: &Answer) -> bool {
        let floor = usize::try_from(claim.acknowledged).expect("few states");
        let states = &self.states.borrow()[floor..];
        let mut old =
            (1..states[0].version).map(|version| Answer::Body(self.body(version, claim.who)));
        states.iter().all(|state| !state.admits[claim.who]) || !old.any(|old| old == *answer)
    }

    /// Returns the readers with wrong answers, and the log.
    pub(super) fn finish(&self) -> (Stale, Vec<String>) {
        (self.stale.get(), self.log.take())
    }
}

fn raise(cell: &Cell<u64>, version: u64) {
    cell.set(cell.get().max(version));
}
