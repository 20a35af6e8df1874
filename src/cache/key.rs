//! Job ids and the spellings an upstream may read as one.

use std::sync::Arc;

/// A job id in its canonical spelling: `[A-Za-z0-9._~-]{1,128}`, not `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobId(Arc<str>);
