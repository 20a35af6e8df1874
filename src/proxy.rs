//! The story of one request.

pub mod headers;
pub mod route;
