//! Topology refresh: which nodes are asked, how often, and which answers are used.
//!
//! A refresh is due once a second, and at once when a node redirected us or a master was lost. A
//! few nodes are asked at a time: masters that we are connected to, and others. All our masters may
//! be healthy but on one side of a split while replicas on the other side have been told to take
//! over (`CLUSTER FAILOVER TAKEOVER`, as for another data centre); then only the others know. While
//! all is well, the others are asked over connections that are kept. New ones are opened in the
//! background, so that no refresh waits for a node that is gone. Nodes that have heard of fewer
//! epochs than we have are behind, and are not believed unless there has been no other answer for a
//! long time.
//!
//! `jobcache check` asks the seeds once.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use super::{
    Cluster,
    plan::{NodeView, Plan},
};
use crate::{
    config::{ClusterSeeds, Config, NearMode},
    observe::metrics::Registry,
    store::{
        Diagnosis, FarStore, NodeAddress, Redirect, StoreError,
        errors::{DETACHED_TIMEOUT, Result},
        redis::{
            dial::{ClusterReplies, Target},
            distance,
            refusals::{TrialScope, check_commands},
            server_info::claimed_epoch,
            shared_keys::live_records,
        },
        slots::{OwnedSlots, SLOTS, slot_of},
        words::now_ms,
    },
    tls::TlsMetrics,
};

/// Interval between two refreshes without a request.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// The same interval while a master is not trusted or a slot has no owner.
const REFRESH_EVERY_DEGRADED: Duration = Duration::from_millis(250);
/// Pause between two refreshes, however many requests there are: a storm of redirections is one
/// refresh.
const REFRESH_PAUSE: Duration = Duration::from_millis(20);
/// How long a node has to answer.
const NODE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the others have once two have answered.
const GRACE: Duration = Duration::from_millis(50);
/// Masters of ours asked at a time.
const MASTERS: usize = 3;
/// Other nodes asked at a time, while all is well and otherwise.
const OTHERS: (usize, usize) = (5, 8);
/// After this time without a refresh, answers of nodes that are behind are better than none.
const BELIEVE_BEHIND_AFTER: Duration = Duration::from_secs(5);

/// Refreshes the slot map for ever.
pub(in crate::store::redis) async fn refresh_topology(cluster: Arc<Cluster>) -> Infallible {
    let mut learned_at = Instant::now();
    // Dropped with this task, so that nothing waits for nodes that are gone.
    let mut dials = JoinSet::new();
    loop {
        let number = cluster.refreshes.begin();
        let (mut views, error) = cluster.query_nodes(&mut dials).await;
        if learned_at.elapsed() <= BELIEVE_BEHIND_AFTER {
            let epoch = cluster.slot_map().plan.current_epoch;
            views.retain(|(_, view)| view.current_epoch >= epoch);
        }
        let (witnesses, views): (Vec<_>, Vec<_>) = views.into_iter().unzip();
        let plan = Plan::of(&views);
        if !plan.masters.is_empty() {
            learned_at = Instant::now();
            let is_alone = plan.is_alone;
            cluster.context.metrics.cluster.refreshes.inc();
            cluster.apply_topology(plan).await;
            cluster.refreshes.end(number, witnesses.into(), is_alone);
        } else if let Some(suppressed) = cluster.admit_warning(&error) {
            warn!(%error, suppressed, "no cluster node reports the slot owners; retrying");
        }
        sleep(REFRESH_PAUSE).await;
        let every = if cluster.is_degraded() { REFRESH_EVERY_DEGRADED } else { REFRESH_EVERY };
        let _ = timeout(every, cluster.refreshes.wanted.notified()).await;
    }
}

