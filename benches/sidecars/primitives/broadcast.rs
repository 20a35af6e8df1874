//! News that goes to everybody: what one more client costs, and one more name in the same turn of the
//! event loop, which sends all names of a turn to a client at once.

use super::{
    Measured,
    bare::{Bare, key},
};
use crate::{Result, interrupt::Interrupt, outcome::count};

pub(super) const CLIENTS: [usize; 4] = [1, 10, 100, 1_000];
/// Names in a turn.
pub(super) const NAMES: [usize; 3] = [1, 10, 100];
/// Messages to send in all, but not in more turns than that.
const MESSAGES: usize = 200_000;
const TURNS: (usize, usize) = (200, 2_000);

/// Under which microseconds for each client and name are kept.
pub(super) fn name(clients: usize, names: usize) -> String {
    format!("broadcast {clients} {names}")
}

pub(super) async fn measure(
    bare: &mut Bare,
    measured: &mut Measured,
    interrupt: &Interrupt,
) -> Result<()> {
    let said = ["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "job_status:"];
    let said = [said.map(str::to_owned).to_vec()];
    for clients in CLIENTS {
        for names in NAMES {
            interrupt.check()?;
            let turns = (MESSAGES / clients).clamp(TURNS.0, TURNS.1);
            let unheard = changes(bare, names, turns)?;
            let used = bare.info("used_memory")?;
            let audience = bare.audience(clients, &said).await?;
            measured.add("client bytes", (bare.info("used_memory")? - used) / count(clients));
            let heard = changes(bare, names, turns)?;
            audience.leave().await;
            measured.add(&name(clients, names), (heard - unheard) / count(turns * names * clients));
        }
    }
    Ok(())
}

/// Changes so many keys in each turn.
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
