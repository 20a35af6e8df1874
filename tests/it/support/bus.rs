//! The bus of a cluster, relayed through the test process so that it can be partitioned while
//! clients can still reach all nodes. Each node connects from its own loopback address, by which
//! the relay recognises it.

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

/// A bit for each node.
type Sides = u8;

pub(crate) struct Bus {
    /// For each node, the port that the others call and the port on which it listens.
    ports: Vec<(u16, u16)>,
    /// For each node, whether it is on the other side of the partition. The relay ends when this is
    /// dropped.
    sides: watch::Sender<Sides>,
}

impl Bus {
    /// Starts the relay on its own thread, so that a busy test does not make nodes fail.
    pub(crate) fn open(nodes: u8) -> Self {
        let (sides, seen) = watch::channel(0);
        let (mut ports, mut listeners) = (Vec::new(), Vec::new());
        for _ in 0..nodes {
            let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            listener.set_nonblocking(true).expect("a socket");
            ports.push((listener.local_addr().expect("bound").port(), free_port()));
            listeners.push(listener);
        }
        let listens: Vec<u16> = ports.iter().map(|(_, listens)| *listens).collect();
        thread::spawn(move || serve(listeners, &listens, &seen));
        Self { ports, sides }
    }

    /// Returns the arguments for `redis-server`.
    pub(crate) fn args(&self, node: u8) -> Vec<String> {
        let (called, listens) = self.ports[usize::from(node)];
        let args = [
            ("--bind-source-addr", address(node).to_string()),
            // Redis does not recognise this bind address as local.
            ("--protected-mode", "no".to_owned()),
            ("--cluster-port", listens.to_string()),
            ("--cluster-announce-bus-port", called.to_string()),
        ];
        args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Returns the bus port that the other nodes call.
    pub(crate) fn port(&self, node: usize) -> u16 {
        self.ports[node].0
    }

    /// Partitions the bus: these nodes and the others cannot reach each other.
    pub(crate) fn cut_off(&self, nodes: &[usize]) {
        self.sides.send_replace(nodes.iter().fold(0, |sides, node| sides | 1 << node));
    }

    pub(crate) fn heal(&self) {
        self.sides.send_replace(0);
    }
}

/// Returns the address from which a node connects.
fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, 1 + node)
}

/// Returns the node that connects from this address, if there is one.
fn caller(address: IpAddr) -> Option<u8> {
    let IpAddr::V4(address) = address else { return None };
    let [.., net, last] = address.octets();
    (net == 1).then(|| last - 1)
}

fn serve(listeners: Vec<StdListener>, ports: &[u16], sides: &watch::Receiver<Sides>) {
    let runtime = runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    runtime.block_on(async {
        let accepts = listeners.into_iter().zip(ports).zip(0..).map(|((listener, port), node)| {
            let listener = TcpListener::from_std(listener).expect("a socket");
            accept(listener, node, *port, sides.clone())
        });
        let mut over = sides.clone();
        tokio::select! {
            _ = join_all(accepts) => {}
            _ = over.wait_for(|_| false) => {}
        }
    });
}

async fn accept(listener: TcpListener, node: u8, port: u16, sides: watch::Receiver<Sides>) {
    while let Ok((mut stream, from)) = listener.accept().await {
        let caller = caller(from.ip()).unwrap_or(node);
        let is_apart = move |sides: &Sides| (sides >> node ^ sides >> caller) & 1 == 1;
        if is_apart(&sides.borrow()) {
            continue;
        }
        let mut sides = sides.clone();
        tokio::spawn(async move {
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
            tokio::select! {
                copied = copy_bidirectional(&mut stream, &mut server) => copied.ok().map(drop),
                _ = sides.wait_for(is_apart) => None,
            }
        });
    }
}
