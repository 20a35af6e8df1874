//! Diagnoses: the known faults of a server, with the words that show each, its extent and its remedy.
//!
//! [`TABLE`] is the only place for these, so the log, `jobcache check` and `/status` say the same.
//! Errors of commands are looked up here by `errors.rs`. Faults without words of Redis (an HTTP server,
//! a certificate) are found by `redis/first_contact.rs`, and have only their remedy here.

mod kind;
#[cfg(test)]
mod tests;

use std::io;

pub use self::kind::Diagnosis;

/// How much of the server a fault affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The server serves this client, and refuses some commands.
    SomeCommands,
    /// The server answers, and refuses whatever this client sends.
    AllCommands,
    /// The server is not one to use, whatever it answers.
    Unusable,
    /// TLS cannot be set up.
    Tls,
    /// There is no connection.
    Unreachable,
    /// It does not answer in time.
    Silent,
}

/// One fault.
struct Row {
    diagnosis: Diagnosis,
    /// Parts of an error message, one of which is enough: in capitals the code of the error, in lower
    /// case a part of its text.
    said: &'static [&'static str],
    extent: Extent,
    remedy: &'static str,
}

const fn row(
    diagnosis: Diagnosis,
    extent: Extent,
    said: &'static [&'static str],
    remedy: &'static str,
) -> Row {
    Row { diagnosis, said, extent, remedy }
}

use Diagnosis as Is;
use Extent::{AllCommands, Silent, SomeCommands, Tls, Unreachable, Unusable};

/// The first row that fits counts. A renamed command comes first: its error repeats what was sent.
const TABLE: [Row; Diagnosis::WORDS.len()] = [
    row(
        Is::UnknownCommand,
        SomeCommands,
        &["unknown command", "command called from script"],
        "remove its rename-command from redis.conf, and connect to Redis itself instead of a proxy",
    ),
    row(
        Is::Acl,
        SomeCommands,
        &["NOPERM", "can't run this command", "acl failure"],
        "give the user the rights in docs/redis.md (ACL SETUSER)",
    ),
    row(
        Is::ClusterNode,
        SomeCommands,
        &["MOVED", "CROSSSLOT", "not allowed in cluster mode"],
        "this is a node of a Redis Cluster: use a redis-cluster:// URL (rediss-cluster:// over TLS)",
    ),
    row(
        Is::ClusterDown,
        SomeCommands,
        &["CLUSTERDOWN"],
        "the cluster has no majority, or slots without a master: `redis-cli --cluster check` says which; with \
         cluster-require-full-coverage no the other slots are served",
    ),
    row(
        Is::NoCluster,
        AllCommands,
        &["cluster support disabled"],
        "this is not a cluster: use a redis:// URL (rediss:// over TLS)",
    ),
    row(
        Is::Memory,
        SomeCommands,
        &["OOM"],
        "Redis is full: raise its maxmemory, or store less in it",
    ),
    row(Is::Disk, SomeCommands, &["MISCONF"], "Redis cannot save its data: see the log of Redis"),
    row(
        Is::Replicas,
        SomeCommands,
        &["NOREPLICAS"],
        "Redis has fewer replicas than its min-replicas-to-write: see `redis-cli info replication`",
    ),
    row(
        Is::MaxClients,
        AllCommands,
        &["max number of clients"],
        "raise maxclients of Redis, or close connections of other programs",
    ),
    row(
        Is::ProtectedMode,
        AllCommands,
        &["protected mode"],
        "without a password Redis takes local clients only: set requirepass in redis.conf and \
         store.password_file here, or `protected-mode no` where no stranger reaches Redis",
    ),
    row(
        Is::NoLogin,
        AllCommands,
        &["NOAUTH"],
        "Redis wants a password: set store.password_file or store.password, or put it into store.url",
    ),
    row(
        Is::WrongLogin,
        AllCommands,
        &["WRONGPASS", "invalid password", "invalid username"],
        "check the user and the password in store.url, store.username and store.password",
    ),
    row(
        Is::NoPassword,
        AllCommands,
        &["without any password configured", "no password is set"],
        "this Redis has no password: remove it from store.url, store.password and store.password_file",
    ),
    row(
        Is::SentinelLogin,
        AllCommands,
        &[],
        "check store.sentinel.username and store.sentinel.password_file: the login of Redis is not sent to \
         sentinels",
    ),
    row(
        Is::Sentinel,
        AllCommands,
        &[],
        "this is a sentinel: use a redis-sentinel://host:port/master URL",
    ),
    row(
        Is::NoSentinel,
        AllCommands,
        &[],
        "this is not a sentinel: sentinels listen on port 26379; for Redis itself use a redis:// URL",
    ),
    row(
        Is::NoDatabase,
        AllCommands,
        &["db index is out of range"],
        "name a database that Redis has: see its setting databases",
    ),
    row(Is::Loading, Unusable, &["LOADING"], "wait until Redis has loaded its data"),
    row(
        Is::MasterDown,
        Unusable,
        &["MASTERDOWN"],
        "this is a replica without its master: name the master, or use a redis-sentinel:// URL",
    ),
    row(
        Is::Replica,
        Unusable,
        &["READONLY"],
        "this is a replica: name the master, or use a redis-sentinel:// URL",
    ),
    row(Is::Http, Unusable, &[], "an HTTP server listens there: check host and port of store.url"),
    row(
        Is::NotRedis,
        Unusable,
        &[],
        "another server than Redis listens there: check host and port of store.url",
    ),
    row(
        Is::Proxy,
        Unusable,
        &[],
        "a proxy that takes some commands only, such as twemproxy, cannot be used: connect to Redis itself",
    ),
    row(
        Is::Closes,
        Unusable,
        &[],
        "check host and port of store.url, and see the log of the server that listens there",
    ),
    row(Is::TlsServer, Unusable, &[], "use a rediss:// URL for a server with TLS"),
    row(
        Is::NoListener,
        Unreachable,
        &[],
        "nothing listens there: start Redis, or check host and port of store.url",
    ),
    row(
        Is::UnknownHost,
        Unreachable,
        &[],
        "this host is not known: check its name in store.url, and the DNS of this machine",
    ),
    row(
        Is::NoRoute,
        Unreachable,
        &[],
        "check host and port of store.url, and the routes and firewalls on the way",
    ),
    row(
        Is::NoSocket,
        Unreachable,
        &[],
        "check the path in store.url, and unixsocket and unixsocketperm of Redis",
    ),
    row(Is::NoAnswer, Silent, &[], "see whether Redis hangs, and check host and port of store.url"),
    row(Is::Version, AllCommands, &[], "jobcache needs Redis 7.0 or newer, or Valkey"),
    row(
        Is::Far,
        Unusable,
        &[],
        "set store.budget to three round trips or more, or put Redis nearer",
    ),
    row(Is::PlainServer, Tls, &[], "use a redis:// URL for a server without TLS"),
    row(
        Is::Authority,
        Tls,
        &[],
        "set store.tls.ca to the authority that signed the certificate, or to the certificate itself",
    ),
    row(
        Is::Name,
        Tls,
        &[],
        "set store.tls.server_name to a name in the certificate, or store.tls.verify to \"ca\"",
    ),
    row(
        Is::NoName,
        Tls,
        &[],
        "put the certificate itself into store.tls.ca, or set store.tls.verify to \"ca\"",
    ),
    row(
        Is::Expired,
        Tls,
        &[],
        "renew the certificate of Redis; if it is still valid, correct the clock of this machine",
    ),
    row(
        Is::Certificate,
        Tls,
        &[],
        "put the certificate itself into store.tls.ca: it is then trusted as it is",
    ),
    row(
        Is::StrangeKey,
        Tls,
        &[],
        "the server shows a certificate of which it does not have the key (or an RSA key below 2048 \
         bits): find out what listens there",
    ),
    row(
        Is::ClientCertificate,
        Tls,
        &[],
        "Redis requires a client certificate: set store.tls.cert and store.tls.key, or its \
         tls-auth-clients to no",
    ),
    row(
        Is::RefusedCertificate,
        Tls,
        &[],
        "Redis does not accept the certificate in store.tls.cert: its authority has to be in the \
         tls-ca-cert-file of Redis",
    ),
    row(Is::TlsVersion, Tls, &[], "allow TLSv1.2 or TLSv1.3 in tls-protocols of Redis"),
    row(
        Is::Handshake,
        Tls,
        &[],
        "set store.tls.cert if Redis requires a client certificate; else give Redis a key of a kind \
         that jobcache knows (RSA of 2048 bits or more, P-256, P-384 or Ed25519)",
    ),
];

