//! What HTTP, the routes and the settings mean for one message. Pure: no clock, no network, no
//! store, and no import of another part of jobcache.

pub mod audience;
pub mod headers;
pub mod identity;
pub mod job_id;
pub mod json_pointer;
pub mod policy;
pub mod route;
pub mod settings;
