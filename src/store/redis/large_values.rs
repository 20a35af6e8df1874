//! Values that take long to transfer.
//!
//! Redis answers in order, so on a slow network one large value delays every small one behind it (head-of-line
//! blocking). So large values have a connection of their own, the bulk lane (`bulk_lane.rs`):
//!
//! - A fill knows the size of its body, and takes the bulk lane above [`LARGE_BODY`].
//! - A read does not. One whose answer turns out large (`lane.rs`) is remembered (`large_keys.rs`), and later
//!   reads of the key take the bulk lane. Small reads behind it are sent again over the bulk lane.
//! - A value that takes longer than the budget is left alone for a while: reads of its job pass, so that
//!   it is neither read nor stored.
//!
//! Without a bulk lane (a server may refuse a further connection) all goes over the common one.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};

use super::{
    bulk_lane::{UPLOAD_KIB, past_large},
    lane::Lane,
    session::Session,
    state::{SessionHandle, ShardState},
};
use crate::store::{
    Budget, Fill, Key, Seen, StoreError,
    errors::{DETACHED_TIMEOUT, Result},
};

/// Size of a body above which it is stored over the bulk lane: 13 ms at 10 Mbit/s.
const LARGE_BODY: usize = 16 << 10;
/// Time limit for one value to arrive on the bulk lane.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a fill waits until the bulk lane is open.
const OPEN_TIMEOUT: Duration = Duration::from_millis(250);

/// Reads a value within the budget, and notes that it is large if it takes longer.
pub(super) async fn read(
    state: &ShardState,
    session: &SessionHandle,
    key: &Key,
    budget: &mut Budget,
) -> Result<Seen> {
    let large = &state.context.large;
    if large.has(key)
        && let Some(lane) = session.bulk.now()
    {
        let seen = budget.spend(read_over(lane, session, key)).await;
        if seen.is_err() {
            large.note_late(key);
        }
        return seen.map_err(not_counted);
    }
    let turn = session.lane.turn();
    let patience = budget.left() / 4;
    let again = async |lane: Arc<Lane>| lane.ask(session.read(&lane, key)).await;
    let may_repeat = || {
        if turn.has_large_answer() {
            large.note_large(key);
        }
        // Another reader of the same value would be late on either connection.
        !large.has(key)
    };
    let read = session.read(&session.lane, key);
    let read = past_large(&session.bulk, (&turn, patience), may_repeat, read, again);
    let seen = budget.spend(read).await;
    if seen.as_ref().is_err_and(is_late) && turn.has_large_answer() {
        large.note_late(key);
    }
    session.explain(turn.began(), seen)
}

/// Reads a large value over the bulk lane. The read goes on if its caller gives up: as long as the
/// value is coming in, no other one is asked for.
async fn read_over(lane: Arc<Lane>, session: &SessionHandle, key: &Key) -> Result<Seen> {
    let permit = Arc::clone(&session.bulk.downloads).acquire_owned().await;
    let Ok(permit) = permit else { return Err(StoreError::Spent) };
    let (session, key) = (Arc::clone(session), key.clone());
    let read = tokio::spawn(async move {
        let _permit = permit;
        let read = timeout(READ_TIMEOUT, lane.ask(session.read(&lane, &key))).await;
        read.unwrap_or_else(|_| {
            session.bulk.close();
            Err(StoreError::Spent)
        })
    });
    // The task fails only if the process is about to end.
    read.await.unwrap_or(Err(StoreError::Down))
}

/// Stores a body of this size by an operation on the connection that it is given. No client waits
/// for that longer than for its budget.
pub(super) async fn store<F>(
    state: &ShardState,
    session: &Session,
    (key, size): (&Key, usize),
    operation: impl FnOnce(Arc<Lane>) -> F,
) -> Result<Fill>
where
    F: Future<Output = Result<Fill>>,
{
    if size <= LARGE_BODY {
        let began = Instant::now();
        let stored = session.lane.ask(operation(Arc::clone(&session.lane)));
        let stored = Budget::new(DETACHED_TIMEOUT).spend(stored).await;
        return session.explain(began, stored);
    }
    let room = u32::try_from(size / 1024).unwrap_or(u32::MAX).clamp(1, UPLOAD_KIB);
    let permit = timeout(DETACHED_TIMEOUT, session.bulk.uploads.acquire_many(room)).await;
    if permit.is_err() {
        return Err(StoreError::Spent);
    }
    let bulk = timeout(OPEN_TIMEOUT, session.bulk.ready()).await.ok();
    let lane = bulk.clone().unwrap_or_else(|| Arc::clone(&session.lane));
    let stored = store_over(state, &lane, key, operation(Arc::clone(&lane))).await;
    if matches!(stored, Err(StoreError::Spent)) {
        session.bulk.close();
    }
    if bulk.is_some() { stored.map_err(not_counted) } else { stored }
}

/// Waits until a large value is stored, and notes that it is late as soon as it is.
async fn store_over(
    state: &ShardState,
    lane: &Lane,
    key: &Key,
    operation: impl Future<Output = Result<Fill>>,
) -> Result<Fill> {
    let budget = state.context.config.budget;
    let turn = lane.turn();
    let deadline = turn.began() + DETACHED_TIMEOUT.max(budget);
    let mut operation = pin!(operation);
    loop {
        let stored = timeout_at(deadline.min(Instant::now() + budget / 2), &mut operation).await;
        if turn.next_for() >= budget {
            state.context.large.note_late(key);
        }
        match stored {
            Ok(stored) => {
                turn.end();
                return stored;
            }
            Err(_) if Instant::now() >= deadline => return Err(StoreError::Spent),
            Err(_) => {}
        }
    }
}

/// The error of the bulk lane as one that says nothing about the session.
fn not_counted(error: StoreError) -> StoreError {
    match error {
        StoreError::Timeout | StoreError::Lost(_) => StoreError::Spent,
        other => other,
    }
}

fn is_late(error: &StoreError) -> bool {
    matches!(error, StoreError::Timeout | StoreError::Spent)
}
