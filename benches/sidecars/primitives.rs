//! Costs of each sidecar operation on a bare Redis, as CPU time of its main thread in nanoseconds
//! (`/proc/<pid>/task/<pid>/schedstat`).

mod bare;
mod broadcast;
mod keys;
mod plain;

use std::collections::BTreeMap;

use crate::{
    Result,
    interrupt::Interrupt,
    model::costs::{Costs, Op},
    stats::median,
    table::{Table, number},
};

use self::bare::Bare;

/// Microseconds or bytes by operation, with one sample per round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured(BTreeMap<String, Vec<f64>>);

/// Measures all primitives, `rounds` times in turn.
pub(crate) async fn measure(rounds: u32, interrupt: &Interrupt) -> Result<Measured> {
    let mut measured = Measured::default();
    for round in 1..=rounds {
        println!("primitives, round {round}");
        plain::measure(&mut Bare::start()?, &mut measured)?;
        interrupt.check()?;
        broadcast::measure(&mut Bare::start()?, &mut measured, interrupt).await?;
        keys::measure(&mut measured, interrupt).await?;
    }
    Ok(measured)
}

impl Measured {
    fn add(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    fn of(&self, name: &str) -> f64 {
        self.0.get(name).and_then(|samples| median(samples)).unwrap_or_default()
    }

    /// Returns the costs for the model; fan-outs are taken from the measurement with a hundred
    /// clients.
    pub(crate) fn costs(&self) -> Costs {
        let plain = |name: &str| Op {
            alone: self.of(&format!("{name} alone")),
            together: self.of(&format!("{name} together")),
        };
        let send = self.of(&broadcast::name(100, 1));
        let names = self.of(&broadcast::name(100, 100));
        Costs {
            ping: plain("ping"),
            lookup: plain("lookup"),
            lease: plain("lease"),
            fill: plain("fill"),
            end: plain("end"),
            probe: plain("probe"),
            remember: self.of("remember"),
            send,
            name: ((100.0 * names - send) / 99.0).max(0.0),
            key_send: self.of(&keys::name(100)),
            item_bytes: self.of(&keys::bytes(100)),
            lone_item_bytes: self.of(&keys::bytes(1)),
            entry_bytes: self.of("entry bytes"),
            client_bytes: self.of("client bytes"),
        }
    }

    /// The body of a purge.
    ///
    /// Input: the body; or `*`, two bytes and an id, for a purge of many ids that consist of that
    /// id and a number.
    pub(crate) fn tables(&self) -> String {
        format!(
            "### primitives\n\n{}\n{}\n{}\n{}\n",
            self.plain().render(),
            self.broadcast().render(),
            self.keys().render(),
            self.limit()
        )
    }

    fn plain(&self) -> Table {
        let mut table = Table::new(&["Redis CPU, µs", "alone", "together"]);
        for name in plain::ALL {
            let cell = |how: &str| number(Some(self.of(&format!("{name} {how}"))));
            table.row(vec![name.to_owned(), cell("alone"), cell("together")]);
        }
        table
    }

    fn broadcast(&self) -> Table {
        let mut header = vec!["clients".to_owned()];
        header
            .extend(broadcast::NAMES.map(|names| format!("{names} per turn, µs/client and name")));
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let mut table = Table::new(&header);
        for clients in broadcast::CLIENTS {
            let cell = |names| format!("{:.3}", self.of(&broadcast::name(clients, names)));
            let mut row = vec![clients.to_string()];
            row.extend(broadcast::NAMES.map(cell));
            table.row(row);
        }
        table
    }

    fn keys(&self) -> Table {
        let mut table = Table::new(&[
            "clients that have read a key",
            "µs/notified client",
            "bytes/client and key",
        ]);
        for clients in keys::CLIENTS {
            table.row(vec![
                clients.to_string(),
                format!("{:.3}", self.of(&keys::name(clients))),
                number(Some(self.of(&keys::bytes(clients)))),
            ]);
        }
        table
    }

    fn limit(&self) -> String {
        format!(
            "Remembering a key that is read: {:.2} µs. If a client reads {} keys and the table may \
             hold {}, {:.0} are kept, the client is notified of {:.0} evictions, and the surplus \
             costs {:.2} µs per key. An entry with a body of 600 bytes takes {:.0} bytes, \
             and a connection {:.0}.\n",
            self.of("remember"),
            keys::READ,
            keys::LIMIT,
            self.of("limit kept"),
            self.of("limit told"),
            self.of("limit µs"),
            self.of("entry bytes"),
            self.of("client bytes"),
        )
    }
}
