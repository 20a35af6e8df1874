use std::future::pending;

use hyper::Request;

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::*;
use crate::{
    config::CredentialsConfig,
    semantics::audience::Fingerprinter,
    store::{CredentialKey, Token},
};

fn coalesce_key() -> CoalesceKey {
    let (head, ()) = Request::new(()).into_parts();
    let caller = Fingerprinter::new(&CredentialsConfig::default()).caller(
        &CredentialKey::new([0; 32]),
        &head.uri,
        &head.headers,
    );
    CoalesceKey { caller, identity: IdentityHash(7) }
}

fn key() -> Key {
    Key::new("job_status:", "x")
}

fn version(token: &str, epoch: &str) -> JobVersion {
    JobVersion { token: Token::named(token), epoch: Epoch::named(epoch) }
}

fn leads(role: FlightRole) -> Leader {
    match role {
        FlightRole::Lead(leader) => leader,
        _ => panic!("another role"),
    }
}

fn joins(role: FlightRole) -> Flight {
    match role {
        FlightRole::Join(flight) => flight,
        _ => panic!("another role"),
    }
}

fn flights(limit: usize) -> Arc<Flights> {
    Arc::new(Flights::new(Quota::new(limit, Gauge::default(), Counter::default())))
}

#[test]
fn a_flight_is_joined_by_what_the_store_shows_in_its_epoch_and_by_nothing_else() {
    let flights = flights(9);
    let leader = leads(flights.join_or_lead(&key(), version("t1", "e1"), coalesce_key()));
    assert!(flights.confirmed(&key(), &version("t1", "e1"), coalesce_key()).is_some());
    assert!(flights.confirmed(&key(), &version("t2", "e1"), coalesce_key()).is_none());
    assert!(flights.confirmed(&key(), &version("t1", "e2"), coalesce_key()).is_none());
    let other_route = CoalesceKey { identity: IdentityHash(8), ..coalesce_key() };
    assert!(flights.confirmed(&key(), &version("t1", "e1"), other_route).is_none());
    flights.detach(&key());
    assert!(flights.confirmed(&key(), &version("t1", "e1"), coalesce_key()).is_none());
    drop(leader);
}

