//! A server that is one master of a cluster: what it claims, and who confirms it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::time::timeout;

use super::{
    classify::{DETACHED_TIMEOUT, classify},
    cluster::refresh_rounds::RefreshRounds,
    dial::{RedisConnection, Target},
    server_info::{ServerInfo, SlotClaim},
};
use crate::store::{
    errors::StoreError, node_address::NodeAddress, slots::OwnedSlots, words::Epoch,
};

/// A master in its cluster.
#[derive(Debug)]
pub(super) struct ClusterMember {
    pub(super) target: Target,
    pub(super) address: NodeAddress,
    /// The slots that it owns in the slot map.
    pub(super) slots: Arc<OwnedSlots>,
    pub(super) refresh_rounds: Arc<RefreshRounds>,
    /// The highest config epoch in which other nodes say that it claims its slots.
    pub(super) claimed_epoch: AtomicU64,
}

impl ClusterMember {
    /// The epoch of the data on this server. It counts only if another node confirms that the
    /// server is a master.
    ///
    /// The epoch includes the config epoch. A slot that moved away and came back may have lost an
    /// invalidation in a failover at the other node. A master that takes over a slot raises its
    /// config epoch, so entries from before are not trusted.
    pub(super) async fn epoch(
        &self,
        connection: &mut RedisConnection,
        info: &ServerInfo,
    ) -> Result<Epoch, StoreError> {
        let mut command = redis::cmd("CLUSTER");
        let claim = command.arg("INFO").query_async::<String>(&mut connection.requests);
        let claim = timeout(DETACHED_TIMEOUT, claim).await.map_err(|_| StoreError::Timeout)?;
        let claim = SlotClaim::parse(&claim.map_err(|error| classify(&error))?)?;
        self.confirm(&claim).await?;
        Ok(Epoch(format!("{}-{}", info.epoch().as_str(), claim.epoch).into()))
    }

    /// Checks with another node, after this server has answered us, that it is still a master. A
    /// server that hung while its replica took over does not know that when it comes back.
    async fn confirm(&self, claim: &SlotClaim) -> Result<(), StoreError> {
        let refresh = timeout(DETACHED_TIMEOUT, self.refresh_rounds.next());
        let refresh = refresh.await.map_err(|_| StoreError::Timeout)?;
        if !refresh.confirms(&self.address) {
            return Err(StoreError::Unusable("no other node of the cluster answers".into()));
        }
        if self.slots.is_empty() {
            return Err(StoreError::Unusable("its slots belong to another node".into()));
        }
        if self.claimed_epoch.load(Ordering::Acquire) > claim.epoch {
            return Err(StoreError::Unusable("the master has taken over slots".into()));
        }
        Ok(())
    }
}
