//! The journal of unconfirmed invalidations, so that they survive a restart of the sidecar.
//!
//! One JSON object per line, appended and synced before the write is answered. Confirmations are
//! appended without a sync: a lost one costs one more invalidation. The file is emptied whenever
//! nothing is pending, and rewritten when it has grown long. A last line that was cut off by a
//! crash is ignored, because its write was never answered; any other unreadable line makes every
//! job pending, because it may have named any job.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};
use tracing::warn;

use crate::throttle::Throttle;

/// How long an answer waits for the disk.
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);
/// Lines per pending key past which the file is rewritten, and the lines that it may always have.
const REWRITE_LINES: (usize, usize) = (4, 1024);

/// An open journal.
///
/// Records are queued in the order in which they are given and written by one blocking task at a
/// time. A caller waits for the disk only if it asks to.
pub struct Journal {
    shared: Arc<JournalShared>,
    /// Number of the last queued batch that is on the disk or given up.
    done: watch::Receiver<u64>,
    warnings: Throttle,
}

struct JournalShared {
    path: PathBuf,
    file: Mutex<File>,
    queue: Mutex<JournalQueue>,
    done: watch::Sender<u64>,
    warnings: Throttle,
}

#[derive(Debug, Default)]
struct JournalQueue {
    records: Vec<Record>,
    /// The records are the whole state: the file is rewritten.
    rewrite: bool,
    /// Whether a caller waits for these records to be on the disk.
    sync: bool,
    /// Lines of the file once all of this is written.
    lines: usize,
    /// Number of batches that were queued.
    count: u64,
    /// Whether a task is writing.
    writing: bool,
}

/// A change of the pending set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event", deny_unknown_fields)]
pub enum Record {
    /// A key became pending.
    Added {
        /// The main key.
        key: String,
        /// The write that set the fence to lift.
        write: String,
        /// How long the fence lingers.
        linger_ms: u64,
    },
    /// The store has confirmed a key.
    Confirmed {
        /// The main key.
        key: String,
    },
    /// Every key became pending.
    AllAdded,
    /// The store has confirmed a purge of all, and no slot is pending any more.
    AllConfirmed,
    /// Every key of some slots became pending.
    SlotsAdded {
        /// First and last slot of each contiguous range.
        ranges: Vec<(u16, u16)>,
    },
    /// The store has confirmed a purge of all in some slots.
    SlotsConfirmed {
        /// First and last slot of each contiguous range.
        ranges: Vec<(u16, u16)>,
    },
}

impl Record {
    /// Returns the record of a key that became pending.
    pub fn added(key: &str, write: &str, linger: Duration) -> Self {
        let linger_ms = u64::try_from(linger.as_millis()).unwrap_or(u64::MAX);
        Self::Added { key: key.into(), write: write.into(), linger_ms }
    }
}

impl Journal {
    /// Opens a journal, creating the file if there is none, and reads its records. A partial last
    /// line is truncated, so that the next record does not join it.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<Record>)> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let (records, complete) = read(BufReader::new(&file))?;
        if file.metadata()?.len() > complete {
            file.set_len(complete)?;
        }
        let (sender, done) = watch::channel(0);
        let queue = JournalQueue { lines: records.len(), ..JournalQueue::default() };
        let shared = JournalShared {
            path: path.to_owned(),
            file: Mutex::new(file),
            queue: Mutex::new(queue),
            done: sender,
            warnings: Throttle::default(),
        };
        let journal = Self { shared: Arc::new(shared), done, warnings: Throttle::default() };
        Ok((journal, records))
    }

    /// Queues records. [`Journal::synced`] with the returned number waits until they are on the
    /// disk.
    pub fn append(&self, records: impl IntoIterator<Item = Record>, sync: Durability) -> u64 {
        self.enqueue(records, sync, false)
    }

    /// Queues a rewrite of the file, which then holds only these records.
    pub fn rewrite(&self, records: impl IntoIterator<Item = Record>, sync: Durability) -> u64 {
        self.enqueue(records, sync, true)
    }

    /// Returns whether the file is much longer than this many pending keys need.
    pub fn is_long(&self, keys: usize) -> bool {
        self.shared.queue().lines > REWRITE_LINES.1 + REWRITE_LINES.0 * keys
    }

    fn enqueue(
        &self,
        records: impl IntoIterator<Item = Record>,
        sync: Durability,
        rewrite: bool,
    ) -> u64 {
        let mut queue = self.shared.queue();
        if rewrite {
            queue.rewrite = true;
            queue.lines = 0;
            queue.records.clear();
        }
        let before = queue.records.len();
        queue.records.extend(records);
        queue.lines += queue.records.len() - before;
        queue.sync |= sync == Durability::Awaited;
        queue.count += 1;
        if !std::mem::replace(&mut queue.writing, true) {
            let shared = Arc::clone(&self.shared);
            tokio::task::spawn_blocking(move || shared.write_all());
        }
        queue.count
    }

    /// Waits until this batch is on the disk. A disk that fails or is slow is logged: the
    /// invalidation is then pending in memory only, and the answer goes out.
    pub async fn synced(&self, count: u64) {
        let mut done = self.done.clone();
        if timeout(SYNC_TIMEOUT, done.wait_for(|done| *done >= count)).await.is_err()
            && let Some(suppressed) = self.warnings.admit("")
        {
            warn!(
                path = %self.shared.path.display(),
                suppressed,
                "the journal did not reach the disk in time; answering without it"
            );
        }
    }
}