impl Cluster {
    /// Returns the views of the nodes that answer in time, and the last error.
    async fn query_nodes(
        self: &Arc<Self>,
        dials: &mut JoinSet<()>,
    ) -> (Vec<(NodeAddress, NodeView)>, StoreError) {
        let asked = self.nodes_to_query(dials);
        let mut answers: FuturesUnordered<_> =
            asked.iter().map(|node| self.query_node(node)).collect();
        let mut views = Vec::new();
        let mut last_error = StoreError::Timeout;
        let mut deadline = Instant::now() + NODE_TIMEOUT;
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = sleep_until(deadline) => None,
            };
            match answer {
                None => return (views, last_error),
                Some(Err(error)) => last_error = error,
                Some(Ok(view)) => {
                    views.push(view);
                    if views.len() == 2 {
                        deadline = deadline.min(Instant::now() + GRACE);
                    }
                }
            }
        }
    }

    /// Others to which no connection is kept are dialled for the next refresh, a few at a time.
    fn nodes_to_query(self: &Arc<Self>, dials: &mut JoinSet<()>) -> Vec<NodeAddress> {
        let is_amiss = self.is_degraded();
        let (mut masters, mut others) = self.masters_and_others();
        fastrand::shuffle(&mut masters);
        fastrand::shuffle(&mut others);
        masters.truncate(MASTERS);
        if is_amiss {
            masters.extend(others.into_iter().take(OTHERS.1));
            return masters;
        }
        others.truncate(OTHERS.0);
        let (connected, unconnected): (Vec<_>, Vec<_>) = {
            let kept = self.temp_connections.lock().unwrap_or_else(PoisonError::into_inner);
            others.into_iter().partition(|node| kept.contains_key(node))
        };
        while dials.try_join_next().is_some() {}
        for node in unconnected.into_iter().take(OTHERS.0.saturating_sub(dials.len())) {
            let cluster = Arc::clone(self);
            dials.spawn(async move {
                if let Ok(connection) = cluster.temp_connection(&node).await {
                    cluster.keep_connection(node, connection);
                }
            });
        }
        masters.extend(connected);
        masters
    }

    /// Returns the masters that we are connected to, and all other nodes.
    fn masters_and_others(&self) -> (Vec<NodeAddress>, Vec<NodeAddress>) {
        let map = self.slot_map();
        let up = map.plan.masters.iter().zip(&map.shards).filter(|(_, shard)| shard.is_up());
        let masters: Vec<NodeAddress> = up.map(|(master, _)| master.address.clone()).collect();
        let nodes: BTreeSet<&NodeAddress> = map.plan.nodes.iter().chain(&self.seeds).collect();
        let others = nodes.into_iter().filter(|node| !masters.contains(node)).cloned().collect();
        (masters, others)
    }

    async fn query_node(&self, node: &NodeAddress) -> Result<(NodeAddress, NodeView)> {
        let replies = timeout(NODE_TIMEOUT, self.cluster_replies(node)).await;
        let replies = replies
            .unwrap_or(Err(StoreError::Timeout))
            .map_err(|error| error.while_connecting(node, NODE_TIMEOUT))?;
        Ok((node.clone(), NodeView::parse(node, &replies)?))
    }

    /// Uses the connection that there is, else a temporary one.
    async fn cluster_replies(&self, node: &NodeAddress) -> Result<ClusterReplies> {
        let shard = self.slot_map().shard_at(node).cloned();
        if let Some(shard) = shard.filter(|shard| shard.is_up()) {
            return shard.cluster_replies().await;
        }
        let kept =
            self.temp_connections.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
        let connection = match kept {
            Some(connection) => connection,
            None => self.temp_connection(node).await?,
        };
        let replies = connection.cluster_replies().await?;
        self.keep_connection(node.clone(), connection);
        Ok(replies)
    }

    async fn apply_topology(&self, plan: Plan) {
        let masters = plan.masters.len();
        let masters_before = self.slot_map().shards.len();
        let gone = self.update_map(plan);
        if masters != masters_before {
            info!(masters, "the number of masters of the cluster has changed");
        }
        for shard in gone {
            info!(node = shard.state.address, "a node is no longer a master of the cluster");
            shard.requeue_recent().await;
        }
        self.warn_unowned();
        self.context.status_changed.notify_one();
    }

    /// Notes the error; returns whether a warning about it is due.
    fn admit_warning(&self, error: &StoreError) -> Option<u64> {
        self.context.problems.admit(error, &self.refresh_warnings)
    }

    /// Warns about slots that no master owns.
    fn warn_unowned(&self) {
        let unowned = self.slot_map().unowned();
        let error = StoreError::Redirected(Redirect::Down);
        if unowned > 0
            && let Some(suppressed) = self.admit_warning(&error)
        {
            warn!(unowned, %error, suppressed, "slots have no master; their jobs go to the upstream");
        }
    }

    /// Whether a master is not trusted, or a slot has no owner.
    fn is_degraded(&self) -> bool {
        let map = self.slot_map();
        map.unowned() > 0 || map.shards.iter().any(|shard| !shard.is_up())
    }
}

