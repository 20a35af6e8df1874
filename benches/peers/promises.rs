//! Counts how often each peer gives an answer that a cache of jobs must not give.
//!
//! Each figure is a count of trials, each with its own job. Races are forced: the API holds a read
//! back until the change and its purge have been acknowledged.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::Value;

use crate::{
    Result,
    api::Api,
    http::{Answer, Client},
    interrupt::Interrupt,
    purge::Purge,
    roster::Peer,
    servers::Redis,
    table::Table,
};

/// Trials of each kind.
const TRIALS: usize = 100;
/// Time limit for the first hit: a jobcache with a new Redis serves none for a second.
const WARM: Duration = Duration::from_secs(20);
/// Interval between two attempts to get a hit.
const WARM_STEP: Duration = Duration::from_millis(20);
/// Reads while the store is unavailable.
const READS: usize = 40;
/// Two tokens with the same 32-bit hash (`farmhash::fingerprint32`), by which Bloom distinguishes
/// them: the first such pair in `Bearer user-1`, `Bearer user-2`, and so on.
const COLLIDING_TOKENS: [&str; 2] = ["Bearer user-35601", "Bearer user-77514"];

/// The counts of one peer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PromiseCounts {
    pub(crate) peer: &'static str,
    /// Second polls answered without the API, without and with a token.
    hits: [usize; 2],
    /// Older bodies after an acknowledged write through the peer.
    older_after_write: usize,
    /// Older bodies after an acknowledged purge, without and during a read.
    older_after_purge: Option<[usize; 2]>,
    /// Bodies made for another token.
    leaked: usize,
    /// Whether a body was made for another token with the same hash.
    leaked_to_namesake: bool,
    /// Failures while Redis hangs, and after it is killed.
    without_store: Option<[Outage; 2]>,
}

/// Failures and delays that clients see during an outage.
#[derive(Clone, Copy, Debug, Serialize)]
struct Outage {
    failed: usize,
    worst_ms: f64,
}

/// One peer in front of an API with changing jobs.
struct Trial<'t> {
    peer: &'t Peer,
    api: &'t Api,
    /// Prefix of the job ids, so that no two kinds of trials share a job.
    name: &'static str,
}

/// Puts a peer through all trials.
pub(crate) fn judge(peer: &Peer, api: &Api, interrupt: &Interrupt) -> Result<PromiseCounts> {
    interrupt.check()?;
    let trial = |name| Trial { peer, api, name };
    trial("first").wait_for_a_hit()?;
    let hits = [
        trial("anonymous").count(|trial, id| trial.is_spared(id, None))?,
        trial("token").count(|trial, id| trial.is_spared(id, Some("Bearer alice")))?,
    ];
    let older_after_write = trial("write").count(Trial::is_older_after_a_write)?;
    let purge = peer.purge();
    let older_after_purge = purge
        .map(|purge| -> Result<_> {
            let idle = trial("purge").count(|trial, id| trial.is_older_after(purge, id))?;
            let racing = trial("race").count(|trial, id| trial.is_older_during_read(purge, id))?;
            Ok([idle, racing])
        })
        .transpose()?;
    let leaked =
        trial("users").count(|trial, id| trial.leaks(id, ["Bearer alice", "Bearer bob"]))?;
    let leaked_to_namesake = trial("namesakes").leaks("namesakes-0", COLLIDING_TOKENS)?;
    interrupt.check()?;
    let without_store = outages(peer)?;
    let peer = peer.entrant.name;
    Ok(PromiseCounts {
        peer,
        hits,
        older_after_write,
        older_after_purge,
        leaked,
        leaked_to_namesake,
        without_store,
    })
}

