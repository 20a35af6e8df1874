//! Counts of what was judged, to show that a run was not vacuous.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    callers::Caller,
    faults::Fault,
    record::{History, How, Kind, Read},
    spelling::Spelling,
};

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) reads: usize,
    pub(super) hits: usize,
    pub(super) collapsed: usize,
    pub(super) stored: usize,
    /// By held polls and streams.
    pub(super) held: usize,
    pub(super) failed_reads: usize,
    pub(super) dropped_reads: usize,
    /// Callers with a hit.
    pub(super) callers: BTreeSet<Caller>,
    /// Hits whose body names the caller.
    pub(super) personal_hits: usize,
    /// Acknowledged writes through sidecars, committed before the head of their answers.
    pub(super) puts: usize,
    pub(super) puts_in_body: usize,
    /// Both, by spelling.
    pub(super) spelled: BTreeMap<Spelling, usize>,
    pub(super) purges: usize,
    pub(super) dels: usize,
    /// Writes without an answer that are floors nevertheless.
    pub(super) gone: usize,
    /// Exempt: floors for their own sidecar only.
    pub(super) unconfirmed: usize,
    pub(super) unsure_in_body: usize,
    /// Exempt: not floors.
    pub(super) gone_unfenced: usize,
    pub(super) never_committed: usize,
    /// Reads and writes through sidecars that have joined.
    pub(super) guests_reads: usize,
    pub(super) guests_writes: usize,
    pub(super) faults: BTreeMap<Fault, usize>,
}

impl Counts {
    /// Counts what needs no judgement.
    pub(super) fn of(history: &History) -> Self {
        let mut counts = Self {
            reads: history.reads.len(),
            failed_reads: history.failed_reads,
            dropped_reads: history.dropped_reads,
            ..Self::default()
        };
        for trouble in &history.troubles {
            *counts.faults.entry(trouble.fault).or_default() += 1;
        }
        let by_guests = history.writes.iter();
        let by_guests = by_guests.filter(|write| write.process.sidecar >= history.residents);
        counts.guests_writes = by_guests.count();
        counts
    }

    pub(super) fn add_read(&mut self, read: &Read, residents: u8) {
        match read.how {
            How::Hit => {
                self.hits += 1;
                self.callers.insert(read.caller);
                self.personal_hits += usize::from(read.view.is_some());
            }
            How::Collapsed => self.collapsed += 1,
            How::Stored => self.stored += 1,
            How::Held => self.held += 1,
            How::Miss | How::Pass => {}
        }
        self.guests_reads += usize::from(read.process.sidecar >= residents);
    }

    pub(super) fn add_acknowledged(&mut self, kind: Kind, in_body: bool) {
        match kind {
            Kind::Put(spelling) => {
                *self.spelled.entry(spelling).or_default() += 1;
                *if in_body { &mut self.puts_in_body } else { &mut self.puts } += 1;
            }
            Kind::Purge => self.purges += 1,
            Kind::Del => self.dels += 1,
        }
    }

    pub(super) fn joins(&self) -> usize {
        self.faults.get(&Fault::Joined).copied().unwrap_or(0)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = 100 * self.hits / self.reads.max(1);
        writeln!(
            f,
            "  reads {} (hits {} = {ratio} %, collapsed {}, stored {}), failed {}, hung up {}",
            self.reads,
            self.hits,
            self.collapsed,
            self.stored,
            self.failed_reads,
            self.dropped_reads
        )?;
        writeln!(
            f,
            "  callers with hits {}, hits of a body that names its caller {}",
            self.callers.len(),
            self.personal_hits
        )?;
        writeln!(
            f,
            "  acknowledged: PUT {}, PUT in body {}, purge {}, DEL {}; unanswered but fenced {}",
            self.puts, self.puts_in_body, self.purges, self.dels, self.gone
        )?;
        writeln!(f, "  spellings of acknowledged PUTs: {:?}", self.spelled)?;
        writeln!(
            f,
            "  exempt: invalidation-pending or 503 {}, unsure in body {}, \
             unanswered and not fenced {}; never committed {}",
            self.unconfirmed, self.unsure_in_body, self.gone_unfenced, self.never_committed
        )?;
        writeln!(
            f,
            "  joins {}, with {} reads and {} writes through who joined",
            self.joins(),
            self.guests_reads,
            self.guests_writes
        )?;
        write!(f, "  faults: {:?}", self.faults)
    }
}
