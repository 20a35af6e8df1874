//! Tests of the pending set.

use super::{inner::RETRY, *};
use crate::store::journal;

fn key(id: &str) -> Key {
    Key::new("job_status:", id)
}

/// Opens a set with a journal, as the only process.
fn with_journal(limit: usize, path: &Path) -> PendingSet {
    let owner = JournalOwner { store: "redis://here".into(), prefix: "job_status:".into() };
    PendingSet::with_journal(limit, path, &owner).unwrap().0
}

/// Returns the set that a journal holds, without locking it.
fn stored(limit: usize, path: &Path) -> PendingSet {
    let pending = PendingSet::new(limit);
    pending.restore(journal::records_at(path));
    pending
}

async fn add(pending: &PendingSet, id: &str, write: &str, linger: Duration) -> SlotSet {
    pending.add(&[&key(id)], &Token(write.into()), linger).await
}

#[tokio::test]
async fn an_item_added_again_while_it_was_repeated_stays() {
    let pending = PendingSet::new(10);
    add(&pending, "a", "w1", Duration::ZERO).await;
    let first = pending.batch(10).remove(0);
    add(&pending, "a", "w2", Duration::ZERO).await;
    pending.confirm(&first);
    assert!(pending.contains(&key("a")));
    pending.confirm(&pending.batch(10)[0]);
    assert!(pending.is_empty());
}

/// A full set with room for one key.
async fn full() -> PendingSet {
    let pending = PendingSet::new(1);
    assert!(add(&pending, "a", "w1", Duration::ZERO).await.is_empty());
    assert!(!add(&pending, "b", "w2", Duration::ZERO).await.is_empty());
    pending
}

#[tokio::test]
async fn past_the_limit_a_key_is_pending_with_all_of_its_slot_until_a_purge_of_all() {
    let pending = full().await;
    assert_eq!(pending.len(), 2);
    assert!(pending.contains(&key("b")));
    assert!(pending.contains(&Key::new("{job_status:b}", "in its slot")));
    assert!(!pending.contains(&key("unrelated")));
    let task = pending.due_purge_all().unwrap();
    assert_eq!(task.slots, SlotSet::of_name(b"job_status:b"));
    pending.confirm_slots(&task.slots, &task);
    assert!(!pending.contains(&key("b")) && pending.due_purge_all().is_none());
    assert!(pending.contains(&key("a")), "its own end is still due");
}

#[tokio::test]
async fn a_purge_of_all_confirms_nothing_that_was_added_after_it_began() {
    let pending = full().await;
    let stale = pending.due_purge_all().unwrap();
    let newer = pending.add_all().await;
    pending.confirm_slots(&SlotSet::ALL, &stale);
    assert!(pending.contains(&key("unrelated")), "a newer one was not covered");
    assert_eq!(pending.slots(), 16_384);
    assert!(!add(&pending, "c", "w3", Duration::ZERO).await.is_empty());
    pending.confirm_slots(&SlotSet::ALL, &newer);
    assert!(!pending.contains(&key("unrelated")));
    assert!(pending.contains(&key("c")), "it came after the newer one");
    let last = pending.due_purge_all().unwrap();
    pending.confirm_slots(&SlotSet::ALL, &last);
    assert!(!pending.contains(&key("c")));
}

#[tokio::test]
async fn a_purge_of_all_is_confirmed_slot_by_slot() {
    let pending = PendingSet::new(10);
    let task = pending.add_all().await;
    let mine = SlotSet::of_name(b"job_status:dead");
    pending.confirm_slots(&SlotSet::ALL.difference(&mine), &task);
    assert!(pending.contains(&key("dead")) && !pending.contains(&key("unrelated")));
    assert_eq!((pending.len(), pending.slots()), (1, 1));
    pending.postpone_purge_all(&task);
    assert!(pending.due_purge_all().is_none() && pending.next_due().is_some());
    pending.make_all_due();
    assert_eq!(pending.due_purge_all().map(|task| task.slots), Some(mine.clone()));
    pending.confirm_slots(&mine, &task);
    assert!(pending.is_empty() && pending.next_due().is_none());
}

