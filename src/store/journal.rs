//! The journal of unconfirmed invalidations, so that they survive a restart of the sidecar.
//!
//! One JSON object a line, appended and synced before the write is answered. What has been
//! confirmed is appended without a sync: forgotten, it costs one more invalidation. The file is
//! emptied whenever nothing is pending. A line that was cut off by a crash was never answered for;
//! any other that cannot be read makes every job pending, for it may have named any.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tracing::warn;

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Arc<Mutex<File>>,
}

/// What happened to the pending set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event", deny_unknown_fields)]
pub enum Record {
    /// A key became pending.
    Added {
        /// The main key.
        key: String,
        /// The write whose fence is to be lifted.
        write: String,
        /// How long its fence lingers.
        linger_ms: u64,
    },
    /// The store has confirmed a key.
    Confirmed {
        /// The main key.
        key: String,
    },
    /// Every key became pending.
    AllAdded,
    /// The store has confirmed a purge of all.
    AllConfirmed,
}

impl Record {
    /// A key became pending.
    pub fn added(key: &str, write: &str, linger: Duration) -> Self {
        let linger_ms = u64::try_from(linger.as_millis()).unwrap_or(u64::MAX);
        Self::Added { key: key.into(), write: write.into(), linger_ms }
    }
}

impl Journal {
    /// Opens a journal, made if there is none, and reads what it holds.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<Record>)> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let records = read(BufReader::new(&file))?;
        let journal = Self { path: path.to_owned(), file: Arc::new(Mutex::new(file)) };
        Ok((journal, records))
    }

    /// Appends records and waits until they are on the disk. A disk that fails is logged: the
    /// invalidation is then pending in memory only.
    pub async fn append_synced(&self, records: Vec<Record>) {
        let file = Arc::clone(&self.file);
        let written = tokio::task::spawn_blocking(move || {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            write(&mut file, &records)?;
            file.sync_data()
        });
        self.complain(written.await.unwrap_or_else(|error| Err(io::Error::other(error))));
    }

    /// Appends a record that may be lost.
    pub fn append(&self, record: &Record) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        self.complain(write(&mut file, std::slice::from_ref(record)));
    }

    /// Nothing is pending.
    pub fn clear(&self) {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        self.complain(file.set_len(0));
    }

    fn complain(&self, result: io::Result<()>) {
        if let Err(error) = result {
            warn!(%error, path = %self.path.display(), "cannot write the journal");
        }
    }
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

fn read(mut file: impl BufRead) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        match serde_json::from_slice(&line) {
            Ok(record) => records.push(record),
            Err(_) if !line.ends_with(b"\n") => break,
            Err(error) => {
                warn!(%error, "a line of the journal cannot be read; every job is bypassed until all are purged");
                records.push(Record::AllAdded);
            }
        }
        line.clear();
    }
    Ok(records)
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
        assert_eq!(read(&lines[..]).unwrap(), [added("a"), Record::AllConfirmed]);
        let damaged = [&b"{\"event\":\n"[..], &whole].concat();
        let expected = [Record::AllAdded, added("a"), Record::AllConfirmed];
        assert_eq!(read(&damaged[..]).unwrap(), expected);
    }

    #[tokio::test]
    async fn what_was_appended_is_read_back_until_it_is_cleared() {
        let dir = std::env::temp_dir().join(format!("jobcache-journal-{}", fastrand::u64(..)));
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("pending.journal");
        let (journal, records) = Journal::open(&path).unwrap();
        assert_eq!(records, []);
        journal.append_synced(vec![added("a"), added("b")]).await;
        journal.append(&Record::Confirmed { key: "a".into() });
        let confirmed = Record::Confirmed { key: "a".into() };
        let (journal, records) = Journal::open(&path).unwrap();
        assert_eq!(records, [added("a"), added("b"), confirmed]);
        journal.clear();
        assert_eq!(Journal::open(&path).unwrap().1, []);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
