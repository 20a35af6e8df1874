//! Checks the checker for what a sidecar cannot be blamed for: faults of its configuration, and
//! writes that it cannot understand.

use std::time::Duration;

use super::{
    callers::{EVERYONE, MADE_UP},
    explain,
    faults::{Fault, Faults},
    mutants::{RACES, check_flaw},
    record::Kind,
    run,
    spelling::Spelling,
    workload::Load,
    world::{Flaw, Plan},
};

/// Writes by three clients, in these spellings, and nothing else that would drop a job.
const fn writes(spellings: &'static [Spelling]) -> Plan {
    let load = Load { purgers: 0, deleters: 0, hang_ups: 0, spellings, ..RACES.load };
    Plan { load, ..RACES }
}

/// Polls by all callers alike, and few writes.
const CALLED: Plan =
    Plan { pollers: 24, load: Load { pause_ms: 400, ..RACES.load }, callers: EVERYONE, ..RACES };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_names_users_and_does_not_count_is_caught() {
    check_flaw(Plan { flaw: Flaw::Ignores(MADE_UP), ..CALLED }, CALLED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_organisation_of_a_token_that_does_not_count_is_caught() {
    check_flaw(Plan { flaw: Flaw::Ignores("x-org-id"), ..CALLED }, CALLED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_spelling_no_sidecar_knows_is_caught() {
    check_flaw(writes(&[Spelling::Unknown]), writes(Spelling::ALL)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_joins_with_another_database_is_caught() {
    let faults = Faults { kinds: &[Fault::Joined], peace_ms: (500, 700), hang_ms: 0 };
    let plan = Plan { length: Duration::from_secs(3), faults, ..writes(&[Spelling::Plain]) };
    check_flaw(Plan { flaw: Flaw::StrayGuests, ..plan }, plan).await;
}

/// Each spelling is tried alone, so that no other write drops what it has missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_past_the_sidecars_is_caught_in_every_spelling() {
    let plan = writes(Spelling::ALL);
    let plan = Plan { load: Load { bypass: true, ..plan.load }, ..plan };
    let (history, verdict) = run(plan).await;
    let slices = explain(&history, &verdict);
    for spelling in Spelling::ALL {
        // It is rare.
        if *spelling != Spelling::Unreadable {
            assert!(verdict.missed.contains(&Kind::Put(*spelling)), "{spelling:?}\n{slices}");
        }
    }
}