#[tokio::test]
async fn what_overflows_meanwhile_does_not_keep_a_purge_from_being_postponed() {
    let pending = full().await;
    let task = pending.due_purge_all().unwrap();
    add(&pending, "c", "w3", Duration::ZERO).await;
    pending.postpone_purge_all(&task);
    assert!(pending.due_purge_all().is_none(), "one attempt a second, however many come");
    let task = pending.add_all().await;
    assert!(pending.due_purge_all().is_some(), "this one is new");
    for _ in 0..5 {
        pending.postpone_purge_all(&task);
    }
    add(&pending, "d", "w4", Duration::ZERO).await;
    let soon = Instant::now() + RETRY.0;
    assert!(pending.lock().slots.due.is_some_and(|due| due.at <= soon));
}

#[tokio::test]
async fn what_fails_goes_behind_the_others_and_is_not_repeated_at_once() {
    let pending = PendingSet::new(10);
    for id in ["a", "b", "c"] {
        add(&pending, id, "w", Duration::ZERO).await;
    }
    let ids = |batch: Vec<PendingItem>| -> Vec<String> {
        batch.iter().map(|item| item.key.main().to_owned()).collect()
    };
    for expected in ["job_status:a", "job_status:b", "job_status:c"] {
        let batch = pending.batch(1);
        pending.postpone(&batch[0]);
        assert_eq!(ids(batch), [expected]);
    }
    assert!(pending.batch(10).is_empty() && pending.next_due().is_some());
    let all = pending.add_all().await;
    pending.postpone_purge_all(&all);
    assert_eq!(pending.due_purge_all(), None);
    pending.make_all_due();
    assert_eq!((pending.batch(10).len(), pending.due_purge_all()), (3, Some(all)));
}

#[tokio::test]
async fn the_longest_linger_of_a_key_is_kept() {
    let pending = PendingSet::new(1);
    add(&pending, "a", "w1", Duration::from_secs(9)).await;
    add(&pending, "a", "w2", Duration::ZERO).await;
    assert_eq!(pending.batch(1)[0].linger, Duration::from_secs(9));
}

#[tokio::test]
async fn a_later_end_of_a_write_replaces_the_linger_of_an_earlier_one() {
    let pending = PendingSet::new(1);
    let linger = || pending.batch(1)[0].linger.as_secs();
    add(&pending, "a", "w1", Duration::from_secs(9)).await;
    add(&pending, "a", "w2", Duration::from_secs(30)).await;
    assert_eq!(linger(), 30);
    pending.relax(&[key("a"), key("b")], &Token("w1".into()), Duration::ZERO);
    assert_eq!(linger(), 30);
    pending.relax(&[key("a")], &Token("w2".into()), Duration::from_secs(1));
    assert_eq!(linger(), 9);
    add(&pending, "a", "w2", Duration::from_secs(30)).await;
    add(&pending, "a", "w2", Duration::from_secs(10)).await;
    assert_eq!(linger(), 10);
}

/// Waits until everything noted so far is on the disk.
async fn settled(pending: &PendingSet) {
    pending
        .synced(
            pending.journal.as_ref().map(|journal| journal.append(Vec::new(), Durability::Lazy)),
        )
        .await;
}

