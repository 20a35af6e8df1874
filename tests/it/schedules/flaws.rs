//! Faults that the schedules must find; otherwise a clean run would prove nothing.

use std::rc::Rc;

use jobcache::mutants::Mutant;

use super::{
    Flaw,
    scenario::{REFRESHED, SCENARIOS, STREAMED, Scenario, run},
    server::Server,
    story,
};

/// Many times the number of schedules that the hardest of them needs.
const WITHIN: u64 = 20_000;

const GENERATION: &str = r#"if not meta or not string.find(meta, '"generation":"' .. ARGV[3] .. '"', 1, true) then return 0 end"#;

impl Flaw {
    /// Returns the changes in scripts: the file, a line, and its replacement.
    pub(super) fn script(self) -> Vec<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Of(mutant) => mutant.script().into_iter().collect(),
            Self::AdmitWithoutGeneration => {
                vec![("admit", GENERATION, "if not meta then return 0 end")]
            }
            Self::ReplaceWithoutGeneration => vec![("replace", GENERATION, "")],
            Self::ReplaceWithoutValue => vec![
                ("replace", "if not seen or redis.sha1hex(seen) ~= ARGV[1] then return 0 end", ""),
                (
                    "replace",
                    "if string.format('%.0f', redis.call('PEXPIRETIME', KEYS[1])) ~= ARGV[2] then \
                     return 0 end",
                    "",
                ),
            ],
            _ => Vec::new(),
        }
    }
}

/// Runs the scenarios in turn until a reader gets a wrong answer.
#[track_caller]
fn caught(flaw: Flaw) {
    caught_in(flaw, &SCENARIOS.iter().collect::<Vec<_>>());
}

/// Runs in turn the scenarios in which the flaw can show.
#[track_caller]
fn caught_where(flaw: Flaw, shows: fn(&Scenario) -> bool) {
    caught_in(flaw, &SCENARIOS.iter().filter(|scenario| shows(scenario)).collect::<Vec<_>>());
}

#[track_caller]
fn caught_in(flaw: Flaw, chosen: &[&'static Scenario]) {
    let server = Rc::new(Server::start(flaw));
    let scenarios = chosen.len() as u64;
    for number in 0..WITHIN {
        let (seed, at) = (number / scenarios, number % scenarios);
        let scenario = chosen[usize::try_from(at).expect("the index of a scenario")];
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

#[test]
fn a_cache_that_gives_an_entry_to_everybody_is_caught() {
    caught(Flaw::AnyAudience);
}

#[test]
fn a_reader_that_joins_the_flight_of_another_credential_is_caught() {
    caught(Flaw::AnyCaller);
}

#[test]
fn an_admission_that_does_not_compare_what_was_read_is_caught() {
    caught(Flaw::AdmitWhateverIsRead);
}

#[test]
fn an_admission_that_does_not_look_at_the_generation_is_caught() {
    caught_where(Flaw::AdmitWithoutGeneration, |scenario| scenario.is_shared);
}

#[test]
fn a_replacement_that_does_not_look_at_the_generation_is_caught() {
    caught_in(Flaw::ReplaceWithoutGeneration, &[&REFRESHED]);
}

#[test]
fn a_replacement_that_does_not_look_at_the_value_is_caught() {
    caught(Flaw::ReplaceWithoutValue);
}

#[test]
fn a_replacement_for_the_audience_before_it_is_caught() {
    caught(Flaw::ReplaceKeepsAudience);
}

#[test]
fn an_admission_to_what_the_reader_has_not_seen_is_caught() {
    caught(Flaw::AdmitOnWhatIsThere);
}

#[test]
fn a_replacement_of_what_the_reader_has_not_seen_is_caught() {
    caught(Flaw::ReplaceOnWhatIsThere);
}

#[test]
fn a_replacement_over_a_connection_of_another_epoch_is_caught() {
    caught_where(Flaw::ReplaceAcrossEpochs, |scenario| scenario.failover);
}

#[test]
fn a_fill_that_is_of_the_epoch_in_which_it_comes_is_caught() {
    caught_where(Flaw::Of(Mutant::EpochAtFill), |scenario| scenario.failover);
}

#[test]
fn a_cache_that_believes_an_entry_of_another_epoch_is_caught() {
    caught_where(Flaw::Of(Mutant::NoEpoch), |scenario| scenario.failover);
}

#[test]
fn a_reader_that_joins_a_flight_of_another_epoch_is_caught() {
    caught_where(Flaw::Of(Mutant::JoinAcrossEpochs), |scenario| scenario.failover);
}

#[test]
fn a_fence_that_falls_with_the_response_head_is_caught() {
    caught_in(Flaw::HeadLiftsFence, &[&STREAMED]);
}

#[test]
fn a_read_under_a_held_lease_that_changes_any_entry_is_caught() {
    caught_where(Flaw::HeldOfAnyGeneration, |scenario| scenario.is_shared);
}
