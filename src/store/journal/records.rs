//! The lines of a journal: a header that names its store and prefix, then one record each.

use std::{
    collections::HashMap,
    io::{self, BufRead},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::store::{Key, Token, slots::SlotSet};

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

    /// Returns the record of slots that became pending.
    pub(in crate::store) fn slots_added(slots: &SlotSet) -> Self {
        if *slots == SlotSet::ALL {
            Self::AllAdded
        } else {
            Self::SlotsAdded { ranges: slots.ranges() }
        }
    }
}

/// The store and the prefix that a journal belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JournalOwner {
    /// Address of the store, without user and password.
    pub store: String,
    /// Prefix of the keys.
    pub prefix: String,
}

/// The first line of a file that is not empty. Versions without headers take it for a damaged line,
/// and so for every job.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
enum Header {
    Journal(JournalOwner),
}

/// The content of a journal.
#[derive(Debug, Default)]
pub(super) struct JournalContent {
    /// `None` in an empty file and in one of a version without headers.
    pub(super) owner: Option<JournalOwner>,
    pub(super) records: Vec<Record>,
    /// Number of bytes up to the end of the last complete line.
    pub(super) complete: u64,
}

/// The unconfirmed part of a journal: everything that was added and not confirmed.
#[derive(Debug)]
pub(crate) struct LiveRecords {
    /// Keys, each with the ends of writes in order: the write, and how long its fence lingers.
    pub(crate) keys: HashMap<Key, Vec<(Token, Duration)>>,
    /// Slots of which every key is pending.
    pub(in crate::store) slots: SlotSet,
}

impl LiveRecords {
    pub(crate) fn replay(records: Vec<Record>) -> Self {
        let mut live = Self { keys: HashMap::new(), slots: SlotSet::NONE };
        for record in records {
            match record {
                Record::Added { key, write, linger_ms } => {
                    let linger = Duration::from_millis(linger_ms);
                    let key = Key(key.into());
                    let write = Token(write.into());
                    let ends = live.keys.entry(key).or_default();
                    // A later end of the same write replaces the one before.
                    ends.pop_if(|(before, _)| *before == write);
                    ends.push((write, linger));
                }
                Record::Confirmed { key } => {
                    live.keys.remove(&Key(key.into()));
                }
                Record::AllAdded => live.slots = SlotSet::ALL,
                // Unreadable ranges may have named any slot.
                Record::SlotsAdded { ranges } => {
                    live.slots.insert_all(&SlotSet::from_ranges(&ranges).unwrap_or(SlotSet::ALL));
                }
                Record::AllConfirmed => live.slots = SlotSet::NONE,
                Record::SlotsConfirmed { ranges } => {
                    let confirmed = SlotSet::from_ranges(&ranges).unwrap_or(SlotSet::NONE);
                    live.slots = live.slots.difference(&confirmed);
                }
            }
        }
        live
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.slots.is_empty()
    }
}

/// Returns records as lines, after a header if there is one to write.
pub(super) fn encode(header: Option<&JournalOwner>, records: &[Record]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    if let Some(owner) = header {
        serde_json::to_writer(&mut lines, &Header::Journal(owner.clone()))?;
        lines.push(b'\n');
    }
    for record in records {
        serde_json::to_writer(&mut lines, record)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Reads every complete line.
pub(super) fn read(mut file: impl BufRead) -> io::Result<JournalContent> {
    let mut content = JournalContent::default();
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        if !line.ends_with(b"\n") {
            break;
        }
        let is_first = content.complete == 0;
        content.complete += line.len() as u64;
        match serde_json::from_slice(&line) {
            Ok(Header::Journal(owner)) if is_first => content.owner = Some(owner),
            _ => content.records.push(record(&line)),
        }
        line.clear();
    }
    Ok(content)
}

fn record(line: &[u8]) -> Record {
    serde_json::from_slice(line).unwrap_or_else(|error| {
        warn!(
            %error,
            "a line of the journal cannot be read; every job is bypassed until a purge of all"
        );
        Record::AllAdded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(key: &str) -> Record {
        Record::added(key, "w", Duration::from_secs(1))
    }

    #[test]
    fn a_line_cut_off_is_forgotten_and_a_damaged_one_stands_for_every_job() {
        let whole = encode(None, &[added("a"), Record::AllConfirmed]).unwrap();
        let cut = [&whole[..], br#"{"event":"added","key":"b""#].concat();
        let content = read(&cut[..]).unwrap();
        assert_eq!(content.records, [added("a"), Record::AllConfirmed]);
        assert_eq!(content.complete, whole.len() as u64);
        let damaged = [&b"{\"event\":\n"[..], &whole].concat();
        let expected = [Record::AllAdded, added("a"), Record::AllConfirmed];
        assert_eq!(read(&damaged[..]).unwrap().records, expected);
    }

    #[test]
    fn a_header_names_the_owner_and_is_read_only_where_a_file_begins() {
        let owner = JournalOwner { store: "redis://a".into(), prefix: "p:".into() };
        let whole = encode(Some(&owner), &[added("a")]).unwrap();
        let content = read(&whole[..]).unwrap();
        assert_eq!(
            (content.owner.as_ref(), &content.records[..]),
            (Some(&owner), &[added("a")][..])
        );
        let twice = [&whole[..], &whole].concat();
        assert_eq!(read(&twice[..]).unwrap().records, [added("a"), Record::AllAdded, added("a")]);
        let old = read(&encode(None, &[added("a")]).unwrap()[..]).unwrap();
        assert_eq!((old.owner, &old.records[..]), (None, &[added("a")][..]));
    }

    #[test]
    fn what_was_confirmed_is_not_live() {
        let slots = |ranges: &[(u16, u16)]| Record::SlotsConfirmed { ranges: ranges.to_vec() };
        let records = vec![
            Record::added("a", "w1", Duration::from_secs(9)),
            added("b"),
            Record::AllAdded,
            Record::Confirmed { key: "b".into() },
            Record::added("a", "w2", Duration::ZERO),
            slots(&[(1, 16_383)]),
        ];
        let live = LiveRecords::replay(records);
        assert_eq!(live.slots.ranges(), [(0, 0)]);
        let ends = live.keys[&Key("a".into())].iter();
        let ends: Vec<_> = ends.map(|(write, linger)| (write.as_str(), linger.as_secs())).collect();
        assert_eq!((live.keys.len(), &ends[..]), (1, &[("w1", 9), ("w2", 0)][..]));
    }
}
