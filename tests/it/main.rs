//! The behaviour of a whole sidecar between a real Redis and a real upstream.
//!
//! Each test names one sentence of behaviour and serves one of the four promises. Nothing sleeps:
//! a test waits for a gate, or polls with a deadline.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod acl;
mod again;
mod cluster;
mod compression;
mod contract;
mod credentials;
mod demo;
mod deployments;
mod directives;
mod events;
mod explain;
mod fastapi;
mod fetches;
mod framing;
mod grpc;
mod history;
mod hostile;
mod inputs;
mod interface;
mod invalidation;
mod key_space;
mod limits;
mod logs;
mod mentions;
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
mod revocation;
mod rules;
mod sample;
mod schedules;
mod semantics;
mod sentinel;
mod shadow;
mod shared_cache;
mod sidecars;
mod states;
mod store_tls;
mod systemd;
mod tls;
mod traces;
mod unix_sockets;
mod valkey;
mod verify;
mod warming;
mod webhook;
mod wire;
