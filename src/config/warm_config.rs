//! Jobs that are read before a client asks.

use std::path::PathBuf;

use hyper::http::{HeaderName, Uri};

use super::Secret;
use crate::semantics::json_pointer::JsonPointer;

/// Jobs that are read before a client asks, and the requests that read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmConfig {
    /// File of ids that are read at the start.
    pub file: Option<PathBuf>,
    /// Path and query at the upstream of a list of jobs that are read at the start.
    pub list: Option<Uri>,
    /// Place of the ids in that list.
    pub pointer: JsonPointer,
    /// Header fields of the reads; values may be secret.
    pub headers: Vec<(HeaderName, Secret)>,
    /// `Authorization` of the reads.
    pub authorization: Option<Secret>,
    /// Reads per second.
    pub rate: usize,
    /// Jobs that may wait to be read.
    pub max: usize,
}
