//! Commands and scripts of jobcache, one at a time and from many connections at once.

use std::time::Duration;

use redis::{Cmd, Connection, Pipeline, Script};

use super::{
    Measured,
    bare::{Bare, key},
};
use crate::{Result, outcome::count};

/// A round of the barrier that also reads a key.
const CARRIES: &str = "ping with a key";
/// The measured operations, in the order of the table.
pub(super) const ALL: [&str; 8] =
    ["ping", CARRIES, "lookup", "lease", "fill", "end", "del", "probe"];
/// How the operations arrive.
#[derive(Clone, Copy)]
struct CallPattern {
    name: &'static str,
    connections: usize,
    times: usize,
    /// Pause after each operation, or after one operation of each connection.
    pause: Duration,
}

/// Spaced so that Redis sleeps between operations, at about a thousand per second.
const ALONE: CallPattern =
    CallPattern { name: "alone", connections: 1, times: 1_000, pause: Duration::from_micros(700) };
const TOGETHER: CallPattern =
    CallPattern { name: "together", connections: 32, times: 4_000, pause: Duration::ZERO };
const BODY: usize = 600;
/// Length of the metadata of an entry with a few headers.
const META: usize = 500;
const TOKEN: &str = "0123456789abcdef-1";

pub(super) fn measure(bare: &mut Bare, measured: &mut Measured) -> Result<()> {
    let sources = [
        include_str!("../../../src/store/lua/lease.lua"),
        include_str!("../../../src/store/lua/fill.lua"),
        include_str!("../../../src/store/lua/end.lua"),
    ];
    for source in sources {
        let _: String = Script::new(source).prepare_invoke().load(&mut bare.control)?;
    }
    for manner in [ALONE, TOGETHER] {
        let mut connections: Vec<Connection> =
            (0..manner.connections).map(|_| bare.connect()).collect::<Result<_>>()?;
        let mut measure = |bare: &mut Bare, name: &str| {
            let took = run(bare, &mut connections, name, manner)?;
            measured.add(&format!("{name} {}", manner.name), took);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        let empty = bare.info("used_memory")?;
        for name in ["ping", "probe", "lease", "fill"] {
            measure(bare, name)?;
        }
        let used = bare.info("used_memory")? - empty;
        // `del` runs last and finds entries, as a purge does.
        for name in ["lookup", CARRIES, "end", "lease", "fill", "del"] {
            measure(bare, name)?;
        }
        measured.add("entry bytes", used / count(manner.times));
    }
    Ok(())
}

/// Returns the microseconds per operation.
fn run(
    bare: &mut Bare,
    connections: &mut [Connection],
    name: &str,
    manner: CallPattern,
) -> Result<f64> {
    let mut track = |switch| {
        for connection in &mut *connections {
            let _: () = redis::cmd("CLIENT").arg(&["TRACKING", switch]).query(connection)?;
        }
        Ok::<_, redis::RedisError>(())
    };
    track(if name == CARRIES { "ON" } else { "OFF" })?;
    let commands: Vec<Pipeline> = (0..manner.times).map(|at| command(name, at)).collect();
    let took = bare.cost_us(|_| {
        for chunk in commands.chunks(connections.len()) {
            for (connection, pipeline) in connections.iter_mut().zip(chunk) {
                connection.send_packed_command(&pipeline.get_packed_pipeline())?;
            }
            for (connection, pipeline) in connections.iter_mut().zip(chunk) {
                for _ in pipeline.cmd_iter() {
                    connection.recv_response()?;
                }
            }
            std::thread::sleep(manner.pause);
        }
        Ok(())
    })?;
    Ok(took / count(manner.times))
}

fn command(name: &str, at: usize) -> Pipeline {
    let main = key(at);
    let companion = |role: &str| format!("{{{main}}}:{role}");
    let [meta, lease, fence] = ["meta", "lease", "fence"].map(companion);
    let mut pipeline = redis::pipe();
    match name {
        "ping" => {
            pipeline.cmd("PING");
        }
        "probe" => {
            pipeline.cmd("INFO").arg("replication").cmd("TIME");
        }
        "lease" => {
            let source = include_str!("../../../src/store/lua/lease.lua");
            let mut command = evalsha(source, &[&main, &meta, &lease, &fence]);
            command.arg(TOKEN).arg(60_000).arg("");
            pipeline.add_command(command);
        }
        "fill" => {
            let source = include_str!("../../../src/store/lua/fill.lua");
            let mut command = evalsha(source, &[&main, &meta, &lease]);
            command.arg(TOKEN).arg("x".repeat(BODY)).arg("y".repeat(META));
            command.arg(300_000).arg(60_000);
            pipeline.add_command(command);
        }
        "lookup" => {
            pipeline.cmd("MGET").arg(&main).arg(&meta).cmd("PEXPIRETIME").arg(&main);
        }
        CARRIES => {
            pipeline.cmd("PEXPIRETIME").arg(&main).cmd("PING");
        }
        "del" => {
            pipeline.cmd("DEL").arg(&main);
        }
        _ => {
            let source = include_str!("../../../src/store/lua/end.lua");
            let mut command = evalsha(source, &[&main, &meta, &lease, &fence]);
            command.arg(TOKEN).arg(0);
            pipeline.add_command(command);
        }
    }
    pipeline
}

fn evalsha(source: &str, keys: &[&String]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(Script::new(source).get_hash()).arg(keys.len());
    for key in keys {
        command.arg(key.as_str());
    }
    command
}
