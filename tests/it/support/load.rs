//! Requests without a pause, for as long as something is done to the sidecars that answer them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::join_all;
use tokio::{sync::watch, task::JoinHandle};

use super::soon;

/// Requests under way at a time.
const WIDTH: usize = 8;
/// Answers that show that the load goes on.
const MANY: usize = 200;

/// Requests one after another, several at a time, until [`Load::end`]. How many there are depends on the machine, but
/// not what happens while they run.
pub(crate) struct Load {
    over: Arc<AtomicBool>,
    answered: watch::Receiver<usize>,
    clients: JoinHandle<Vec<Vec<u16>>>,
}

impl Load {
    /// Starts it; `request` makes one request and returns the status of the answer.
    pub(crate) fn start<F: Future<Output = u16> + Send>(
        request: impl Fn() -> F + Clone + Send + Sync + 'static,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (count, answered) = watch::channel(0);
        let clients = (0..WIDTH).map(|_| {
            let (over, count, request) = (Arc::clone(&over), count.clone(), request.clone());
            async move {
                let mut answers = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    answers.push(request().await);
                    count.send_modify(|count| *count += 1);
                }
                answers
            }
        });
        let clients = tokio::spawn(join_all(clients.collect::<Vec<_>>()));
        Self { over, answered, clients }
    }

    /// Waits for many more answers.
    pub(crate) async fn goes_on(&self) {
        let mut answered = self.answered.clone();
        let enough = *answered.borrow() + MANY;
        soon(answered.wait_for(|count| *count >= enough)).await.expect("clients that go on");
    }

    /// Ends it and returns the status of every answer.
    pub(crate) async fn end(self) -> Vec<u16> {
        self.over.store(true, Ordering::Relaxed);
        soon(self.clients).await.expect("every request is answered").concat()
    }
}
