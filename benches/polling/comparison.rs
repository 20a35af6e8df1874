//! jobcache compared with an nginx microcache, with and without reports of changes.

use std::{process::Command, time::Duration};

use serde_json::{Value, json};

use crate::{
    outcome::{Outcome, percent},
    process,
    report::first_line,
    scenario::{Callers, Front, Notice, Play, SCENARIO},
    table::Table,
};

/// The rows of the table. nginx counts a TTL in whole seconds, so its 5 s last for 5 to 6 s.
const ROWS: [(&str, Play); 5] = [
    ("nginx microcache, 5 s", Play { front: Front::Microcache, ..unreported(5) }),
    ("jobcache, 5 s, no reports", unreported(5)),
    ("jobcache, 6 s, no reports", unreported(6)),
    ("jobcache, 300 s, writes through it", Play { notice: Notice::Write, ..REAL_TIME }),
    ("jobcache, 300 s, purges", REAL_TIME),
];

/// The columns of the table: the callers, and the number of jobs that the users watch.
const COLUMNS: [(Callers, usize); 4] = [
    (Callers::Anonymous, 20),
    (Callers::Partitioned, 20),
    (Callers::Anonymous, 100),
    (Callers::Partitioned, 100),
];

/// The scenario at real speed, because nginx knows no TTL below a second.
const REAL_TIME: Play = Play { factor: 1, ..SCENARIO };

const fn unreported(ttl_seconds: u64) -> Play {
    Play { ttl: Duration::from_secs(ttl_seconds), notice: Notice::Nothing, ..REAL_TIME }
}

/// Returns all plays, row by row.
pub(crate) fn plays() -> impl Iterator<Item = Play> {
    ROWS.into_iter()
        .flat_map(|(_, play)| COLUMNS.map(|(callers, jobs)| Play { jobs, callers, ..play }))
}

/// Renders saved polls and stale answers of these plays.
pub(crate) fn table(outcomes: &[Outcome], minutes: u32) -> String {
    let title = |(callers, jobs)| {
        let users = Play { jobs, ..SCENARIO }.users_a_job();
        format!("{}, {users} a job", Callers::as_str(callers))
    };
    let header = [vec!["polls saved, stale answers".to_owned()], COLUMNS.map(title).to_vec()];
    let header = header.concat();
    let mut table = Table::new(&header.iter().map(String::as_str).collect::<Vec<_>>());
    for ((label, _), outcomes) in ROWS.iter().zip(outcomes.chunks(COLUMNS.len())) {
        let cells = outcomes.iter().map(|outcome| {
            format!("{}, {}", percent(outcome.reduction()), percent(outcome.stale_percent()))
        });
        table.row([(*label).to_owned()].into_iter().chain(cells).collect());
    }
    format!("{} users, {minutes} min at real speed\n\n{}", SCENARIO.users, table.render())
}

/// Returns all figures.
pub(crate) fn json(outcomes: &[Outcome], machine: &Value) -> Value {
    let nginx = process::find("nginx").map(|nginx| first_line(Command::new(nginx).arg("-v")));
    let plays: Vec<Value> = outcomes.iter().map(Outcome::json).collect();
    json!({ "machine": machine, "nginx": nginx, "plays": plays })
}
