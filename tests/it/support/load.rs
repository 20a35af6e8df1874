//! Continuous requests while a test does something to the sidecars that answer them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::join_all;
use tokio::{sync::watch, task::JoinHandle};

use super::soon;

/// Number of concurrent requests.
const WIDTH: usize = 8;
/// Number of further answers that show that the load goes on.
const MANY: usize = 200;

/// Several clients that each send one request after another until [`Load::end`]. The number of
/// requests depends on the speed of the machine. The events during them do not.
pub(crate) struct Load {
    over: Arc<AtomicBool>,
    answered: watch::Receiver<usize>,
    clients: JoinHandle<Vec<Vec<u16>>>,
}

impl Load {
    /// Starts the clients. `request` sends one request and returns the status of the answer.
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

    /// Ends the load and returns the status of every answer.
    pub(crate) async fn end(self) -> Vec<u16> {
        self.over.store(true, Ordering::Relaxed);
        soon(self.clients).await.expect("every request is answered").concat()
    }
}
