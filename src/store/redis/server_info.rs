//! Version, role, epoch and limits of a server, from `INFO` and `CLUSTER INFO`.

use crate::store::{Diagnosis, Epoch, Redirect, StoreError, errors::Result};

/// One life of the data of a server: its process and its replication history, and for how long it
/// is master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerEpoch {
    run_id: Box<str>,
    pub(super) replid: Box<str>,
    /// The config epoch of the sentinels in which the server was promoted, or the one in which a
    /// master of a cluster claims its slots; `None` for a server that the URL names.
    pub(super) term: Option<u64>,
}

impl ServerEpoch {
    /// The server without its term.
    pub(super) fn server(&self) -> String {
        format!("{}-{}", self.run_id, self.replid)
    }

    /// The name that entries have of it.
    pub(super) fn name(&self) -> Epoch {
        let term = self.term.map(|term| format!("-{term}")).unwrap_or_default();
        Epoch((self.server() + &term).into())
    }

    /// Whether it is the same server, in whatever term.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        self.run_id == other.run_id && self.replid == other.replid
    }
}

/// First version with `PEXPIRETIME`.
const OLDEST_VERSION: (u32, u32) = (7, 0);
/// First versions that can migrate whole slots.
const WHOLE_SLOTS: (u32, u32) = (8, 4);
const WHOLE_SLOTS_OF_VALKEY: (u32, u32) = (9, 0);

/// The text of `INFO`.
pub(super) struct ServerInfo(pub(super) String);

impl ServerInfo {
    fn field(&self, name: &str) -> &str {
        text_field(&self.0, name).unwrap_or_default()
    }

    pub(super) fn replid(&self) -> &str {
        self.field("master_replid")
    }

    /// For how long the server has been up; 0 if it does not say.
    pub(super) fn uptime_secs(&self) -> u64 {
        self.field("uptime_in_seconds").parse().unwrap_or(0)
    }

    /// The version of Redis or of Valkey, and the first one that can migrate whole slots.
    fn version(&self) -> ((u32, u32), (u32, u32)) {
        match self.field("valkey_version") {
            "" => (version(self.field("redis_version")), WHOLE_SLOTS),
            valkey => (version(valkey), WHOLE_SLOTS_OF_VALKEY),
        }
    }

    pub(super) fn epoch(&self, term: Option<u64>) -> ServerEpoch {
        ServerEpoch { run_id: self.field("run_id").into(), replid: self.replid().into(), term }
    }

