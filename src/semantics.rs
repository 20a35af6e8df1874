//! The meaning of HTTP, the routes and the settings for one message. Pure: no clock, no network, no
//! store, and of the other parts of jobcache only `transport`, for the peer of a request.

pub mod audience;
pub mod event_stream;
pub mod headers;
pub mod identity;
pub mod job_id;
pub mod json_pointer;
pub(crate) mod labels;
pub mod policy;
pub mod push_config;
pub mod push_request;
pub mod route;
pub mod settings;
