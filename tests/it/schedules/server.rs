//! A Redis of its own with the project's scripts, one blocking round trip a call.

use std::{cell::RefCell, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Request, Response, http::request};
use jobcache::{
    cache::{
        audience::{Pair, Prints},
        entry::{Entry, Reject},
        policy::Freshness,
    },
    config::{Config, Credentials, StoreUrl},
    metrics::Metrics,
    store::{Budget, CredentialKey, Epoch, Grant, Key, Seen, Store, Stored, Token},
};
use redis::{Connection, FromRedisValue, Script, ScriptInvocation, Value, cmd};
use tempfile::TempDir;

use super::Flaw;
use crate::support::{RedisServer, SOON, eventually};

pub(super) const MAIN: &str = "job_status:x";
pub(super) const META: &str = "{job_status:x}:meta";
pub(super) const LEASE: &str = "{job_status:x}:lease";
pub(super) const FENCE: &str = "{job_status:x}:fence";

/// Long enough that within a schedule nothing expires but by an actor.
const TTL: Duration = Duration::from_mins(5);
const LEASE_MS: i64 = 100_000;
const FENCE_MS: i64 = 400_000;

/// The name and the text of each script.
const SCRIPTS: [(&str, &str); 5] = [
    ("lease", include_str!("../../../src/store/lua/lease.lua")),
    ("fill", include_str!("../../../src/store/lua/fill.lua")),
    ("release", include_str!("../../../src/store/lua/release.lua")),
    ("begin", include_str!("../../../src/store/lua/begin.lua")),
    ("end", include_str!("../../../src/store/lua/end.lua")),
];

/// A script, with the line changed that a mutant changes.
pub(super) fn script(name: &str, flaw: Flaw) -> Script {
    let (_, text) = SCRIPTS.iter().find(|(script, _)| *script == name).expect("a script");
    let change = if let Flaw::Of(mutant) = flaw { mutant.script() } else { None };
    match change {
        Some((file, line, instead)) if file == name => {
            assert_eq!(text.matches(line).count(), 1, "{name}.lua has the line once: {line}");
            Script::new(&text.replace(line, instead))
        }
        _ => Script::new(text),
    }
}

/// What `lease.lua` answers.
#[derive(Debug)]
pub(super) enum Leasing {
    Granted,
    Leased(String),
    Fenced,
    Stored(Stored),
}

/// With which life a third party SETs the key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Life {
    Forever,
    /// A second less than ours: a schedule is over within a few ms, so that the same TTL would
    /// often give the very millisecond that meta tells of, which takes a coincidence in earnest.
    Seconds299,
    /// That of the value it replaces.
    Kept,
}

pub(super) struct Server {
    connection: RefCell<Connection>,
    lease: Script,
    fill: Script,
    release: Script,
    begin: Script,
    end: Script,
    /// That of the server, and any token: what an entry is made with.
    epoch: Epoch,
    token: Token,
    pair: Pair,
    flaw: Flaw,
    _process: RedisServer,
    _socket: TempDir,
}

impl Server {
    pub(super) fn start(flaw: Flaw) -> Self {
        let dir = TempDir::with_prefix("jobcache-socket-").expect("a temporary directory");
        let socket = dir.path().join("s").to_str().expect("a path in UTF-8").to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // The rest is synchronous: it must not run within a task, whose budget it would exhaust.
        let (process, epoch, token) = runtime.expect("a runtime").block_on(async {
            let process = RedisServer::start_with(&["--unixsocket", &socket]).await;
            let (epoch, token) = epoch_and_token(&process).await;
            (process, epoch, token)
        });
        let client = redis::Client::open(format!("unix://{socket}")).expect("a path");
        let (head, ()) = Request::new(()).into_parts();
        Self {
            connection: RefCell::new(client.get_connection().expect("Redis accepts")),
            lease: script("lease", flaw),
            fill: script("fill", flaw),
            release: script("release", flaw),
            begin: script("begin", flaw),
            end: script("end", flaw),
            epoch,
            token,
            pair: pair(&head),
            flaw,
            _process: process,
            _socket: dir,
        }
    }

