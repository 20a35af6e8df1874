//! The check of `jobcache check`: whether a cluster can be reached, and how its other sidecars are
//! configured.

use tokio::time::timeout;

use super::plan::{NodeView, Plan};
use crate::{
    clock, config,
    observe::metrics::Registry,
    store::{
        errors::StoreError,
        node_address::NodeAddress,
        redis::{
            classify::DETACHED_TIMEOUT, dial::Target, record_keeper::live_records,
            temp_connection::TempConnection,
        },
        sidecar_record::{RecordMismatch, SidecarRecord},
        slots::slot_of,
        words::unix_ms,
    },
    tls::TlsMetrics,
};

/// Asks the seeds for the masters, one after the other. Does not check whether the masters answer,
/// but reads the records of other sidecars where they do.
pub(in crate::store) async fn probe(
    seeds: &config::ClusterSeeds,
    config: &config::Config,
) -> Result<Vec<RecordMismatch>, StoreError> {
    let target = Target::from_seeds(seeds, config, &TlsMetrics::shared(&mut Registry::default()))?;
    let mut last_error = StoreError::Down;
    for (host, port) in &seeds.hosts {
        let replies =
            async { TempConnection::open(&target.at(host, *port)).await?.cluster_replies().await };
        let address = NodeAddress { host: (&**host).into(), port: *port };
        match replies.await {
            Ok((slots, nodes, info)) => match NodeView::parse(&address, &slots, &nodes, &info) {
                Some(view) => return Ok(mismatches(config, &target, &view).await),
                None => {
                    last_error =
                        StoreError::Refused("its replies do not describe a cluster".into());
                }
            },
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

/// Compares the records of other sidecars with ours; none if they cannot be read.
async fn mismatches(
    config: &config::Config,
    target: &Target,
    view: &NodeView,
) -> Vec<RecordMismatch> {
    let prefix = &config.store.prefix;
    let read = live_records(prefix, unix_ms(clock::now()));
    let topology = Plan::of(std::slice::from_ref(view));
    let slot = usize::from(slot_of(prefix.as_bytes()));
    let owner = topology.owners.get(slot).copied().flatten();
    let Some(master) = owner.and_then(|index| topology.masters.get(usize::from(index))) else {
        return Vec::new();
    };
    let records = async {
        let owner = target.at(&master.address.host, master.address.port);
        TempConnection::open(&owner).await?.asking::<Vec<String>>(&read).await
    };
    let records = timeout(DETACHED_TIMEOUT, records).await;
    let ours = SidecarRecord::of(config);
    let records = records.ok().and_then(Result::ok).unwrap_or_default();
    records.iter().filter_map(|record| ours.mismatch(record)).collect()
}
