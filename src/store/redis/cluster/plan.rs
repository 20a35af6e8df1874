//! The plan: which node owns a slot according to the nodes, and how conflicts are resolved.
//! Pure.
//!
//! `CLUSTER SLOTS` names the owner of each slot by the endpoint at which its node wants to be
//! reached (address or host name, the TLS port for a client on TLS); `CLUSTER NODES` adds the
//! config epoch in which it claims them, and `CLUSTER INFO` the current epoch, which shows whether
//! the node is behind. The rule is the cluster's own: of two claims to a slot the one of the higher
//! config epoch wins. This module does not know which nodes can be reached, nor what to do about a
//! slot that has moved.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use redis::Value;

use crate::store::{
    NodeAddress, StoreError,
    errors::Result,
    redis::{dial::ClusterReplies, server_info::text_field},
    slots::SLOTS,
};

/// Maximum number of nodes that are remembered, to be asked.
const MAX_NODES: usize = 2_000;

/// A master, and the epoch of its claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Master {
    /// The node id, which does not depend on its address.
    pub(super) id: Box<str>,
    pub(super) address: NodeAddress,
    /// The config epoch in which it claims its slots.
    pub(super) epoch: u64,
}

impl Master {
    /// Whether this is the same node at the same place, in whatever epoch.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.id == other.id && self.address == other.address
    }
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeView {
    /// The highest epoch that the node has heard of.
    pub(super) current_epoch: u64,
    pub(super) masters: Vec<Master>,
    /// First and last slot, and the index of their owner in `masters`.
    claims: Vec<(u16, u16, usize)>,
    /// The addresses of replicas, which are asked, too.
    replicas: Vec<NodeAddress>,
    /// The addresses from `CLUSTER NODES`, which include nodes that this one does not reach.
    known_nodes: Vec<NodeAddress>,
}

impl NodeView {
    /// Parses the replies of a node that was asked at this address.
    pub(super) fn parse(asked: &NodeAddress, replies: &ClusterReplies) -> Result<Self> {
        Self::from_replies(asked, replies)
            .ok_or_else(|| StoreError::Refused("its replies do not describe a cluster".into()))
    }

    fn from_replies(asked: &NodeAddress, (slots, nodes, info): &ClusterReplies) -> Option<Self> {
        let epochs = epochs(nodes);
        let mut view = Self {
            current_epoch: text_field(info, "cluster_current_epoch")?.parse().ok()?,
            ..Self::default()
        };
        for range in array(slots)? {
            let [Value::Int(first), Value::Int(last), master, replicas @ ..] = array(range)? else {
                return None;
            };
            let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
            if first > last || last >= SLOTS {
                return None;
            }
            let (id, address) = parse_node(asked, master)?;
            let index = view.masters.iter().position(|known| known.id == id).unwrap_or_else(|| {
                let epoch = epochs.get(&*id).copied().unwrap_or(0);
                view.masters.push(Master { id, address, epoch });
                view.masters.len() - 1
            });
            view.claims.push((first, last, index));
            let replicas =
                replicas.iter().filter_map(|replica| Some(parse_node(asked, replica)?.1));
            view.replicas.extend(replicas.take(MAX_NODES));
        }
        view.known_nodes.extend(
            nodes.lines().filter_map(|line| parse_listed_node(asked, line)).take(MAX_NODES),
        );
        Some(view)
    }
}

/// The conclusion from several views.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The highest epoch that any node has heard of.
    pub(super) current_epoch: u64,
    /// The masters that own a slot.
    pub(super) masters: Vec<Master>,
    /// For each slot, the index of its owner in `masters`.
    pub(super) owners: Vec<Option<u16>>,
    /// All nodes that can be asked.
    pub(super) nodes: Vec<NodeAddress>,
    /// Whether there is only one node, as far as nodes reach each other.
    pub(super) is_alone: bool,
}

impl Plan {
    /// Combines views: of two claims to a slot the one of the higher config epoch wins.
    pub(super) fn of(views: &[NodeView]) -> Self {
        let (mut masters, owners) = owners(&winning_claims(views));
        for master in &mut masters {
            let claims = views.iter().flat_map(|view| &view.masters);
            let newest =
                claims.filter(|claim| claim.id == master.id).max_by_key(|claim| claim.epoch);
            if let Some(newest) = newest {
                master.clone_from(newest);
            }
        }
        let (nodes, is_alone) = nodes(views);
        let current_epoch = views.iter().map(|view| view.current_epoch).max().unwrap_or(0);
        Self { current_epoch, masters, owners, nodes, is_alone }
    }
}

/// For each slot, the claim of the highest config epoch.
fn winning_claims(views: &[NodeView]) -> Vec<Option<&Master>> {
    let mut claims: Vec<Option<&Master>> = vec![None; usize::from(SLOTS)];
    for view in views {
        for (first, last, index) in &view.claims {
            let Some(master) = view.masters.get(*index) else { continue };
            let range = usize::from(*first)..=usize::from(*last);
            for claim in claims.get_mut(range).into_iter().flatten() {
                if claim.is_none_or(|other| other.epoch < master.epoch) {
                    *claim = Some(master);
                }
            }
        }
    }
    claims
}