    /// The first half of a read; the store pipelines it with [`Server::expires_at_ms`], which is no
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
        call.key(META).key(LEASE).key(FENCE).arg(token).arg(LEASE_MS).arg(refused);
        let reply: Vec<Value> = self.invoke(&call);
        let text = |at: usize| String::from_redis_value_ref(&reply[at]).expect("text");
        match text(0).as_str() {
            "granted" => Leasing::Granted,
            "leased" => Leasing::Leased(text(1)),
            "fenced" => Leasing::Fenced,
            "stored" => Leasing::Stored(Stored {
                body: text(1).into(),
                meta: text(2).into(),
                expires_at_ms: i64::from_redis_value_ref(&reply[3]).expect("an expiry"),
            }),
            other => panic!("lease.lua answered {other:?}"),
        }
    }

    /// Whether it was stored.
    pub(super) fn fill(&self, token: &str, version: u64) -> bool {
        let body = version.to_string();
        let meta = self.meta(&body);
        let mut call = self.fill.key(MAIN);
        call.key(META).key(LEASE).arg(token).arg(body).arg(meta);
        call.arg(i64::try_from(TTL.as_millis()).expect("a TTL")).arg(LEASE_MS);
        self.invoke(&call)
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

    /// Whether there was an entry.
    pub(super) fn end(&self, write: &str, linger_ms: i64) -> bool {
        let mut call = self.end.key(MAIN);
        call.key(META).key(LEASE).key(FENCE).arg(write).arg(linger_ms);
        self.invoke(&call)
    }

    /// The linger of a write has run out.
    pub(super) fn run_out(&self, write: &str) {
        self.run::<()>(cmd("ZREM").arg(FENCE).arg(write));
    }

    pub(super) fn del(&self, keys: &[&str]) {
        self.run::<()>(cmd("DEL").arg(keys));
    }

    pub(super) fn get(&self) -> Option<u64> {
        self.run::<Option<String>>(cmd("GET").arg(MAIN))?.parse().ok()
    }

    pub(super) fn set(&self, version: u64, life: Life) {
        let mut set = cmd("SET");
        set.arg(MAIN).arg(version);
        match life {
            Life::Forever => &mut set,
            Life::Seconds299 => set.arg("EX").arg(299),
            Life::Kept => set.arg("KEEPTTL"),
        };
        self.run::<()>(&set);
    }

    /// The version that a stored value answers with, if it is a hit.
    pub(super) fn hit(&self, stored: &Stored) -> Option<u64> {
        let mut stored = stored.clone();
        match self.flaw {
            Flaw::AnyValue => return parse(&stored.body),
            Flaw::AnyExpiry => {
                let meta = serde_json::from_slice::<serde_json::Value>(&stored.meta).ok()?;
                stored.expires_at_ms = meta["expires_at_ms"].as_i64()?;
            }
            _ => {}
        }
        let seen = Seen { stored: Some(stored), epoch: self.epoch.clone(), now_ms: 0 };
        match Entry::decode(&seen)? {
            Ok(entry) => parse(entry.body()),
            Err(Reject::Foreign) => None,
            Err(reject) => panic!("only somebody else's values are in the way: {reject:?}"),
        }
    }

    fn meta(&self, body: &str) -> String {
        entry(body, self.pair).meta(&self.token, &self.epoch)
    }

    fn invoke<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> T {
        call.invoke(&mut *self.connection.borrow_mut()).expect("the script runs")
    }

    fn run<T: FromRedisValue>(&self, command: &redis::Cmd) -> T {
        command.query(&mut *self.connection.borrow_mut()).expect("Redis answers")
    }
}

/// The audience pair of a request.
pub(super) fn pair(head: &request::Parts) -> Pair {
    Prints::new(&Credentials::default()).pair(&CredentialKey::new([0; 32]), head)
}

/// An entry with this body, as a fill makes it.
pub(super) fn entry(body: &str, pair: Pair) -> Entry {
    let (head, ()) = Response::new(()).into_parts();
    let freshness = Freshness { ttl: TTL, age: Duration::ZERO, public: false };
    Entry::new(&head, Bytes::copy_from_slice(body.as_bytes()), freshness, pair, 0)
}

fn parse(body: &[u8]) -> Option<u64> {
    std::str::from_utf8(body).ok()?.parse().ok()
}

/// What only a store can make.
async fn epoch_and_token(redis: &RedisServer) -> (Epoch, Token) {
    let mut config = Config::default();
    config.store.url = StoreUrl::Redis(redis.url());
    let store = Store::open(&config, Arc::new(Metrics::default())).expect("a URL");
    eventually(SOON, async || store.is_up()).await;
    let grant = store.lease(&Key::new("made:", "once"), None, &mut Budget::new(SOON)).await;
    let Ok(Grant::Lease(lease)) = grant else { panic!("{grant:?}") };
    let made = (lease.epoch().clone(), lease.token().clone());
    store.release(lease).await;
    made
}
