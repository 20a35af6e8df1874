//! The diagnosis of a server whose first exchange has failed.
//!
//! The error of that exchange seldom shows the reason: most such servers send one line and close the
//! connection, and a client that is writing at that moment sees only that it was closed. So a second
//! connection waits for the server to speak first, then sends small requests one by one, and reads the
//! replies itself. Nothing here is retried, and a server that works never gets a second connection.
//!
//! `dial.rs`, the supervisor and the sentinel client pass their first reply, or the error of the
//! handshake, through here. The remedies are in `diagnosis.rs`.

use std::{io, time::Duration};

use redis::{
    ErrorKind::{AuthenticationFailed, Parse},
    RedisError, RedisResult, cmd,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, AlertDescription as Alert, CertificateError, pki_types::ServerName},
};

use super::dial::{RedisAddress, Target, connect_tcp};
use crate::{
    store::{Diagnosis, StoreError, errors::Result},
    tls::{self, StrangeKey},
    transport::{ClientStream, Socket},
};

/// Time for a server to speak first. One that rejects our certificate needs longer: with TLS 1.3 it
/// does so after the handshake.
const GREETING: Duration = Duration::from_millis(50);
const REJECTION: Duration = Duration::from_millis(300);
/// Time for the reply to a request.
const ANSWER: Duration = Duration::from_millis(200);
/// Bytes of an answer that are read; those of `INFO` include its mode.
const MAX_ANSWER: usize = 2048;
/// Characters of an answer that are shown.
const MAX_SHOWN: usize = 80;

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const INFO: &[u8] = b"*1\r\n$4\r\nINFO\r\n";
/// Ends the head of a request to an HTTP server; nothing to Redis.
const EMPTY_LINE: &[u8] = b"\r\n\r\n";

/// The result of one attempt to receive something.
enum Received {
    Bytes(Vec<u8>),
    /// Nothing came in time.
    Nothing,
    /// The server closed the connection.
    Closed,
    /// The TLS connection broke.
    TlsFailed(io::Error),
}