#[tokio::test]
async fn a_leader_that_panics_sends_its_followers_on_their_own_way() {
    let flights = flights(9);
    let leader = leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
    let follower = joins(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
    let dies = tokio::spawn(async move {
        let _leader = leader;
        panic!("the upstream's answer was too much for us");
    });
    assert_eq!(follower.wait().await.unwrap_err(), FlightFailure::Unshared);
    assert!(dies.await.unwrap_err().is_panic());
    leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_aborted_lets_the_next_read_begin() {
    let flights = flights(9);
    let running = leads(flights.join_or_lead_next(key(), coalesce_key()));
    let next = leads(flights.join_or_lead_next(key(), coalesce_key()));
    let follower = joins(flights.join_or_lead_next(key(), coalesce_key()));
    let aborted = tokio::spawn(async move {
        let _running = running;
        pending::<()>().await;
    });
    aborted.abort();
    let since = Instant::now();
    next.start().await;
    assert_eq!(since.elapsed(), Duration::ZERO, "nothing else runs");
    // The next read runs now: later readers wait for one that begins after they arrived.
    let later = leads(flights.join_or_lead_next(key(), coalesce_key()));
    drop(next);
    assert_eq!(follower.wait().await.unwrap_err(), FlightFailure::Unshared);
    drop(later);
    assert!(lock(&flights.unconfirmed).is_empty(), "nobody is left");
}

#[tokio::test]
async fn a_next_leader_that_gives_up_leaves_its_place_to_another() {
    let flights = flights(9);
    let running = leads(flights.join_or_lead_next(key(), coalesce_key()));
    drop(leads(flights.join_or_lead_next(key(), coalesce_key())));
    let next = leads(flights.join_or_lead_next(key(), coalesce_key()));
    drop(running);
    next.start().await;
}

/// Asserts that the read starts this long after now.
async fn starts_after(leader: &Leader, millis: u64) {
    let since = Instant::now();
    leader.start().await;
    assert_eq!(since.elapsed(), Duration::from_millis(millis));
}

#[tokio::test(start_paused = true)]
async fn four_reads_run_at_a_time_without_a_lookup_and_one_more_starts_a_second() {
    let flights = flights(9);
    let lead = || leads(flights.join_or_lead_next(key(), coalesce_key()));
    let first = lead();
    starts_after(&first, 0).await;
    let mut running = Vec::new();
    for _ in 0..3 {
        let next = lead();
        joins(flights.join_or_lead_next(key(), coalesce_key()));
        starts_after(&next, 50).await;
        running.push(next);
    }
    for _ in 0..2 {
        let next = lead();
        starts_after(&next, 1000).await;
        running.push(next);
    }
    // One that ends does not make room while four others run.
    drop(first);
    let next = lead();
    starts_after(&next, 1000).await;
    running.truncate(2);
    starts_after(&lead(), 50).await;
}

#[tokio::test(start_paused = true)]
async fn the_next_read_starts_as_soon_as_no_other_runs() {
    let flights = flights(9);
    let running = leads(flights.join_or_lead_next(key(), coalesce_key()));
    let next = leads(flights.join_or_lead_next(key(), coalesce_key()));
    let read = tokio::spawn(async move {
        sleep_until(Instant::now() + Duration::from_millis(7)).await;
        drop(running);
    });
    starts_after(&next, 7).await;
    read.await.unwrap();
    // A while after the last start, readers that come together share one read.
    sleep_until(Instant::now() + Duration::from_millis(200)).await;
    let another = leads(flights.join_or_lead_next(key(), coalesce_key()));
    starts_after(&another, 10).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_flight_is_joined_no_more_and_its_followers_hear_of_it() {
    let flights = flights(9);
    let leader = leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
    let follower = joins(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
    let since = Instant::now();
    follower.clone().late().await;
    assert_eq!(since.elapsed(), LATE);
    let second = leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
    joins(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
    assert!(
        flights
            .confirmed(&key(), &version("t", "e"), coalesce_key())
            .is_some_and(|flight| { !flight.is_late() && follower.is_late() })
    );
    drop((leader, second));
    assert!(lock(&flights.confirmed).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_read_that_has_not_started_is_not_late() {
    let flights = flights(9);
    let _running = leads(flights.join_or_lead_next(key(), coalesce_key()));
    let next = leads(flights.join_or_lead_next(key(), coalesce_key()));
    let follower = joins(flights.join_or_lead_next(key(), coalesce_key()));
    sleep_until(Instant::now() + 2 * LATE).await;
    assert!(!follower.is_late());
    next.start().await;
    let since = Instant::now();
    follower.late().await;
    assert_eq!(since.elapsed(), LATE);
}

#[test]
fn a_flight_that_is_filed_under_another_version_is_found_there_only() {
    let flights = flights(9);
    let leader = leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
    leader.refile(version("u", "e"), coalesce_key());
    assert!(flights.confirmed(&key(), &version("t", "e"), coalesce_key()).is_none());
    assert!(flights.confirmed(&key(), &version("u", "e"), coalesce_key()).is_some());
    drop(leader);
    assert!(lock(&flights.confirmed).is_empty());
}

#[test]
fn a_lease_names_the_caller_and_the_job_that_it_is_for() {
    let other_job = CoalesceKey { identity: IdentityHash(8), ..coalesce_key() };
    let hash = coalesce_key().reader_hash();
    assert_ne!(hash, other_job.reader_hash());
    let token = Token::named(&format!("00000000000000aa-1-{hash}"));
    assert!(token.is_of(hash) && !token.is_of(other_job.reader_hash()));
    assert!(!Token::named("00000000000000aa-1-0000000000000007").is_of(hash), "an older sidecar");
    assert!(!Token::named("00000000000000aa-1").is_of(hash));
}

#[test]
fn at_the_flight_limit_a_reader_joins_running_flights_and_starts_none() {
    let flights = flights(2);
    let other = Key::new("job_status:", "y");
    let leader = leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
    let running = leads(flights.join_or_lead_next(key(), coalesce_key()));

    assert!(matches!(
        flights.join_or_lead(&other, version("t", "e"), coalesce_key()),
        FlightRole::Full
    ));
    assert!(matches!(
        flights.join_or_lead(&key(), version("u", "e"), coalesce_key()),
        FlightRole::Full
    ));
    assert!(
        matches!(flights.join_or_lead_next(key(), coalesce_key()), FlightRole::Full),
        "no next one"
    );
    assert!(matches!(flights.join_or_lead_next(other.clone(), coalesce_key()), FlightRole::Full));
    joins(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));

    drop(leader);
    let next = leads(flights.join_or_lead_next(key(), coalesce_key()));
    joins(flights.join_or_lead_next(key(), coalesce_key()));
    drop((running, next));
    assert!(lock(&flights.confirmed).is_empty() && lock(&flights.unconfirmed).is_empty());
}
