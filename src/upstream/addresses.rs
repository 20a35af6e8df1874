//! The addresses of the upstream's name: resolved for each new connection and used in turn. One
//! that fails is passed over for the next, and for [`AVOIDED_FOR`] it is tried last.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, timeout},
};

/// Time for which an address that failed is tried after all others.
const AVOIDED_FOR: Duration = Duration::from_secs(10);

/// The next turn, and the addresses that have failed lately.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    turn: AtomicUsize,
    failed: Mutex<Vec<(SocketAddr, Instant)>>,
}

impl Addresses {
    /// Connects to one of the addresses of `authority` (`host:port`), within `limit`. An address
    /// that does not answer uses up only its share of that time.
    pub(super) async fn connect(&self, authority: &str, limit: Duration) -> io::Result<TcpStream> {
        let ends = Instant::now() + limit;
        let addresses = self.in_turn(lookup_host(authority).await?.collect());
        let mut error = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        for (tried, &address) in addresses.iter().enumerate() {
            let untried = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = ends.saturating_duration_since(Instant::now()) / untried;
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(refused)) => error = refused,
                Err(_) => error = io::ErrorKind::TimedOut.into(),
            }
            self.lock().push((address, Instant::now()));
        }
        Err(error)
    }

    /// Orders addresses: first by turn, and last those that have failed lately.
    fn in_turn(&self, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        if addresses.len() < 2 {
            return addresses;
        }
        // The resolver may name them in another order each time.
        addresses.sort_unstable();
        addresses.dedup();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
        addresses.rotate_left(turn);
        let mut failed = self.lock();
        failed.retain(|(_, at)| at.elapsed() < AVOIDED_FOR);
        addresses.sort_by_key(|address| failed.iter().any(|(other, _)| other == address));
        addresses
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(SocketAddr, Instant)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_take_turns_and_one_that_failed_comes_last_for_a_while() {
        tokio::time::pause();
        let addresses = Addresses::default();
        let [a, b, c] = [2, 3, 4].map(|last| SocketAddr::from(([127, 0, 0, last], 80)));
        assert_eq!(addresses.in_turn(vec![a, b, c]), [a, b, c]);
        assert_eq!(addresses.in_turn(vec![c, b, a]), [b, c, a], "in whatever order");

        addresses.lock().push((c, Instant::now()));
        assert_eq!(addresses.in_turn(vec![a, b, c]), [a, b, c], "not c");
        assert_eq!(addresses.in_turn(vec![a, b, c]), [a, b, c]);
        assert_eq!(addresses.in_turn(vec![a, b, c]), [b, a, c]);

        tokio::time::advance(AVOIDED_FOR).await;
        assert_eq!(addresses.in_turn(vec![a, b, c]), [c, a, b]);
    }
}
