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
    rechecks: false,
    other_entries: OtherEntries::Replaced,
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

const fn pass(why: Bypass) -> Uncached {
    Uncached::Pass(why)
}

const fn shared(why: Bypass) -> Uncached {
    Uncached::Unconfirmed(why)
}

fn head() -> Facts {
    facts(|f| f.may_fill = false)
}

fn solo() -> Facts {
    facts(|f| f.is_solo = true)
}

fn hit_for_miss() -> Facts {
    facts(|f| f.is_hit_for_miss = true)
}

fn only_if_cached() -> Facts {
    facts(|f| f.directives.only_if_cached = true)
}

/// Every row: facts, the entry, whether in the grace after a restart, the decision.
#[test]
fn what_a_read_gets_for_which_there_is_an_entry() {
    let no_store = facts(|f| f.directives.no_store = true);
    let closed = EntryFacts { is_closed: true, ..STRANGER };
    let uncached = WithEntry::Uncached;
    let table = [
        (PLAIN, MEMBER, false, WithEntry::Hit),
        (hit_for_miss(), MEMBER, false, WithEntry::Hit),
        (only_if_cached(), MEMBER, false, WithEntry::Hit),
        (PLAIN, STRANGER, false, WithEntry::Revalidate(None)),
        (PLAIN, TOO_OLD, false, WithEntry::Revalidate(Some(Bypass::NoCache))),
        (PLAIN, closed, false, uncached(pass(Bypass::Audience))),
        (only_if_cached(), STRANGER, false, uncached(pass(Bypass::OnlyIfCached))),
        (no_store, STRANGER, false, uncached(pass(Bypass::NoStore))),
        (head(), STRANGER, false, uncached(pass(Bypass::Method))),
        (hit_for_miss(), STRANGER, false, uncached(pass(Bypass::Uncacheable))),
        (PLAIN, MEMBER, true, uncached(shared(Bypass::Grace))),
        (head(), MEMBER, true, uncached(pass(Bypass::Grace))),
    ];
    for (facts, entry, in_grace, want) in table {
        assert_eq!(with_entry(&facts, entry, in_grace), want, "{entry:?} for {facts:?}");
    }
}

/// Every row: facts, why the value is rejected if there is one, whether in the grace, the decision.
#[test]
fn how_a_read_goes_on_for_which_there_is_no_entry() {
    let yielding = facts(|f| f.yields_key = true);
    let waiting = facts(|f| f.other_entries = OtherEntries::LeftAlone);
    let (foreign, other_job) = (Some(Reject::Foreign), Some(Reject::Identity));
    let uncached = NoEntry::Uncached;
    let with_lease = NoEntry::UnconfirmedWithLease(Bypass::Grace);
    let table = [
        (PLAIN, None, false, NoEntry::Lease),
        (hit_for_miss(), None, false, uncached(pass(Bypass::Uncacheable))),
        (PLAIN, foreign, false, NoEntry::Lease),
        (PLAIN, other_job, false, NoEntry::Lease),
        (yielding, foreign, false, uncached(shared(Bypass::Foreign))),
        (yielding, other_job, false, NoEntry::Lease),
        (waiting, None, false, NoEntry::Lease),
        (waiting, other_job, false, uncached(shared(Bypass::Leased))),
        (PLAIN, None, true, with_lease),
        (waiting, other_job, true, uncached(shared(Bypass::Grace))),
        (PLAIN, other_job, true, with_lease),
        (PLAIN, foreign, true, uncached(shared(Bypass::Grace))),
        (hit_for_miss(), None, true, uncached(shared(Bypass::Grace))),
        (head(), None, true, uncached(pass(Bypass::Grace))),
    ];
    for (facts, reject, in_grace, want) in table {
        assert_eq!(without_entry(&facts, reject, in_grace), want, "{reject:?} for {facts:?}");
    }
}

#[test]
fn a_lease_of_another_epoch_is_not_filled() {
    assert_eq!(granted(&PLAIN, false), None);
    assert_eq!(granted(&PLAIN, true), Some(shared(Bypass::Grace)));
    assert_eq!(granted(&solo(), true), Some(pass(Bypass::Grace)));
}

/// Every row: facts; whether the holder has the same epoch and reads for the same caller, and its flight
/// in this process, which may be late; the decision.
#[test]
fn how_a_read_goes_on_whose_lease_another_reader_holds() {
    let no_cache = facts(|f| f.directives.no_cache = true);
    let uncached = OtherLease::Uncached;
    let (none, here, late) = ((None, false), (Some(()), false), (Some(()), true));
    let table = [
        (PLAIN, (true, true), here, OtherLease::Join(())),
        // A flight under the lease of another caller.
        (PLAIN, (true, false), here, OtherLease::Join(())),
        (solo(), (true, true), here, OtherLease::Join(())),
        (PLAIN, (true, true), none, OtherLease::Wait),
        (PLAIN, (true, false), none, OtherLease::Lead),
        (
            facts(|f| f.directives.max_age = Some(std::time::Duration::from_secs(5))),
            (true, true),
            none,
            OtherLease::Lead,
        ),
        (PLAIN, (true, true), late, OtherLease::Lead),
        (solo(), (true, true), none, uncached(pass(Bypass::Leased))),
        (solo(), (true, false), late, uncached(pass(Bypass::Leased))),
        (PLAIN, (false, true), here, uncached(shared(Bypass::Leased))),
        (no_cache, (true, true), here, uncached(shared(Bypass::NoCache))),
    ];
    for (facts, (is_of_epoch, is_same_reader), (flight, is_late), want) in table {
        let holder = LeaseHolder { is_of_epoch, is_same_reader, flight, is_late };
        assert_eq!(leased(&facts, holder), want, "{holder:?} for {facts:?}");
    }
}

#[test]
fn a_value_that_appeared_meanwhile_is_never_replaced() {
    let table = [
        (Reject::Identity, false, Bypass::Leased),
        (Reject::Epoch, false, Bypass::Foreign),
        (Reject::Identity, true, Bypass::Grace),
    ];
    for (reject, in_grace, why) in table {
        assert_eq!(overtaken(&PLAIN, reject, in_grace), shared(why), "{reject:?}");
    }
}

#[test]
fn a_read_that_nothing_confirms_is_shared_unless_it_wants_to_be_alone() {
    assert_eq!(unconfirmed(&PLAIN, Bypass::StoreDown), shared(Bypass::StoreDown));
    assert_eq!(unconfirmed(&solo(), Bypass::StoreDown), pass(Bypass::StoreDown));
    assert_eq!(unconfirmed(&PLAIN, Bypass::Fenced), shared(Bypass::Fenced));
    assert_eq!(unconfirmed(&only_if_cached(), Bypass::Fenced), pass(Bypass::OnlyIfCached));
}

/// Only a member of the audience gets an entry, whatever the facts, and no caller does during the
/// grace.
#[test]
fn only_a_member_outside_the_grace_gets_the_entry() {
    let booleans = [false, true];
    for standing in [Standing::Included, Standing::Lapsed, Standing::Outside] {
        for (is_age_accepted, is_closed) in
            booleans.into_iter().flat_map(|a| booleans.map(|b| (a, b)))
        {
            let entry = EntryFacts { standing, is_age_accepted, is_closed };
            let is_hit = |in_grace| with_entry(&PLAIN, entry, in_grace) == WithEntry::Hit;
            assert_eq!(is_hit(false), standing == Standing::Included && is_age_accepted);
            assert!(!is_hit(true));
        }
    }
}
