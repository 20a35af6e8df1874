//! The scopes of the checker's runs.

use super::{faults::Fault, flaws::Flaw};

/// The clients, the faults that may happen, and the flaw of the protocol.
#[allow(clippy::struct_excessive_bools, reason = "each switches one kind of step on")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// GETs, through either sidecar. [`Run::probe`](super::run::Run::probe) stands for further ones.
    pub(super) readers: usize,
    /// Writes. The first is through sidecar 0, because the sidecars are alike.
    pub(super) writes: usize,
    pub(super) has_purge: bool,
    /// Whether the purge is one of all jobs.
    pub(super) purges_all: bool,
    /// Whether the sidecars have near entries.
    pub(super) near: bool,
    /// Whether readers may send `no-cache`, and so replace an entry.
    pub(super) no_cache: bool,
    /// Whether the upstream may send a response that may not be stored.
    pub(super) unstorable: bool,
    pub(super) faults: [Option<Fault>; 2],
    pub(super) flaw: Option<Flaw>,
}

impl Scope {
    /// Two sidecars with two readers, a write and a purge.
    pub(super) const BASE: Self = Self {
        readers: 2,
        writes: 1,
        has_purge: true,
        purges_all: false,
        near: false,
        no_cache: false,
        unstorable: false,
        faults: [None, None],
        flaw: None,
    };

    pub(super) fn has_fault(&self, fault: Fault) -> bool {
        self.faults.contains(&Some(fault))
    }

    /// Adds one fault.
    pub(super) const fn with(self, fault: Fault) -> Self {
        Self { faults: [Some(fault), None], ..self }
    }

    /// Adds two faults, which may be the same one twice.
    pub(super) const fn with_both(self, one: Fault, other: Fault) -> Self {
        Self { faults: [Some(one), Some(other)], ..self }
    }
}

/// A scope of the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) scope: Scope,
    /// Whether it belongs to the run of about a minute.
    pub(super) is_quick: bool,
}

/// The scopes that are explored to the end.
pub(super) fn rows() -> Vec<Row> {
    let base = Scope { unstorable: true, ..Scope::BASE };
    let near = Scope { near: true, ..Scope::BASE };
    let no_cache = Scope { no_cache: true, ..Scope::BASE };
    let mut rows = vec![
        Row { name: "base".to_owned(), scope: base, is_quick: true },
        Row { name: "base, near entries".to_owned(), scope: near, is_quick: true },
        Row { name: "base, no-cache".to_owned(), scope: no_cache, is_quick: false },
    ];
    let of_all = Scope { writes: 0, purges_all: true, ..Scope::BASE };
    let mut row = |clients: &str, scope, is_quick| {
        rows.push(Row { name: format!("purge of all{clients}"), scope, is_quick });
    };
    row("", of_all, true);
    row(", near entries", Scope { near: true, ..of_all }, true);
    row(", no-cache", Scope { no_cache: true, ..of_all }, true);
    row(", a write", Scope { writes: 1, ..of_all }, true);
    for fault in Fault::ALL {
        let one = Scope { readers: 1, near: true, ..of_all };
        row(&format!(", {}, near entries", fault.name()), one.with(fault), true);
        row(&format!(", {}", fault.name()), of_all.with(fault), true);
    }
    rows.extend(Fault::ALL.into_iter().flat_map(singles));
    for (number, one) in Fault::ALL.into_iter().enumerate() {
        rows.extend(Fault::ALL[number + 1..].iter().flat_map(|other| pairs(one, *other)));
    }
    rows
}

/// One fault. A server that begins another life has by far the most states, so that the short run has
/// no write for it.
fn singles(fault: Fault) -> [Row; 4] {
    let row = |clients: &str, scope: Scope, is_quick: bool| {
        let name = format!("{}{clients}", fault.name());
        Row { name, scope: scope.with(fault), is_quick }
    };
    let one = Scope { readers: 1, ..Scope::BASE };
    let is_large = matches!(fault, Fault::RestartFromSnapshot | Fault::Promotion);
    [
        row("", Scope::BASE, false),
        row(", one reader", one, !is_large),
        row(", one reader, near entries", Scope { near: true, ..one }, false),
        row(", no write", Scope { writes: 0, ..Scope::BASE }, is_large),
    ]
}

/// Two faults.
fn pairs(one: Fault, other: Fault) -> [Row; 2] {
    let row = |clients: &str, scope: Scope| {
        let name = format!("{} and {}{clients}", one.name(), other.name());
        Row { name, scope: scope.with_both(one, other), is_quick: false }
    };
    [
        row(", one reader", Scope { readers: 1, ..Scope::BASE }),
        row(", no write", Scope { writes: 0, ..Scope::BASE }),
    ]
}
