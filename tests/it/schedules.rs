//! The store protocol under adversarial schedules, with the project's own scripts on a real Redis.
//!
//! # What is modelled
//!
//! Readers, writers, purges, two sidecars with their flights and pending invalidations, their
//! connections, third parties and the upstream are actors; each takes steps, and in a step does one
//! atomic thing: one command or script, one read or one commit of the upstream. A scheduler picks
//! who is next, by a seed: uniformly, or by random priorities with change points. Redis is real and
//! so are `src/store/lua/*.lua` and the check of an entry (`cache::entry`); what a sidecar does in
//! between (`cache`, `cache::flight`, `store::redis`) is written down once more, in [`reader`],
//! [`fill`], [`writer`], [`sidecar`] and [`link`], and must be changed along with it.
//!
//! In some scenarios several credentials ask: a write then changes the bytes, or who is let in and
//! not the bytes, and one credential may be served bytes of its own. In half of their schedules all
//! entries expire in the same ms, so that only a generation tells two of the same bytes apart.
//!
//! A slow command waits behind those before it on its connection, outlives who sent it, or is lost
//! when the connection breaks; then it may still come after what was sent on the next one. Nothing
//! expires by the clock, since a schedule is over within a few ms: an actor deletes what has run
//! out or is evicted, each key by itself. A fail-over puts a snapshot back, in another epoch, and
//! breaks every connection. The model leaves out what it has no step for: the purge of all keys, how
//! a server tells that it is another (that is in [`directed`] and [`admission`]), the memory store.
//!
//! # What is checked
//!
//! An answer counts from the newest state of the upstream in which it has served that very answer to
//! that very credential.
//!
//! - **S**: a reader who came after a write, a purge or a third party's DEL was acknowledged got an
//!   older version than was committed by then. There must be none.
//! - **L**: such a reader got bytes that are not old, but that the upstream has not served to its
//!   credential since, or any while all states since then turn it away. There must be none.
//! - **U**: a write that nobody acknowledged (its sidecar died, or the upstream timed out and
//!   committed later) left a fence, and a reader who came after the commit got an older version.
//!   There must be none while the fence is known to stand.
//! - **limit**: readers whom a stated limit of [`jobcache::store`] handed an older version. They
//!   are counted and not judged: those of the *other* sidecar after an answer that was given while
//!   the end was not confirmed and no fence stood for it (the begin was lost, or an earlier end of
//!   a streamed write had lifted it, or it is a purge, which is answered 503), until the end is;
//!   and those after a write whose begin was lost and whose sidecar then died. An evicted fence is
//!   a lost one, so the scenario that evicts fences has no sidecar that dies and no end that is
//!   lost: nothing protects those then.
//!
//! [`flaws`] shows that the schedules find what they look for: each fault that is put into a script
//! or into the model must be caught.
//!
//! # How to run long
//!
//! ```text
//! SCHEDULES=100000 cargo test --release --all-features --test it schedules -- --nocapture
//! ```
//!
//! runs so many schedules, shared out among the scenarios, and prints a table.
//! `SCHEDULES_SEED=7` runs others.
//!
//! # How to read a violation
//!
//! It is printed as one line a step, with the scenario and the seed. `r5` is a reader, `w3` a
//! write, `p4` a purge, `r5-lease` a token; `<--` marks the reader who got too little. Read upwards
//! from there: where it had the version from (a hit, a flight, a fill), then who filled it under
//! which lease, and which invalidation should have voided that lease.
//! `SCHEDULE='late commands/123'` with the same command runs and prints that one schedule again. It
//! repeats step by step but for one thing: two entries have the same expiry if they were leased
//! within the same ms by the server's clock, and who then refuses the one deletes the other.

#![allow(clippy::print_stdout, reason = "the table and the violations are what is read of it")]

mod admission;
mod directed;
mod fill;
mod flaws;
mod link;
mod others;
mod reader;
mod scenario;
mod scheduler;
mod server;
mod sidecar;
mod world;
mod writer;

use std::{
    env,
    rc::Rc,
    time::{Duration, Instant},
};

use jobcache::mutants::Mutant;

use self::{
    scenario::{Outcome, SCENARIOS, Scenario, run},
    server::Server,
};

/// Of a run that no variable makes longer.
const SCHEDULES: u64 = 1_680;
/// Violations that are printed of one scenario.
const PRINTED: usize = 2;

