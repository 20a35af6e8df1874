//! Compares each function of [`Keys`] with its script, on a real Redis, in every small state: so the
//! model does not drift from `src/store/lua`. The scripts of the mutants are compared as well.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use jobcache::mutants::Mutant;
use redis::{Client, Connection, Script, ScriptInvocation, Value, cmd};
use tempfile::TempDir;

use super::{
    flaws::Flaw,
    keys::{Epoch, FIRST, FOREIGN, Keys, Leasing, Linger, Main, Meta, REPLACED, Token},
    state::PURGE,
};

const MAIN: &str = "job_status:x1";
const META: &str = "{job_status:x1}:meta";
const LEASE: &str = "{job_status:x1}:lease";
const FENCE: &str = "{job_status:x1}:fence";
const PURGE_TOKEN: &str = "{job_status:}:purge-token";
/// The purge token in force, and the one before it.
const CURRENT: &str = "p2";
const PAST: &str = "p1";
/// The one that a lease makes if there is none.
const NEW: &str = "p3";
/// Longer than the test.
const LONG_MS: i64 = 36_000_000;
const EPOCH: Epoch = Epoch { run: 1, replication: 1 };
/// The entry that a reader has seen, and what the scripts store.
const SEEN: Meta = Meta { version: 0, generation: FIRST, epoch: EPOCH };
const FILLED: Meta = Meta { version: 1, generation: 1, epoch: EPOCH };
const NEWER: Meta = Meta { version: 1, generation: 1 + REPLACED, epoch: EPOCH };

/// The scripts, with the arguments that the model gives them.
#[derive(Clone, Copy, Debug)]
enum Call {
    Lease { refused: Option<Token> },
    Fill,
    Release,
    Replace,
    Begin,
    End { write: u8, linger: Linger },
}

const CALLS: [Call; 10] = [
    Call::Lease { refused: None },
    Call::Lease { refused: Some(FIRST) },
    Call::Lease { refused: Some(FOREIGN) },
    Call::Fill,
    Call::Release,
    Call::Replace,
    Call::Begin,
    Call::End { write: 0, linger: Linger::None },
    Call::End { write: 0, linger: Linger::Some },
    Call::End { write: PURGE, linger: Linger::None },
];

impl Call {
    fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::Lease { .. } => ("lease", include_str!("../../src/store/lua/lease.lua")),
            Self::Fill => ("fill", include_str!("../../src/store/lua/fill.lua")),
            Self::Release => ("release", include_str!("../../src/store/lua/release.lua")),
            Self::Replace => ("replace", include_str!("../../src/store/lua/replace.lua")),
            Self::Begin => ("begin", include_str!("../../src/store/lua/begin.lua")),
            Self::End { .. } => ("end", include_str!("../../src/store/lua/end.lua")),
        }
    }

    /// Calls the function of the model. Returns the reply as text.
    fn model(self, keys: &mut Keys, flaw: Option<Flaw>) -> String {
        let number = |done: bool| if done { "1" } else { "0" }.to_owned();
        match self {
            Self::Lease { refused } => match keys.lease(1, refused, flaw) {
                Leasing::Stored => "stored".to_owned(),
                Leasing::Fenced => "fenced".to_owned(),
                Leasing::Leased(token) => format!("leased {token}"),
                Leasing::Granted => "granted".to_owned(),
            },
            Self::Fill => number(keys.fill(1, FILLED, flaw)),
            Self::Replace => number(keys.replace(SEEN, NEWER, flaw)),
            Self::Release => {
                keys.release(1);
                String::new()
            }
            Self::Begin => {
                keys.begin(0, flaw);
                String::new()
            }
            Self::End { write, linger } => {
                keys.end(write, linger, flaw);
                String::new()
            }
        }
    }
}

struct Server {
    process: Child,
    connection: Connection,
    /// Expiries count from here, in ms.
    base_ms: i64,
    _dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn body(version: u8) -> String {
    format!("body {version}")
}

impl Server {
    fn start() -> Self {
        let dir = TempDir::with_prefix("jobcache-model-").unwrap();
        let socket = dir.path().join("redis.sock");
        // The server ends with the thread of the test, also when that is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--port", "0", "--save", ""]);
        command.arg("--unixsocket").arg(&socket);
        command.arg("--dir").arg(dir.path()).stdout(Stdio::null());
        let process = command.spawn().expect("setpriv and redis-server are installed");
        let client = Client::open(format!("redis+unix://{}", socket.display())).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut connection = loop {
            match client.get_connection() {
                Ok(connection) => break connection,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_millis(5));
        };
        let (seconds, _): (i64, i64) = cmd("TIME").query(&mut connection).unwrap();
        let base_ms = seconds * 1000 + LONG_MS;
        Self { process, connection, base_ms, _dir: dir }
    }

