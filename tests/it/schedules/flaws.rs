//! Faults that the schedules must find: a checker that finds nothing proves nothing.

use std::rc::Rc;

use jobcache::mutants::Mutant;

use super::{
    Flaw,
    scenario::{SCENARIOS, run},
    server::Server,
    story,
};

/// Many times what the best hidden of them has taken.
const WITHIN: u64 = 20_000;

/// Runs the scenarios in turn until a reader gets too little.
#[track_caller]
fn caught(flaw: Flaw) {
    let server = Rc::new(Server::start(flaw));
    let scenarios = SCENARIOS.len() as u64;
    for number in 0..WITHIN {
        let (seed, at) = (number / scenarios, number % scenarios);
        let scenario = &SCENARIOS[usize::try_from(at).expect("one of the scenarios")];
        let outcome = run(&server, scenario, flaw, seed);
        if outcome.is_violation() {
            let story = story(scenario.name, seed, &outcome);
            return println!("{flaw:?} is caught by schedule {}\n{story}", number + 1);
        }
    }
    panic!("{flaw:?} is not caught within {WITHIN} schedules");
}

#[test]
fn a_fill_that_does_not_look_whose_lease_it_is_is_caught() {
    caught(Flaw::Of(Mutant::FillWithoutToken));
}

#[test]
fn a_fill_that_needs_no_placeholder_is_caught() {
    caught(Flaw::Of(Mutant::FillWithoutPlaceholder));
}

#[test]
fn a_lease_that_does_not_look_at_the_fence_is_caught() {
    caught(Flaw::Of(Mutant::LeaseWithoutFence));
}

#[test]
fn a_begin_that_drops_nothing_is_caught() {
    caught(Flaw::Of(Mutant::BeginWithoutDel));
}

#[test]
fn an_end_that_drops_nothing_is_caught() {
    caught(Flaw::Of(Mutant::EndWithoutDel));
}

#[test]
fn a_reader_that_joins_by_id_is_caught() {
    caught(Flaw::Of(Mutant::JoinById));
}

#[test]
fn a_reader_that_joins_before_it_looks_up_is_caught() {
    caught(Flaw::Of(Mutant::JoinBeforeLookup));
}

#[test]
fn a_reader_that_joins_a_running_read_without_a_lookup_is_caught() {
    caught(Flaw::Of(Mutant::JoinRunning));
}

#[test]
fn a_sidecar_that_forgets_an_unconfirmed_end_is_caught() {
    caught(Flaw::Of(Mutant::NoPending));
}

#[test]
fn a_cache_that_believes_any_value_is_caught() {
    caught(Flaw::AnyValue);
}

#[test]
fn a_cache_that_believes_a_value_by_its_digest_alone_is_caught() {
    caught(Flaw::AnyExpiry);
}

#[test]
fn a_plain_cache_aside_is_caught() {
    caught(Flaw::CacheAside);
}
