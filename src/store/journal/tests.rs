use super::{siblings::SiblingState, *};

fn added(key: &str) -> Record {
    Record::added(key, "w", Duration::from_secs(1))
}

fn owner() -> JournalOwner {
    JournalOwner { store: "redis://here:6379/0".into(), prefix: "job_status:".into() }
}

/// A directory that is removed at the end, and the path of a journal in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("jobcache-journal-{}", fastrand::u64(..)));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, number: usize) -> PathBuf {
        numbered(&self.0.join("pending.journal"), number)
    }

    fn open(&self) -> OpenedJournal {
        Journal::open(&self.path(0), &owner()).unwrap()
    }

    fn read(&self, number: usize) -> Vec<Record> {
        records_at(&self.path(number))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn append(opened: &OpenedJournal, records: impl IntoIterator<Item = Record>) {
    assert!(
        opened
            .journal
            .synced(opened.journal.append(records.into_iter().collect(), Durability::Awaited))
            .await
    );
}

/// Ends a process: waits until the task that wrote for it has let go of the file.
async fn end(opened: OpenedJournal) {
    let shared = Arc::downgrade(&opened.journal);
    drop(opened);
    while shared.strong_count() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The state of one sibling.
fn state(siblings: &mut Siblings, number: usize) -> SiblingState {
    siblings.scan().into_iter().find(|(n, _)| *n == number).unwrap().1
}

#[tokio::test]
async fn what_was_appended_is_read_back_until_it_is_cleared() {
    let folder = Folder::new();
    let opened = folder.open();
    assert_eq!(opened.records, []);
    append(&opened, [added("a"), added("b")]).await;
    let confirmed = || Record::Confirmed { key: "a".into() };
    append(&opened, [confirmed()]).await;
    end(opened).await;
    let opened = folder.open();
    assert_eq!(opened.records, [added("a"), added("b"), confirmed()]);
    opened.journal.synced(opened.journal.rewrite(vec![added("b")], Durability::Lazy)).await;
    append(&opened, [added("c")]).await;
    assert_eq!(folder.read(0), [added("b"), added("c")]);
    end(opened).await;
    // A crash in the middle of a line.
    let path = folder.path(0);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"event\":").unwrap();
    let opened = folder.open();
    assert_eq!(opened.records, [added("b"), added("c")]);
    append(&opened, [added("d")]).await;
    assert_eq!(folder.read(0), [added("b"), added("c"), added("d")]);
    opened.journal.synced(opened.journal.rewrite(Vec::new(), Durability::Lazy)).await;
    assert_eq!(std::fs::read(&path).unwrap(), b"", "not even a header");
}

#[tokio::test]
async fn a_second_process_takes_the_next_file_and_the_seventeenth_is_refused() {
    let folder = Folder::new();
    let mut opened: Vec<_> = (0..MAX_PROCESSES).map(|_| folder.open()).collect();
    let paths: Vec<_> = opened.iter().map(|opened| opened.journal.path().to_owned()).collect();
    assert_eq!(paths, (0..MAX_PROCESSES).map(|n| folder.path(n)).collect::<Vec<_>>());
    let error = Journal::open(&folder.path(0), &owner()).err().unwrap().to_string();
    assert!(error.contains("16 processes") && error.contains("pending.journal"), "{error}");
    // A rewrite replaces the file; its lock stays.
    let fourth = &opened[3].journal;
    assert!(fourth.synced(fourth.rewrite(vec![added("a")], Durability::Awaited)).await);
    assert!(Journal::open(&folder.path(0), &owner()).is_err());
    end(opened.remove(3)).await;
    assert_eq!(folder.open().records, [added("a")]);
}

#[tokio::test]
async fn a_sibling_is_read_while_it_lives_and_taken_over_when_it_ends() {
    let folder = Folder::new();
    let (first, mut second) = (folder.open(), folder.open());
    assert!(matches!(state(&mut second.siblings, 0), SiblingState::Empty));
    append(&first, [added("a")]).await;
    let SiblingState::Live(live) = state(&mut second.siblings, 0) else { panic!("it lives") };
    assert_eq!(live.keys.len(), 1);
    assert!(matches!(state(&mut second.siblings, 0), SiblingState::Unchanged));
    append(&first, [added("b")]).await;
    assert!(matches!(state(&mut second.siblings, 0), SiblingState::Live(_)));
    end(first).await;
    let SiblingState::Ended(live, ended) = state(&mut second.siblings, 0) else {
        panic!("its lock is free")
    };
    assert_eq!((live.keys.len(), folder.read(0).len()), (2, 2));
    ended.empty();
    assert_eq!(std::fs::read(folder.path(0)).unwrap(), b"");
    assert!(matches!(state(&mut second.siblings, 0), SiblingState::Empty));
}

#[tokio::test]
async fn a_journal_of_another_store_or_prefix_keeps_its_records() {
    let folder = Folder::new();
    let elsewhere = JournalOwner { store: "redis://there:6379/0".into(), ..owner() };
    let other_keys = JournalOwner { prefix: "other:".into(), ..owner() };
    for other in [&elsewhere, &other_keys] {
        let opened = Journal::open(&folder.path(0), other).unwrap();
        append(&opened, [added("a")]).await;
        end(opened).await;
    }
    let mut ours = folder.open();
    assert_eq!((ours.journal.path(), ours.records.len()), (&*folder.path(2), 0));
    let taken = ours.siblings.scan().into_iter().filter_map(|(_, state)| match state {
        SiblingState::Ended(live, ended) => {
            ended.empty();
            Some(live.keys.len())
        }
        _ => None,
    });
    // The first may be the same store under another name. Keys of another prefix are not ours.
    assert_eq!(taken.collect::<Vec<_>>(), [1, 0]);
    assert_eq!((folder.read(0), folder.read(1)), (vec![added("a")], vec![added("a")]));
    assert!(matches!(state(&mut ours.siblings, 0), SiblingState::Unchanged), "taken over once");
}