#[tokio::test]
async fn a_journal_of_the_same_keys_does_not_grow_without_end() {
    let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
    let pending = with_journal(10, &path);
    for _ in 0..1_100 {
        add(&pending, "a", "w", Duration::ZERO).await;
    }
    let lines = std::fs::read_to_string(&path).unwrap().lines().count();
    assert!(lines < 200, "{lines}");
    assert!(stored(10, &path).contains(&key("a")));
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn a_journal_brings_back_what_was_not_confirmed() {
    let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
    let open = || stored(2, &path);
    let first = with_journal(2, &path);
    add(&first, "a", "w1", Duration::ZERO).await;
    add(&first, "b", "w2", Duration::from_secs(9)).await;
    let item = first.batch(2).into_iter().find(|item| item.key == key("a")).unwrap();
    first.confirm(&item);
    settled(&first).await;
    let second = open();
    assert_eq!(second.batch(2).len(), 1);
    assert_eq!(second.batch(2)[0].linger, Duration::from_secs(9));
    first.confirm(&first.batch(2)[0]);
    settled(&first).await;
    assert!(open().is_empty());
    add(&first, "c", "w3", Duration::ZERO).await;
    first.add_all().await;
    assert!(open().contains(&key("unrelated")));
    std::fs::remove_file(&path).unwrap();
}

#[tokio::test]
async fn a_journal_brings_back_the_slots_that_were_not_confirmed() {
    let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
    let open = || stored(1, &path);
    let first = with_journal(1, &path);
    add(&first, "a", "w1", Duration::ZERO).await;
    add(&first, "b", "w2", Duration::ZERO).await;
    settled(&first).await;
    assert_eq!(open().due_purge_all().unwrap().slots, SlotSet::of_name(b"job_status:b"));
    let task = first.add_all().await;
    let mine = SlotSet::of_name(b"job_status:dead");
    first.confirm_slots(&SlotSet::ALL.difference(&mine), &task);
    settled(&first).await;
    assert_eq!(open().due_purge_all().unwrap().slots, mine);
    // Enough records to have the journal rewritten.
    for _ in 0..1_100 {
        add(&first, "a", "w", Duration::ZERO).await;
    }
    assert_eq!(open().due_purge_all().unwrap().slots, mine);
    first.confirm_slots(&mine, &task);
    settled(&first).await;
    assert!(open().due_purge_all().is_none() && open().contains(&key("a")));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_journal_of_an_earlier_version_and_one_that_is_damaged_lose_nothing() {
    let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
    let read = |lines: &str| {
        std::fs::write(&path, lines).unwrap();
        with_journal(9, &path).slots()
    };
    let (added, confirmed) = (r#"{"event":"all_added"}"#, r#"{"event":"all_confirmed"}"#);
    assert_eq!(read(&format!("{added}\n")), 16_384);
    assert_eq!(read(&format!("{added}\n{confirmed}\n")), 0);
    assert_eq!(read("{\"event\":\"slots_added\",\"ranges\":[[0,9],[20,20]]}\n"), 11);
    assert_eq!(read("{\"event\":\"slots_added\",\"ranges\":[[0,16384]]}\n"), 16_384);
    let none = r#"{"event":"slots_confirmed","ranges":[[9,1]]}"#;
    assert_eq!(read(&format!("{added}\n{none}\n")), 16_384);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_leaves_a_sibling_is_bypassed_until_the_next_scan() {
    let pending = PendingSet::new(10);
    let key = Key::new("job_status:", "a");
    let records = vec![Record::added(key.main(), "w", Duration::ZERO)];
    let live = || SiblingState::Live(LiveRecords::replay(records.clone()));
    pending.bypass_siblings(vec![(0, SiblingState::Empty), (1, live())]);
    // The process of the first has adopted it after its own file was read.
    pending.bypass_siblings(vec![(0, SiblingState::Empty), (1, SiblingState::Empty)]);
    assert!(pending.contains(&key));
    pending.bypass_siblings(vec![(0, live()), (1, SiblingState::Empty)]);
    assert!(pending.contains(&key));
    pending.bypass_siblings(vec![(0, SiblingState::Empty), (1, SiblingState::Empty)]);
    pending.bypass_siblings(vec![(0, SiblingState::Empty), (1, SiblingState::Empty)]);
    assert!(!pending.contains(&key) && pending.is_empty());
}
