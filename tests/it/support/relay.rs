//! A TCP relay to a server, which makes it look far away, badly connected or dead. Each connection
//! is delayed and limited by itself, and the settings may be changed while it runs.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use super::steady_clock;

/// Largest number of bytes that are passed on at once.
const CHUNK: usize = 4 << 10;
/// Chunks under way in each direction of a connection: about 1 MiB.
const UNDER_WAY: usize = 256;

/// How bytes are passed on.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// Delay in each direction.
    one_way: Duration,
    /// Bytes per second in each direction of a connection.
    rate: Option<u64>,
    /// Bytes are taken and not passed on.
    is_swallowing: bool,
}

pub(crate) struct Relay {
    address: SocketAddr,
    link: Arc<Mutex<Link>>,
    _accept: AbortOnDropHandle<()>,
}

impl Relay {
    /// Starts a relay to a port of this machine.
    pub(crate) async fn start(port: u16) -> Self {
        steady_clock();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let link = Arc::<Mutex<Link>>::default();
        let accept = accept(listener, port, Arc::clone(&link));
        let accept = AbortOnDropHandle::new(tokio::spawn(accept));
        Self { address, link, _accept: accept }
    }

    pub(crate) fn redis_url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Makes each round trip this much longer from now on.
    pub(crate) fn round_trip(&self, round_trip: Duration) {
        self.change(|link| link.one_way = round_trip / 2);
    }

    /// Limits each connection to so many bits per second in each direction.
    pub(crate) fn megabits(&self, megabits: u64) {
        self.change(|link| link.rate = Some(megabits * 1_000_000 / 8));
    }

    /// Takes what it is sent, and passes nothing on.
    pub(crate) fn swallow(&self) {
        self.change(|link| link.is_swallowing = true);
    }

    fn change(&self, change: impl FnOnce(&mut Link)) {
        change(&mut self.link.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn accept(listener: TcpListener, port: u16, link: Arc<Mutex<Link>>) {
    // The connections end with this task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.expect("a connection");
        let link = Arc::clone(&link);
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            for socket in [&client, &server] {
                socket.set_nodelay(true).expect("a socket");
            }
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            let there = pass_on(from_client, to_server, &link);
            let back = pass_on(from_server, to_client, &link);
            // An end of either side is the end of both.
            tokio::select! { () = there => {}, () = back => {} }
        });
    }
}

/// Passes bytes on in one direction until either side ends.
async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    link: &Mutex<Link>,
) {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let settings = || *link.lock().unwrap_or_else(PoisonError::into_inner);
    let take = async {
        let mut free_at = Instant::now();
        loop {
            let mut chunk = vec![0; CHUNK];
            let Ok(read @ 1..) = from.read(&mut chunk).await else { return };
            chunk.truncate(read);
            let Link { one_way, rate, is_swallowing } = settings();
            if is_swallowing {
                continue;
            }
            let takes = rate.map_or(0, |rate| read as u64 * 1_000_000_000 / rate);
            free_at = free_at.max(Instant::now()) + Duration::from_nanos(takes);
            if queue.send((free_at + one_way, chunk)).await.is_err() {
                return;
            }
        }
    };
    let give = async {
        while let Some((due, chunk)) = queued.recv().await {
            sleep_until(due).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = take => {}, () = give => {} }
}
