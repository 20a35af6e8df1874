//! Job APIs of all kinds, as real applications that know nothing about a cache, behind jobcache as their
//! users start it: with flags, with variables, or with the lines of `docs/job-apis.md` in a file.

#![allow(clippy::print_stdout, reason = "some tests print their transcript or their figures")]

mod airflow;
mod asynchronous;
mod deployed;
mod django;
mod express;
mod recipes;
mod self_caching;
mod tenants;
