//! A clock that stands still while a busy machine delays the program.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Notify,
    task::{spawn_blocking, yield_now},
    time,
};

/// Step of the clock, and the shortest real time between two steps.
const TICK: Duration = Duration::from_millis(5);
/// Number of times that this task yields before a tick, so that ready tasks and sockets are polled.
/// An exchange from the client through the sidecar to the upstream and back takes about twenty.
const ROUNDS: usize = 64;

/// Makes Tokio's clock advance by a few milliseconds at a time, and only after all tasks on this
/// thread have run. The effect lasts as long as the runtime. On a runtime of several threads this
/// function does nothing.
///
/// A test, its sidecar and its upstream share a thread. When the machine suspends that thread for
/// half a second, this clock does not move: a limit of 200 ms depends on the sidecar only, and never
/// on the speed of the machine. `sleep`, `timeout`, `tokio::time::Instant`, [`super::eventually`] and
/// [`super::soon`] use this clock. Redis is another process and uses the machine's clock.
pub(crate) fn steady_clock() {
    thread_local! {
        /// Notified when a tick is due. The task that waits for it lives as long as the runtime.
        static DUE: RefCell<Weak<Notify>> = const { RefCell::new(Weak::new()) };
    }
    let is_running = DUE.with_borrow(|due| due.upgrade().is_some());
    if is_running || Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread {
        return;
    }
    let due = Arc::new(Notify::new());
    let ticks = Arc::downgrade(&due);
    DUE.set(Weak::clone(&ticks));
    time::pause();
    // A blocking task keeps Tokio from advancing a paused clock by itself.
    spawn_blocking(move || {
        while let Some(due) = ticks.upgrade() {
            due.notify_one();
            drop(due);
            thread::sleep(TICK);
        }
    });
    tokio::spawn(async move {
        loop {
            due.notified().await;
            for _ in 0..ROUNDS {
                yield_now().await;
            }
            time::advance(TICK).await;
        }
    });
}
