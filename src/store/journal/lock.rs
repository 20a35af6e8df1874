//! The lock of a journal: one process writes a file, and the lock ends with that process.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Number of processes that may share one setting: `<path>`, and `<path>.1` to `<path>.15`.
pub(super) const MAX_PROCESSES: usize = 16;

/// Result of an attempt to lock a journal.
#[derive(Debug)]
pub(super) enum LockOutcome {
    /// The lock lasts as long as the file is open.
    Locked(File),
    /// Another process holds the lock.
    Taken,
    /// There is no such file, and it was not to be created.
    Absent,
}

/// Whether to create a file that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Create,
    Skip,
}

/// Returns the path of the n-th journal of a setting.
pub(super) fn numbered(path: &Path, number: usize) -> PathBuf {
    if number == 0 { path.to_owned() } else { with_suffix(path, &number.to_string()) }
}

/// Appends a dot and a suffix to the whole file name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Opens a journal and locks it, without waiting.
pub(super) fn lock(path: &Path, missing: Missing) -> io::Result<LockOutcome> {
    let create = missing == Missing::Create;
    let opened = OpenOptions::new().read(true).append(true).create(create).open(path);
    let file = match opened {
        Err(error) if error.kind() == ErrorKind::NotFound && !create => {
            return Ok(LockOutcome::Absent);
        }
        other => other?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(LockOutcome::Taken),
        Err(TryLockError::Error(error)) => {
            let advice = "a journal needs a file system with file locks; use a local one";
            return Err(io::Error::new(error.kind(), format!("{error} ({advice})")));
        }
    }
    // A rewrite puts another file in place, which its process locked before. The lock of the old
    // file means nothing.
    Ok(if is_at(&file, path)? { LockOutcome::Locked(file) } else { LockOutcome::Taken })
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
