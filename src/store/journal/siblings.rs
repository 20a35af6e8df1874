//! The journals of other processes with the same setting, and the locks that tell whether a process
//! lives: one process writes a file, and the lock ends with that process.
//!
//! While its process lives, a sibling is only read. Once its lock is free its process has ended,
//! and its records can be taken over. A sibling that names another store is never emptied: its
//! records are invalidated here as well, in case it is the same store under another name, and stay
//! in the file. The keys of another prefix are not ours.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufReader, ErrorKind},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tracing::{info, warn};

use super::records::{JournalContent, JournalOwner, LiveRecords, read};
use crate::observe::throttle::HourlyPerName;

/// Number of processes that may share one setting: `<path>`, and `<path>.1` to `<path>.15`.
pub(super) const MAX_PROCESSES: usize = 16;

/// Returns the path of the n-th journal of a setting.
pub(super) fn numbered(path: &Path, number: usize) -> PathBuf {
    if number == 0 { path.to_owned() } else { path.with_added_extension(number.to_string()) }
}

/// Opens a journal and locks it for as long as the file is open; `None` if another process holds
/// the lock.
pub(super) fn lock(path: &Path, options: &mut OpenOptions) -> io::Result<Option<File>> {
    let file = options.read(true).append(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => {
            let advice = "a journal needs a file system with file locks; use a local one";
            return Err(io::Error::new(error.kind(), format!("{error} ({advice})")));
        }
    }
    // A rewrite puts another file in place, which its process locked before. The lock of the old
    // file means nothing.
    Ok(is_at(&file, path)?.then_some(file))
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads the siblings of one journal.
pub(crate) struct Siblings {
    path: PathBuf,
    /// Number of our own journal.
    own: usize,
    owner: JournalOwner,
    /// State of each file when it was last read.
    stamps: [Option<FileStamp>; MAX_PROCESSES],
    warnings: HourlyPerName,
}

/// State of a sibling.
#[derive(Debug)]
pub(crate) enum SiblingState {
    /// Nothing that concerns this process.
    Empty,
    /// Not changed since it was last read, or not readable now.
    Unchanged,
    /// Records of a process that lives.
    Live(LiveRecords),
    /// Records of a process that has ended.
    Ended(LiveRecords, EndedJournal),
}

/// The journal of a process that has ended, locked by this one.
#[derive(Debug)]
pub(crate) struct EndedJournal {
    path: PathBuf,
    file: File,
    is_ours: bool,
}

/// Identity, length and time of change of a file.
type FileStamp = (u64, u64, i64, i64);

impl EndedJournal {
    /// Empties the file, now that its records are in another journal, and releases the lock. A
    /// journal of another store or prefix stays as it is.
    pub(crate) fn empty(self) {
        if !self.is_ours {
            return;
        }
        let path = self.path.display();
        match self.file.set_len(0) {
            Ok(()) => info!(%path, "took over the journal of a process that has ended"),
            Err(error) => warn!(
                %error,
                %path,
                "cannot empty the journal of a process that has ended; its jobs are invalidated again and again"
            ),
        }
    }
}

impl Siblings {
    pub(super) fn new(path: &Path, own: usize, owner: JournalOwner) -> Self {
        let warnings = HourlyPerName::default();
        Self { path: path.to_owned(), own, owner, stamps: [None; MAX_PROCESSES], warnings }
    }

    /// Makes the next scan read every sibling, whether it has changed or not.
    pub(crate) fn forget_scan(&mut self) {
        self.stamps = [None; MAX_PROCESSES];
    }

    /// Reads every sibling that may have changed. Blocks on the disk.
    pub(crate) fn scan(&mut self) -> Vec<(usize, SiblingState)> {
        let own = self.own;
        let others = (0..MAX_PROCESSES).filter(|number| *number != own);
        others.map(|number| (number, self.scan_one(number))).collect()
    }

    fn scan_one(&mut self, number: usize) -> SiblingState {
        let path = numbered(&self.path, number);
        match self.look(number, &path) {
            Ok(state) => state,
            Err(error) if error.kind() == ErrorKind::NotFound => SiblingState::Empty,
            Err(error) => {
                if self.warnings.admits(&path.to_string_lossy()) {
                    warn!(%error, path = %path.display(), "cannot read the journal of another process");
                }
                SiblingState::Unchanged
            }
        }
    }

    fn look(&mut self, number: usize, path: &Path) -> io::Result<SiblingState> {
        let file = std::fs::metadata(path)?;
        if file.len() == 0 {
            return Ok(SiblingState::Empty);
        }
        let stamp: FileStamp = (file.ino(), file.len(), file.mtime(), file.mtime_nsec());
        let is_unchanged = self.stamps[number] == Some(stamp);
        let locked = lock(path, &mut OpenOptions::new())?;
        if is_unchanged && locked.is_none() {
            return Ok(SiblingState::Unchanged);
        }
        let content = match &locked {
            Some(file) => read(BufReader::new(file))?,
            None => read(BufReader::new(File::open(path)?))?,
        };
        let is_ours = self.owner.owns(&content);
        if is_unchanged && !is_ours {
            return Ok(SiblingState::Unchanged);
        }
        self.stamps[number] = Some(stamp);
        let live = self.live(path, content);
        let path = path.to_owned();
        Ok(match locked {
            Some(file) => SiblingState::Ended(live, EndedJournal { path, file, is_ours }),
            None => SiblingState::Live(live),
        })
    }

    /// Returns the records that concern this process.
    fn live(&self, path: &Path, content: JournalContent) -> LiveRecords {
        let is_ours = self.owner.owns(&content);
        let JournalContent { owner, records, .. } = content;
        let live = LiveRecords::replay(records);
        let Some(owner) = owner.filter(|_| !is_ours && !live.is_empty()) else { return live };
        if self.warnings.admits(&path.to_string_lossy()) {
            owner.warn_of_foreign(path, &self.owner);
        }
        if owner.prefix == self.owner.prefix { live } else { LiveRecords::replay(Vec::new()) }
    }
}

impl JournalOwner {
    /// Whether records are for this store and prefix. Those without a header are of an older
    /// version.
    pub(super) fn owns(&self, content: &JournalContent) -> bool {
        content.owner.as_ref().is_none_or(|owner| owner == self)
    }

    pub(super) fn warn_of_foreign(&self, path: &Path, ours: &Self) {
        warn!(
            path = %path.display(),
            store = self.store,
            prefix = self.prefix,
            our_store = ours.store,
            our_prefix = ours.prefix,
            "a journal of another store or prefix is left as it is; start a sidecar with its store \
             and prefix to have its invalidations confirmed, or delete the file"
        );
    }
}
