//! The store protocol under adversarial schedules, with the real scripts on a real Redis.
//!
//! # What is modelled
//!
//! Readers, writers, purges, two sidecars with their flights and pending invalidations, their
//! connections, other clients of Redis and the upstream are actors. Each takes steps, and a step is
//! one atomic action: one command or script, or one read or commit at the upstream. A scheduler
//! picks the next actor from a seed: uniformly, or by random priorities with change points. Redis
//! is real, and so are `src/store/lua/*.lua` and the check of an entry (`cache::entry`). The code
//! in between (`cache`, `cache::flight`, `store::redis`) is modelled in [`reader`], [`fill`],
//! [`writer`], [`sidecar`] and [`link`], which must be changed along with it.
//!
//! In some scenarios several credentials read. A write then changes either the bytes or who may
//! read them, and one credential may get its own bytes. In half of their schedules all entries
//! expire in the same ms, so that only a generation distinguishes two entries with the same bytes.
//!
//! A slow command waits behind earlier ones on its connection, outlives its sender, or is lost when
//! the connection breaks; it may then still arrive after commands on the next connection. Nothing
//! expires by the clock, because a schedule takes only a few ms: an actor deletes expired or
//! evicted keys one by one. A failover restores a snapshot in another epoch and breaks every
//! connection. The model leaves out anything that has no step in it: the purge of all keys, how a
//! restarted server is recognised (covered by [`directed`] and [`admission`]), and the memory
//! store.
//!
//! # What is checked
//!
//! An answer counts from the newest state of the upstream in which it has given this answer to this
//! credential.
//!
//! - **S**: a reader that came after a write, a purge or another client's DEL was acknowledged got
//!   an older version than was committed by then. There must be none.
//! - **L**: such a reader got bytes that are not old, but that the upstream has not served to its
//!   credential since, or got any bytes although all states since then reject it. There must be
//!   none.
//! - **U**: a write that was not acknowledged (its sidecar died, or the upstream timed out and
//!   committed later, or its bodies have not ended) left a fence, and a reader that came after the
//!   commit got an older version. There must be none while the fence is known to stand.
//! - **limit**: readers that got an older version within a documented limit of [`jobcache::store`].
//!   They are counted and not judged. There are two kinds. First, readers of the *other* sidecar
//!   after an answer that was given while the end was not confirmed and no fence stood for it,
//!   until the end is confirmed: the begin was lost, or it is a purge, which is answered 503.
//!   Second, readers after a write that lost its begin and then its sidecar. An evicted fence is a
//!   lost one, so the scenario that evicts fences has no sidecar that dies and no end that is lost:
//!   nothing protects those then.
//!
//! [`flaws`] shows that the schedules find violations: each fault that is put into a script or into
//! the model must be caught.
//!
//! # How to run long
//!
//! ```text
//! SCHEDULES=100000 cargo test --release --all-features --test it schedules -- --nocapture
//! ```
//!
//! runs this many schedules, divided among the scenarios, and prints a table. `SCHEDULES_SEED=7`
//! runs others.
//!
//! # How to read a violation
//!
//! A violation is printed as one line per step, with the scenario and the seed. `r5` is a reader,
//! `w3` a write, `p4` a purge, `r5-lease` a token; `<--` marks the reader with the wrong answer.
//! Read upwards from there: where its version came from (a hit, a flight, a fill), then who filled
//! it under which lease, and which invalidation should have voided that lease. `SCHEDULE='late
//! commands/123'` with the same command runs and prints that one schedule again. It repeats step by
//! step with one exception: two entries have the same expiry if they were leased within the same ms
//! of the server's clock, and then a rejection of one deletes the other.

#![allow(clippy::print_stdout, reason = "the tests print a table and the violations")]

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

/// Number of schedules of a run without variables.
const SCHEDULES: u64 = 1_680;
/// Number of violations printed per scenario.
const PRINTED: usize = 2;

/// The flaw in the protocol under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    Nothing,
    Of(Mutant),
    /// No protocol: a reader GETs, or reads and SETs; a writer DELs.
    CacheAside,
    /// Any value under the key is a hit.
    AnyValue,
    /// A value is a hit if its digest matches, whatever its expiry is.
    AnyExpiry,
    /// An entry is a hit for every credential.
    AnyAudience,
    /// Every credential joins a flight.
    AnyCaller,
    /// The reading credential is admitted, whatever bytes were read.
    AdmitWhateverIsRead,
    /// The script does not check the generation.
    AdmitWithoutGeneration,
    ReplaceWithoutGeneration,
    /// The script checks the generation and not the value.
    ReplaceWithoutValue,
    /// A replacement keeps the audience of the entry before it.
    ReplaceKeepsAudience,
    /// The end before the response head lifts the fence, although the upstream may still commit.
    HeadLiftsFence,
    /// The comparison uses the entry at the end of the read instead of the one at its start.
    AdmitOnWhatIsThere,
    ReplaceOnWhatIsThere,
    /// A replacement is sent over any connection, with the epoch of that connection.
    ReplaceAcrossEpochs,
    /// A read under another reader's lease changes any entry that it finds afterwards.
    HeldOfAnyGeneration,
}

/// The results of all schedules of one scenario.
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

/// Formats the log of a schedule.
fn story(name: &str, seed: u64, outcome: &Outcome) -> String {
    format!("--- SCHEDULE='{name}/{seed}'\n    {}", outcome.log.join("\n    "))
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().expect("a number"))
}
