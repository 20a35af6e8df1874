//! Costs of single operations in Redis.

use serde_json::{Value, json};

/// CPU time of the main thread for one operation, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    /// Redis waits for each operation: the event loop wakes up and goes back to sleep.
    pub(crate) alone: f64,
    /// Redis never waits.
    pub(crate) together: f64,
}

/// CPU time of the main thread in microseconds, and memory in bytes.
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
    /// The health probe: the role of the server and its time.
    pub(crate) probe: Op,
    /// A key in a round of the barrier: reading it, and remembering the client to notify.
    pub(crate) remember: f64,
    /// Notifying one client of the first name in an event loop turn.
    pub(crate) send: f64,
    /// Notifying one client of a further name in the same turn.
    pub(crate) name: f64,
    /// Notifying one client of a key that it has read.
    pub(crate) key_send: f64,
    /// Memory for a client that has read a key: as one of many, and as the only one.
    pub(crate) item_bytes: f64,
    pub(crate) lone_item_bytes: f64,
    /// An entry with a body of 600 bytes.
    pub(crate) entry_bytes: f64,
    /// A connection.
    pub(crate) client_bytes: f64,
}

impl Op {
    /// Returns the cost at this utilisation of Redis, from 0 to 1.
    pub(crate) fn at(self, busy: f64) -> f64 {
        let busy = busy.clamp(0.0, 1.0);
        self.alone * (1.0 - busy) + self.together * busy
    }

    fn json(self) -> Value {
        json!({ "alone_us": self.alone, "together_us": self.together })
    }
}

impl Default for Costs {
    /// Returns the most recent measurements (benches/README.md).
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
