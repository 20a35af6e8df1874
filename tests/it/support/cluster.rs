//! A real Redis Cluster for each test, with three masters and three replicas, and faults for it.

use std::time::Duration;

use futures_util::future::join_all;
use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value, cmd};
use tokio::time::timeout;

use super::{RedisServer, SOON, bus::Bus, eventually, free_port, redis::key};

/// Number of slots in every cluster.
pub(crate) const SLOTS: u16 = 16_384;
/// Number of masters; there are as many replicas.
const MASTERS: usize = 3;
/// The shortest timeout for which the store gives its guarantee.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum number of redirections that another client of Redis follows.
const HOPS: usize = 5;
/// Time limit for a manual failover; Redis has the same limit.
const HAND_OVER: Duration = Duration::from_secs(5);
/// Time limit for a failover: the node timeout, the election, and a busy machine.
pub(crate) const FAILOVER: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    /// The masters, then their replicas in the same order, by their roles at the start.
    pub(crate) nodes: Vec<RedisServer>,
    ids: Vec<String>,
    bus: Bus,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let nodes = u8::try_from(2 * MASTERS).expect("a few");
        let (bus, timeout) = (Bus::open(nodes), NODE_TIMEOUT.as_millis().to_string());
        let starts = (0..nodes).map(async |node| {
            let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", &timeout];
            let led = bus.args(node);
            let args = [&args[..], &led.iter().map(String::as_str).collect::<Vec<_>>()].concat();
            let args = [&args[..], &["--cluster-require-full-coverage", "no"]].concat();
            // Promote a replica as soon as possible, however old its data is.
            let args = [&args[..], &["--cluster-replica-validity-factor", "0"]].concat();
            let args = [&args[..], &["--repl-diskless-sync-delay", "0"]].concat();
            RedisServer::start_with(&args).await
        });
        let nodes = join_all(starts).await;
        let mut me = cmd("CLUSTER");
        me.arg("MYID");
        let ids = join_all(nodes.iter().map(|node| node.run(&me))).await;
        let cluster = Self { nodes, ids, bus };
        cluster.form().await;
        cluster
    }

    /// Starts a cluster with one master that owns all slots.
    pub(crate) async fn of_one(args: &[&str]) -> RedisServer {
        let bus = free_port().to_string();
        let args = [args, &["--cluster-enabled", "yes", "--cluster-port", &bus]].concat();
        let node = RedisServer::start_with(&args).await;
        let mut add = cmd("CLUSTER");
        add.arg("ADDSLOTSRANGE").arg(0).arg(SLOTS - 1);
        let () = node.run(&add).await;
        node
    }

    async fn form(&self) {
        let first = &self.nodes[0];
        for (epoch, node) in self.nodes.iter().enumerate() {
            let () = node.run(cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(epoch + 1)).await;
            let mut meet = cmd("CLUSTER");
            meet.arg("MEET").arg("127.0.0.1").arg(node.port()).arg(self.bus.port(epoch));
            let () = first.run(&meet).await;
        }
        for master in 0..MASTERS {
            let (first, last) = Self::slots_of(master);
            let mut add = cmd("CLUSTER");
            add.arg("ADDSLOTSRANGE").arg(first).arg(last);
            let () = self.nodes[master].run(&add).await;
        }
        for (replica, node) in self.nodes.iter().enumerate().skip(MASTERS) {
            let master = &self.ids[replica - MASTERS];
            eventually(SOON, async || {
                node.try_run::<()>(cmd("CLUSTER").arg("REPLICATE").arg(master)).await
            })
            .await;
        }
        self.settled().await;
    }

    /// Returns the first and last slot of a master at the start.
    pub(crate) fn slots_of(master: usize) -> (u16, u16) {
        let size = u16::try_from(usize::from(SLOTS) / MASTERS).expect("fewer than all slots");
        let first = size * u16::try_from(master).expect("one of three");
        (first, if master + 1 == MASTERS { SLOTS - 1 } else { first + size - 1 })
    }

    /// Waits until all responding nodes agree on a complete cluster, and every replica is in sync.
    pub(crate) async fn settled(&self) {
        eventually(FAILOVER, async || {
            let mut seen: Option<Vec<Value>> = None;
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                let info: String =
                    node.try_run(cmd("CLUSTER").arg("INFO")).await.map_err(describe_error)?;
                let replication: String =
                    node.try_run(cmd("INFO").arg("replication")).await.map_err(describe_error)?;
                let linked = replication.contains("role:master")
                    || replication.contains("master_link_status:up");
                if !info.contains("cluster_state:ok") || !linked {
                    return Err(info + &replication);
                }
                let slots: Vec<Value> =
                    node.try_run(cmd("CLUSTER").arg("SLOTS")).await.map_err(describe_error)?;
                let owners: Vec<Value> = slots.iter().map(owner_of).collect();
                if *seen.get_or_insert_with(|| owners.clone()) != owners {
                    return Err(format!("{owners:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Returns whether this Redis can migrate whole slots atomically, in which case jobcache keeps
    /// no near entries.
    pub(crate) async fn hands_over_whole(&self) -> bool {
        let info: String = self.nodes[0].run(cmd("INFO").arg("server")).await;
        let version = |name: &str| {
            let said = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            said.and_then(|said| {
                let mut parts = said.trim().split('.').map(|part| part.parse::<u32>().ok());
                Some((parts.next()??, parts.next()??))
            })
        };
        let valkey = version("valkey_version");
        valkey.or_else(|| version("redis_version"))
            >= Some(if valkey.is_some() { (9, 0) } else { (8, 4) })
    }

    /// Returns a URL with the first masters as seeds.
    pub(crate) fn url(&self) -> String {
        let seeds: Vec<String> =
            self.nodes[..MASTERS].iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis-cluster://{}", seeds.join(","))
    }

    /// Returns the ports of the nodes.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(RedisServer::port).collect()
    }

    /// Returns the slot of a job.
    pub(crate) async fn slot(&self, id: &str) -> u16 {
        let node = self.nodes.iter().find(|node| node.is_running()).expect("a node");
        node.run(cmd("CLUSTER").arg("KEYSLOT").arg(key(id))).await
    }

    /// Returns a job in a slot that belonged to this master at the start.
    pub(crate) async fn job_of(&self, master: usize, name: &str) -> String {
        let (first, last) = Self::slots_of(master);
        // Without letters: a write drops an id in upper case as well, which may be on another master.
        let base = name.bytes().fold(1, |sum, byte| (sum * 31 + u32::from(byte)) % 1_000_000);
        for n in 0_u32.. {
            let id = format!("{base}{n:03}");
            if (first..=last).contains(&self.slot(&id).await) {
                return id;
            }
        }
        unreachable!()
    }

    /// Returns the node that serves a job, as the nodes themselves report.
    pub(crate) async fn owner(&self, id: &str) -> usize {
        let probe = cmd("EXISTS").arg(key(id)).to_owned();
        eventually(FAILOVER, async || {
            for (place, node) in self.nodes.iter().enumerate() {
                if node.is_running() && node.try_run::<i64>(&probe).await.is_ok() {
                    return Some(place);
                }
            }
            None
        })
        .await
    }

    /// Runs a command as another client of Redis that follows redirections, like `redis-cli -c`.
    pub(crate) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> T {
        let ports = self.ports();
        eventually(FAILOVER, async || follow(&ports, command).await.map_err(describe_error)).await
    }

    /// Deletes a job's key as another client of Redis.
    pub(crate) async fn del(&self, id: &str) -> i64 {
        self.run(cmd("DEL").arg(key(id))).await
    }

    /// Returns the value of a job's key as another client of Redis sees it.
    pub(crate) async fn get(&self, id: &str) -> Option<Vec<u8>> {
        self.run(cmd("GET").arg(key(id))).await
    }

    /// Begins the migration of a slot.
    pub(crate) async fn begin_move(&self, slot: u16, from: usize, to: usize) {
        self.set_slot(to, slot, "IMPORTING", from).await;
        self.set_slot(from, slot, "MIGRATING", to).await;
    }

    /// Moves the remaining keys of a slot and completes its migration.
    pub(crate) async fn end_move(&self, slot: u16, from: usize, to: usize) {
        while self.move_keys(slot, from, to, 10).await > 0 {}
        for node in [to, from] {
            self.set_slot(node, slot, "NODE", to).await;
        }
        for (node, server) in self.nodes.iter().enumerate() {
            if server.is_running() && node != from && node != to {
                let mut set = cmd("CLUSTER");
                set.arg("SETSLOT").arg(slot).arg("NODE").arg(&self.ids[to]);
                // A replica learns this from its master.
                let _ = server.try_run::<()>(&set).await;
            }
        }
    }

    /// Moves at most `most` keys of a slot, and returns their number.
    pub(crate) async fn move_keys(&self, slot: u16, from: usize, to: usize, most: usize) -> usize {
        let mut list = cmd("CLUSTER");
        list.arg("GETKEYSINSLOT").arg(slot).arg(most);
        let names: Vec<String> = self.nodes[from].run(&list).await;
        if names.is_empty() {
            return 0;
        }
        self.move_names(&names, from, to).await;
        names.len()
    }

    /// Moves these keys.
    pub(crate) async fn move_names(&self, names: &[String], from: usize, to: usize) {
        let mut migrate = cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(self.nodes[to].port()).arg("").arg(0).arg(5000);
        migrate.arg("KEYS").arg(names);
        let _: String = self.nodes[from].run(&migrate).await;
    }

    async fn set_slot(&self, node: usize, slot: u16, state: &str, other: usize) {
        let mut set = cmd("CLUSTER");
        set.arg("SETSLOT").arg(slot).arg(state).arg(&self.ids[other]);
        let () = self.nodes[node].run(&set).await;
    }

    /// Returns the current masters, as the nodes themselves report.
    pub(crate) async fn masters(&self) -> Vec<usize> {
        let mut masters = Vec::new();
        for (place, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
            let info: String = node.run(cmd("INFO").arg("replication")).await;
            if info.contains("role:master") {
                masters.push(place);
            }
        }
        masters
    }

    /// Returns the replica of a master.
    pub(crate) async fn replica_of(&self, master: usize) -> usize {
        let port = format!("master_port:{}\r\n", self.nodes[master].port());
        eventually(FAILOVER, async || {
            for (place, node) in self.nodes.iter().enumerate() {
                let info = node.try_run::<String>(cmd("INFO").arg("replication")).await;
                if info.is_ok_and(|info| info.contains(&port)) {
                    return Some(place);
                }
            }
            None
        })
        .await
    }

    /// Makes a replica take over from its master in a manual failover. On a busy machine Redis may
    /// give up after its limit of five seconds; the failover is then requested again.
    pub(crate) async fn hand_over(&self, replica: usize) {
        eventually(FAILOVER, async || {
            let _ = self.nodes[replica].try_run::<()>(cmd("CLUSTER").arg("FAILOVER")).await;
            timeout(HAND_OVER, self.is_master(replica)).await
        })
        .await;
    }

    /// Partitions the bus: these nodes and the others cannot reach each other, and clients can
    /// reach all.
    pub(crate) fn cut_off(&self, nodes: &[usize]) {
        self.bus.cut_off(nodes);
    }

    /// Ends the partition.
    pub(crate) fn heal(&self) {
        self.bus.heal();
    }

    /// Waits until a node is a master.
    pub(crate) async fn is_master(&self, node: usize) {
        eventually(FAILOVER, async || {
            let info: String =
                self.nodes[node].try_run(cmd("INFO").arg("replication")).await.ok()?;
            info.contains("role:master").then_some(())
        })
        .await;
    }
}

/// Returns the first slot, the last slot and the id of the owner.
fn owner_of(range: &Value) -> Value {
    let Value::Array(parts) = range else { panic!("{range:?}") };
    let Value::Array(master) = &parts[2] else { panic!("{range:?}") };
    Value::Array(vec![parts[0].clone(), parts[1].clone(), master[2].clone()])
}

#[allow(clippy::needless_pass_by_value, reason = "a signature for `map_err`")]
fn describe_error(error: RedisError) -> String {
    error.to_string()
}

/// Runs a command at the node that serves its key.
pub(crate) async fn follow<T: FromRedisValue>(ports: &[u16], command: &Cmd) -> RedisResult<T> {
    let mut last: Option<RedisError> = None;
    for port in ports {
        let (mut port, mut asking) = (*port, false);
        for _ in 0..HOPS {
            let error = match once(port, asking, command).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            asking = error.code() == Some("ASK");
            let next = error.redirect_node().and_then(|(to, _)| {
                to.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok())
            });
            last = Some(error);
            match next {
                Some(next) => port = next,
                None => break,
            }
        }
    }
    Err(last.expect("a port"))
}

async fn once<T: FromRedisValue>(port: u16, asking: bool, command: &Cmd) -> RedisResult<T> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(NODE_TIMEOUT))
        .set_response_timeout(Some(NODE_TIMEOUT));
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    if asking {
        let () = cmd("ASKING").query_async(&mut connection).await?;
    }
    command.query_async(&mut connection).await
}
