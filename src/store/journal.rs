//! The journal of unconfirmed invalidations, so that they survive a restart of the sidecar.
//!
//! One JSON object per line, appended and synced before the write is answered. The first line names
//! the store and the prefix (`JournalOwner`). Confirmations are appended without a sync: a lost one
//! costs one more invalidation. The file is emptied whenever nothing is pending, and rewritten when
//! it has grown long. A last line that was cut off by a crash is ignored, because its write was
//! never answered; any other unreadable line makes every job pending, because it may have named any
//! job.
//!
//! A process locks its file. Another one with the same setting takes `<path>.1`, and so on; each
//! reads what the others have not confirmed, and takes it over when they end
//! (`journal/siblings.rs`).

pub(super) mod records;
pub(super) mod siblings;

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tracing::warn;

use self::{
    records::{JournalOwner, Record, encode, read},
    siblings::{MAX_PROCESSES, Siblings, lock, numbered},
};
use crate::observe::throttle::Throttle;

/// How long an answer waits for the disk.
const SYNC_TIMEOUT: Duration = Duration::from_secs(1);
/// Lines per pending key past which the file is rewritten, and the lines that it may always have.
const REWRITE_LINES: (usize, usize) = (4, 1024);
/// Number of lines with which a file is rewritten, however many keys are pending.
const REWRITE_DUE: usize = usize::MAX / 2;

/// An open journal.
///
/// Records are queued in the order in which they are given and written by one blocking task at a
/// time. A caller waits for the disk only if it asks to.
pub struct Journal {
    path: PathBuf,
    owner: JournalOwner,
    /// Holds the lock of the journal.
    file: Mutex<File>,
    queue: Mutex<JournalQueue>,
    /// Number of the last queued batch that is on the disk or given up.
    done: watch::Sender<u64>,
    /// Number of the last batch that was given up.
    failed: AtomicU64,
    slow_disk: Throttle,
    warnings: Throttle,
}

#[derive(Debug, Default)]
struct JournalQueue {
    batch: JournalBatch,
    /// Lines of the file once all of this is written.
    lines: usize,
    /// Number of batches that were queued.
    count: u64,
    /// Whether a task is writing.
    writing: bool,
}

#[derive(Debug, Default)]
struct JournalBatch {
    records: Vec<Record>,
    /// The records are the whole state: the file is rewritten.
    rewrite: bool,
    /// Whether a caller waits for these records to be on the disk.
    sync: bool,
}

/// A journal that was opened.
pub(super) struct OpenedJournal {
    pub(super) journal: Arc<Journal>,
    /// Records that this process, or one before it, has left in the file.
    pub(super) records: Vec<Record>,
    pub(super) siblings: Siblings,
}

impl Journal {
    /// Opens and locks the first journal of this path that no other process holds, creating the
    /// file if there is none, and reads its records. A partial last line is truncated, so that the
    /// next record does not join it.
    pub(super) fn open(path: &Path, owner: &JournalOwner) -> io::Result<OpenedJournal> {
        for number in 0..MAX_PROCESSES {
            let numbered = numbered(path, number);
            let opened = Self::open_one(&numbered, owner).map_err(|error| {
                let text = format!("{}: {error}", numbered.display());
                if number == 0 { error } else { io::Error::new(error.kind(), text) }
            })?;
            if let Some((journal, records)) = opened {
                let siblings = Siblings::new(path, number, owner.clone());
                return Ok(OpenedJournal { journal: Arc::new(journal), records, siblings });
            }
        }
        Err(io::Error::other(format!(
            "at most {MAX_PROCESSES} processes share a journal, and this file and its siblings up to .{} \
             are locked or belong to another store or prefix; give this process another pending.journal",
            MAX_PROCESSES - 1
        )))
    }

    /// Returns `None` if another process has the file, or if it belongs to another store or prefix.
    fn open_one(path: &Path, owner: &JournalOwner) -> io::Result<Option<(Self, Vec<Record>)>> {
        let Some(file) = lock(path, OpenOptions::new().create(true))? else { return Ok(None) };
        let content = read(BufReader::new(&file))?;
        if !owner.owns(&content) && !content.records.is_empty() {
            if let Some(other) = &content.owner {
                other.warn_of_foreign(path, owner);
            }
            return Ok(None);
        }
        let keep = if content.records.is_empty() { 0 } else { content.complete };
        if file.metadata()?.len() > keep {
            file.set_len(keep)?;
        }
        let has_header = content.owner.is_some() || content.records.is_empty();
        // A file of an older version is rewritten with the next record, and gets its header then.
        let lines = if has_header { content.records.len() } else { REWRITE_DUE };
        let queue = JournalQueue { lines, ..JournalQueue::default() };
        let journal = Self {
            path: path.to_owned(),
            owner: owner.clone(),
            file: Mutex::new(file),
            queue: Mutex::new(queue),
            done: watch::Sender::new(0),
            failed: AtomicU64::new(0),
            slow_disk: Throttle::default(),
            warnings: Throttle::default(),
        };
        Ok(Some((journal, content.records)))
    }

