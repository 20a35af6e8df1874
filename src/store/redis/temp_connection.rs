//! Cluster commands that work over any connection to a node: that of a session, or a temporary one.

use redis::{Cmd, FromRedisValue, Value, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{
    classify::{DETACHED_TIMEOUT, classify},
    dial::{RedisConnection, Target},
};
use crate::store::errors::StoreError;

/// Replies to `CLUSTER SLOTS`, `CLUSTER NODES` and `CLUSTER INFO`.
pub(in crate::store) type ClusterReplies = (Value, String, String);

/// A temporary connection to a node that is not one of our masters.
#[derive(Debug)]
pub(in crate::store) struct TempConnection(RedisConnection);

impl TempConnection {
    pub(in crate::store) async fn open(target: &Target) -> Result<Self, StoreError> {
        match timeout(DETACHED_TIMEOUT, target.connect()).await {
            Ok(opened) => opened.map(Self),
            Err(_) => Err(StoreError::Timeout),
        }
    }

    pub(in crate::store) async fn cluster_replies(&self) -> Result<ClusterReplies, StoreError> {
        cluster_replies(self.0.requests.clone()).await
    }

    pub(in crate::store) async fn asking<T: FromRedisValue>(
        &self,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        asking(self.0.requests.clone(), command).await
    }
}

/// Asks a node which node owns which slot.
pub(super) async fn cluster_replies(
    mut requests: MultiplexedConnection,
) -> Result<ClusterReplies, StoreError> {
    let mut pipeline = redis::pipe();
    for topic in ["SLOTS", "NODES", "INFO"] {
        pipeline.cmd("CLUSTER").arg(topic);
    }
    pipeline.query_async(&mut requests).await.map_err(|error| classify(&error))
}

/// Runs one command on a key in a slot that is migrating to this node. `ASKING` and the command are
/// sent together, so that no other caller's command gets in between and uses up the permission.
pub(super) async fn asking<T: FromRedisValue>(
    mut requests: MultiplexedConnection,
    command: &Cmd,
) -> Result<T, StoreError> {
    let mut pipeline = redis::pipe();
    pipeline.cmd("ASKING").ignore().add_command(command.clone());
    let reply = pipeline.query_async::<(T,)>(&mut requests).await;
    reply.map(|(reply,)| reply).map_err(|error| classify(&error))
}
