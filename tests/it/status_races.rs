//! Stored statuses and routes of several variables: a fill that a change overtakes leaves nothing behind,
//! through whichever sidecar the change comes.

use std::time::Duration;

use hyper::{Method, Response, StatusCode};
use jobcache::config::{Ids, RouteConfig};

use crate::support::{Body, Reply, SOON, Setup, eventually, full, sidecar::Sidecar};

const PATH: &str = "/t/acme/jobs/a:b%201/";
const KEY: &str = "job_status:acme:a:b 1";
/// Another job with the same key.
const OTHER: &str = "/t/acme:a/jobs/b%201/";

async fn setup() -> Setup {
    let setup = Setup::with(|config| {
        let status = |code, seconds| {
            (StatusCode::from_u16(code).expect("a status"), Duration::from_secs(seconds))
        };
        config.api.tables = vec![RouteConfig {
            ids: Some(Ids::Opaque),
            statuses: Some(vec![status(202, 30), status(303, 30), status(404, 30)]),
            ..RouteConfig::at("/t/{tenant}/jobs/{id}/")
        }];
    })
    .await;
    setup.upstream.respond(PATH, |_| Some(running()));
    setup
}

fn running() -> Response<Body> {
    let response = Response::builder().status(StatusCode::ACCEPTED).header("retry-after", "3");
    response.body(full("{\"status\":\"running\"}")).expect("a valid head")
}

fn done() -> Response<Body> {
    let response =
        Response::builder().status(StatusCode::SEE_OTHER).header("location", "/results/1");
    response.body(full("")).expect("a valid head")
}

async fn hit(sidecar: &Sidecar, path: &str, status: StatusCode) -> Reply {
    eventually(SOON, async || {
        let reply = sidecar.get(path).await;
        assert_eq!(reply.status, status, "{reply:?}");
        if reply.is_hit() { Ok(reply) } else { Err(reply) }
    })
    .await
}

/// Holds a read through `reader` that the API has answered with 202, while the job ends and `change` says
/// so through `writer`.
async fn check_late(
    setup: &Setup,
    (reader, writer): (&Sidecar, &Sidecar),
    change: impl AsyncFn(&Setup, &Sidecar),
) {
    setup.upstream.respond(PATH, |_| Some(running()));
    setup.redis.del(KEY).await;
    let gate = setup.upstream.hold_after_read(Method::GET, PATH);
    let (late, ()) = tokio::join!(reader.get(PATH), async {
        gate.arrived(1).await;
        setup.upstream.respond(PATH, |_| Some(done()));
        change(setup, writer).await;
        gate.release();
    });
    assert_eq!(late.status, StatusCode::ACCEPTED, "it asked before the change");
    for sidecar in [writer, reader] {
        let seen = hit(sidecar, PATH, StatusCode::SEE_OTHER).await;
        assert_eq!(seen.header("location"), "/results/1");
        assert_eq!(seen.text(), "");
    }
    assert_eq!(setup.redis.get(KEY).await, Some(Vec::new()), "no job to an application");
}

#[tokio::test]
async fn a_202_that_a_change_overtakes_is_seen_by_no_later_reader() {
    let setup = setup().await;
    let second = setup.second().await;
    for pair in [(&setup.sidecar, &setup.sidecar), (&setup.sidecar, &second)] {
        check_late(&setup, pair, async |_, writer| {
            writer.client.request(Method::POST, "/t/ACME/jobs/a:b%201/cancel").send().await;
        })
        .await;
        check_late(&setup, pair, async |_, writer| {
            writer.client.request(Method::DELETE, "/t/acme/jobs?id=a%3Ab+1").send().await;
        })
        .await;
        for (method, path, body) in [
            (Method::POST, "/purge", "{\"path\": \"/t/acme/jobs/a:b%201/\"}"),
            (Method::POST, "/purge", "{\"path\": \"/t/acme/jobs/a%3Ab%201\"}"),
            (Method::POST, "/purge", "{\"job_id\": \"acme:a:b 1\"}"),
            (Method::from_bytes(b"PURGE").expect("a method"), PATH, ""),
        ] {
            check_late(&setup, pair, async |_, writer| {
                let purge = writer.admin.request(method.clone(), path).body(body).send().await;
                assert_eq!(purge.status, StatusCode::OK, "{purge:?}");
            })
            .await;
        }
        check_late(&setup, pair, async |setup, _| setup.redis.del(KEY).await).await;
    }
}

#[tokio::test]
async fn a_404_is_gone_when_the_location_of_a_post_names_the_job() {
    let setup = setup().await;
    let second = setup.second().await;
    setup.upstream.respond(PATH, |_| Some(with_status(StatusCode::NOT_FOUND)));
    hit(&setup.sidecar, PATH, StatusCode::NOT_FOUND).await;
    hit(&second, PATH, StatusCode::NOT_FOUND).await;
    setup.upstream.respond("/t/acme/jobs/", |_| {
        let created = Response::builder().status(201).header("location", PATH);
        Some(created.body(full("")).expect("a valid head"))
    });
    let gate = setup.upstream.hold_after_read(Method::POST, "/t/acme/jobs/");
    let (created, ()) =
        tokio::join!(setup.sidecar.client.request(Method::POST, "/t/acme/jobs/").send(), async {
            gate.arrived(1).await;
            setup.upstream.respond(PATH, |_| Some(running()));
            gate.release();
        });
    assert_eq!(created.status, StatusCode::CREATED);
    for sidecar in [&second, &setup.sidecar] {
        assert_eq!(sidecar.get(PATH).await.status, StatusCode::ACCEPTED);
    }
}

#[tokio::test]
async fn two_jobs_with_one_key_are_never_taken_for_each_other() {
    let setup = setup().await;
    let second = setup.second().await;
    setup.upstream.respond(OTHER, |_| Some(done()));
    let gate = setup.upstream.hold_after_read(Method::GET, PATH);
    let (one, ()) = tokio::join!(setup.sidecar.get(PATH), async {
        gate.arrived(1).await;
        for sidecar in [&setup.sidecar, &second] {
            // Neither joins the read of the other job, nor waits for its entry.
            let other = sidecar.get(OTHER).await;
            assert_eq!(other.status, StatusCode::SEE_OTHER, "{other:?}");
        }
        gate.release();
    });
    assert_eq!(one.status, StatusCode::ACCEPTED);
    for sidecar in [&setup.sidecar, &second, &setup.sidecar] {
        assert_eq!(sidecar.get(PATH).await.status, StatusCode::ACCEPTED);
        assert_eq!(sidecar.get(OTHER).await.status, StatusCode::SEE_OTHER);
    }
    hit(&setup.sidecar, OTHER, StatusCode::SEE_OTHER).await;
    setup.redis.del(KEY).await;
    assert!(!setup.get(OTHER).await.is_hit());
}

fn with_status(status: StatusCode) -> Response<Body> {
    Response::builder().status(status).body(full("")).expect("a valid head")
}
