//! A clock that a busy machine does not make run ahead of the program.

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

/// How far the clock moves at a time, and how long the process is left alone before.
const TICK: Duration = Duration::from_millis(5);
/// How often every task that is ready is polled, and the sockets are looked at, before a tick. An exchange from the
/// client through the sidecar to the upstream and back takes some twenty of them.
const ROUNDS: usize = 64;

/// Makes Tokio's clock move on, by a few milliseconds at a time, only after everything that runs on this thread has had
/// its turn. It stays so for as long as the runtime lives; on a runtime of several threads nothing happens.
///
/// A test, its sidecar and its upstream share a thread. When the machine keeps that thread waiting for half a second,
/// this clock does not move: a limit of 200 ms is met for what the sidecar does or does not do, and never for the pace
/// of the machine. `sleep`, `timeout`, `tokio::time::Instant`, [`super::eventually`] and [`super::soon`] go by it. Redis
/// is another process and goes by the machine's clock.
pub(crate) fn steady_clock() {
    thread_local! {
        /// Told when a tick is due. The task that waits for it lives as long as the runtime.
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
    // Tokio does not move a paused clock by itself while a blocking task runs.
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
