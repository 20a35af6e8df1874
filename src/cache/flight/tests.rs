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
    assert!(flights.join_confirmed(&key(), &version("t1", "e1"), coalesce_key()).is_some());
    assert!(flights.join_confirmed(&key(), &version("t2", "e1"), coalesce_key()).is_none());
    assert!(flights.join_confirmed(&key(), &version("t1", "e2"), coalesce_key()).is_none());
    let other_route = CoalesceKey { identity: IdentityHash(8), ..coalesce_key() };
    assert!(flights.join_confirmed(&key(), &version("t1", "e1"), other_route).is_none());
    flights.detach(&key());
    assert!(flights.join_confirmed(&key(), &version("t1", "e1"), coalesce_key()).is_none());
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
    assert!(follower.wait().await.is_none());
    assert!(dies.await.unwrap_err().is_panic());
    leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
}

#[tokio::test]
async fn a_leader_that_is_aborted_lets_the_next_read_begin() {
    let flights = flights(9);
    let running = leads(flights.join_or_lead_next(key(), coalesce_key()));
    let mut next = leads(flights.join_or_lead_next(key(), coalesce_key()));
    let follower = joins(flights.join_or_lead_next(key(), coalesce_key()));
    let aborted = tokio::spawn(async move {
        let _running = running;
        pending::<()>().await;
    });
    aborted.abort();
    next.wait_for_turn().await;
    // The next read runs now: later readers wait for one that begins after they arrived.
    let later = leads(flights.join_or_lead_next(key(), coalesce_key()));
    drop(next);
    assert!(follower.wait().await.is_none());
    drop(later);
    assert!(lock(&flights.unconfirmed).is_empty(), "nobody is left");
}

#[tokio::test]
async fn a_next_leader_that_gives_up_leaves_its_place_to_another() {
    let flights = flights(9);
    let running = leads(flights.join_or_lead_next(key(), coalesce_key()));
    drop(leads(flights.join_or_lead_next(key(), coalesce_key())));
    let mut next = leads(flights.join_or_lead_next(key(), coalesce_key()));
    drop(running);
    next.wait_for_turn().await;
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
