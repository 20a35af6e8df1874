//! Ctrl-C and SIGTERM end a benchmark between two steps, so that its servers are ended and its
//! temporary files are removed.

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

/// Whether there was a signal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on. A second signal ends the process at once.
    pub(crate) fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let interrupt = Self::default();
        let told = interrupt.clone();
        thread::spawn(move || {
            runtime.block_on(async {
                next().await;
                told.0.store(true, Ordering::Relaxed);
                next().await;
                exit(130);
            });
        });
        Ok(interrupt)
    }

    /// An error once there was a signal.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
    }
}

async fn next() {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        // Then the signals do what they do by default.
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
}
