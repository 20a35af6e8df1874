//! Ctrl-C and SIGTERM end a benchmark between two steps, so that its servers are ended and its
//! temporary files removed.

use std::{
    process::exit,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::Result;

/// Whether a signal has arrived.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Starts listening for signals. A second signal ends the process at once.
    pub(crate) fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let interrupt = Self::default();
        let flag = interrupt.clone();
        thread::spawn(move || {
            runtime.block_on(async {
                next().await;
                flag.0.store(true, Ordering::Relaxed);
                next().await;
                exit(130);
            });
        });
        Ok(interrupt)
    }

    /// Returns an error if a signal has arrived.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
    }
}

async fn next() {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        // The signals keep their default action.
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
}
