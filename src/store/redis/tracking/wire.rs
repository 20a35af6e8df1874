//! The socket of a tracking connection: commands out, values in.

use std::io;

use bytes::{Buf as _, BytesMut};
use redis::{Cmd, FromRedisValue, Value, ValueCodec, from_redis_value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::codec::Decoder as _;

use crate::{store::errors::StoreError, transport::ClientStream};

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

    pub(super) async fn call<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, StoreError> {
        self.send(&command.get_packed_command()).await?;
        loop {
            match self.next()? {
                Some(Value::Push { .. }) => {}
                Some(Value::ServerError(error)) => {
                    return Err(StoreError::Refused(error.to_string()));
                }
                Some(value) => {
                    return from_redis_value(value)
                        .map_err(|error| StoreError::Refused(error.to_string()));
                }
                None => self.fill().await?,
            }
        }
    }

    /// Flushes as well, because TLS may hold back the last bytes until then.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.stream.write_all(bytes).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)
    }

    /// Reads more bytes from the socket.
    pub(super) async fn fill(&mut self) -> Result<(), StoreError> {
        match self.stream.read_buf(&mut self.read_buffer).await {
            Ok(0) => Err(StoreError::Lost("the server closed the tracking connection".into())),
            Ok(_) => Ok(()),
            Err(error) => Err(lost(error)),
        }
    }

    /// The next value that has been read completely.
    pub(super) fn next(&mut self) -> Result<Option<Value>, StoreError> {
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

#[allow(clippy::needless_pass_by_value, reason = "it is passed to `map_err`")]
fn lost(error: io::Error) -> StoreError {
    StoreError::Lost(error.to_string())
}
