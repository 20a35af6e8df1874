//! Commands that a server refuses: renamed ones, those that the ACL denies, and those of slots that
//! it does not serve.
//!
//! An error inside a script does not name the command. So where one was refused, all that jobcache
//! uses are tried, on a key that is not there, so that they change nothing. `jobcache check` tries
//! them always.

use std::convert::Infallible;

use redis::{Cmd, Value, cmd};
use sha1_smol::Sha1;
use tokio::time::timeout;
use tracing::warn;

use super::{
    dial::{RedisConnection, Target},
    session::Session,
    state::ShardState,
};
use crate::store::{
    Diagnosis, StoreError,
    errors::{DETACHED_TIMEOUT, Result, words},
};

/// Warns about commands that the server of a session refuses; never returns.
pub(super) async fn report_refusals(shard: &ShardState, session: &Session) -> Infallible {
    loop {
        let (diagnosis, said) = shard.refused.next().await;
        let error = StoreError::Denied(diagnosis, said);
        let problems = &shard.context.problems;
        let Some(suppressed) = problems.admit(&error, &shard.warnings.connect) else { continue };
        let context = &shard.context;
        let name = shard.slots.name(&context.config.prefix, "trial", 0).unwrap_or_default();
        let trials = trials(&name, session.is_in_cluster, context.watcher.is_some());
        let refused = timeout(DETACHED_TIMEOUT, refused(&session.connection, trials)).await;
        let refused = refused.ok().and_then(Result::ok).unwrap_or_default();
        let commands: Vec<_> = refused.iter().map(|(command, ..)| *command).collect();
        let shown = commands.join(", ");
        problems.note(diagnosis, commands);
        warn!(
            store = shard.address,
            user = session.target.username(),
            commands = shown,
            %error,
            pending = context.retry_queue.pending.len(),
            suppressed,
            "Redis refuses commands; what needs them goes to the upstream, and writes stay unconfirmed"
        );
    }
}

/// Fails with all commands that the server refuses.
pub(super) async fn check_commands(
    connection: &RedisConnection,
    target: &Target,
    trials: Vec<(&'static str, Cmd)>,
) -> Result<()> {
    let refused = timeout(DETACHED_TIMEOUT, refused(connection, trials)).await??;
    let Some((_, diagnosis, said)) = refused.first() else { return Ok(()) };
    let commands: Vec<_> = refused.iter().map(|(command, ..)| *command).collect();
    let commands = commands.join(", ");
    let what = match diagnosis {
        Diagnosis::Acl => format!("{} may not run", target.user()),
        _ => "it refuses".to_owned(),
    };
    Err(StoreError::Denied(*diagnosis, format!("{what} {commands} ({said})")))
}

/// Each command that is refused, and why.
async fn refused(
    connection: &RedisConnection,
    trials: Vec<(&'static str, Cmd)>,
) -> Result<Vec<(&'static str, Diagnosis, String)>> {
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
        Some((*name, diagnosis, said))
    });
    Ok(refused.collect())
}

/// The commands that jobcache uses, on `name`: a key like those next to the main key of a job, which
/// is not there.
pub(super) fn trials(
    name: &str,
    is_in_cluster: bool,
    is_tracked: bool,
) -> Vec<(&'static str, Cmd)> {
    const SCRIPT: &str = "return 1";
    // An ACL may allow one of the two forms of keys only.
    let main = name.trim_start_matches('{').split('}').next().unwrap_or_default();
    let on_key = |command: &'static str, args: &[&str]| {
        let mut on_key = cmd(command);
        on_key.arg(name).arg(args);
        (command, on_key)
    };
    let plain = |shown: &'static str, words: &[&str]| {
        let mut words = words.iter();
        let mut plain = cmd(words.next().unwrap_or(&shown));
        plain.arg(words.as_slice());
        (shown, plain)
    };
    let sha1 = Sha1::from(SCRIPT).digest().to_string();
    let mut trials = vec![
        on_key("MGET", &[main]),
        on_key("GET", &[]),
        on_key("STRLEN", &[]),
        on_key("EXISTS", &[]),
        on_key("TYPE", &[]),
        on_key("PTTL", &[]),
        on_key("PEXPIRETIME", &[]),
        on_key("PEXPIREAT", &["1"]),
        on_key("DEL", &[]),
        // Only if it is there.
        on_key("SET", &["", "XX"]),
        on_key("ZADD", &["XX", "0", "none"]),
        on_key("ZRANGE", &["0", "0"]),
        on_key("ZREM", &["none"]),
        on_key("ZREMRANGEBYSCORE", &["0", "0"]),
        plain("SCRIPT LOAD", &["SCRIPT", "LOAD", SCRIPT]),
        plain("EVALSHA", &["EVALSHA", &sha1, "1", name]),
        plain("SCAN", &["SCAN", "0", "COUNT", "1"]),
        plain("TIME", &["TIME"]),
        plain("INFO", &["INFO", "server"]),
    ];
    if is_tracked {
        trials.push(plain("HELLO", &["HELLO"]));
        trials.push(plain("PING", &["PING"]));
        trials.push(plain("CLIENT TRACKING", &["CLIENT", "TRACKING", "OFF"]));
    }
    if is_in_cluster {
        // In this order: `ASKING` is about the next command, which must be no other caller's.
        trials.push(plain("ASKING", &["ASKING"]));
        trials.push(plain("EVAL", &["EVAL", SCRIPT, "1", name]));
    }
    trials
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
    match tried.map_err(|error| (words(&error), StoreError::from(error))) {
        Err((said, StoreError::Redirected(_))) => {
            Err(StoreError::Denied(Diagnosis::ClusterNode, said))
        }
        // A right that is missing shows where the command is used.
        _ => Ok(()),
    }
}
