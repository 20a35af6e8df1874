//! The addresses of the upstream's name, used round robin.
//!
//! The name is resolved for each new connection, so that a change of DNS needs no restart; how long an
//! answer is cached is left to the system's resolver. An address that fails is passed over for the next
//! one, and is tried last for [`AVOIDED_FOR`].

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

/// The next turn, and the addresses that have failed lately, each once.
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
            self.note_failure(address);
        }
        Err(error)
    }

    /// Replaces what is known about this address, so that an upstream that stays down adds nothing.
    fn note_failure(&self, address: SocketAddr) {
        let mut failed = self.lock();
        failed.retain(|(other, at)| *other != address && at.elapsed() < AVOIDED_FOR);
        failed.push((address, Instant::now()));
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

        addresses.note_failure(c);
        assert_eq!(addresses.in_turn(vec![a, b, c]), [a, b, c], "not c");
        assert_eq!(addresses.in_turn(vec![a, b, c]), [a, b, c]);
        assert_eq!(addresses.in_turn(vec![a, b, c]), [b, a, c]);

        tokio::time::advance(AVOIDED_FOR).await;
        assert_eq!(addresses.in_turn(vec![a, b, c]), [c, a, b]);
    }

    #[tokio::test]
    async fn an_upstream_that_stays_down_is_noted_once() {
        let addresses = Addresses::default();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for _ in 0..3 {
            let connected = addresses.connect(&closed.to_string(), Duration::from_secs(5)).await;
            connected.unwrap_err();
        }
        assert_eq!(addresses.lock().len(), 1);
    }
}
