//! Commands that a server refuses: renamed ones, those that the ACL denies, and those of slots that
//! it does not serve.
//!
//! An error inside a script does not name the command. So where one was refused, all that jobcache
//! uses are tried, on a key that is not there, so that they change nothing. `jobcache check` tries
//! them always.

use std::{convert::Infallible, time::Duration};

use redis::{Cmd, Value, cmd};
use sha1_smol::Sha1;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{
    dial::{RedisConnection, Target},
    session::Session,
    state::ShardState,
};
use crate::store::{
    Diagnosis, StoreError,
    errors::{DETACHED_TIMEOUT, Result, server_message},
};

/// Interval between two looks whether refused commands work again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Commands without which no write is confirmed, whatever else works.
const OF_WRITES: [&str; 12] = [
    "DEL",
    "EVALSHA",
    "EXISTS",
    "PEXPIREAT",
    "SCRIPT LOAD",
    "STRLEN",
    "TIME",
    "TYPE",
    "ZADD",
    "ZRANGE",
    "ZREM",
    "ZREMRANGEBYSCORE",
];

/// Commands of the tracking connection alone.
const OF_TRACKING: [&str; 3] = ["HELLO", "PING", "CLIENT TRACKING"];

/// What it means that these commands are refused.
fn effect(diagnosis: Diagnosis, commands: &[&'static str]) -> &'static str {
    let is_any = |of: &[&str]| commands.iter().any(|command| of.contains(command));
    let keeps_writes_unconfirmed = match diagnosis {
        // A full server still deletes.
        Diagnosis::Memory => false,
        // Of the slots of other nodes no command is served.
        Diagnosis::ClusterNode | Diagnosis::ClusterDown => true,
        _ => is_any(&OF_WRITES),
    };
    if keeps_writes_unconfirmed {
        "what needs them goes to the upstream, and writes stay unconfirmed"
    } else if is_any(&OF_TRACKING) && commands.iter().all(|of| OF_TRACKING.contains(of)) {
        "changes are not tracked, so each hit asks Redis"
    } else {
        "reads that need them go to the upstream"
    }
}

/// Warns about commands that the server of a session refuses, and notices when they work again; never
/// returns.
pub(super) async fn report_refusals(shard: &ShardState, session: &Session) -> Infallible {
    let problems = &shard.context.problems;
    // What is wrong, once the trials have shown it.
    let mut shown: Option<Diagnosis> = None;
    loop {
        let noted = match shown {
            Some(_) => timeout(LOOK_EVERY, shard.refused.next()).await.ok(),
            None => Some(shard.refused.next().await),
        };
        let tried = try_all(shard, session).await;
        match (shown, noted) {
            (Some(diagnosis), _) if tried.as_ref().is_some_and(Vec::is_empty) => {
                problems.clear_if(diagnosis);
                shown = None;
            }
            (_, Some(refused)) => {
                let commands = tried.unwrap_or_default();
                shown = Some(refused.0).filter(|_| !commands.is_empty());
                warn_of(shard, session, refused, commands);
            }
            (Some(diagnosis), None) => {
                if let Some(commands) = tried {
                    problems.note(diagnosis, commands);
                }
            }
            (None, None) => {}
        }
        if shown.is_some() {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Tries all commands. Returns the names of those that are refused; `None` without an answer.
async fn try_all(shard: &ShardState, session: &Session) -> Option<Vec<&'static str>> {
    let context = &shard.context;
    let name = shard.slots.name(&context.config.prefix, "trial", 0).unwrap_or_default();
    let (is_in_cluster, is_tracked) = (session.is_in_cluster, context.watcher.is_some());
    let trials = TrialScope { name: &name, is_in_cluster, is_tracked }.commands();
    let refused = timeout(DETACHED_TIMEOUT, refused(&session.lane.connection, trials)).await;
    let refused = refused.ok()?.ok()?;
    Some(refused.iter().map(|refusal| refusal.command).collect())
}

/// Warns once a minute, and notes the problem for `/status`.
fn warn_of(
    shard: &ShardState,
    session: &Session,
    (diagnosis, said): (Diagnosis, String),
    commands: Vec<&'static str>,
) {
    let problems = &shard.context.problems;
    let (store, user) = (&shard.address, session.target.username());
    let shown = commands.join(", ");
    let pending = shard.context.retry_queue.pending.len();
    let effect = effect(diagnosis, &commands);
    problems.note(diagnosis, commands);
    let Some(suppressed) = problems.admit_refusal() else { return };
    let error = StoreError::Denied(diagnosis, said);
    warn!(
        store, user, commands = shown, %error, effect, pending, suppressed,
        "Redis refuses commands"
    );
}

/// Fails with all commands that the server refuses.
pub(super) async fn check_commands(
    connection: &RedisConnection,
    target: &Target,
    trials: TrialScope<'_>,
) -> Result<()> {
    let refused = timeout(DETACHED_TIMEOUT, refused(connection, trials.commands())).await??;
    let Some(Refusal { diagnosis, said, .. }) = refused.first() else { return Ok(()) };
    let commands: Vec<_> = refused.iter().map(|refusal| refusal.command).collect();
    let commands = commands.join(", ");
    let by_acl = match diagnosis {
        Diagnosis::Acl => format!("{} may not run ", target.user()),
        _ => String::new(),
    };
    Err(StoreError::Denied(*diagnosis, format!("{by_acl}{commands} ({said})")))
}

/// A command that is refused.
struct Refusal {
    command: &'static str,
    diagnosis: Diagnosis,
    /// The error message of the server.
    said: String,
}

/// Tries commands, and returns those that are refused.
async fn refused(
    connection: &RedisConnection,
    trials: Vec<(&'static str, Cmd)>,
) -> Result<Vec<Refusal>> {
    let mut pipeline = redis::pipe();
    for (_, command) in &trials {
        pipeline.add_command(command.clone());
    }
    pipeline.ignore_errors();
    let replies: Vec<Value> = pipeline.query_async(&mut connection.requests.clone()).await?;
    let refused = trials.iter().zip(replies).filter_map(|((name, _), reply)| {
        let error = StoreError::from(reply.extract_error().err()?);
        let diagnosis = error.diagnosis().filter(|is| is.refuses_commands())?;
        let said = match error {
            StoreError::Denied(_, said) => said,
            error => error.to_string(),
        };
        Some(Refusal { command: name, diagnosis, said })
    });
    Ok(refused.collect())
}

/// A script that does nothing.
const SCRIPT: &str = "return 1";

/// Commands on one key, with what follows the key. None changes a key that is not there.
const ON_KEY: [(&str, &[&str]); 13] = [
    ("GET", &[]),
    ("STRLEN", &[]),
    ("EXISTS", &[]),
    ("TYPE", &[]),
    ("PTTL", &[]),
    ("PEXPIRETIME", &[]),
    ("PEXPIREAT", &["1"]),
    ("DEL", &[]),
    ("SET", &["", "XX"]),
    ("ZADD", &["XX", "0", "none"]),
    ("ZRANGE", &["0", "0"]),
    ("ZREM", &["none"]),
    ("ZREMRANGEBYSCORE", &["0", "0"]),
];

/// The key and the uses for which commands are tried.
pub(super) struct TrialScope<'n> {
    /// A key that is not there, named like the companions of the main key of a job.
    pub(super) name: &'n str,
    /// Whether the server is one of a cluster.
    pub(super) is_in_cluster: bool,
    /// Whether changes on it are to be tracked.
    pub(super) is_tracked: bool,
}

impl TrialScope<'_> {
    /// Returns the commands that jobcache uses, each with its name.
    fn commands(&self) -> Vec<(&'static str, Cmd)> {
        let name = self.name;
        let on_key =
            |(command, rest): &(&'static str, &[&str])| trial(command, &[&[name], *rest].concat());
        // An ACL may allow one of the two forms of keys only.
        let main = name.trim_start_matches('{').split('}').next().unwrap_or_default();
        let sha1 = Sha1::from(SCRIPT).digest().to_string();
        let mut trials = vec![trial("MGET", &[name, main])];
        trials.extend(ON_KEY.iter().map(on_key));
        trials.push(trial("SCRIPT LOAD", &[SCRIPT]));
        trials.push(trial("EVALSHA", &[&sha1, "1", name]));
        trials.push(trial("SCAN", &["0", "COUNT", "1"]));
        trials.push(trial("TIME", &[]));
        trials.push(trial("INFO", &["server"]));
        if self.is_tracked {
            trials.push(trial("HELLO", &[]));
            trials.push(trial("PING", &[]));
            trials.push(trial("CLIENT TRACKING", &["OFF"]));
        }
        if self.is_in_cluster {
            // In this order: `ASKING` is about the next command, which must be no other caller's.
            trials.push(trial("ASKING", &[]));
            trials.push(trial("EVAL", &[SCRIPT, "1", name]));
        }
        trials
    }
}

/// A command, from its name as it is shown and its arguments.
fn trial(shown: &'static str, args: &[&str]) -> (&'static str, Cmd) {
    let mut words = shown.split(' ');
    let mut command = cmd(words.next().unwrap_or_default());
    for word in words.chain(args.iter().copied()) {
        command.arg(word);
    }
    (shown, command)
}

/// Slots of which a node of a cluster is asked.
const SLOTS_TRIED: u32 = 64;

/// Fails if a server that the URL names alone is a node of a cluster and does not serve all slots.
/// A cluster of one master may be used like a single Redis.
pub(super) async fn check_serves_all(connection: &RedisConnection, prefix: &str) -> Result<()> {
    let mut pipeline = redis::pipe();
    for n in 0..SLOTS_TRIED {
        pipeline.cmd("EXISTS").arg(format!("{{{prefix}{n}}}:trial"));
    }
    let tried = pipeline.query_async::<Vec<i64>>(&mut connection.requests.clone()).await;
    match tried.map_err(|error| (server_message(&error), StoreError::from(error))) {
        Err((said, StoreError::Redirected(_))) => {
            Err(StoreError::Denied(Diagnosis::ClusterNode, said))
        }
        // A right that is missing shows where the command is used.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_needs_some_of_the_commands() {
        for (diagnosis, commands, expected) in [
            (Diagnosis::UnknownCommand, &["MGET"][..], false),
            (Diagnosis::Acl, &["MGET", "SET"], false),
            (Diagnosis::Memory, &["SET", "ZADD"], false),
            (Diagnosis::Acl, &["MGET", "DEL"], true),
            (Diagnosis::Disk, &["DEL", "SET", "ZADD"], true),
            (Diagnosis::Acl, &[], false),
        ] {
            let said = effect(diagnosis, commands);
            assert_eq!(said.contains("unconfirmed"), expected, "{diagnosis} {commands:?}");
        }
        assert!(effect(Diagnosis::Acl, &["CLIENT TRACKING"]).contains("each hit asks"));
    }

    #[test]
    fn each_command_of_writes_is_tried() {
        let scope = TrialScope { name: "{p}:trial", is_in_cluster: true, is_tracked: true };
        let trials = scope.commands();
        assert!(OF_WRITES.iter().all(|of| trials.iter().any(|(name, _)| name == of)));
    }
}
