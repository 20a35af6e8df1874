//! Sidecars that join while a history runs, right after a restart of Redis, and leave again.

use std::sync::Arc;

use super::{
    faults::Fault,
    record::Trouble,
    world::{Machinery, World},
};
use crate::support;

/// Faults that a sidecar stays for.
const STAY: u8 = 2;

/// A sidecar that has joined.
pub(super) struct Guest {
    sidecar: support::Process,
    /// Faults until it leaves.
    left: u8,
}

impl Machinery {
    /// Starts another sidecar beside the running ones, and sends clients to it.
    pub(super) async fn join(&mut self, world: &Arc<World>, life: u8) -> Trouble {
        let place = usize::from(world.plan.sidecars);
        let start = world.clock.now();
        self.guest = None;
        let sidecar = self.spawn(&world.plan, place).await;
        world.open(place, life, &sidecar);
        self.guest = Some(Guest { sidecar, left: STAY });
        Trouble { fault: Fault::Joined, start, end: world.clock.now() }
    }

    /// Lets the joined sidecar leave when its time has come, half of the time without a farewell.
    pub(super) async fn guest_stays_or_leaves(
        &mut self,
        world: &Arc<World>,
        rng: &mut fastrand::Rng,
    ) {
        let Some(guest) = &mut self.guest else { return };
        guest.left -= 1;
        if guest.left > 0 {
            return;
        }
        world.close(usize::from(world.plan.sidecars));
        if rng.bool() {
            guest.sidecar.terminate();
            guest.sidecar.wait().await;
        }
        self.guest = None;
    }
}
