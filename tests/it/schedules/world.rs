//! What the actors of one schedule share, and what is held against them.

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

/// How far the acknowledgement of a write binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Every sidecar.
    Everywhere,
    /// The sidecar that gave it: it was given while Redis had not confirmed the end, and nothing
    /// else protects the others. A stated limit.
    Here,
}

/// Readers who were answered with less than they may expect.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stale {
    /// S: less than was acknowledged before they came. There must be none.
    pub(super) acknowledged: u32,
    /// U: less than was committed before they came, by a write that nobody acknowledged but whose
    /// fence stands. There must be none either.
    pub(super) fenced: u32,
    /// The stated limits.
    pub(super) limits: u32,
}

/// What a reader may expect, fixed when it comes.
pub(super) struct Claim {
    pub(super) reader: String,
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
    version: Cell<u64>,
    names: Cell<u64>,
    /// By sidecar.
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
        Rc::new(Self {
            server,
            scenario,
            flaw,
            seed,
            rng: RefCell::new(Rng::with_seed(seed)),
            sidecars: Default::default(),
            spawned: RefCell::default(),
            version: Cell::new(1),
            names: Cell::new(0),
            acknowledged: Default::default(),
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

    /// Fewer than `limit` steps.
    pub(super) async fn some_steps(&self, limit: usize) {
        for _ in 0..self.below(limit) {
            step().await;
        }
    }

    /// A token or a write's name that was never used before.
    pub(super) fn name(&self, kind: &str) -> String {
        self.names.set(self.names.get() + 1);
        format!("{kind}{}", self.names.get())
    }

    /// Adds a line to what is printed of a violation.
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

    /// The version that the upstream has now.
    pub(super) fn version(&self) -> u64 {
        self.version.get()
    }

    /// Reads the upstream: the version is that of some moment in between.
    pub(super) async fn read_upstream(&self, reader: &str) -> u64 {
        step().await;
        let version = self.version.get();
        self.say(format!("{reader}: upstream read, {version}"));
        step().await;
        version
    }

    /// Commits the next version at the upstream.
    pub(super) fn commit(&self, who: &str) -> u64 {
        self.version.set(self.version.get() + 1);
        self.say(format!("{who}: COMMIT {}", self.version.get()));
        self.version.get()
    }

    /// From now on no reader may get less than this version.
    pub(super) fn acknowledge(&self, who: &str, at: usize, version: u64, reach: Reach) {
        self.say(format!("{who}: ACK {version} {reach:?}"));
        match reach {
            Reach::Everywhere => self.acknowledged.iter().for_each(|cell| raise(cell, version)),
            Reach::Here => {
                raise(&self.acknowledged[at], version);
                raise(&self.limits, version);
                raise(&self.sidecars[at].unconfirmed, version);
            }
        }
    }

    /// The end of what a sidecar acknowledged for itself alone is confirmed now.
    pub(super) fn confirm(&self, version: u64) {
        self.say(format!("CONFIRMED {version}"));
        self.acknowledged.iter().for_each(|cell| raise(cell, version));
    }

    /// A write committed and nobody was told.
    pub(super) fn leave_unacknowledged(&self, version: u64, fence_stands: bool) {
        raise(if fence_stands { &self.fenced } else { &self.limits }, version);
    }

    pub(super) fn claim(&self, at: usize) -> Claim {
        let claim = Claim {
            reader: self.name("r"),
            acknowledged: self.acknowledged[at].get(),
            fenced: self.fenced.get(),
            limits: self.limits.get(),
        };
        self.say(format!(
            "{}: GET through sidecar {at}, expects {}",
            claim.reader, claim.acknowledged
        ));
        claim
    }

    pub(super) fn judge(&self, claim: &Claim, version: u64) {
        let mut stale = self.stale.get();
        let verdict = if version < claim.acknowledged {
            stale.acknowledged += 1;
            "  <-- S: a newer one was acknowledged before it came"
        } else if version < claim.fenced {
            stale.fenced += 1;
            "  <-- U: a newer one was committed, and fenced, before it came"
        } else if version < claim.limits {
            stale.limits += 1;
            "  (a stated limit)"
        } else {
            ""
        };
        self.stale.set(stale);
        self.say(format!("{}: answered {version}{verdict}", claim.reader));
    }

    /// Who was answered with too little, and all that happened.
    pub(super) fn finish(&self) -> (Stale, Vec<String>) {
        (self.stale.get(), self.log.take())
    }
}

fn raise(cell: &Cell<u64>, version: u64) {
    cell.set(cell.get().max(version));
}
