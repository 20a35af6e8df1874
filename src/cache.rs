//! Read, write and purge: joins policy, flight and store.

pub mod key;
pub mod policy;
