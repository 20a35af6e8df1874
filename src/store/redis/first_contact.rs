//! What is wrong with a server whose first exchange has failed.
//!
//! The error of that exchange seldom tells: most such servers say a word and close the connection,
//! and a client that is writing at that moment sees only that it was closed. So a second connection
//! listens first, then asks little by little, and hears the words themselves. Nothing here is
//! retried, and no server that works is asked twice.

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
/// Time for the answer to a question.
const ANSWER: Duration = Duration::from_millis(200);
/// Bytes of an answer that are read; `INFO` has its mode among them.
const MAX_ANSWER: usize = 2048;
/// Characters of an answer that are shown.
const MAX_SHOWN: usize = 80;

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const INFO: &[u8] = b"*1\r\n$4\r\nINFO\r\n";
/// Ends the head of a request to an HTTP server; nothing to Redis.
const EMPTY_LINE: &[u8] = b"\r\n\r\n";

/// What was heard on a connection.
enum Heard {
    Words(Vec<u8>),
    Silence,
    Closed,
    /// The TLS connection broke.
    Broken(io::Error),
}

/// What the words mean.
enum Meaning {
    /// A reply of Redis that is no error.
    Reply,
    /// An error, or another server.
    Wrong(StoreError),
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
        let told = StoreError::from(error);
        // A sentinel does not know the command.
        let may_be_sentinel = matches!(told, StoreError::Denied(Diagnosis::UnknownCommand, _));
        if is_vague || may_be_sentinel {
            return self.with_login(self.second_look().await.unwrap_or(told));
        }
        self.with_login(told)
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

    /// Listens to the server on a new connection; `None` if nothing is wrong with what it says.
    async fn second_look(&self) -> Option<StoreError> {
        let mut stream = match self.open().await {
            Ok(stream) => stream,
            Err(error) => return Some(error),
        };
        let greeting = if self.tls.is_some() { REJECTION } else { GREETING };
        let mut heard = hear(&mut stream, greeting).await;
        let mut has_replied = false;
        for question in self.questions().await {
            match self.wrong(heard, has_replied).await {
                Ok(replied) => has_replied |= replied,
                Err(error) => return Some(error),
            }
            heard = ask(&mut stream, &question).await;
        }
        self.wrong(heard, has_replied).await.err()
    }

    /// What is sent one by one; the password after the server has answered as Redis does.
    async fn questions(&self) -> Vec<Vec<u8>> {
        let login = self.login.connection_info().await.ok();
        let auth = login.as_ref().and_then(|login| {
            let mut auth = cmd("AUTH");
            auth.arg(login.username()).arg(login.password()?);
            Some(auth.get_packed_command())
        });
        [Some(PING.to_vec()), auth, Some(INFO.to_vec())].into_iter().flatten().collect()
    }

    /// Returns whether the server has replied, or what is wrong.
    async fn wrong(&self, heard: Heard, has_replied: bool) -> Result<bool> {
        let closed = |diagnosis, said: &str| {
            Err(StoreError::Denied(diagnosis, format!("{self} closes the connection {said}")))
        };
        match heard {
            Heard::Silence => Ok(false),
            Heard::Closed if has_replied => {
                closed(Diagnosis::Proxy, "at a command that every Redis knows")
            }
            Heard::Closed if self.tls.is_none() && self.speaks_tls().await => {
                closed(Diagnosis::TlsServer, "at a command in plain text")
            }
            Heard::Closed => closed(Diagnosis::Closes, "without an answer"),
            Heard::Broken(error) => Err(self.tls_error(&error).await),
            Heard::Words(words) => match self.meaning(&words) {
                Meaning::Reply => Ok(true),
                // The password comes with the next question.
                Meaning::Wrong(StoreError::Denied(Diagnosis::NoLogin, _))
                    if !has_replied && self.login.has_password() =>
                {
                    Ok(true)
                }
                Meaning::Wrong(error) => Err(error),
            },
        }
    }

    fn meaning(&self, words: &[u8]) -> Meaning {
        let text = String::from_utf8_lossy(words);
        let line: String =
            text.lines().next().unwrap_or_default().chars().take(MAX_SHOWN).collect();
        let other = |diagnosis| {
            let shown = line.escape_debug();
            Meaning::Wrong(StoreError::Denied(diagnosis, format!("{self} answers \"{shown}\"")))
        };
        match words {
            [b'-', ..] => {
                let said = text.lines().next().unwrap_or_default().trim_start_matches('-');
                // The error of protected mode has a thousand characters.
                let said = said.split(". ").next().unwrap_or_default();
                let said = said.trim_end_matches('.').to_owned();
                Meaning::Wrong(match Diagnosis::of(&said) {
                    Some(diagnosis) => StoreError::Denied(diagnosis, said),
                    None => StoreError::Refused(said),
                })
            }
            [b'+' | b'$' | b':' | b'*' | b'_' | b'%' | b'=', ..] => {
                if text.contains("_mode:sentinel") {
                    let said = format!("{self} answers as a sentinel");
                    return Meaning::Wrong(StoreError::Denied(Diagnosis::Sentinel, said));
                }
                Meaning::Reply
            }
            // An alert or a handshake (RFC 8446 5.1).
            [0x15 | 0x16, 0x03, ..] => {
                let said = format!("{self} does not accept plain text");
                Meaning::Wrong(StoreError::Denied(Diagnosis::TlsServer, said))
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
        match ask(&mut stream, PING).await {
            Heard::Words(words) => match plain.meaning(&words) {
                // Redis writes these two in plain text, also where it speaks TLS.
                Meaning::Wrong(StoreError::Denied(
                    is @ (Http | NotRedis | MaxClients | ProtectedMode),
                    said,
                )) => StoreError::Denied(is, said),
                _ => StoreError::Denied(PlainServer, said),
            },
            Heard::Silence => StoreError::Denied(PlainServer, said),
            Heard::Closed | Heard::Broken(_) => StoreError::Denied(Closes, said),
        }
    }
}

async fn hear(stream: &mut ClientStream, patience: Duration) -> Heard {
    let mut words = vec![0; MAX_ANSWER];
    match timeout(patience, stream.read(&mut words)).await {
        Err(_) => Heard::Silence,
        Ok(Ok(0)) => Heard::Closed,
        Ok(Ok(length)) => {
            words.truncate(length);
            Heard::Words(words)
        }
        Ok(Err(error)) if tls_reason(&error).is_some() => Heard::Broken(error),
        Ok(Err(_)) => Heard::Closed,
    }
}

/// Asks a question. A server that has closed the connection may still have said something, so an
/// error of the write is none.
async fn ask(stream: &mut ClientStream, question: &[u8]) -> Heard {
    let _ = stream.write_all(question).await;
    let _ = stream.flush().await;
    match hear(stream, ANSWER).await {
        Heard::Silence => {
            let _ = stream.write_all(EMPTY_LINE).await;
            let _ = stream.flush().await;
            hear(stream, ANSWER).await
        }
        heard => heard,
    }
}

fn tls_reason(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What a failed handshake tells.
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
