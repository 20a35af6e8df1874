//! A Redis with the real scripts; every call is one blocking round trip.

use std::{cell::RefCell, time::Duration};

use bytes::Bytes;
use hyper::{Request, Response, header::AUTHORIZATION, http::request};
use jobcache::{
    cache::entry::{Entry, EntryVersion, Reject},
    config::CredentialsConfig,
    mutants::Mutant,
    semantics::{
        audience::{Audience, Caller, Fingerprinter, Standing},
        identity::Identity,
        policy::{Freshness, StoredHead},
    },
    store::{CredentialKey, Epoch, Seen, StoredValue, Token},
};
use redis::{Connection, FromRedisValue, Script, ScriptInvocation, Value, cmd};
use sha1_smol::Sha1;
use tempfile::TempDir;

use super::{Flaw, world::CREDENTIALS};
use crate::support::RedisServer;

pub(super) const MAIN: &str = "job_status:x";
pub(super) const META: &str = "{job_status:x}:meta";
pub(super) const LEASE: &str = "{job_status:x}:lease";
pub(super) const FENCE: &str = "{job_status:x}:fence";
/// The name and the value of the purge token. Nothing is purged as a whole here; the model has that.
pub(super) const PURGE_TOKEN: &str = "{job_status:}:purge-token";
const TOKEN: &str = "t";

/// So long that nothing expires by itself within a schedule.
const TTL: Duration = Duration::from_mins(5);
const LEASE_MS: i64 = 100_000;
const FENCE_MS: i64 = 400_000;
/// Time at which the upstream served an admitted entry; no one is rechecked within a schedule.
const SERVED_MS: i64 = 0;

/// The name and the text of each script.
const SCRIPTS: [(&str, &str); 7] = [
    ("lease", include_str!("../../../src/store/lua/lease.lua")),
    ("fill", include_str!("../../../src/store/lua/fill.lua")),
    ("release", include_str!("../../../src/store/lua/release.lua")),
    ("begin", include_str!("../../../src/store/lua/begin.lua")),
    ("end", include_str!("../../../src/store/lua/end.lua")),
    ("admit", include_str!("../../../src/store/lua/admit.lua")),
    ("replace", include_str!("../../../src/store/lua/replace.lua")),
];

/// Returns a script with the lines replaced that a flaw changes.
pub(super) fn script(name: &str, flaw: Flaw) -> Script {
    let (_, text) = SCRIPTS.iter().find(|(script, _)| *script == name).expect("a script");
    let mut text = (*text).to_owned();
    for (_, line, instead) in flaw.script().into_iter().filter(|(file, ..)| *file == name) {
        assert_eq!(text.matches(line).count(), 1, "{name}.lua must contain the line once: {line}");
        text = text.replace(line, instead);
    }
    Script::new(&text)
}

/// The answer of `lease.lua`.
#[derive(Debug)]
pub(super) enum Leasing {
    Granted,
    Leased(String),
    Fenced,
    StoredValue(StoredValue),
}

/// The life with which another client SETs the key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Life {
    Forever,
    /// A second less than jobcache's TTL. A schedule takes only a few ms, so the same TTL would
    /// often give the exact ms that the metadata states, which is a rare coincidence in reality.
    Seconds299,
    /// The life of the replaced value.
    Kept,
}

/// An entry as a sidecar makes it, or has seen it.
#[derive(Clone, Debug)]
pub(super) struct New {
    pub(super) body: String,
    /// The token of its lease, or a fresh one.
    pub(super) generation: String,
    pub(super) epoch: u64,
    pub(super) who: usize,
}

/// A value that is a hit for some credentials.
pub(super) struct Found {
    pub(super) body: String,
    pub(super) generation: String,
    /// `None` if it is for everyone.
    audience: Option<Audience>,
}