    fn expiry_ms(&self, token: Token) -> i64 {
        self.base_ms + i64::from(token) * 1000
    }

    /// The metadata without the closing brace.
    fn meta(meta: Meta, purge_token: &str) -> String {
        let Meta { version, generation, .. } = meta;
        format!(r#"{{"version":{version},"generation":"{generation}","epoch":"e {purge_token}""#)
    }

    /// Puts a state of the model into Redis. Without a purge token nothing is in force.
    fn put(&mut self, keys: &Keys, has_purge_token: bool) {
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(&[MAIN, META, LEASE, FENCE, PURGE_TOKEN]);
        if has_purge_token {
            pipeline.cmd("SET").arg(PURGE_TOKEN).arg(CURRENT);
        }
        let token_of = |is_purged| if is_purged { PAST } else { CURRENT };
        match keys.main {
            Main::Absent => {}
            Main::Placeholder => {
                pipeline.cmd("SET").arg(MAIN).arg("").arg("PXAT").arg(self.base_ms);
            }
            Main::Body { version, expiry } => {
                let expiry = self.expiry_ms(expiry);
                pipeline.cmd("SET").arg(MAIN).arg(body(version)).arg("PXAT").arg(expiry);
            }
        }
        if let Some(meta) = keys.meta {
            pipeline
                .cmd("SET")
                .arg(META)
                .arg(format!("{}}}", Self::meta(meta, token_of(keys.is_entry_purged))));
        }
        if let Some(token) = keys.lease {
            let lease = format!("{token} {}", token_of(keys.is_lease_purged));
            pipeline.cmd("SET").arg(LEASE).arg(lease).arg("PXAT").arg(self.base_ms);
        }
        for write in (0..=PURGE).filter(|write| keys.fence & (1 << write) != 0) {
            pipeline.cmd("ZADD").arg(FENCE).arg(self.base_ms).arg(write);
        }
        pipeline.exec(&mut self.connection).unwrap();
    }

    /// Reads Redis back as a state of the model.
    fn keys(&mut self) -> Keys {
        let [main, meta, lease, purge_token]: [Option<String>; 4] =
            cmd("MGET").arg(&[MAIN, META, LEASE, PURGE_TOKEN]).query(&mut self.connection).unwrap();
        let is_past = |of: &str| purge_token.as_deref() != Some(of);
        let expiry_ms: i64 = cmd("PEXPIRETIME").arg(MAIN).query(&mut self.connection).unwrap();
        let fence: Vec<u8> =
            cmd("ZRANGE").arg(FENCE).arg(0).arg(-1).query(&mut self.connection).unwrap();
        let main = match main.as_deref() {
            None => Main::Absent,
            Some("") => Main::Placeholder,
            Some(text) => Main::Body {
                version: text.trim_start_matches("body ").parse().unwrap(),
                expiry: Token::try_from((expiry_ms - self.base_ms) / 1000).unwrap(),
            },
        };
        let mut is_entry_purged = false;
        let meta = meta.map(|text| {
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            let version = u8::try_from(json["version"].as_u64().unwrap()).unwrap();
            let generation = json["generation"].as_str().unwrap().parse().unwrap();
            let epoch = json["epoch"].as_str().unwrap();
            is_entry_purged = is_past(epoch.strip_prefix("e ").unwrap());
            Meta { version, generation, epoch: EPOCH }
        });
        let mut is_lease_purged = false;
        let lease = lease.map(|text| {
            let (token, of) = text.split_once(' ').unwrap();
            is_lease_purged = is_past(of);
            token.parse().unwrap()
        });
        let fence = fence.into_iter().fold(0, |bits, write| bits | 1 << write);
        Keys { main, meta, lease, fence, is_entry_purged, is_lease_purged }
    }

    /// Gives a script its keys and arguments.
    fn prepare<'s>(&self, call: Call, script: &'s Script) -> ScriptInvocation<'s> {
        let mut invocation = script.prepare_invoke();
        match call {
            Call::Lease { refused } => {
                invocation.key(MAIN).key(META).key(LEASE).key(FENCE).key(PURGE_TOKEN);
                invocation.arg(1).arg(LONG_MS);
                let refused = refused.map(|token| self.expiry_ms(token).to_string());
                invocation.arg(refused.unwrap_or_default()).arg(NEW);
            }
            Call::Fill => {
                // The TTL counts from the grant, and every lease here has the same expiry.
                let ttl_ms = self.expiry_ms(FILLED.generation) - self.base_ms + LONG_MS;
                invocation.key(MAIN).key(META).key(LEASE).key(PURGE_TOKEN);
                invocation.arg(1).arg(body(FILLED.version));
                invocation.arg(Self::meta(FILLED, CURRENT)).arg(ttl_ms).arg(LONG_MS);
            }
            Call::Release => {
                invocation.key(MAIN).key(LEASE).arg(1);
            }
            Call::Replace => {
                let sha1 = sha1_smol::Sha1::from(body(SEEN.version)).digest().to_string();
                invocation.key(MAIN).key(META).key(FENCE).key(PURGE_TOKEN).arg(sha1);
                invocation.arg(self.expiry_ms(SEEN.generation)).arg(SEEN.generation);
                invocation.arg(body(NEWER.version)).arg(Self::meta(NEWER, CURRENT));
                invocation.arg(self.expiry_ms(NEWER.generation));
            }
            Call::Begin => {
                invocation.key(MAIN).key(META).key(LEASE).key(FENCE).arg(0).arg(LONG_MS);
            }
            Call::End { write, linger } => {
                let linger_ms = if linger == Linger::Some { LONG_MS } else { 0 };
                invocation.key(MAIN).key(META).key(LEASE).key(FENCE).arg(write).arg(linger_ms);
            }
        }
        invocation
    }