/// Asks the seeds for the masters, one after the other, and measures how far away the first is that
/// answers. Tries the commands at the masters that answer, and reads the records of the sidecars.
pub(in crate::store::redis) async fn probe_seeds(
    seeds: &ClusterSeeds,
    config: &Config,
) -> Result<(Vec<String>, Option<FarStore>)> {
    let target = Target::of_nodes(seeds, config, &TlsMetrics::shared(&mut Registry::default()))?;
    let mut last_error = StoreError::Down;
    for (host, port) in &seeds.hosts {
        let address = NodeAddress::new(host, *port);
        let view = async {
            let connection = timeout(DETACHED_TIMEOUT, target.at(&address).connect()).await??;
            let asked = Instant::now();
            let replies = target.at(&address).first_reply(connection.ask_cluster().await).await?;
            let round_trip = asked.elapsed();
            claimed_epoch(&replies.2)?;
            let view = NodeView::parse(&address, &replies)?;
            let far = distance::measure(&connection, round_trip, config.store.budget).await?;
            Ok::<_, StoreError>((view, far))
        };
        match view.await {
            Ok((view, far)) => {
                let plan = Plan::of(&[view]);
                check_masters(config, &target, &plan).await?;
                return Ok((records(&config.store.prefix, &target, &plan).await, far));
            }
            Err(error) => last_error = error.while_connecting(&address, DETACHED_TIMEOUT),
        }
    }
    Err(last_error)
}

/// Checks that every slot has a master, and that those which answer refuse no command.
async fn check_masters(config: &Config, target: &Target, plan: &Plan) -> Result<()> {
    let unowned = usize::from(SLOTS) - plan.owners.iter().flatten().count();
    if unowned > 0 {
        let said = format!("{unowned} of {SLOTS} slots have no master");
        return Err(StoreError::Denied(Diagnosis::ClusterDown, said));
    }
    let is_tracked = config.cache.near.mode != NearMode::Off;
    let checks = plan.masters.iter().enumerate().map(async |(index, master)| {
        let slots = OwnedSlots::default();
        let owner = u16::try_from(index).ok();
        slots.assign(|slot| plan.owners.get(usize::from(slot)).copied().flatten() == owner);
        let Some(name) = slots.name(&config.store.prefix, "trial", 0) else { return Ok(()) };
        let target = target.at(&master.address);
        let connected = timeout(DETACHED_TIMEOUT, target.connect()).await;
        let Ok(Ok(connection)) = connected else { return Ok(()) };
        let trials = TrialScope { name: &name, is_in_cluster: true, is_tracked };
        check_commands(&connection, &target, trials).await
    });
    join_all(checks).await.into_iter().collect()
}

/// Returns the records of the sidecars; none if they cannot be read.
async fn records(prefix: &str, target: &Target, plan: &Plan) -> Vec<String> {
    let owner = plan.owners.get(usize::from(slot_of(prefix.as_bytes()))).copied().flatten();
    let master = owner.and_then(|index| plan.masters.get(usize::from(index)));
    let Some(master) = master else { return Vec::new() };
    let records = async {
        let connection = target.at(&master.address).connect().await?;
        connection.asking(&live_records(prefix, now_ms())).await
    };
    let records = timeout(DETACHED_TIMEOUT, records).await;
    records.ok().and_then(Result::ok).unwrap_or_default()
}