    /// Returns the path of the file that this process writes.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Queues records. [`Journal::synced`] with the returned number waits until they are on the
    /// disk.
    pub fn append(self: &Arc<Self>, records: Vec<Record>, sync: Durability) -> u64 {
        self.enqueue(records, sync, false)
    }

    /// Queues a rewrite of the file, which then holds only these records.
    pub fn rewrite(self: &Arc<Self>, records: Vec<Record>, sync: Durability) -> u64 {
        self.enqueue(records, sync, true)
    }

    /// Returns whether the file is much longer than this many pending keys need.
    pub fn is_long(&self, keys: usize) -> bool {
        self.queue().lines > REWRITE_LINES.1 + REWRITE_LINES.0 * keys
    }

    fn enqueue(self: &Arc<Self>, records: Vec<Record>, sync: Durability, rewrite: bool) -> u64 {
        let mut queue = self.queue();
        if rewrite {
            queue.batch.rewrite = true;
            queue.lines = 0;
            queue.batch.records.clear();
        }
        queue.lines += records.len();
        queue.batch.records.extend(records);
        queue.batch.sync |= sync == Durability::Awaited;
        queue.count += 1;
        if !std::mem::replace(&mut queue.writing, true) {
            let journal = Arc::clone(self);
            tokio::task::spawn_blocking(move || journal.write_all());
        }
        queue.count
    }

    /// Waits until this batch is on the disk, and returns whether it is. A disk that fails or is
    /// slow is logged: the invalidation is then pending in memory only, and the answer goes out.
    pub async fn synced(&self, count: u64) -> bool {
        let mut done = self.done.subscribe();
        let in_time = timeout(SYNC_TIMEOUT, done.wait_for(|done| *done >= count)).await.is_ok();
        if !in_time && let Some(suppressed) = self.slow_disk.admit("") {
            warn!(
                path = %self.path.display(),
                suppressed,
                "the journal did not reach the disk in time; answering without it"
            );
        }
        in_time && self.failed.load(Ordering::Acquire) < count
    }

    /// Writes until nothing is queued.
    fn write_all(&self) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut queue = self.queue();
            let (batch, count) = (std::mem::take(&mut queue.batch), queue.count);
            if batch.records.is_empty() && !batch.rewrite {
                queue.writing = false;
                self.done.send_replace(count);
                return;
            }
            drop(queue);
            if let Err(error) = self.write_batch(&mut file, &batch) {
                self.failed.store(count, Ordering::Release);
                // Lost records come back with the next rewrite, which is due now.
                self.queue().lines = REWRITE_DUE;
                if let Some(suppressed) = self.warnings.admit(&error.to_string()) {
                    warn!(%error, path = %self.path.display(), suppressed, "cannot write the journal");
                }
            }
            self.done.send_replace(count);
        }
    }

    fn write_batch(&self, file: &mut File, batch: &JournalBatch) -> io::Result<()> {
        let JournalBatch { records, rewrite, sync } = batch;
        if *rewrite && records.is_empty() {
            return file.set_len(0);
        }
        if *rewrite {
            if let Ok(new_file) = self.write_new_file(records) {
                *file = new_file;
                return Ok(());
            }
            // The folder may not be writable, or the file may be a mount of its own.
            file.set_len(0)?;
        }
        self.write(file, records)?;
        if *sync || *rewrite { file.sync_data() } else { Ok(()) }
    }

    /// Writes a new file and renames it once it is complete, so that a crash leaves the old file or
    /// the new one.
    fn write_new_file(&self, records: &[Record]) -> io::Result<File> {
        let new_path = self.path.with_added_extension("new");
        let _ = std::fs::remove_file(&new_path);
        let mut file = OpenOptions::new().append(true).create_new(true).open(&new_path)?;
        // Locked before it is in place, so that the journal is never without a lock.
        file.try_lock()?;
        self.write(&mut file, records)?;
        file.sync_data()?;
        std::fs::rename(&new_path, &self.path)?;
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            // The new file is in place even if this fails.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        Ok(file)
    }

    fn write(&self, file: &mut File, records: &[Record]) -> io::Result<()> {
        let is_empty = file.metadata()?.len() == 0;
        // One append, so that a crash leaves at most one partial line, at the end.
        file.write_all(&encode(is_empty.then_some(&self.owner), records)?)
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

/// Returns the records of a file without locking it.
#[cfg(test)]
pub(super) fn records_at(path: &Path) -> Vec<Record> {
    read(BufReader::new(File::open(path).unwrap())).unwrap().records
}

#[cfg(test)]
mod tests;