impl Diagnosis {
    /// Returns the diagnosis that an error message of a server shows.
    pub(super) fn of(message: &str) -> Option<Self> {
        let text = message.to_lowercase();
        let code = message.split(' ').next().unwrap_or_default();
        let tells = |row: &&Row| row.said.iter().any(|said| *said == code || text.contains(said));
        TABLE.iter().find(tells).map(|row| row.diagnosis)
    }

    fn row(self) -> Option<&'static Row> {
        TABLE.iter().find(|row| row.diagnosis == self)
    }

    /// Returns the remedy, as a part of a sentence.
    pub fn remedy(self) -> &'static str {
        self.row().map_or("", |row| row.remedy)
    }

    pub(super) fn extent(self) -> Extent {
        self.row().map_or(Unusable, |row| row.extent)
    }

    /// What is wrong with an address to which no connection can be made.
    pub(super) fn of_connect(error: &io::Error) -> Option<Self> {
        use io::ErrorKind as Kind;
        Some(match error.kind() {
            Kind::ConnectionRefused => Self::NoListener,
            Kind::AddrNotAvailable => Self::UnknownHost,
            Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::TimedOut => Self::NoRoute,
            Kind::NotFound | Kind::PermissionDenied => Self::NoSocket,
            _ => return None,
        })
    }

    /// Whether there is no connection to a server at all, or no word on it.
    pub fn is_unreachable(self) -> bool {
        matches!(self.extent(), Unreachable | Silent)
    }

    /// Whether the server serves this client, and refuses some commands.
    pub fn refuses_commands(self) -> bool {
        self.extent() == SomeCommands
    }
}
