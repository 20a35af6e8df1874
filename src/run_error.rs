//! Why a sidecar cannot run with its configuration.

use crate::{semantics::route::InvalidRoutes, store::StoreError, tls::TlsError};

/// Why a sidecar could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A route or a rule of `[[invalidate]]` is invalid.
    #[error(transparent)]
    Routes(#[from] InvalidRoutes),
    /// The store's URL cannot be used.
    #[error("cannot open the store: {0}")]
    Store(#[from] StoreError),
    /// Certificates or keys cannot be used.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] TlsError),
}
