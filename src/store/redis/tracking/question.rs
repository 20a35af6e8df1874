//! What a round of the read barrier asks, and what is an answer to it.

use std::sync::Arc;

use redis::{Value, cmd};

use crate::store::{Redirect, StoreError, cluster::Slots};

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const PONG: &[u8] = b"+PONG\r\n";
/// What `DEL` says of a name that is not there.
const NOTHING: &[u8] = b":0\r\n";

/// What is asked in a round, and what the answer begins with.
///
/// A master of a cluster is asked to delete a name that is not there, of a slot that it owns by our map.
/// One that has lost the majority says `CLUSTERDOWN` to that, and one whose slots another has taken over
/// `MOVED`: neither is an answer. It is a write and not a read, so that one that lets reads through
/// while it is down (`cluster-allow-reads-when-down`) does not answer either, and one that is about to
/// hand over to its replica (`CLUSTER FAILOVER`) not before that has come to its end.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) bytes: Vec<u8>,
    pub(super) answer: &'static [u8],
    keyed: Option<Keyed>,
}

/// The name that is asked for, and how it is found.
#[derive(Debug)]
struct Keyed {
    name: String,
    prefix: String,
    slots: Arc<Slots>,
}

impl Question {
    pub(super) fn ping() -> Self {
        Self { bytes: PING.to_vec(), answer: PONG, keyed: None }
    }

    /// For a master of a cluster; `None` if it owns nothing.
    pub(super) fn keyed(slots: &Arc<Slots>, prefix: &str) -> Option<Self> {
        let name = slots.name(prefix, fastrand::u32(..))?;
        let bytes = cmd("DEL").arg(&name).get_packed_command();
        let keyed = Keyed { name, prefix: prefix.to_owned(), slots: Arc::clone(slots) };
        Some(Self { bytes, answer: NOTHING, keyed: Some(keyed) })
    }

    /// Asks for another name where the slot of this one has gone by our map.
    pub(super) fn keep_apt(&mut self) {
        if let Some(Keyed { name, prefix, slots }) = &self.keyed
            && !slots.own(name.as_bytes())
            && let Some(apt) = Self::keyed(slots, prefix)
        {
            *self = apt;
        }
    }

    /// Whether a reply is an answer that did not come as most do. A master that sends us after the name,
    /// which is nowhere, to where its slot is on its way is still the owner.
    pub(super) fn is_answered_by(&self, reply: &Value) -> bool {
        match reply {
            Value::SimpleString(pong) => self.keyed.is_none() && pong == "PONG",
            Value::Int(0 | 1) => self.keyed.is_some(),
            Value::ServerError(error) => self.keyed.is_some() && error.code() == "ASK",
            _ => false,
        }
    }
}

/// Why a reply is no answer.
pub(super) fn no_answer(reply: &Value) -> StoreError {
    match reply {
        Value::ServerError(error) if error.code() == "MOVED" => {
            StoreError::Redirected(Redirect::Moved)
        }
        Value::ServerError(error) if error.code() == "CLUSTERDOWN" => {
            StoreError::Redirected(Redirect::Down)
        }
        other => StoreError::Lost(format!("no answer: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_that_has_lost_the_slot_or_the_majority_does_not_answer() {
        let slots = Arc::<Slots>::default();
        assert!(Question::keyed(&slots, "p:").is_none(), "it owns nothing");
        slots.assign(|slot| slot < 5_000);
        let asked = Question::keyed(&slots, "p:").unwrap();
        let error = |line: &str| {
            let mut parser = redis::Parser::new();
            parser.parse_value(format!("-{line}\r\n").as_bytes()).unwrap()
        };
        for answer in [Value::Int(0), Value::Int(1), error("ASK 1 127.0.0.1:2")] {
            assert!(asked.is_answered_by(&answer), "{answer:?}");
            assert!(!Question::ping().is_answered_by(&answer), "{answer:?}");
        }
        for (line, redirect) in
            [("MOVED 1 127.0.0.1:2", Redirect::Moved), ("CLUSTERDOWN x", Redirect::Down)]
        {
            assert!(!asked.is_answered_by(&error(line)));
            let why = no_answer(&error(line));
            assert!(matches!(why, StoreError::Redirected(is) if is == redirect), "{line}");
        }
        assert!(!asked.is_answered_by(&error("LOADING")));
        assert!(matches!(no_answer(&error("LOADING")), StoreError::Lost(_)));
    }

    #[test]
    fn it_asks_for_what_the_master_still_owns() {
        let slots = Arc::<Slots>::default();
        slots.assign(|slot| slot < 5_000);
        let mut asked = Question::keyed(&slots, "p:").unwrap();
        let before = asked.bytes.clone();
        asked.keep_apt();
        assert_eq!(asked.bytes, before);
        slots.assign(|slot| slot >= 5_000);
        asked.keep_apt();
        assert_ne!(asked.bytes, before);
    }
}