    /// Runs a script. Returns its reply as the model's text.
    fn run(&mut self, call: Call, script: &Script) -> String {
        let invocation = self.prepare(call, script);
        let reply: Value = invocation.invoke(&mut self.connection).unwrap();
        match (call, reply) {
            (Call::Lease { .. }, reply) => {
                let words: Vec<Value> = redis::from_redis_value(reply).unwrap();
                let is_leased = words.len() == 3;
                let words = words.into_iter().take(if is_leased { 2 } else { 1 });
                let text = |word| redis::from_redis_value::<String>(word).unwrap();
                words.map(text).collect::<Vec<_>>().join(" ")
            }
            (Call::Fill | Call::Replace, Value::Int(done)) => done.to_string(),
            _ => String::new(),
        }
    }
}

/// Every state of a small world, also those that the protocol does not reach.
fn states() -> Vec<Keys> {
    let mains = [
        Main::Absent,
        Main::Placeholder,
        Main::Body { version: SEEN.version, expiry: FIRST },
        Main::Body { version: FILLED.version, expiry: FILLED.generation },
        Main::Body { version: SEEN.version, expiry: FOREIGN },
    ];
    let mut states = Vec::new();
    for main in mains {
        // The script that makes a placeholder deletes the meta. An empty main with meta is an entry with a
        // status other than 200, which the model does not tell from other entries.
        let is_entry = main != Main::Placeholder;
        let metas = [None, Some(SEEN), Some(FILLED)].into_iter();
        for meta in metas.filter(|meta| is_entry || meta.is_none()) {
            for lease in [None, Some(1), Some(2)] {
                for purged in 0..4 {
                    let (is_entry_purged, is_lease_purged) = (purged & 1 != 0, purged & 2 != 0);
                    if is_entry_purged && meta.is_none() || is_lease_purged && lease.is_none() {
                        continue;
                    }
                    let with =
                        |fence| Keys { main, meta, lease, fence, is_entry_purged, is_lease_purged };
                    states.extend((0..4).map(with));
                }
            }
        }
    }
    states
}

/// Where nothing is in force, the purge token may also be missing.
fn states_with_and_without_token() -> Vec<(Keys, bool)> {
    let mut states: Vec<(Keys, bool)> = states().into_iter().map(|keys| (keys, true)).collect();
    let is_void = |keys: &Keys| {
        (keys.meta.is_none() || keys.is_entry_purged)
            && (keys.lease.is_none() || keys.is_lease_purged)
    };
    let without: Vec<_> =
        states.iter().filter(|(keys, _)| is_void(keys)).map(|(k, _)| (*k, false)).collect();
    states.extend(without);
    states
}

#[test]
fn each_script_does_what_the_model_says() {
    let mut server = Server::start();
    let mutants = Mutant::ALL.into_iter().filter(|mutant| mutant.script().is_some());
    for mutant in [None].into_iter().chain(mutants.map(Some)) {
        for call in CALLS {
            let (name, source) = call.source();
            let change = mutant.and_then(Mutant::script).filter(|(of, ..)| *of == name);
            if mutant.is_some() && change.is_none() {
                continue;
            }
            let source = change.map_or_else(
                || source.to_owned(),
                |(_, line, replacement)| source.replace(line, replacement),
            );
            let script = Script::new(&source);
            for (before, has_purge_token) in states_with_and_without_token() {
                // Without a lease this mutant has no expiry to count from. It does not look at the purge token.
                let has_both = before.lease.is_some() && has_purge_token;
                if mutant == Some(Mutant::FillWithoutToken) && !has_both {
                    continue;
                }
                server.put(&before, has_purge_token);
                let reply = server.run(call, &script);
                let mut expected = before;
                let expected_reply = call.model(&mut expected, mutant.map(Flaw::Of));
                let case = format!("{mutant:?}: {call:?} on {before:?}, token: {has_purge_token}");
                assert_eq!((server.keys(), reply), (expected, expected_reply), "{case}");
            }
        }
    }
}
