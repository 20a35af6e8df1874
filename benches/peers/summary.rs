//! Tables, ratios and bars from the samples of all rounds.

use serde_json::{Map, Value, json};

use crate::{
    cell::{CELLS, Cell, Work},
    plot::{Bar, Panel},
    roster::LIMIT,
    round::{Memory, Sample},
    stats::{median, quantile},
    table::{Table, number},
};

/// Peers with which the others are compared, round by round.
const RIVALS: [&str; 4] = ["haproxy", "nginx", "nginx-sendfile", LIMIT];

/// A sample with its round, load and peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundSample {
    pub(crate) round: usize,
    pub(crate) cell: Cell,
    pub(crate) peer: &'static str,
    pub(crate) ours: bool,
    pub(crate) sample: Sample,
}

/// All measurements.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) taken: Vec<RoundSample>,
    pub(crate) memory: Vec<(&'static str, Memory)>,
    /// Number of jobs in the memory measurement.
    pub(crate) jobs: usize,
}

impl Summary {
    /// Renders one table per load, then the latency added by a miss and a write, then memory.
    pub(crate) fn tables(&self) -> String {
        let mut sections: Vec<(String, Table)> =
            self.cells().map(|cell| (cell.to_string(), self.table(cell))).collect();
        for work in [Work::Miss, Work::Write] {
            let title = format!("latency that a {} adds, 8 connections", work.as_str());
            sections.extend(self.added(work).map(|table| (title, table)));
        }
        if !self.memory.is_empty() {
            let title = format!("memory, idle and with {} jobs of 600 B", self.jobs);
            sections.push((title, self.memory_table()));
        }
        let text =
            |(title, table): &(String, Table)| format!("\n### {title}\n\n{}", table.render());
        sections.iter().map(text).collect()
    }

    fn table(&self, cell: Cell) -> Table {
        let mut table = Table::new(&[
            "peer",
            "requests/s",
            "p50 ms",
            "p99 ms",
            "CPU-s/100k",
            "CPU of Redis",
            "CPU / haproxy",
            "/ nginx",
            "/ nginx-sendfile",
            "/ hyper",
            "MiB",
        ]);
        for peer in self.peers(cell) {
            let middle = |of: fn(&Sample) -> f64| number(median(&self.values(cell, peer, of)));
            let mut row = vec![
                peer.to_owned(),
                middle(|sample| sample.requests_per_second),
                middle(|sample| sample.p50_ms),
                middle(|sample| sample.p99_ms),
                middle(|sample| sample.cpu),
                middle(|sample| sample.cpu_redis),
            ];
            row.extend(
                RIVALS.iter().map(|rival| {
                    number(median(&self.ratios(cell, peer, rival, |sample| sample.cpu)))
                }),
            );
            row.push(middle(|sample| sample.memory_mib));
            table.row(row);
        }
        table
    }

    /// Returns the medians of the difference between each round's p50 and the upstream's p50 in the
    /// same round.
    fn added(&self, work: Work) -> Option<Table> {
        let cell = self.cells().find(|cell| cell.work == work && cell.connections == 8)?;
        let mut table = Table::new(&["peer", "p50 ms", "added ms"]);
        for peer in self.peers(cell).into_iter().filter(|peer| *peer != LIMIT) {
            let pairs = self.pairs(cell, peer, LIMIT);
            let added: Vec<f64> =
                pairs.iter().map(|(own, bare)| own.p50_ms - bare.p50_ms).collect();
            let p50 = self.values(cell, peer, |sample| sample.p50_ms);
            table.row(vec![peer.to_owned(), number(median(&p50)), number(median(&added))]);
        }
        Some(table)
    }

    fn memory_table(&self) -> Table {
        let mut table =
            Table::new(&["peer", "idle MiB", "full MiB", "Redis idle MiB", "Redis full MiB"]);
        for (peer, memory) in &self.memory {
            let Memory { idle, full, redis_idle, redis_full } = *memory;
            let mut row = vec![(*peer).to_owned()];
            let all = [idle, full, redis_idle, redis_full];
            row.extend(all.map(|mib| number((mib > 0.0).then_some(mib))));
            table.row(row);
        }
        table
    }