impl JournalShared {
    /// Writes until nothing is queued.
    fn write_all(&self) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (records, rewrite, sync, count) = {
                let mut queue = self.queue();
                if queue.records.is_empty() && !queue.rewrite {
                    queue.writing = false;
                    self.done.send_replace(queue.count);
                    return;
                }
                let records = std::mem::take(&mut queue.records);
                let rewrite = std::mem::take(&mut queue.rewrite);
                let sync = std::mem::take(&mut queue.sync);
                (records, rewrite, sync, queue.count)
            };
            if let Err(error) = self.write_some(&mut file, &records, rewrite, sync) {
                // Lost records come back with the next rewrite, which is due now.
                self.queue().lines = usize::MAX / 2;
                if let Some(suppressed) = self.warnings.admit(&error.to_string()) {
                    warn!(%error, path = %self.path.display(), suppressed, "cannot write the journal");
                }
            }
            self.done.send_replace(count);
        }
    }

    fn write_some(
        &self,
        file: &mut File,
        records: &[Record],
        rewrite: bool,
        sync: bool,
    ) -> io::Result<()> {
        if rewrite && records.is_empty() {
            return file.set_len(0);
        }
        if rewrite {
            if let Ok(new_file) = self.write_new_file(records) {
                *file = new_file;
                return Ok(());
            }
            // The folder may not be writable, or the file may be a mount of its own.
            file.set_len(0)?;
        }
        write(file, records)?;
        if sync || rewrite { file.sync_data() } else { Ok(()) }
    }

    /// Writes a new file and renames it once it is complete, so that a crash leaves the old file or
    /// the new one.
    fn write_new_file(&self, records: &[Record]) -> io::Result<File> {
        let new_path = self.path.with_extension("new");
        let _ = std::fs::remove_file(&new_path);
        let mut file = OpenOptions::new().append(true).create_new(true).open(&new_path)?;
        write(&mut file, records)?;
        file.sync_data()?;
        std::fs::rename(&new_path, &self.path)?;
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            // The new file is in place even if this fails.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(file)
    }

    fn queue(&self) -> MutexGuard<'_, JournalQueue> {
        // No code that holds the lock panics half-way through a change.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a caller waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A caller waits.
    Awaited,
    /// No caller waits: a lost record costs one more invalidation.
    Lazy,
}

fn write(file: &mut File, records: &[Record]) -> io::Result<()> {
    let mut lines = Vec::new();
    for record in records {
        serde_json::to_writer(&mut lines, record)?;
        lines.push(b'\n');
    }
    // One write, so that a crash cuts off at most the last line.
    file.write_all(&lines)
}

/// Returns the records, and the number of bytes up to the end of the last complete line.
fn read(mut file: impl BufRead) -> io::Result<(Vec<Record>, u64)> {
    let mut complete = 0;
    let mut records = Vec::new();
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        match serde_json::from_slice(&line) {
            _ if !line.ends_with(b"\n") => break,
            Ok(record) => records.push(record),
            Err(error) => {
                warn!(
                    %error,
                    "a line of the journal cannot be read; every job is bypassed until a purge of all"
                );
                records.push(Record::AllAdded);
            }
        }
        complete += line.len() as u64;
        line.clear();
    }
    Ok((records, complete))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(key: &str) -> Record {
        Record::added(key, "w", Duration::from_secs(1))
    }

    #[test]
    fn a_line_cut_off_is_forgotten_and_a_damaged_one_stands_for_every_job() {
        let mut lines = Vec::new();
        for record in [added("a"), Record::AllConfirmed] {
            serde_json::to_writer(&mut lines, &record).unwrap();
            lines.push(b'\n');
        }
        let whole = lines.clone();
        lines.extend_from_slice(br#"{"event":"added","key":"b""#);
        assert_eq!(read(&lines[..]).unwrap().0, [added("a"), Record::AllConfirmed]);
        let damaged = [&b"{\"event\":\n"[..], &whole].concat();
        let expected = [Record::AllAdded, added("a"), Record::AllConfirmed];
        assert_eq!(read(&damaged[..]).unwrap().0, expected);
    }

    #[tokio::test]
    async fn what_was_appended_is_read_back_until_it_is_cleared() {
        let dir = std::env::temp_dir().join(format!("jobcache-journal-{}", fastrand::u64(..)));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("pending.journal");
        let (journal, records) = Journal::open(&path).unwrap();
        assert_eq!(records, []);
        journal.append([added("a"), added("b")], Durability::Awaited);
        let confirmed = || Record::Confirmed { key: "a".into() };
        journal.synced(journal.append([confirmed()], Durability::Lazy)).await;
        let (journal, records) = Journal::open(&path).unwrap();
        assert_eq!(records, [added("a"), added("b"), confirmed()]);
        journal.synced(journal.rewrite([added("b")], Durability::Lazy)).await;
        journal.synced(journal.append([added("c")], Durability::Awaited)).await;
        assert_eq!(Journal::open(&path).unwrap().1, [added("b"), added("c")]);
        // A crash in the middle of a line.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"event\":").unwrap();
        let (journal, records) = Journal::open(&path).unwrap();
        assert_eq!(records, [added("b"), added("c")]);
        journal.synced(journal.append([added("d")], Durability::Awaited)).await;
        assert_eq!(Journal::open(&path).unwrap().1, [added("b"), added("c"), added("d")]);
        journal.synced(journal.rewrite([], Durability::Lazy)).await;
        assert_eq!(Journal::open(&path).unwrap().1, []);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
