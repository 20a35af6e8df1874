//! What one of each thing costs Redis.

use serde_json::{Value, json};

/// Microseconds of its main thread for one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    /// Where it waits for each: the event loop wakes up, and lies down again.
    pub(crate) alone: f64,
    /// Where it never waits.
    pub(crate) together: f64,
}

/// Microseconds of its main thread, and bytes of its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Costs {
    /// A round of the read barrier.
    pub(crate) ping: Op,
    /// `MGET` and `PEXPIRETIME` in one pipeline.
    pub(crate) lookup: Op,
    /// The scripts.
    pub(crate) lease: Op,
    pub(crate) fill: Op,
    pub(crate) end: Op,
    /// Whether it is still the master, and what time it is.
    pub(crate) probe: Op,
    /// A key that a round carries: read, and remembered for who is to be told of it.
    pub(crate) remember: f64,
    /// Telling one client of the first name in a turn of the event loop.
    pub(crate) send: f64,
    /// And of each further name in the same turn.
    pub(crate) name: f64,
    /// Telling one client of a key that it has read.
    pub(crate) key_send: f64,
    /// To remember a client that has read a key: one of many, and the only one.
    pub(crate) item_bytes: f64,
    pub(crate) lone_item_bytes: f64,
    /// An entry with a body of 600 bytes.
    pub(crate) entry_bytes: f64,
    /// A connection.
    pub(crate) client_bytes: f64,
}

impl Op {
    /// With Redis so busy, from 0 to 1.
    pub(crate) fn at(self, busy: f64) -> f64 {
        let busy = busy.clamp(0.0, 1.0);
        self.alone * (1.0 - busy) + self.together * busy
    }

    fn json(self) -> Value {
        json!({ "alone_us": self.alone, "together_us": self.together })
    }
}

impl Default for Costs {
    /// As measured last (benches/README.md).
    fn default() -> Self {
        let op = |alone, together| Op { alone, together };
        Self {
            ping: op(30.5, 7.10),
            lookup: op(34.9, 10.1),
            lease: op(64.9, 18.1),
            fill: op(81.4, 25.5),
            end: op(83.5, 30.8),
            probe: op(43.2, 9.26),
            remember: 0.63,
            send: 4.741,
            name: 0.050,
            key_send: 5.536,
            item_bytes: 50.8,
            lone_item_bytes: 99.1,
            entry_bytes: 1_619.0,
            client_bytes: 38_222.0,
        }
    }
}

impl Costs {
    pub(crate) fn json(&self) -> Value {
        json!({
            "ping": self.ping.json(), "lookup": self.lookup.json(), "lease": self.lease.json(),
            "fill": self.fill.json(), "end": self.end.json(), "probe": self.probe.json(),
            "remember_us": self.remember, "send_us": self.send, "name_us": self.name,
            "key_send_us": self.key_send, "item_bytes": self.item_bytes,
            "lone_item_bytes": self.lone_item_bytes, "entry_bytes": self.entry_bytes,
            "client_bytes": self.client_bytes,
        })
    }
}
