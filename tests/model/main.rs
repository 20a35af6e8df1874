//! The store protocol as a model that is checked to the end.
//!
//! The schedules (`it/schedules`) take random paths through the real scripts. This model takes every
//! path, in a smaller world: `stateright` explores each state that the steps can reach, and checks in
//! each that no reader gets an older body than it may expect.
//!
//! # The world
//!
//! - One job: its four keys in Redis ([`keys`]), and its versions at the upstream.
//! - Two sidecars: session, flights, the queue of reads without a lease, near entry, pending
//!   invalidation ([`state`]).
//! - Two readers that come at any time through either sidecar ([`reader`]), a write that commits at
//!   any time before the end of its response, or times out and commits later, and a purge for a commit
//!   elsewhere ([`writer`]). A further reader, which takes all its steps at once, comes in every state
//!   ([`Run::probe`](run::Run::probe)).
//! - Faults ([`faults`]), alone and in pairs: a third party's `DEL`, a lost reply, a killed sidecar, a
//!   restart from an old snapshot, a promotion, a late command. Each happens at any time, at most once.
//!
//! Near entries, requests with `no-cache`, a second write and smaller sets of clients are scopes of
//! their own ([`scope`]).
//!
//! A [`Step`](model::Step) is one atomic step: a script, a read of the store, a message that arrives.
//! The function that takes it says which function or script of the code it is. A command and its
//! reply are one step where nothing else can be seen in between; ends are two, because flights are
//! detached and clients are answered only after the reply.
//!
//! # What is checked
//!
//! - **acknowledged**: a reader that comes after a write, a purge or a third party's `DEL` was
//!   acknowledged gets no older version. If Redis has not confirmed the end and no fence stands for
//!   it, the acknowledgement binds only its own sidecar until the end is confirmed, which is a
//!   documented limit of [`jobcache::store`].
//! - **fenced**: a reader that comes after the commit of a write gets no older version while the fence
//!   of the write stands, whether or not the write was acknowledged.
//! - The runs are not empty: an entry is stored after an acknowledgement, and each fault happens.
//! - Each flaw ([`flaws`]) is found: every mutant of [`jobcache::mutants`] of which the model has the
//!   mechanism, and some that are flaws of the model only.
//! - Each script of the store does what its function in the model does ([`scripts`]).
//!
//! # What is left out
//!
//! - The audience of an entry and `admit.lua` (promise 2); the schedules have them.
//! - The expiry of entries, placeholders and leases, and eviction. Fences do expire.
//! - Tracking by keys, `near = "bounded"`, the sharing of `PING` rounds, and `settle`.
//! - Clusters: slots that move, `fence.lua`, redirects. A cluster is several of these worlds.
//! - A deposed master that still answers, which is a documented limit, and the repetition of what it
//!   confirmed last.
//! - Followers of a late read that look the job up again: they are like readers that come then, and
//!   expect less.
//! - The deletion of what a purge of all has voided, overflow of the pending set, several processes with one journal.
//! - Commands on one connection that are late may overtake each other, which is more than can happen.
//!   Only the release of a late lease stays behind it.
//!
//! [`tidy`] makes states equal that behave alike. The checker keeps 64 bits of each state, so that in
//! 10 million states two are taken for one with a probability of 3 in a million.
//!
//! # How to run it
//!
//! ```text
//! cargo test --all-features --test model                                     # about a minute
//! MODEL=all cargo test --release --all-features --test model -- --nocapture  # everything
//! ```
//!
//! `MODEL='late command'` runs the rows with these words in their name. The result is in
//! `docs/adr/0011-a-model-that-is-checked-to-the-end.md`.
//!
//! # How to read a violation
//!
//! The test prints a short list of steps that leads to it, and the state after the last one.
//! Either a reader has just got an older version, or one that comes now would: compare the version of
//! `keys` (a hit), `near` or a flight with `acknowledged` of the sidecar.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the tests print a table and the violations")]

mod faults;
mod flaws;
mod keys;
mod model;
mod probe;
mod reader;
mod run;
mod scope;
mod scripts;
mod state;
mod tidy;
mod writer;

use std::{env, time::Instant};

use jobcache::mutants::Mutant;
use stateright::{Checker, HasDiscoveries, Model};

use self::{
    flaws::{Flaw, LEFT_OUT, flaws},
    model::{ACKNOWLEDGED, FENCED},
    scope::{Row, Scope, rows},
};

/// Threads of the checker.
const THREADS: usize = 2;

/// Explores a scope. Returns the line of the table, and the violations.
fn explore(name: &str, scope: Scope) -> (String, Vec<String>) {
    let started = Instant::now();
    let finish = match scope.flaw {
        Some(_) => HasDiscoveries::AnyFailures,
        None => HasDiscoveries::All,
    };
    let checker = scope.checker().threads(THREADS).finish_when(finish).spawn_bfs().join();
    let (unique, all) = (checker.unique_state_count(), checker.state_count());
    let (depth, seconds) = (checker.max_depth(), started.elapsed().as_secs_f64());
    let line = format!("{name:58} {unique:10} {all:11} {depth:6} {seconds:7.1}");
    let mut found = checker.discoveries();
    let violations = [ACKNOWLEDGED, FENCED].into_iter().filter_map(|rule| {
        let path = found.remove(rule)?;
        let last = *path.last_state();
        let steps: Vec<String> =
            path.into_actions().iter().map(|step| format!("    {step:?}")).collect();
        Some(format!("--- {rule}: violated in {name}\n{}\n    => {last:?}", steps.join("\n")))
    });
    let violations: Vec<String> = violations.collect();
    if scope.flaw.is_none() && violations.is_empty() {
        checker.assert_properties();
    }
    (line, violations)
}

#[test]
fn no_read_is_older_than_it_may_be_in_any_interleaving() {
    let wanted = env::var("MODEL").ok();
    println!("{:58}     states transitions  depth       s", "scope");
    for Row { name, scope, is_quick } in rows() {
        let is_wanted = match wanted.as_deref() {
            None => is_quick,
            Some("all") => true,
            Some(part) => name.contains(part),
        };
        if is_wanted {
            let (line, violations) = explore(&name, scope);
            println!("{line}");
            assert!(violations.is_empty(), "{}", violations.join("\n"));
        }
    }
}

#[test]
fn every_flaw_of_the_protocol_is_found() {
    println!("{:58}     states transitions  depth       s", "flaw");
    for (flaw, scope) in flaws() {
        let (line, violations) = explore(&flaw.name(), Scope { flaw: Some(flaw), ..scope });
        println!("{line}\n{}", violations.join("\n"));
        assert!(!violations.is_empty(), "{flaw:?} is not found");
    }
}

#[test]
fn every_mutant_is_a_flaw_or_is_left_out() {
    let found: Vec<Flaw> = flaws().into_iter().map(|(flaw, _)| flaw).collect();
    for mutant in Mutant::ALL {
        let is_found = found.contains(&Flaw::Of(mutant));
        assert_ne!(is_found, LEFT_OUT.contains(&mutant), "{mutant:?}");
    }
}
