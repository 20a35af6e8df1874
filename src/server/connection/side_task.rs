//! A rarely woken future that shares a task with a busy one.
//!
//! `select!` polls all its branches whenever one of them is woken. So each request of a connection
//! would pay for events that hardly ever happen (a drain, a deadline). Here the rare future has its
//! own waker and is polled only after that was woken.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// A future in a task that is woken for other reasons most of the time.
pub(super) struct SideTask<'f, F> {
    /// `None` once it has completed.
    future: Option<Pin<&'f mut F>>,
    side_waker: Arc<SideWaker>,
    waker: Waker,
    /// The task that polls this future, as `side_waker` knows it.
    task: Waker,
}

struct SideWaker {
    woken: AtomicBool,
    task: Mutex<Waker>,
}

impl SideWaker {
    fn task(&self) -> MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for SideWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task().wake_by_ref();
    }
}

impl<'f, F: Future> SideTask<'f, F> {
    pub(super) fn new(future: Pin<&'f mut F>) -> Self {
        let task = Waker::noop().clone();
        let side_waker =
            Arc::new(SideWaker { woken: AtomicBool::new(true), task: Mutex::new(task.clone()) });
        let waker = Waker::from(Arc::clone(&side_waker));
        Self { future: Some(future), side_waker, waker, task }
    }

    /// Returns the output of the future, once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Option<F::Output> {
        if !self.task.will_wake(cx.waker()) {
            self.task.clone_from(cx.waker());
            // Set before the check: a wake after it reaches the task.
            self.side_waker.task().clone_from(cx.waker());
        }
        // The load is for the usual case: a swap takes the cache line from the other cores.
        if !self.side_waker.woken.load(Ordering::Acquire)
            || !self.side_waker.woken.swap(false, Ordering::AcqRel)
        {
            return None;
        }
        let future = self.future.as_mut()?;
        let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&self.waker))
        else {
            return None;
        };
        self.future = None;
        Some(output)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        pin::pin,
        sync::atomic::AtomicUsize,
    };

    use futures_util::poll;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_was_woken_and_not_when_its_task_was() {
        let polls = AtomicUsize::new(0);
        let notify = Notify::new();
        let rare = async {
            let mut notified = pin!(notify.notified());
            poll_fn(|cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                notified.as_mut().poll(cx)
            })
            .await;
        };
        let mut rare = pin!(rare);
        let mut aside = SideTask::new(rare.as_mut());
        let mut poll_side = async || poll_fn(|cx| Poll::Ready(aside.poll(cx))).await;
        for _ in 0..3 {
            assert_eq!(poll_side().await, None);
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        notify.notify_one();
        assert_eq!(poll_side().await, Some(()));
        assert_eq!(polls.load(Ordering::Relaxed), 2);
        assert_eq!(poll_side().await, None, "it has ended");
    }

    #[tokio::test]
    async fn what_wakes_it_wakes_its_task() {
        let notify = Arc::new(Notify::new());
        let task = tokio::spawn({
            let notify = Arc::clone(&notify);
            async move {
                let mut rare = pin!(notify.notified());
                let mut aside = SideTask::new(rare.as_mut());
                poll_fn(|cx| aside.poll(cx).map_or(Poll::Pending, Poll::Ready)).await;
            }
        });
        tokio::task::yield_now().await;
        notify.notify_one();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn it_wakes_the_task_that_polls_it_last() {
        let notify = Notify::new();
        let mut never = pin!(pending::<()>());
        let mut rare = pin!(notify.notified());
        let mut aside = SideTask::new(rare.as_mut());
        // Another waker, as a join would pass.
        let mut other = Context::from_waker(Waker::noop());
        assert_eq!(aside.poll(&mut other), None);
        assert!(poll!(&mut never).is_pending());
        let notified =
            async { poll_fn(|cx| aside.poll(cx).map_or(Poll::Pending, Poll::Ready)).await };
        let ((), ()) = tokio::join!(notified, async { notify.notify_one() });
    }
}
