//! jobcache: a transparent caching reverse proxy sidecar for job status polls.
//!
//! Frontends poll `GET /jobs/<id>` every few seconds and each poll is a database query. jobcache
//! stands in front of the unchanged backend, answers the polls from Redis (`job_status:<id>`) and
//! forgets a job the moment it changes.
//!
//! # Promises
//!
//! Every test serves one of them.
//!
//! 1. **Never stale.** Once a write through any sidecar, a purge, or a third party's plain
//!    `DEL job_status:<id>` is acknowledged, no GET that starts later, through any sidecar, returns
//!    an older body. The stated limits are in [`store`].
//! 2. **Never leaked.** A credential only ever receives bytes that the upstream itself served to
//!    that credential. Requests that carry one pass uncached.
//! 3. **Never in the way.** A cache fault never fails, truncates or alters a response and costs at
//!    most the store budget; with Redis down for long it costs nothing. What is not a cached read
//!    passes through untouched, streaming.
//! 4. **Never in the dark.** Every response says what happened to it and why (`Cache-Status`), and
//!    every counter has a metric.
//!
//! # Reading order
//!
//! Imports run one way: `main -> lib -> {server, admin, demo} -> proxy -> {upstream, cache} ->
//! store`. `cache` never imports `upstream`: it hands `proxy` a lease, and `proxy` fetches.

pub mod config;

pub mod proxy;

pub mod upstream;

pub mod cache;

pub mod store;

pub mod metrics;

pub mod clock;

pub mod mutants;

pub mod telemetry;
