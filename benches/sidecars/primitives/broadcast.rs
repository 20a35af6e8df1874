//! Broadcast notifications: the cost of one more client, and of one more name in the same event
//! loop turn, because Redis sends a client all names of a turn at once.

use super::{
    Measured,
    bare::{Bare, key},
};
use crate::{Result, interrupt::Interrupt, outcome::count};

pub(super) const CLIENTS: [usize; 4] = [1, 10, 100, 1_000];
/// Names per turn.
pub(super) const NAMES: [usize; 3] = [1, 10, 100];
/// Messages to send in total, and the bounds of the number of turns.
const MESSAGES: usize = 200_000;
const TURNS: (usize, usize) = (200, 2_000);

/// Returns the name under which the microseconds per client and name are stored.
pub(super) fn name(clients: usize, names: usize) -> String {
    format!("broadcast {clients} {names}")
}

pub(super) async fn measure(
    bare: &mut Bare,
    measured: &mut Measured,
    interrupt: &Interrupt,
) -> Result<()> {
    let command = ["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "job_status:"];
    let commands = [command.map(str::to_owned).to_vec()];
    for clients in CLIENTS {
        for names in NAMES {
            interrupt.check()?;
            let turns = (MESSAGES / clients).clamp(TURNS.0, TURNS.1);
            let unheard = changes(bare, names, turns)?;
            let used = bare.info("used_memory")?;
            let audience = bare.audience(clients, &commands).await?;
            measured.add("client bytes", (bare.info("used_memory")? - used) / count(clients));
            let heard = changes(bare, names, turns)?;
            audience.leave().await;
            measured.add(&name(clients, names), (heard - unheard) / count(turns * names * clients));
        }
    }
    Ok(())
}

/// Changes `names` keys in each of the turns.
fn changes(bare: &mut Bare, names: usize, turns: usize) -> Result<f64> {
    bare.cost_us(|control| {
        for _ in 0..turns {
            let mut pipeline = redis::pipe();
            for name in 0..names {
                pipeline.cmd("SET").arg(key(name)).arg("");
            }
            let _: Vec<String> = pipeline.query(control)?;
        }
        Ok(())
    })
}
