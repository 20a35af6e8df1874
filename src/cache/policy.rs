//! What HTTP allows a shared cache to do.

/// Why a request goes to the upstream without touching the cache, or past an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// Not a job path.
    Path,
}
