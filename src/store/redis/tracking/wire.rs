//! The socket of a tracking connection, the command of a barrier round, and the replies that answer
//! it.

use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use redis::{Cmd, FromRedisValue, RedisError, Value, ValueCodec, cmd, from_redis_value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::codec::Decoder as _;

use crate::{
    store::{StoreError, errors::Result, slots::OwnedSlots},
    transport::ClientStream,
};

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const PONG: &[u8] = b"+PONG\r\n";
/// Reply of `DEL` for a missing name.
const NOTHING: &[u8] = b":0\r\n";

/// The command of a round, and the first bytes of its usual answer.
///
/// A master of a cluster is asked to delete a missing name in a slot that it owns in our slot map.
/// A master that has lost the majority replies `CLUSTERDOWN`, and a master that has lost its slots
/// to another replies `MOVED`; neither is an answer. The command is a write for two reasons: a
/// master that serves reads while the cluster is down (`cluster-allow-reads-when-down`) does not
/// answer it either, and a master that is about to hand over to its replica (`CLUSTER FAILOVER`)
/// answers only after the handover has ended.
pub(crate) struct Question {
    pub(super) bytes: Vec<u8>,
    pub(super) answer: &'static [u8],
    keyed: Option<Keyed>,
}

/// The name in the command, and how to choose another one.
struct Keyed {
    name: String,
    prefix: String,
    slots: Arc<OwnedSlots>,
}

impl Question {
    pub(crate) fn ping() -> Self {
        Self { bytes: PING.to_vec(), answer: PONG, keyed: None }
    }

    /// The question for a master of a cluster; `None` if it owns no slot.
    pub(crate) fn keyed(slots: &Arc<OwnedSlots>, prefix: &str) -> Option<Self> {
        let name = slots.name(prefix, "barrier", fastrand::u32(..))?;
        let bytes = cmd("DEL").arg(&name).get_packed_command();
        let keyed = Keyed { name, prefix: prefix.to_owned(), slots: Arc::clone(slots) };
        Some(Self { bytes, answer: NOTHING, keyed: Some(keyed) })
    }

    /// Chooses another name if the slot of this one has moved away in our slot map.
    pub(super) fn keep_owned_name(&mut self) {
        if let Some(Keyed { name, prefix, slots }) = &self.keyed
            && !slots.contains_name(name.as_bytes())
            && let Some(other) = Self::keyed(slots, prefix)
        {
            *self = other;
        }
    }

    /// Whether a reply is an unusual answer. A master that replies `ASK`, because the missing name
    /// may be where its slot is migrating to, is still the owner.
    pub(super) fn is_answered_by(&self, reply: &Value) -> bool {
        match reply {
            Value::SimpleString(pong) => self.keyed.is_none() && pong == "PONG",
            Value::Int(0 | 1) => self.keyed.is_some(),
            Value::ServerError(error) => self.keyed.is_some() && error.code() == "ASK",
            _ => false,
        }
    }
}

/// Error for a reply that is not an answer.
pub(super) fn no_answer(reply: Value) -> StoreError {
    match reply.extract_error() {
        Ok(other) => StoreError::Unusable(format!("not an answer: {other:?}")),
        Err(error) => error.into(),
    }
}

/// Capacity of the read buffer, in bytes.
const BUFFER: usize = 16 << 10;

pub(super) struct Wire {
    stream: ClientStream,
    codec: ValueCodec,
    read_buffer: BytesMut,
    /// Whether the codec has read a part of a value.
    is_mid_value: bool,
}

impl Wire {
    pub(super) fn new(stream: ClientStream) -> Self {
        Self {
            stream,
            codec: ValueCodec::default(),
            read_buffer: BytesMut::with_capacity(BUFFER),
            is_mid_value: false,
        }
    }

    pub(super) async fn call<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T> {
        self.send(&command.get_packed_command()).await?;
        loop {
            match self.next()? {
                Some(Value::Push { .. }) => {}
                Some(value) => {
                    return Ok(from_redis_value(value.extract_error()?).map_err(RedisError::from)?);
                }
                None => self.fill().await?,
            }
        }
    }

    /// Flushes as well, because TLS may hold back the last bytes until then.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Reads more bytes from the socket.
    pub(super) async fn fill(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.read_buffer).await? {
            0 => Err(StoreError::Lost("the server closed the tracking connection".into())),
            _ => Ok(()),
        }
    }

    /// The next value that has been read completely.
    pub(super) fn next(&mut self) -> Result<Option<Value>> {
        if self.read_buffer.is_empty() {
            return Ok(None);
        }
        let value = self.codec.decode(&mut self.read_buffer);
        let value = value.map_err(|error| StoreError::Lost(error.to_string()))?;
        self.is_mid_value = value.is_none();
        Ok(value)
    }

    /// Takes the answer to the round if it comes next. Most answers need no parser.
    pub(super) fn take_answer(&mut self, answer: &[u8]) -> bool {
        let answered = !self.is_mid_value && self.read_buffer.starts_with(answer);
        if answered {
            self.read_buffer.advance(answer.len());
        }
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Redirect, errors::StoreErrorKind};

    #[test]
    fn a_master_that_has_lost_the_slot_or_the_majority_does_not_answer() {
        let slots = Arc::<OwnedSlots>::default();
        assert!(Question::keyed(&slots, "p:").is_none(), "it owns nothing");
        slots.assign(|slot| slot < 5_000);
        let question = Question::keyed(&slots, "p:").unwrap();
        let error = |line: &str| {
            let mut parser = redis::Parser::new();
            parser.parse_value(format!("-{line}\r\n").as_bytes()).unwrap()
        };
        for answer in [Value::Int(0), Value::Int(1), error("ASK 1 127.0.0.1:2")] {
            assert!(question.is_answered_by(&answer), "{answer:?}");
            assert!(!Question::ping().is_answered_by(&answer), "{answer:?}");
        }
        for (line, redirect) in
            [("MOVED 1 127.0.0.1:2", Redirect::Moved), ("CLUSTERDOWN x", Redirect::Down)]
        {
            assert!(!question.is_answered_by(&error(line)));
            let reason = no_answer(error(line));
            assert!(matches!(reason, StoreError::Redirected(is) if is == redirect), "{line}");
        }
        assert!(!question.is_answered_by(&error("LOADING")));
        assert_eq!(no_answer(error("LOADING")).kind(), StoreErrorKind::Lost);
    }

    #[test]
    fn it_asks_for_what_the_master_still_owns() {
        let slots = Arc::<OwnedSlots>::default();
        slots.assign(|slot| slot < 5_000);
        let mut question = Question::keyed(&slots, "p:").unwrap();
        let before = question.bytes.clone();
        question.keep_owned_name();
        assert_eq!(question.bytes, before);
        slots.assign(|slot| slot >= 5_000);
        question.keep_owned_name();
        assert_ne!(question.bytes, before);
    }
}
