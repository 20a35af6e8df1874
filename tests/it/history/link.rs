//! A TCP proxy in front of Redis: a fixed address for the master, which a failover points to
//! another server and a fault cuts.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// The port of the current master, shared by all links.
pub(crate) type Target = Arc<AtomicU16>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    /// Connections are closed as soon as they are accepted.
    Refusing,
    /// Bytes are accepted and held until the link opens again; then they arrive late.
    Holding,
}

#[derive(Clone, Copy, Debug)]
struct State {
    mode: Mode,
    /// Connections of an older generation are cut.
    generation: u64,
}

/// A TCP proxy.
pub(crate) struct Link {
    address: SocketAddr,
    state: watch::Sender<State>,
    accept: JoinHandle<()>,
}

impl Link {
    pub(crate) async fn open(target: Target) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let (state, seen) = watch::channel(State { mode: Mode::Open, generation: 0 });
        let accept = tokio::spawn(accept(listener, target, seen));
        Self { address, state, accept }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Cuts every connection and refuses new ones, until [`heal`](Self::heal).
    pub(crate) fn refuse(&self) {
        self.change(Mode::Refusing, true);
    }

    /// Holds back every byte, until [`heal`](Self::heal).
    pub(crate) fn hold(&self) {
        self.change(Mode::Holding, false);
    }

    /// Lets bytes through, beginning with those that were held back.
    pub(crate) fn heal(&self) {
        self.change(Mode::Open, false);
    }

    fn change(&self, mode: Mode, cut: bool) {
        self.state.send_modify(|state| {
            state.mode = mode;
            state.generation += u64::from(cut);
        });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

async fn accept(listener: TcpListener, target: Target, state: watch::Receiver<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        if state.borrow().mode != Mode::Refusing {
            tokio::spawn(join(stream, target.load(Ordering::SeqCst), state.clone()));
        }
    }
}

async fn join(client: TcpStream, port: u16, state: watch::Receiver<State>) -> Option<()> {
    let generation = state.borrow().generation;
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
    client.set_nodelay(true).ok()?;
    server.set_nodelay(true).ok()?;
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    // Bytes that a client sent before it gave up still reach the server: a late command.
    tokio::spawn(pump(from_client, to_server, state.clone(), generation));
    pump(from_server, to_client, state, generation).await;
    Some(())
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    generation: u64,
) {
    let mut cut = state.clone();
    let copy = async {
        let mut bytes = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut bytes).await {
            state.wait_for(|now| now.mode != Mode::Holding).await.ok()?;
            to.write_all(&bytes[..read]).await.ok()?;
        }
        to.shutdown().await.ok()
    };
    tokio::select! {
        _ = copy => {}
        _ = cut.wait_for(|now| now.generation != generation) => {}
    }
}