impl Trial<'_> {
    fn count(self, one: impl Fn(&Self, &str) -> Result<bool>) -> Result<usize> {
        let mut count = 0;
        for number in 0..TRIALS {
            let id = format!("{}-{number}", self.name);
            let yes = one(&self, &id).map_err(|error| format!("{id}: {error}"))?;
            count += usize::from(yes);
        }
        Ok(count)
    }

    fn wait_for_a_hit(&self) -> Result<()> {
        let deadline = Instant::now() + WARM;
        while !self.is_spared("first-0", None)? {
            if Instant::now() > deadline {
                return Err("serves no hits".into());
            }
            thread::sleep(WARM_STEP);
        }
        Ok(())
    }

    fn is_spared(&self, id: &str, user: Option<&str>) -> Result<bool> {
        self.get(id, user)?;
        let reads = self.api.reads(id);
        self.get(id, user)?;
        Ok(self.api.reads(id) == reads)
    }

    fn is_older_after_a_write(&self, id: &str) -> Result<bool> {
        let before = self.get(id, None)?;
        let written = self.request("PUT", id, None)?;
        if written.status != 200 {
            return Err(format!("{written:?}").into());
        }
        Ok(self.get(id, None)? == before)
    }

    fn is_older_after(&self, purge: Purge, id: &str) -> Result<bool> {
        let before = self.get(id, None)?;
        self.api.change(id);
        purge.purge(id)?;
        Ok(self.get(id, None)? == before)
    }

    /// The read sees the old version, and is answered after the purge has been acknowledged.
    fn is_older_during_read(&self, purge: Purge, id: &str) -> Result<bool> {
        self.api.hold(id);
        let reads = self.api.reads(id) + 1;
        let before = thread::scope(|scope| -> Result<_> {
            let reader = scope.spawn(|| self.get(id, None));
            let overtaken = self.api.wait_for_reads(id, reads).and_then(|()| {
                self.api.change(id);
                purge.purge(id)
            });
            self.api.release(id);
            let before = reader.join().unwrap_or_else(|_| Err("the reader panicked".into()))?;
            overtaken.map(|()| before)
        })?;
        Ok(self.get(id, None)? == before)
    }

    fn leaks(&self, id: &str, [one, other]: [&str; 2]) -> Result<bool> {
        // Read twice, because some caches store only on the second request.
        self.get(id, Some(one))?;
        self.get(id, Some(one))?;
        Ok(!self.get(id, Some(other))?.contains(other))
    }

    fn get(&self, id: &str, user: Option<&str>) -> Result<String> {
        let Answer { status, body } = self.request("GET", id, user)?;
        if status != 200 {
            return Err(format!("GET {id}: {status}").into());
        }
        Ok(String::from_utf8(body)?)
    }

    fn request(&self, method: &str, id: &str, user: Option<&str>) -> Result<Answer> {
        request(self.peer.address, method, id, user)
    }
}

fn request(proxy: SocketAddr, method: &str, id: &str, user: Option<&str>) -> Result<Answer> {
    let fields: Vec<_> = user.iter().map(|user| ("Authorization", *user)).collect();
    Client::new(proxy)?.request(method, &format!("/jobs/{id}"), &fields)
}

/// Stops the store, then kills it; every other read is of a job that was in the cache.
fn outages(peer: &Peer) -> Result<Option<[Outage; 2]>> {
    let address = peer.address;
    let Some(redis) = &peer.redis else { return Ok(None) };
    for number in 0..READS {
        request(address, "GET", &format!("warm-{number}"), None)?;
    }
    signal(redis, Signal::STOP)?;
    let hung = outage(address, "hung");
    signal(redis, Signal::KILL)?;
    let dead = outage(address, "dead");
    Ok(Some([hung, dead]))
}

fn signal(redis: &Redis, signal: Signal) -> Result<()> {
    let pid = i32::try_from(redis.process.pid())?;
    Ok(kill_process(Pid::from_raw(pid).ok_or("no process")?, signal)?)
}

fn outage(proxy: SocketAddr, name: &str) -> Outage {
    let mut outage = Outage { failed: 0, worst_ms: 0.0 };
    for number in 0..READS {
        let id =
            if number % 2 == 0 { format!("warm-{number}") } else { format!("{name}-{number}") };
        let started = Instant::now();
        let answer = request(proxy, "GET", &id, None);
        outage.failed += usize::from(!answer.is_ok_and(|answer| answer.status == 200));
        outage.worst_ms = outage.worst_ms.max(milliseconds(started.elapsed()));
    }
    outage
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The table for `benches/README.md`.
pub(crate) fn table(all: &[PromiseCounts]) -> String {
    let mut table = Table::new(&[
        "peer",
        "API spared",
        "with a token",
        "older after a write",
        "after a purge",
        "purge during a read",
        "other user's job",
        "tokens with one hash",
        "Redis hangs: failed, worst ms",
        "Redis is dead",
    ]);
    for kept in all {
        let purge = |at: usize| {
            kept.older_after_purge.map_or_else(|| "no purge".to_owned(), |counts| share(counts[at]))
        };
        let away = |at: usize| match kept.without_store {
            None => "-".to_owned(),
            Some(outages) => {
                format!("{} of {READS}, {:.0}", outages[at].failed, outages[at].worst_ms)
            }
        };
        table.row(vec![
            kept.peer.to_owned(),
            share(kept.hits[0]),
            share(kept.hits[1]),
            share(kept.older_after_write),
            purge(0),
            purge(1),
            share(kept.leaked),
            if kept.leaked_to_namesake { "given" } else { "kept" }.to_owned(),
            away(0),
            away(1),
        ]);
    }
    format!("\n### promises\n\n{}", table.render())
}

/// Returns all figures.
pub(crate) fn json(all: &[PromiseCounts]) -> Result<Value> {
    Ok(serde_json::to_value(all)?)
}

fn share(count: usize) -> String {
    format!("{count} of {TRIALS}")
}