/// A key for a snapshot: its name, its value and its expiry.
pub(super) type Dumped = (&'static str, Option<Vec<u8>>, i64);

pub(super) struct Server {
    connection: RefCell<Connection>,
    lease: Script,
    fill: Script,
    release: Script,
    begin: Script,
    end: Script,
    admit: Script,
    replace: Script,
    prints: Fingerprinter,
    /// Callers by credential.
    pairs: [Caller; CREDENTIALS],
    flaw: Flaw,
    _process: RedisServer,
    _socket: TempDir,
}

impl Server {
    pub(super) fn start(flaw: Flaw) -> Self {
        let dir = TempDir::with_prefix("jobcache-socket-").expect("a temporary directory");
        let socket = dir.path().join("s").to_str().expect("a path in UTF-8").to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // The rest is synchronous and must not run within a task, because it would exhaust the
        // task's budget.
        let process = runtime
            .expect("a runtime")
            .block_on(RedisServer::start_with(&["--unixsocket", &socket]));
        let client = redis::Client::open(format!("unix://{socket}")).expect("a path");
        Self {
            connection: RefCell::new(client.get_connection().expect("Redis accepts")),
            lease: script("lease", flaw),
            fill: script("fill", flaw),
            release: script("release", flaw),
            begin: script("begin", flaw),
            end: script("end", flaw),
            admit: script("admit", flaw),
            replace: script("replace", flaw),
            prints: Fingerprinter::new(&CredentialsConfig::default()),
            pairs: std::array::from_fn(pair_of),
            flaw,
            _process: process,
            _socket: dir,
        }
    }

    /// The first part of a read; the store pipelines it with [`Server::expires_at_ms`], without a
    /// transaction.
    pub(super) fn body_and_meta(&self) -> [Option<Vec<u8>>; 2] {
        self.run(cmd("MGET").arg(MAIN).arg(META))
    }

    pub(super) fn expires_at_ms(&self) -> i64 {
        self.run(cmd("PEXPIRETIME").arg(MAIN))
    }

    pub(super) fn lease(&self, token: &str, refused: Option<i64>) -> Leasing {
        let refused = refused.map(|expiry| expiry.to_string()).unwrap_or_default();
        let mut call = self.lease.key(MAIN);
        call.key(META).key(LEASE).key(FENCE).key(PURGE_TOKEN);
        call.arg(token).arg(LEASE_MS).arg(refused).arg(TOKEN);
        let reply: Vec<Value> = self.invoke(&call);
        let text = |at: usize| String::from_redis_value_ref(&reply[at]).expect("text");
        match text(0).as_str() {
            "granted" => Leasing::Granted,
            "leased" => Leasing::Leased(text(1)),
            "fenced" => Leasing::Fenced,
            "stored" => Leasing::StoredValue(StoredValue {
                body: text(1).into(),
                meta: text(2).into(),
                expires_at_ms: i64::from_redis_value_ref(&reply[3]).expect("an expiry"),
            }),
            other => panic!("lease.lua answered {other:?}"),
        }
    }

    /// Fills an entry and returns whether it was stored. `expires_at_ms` is an expiry stated by the
    /// upstream.
    pub(super) fn fill(&self, new: &New, expires_at_ms: Option<i64>) -> bool {
        let mut ttl_ms = i64::try_from(TTL.as_millis()).expect("a TTL");
        if let Some(at) = expires_at_ms {
            let lease_ends: i64 = self.run(cmd("PEXPIRETIME").arg(LEASE));
            ttl_ms = at - (lease_ends - LEASE_MS);
        }
        let mut call = self.fill.key(MAIN);
        call.key(META).key(LEASE).key(PURGE_TOKEN);
        call.arg(&new.generation).arg(&new.body).arg(self.meta(new));
        call.arg(ttl_ms).arg(LEASE_MS);
        self.invoke(&call)
    }

    /// Admits a credential to an entry that was seen. Returns whether it was admitted.
    pub(super) fn admit(&self, seen: &StoredValue, generation: &str, who: usize) -> bool {
        let mut call = compare_and_set(&self.admit, seen, generation);
        call.arg(self.pairs[who].to_hex()).arg(SERVED_MS);
        self.invoke(&call)
    }

    /// Replaces an entry that was seen with `new`. Returns whether it was replaced.
    pub(super) fn replace(
        &self,
        seen: &StoredValue,
        generation: &str,
        new: &New,
        expires_at_ms: i64,
    ) -> bool {
        let mut meta = self.meta(new);
        if self.flaw == Flaw::ReplaceKeepsAudience {
            for pair in self.pairs {
                let kept = format!("\"audience\":[\"{}\",", pair.to_hex());
                meta = meta.replacen("\"audience\":[", &kept, 1);
            }
        }
        let mut call = compare_and_set(&self.replace, seen, generation);
        call.arg(&new.body).arg(meta).arg(expires_at_ms);
        self.invoke(&call)
    }

    /// Returns the current value and the generation that its metadata names.
    pub(super) fn now(&self) -> (StoredValue, String) {
        let [body, meta] = self.body_and_meta().map(Option::unwrap_or_default);
        let json = serde_json::from_slice::<serde_json::Value>(&meta).unwrap_or_default();
        let generation = json["generation"].as_str().unwrap_or_default().to_owned();
        let expires_at_ms = self.expires_at_ms();
        (StoredValue { body: body.into(), meta: meta.into(), expires_at_ms }, generation)
    }

    pub(super) fn release(&self, token: &str) -> bool {
        let mut call = self.release.key(MAIN);
        call.key(LEASE).arg(token);
        self.invoke(&call)
    }

    pub(super) fn begin(&self, write: &str) {
        let mut call = self.begin.key(MAIN);
        call.key(META).key(LEASE).key(FENCE).arg(write).arg(FENCE_MS);
        self.invoke::<()>(&call);
    }

    /// Ends a write and returns whether there was an entry.
    pub(super) fn end(&self, write: &str, linger_ms: i64) -> bool {
        let mut call = self.end.key(MAIN);
        call.key(META).key(LEASE).key(FENCE).arg(write).arg(linger_ms);
        let reply: Vec<Value> = self.invoke(&call);
        // The reply names only jobs that had an entry or a fill in flight: here its number comes first.
        let there = reply.get(1).map(bool::from_redis_value_ref);
        there.is_some_and(|there| there.expect("whether there was an entry"))
    }

    /// Ends the linger of a write.
    pub(super) fn run_out(&self, write: &str) {
        self.run::<()>(cmd("ZREM").arg(FENCE).arg(write));
    }

    pub(super) fn del(&self, keys: &[&str]) {
        self.run::<()>(cmd("DEL").arg(keys));
    }

    pub(super) fn get(&self) -> Option<String> {
        self.run::<Option<String>>(cmd("GET").arg(MAIN)).filter(|body| !body.is_empty())
    }

    pub(super) fn set(&self, body: &str, life: Life) {
        let mut set = cmd("SET");
        set.arg(MAIN).arg(body);
        match life {
            Life::Forever => &mut set,
            Life::Seconds299 => set.arg("EX").arg(299),
            Life::Kept => set.arg("KEEPTTL"),
        };
        self.run::<()>(&set);
    }

    /// Returns the time of the server's clock.
    pub(super) fn now_ms(&self) -> i64 {
        let (seconds, micros): (i64, i64) = self.run(&cmd("TIME"));
        seconds * 1000 + micros / 1000
    }

    /// Returns the contents of all keys.
    pub(super) fn dump(&self) -> [Dumped; 4] {
        [MAIN, META, LEASE, FENCE]
            .map(|key| (key, self.run(cmd("DUMP").arg(key)), self.run(cmd("PEXPIRETIME").arg(key))))
    }

    /// Restores these keys and deletes the others.
    pub(super) fn restore(&self, dumped: &[Dumped]) {
        self.del(&[MAIN, META, LEASE, FENCE]);
        for (key, value, expires_at_ms) in dumped {
            let Some(value) = value else { continue };
            let mut restore = cmd("RESTORE");
            restore.arg(key).arg((*expires_at_ms).max(0)).arg(value).arg("ABSTTL");
            self.run::<()>(&restore);
        }
    }

    /// Decodes a stored value, if it is a hit for any credential in this epoch.
    pub(super) fn decode(&self, stored: &StoredValue, epoch: u64) -> Option<Found> {
        let mut stored = stored.clone();
        if self.flaw == Flaw::AnyValue {
            let body = text(&stored.body);
            return Some(Found { body, generation: String::new(), audience: None });
        }
        let field = |name: &str| {
            let meta = serde_json::from_slice::<serde_json::Value>(&stored.meta).ok()?;
            Some(meta[name].clone())
        };
        let mut epoch = epoch_of(epoch);
        match self.flaw {
            Flaw::AnyExpiry => stored.expires_at_ms = field("expires_at_ms")?.as_i64()?,
            Flaw::Of(Mutant::NoEpoch) => epoch = Epoch::named(field("epoch")?.as_str()?),
            _ => {}
        }
        match Entry::decode(&Seen {
            stored: Some(stored),
            is_leased: false,
            epoch,
            now_ms: 0,
            in_grace: false,
        })? {
            Ok(entry) => Some(Found {
                body: text(entry.body()),
                generation: entry.generation().to_owned(),
                audience: Some(entry.audience().clone()).filter(|_| self.flaw != Flaw::AnyAudience),
            }),
            Err(Reject::Foreign | Reject::Epoch | Reject::Identity | Reject::Purged) => None,
            Err(reject @ Reject::Corrupt) => panic!("no actor writes such metadata: {reject:?}"),
        }
    }

    pub(super) fn includes(&self, found: &Found, who: usize) -> bool {
        let standing = |audience| self.prints.standing(audience, self.pairs[who], SERVED_MS);
        found.audience.as_ref().is_none_or(|audience| standing(audience) == Standing::Included)
    }

    fn meta(&self, new: &New) -> String {
        let epoch = epoch_of(new.epoch);
        let generation = Token::named(&new.generation);
        let entry = entry(&new.body, self.pairs[new.who]);
        let members = &entry.audience().members;
        let version = EntryVersion { generation: &generation, epoch: &epoch, change: None };
        entry.meta(members, &Identity::default(), version, None)
    }

    fn invoke<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> T {
        call.invoke(&mut *self.connection.borrow_mut()).expect("the script runs")
    }

    fn run<T: FromRedisValue>(&self, command: &redis::Cmd) -> T {
        command.query(&mut *self.connection.borrow_mut()).expect("Redis answers")
    }
}

/// Returns the caller of a request.
pub(super) fn pair(head: &request::Parts) -> Caller {
    Fingerprinter::new(&CredentialsConfig::default()).caller(
        &CredentialKey::new([0; 32]),
        &head.uri,
        &head.headers,
    )
}

/// Returns an entry with this body, as a fill makes it.
pub(super) fn entry(body: &str, pair: Caller) -> Entry {
    let (head, ()) = Response::new(()).into_parts();
    let freshness = Freshness { ttl: TTL, age: Duration::ZERO, public: false };
    let head = StoredHead::of(&head, &[], 0);
    Entry::new(head, Bytes::copy_from_slice(body.as_bytes()), freshness, pair, 0)
}

impl Found {
    /// Returns the size of its audience.
    pub(super) fn audience(&self) -> usize {
        self.audience.as_ref().map_or(0, |audience| audience.members.len())
    }
}

/// Prepares a call of a script that compares and sets, like `store::redis::session`.
pub(super) fn compare_and_set<'s>(
    script: &'s Script,
    seen: &StoredValue,
    generation: &str,
) -> ScriptInvocation<'s> {
    let mut call = script.key(MAIN);
    call.key(META).key(FENCE).key(PURGE_TOKEN);
    call.arg(Sha1::from(&seen.body).digest().to_string());
    call.arg(seen.expires_at_ms).arg(generation);
    call
}

/// Returns the epoch of an entry that was leased in this epoch of the server.
fn epoch_of(server: u64) -> Epoch {
    Epoch::named(&format!("{server} {TOKEN}"))
}

fn pair_of(who: usize) -> Caller {
    let request = Request::builder().header(AUTHORIZATION, format!("Bearer {who}")).body(());
    let (head, ()) = request.expect("a header").into_parts();
    pair(&head)
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}