    /// Returns every sample, and the medians and ratios of the tables with their spread.
    pub(crate) fn json(&self) -> Value {
        let cells: Map<String, Value> = self
            .cells()
            .map(|cell| {
                let peers = self.peers(cell).into_iter();
                let peers: Map<String, Value> =
                    peers.map(|peer| (peer.to_owned(), self.peer_json(cell, peer))).collect();
                (cell.to_string(), Value::Object(peers))
            })
            .collect();
        let memory: Map<String, Value> =
            self.memory.iter().map(|(peer, memory)| ((*peer).to_owned(), json!(memory))).collect();
        json!({ "cells": cells, "memory": memory, "jobs_in_memory": self.jobs })
    }

    fn peer_json(&self, cell: Cell, peer: &str) -> Value {
        let samples: Vec<Sample> = self.of(cell, peer).map(|taken| taken.sample).collect();
        let ratios: Map<String, Value> = RIVALS
            .iter()
            .map(|rival| {
                let spread = |of: fn(&Sample) -> f64| spread(&self.ratios(cell, peer, rival, of));
                let ratios = json!({
                    "cpu": spread(|sample| sample.cpu),
                    "requests_per_second": spread(|sample| sample.requests_per_second),
                    "p50": spread(|sample| sample.p50_ms),
                    "p99": spread(|sample| sample.p99_ms),
                });
                ((*rival).to_owned(), ratios)
            })
            .collect();
        json!({ "rounds": samples, "ratio_to": ratios })
    }

    /// Returns the bars: cost on the left, latency on the right.
    pub(crate) fn panels(&self) -> Vec<Panel> {
        self.cells()
            .flat_map(|cell| {
                [
                    self.panel(cell, "CPU-seconds / 100,000 requests", |sample| sample.cpu),
                    self.panel(cell, "p99 in ms", |sample| sample.p99_ms),
                ]
            })
            .collect()
    }

    fn panel(&self, cell: Cell, what: &str, of: fn(&Sample) -> f64) -> Panel {
        let bar = |peer: &'static str| {
            let value = median(&self.values(cell, peer, of))?;
            let ours = self.of(cell, peer).any(|taken| taken.ours);
            Some(Bar { label: peer.to_owned(), value, ours })
        };
        let bars = self.peers(cell).into_iter().filter_map(bar).collect();
        Panel { title: format!("{cell}: {what}"), bars }
    }

    fn cells(&self) -> impl Iterator<Item = Cell> {
        CELLS.into_iter().filter(|cell| self.taken.iter().any(|taken| taken.cell == *cell))
    }

    /// Returns the peers in the order of the roster, which is the order of the first round.
    fn peers(&self, cell: Cell) -> Vec<&'static str> {
        self.taken
            .iter()
            .filter(|taken| taken.cell == cell && taken.round == 0)
            .map(|taken| taken.peer)
            .collect()
    }

    fn of(&self, cell: Cell, peer: &str) -> impl Iterator<Item = &RoundSample> {
        self.taken.iter().filter(move |taken| taken.cell == cell && taken.peer == peer)
    }

    fn values(&self, cell: Cell, peer: &str, of: fn(&Sample) -> f64) -> Vec<f64> {
        self.of(cell, peer).map(|taken| of(&taken.sample)).collect()
    }

    /// Returns the ratios of two peers, round by round: other load on the machine affects both.
    fn ratios(&self, cell: Cell, peer: &str, rival: &str, of: fn(&Sample) -> f64) -> Vec<f64> {
        let pairs = self.pairs(cell, peer, rival);
        pairs.iter().map(|(own, other)| of(own) / of(other)).collect()
    }

    fn pairs(&self, cell: Cell, peer: &str, rival: &str) -> Vec<(Sample, Sample)> {
        let partner = |taken: &RoundSample| {
            let other = self.of(cell, rival).find(|other| other.round == taken.round)?;
            Some((taken.sample, other.sample))
        };
        self.of(cell, peer).filter_map(partner).collect()
    }
}

fn spread(values: &[f64]) -> Value {
    json!({ "median": median(values), "min": quantile(values, 0.0), "max": quantile(values, 1.0) })
}
