//! The bus of a cluster, led through here so that a node can be cut off from the others while clients
//! go on reaching it. Who calls shows by the loopback address that each node calls from.

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener as StdListener},
    thread,
};

use futures_util::future::join_all;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    runtime,
    sync::watch,
};

use super::free_port;

pub(crate) struct Bus {
    /// Where each node is called, and where it listens.
    ports: Vec<(u16, u16)>,
    /// The node that is cut off. The bus ends with it.
    cut: watch::Sender<Option<u8>>,
}

impl Bus {
    /// On a thread of its own: no test that is busy is to make nodes take each other for dead.
    pub(crate) fn open(nodes: u8) -> Self {
        let (cut, seen) = watch::channel(None);
        let (mut ports, mut listeners) = (Vec::new(), Vec::new());
        for _ in 0..nodes {
            let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            listener.set_nonblocking(true).expect("a socket");
            ports.push((listener.local_addr().expect("bound").port(), free_port()));
            listeners.push(listener);
        }
        let listens: Vec<u16> = ports.iter().map(|(_, listens)| *listens).collect();
        thread::spawn(move || serve(listeners, &listens, &seen));
        Self { ports, cut }
    }

    /// What `redis-server` is told.
    pub(crate) fn args(&self, node: u8) -> Vec<String> {
        let (called, listens) = self.ports[usize::from(node)];
        let args = [
            ("--bind-source-addr", address(node).to_string()),
            // Of which Redis does not know that it is local.
            ("--protected-mode", "no".to_owned()),
            ("--cluster-port", listens.to_string()),
            ("--cluster-announce-bus-port", called.to_string()),
        ];
        args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Where the others are to call it.
    pub(crate) fn port(&self, node: usize) -> u16 {
        self.ports[node].0
    }

    /// Neither do the others reach it nor it them.
    pub(crate) fn cut_off(&self, node: usize) {
        self.cut.send_replace(Some(u8::try_from(node).expect("a node")));
    }

    pub(crate) fn heal(&self) {
        self.cut.send_replace(None);
    }
}

/// Where a node calls from.
fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, 1 + node)
}

fn serve(listeners: Vec<StdListener>, ports: &[u16], cut: &watch::Receiver<Option<u8>>) {
    let runtime = runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    runtime.block_on(async {
        let accepts = listeners.into_iter().zip(ports).zip(0..).map(|((listener, port), node)| {
            let listener = TcpListener::from_std(listener).expect("a socket");
            accept(listener, node, *port, cut.clone())
        });
        let mut over = cut.clone();
        tokio::select! {
            _ = join_all(accepts) => {}
            _ = over.wait_for(|_| false) => {}
        }
    });
}

async fn accept(listener: TcpListener, node: u8, port: u16, cut: watch::Receiver<Option<u8>>) {
    while let Ok((mut caller, from)) = listener.accept().await {
        let is_apart = move |cut: &Option<u8>| {
            cut.is_some_and(|cut| cut == node || IpAddr::V4(address(cut)) == from.ip())
        };
        if is_apart(&cut.borrow()) {
            continue;
        }
        let mut cut = cut.clone();
        tokio::spawn(async move {
            let mut called = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
            tokio::select! {
                copied = copy_bidirectional(&mut caller, &mut called) => copied.ok().map(drop),
                _ = cut.wait_for(is_apart) => None,
            }
        });
    }
}
