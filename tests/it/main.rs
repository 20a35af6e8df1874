//! Tests of a whole sidecar between a real Redis and a real upstream.
//!
//! Each test name is a sentence of behaviour that serves one of the four promises. Tests do not
//! sleep for readiness: they wait for a gate, or poll with a deadline.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod acl;
mod bound_connections;
mod callers;
mod cluster;
mod compression;
mod contract;
mod credentials;
mod demo;
mod deployments;
mod directives;
mod documents;
mod events;
mod explain;
mod fastapi;
mod fetches;
mod framing;
mod fuzz_seeds;
mod grace;
mod grpc;
mod half_close;
mod history;
mod hostile;
mod inputs;
mod interface;
mod invalidation;
mod job_apis;
mod journal;
mod key_space;
mod limits;
mod location_targets;
mod logs;
mod monitoring;
mod near;
mod operations;
mod origin;
mod page;
mod peers;
mod proxy_protocol;
mod proxying;
mod purge;
mod query;
mod reads;
mod receipts;
mod recheck;
mod redis_down;
mod reload;
mod repeat_fast_path;
mod revocation;
mod routes;
mod rules;
mod sample;
mod schedules;
mod semantics;
mod sentinel;
mod shadow;
mod shared_answers;
mod shared_cache;
mod shared_keys;
mod sidecars;
mod silent_changes;
mod states;
mod status_races;
mod store_tls;
mod streams;
mod systemd;
mod tls;
mod traces;
mod unix_sockets;
mod upstream_names;
mod valkey;
mod verify;
mod walls;
mod warming;
mod webhook;
mod wire;
mod write_ends;
mod write_names;
