//! The end of a process that finishes its work first: the signal that a drain has begun.

use tokio::sync::watch;

/// Becomes true when servers must stop accepting connections.
pub type Drain = watch::Receiver<bool>;

/// Waits for the drain. Also returns when the sender is dropped.
pub(crate) async fn until_drain(drain: &mut Drain) {
    let _ = drain.wait_for(|is_draining| *is_draining).await;
}