impl Target {
    /// Explains the error if the first exchange on a connection has failed.
    pub(super) async fn first_reply<T>(&self, reply: RedisResult<T>) -> Result<T> {
        match reply {
            Ok(reply) => Ok(reply),
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn explain(&self, error: RedisError) -> StoreError {
        let is_vague = error.is_io_error()
            || error.is_connection_dropped()
            || matches!(error.kind(), Parse | AuthenticationFailed);
        let known = StoreError::from(error);
        // A sentinel does not know the command.
        let may_be_sentinel = matches!(known, StoreError::Denied(Diagnosis::UnknownCommand, _));
        if is_vague || may_be_sentinel {
            return self.with_login(self.probe().await.unwrap_or(known));
        }
        self.with_login(known)
    }

    /// Names the user of a login that failed, and a database that is not there.
    fn with_login(&self, error: StoreError) -> StoreError {
        use Diagnosis::{Acl, NoDatabase, NoLogin, NoPassword, WrongLogin};
        match error {
            StoreError::Denied(login @ (NoLogin | NoPassword | WrongLogin), said) => {
                let user = self.user();
                StoreError::Denied(login, format!("authentication failed for {user}: {said}"))
            }
            StoreError::Denied(Acl, said) => {
                StoreError::Denied(Acl, format!("{} lacks a right: {said}", self.user()))
            }
            // The words of the server are within those of the library.
            StoreError::Denied(NoDatabase, _) => {
                let said = format!("database {}: DB index is out of range", self.database());
                StoreError::Denied(NoDatabase, said)
            }
            error => error,
        }
    }

    /// Diagnoses the server over a new connection; `None` if it answers as Redis does.
    async fn probe(&self) -> Option<StoreError> {
        let mut stream = match self.open().await {
            Ok(stream) => stream,
            Err(error) => return Some(error),
        };
        let greeting = if self.tls.is_some() { REJECTION } else { GREETING };
        let mut received = receive(&mut stream, greeting).await;
        let mut has_replied = false;
        for request in self.requests().await {
            match self.check_received(received, has_replied).await {
                Ok(replied) => has_replied |= replied,
                Err(error) => return Some(error),
            }
            received = exchange(&mut stream, &request).await;
        }
        self.check_received(received, has_replied).await.err()
    }

    /// Returns the requests to send one by one. The password comes after the server has answered as Redis
    /// does.
    async fn requests(&self) -> Vec<Vec<u8>> {
        let login = self.login.connection_info().await.ok();
        let auth = login.as_ref().and_then(|login| {
            let mut auth = cmd("AUTH");
            auth.arg(login.username()).arg(login.password()?);
            Some(auth.get_packed_command())
        });
        [Some(PING.to_vec()), auth, Some(INFO.to_vec())].into_iter().flatten().collect()
    }

    /// Fails if the server is not one to use. Returns whether it has replied.
    async fn check_received(&self, received: Received, has_replied: bool) -> Result<bool> {
        let closed = |diagnosis, said: &str| {
            Err(StoreError::Denied(diagnosis, format!("{self} closes the connection {said}")))
        };
        match received {
            Received::Nothing => Ok(false),
            Received::Closed if has_replied => {
                closed(Diagnosis::Proxy, "at a command that every Redis knows")
            }
            Received::Closed if self.tls.is_none() && self.speaks_tls().await => {
                closed(Diagnosis::TlsServer, "at a command in plain text")
            }
            Received::Closed => closed(Diagnosis::Closes, "without an answer"),
            Received::TlsFailed(error) => Err(self.tls_error(&error).await),
            Received::Bytes(reply) => match self.check_reply(&reply) {
                // The password comes with the next request.
                Err(StoreError::Denied(Diagnosis::NoLogin, _))
                    if !has_replied && self.login.has_password() =>
                {
                    Ok(true)
                }
                checked => checked.map(|()| true),
            },
        }
    }

    /// Fails unless these bytes begin a reply of Redis that is no error.
    fn check_reply(&self, reply: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(reply);
        let line: String =
            text.lines().next().unwrap_or_default().chars().take(MAX_SHOWN).collect();
        let other = |diagnosis| {
            let shown = line.escape_debug();
            Err(StoreError::Denied(diagnosis, format!("{self} answers \"{shown}\"")))
        };
        match reply {
            [b'-', ..] => {
                let said = text.lines().next().unwrap_or_default().trim_start_matches('-');
                // The error of protected mode has a thousand characters.
                let said = said.split(". ").next().unwrap_or_default();
                let said = said.trim_end_matches('.').to_owned();
                Err(match Diagnosis::of(&said) {
                    Some(diagnosis) => StoreError::Denied(diagnosis, said),
                    None => StoreError::Refused(said),
                })
            }
            [b'+' | b'$' | b':' | b'*' | b'_' | b'%' | b'=', ..] => {
                if text.contains("_mode:sentinel") {
                    let said = format!("{self} answers as a sentinel");
                    return Err(StoreError::Denied(Diagnosis::Sentinel, said));
                }
                Ok(())
            }
            // An alert or a handshake (RFC 8446 5.1).
            [0x15 | 0x16, 0x03, ..] => {
                let said = format!("{self} does not accept plain text");
                Err(StoreError::Denied(Diagnosis::TlsServer, said))
            }
            [b'<', ..] | [b'H', b'T', b'T', b'P', b'/', ..] => other(Diagnosis::Http),
            _ => other(Diagnosis::NotRedis),
        }
    }

    /// Whether the server answers a handshake, whatever its certificate.
    async fn speaks_tls(&self) -> bool {
        let RedisAddress::Tcp(address) = &self.address else { return false };
        let Ok(name) = ServerName::try_from(address.host.to_string()) else { return false };
        let Ok(client) = tls::unverified_client() else { return false };
        let shaken = async {
            let socket = Socket::Left(connect_tcp(&address.host, address.port).await?);
            TlsConnector::from(client).connect(name, socket).await
        };
        match timeout(REJECTION, shaken).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => {
                let reason = tls_reason(&error);
                reason.is_some_and(|reason| !matches!(reason, rustls::Error::InvalidMessage(_)))
            }
            Err(_) => false,
        }
    }

    /// The error for a failed handshake.
    pub(super) async fn tls_error(&self, error: &io::Error) -> StoreError {
        match tls_reason(error) {
            Some(rustls::Error::InvalidMessage(_)) | None => self.not_tls(&error.to_string()).await,
            Some(reason) => {
                let said = match reason {
                    rustls::Error::InvalidCertificate(CertificateError::Other(cause)) => {
                        format!("{self}: invalid peer certificate: {}", cause.0)
                    }
                    _ => format!("{self}: {error}"),
                };
                match of_tls(reason) {
                    Some(diagnosis) => StoreError::Denied(diagnosis, said),
                    None => StoreError::Tls(said),
                }
            }
        }
    }

    /// The error for a server that does not speak TLS: asks it in plain text what it is. The
    /// password is not sent.
    pub(super) async fn not_tls(&self, said: &str) -> StoreError {
        use Diagnosis::{Closes, Http, MaxClients, NotRedis, PlainServer, ProtectedMode};
        let said = format!("{self}: {said}");
        let plain = Self { tls: None, ..self.clone() };
        let Ok(mut stream) = Box::pin(plain.open()).await else {
            return StoreError::Denied(PlainServer, said);
        };
        match exchange(&mut stream, PING).await {
            Received::Bytes(reply) => match plain.check_reply(&reply) {
                // Redis writes the last two in plain text, also where it speaks TLS.
                Err(StoreError::Denied(
                    is @ (Http | NotRedis | MaxClients | ProtectedMode),
                    said,
                )) => StoreError::Denied(is, said),
                _ => StoreError::Denied(PlainServer, said),
            },
            Received::Nothing => StoreError::Denied(PlainServer, said),
            Received::Closed | Received::TlsFailed(_) => StoreError::Denied(Closes, said),
        }
    }
}

async fn receive(stream: &mut ClientStream, limit: Duration) -> Received {
    let mut reply = vec![0; MAX_ANSWER];
    match timeout(limit, stream.read(&mut reply)).await {
        Err(_) => Received::Nothing,
        Ok(Ok(0)) => Received::Closed,
        Ok(Ok(length)) => {
            reply.truncate(length);
            Received::Bytes(reply)
        }
        Ok(Err(error)) if tls_reason(&error).is_some() => Received::TlsFailed(error),
        Ok(Err(_)) => Received::Closed,
    }
}

/// Sends a request and receives the reply. A server that has closed the connection may have sent
/// something before, so an error of the write does not count.
async fn exchange(stream: &mut ClientStream, request: &[u8]) -> Received {
    let _ = stream.write_all(request).await;
    let _ = stream.flush().await;
    match receive(stream, ANSWER).await {
        Received::Nothing => {
            let _ = stream.write_all(EMPTY_LINE).await;
            let _ = stream.flush().await;
            receive(stream, ANSWER).await
        }
        received => received,
    }
}

fn tls_reason(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The diagnosis of a failed handshake.
fn of_tls(reason: &rustls::Error) -> Option<Diagnosis> {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    Some(match reason {
        InvalidCertificate(error) => of_certificate(error),
        AlertReceived(Alert::CertificateRequired) => Diagnosis::ClientCertificate,
        AlertReceived(Alert::ProtocolVersion) => Diagnosis::TlsVersion,
        AlertReceived(Alert::HandshakeFailure) => Diagnosis::Handshake,
        AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::DecryptError,
        ) => Diagnosis::RefusedCertificate,
        _ => return None,
    })
}

fn of_certificate(error: &CertificateError) -> Diagnosis {
    match error {
        // The signature check also fails if another authority has the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Diagnosis::Authority,
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            Diagnosis::NoName
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Diagnosis::Name
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Diagnosis::Expired,
        CertificateError::Other(error) if error.0.is::<StrangeKey>() => Diagnosis::StrangeKey,
        _ => Diagnosis::Certificate,
    }
}