/// The masters that own a slot, and for each slot the index of its owner among them.
fn owners(claims: &[Option<&Master>]) -> (Vec<Master>, Vec<Option<u16>>) {
    let mut masters: Vec<Master> = Vec::new();
    let mut owners = Vec::with_capacity(claims.len());
    // Slots of one owner are adjacent, so the owner is looked up once per range.
    for range in claims.chunk_by(|a, b| a.map(std::ptr::from_ref) == b.map(std::ptr::from_ref)) {
        let index = range.first().copied().flatten().and_then(|claim| {
            let known = masters.iter().position(|known| known.id == claim.id);
            let index = known.unwrap_or_else(|| {
                masters.push(claim.clone());
                masters.len() - 1
            });
            u16::try_from(index).ok()
        });
        owners.extend(std::iter::repeat_n(index, range.len()));
    }
    (masters, owners)
}

/// All nodes that can be asked, and whether there is only one, as far as nodes reach each other.
fn nodes(views: &[NodeView]) -> (Vec<NodeAddress>, bool) {
    let masters = views.iter().flat_map(|view| &view.masters).map(|master| &master.address);
    let replicas = views.iter().flat_map(|view| &view.replicas);
    let mut nodes: BTreeSet<&NodeAddress> = masters.chain(replicas).collect();
    let is_alone = nodes.len() <= 1;
    nodes.extend(views.iter().flat_map(|view| &view.known_nodes));
    (nodes.into_iter().take(MAX_NODES).cloned().collect(), is_alone)
}

/// The config epoch of every node, by its id.
fn epochs<'n>(nodes: &'n str) -> HashMap<&'n str, u64> {
    let epoch =
        |mut words: std::str::Split<'n, char>| Some((words.next()?, words.nth(5)?.parse().ok()?));
    nodes.lines().filter_map(|line| epoch(line.split(' '))).collect()
}

/// The address of a node in a line of `CLUSTER NODES`, which unlike `CLUSTER SLOTS` lists nodes
/// that the answering one does not reach: `<id> <ip:port@cport[,hostname]> <flags> ...`. Uses the
/// host name if we ask by name.
fn parse_listed_node(asked: &NodeAddress, line: &str) -> Option<NodeAddress> {
    let [_, endpoint, flags] = line.splitn(4, ' ').take(3).collect::<Vec<_>>().try_into().ok()?;
    if flags.split(',').any(|flag| matches!(flag, "myself" | "noaddr" | "handshake")) {
        return None;
    }
    let (address, more) = endpoint.split_once('@')?;
    let address = NodeAddress::parse(address).filter(|address| !address.host.is_empty())?;
    let name = more.split(',').nth(1).filter(|name| !name.is_empty());
    let is_by_name = asked.host.parse::<IpAddr>().is_err();
    Some(match name.filter(|_| is_by_name) {
        Some(name) => NodeAddress { host: name.into(), ..address },
        None => address,
    })
}