    /// Checks that this server migrates slots key by key, with an invalidation message for each
    /// key. If whole slots are migrated (`CLUSTER MIGRATION`, `CLUSTER MIGRATESLOTS`), the messages
    /// about their keys come only afterwards, and a barrier round, which asks about one slot,
    /// proves nothing about another.
    pub(super) fn check_slots_move_by_key(&self) -> Result<()> {
        let (version, whole_slots) = self.version();
        if version >= whole_slots {
            return Err(StoreError::Refused(
                "Redis 8.4, Valkey 9.0 and newer can migrate whole slots of a cluster, and report the changed \
                 keys too late for entries in this process"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Whether the server is a node of a cluster.
    pub(super) fn is_in_cluster(&self) -> bool {
        self.field("cluster_enabled") == "1"
    }

    /// Checks that this is a master of a supported version.
    pub(super) fn check(&self) -> Result<()> {
        let server = self.field("redis_version");
        if version(server) < OLDEST_VERSION {
            let said = format!("the server has version {server:?}");
            return Err(StoreError::Denied(Diagnosis::Version, said));
        }
        self.check_role()
    }

    /// Whether this server can be configured to send a reply before the invalidation messages that
    /// should precede it: I/O threads that write on their own came with version 8.
    pub(super) fn may_reorder(&self) -> bool {
        // Also if the server does not say its version.
        matches!(self.version(), ((0 | 8.., _), _))
    }

    /// The eviction policy, if it allows the server to evict a fence.
    pub(super) fn evicting_policy(&self) -> Option<&str> {
        let bounded = !matches!(self.field("maxmemory"), "" | "0");
        Some(self.field("maxmemory_policy")).filter(|policy| bounded && *policy != "noeviction")
    }

    /// Whether the server has evicted keys; true if it does not say.
    pub(super) fn has_evicted(&self) -> bool {
        self.field("evicted_keys") != "0"
    }

    pub(super) fn check_role(&self) -> Result<()> {
        let role = self.field("role");
        if role == "master" && !self.replid().is_empty() {
            return Ok(());
        }
        if role == "slave" {
            return Err(StoreError::Denied(
                Diagnosis::Replica,
                "the server's role is \"slave\"".to_owned(),
            ));
        }
        Err(StoreError::Unusable(format!("the server's role is {role:?}; jobcache needs a master")))
    }
}

/// The value after a name in the lines of `INFO` or `CLUSTER INFO`.
pub(super) fn text_field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Major and minor version.
fn version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// The config epoch in which a working master claims its slots, from `CLUSTER INFO`. A master
/// refuses commands without a majority. It also refuses them while slots have no owner, if the
/// cluster requires full coverage.
pub(super) fn claimed_epoch(info: &str) -> Result<u64> {
    if text_field(info, "cluster_state") != Some("ok") {
        return Err(StoreError::Redirected(Redirect::Down));
    }
    let epoch = text_field(info, "cluster_my_epoch").and_then(|epoch| epoch.parse().ok());
    epoch.ok_or_else(|| StoreError::Refused("CLUSTER INFO has no cluster_my_epoch".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_or_a_replica_is_named_with_what_is_needed() {
        let info = |version, role| {
            ServerInfo(format!(
                "# Server\r\nredis_version:{version}\r\nrun_id:r\r\n\r\nrole:{role}\r\nmaster_replid:m\r\n"
            ))
        };
        assert!(info("7.0.15", "master").check().is_ok());
        assert!(info("8.2.1", "master").check().is_ok());
        assert_eq!(info("7.0.15", "master").epoch(None).name().as_str(), "r-m");
        let old = info("6.2.14", "master").check().unwrap_err();
        assert_eq!(old.diagnosis(), Some(Diagnosis::Version));
        let old = old.to_string();
        assert!(old.contains("6.2.14") && old.contains("7.0"), "{old}");
        let replica = info("7.0.15", "slave").check().unwrap_err().to_string();
        assert!(replica.contains("slave") && replica.contains("master"), "{replica}");
    }

    #[test]
    fn a_master_without_its_cluster_is_none_and_a_new_claim_is_a_new_epoch() {
        let claim = |state, epoch| {
            claimed_epoch(&format!("cluster_state:{state}\r\ncluster_my_epoch:{epoch}\r\n"))
        };
        assert!(matches!(claim("fail", 7), Err(StoreError::Redirected(Redirect::Down))));
        assert_eq!(claim("ok", 7).unwrap(), 7);
        let info = ServerInfo("run_id:r\r\nmaster_replid:m\r\n".to_owned());
        let (old, new) = (info.epoch(Some(7)), info.epoch(Some(17)));
        assert_eq!([&old, &new].map(ServerEpoch::name), ["r-m-7", "r-m-17"].map(Epoch::named));
        assert!(old != new && old.is_of(&new));
    }

    #[test]
    fn entries_near_are_not_kept_of_clusters_that_hand_over_slots_whole() {
        let check = |text: &str| ServerInfo(text.to_owned()).check_slots_move_by_key().is_ok();
        assert!(check("redis_version:7.0.15") && check("redis_version:8.2.3"));
        assert!(!check("redis_version:8.4.0") && !check("redis_version:9.0.0"));
        assert!(check("redis_version:7.2.4\r\nvalkey_version:8.1.3"));
        assert!(!check("redis_version:7.2.4\r\nvalkey_version:9.0.1"));
    }

    #[test]
    fn a_server_that_may_evict_a_fence_is_told_by_its_policy() {
        let policy = |maxmemory, policy: &str| {
            let text = format!("maxmemory:{maxmemory}\r\nmaxmemory_policy:{policy}\r\n");
            ServerInfo(text).evicting_policy().map(str::to_owned)
        };
        assert_eq!(policy(0, "allkeys-lru"), None, "without a limit nothing is evicted");
        assert_eq!(policy(1000, "noeviction"), None);
        assert_eq!(policy(1000, "volatile-ttl").as_deref(), Some("volatile-ttl"));
        let has_evicted = |text: &str| ServerInfo(text.to_owned()).has_evicted();
        assert!(!has_evicted("evicted_keys:0\r\n"));
        assert!(has_evicted("evicted_keys:7\r\n") && has_evicted(""));
    }
}
