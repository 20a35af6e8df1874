//! The bus of a cluster, led through here so that it can be split while clients go on reaching all
//! nodes. Who calls shows by the loopback address that each node calls from.

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
    /// Where each node is called, and where it listens.
    ports: Vec<(u16, u16)>,
    /// Of each node whether it is on the other side. The bus ends with it.
    sides: watch::Sender<Sides>,
}

impl Bus {
    /// On a thread of its own: no test that is busy is to make nodes take each other for dead.
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

    /// Neither do the others reach these nor they them.
    pub(crate) fn cut_off(&self, nodes: &[usize]) {
        self.sides.send_replace(nodes.iter().fold(0, |sides, node| sides | 1 << node));
    }

    pub(crate) fn heal(&self) {
        self.sides.send_replace(0);
    }
}

/// Where a node calls from.
fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, 1 + node)
}

/// The node that calls from there, if one does.
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