/// What is wrong with the protocol that is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Nothing,
    Of(Mutant),
    /// There is no protocol: GET, else read and SET; DEL after a write.
    CacheAside,
    /// Whatever stands under the key is a hit.
    AnyValue,
    /// A value is a hit by its digest alone.
    AnyExpiry,
    /// An entry is a hit for everybody.
    AnyAudience,
    /// A flight is joined by everybody.
    AnyCircle,
    /// Who was read for is let in, whatever was read.
    AdmitWhateverIsRead,
    /// A script does not look at the generation.
    AdmitWithoutGeneration,
    ReplaceWithoutGeneration,
    /// A script looks at the generation, and not at the value.
    ReplaceWithoutValue,
    /// A replacement is for whom the entry before it was for, too.
    ReplaceKeepsAudience,
    /// What is compared with is what stands there when the read has ended, not when it began.
    AdmitOnWhatIsThere,
    ReplaceOnWhatIsThere,
    /// A replacement goes out over any connection, and is of its epoch.
    ReplaceAcrossEpochs,
}

/// What came of all schedules of one scenario.
#[derive(Default)]
struct Row {
    schedules: u64,
    steps: u64,
    acknowledged: u64,
    leaked: u64,
    fenced: u64,
    limits: u64,
    took: Duration,
}

#[test]
fn no_reader_gets_less_than_what_was_acknowledged_before_it_came() {
    let server = Rc::new(Server::start(Flaw::Nothing));
    if let Ok(one) = env::var("SCHEDULE") {
        let (name, seed) = one.rsplit_once('/').expect("SCHEDULE is scenario/seed");
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
        let seed = seed.parse().expect("a seed is a number");
        let outcome = run(&server, scenario.expect("a scenario"), Flaw::Nothing, seed);
        return println!("{}", story(name, seed, &outcome));
    }
    let schedules = number("SCHEDULES").unwrap_or(SCHEDULES).div_ceil(SCENARIOS.len() as u64);
    let seed = number("SCHEDULES_SEED").unwrap_or(0) << 32;
    println!("{:24} schedules     steps   S   L   U  limit      s", "scenario");
    let mut total = Row::default();
    for scenario in &SCENARIOS {
        let row = Row::of(&server, scenario, seed..seed + schedules);
        println!("{}", row.line(scenario.name));
        total.add(&row);
    }
    println!("{}", total.line("all"));
    let Row { acknowledged, leaked, fenced, .. } = total;
    assert_eq!((acknowledged, leaked, fenced), (0, 0, 0), "stale readers; see above");
}

impl Row {
    fn of(server: &Rc<Server>, scenario: &'static Scenario, seeds: std::ops::Range<u64>) -> Self {
        let (mut row, started, mut printed) = (Self::default(), Instant::now(), 0);
        for seed in seeds {
            let outcome = run(server, scenario, Flaw::Nothing, seed);
            row.schedules += 1;
            row.steps += outcome.steps;
            row.acknowledged += u64::from(outcome.stale.acknowledged > 0);
            row.leaked += u64::from(outcome.stale.leaked > 0);
            row.fenced += u64::from(outcome.stale.fenced > 0);
            row.limits += u64::from(outcome.stale.limits > 0);
            if outcome.is_violation() && printed < PRINTED {
                printed += 1;
                println!("{}", story(scenario.name, seed, &outcome));
            }
        }
        row.took = started.elapsed();
        row
    }

    fn add(&mut self, row: &Self) {
        self.schedules += row.schedules;
        self.steps += row.steps;
        self.acknowledged += row.acknowledged;
        self.leaked += row.leaked;
        self.fenced += row.fenced;
        self.limits += row.limits;
        self.took += row.took;
    }

    fn line(&self, name: &str) -> String {
        let Self { schedules, steps, acknowledged: s, leaked: l, fenced: u, limits, took } = self;
        let seconds = took.as_secs_f64();
        format!("{name:24} {schedules:9} {steps:9} {s:3} {l:3} {u:3} {limits:6} {seconds:6.1}")
    }
}

impl Outcome {
    fn is_violation(&self) -> bool {
        self.stale.acknowledged + self.stale.leaked + self.stale.fenced > 0
    }
}

/// One schedule, as it is printed.
fn story(name: &str, seed: u64, outcome: &Outcome) -> String {
    format!("--- SCHEDULE='{name}/{seed}'\n    {}", outcome.log.join("\n    "))
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().expect("a number"))
}