fn array(value: &Value) -> Option<&[Value]> {
    if let Value::Array(items) = value { Some(items) } else { None }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Returns id and address. A node with an unknown endpoint is at the address that we asked; a node
/// that should have a host name and has none is at its IP address.
fn parse_node(asked: &NodeAddress, value: &Value) -> Option<(Box<str>, NodeAddress)> {
    let [host, Value::Int(port), id, more @ ..] = array(value)? else { return None };
    let host = match text(host) {
        None | Some("") => asked.host.clone(),
        Some("?") => ip(more).map_or_else(|| asked.host.clone(), Into::into),
        Some(host) => host.into(),
    };
    Some((text(id)?.into(), NodeAddress { host, port: u16::try_from(*port).ok()? }))
}

/// Finds the IP address in the names and values that follow the id of a node.
fn ip(more: &[Value]) -> Option<&str> {
    let pairs = array(more.first()?)?.chunks_exact(2);
    pairs.into_iter().find(|pair| text(&pair[0]) == Some("ip")).and_then(|pair| text(&pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> NodeAddress {
        NodeAddress::parse(text).unwrap()
    }

    fn parse(asked: &str, slots: Value, nodes: &str, info: &str) -> Option<NodeView> {
        NodeView::parse(&address(asked), &(slots, nodes.into(), info.into())).ok()
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn node_reply(host: Value, port: i64, id: &str) -> Value {
        Value::Array(vec![host, Value::Int(port), bulk(id), Value::Array(Vec::new())])
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    }

    /// The view of a node that reports these masters: id, config epoch, first and last slot.
    fn view(current_epoch: u64, masters: &[(&str, u64, u16, u16)]) -> NodeView {
        let slots = masters.iter().map(|(id, _, first, last)| {
            range((*first).into(), (*last).into(), vec![node_reply(bulk("10.0.0.1"), 6379, id)])
        });
        let nodes = masters.iter().map(|(id, epoch, ..)| {
            format!("{id} 10.0.0.1:6379@16379 master - 0 0 {epoch} connected 0-1\n")
        });
        let info = format!("cluster_state:ok\r\ncluster_current_epoch:{current_epoch}\r\n");
        let slots = Value::Array(slots.collect());
        parse("a:1", slots, &nodes.collect::<String>(), &info).unwrap()
    }

    /// The id of the master that owns a slot.
    fn owner(plan: &Plan, slot: u16) -> Option<&str> {
        let index = plan.owners[usize::from(slot)]?;
        Some(&plan.masters[usize::from(index)].id)
    }

    #[test]
    fn of_two_claims_the_one_of_the_higher_config_epoch_counts() {
        let old = view(6, &[("m1", 1, 0, 99), ("m2", 2, 100, 199)]);
        let new = view(7, &[("r1", 7, 0, 99), ("m2", 2, 100, 199)]);
        for views in [[old.clone(), new.clone()], [new, old]] {
            let plan = Plan::of(&views);
            assert_eq!((owner(&plan, 0), owner(&plan, 99)), (Some("r1"), Some("r1")));
            assert_eq!((owner(&plan, 100), owner(&plan, 200)), (Some("m2"), None));
            assert_eq!((plan.current_epoch, plan.masters.len()), (7, 2));
        }
    }

    #[test]
    fn a_node_whose_endpoint_is_unknown_is_where_we_asked() {
        for host in [Value::Nil, bulk(""), bulk("?")] {
            let slots = Value::Array(vec![range(0, 5, vec![node_reply(host, 7000, "m")])]);
            let info = "cluster_current_epoch:1";
            let view = parse("redis.internal:1", slots, "", info).unwrap();
            assert_eq!(view.masters[0].address, address("redis.internal:7000"));
        }
        let replica = node_reply(bulk("10.0.0.2"), 7001, "r");
        let master = node_reply(bulk("host.name"), 7000, "m");
        let slots = Value::Array(vec![range(0, 5, vec![master, replica])]);
        let view = parse("a:1", slots, "", "cluster_current_epoch:1").unwrap();
        let nodes = Plan::of(&[view]).nodes;
        assert_eq!(nodes, [address("10.0.0.2:7001"), address("host.name:7000")]);
    }

    #[test]
    fn nodes_that_a_node_does_not_reach_are_known_all_the_same() {
        let nodes = "m 10.0.0.1:6379@16379,one.host myself,master - 0 0 1 connected 0-5\n\
                     r 10.0.0.2:6379@16379,two.host slave,fail m 0 0 1 disconnected\n\
                     x :0@0 master,noaddr - 0 0 0 disconnected\n";
        let master = node_reply(bulk("10.0.0.1"), 6379, "m");
        let slots = Value::Array(vec![range(0, 5, vec![master])]);
        for (asked, expected) in [("10.0.0.1:6379", "10.0.0.2:6379"), ("a:1", "two.host:6379")] {
            let view = parse(asked, slots.clone(), nodes, "cluster_current_epoch:1");
            let nodes = Plan::of(&[view.unwrap()]).nodes;
            assert_eq!(nodes, [address("10.0.0.1:6379"), address(expected)]);
        }
    }

    #[test]
    fn a_node_without_a_host_name_is_at_its_ip_address() {
        let more = Value::Array(vec![bulk("hostname"), bulk(""), bulk("ip"), bulk("10.0.0.3")]);
        let master = Value::Array(vec![bulk("?"), Value::Int(7000), bulk("m"), more]);
        let slots = Value::Array(vec![range(0, 5, vec![master])]);
        let view = parse("a:1", slots, "", "cluster_current_epoch:1").unwrap();
        assert_eq!(view.masters[0].address, address("10.0.0.3:7000"));
    }

    #[test]
    fn what_is_no_view_is_none() {
        let parse = |slots: Value, info| parse("a:1", slots, "", info);
        let epoch = "cluster_current_epoch:1";
        assert_eq!(parse(Value::Okay, epoch), None);
        assert_eq!(parse(Value::Array(Vec::new()), "cluster_state:ok"), None);
        for (first, last) in [(5, 4), (0, 16_384), (-1, 4)] {
            let slots = Value::Array(vec![range(first, last, vec![node_reply(bulk("a"), 1, "m")])]);
            assert_eq!(parse(slots, epoch), None, "{first}-{last}");
        }
        assert_eq!(Plan::of(&[]).masters, []);
    }

    #[test]
    fn addresses_are_those_of_redirections() {
        assert_eq!(address("10.0.0.1:7000").to_string(), "10.0.0.1:7000");
        assert_eq!(&*address("fe80::1:7000").host, "fe80::1");
        assert_eq!(address("[fe80::1]:7000").to_string(), "[fe80::1]:7000");
        assert_eq!(NodeAddress::parse("nowhere"), None);
    }
}
