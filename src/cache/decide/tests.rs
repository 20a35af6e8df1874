use super::*;

/// A GET without directives for a job that this process remembers nothing about.
const PLAIN: Facts = Facts {
    directives: RequestDirectives {
        no_cache: false,
        no_store: false,
        only_if_cached: false,
        max_age: None,
        min_fresh: None,
    },
    may_fill: true,
    is_solo: false,
    is_hit_for_miss: false,
    yields_key: false,
};

const MEMBER: EntryFacts =
    EntryFacts { standing: Standing::Included, is_age_accepted: true, is_closed: false };
const STRANGER: EntryFacts = EntryFacts { standing: Standing::Outside, ..MEMBER };
const TOO_OLD: EntryFacts = EntryFacts { is_age_accepted: false, ..MEMBER };

fn facts(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = PLAIN;
    change(&mut facts);
    facts
}

fn entry(entry: EntryFacts) -> Sight {
    Sight::Found(Found::Entry(entry))
}

fn leased(is_same_read: bool, is_joinable: bool, is_hopeless: bool) -> Sight {
    Sight::Leased { is_same_read, is_joinable, is_hopeless }
}

/// Every row: facts, what the store shows, the decision.
#[test]
fn the_table_of_decisions() {
    let no_cache = facts(|f| f.directives.no_cache = true);
    let no_store = facts(|f| f.directives.no_store = true);
    let only_if_cached = facts(|f| f.directives.only_if_cached = true);
    let head = facts(|f| f.may_fill = false);
    let solo = facts(|f| f.is_solo = true);
    let hit_for_miss = facts(|f| f.is_hit_for_miss = true);
    let yielding = facts(|f| f.yields_key = true);
    let nothing = Sight::Found(Found::Nothing);
    let foreign = Sight::Found(Found::Rejected(Reject::Foreign));
    let other_job = Sight::Found(Found::Rejected(Reject::Identity));
    let in_grace = Sight::InGrace(Found::Nothing);
    let table = [
        // An entry.
        (PLAIN, entry(MEMBER), Decision::Hit),
        (hit_for_miss, entry(MEMBER), Decision::Hit),
        (only_if_cached, entry(MEMBER), Decision::Hit),
        (PLAIN, entry(STRANGER), Decision::Revalidate(None)),
        (PLAIN, entry(TOO_OLD), Decision::Revalidate(Some(Bypass::NoCache))),
        (
            PLAIN,
            entry(EntryFacts { is_closed: true, ..STRANGER }),
            Decision::Pass(Bypass::Audience),
        ),
        (only_if_cached, entry(STRANGER), Decision::Pass(Bypass::OnlyIfCached)),
        (no_store, entry(STRANGER), Decision::Pass(Bypass::NoStore)),
        (head, entry(STRANGER), Decision::Pass(Bypass::Method)),
        (hit_for_miss, entry(STRANGER), Decision::Pass(Bypass::Uncacheable)),
        // No entry.
        (PLAIN, nothing, Decision::Lease),
        (hit_for_miss, nothing, Decision::Pass(Bypass::Uncacheable)),
        (PLAIN, foreign, Decision::Lease),
        (PLAIN, other_job, Decision::Lease),
        (yielding, foreign, Decision::Unconfirmed(Bypass::Foreign)),
        (yielding, other_job, Decision::Lease),
        // The answer to the request for a lease.
        (PLAIN, Sight::Granted { is_of_other_epoch: false }, Decision::Fill),
        (PLAIN, Sight::Granted { is_of_other_epoch: true }, Decision::Unconfirmed(Bypass::Grace)),
        (PLAIN, leased(true, true, true), Decision::Join),
        (PLAIN, leased(true, false, false), Decision::Await),
        (PLAIN, leased(true, false, true), Decision::Pass(Bypass::Leased)),
        (solo, leased(true, false, false), Decision::Pass(Bypass::Leased)),
        (PLAIN, leased(false, true, false), Decision::Unconfirmed(Bypass::Leased)),
        (no_cache, leased(true, true, false), Decision::Unconfirmed(Bypass::NoCache)),
        (PLAIN, Sight::Fenced, Decision::Unconfirmed(Bypass::Fenced)),
        // Nothing can be confirmed.
        (PLAIN, Sight::Unconfirmed(Bypass::StoreDown), Decision::Unconfirmed(Bypass::StoreDown)),
        (solo, Sight::Unconfirmed(Bypass::StoreDown), Decision::Pass(Bypass::StoreDown)),
        (only_if_cached, Sight::Fenced, Decision::Pass(Bypass::OnlyIfCached)),
        // The grace after a restart.
        (PLAIN, in_grace, Decision::UnconfirmedWithLease(Bypass::Grace)),
        (hit_for_miss, in_grace, Decision::Unconfirmed(Bypass::Grace)),
        (PLAIN, Sight::InGrace(Found::Entry(MEMBER)), Decision::Unconfirmed(Bypass::Grace)),
        (head, in_grace, Decision::Pass(Bypass::Grace)),
    ];
    for (facts, sight, want) in table {
        assert_eq!(decide(&facts, sight), want, "{sight:?} for {facts:?}");
    }
}

#[test]
fn a_value_that_appeared_meanwhile_is_used_but_never_replaced() {
    let table = [
        (entry(MEMBER), Decision::Hit),
        (Sight::Found(Found::Rejected(Reject::Identity)), Decision::Unconfirmed(Bypass::Leased)),
        (Sight::Found(Found::Rejected(Reject::Epoch)), Decision::Unconfirmed(Bypass::Foreign)),
        (Sight::InGrace(Found::Entry(MEMBER)), Decision::Unconfirmed(Bypass::Grace)),
    ];
    for (sight, want) in table {
        assert_eq!(decide_overtaken(&PLAIN, sight), want, "{sight:?}");
    }
}

/// Whatever the facts: nobody but a member of the audience gets an entry, and nobody during the grace.
#[test]
fn only_a_member_outside_the_grace_gets_the_entry() {
    let booleans = [false, true];
    for standing in [Standing::Included, Standing::Lapsed, Standing::Outside] {
        for (is_age_accepted, is_closed) in
            booleans.into_iter().flat_map(|a| booleans.map(|b| (a, b)))
        {
            let found = Found::Entry(EntryFacts { standing, is_age_accepted, is_closed });
            let is_hit = |sight| decide(&PLAIN, sight) == Decision::Hit;
            assert_eq!(
                is_hit(Sight::Found(found)),
                standing == Standing::Included && is_age_accepted
            );
            assert!(!is_hit(Sight::InGrace(found)));
        }
    }
}
