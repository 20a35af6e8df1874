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

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::{
    Address, World,
    topology::{Plan, View},
};
use crate::store::{
    StoreError,
    redis::errand::{Guest, Lesson},
};

/// Between two refreshes without a request.
const EVERY: Duration = Duration::from_secs(1);
/// The same, while a master is not trusted or a slot has no owner.
const EVERY_AMISS: Duration = Duration::from_millis(250);
/// Between two refreshes, however many requests there are: a storm of redirections is one refresh.
const REST: Duration = Duration::from_millis(20);
/// How long a node has to answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the others have once two have answered.
const GRACE: Duration = Duration::from_millis(50);
/// Masters of ours asked at a time.
const MASTERS: usize = 3;
/// Other nodes asked at a time, while all is well and otherwise.
const OTHERS: (usize, usize) = (5, 8);
/// Connections to other nodes that are kept.
const MAX_GUESTS: usize = 32;
/// After this time without a refresh, answers of nodes that are behind are better than none.
const BEHIND: Duration = Duration::from_secs(5);

/// Refreshes the slot map for ever.
pub(super) async fn learn(world: Arc<World>) -> Infallible {
    let mut learned_at = Instant::now();
    loop {
        let number = world.lessons.begin();
        let (views, error) = world.ask_around().await;
        let is_late = learned_at.elapsed() > BEHIND;
        if let Some((plan, witnesses)) = world.believe(views, is_late) {
            learned_at = Instant::now();
            let is_alone = plan.is_alone;
            world.metrics.cluster.refreshes.inc();
            world.redraw(plan).await;
            world.lessons.end(number, witnesses.into(), is_alone);
        } else if let Some(suppressed) = world.warnings.learn.admit(&error.to_string()) {
            warn!(%error, suppressed, "no cluster node reports the slot owners; retrying");
        }
        sleep(REST).await;
        let every = if world.is_amiss() { EVERY_AMISS } else { EVERY };
        let _ = timeout(every, world.lessons.wanted()).await;
    }
}

impl World {
    /// Returns the views of the nodes that answer in time, and the last error.
    async fn ask_around(self: &Arc<Self>) -> (Vec<(Address, View)>, StoreError) {
        let asked = self.to_be_asked();
        let mut answers: FuturesUnordered<_> = asked.iter().map(|node| self.ask(node)).collect();
        let mut views = Vec::new();
        let mut last_error = StoreError::Timeout;
        let mut deadline = Instant::now() + PATIENCE;
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

    fn to_be_asked(self: &Arc<Self>) -> Vec<Address> {
        let is_amiss = self.is_amiss();
        let (mut masters, mut others) = self.near_and_far();
        fastrand::shuffle(&mut masters);
        fastrand::shuffle(&mut others);
        masters.truncate(MASTERS);
        if is_amiss {
            masters.extend(others.into_iter().take(OTHERS.1));
            return masters;
        }
        others.truncate(OTHERS.0);
        let (connected, unconnected): (Vec<_>, Vec<_>) = {
            let kept = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
            others.into_iter().partition(|node| kept.contains_key(node))
        };
        for node in unconnected {
            let world = Arc::clone(self);
            self.tasks.spawn(async move {
                if let Ok(connection) = world.guest(&node).await {
                    world.keep(node, connection);
                }
            });
        }
        masters.extend(connected);
        masters
    }

    /// Returns the masters that we are connected to, and all other nodes.
    fn near_and_far(&self) -> (Vec<Address>, Vec<Address>) {
        let map = self.map.read();
        let up = map.shards.iter().filter(|shard| shard.redis.is_up());
        let masters: Vec<Address> = up.map(|shard| shard.address.clone()).collect();
        let nodes: BTreeSet<&Address> = map.nodes().iter().chain(&self.seeds).collect();
        let others = nodes.into_iter().filter(|node| !masters.contains(node)).cloned().collect();
        (masters, others)
    }

    /// Keeps a connection, in the place of another if there are too many.
    fn keep(&self, node: Address, connection: Guest) {
        let mut kept = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_GUESTS
            && let Some(other) = kept.keys().next().cloned()
        {
            kept.remove(&other);
        }
        kept.insert(node, connection);
    }

    async fn ask(&self, node: &Address) -> Result<(Address, View), StoreError> {
        let replies = timeout(PATIENCE, self.lesson_of(node)).await;
        let (slots, nodes, info) = replies.unwrap_or(Err(StoreError::Timeout))?;
        let view = View::parse(node, &slots, &nodes, &info);
        let view = view
            .ok_or_else(|| StoreError::Refused("its replies do not describe a cluster".into()))?;
        Ok((node.clone(), view))
    }

    /// Uses the connection that there is, else a temporary one.
    async fn lesson_of(&self, node: &Address) -> Result<Lesson, StoreError> {
        let shard = self.map.read().at(node).cloned();
        if let Some(shard) = shard.filter(|shard| shard.redis.is_up()) {
            return shard.redis.lesson().await;
        }
        let kept = self.guests.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
        let connection = match kept {
            Some(connection) => connection,
            None => self.guest(node).await?,
        };
        let replies = connection.lesson().await?;
        self.keep(node.clone(), connection);
        Ok(replies)
    }

    /// Returns the plan that follows from the views that we believe, and the nodes they came from.
    fn believe(
        &self,
        mut views: Vec<(Address, View)>,
        is_late: bool,
    ) -> Option<(Plan, Vec<Address>)> {
        let epoch = self.map.read().epoch();
        if !is_late {
            views.retain(|(_, view)| view.current_epoch >= epoch);
        }
        let (witnesses, views): (Vec<_>, Vec<_>) = views.into_iter().unzip();
        let plan = Plan::of(&views);
        (!plan.masters.is_empty()).then_some((plan, witnesses))
    }

    async fn redraw(&self, plan: Plan) {
        let masters = plan.masters.len();
        let masters_before = self.map.read().shards.len();
        let gone = self.map.draw(plan, self.watcher.as_ref(), |master| {
            info!(node = %master.address, "found a master of the cluster");
            self.shard(master)
        });
        if masters != masters_before {
            info!(masters, "the number of masters of the cluster has changed");
        }
        for shard in gone {
            info!(node = %shard.address, "a node is no longer a master of the cluster");
            shard.redis.doubt().await;
        }
        self.turned.notify_one();
    }

    /// Whether a master is not trusted, or a slot has no owner.
    pub(super) fn is_amiss(&self) -> bool {
        let map = self.map.read();
        map.unowned() > 0 || map.shards.iter().any(|shard| !shard.redis.is_up())
    }
}
