//! Notifications to the readers of a key: the cost of remembering a read, and of notifying.

use super::{
    Measured,
    bare::{Audience, Bare, key},
};
use crate::{Result, interrupt::Interrupt, outcome::count, stats::real};

pub(super) const CLIENTS: [usize; 4] = [1, 10, 100, 1_000];
/// Client and key pairs to remember.
const ITEMS: usize = 100_000;
/// Largest number of keys per client.
const KEYS: usize = 10_000;
/// Limit of the tracking table, and number of keys read, in the measurement with a limit.
pub(super) const LIMIT: usize = 1_000;
pub(super) const READ: usize = 10_000;
/// Bytes of the message about one key: `>2 $10 invalidate *1 $47 <name>` with all its line ends.
const NEWS_BYTES: u64 = 4 + 5 + 12 + 4 + 5 + 49;

/// Returns the name under which the microseconds per notified client are stored.
pub(super) fn name(clients: usize) -> String {
    format!("keys {clients}")
}

/// Returns the name under which the bytes per client and key are stored.
pub(super) fn bytes(clients: usize) -> String {
    format!("keys {clients} bytes")
}

pub(super) async fn measure(measured: &mut Measured, interrupt: &Interrupt) -> Result<()> {
    for clients in CLIENTS {
        interrupt.check()?;
        tell(&mut Bare::start()?, measured, clients).await?;
    }
    limit(&mut Bare::start()?, measured).await
}

/// Measures reading and changing keys that all clients have read; each key changes in a turn of its
/// own.
async fn tell(bare: &mut Bare, measured: &mut Measured, clients: usize) -> Result<()> {
    let keys = (ITEMS / clients).min(KEYS);
    let unheard = changes(bare, keys)?;
    let (untracked, _, audience) = read(bare, clients, keys, "OFF").await?;
    audience.leave().await;
    let (tracked, used, audience) = read(bare, clients, keys, "ON").await?;
    let items = count(clients * keys);
    measured.add(&bytes(clients), used / items);
    if clients == 1 {
        measured.add("remember", (tracked - untracked) / items);
    }
    let heard = changes(bare, keys)?;
    measured.add(&name(clients), (heard - unheard) / items);
    audience.leave().await;
    Ok(())
}

/// Reads the keys, and returns the CPU time, the memory used, and the readers.
async fn read(
    bare: &mut Bare,
    clients: usize,
    keys: usize,
    tracking: &str,
) -> Result<(f64, f64, Audience)> {
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let track = words(format!("CLIENT TRACKING {tracking}"));
    // The memory of connections and their buffers does not belong to the table.
    let idle = bare.audience(clients, std::slice::from_ref(&track)).await?;
    let before = bare.info("used_memory")?;
    idle.leave().await;
    let mut commands = vec![track];
    commands.extend((0..keys).map(|at| words(format!("PEXPIRETIME {}", key(at)))));
    let spent = bare.cpu_us()?;
    let audience = bare.audience(clients, &commands).await?;
    let spent = bare.cpu_us()? - spent;
    Ok((spent, bare.info("used_memory")? - before, audience))
}

/// Changes the keys, each in a turn of its own.
fn changes(bare: &mut Bare, keys: usize) -> Result<f64> {
    bare.cost_us(|control| {
        for at in 0..keys {
            let _: () = redis::cmd("SET").arg(key(at)).arg("").query(control)?;
        }
        Ok(())
    })
}

/// Measures a client that reads more keys than the table may hold.
async fn limit(bare: &mut Bare, measured: &mut Measured) -> Result<()> {
    let (_, _, audience) = read(bare, 1, READ, "ON").await?;
    audience.leave().await;
    let (unlimited, _, audience) = read(bare, 1, READ, "ON").await?;
    let heard_unlimited = audience.heard_bytes();
    audience.leave().await;
    let _: () = redis::cmd("CONFIG")
        .arg(&["SET", "tracking-table-max-keys", &LIMIT.to_string()])
        .query(&mut bare.control)?;
    let (limited, _, mut audience) = read(bare, 1, READ, "ON").await?;
    // Redis evicts the surplus in small steps.
    let mut kept = f64::INFINITY;
    while bare.info("tracking_total_keys")? < kept {
        kept = bare.info("tracking_total_keys")?;
        audience.settle().await;
    }
    let evictions = (audience.heard_bytes() - heard_unlimited) / NEWS_BYTES;
    measured.add("limit kept", kept);
    measured.add("limit told", real(evictions));
    measured.add("limit µs", (limited - unlimited) / count(READ - LIMIT));
    audience.leave().await;
    Ok(())
}
