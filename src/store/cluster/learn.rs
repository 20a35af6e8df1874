//! Learning the map: who is asked, how often, and whom we believe.
//!
//! A lesson is due once a second, and at once when a node sent us elsewhere or a master was lost. A few
//! nodes are asked at a time: masters that we are connected to, and others. All masters of ours may be well
//! and on one side of a split, and replicas on the other have been told to take over (`CLUSTER FAILOVER
//! TAKEOVER`, as for another data centre); only the others know then. While nothing is amiss they are asked
//! over connections that are kept, and which are opened apart, so that nobody waits for one that is gone.
//! Nodes that have heard of fewer epochs than we are behind, and are not believed unless for long
//! nobody else answers.

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

/// Between two lessons that nobody asks for.
const EVERY: Duration = Duration::from_secs(1);
/// The same while a master is not trusted, or a slot has no owner.
const EVERY_AMISS: Duration = Duration::from_millis(250);
/// Between two lessons, however many ask: a storm of redirections is one lesson.
const REST: Duration = Duration::from_millis(20);
/// How long a node has to answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long others have once two have answered.
const GRACE: Duration = Duration::from_millis(50);
/// Masters of ours that are asked at a time.
const MASTERS: usize = 3;
/// Others, while all is well and otherwise.
const OTHERS: (usize, usize) = (5, 8);
/// Connections that are kept to others.
const MAX_GUESTS: usize = 32;
/// Past this what nodes say that are behind is better than nothing.
const BEHIND: Duration = Duration::from_secs(5);

/// Learns for ever.
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
            warn!(%error, suppressed, "no node of the cluster tells who owns what; retrying");
        }
        sleep(REST).await;
        let every = if world.is_amiss() { EVERY_AMISS } else { EVERY };
        let _ = timeout(every, world.lessons.wanted()).await;
    }
}

impl World {
    /// What nodes say who answer in time, and what the last did that says nothing.
    async fn ask_around(self: &Arc<Self>) -> (Vec<(Address, View)>, StoreError) {
        let asked = self.to_be_asked();
        let mut answers: FuturesUnordered<_> = asked.iter().map(|node| self.ask(node)).collect();
        let (mut views, mut last) = (Vec::new(), StoreError::Timeout);
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                () = sleep_until(deadline) => None,
            };
            match answer {
                None => return (views, last),
                Some(Err(error)) => last = error,
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
        let (mut near, mut far) = self.near_and_far();
        fastrand::shuffle(&mut near);
        fastrand::shuffle(&mut far);
        near.truncate(MASTERS);
        if is_amiss {
            near.extend(far.into_iter().take(OTHERS.1));
            return near;
        }
        far.truncate(OTHERS.0);
        let (ready, apart): (Vec<_>, Vec<_>) = {
            let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
            far.into_iter().partition(|node| guests.contains_key(node))
        };
        for node in apart {
            let world = Arc::clone(self);
            self.tasks.spawn(async move {
                if let Ok(guest) = world.guest(&node).await {
                    world.keep(node, guest);
                }
            });
        }
        near.extend(ready);
        near
    }

    /// The masters that we are connected to, and all others.
    fn near_and_far(&self) -> (Vec<Address>, Vec<Address>) {
        let map = self.map.read();
        let up = map.shards.iter().filter(|shard| shard.redis.is_up());
        let near: Vec<Address> = up.map(|shard| shard.address.clone()).collect();
        let others: BTreeSet<&Address> = map.nodes().iter().chain(&self.seeds).collect();
        let far = others.into_iter().filter(|node| !near.contains(node)).cloned().collect();
        (near, far)
    }

    /// Keeps a connection in the place of another, if there are too many.
    fn keep(&self, node: Address, guest: Guest) {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if guests.len() >= MAX_GUESTS
            && let Some(other) = guests.keys().next().cloned()
        {
            guests.remove(&other);
        }
        guests.insert(node, guest);
    }

    async fn ask(&self, node: &Address) -> Result<(Address, View), StoreError> {
        let told = timeout(PATIENCE, self.lesson_of(node)).await;
        let (slots, nodes, info) = told.unwrap_or(Err(StoreError::Timeout))?;
        let view = View::parse(node, &slots, &nodes, &info);
        let view = view.ok_or_else(|| StoreError::Refused("it tells of no cluster".into()))?;
        Ok((node.clone(), view))
    }

    /// Over the connection that there is, else over one of its own.
    async fn lesson_of(&self, node: &Address) -> Result<Lesson, StoreError> {
        let shard = self.map.read().at(node).cloned();
        if let Some(shard) = shard.filter(|shard| shard.redis.is_up()) {
            return shard.redis.lesson().await;
        }
        let kept = self.guests.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
        let guest = match kept {
            Some(guest) => guest,
            None => self.guest(node).await?,
        };
        let lesson = guest.lesson().await?;
        self.keep(node.clone(), guest);
        Ok(lesson)
    }

    /// Of what was said what we believe, and who said it.
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
        let (masters, before) = (plan.masters.len(), self.map.read().shards.len());
        let gone = self.map.draw(plan, self.watcher.as_ref(), |master| {
            info!(node = %master.address, "found a master of the cluster");
            self.shard(master)
        });
        if masters != before {
            info!(masters, "the cluster has another number of masters");
        }
        for shard in gone {
            info!(node = %shard.address, "a master of the cluster is none any more");
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
