//! Who is reached, and which source address each backend sees: kube-proxy's own table of flows, on real
//! packets.
//!
//! kube-proxy's half is its unit test `TestInternalExternalMasquerade`
//! (pkg/proxy/nftables/proxier_test.go), with a detector of local pods. Every
//! Service has an endpoint on the node that serves the client ("here") and one on another. Who is reached
//! is always the same as with kube-proxy; a source address that kube-proxy replaces is kept where
//! that is possible, and the table says why it is. With `--masquerade-all` all is as with kube-proxy's
//! `masqueradeAll`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_lab::topology::pod_range;
use lb_lab::{EXTERNAL_IP, Family, LOAD_BALANCER, Options, Request, Transport};

use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, for_both};

/// One of two equal backends stays without a request once in two billion cells.
const REQUESTS: u32 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// A pod of the node that is asked.
    Pod,
    /// The node that is asked, itself.
    Node,
    /// Outside the cluster.
    Outside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    ClusterIp,
    /// At the node's own address.
    NodePort,
    /// The load balancer's address; an external IP behaves alike.
    LoadBalancer,
}

/// Whose address a backend sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Client,
    /// The node's, as it is known on the way to the backend.
    Node,
}

/// Of the backend here, and of the one elsewhere; `None` if it must not be reached.
type Cell = [Option<Source>; 2];

const C: Option<Source> = Some(Source::Client);
const N: Option<Source> = Some(Source::Node);
const X: Option<Source> = None;

/// The columns of the table.
#[derive(Clone, Copy, Debug)]
enum Policy {
    /// Both traffic policies Cluster.
    Cluster,
    ExternalLocal,
    InternalLocal,
}

struct Row {
    client: Client,
    to: Destination,
    /// By [`Policy`].
    kube_proxy: [Cell; 3],
    ours: [Cell; 3],
    /// Why a source is kept that kube-proxy replaces; empty where nothing differs.
    why: &'static str,
}

const POD: &str = "the pod's address leads back to the pod from every backend";
const HERE: &str = "the replies of a backend here pass this node, whatever their destination";

#[rustfmt::skip]
const TABLE: [Row; 9] = {
    use Client::{Node, Outside, Pod};
    use Destination::{ClusterIp, LoadBalancer, NodePort};
    [
        Row { client: Pod, to: ClusterIp,
              kube_proxy: [[C, C], [C, C], [C, X]],
              ours:       [[C, C], [C, C], [C, X]], why: "" },
        Row { client: Pod, to: NodePort,
              kube_proxy: [[N, N], [C, C], [N, N]],
              ours:       [[C, C], [C, C], [C, C]], why: POD },
        Row { client: Pod, to: LoadBalancer,
              kube_proxy: [[N, N], [C, C], [N, N]],
              ours:       [[C, C], [C, C], [C, C]], why: POD },
        Row { client: Node, to: ClusterIp,
              kube_proxy: [[N, N], [N, N], [N, X]],
              ours:       [[N, N], [N, N], [N, X]], why: "" },
        Row { client: Node, to: NodePort,
              kube_proxy: [[N, N], [N, N], [N, N]],
              ours:       [[N, N], [N, N], [N, N]], why: "" },
        Row { client: Node, to: LoadBalancer,
              kube_proxy: [[N, N], [N, N], [N, N]],
              ours:       [[N, N], [N, N], [N, N]], why: "" },
        Row { client: Outside, to: ClusterIp,
              kube_proxy: [[N, N], [N, N], [N, X]],
              ours:       [[C, N], [C, N], [C, X]], why: HERE },
        Row { client: Outside, to: NodePort,
              kube_proxy: [[N, N], [C, X], [N, N]],
              ours:       [[C, N], [C, X], [C, N]], why: HERE },
        Row { client: Outside, to: LoadBalancer,
              kube_proxy: [[N, N], [C, X], [N, N]],
              ours:       [[C, N], [C, X], [C, N]], why: HERE },
    ]
};

impl Row {
    /// As kube-proxy's `masqueradeAll` has it: what pods send to a ClusterIP is masqueraded, too.
    fn masqueraded(&self, policy: Policy) -> Cell {
        let cell = self.kube_proxy[policy as usize];
        match (self.client, self.to) {
            (Client::Pod, Destination::ClusterIp) => cell.map(|reached| reached.and(N)),
            _ => cell,
        }
    }
}

/// The node that serves a request, its number in pod ranges, the backend on it and the one elsewhere.
struct Place {
    node: &'static str,
    number: u8,
    backends: [&'static str; 2],
}

const NODE_A: Place = Place { node: "node-a", number: 1, backends: ["pod-a1", "pod-b1"] };
const NODE_B: Place = Place { node: "node-b", number: 2, backends: ["pod-b1", "pod-a1"] };

/// The addresses and ports of a destination at a place. The client outside has routes: the load
/// balancer's address and ClusterIPs lead to node-a, the external IP to node-b.
fn targets(
    stage: &Stage,
    service: &Service,
    row: &Row,
    place: &Place,
    family: Family,
) -> Vec<(IpAddr, u16)> {
    let routed_here = row.client != Client::Outside;
    match row.to {
        Destination::NodePort => {
            vec![(stage.address(place.node, family), service.node_port_number())]
        }
        Destination::ClusterIp if routed_here || place.node == "node-a" => {
            vec![(service.cluster_ip().of(family), PORT)]
        }
        Destination::ClusterIp => Vec::new(),
        Destination::LoadBalancer => {
            let balanced = [(LOAD_BALANCER, "node-a"), (EXTERNAL_IP, "node-b")];
            let here = balanced.into_iter().filter(|(_, node)| routed_here || *node == place.node);
            here.map(|(address, _)| (address.of(family), PORT)).collect()
        }
    }
}

/// The source addresses that backends must see, by their names.
fn expected(
    stage: &Stage,
    cell: Cell,
    from: &str,
    place: &Place,
    family: Family,
) -> BTreeMap<String, IpAddr> {
    let own = stage.address(place.node, family);
    // What is masqueraded for a backend here has the address that stands for the node; its own processes
    // take that of the device.
    let here =
        if from == place.node { pod_range(place.number, 1).unwrap().of(family) } else { own };
    let on_the_way = [here, own];
    let sources = cell.into_iter().zip(place.backends).zip(on_the_way);
    sources
        .filter_map(|((source, backend), node)| {
            let address = match source? {
                Source::Client => stage.address(from, family),
                Source::Node => node,
            };
            Some((backend.to_owned(), address))
        })
        .collect()
}

/// What the agents do to sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sources {
    /// They keep them, with pods that are served so.
    Kept(Pods),
    /// `--masquerade-all`.
    Masqueraded,
}

/// Asks from everywhere, every destination, and compares with one column of the table.
fn holds(policy: Policy, sources: Sources) {
    let mut service = Service::new(1, &["pod-a1", "pod-b1"]);
    match policy {
        Policy::Cluster => {}
        Policy::ExternalLocal => service.external_local = true,
        Policy::InternalLocal => service.internal_local = true,
    }
    let (options, services) = (Options::default(), std::slice::from_ref(&service));
    let stage = match sources {
        Sources::Kept(pods) => Stage::serving(pods, &options, services),
        Sources::Masqueraded => Stage::masquerading(&options, services),
    };
    let mut wrong = Vec::new();
    for row in &TABLE {
        for place in [NODE_A, NODE_B] {
            let from = match row.client {
                Client::Pod => place.backends[0].replace('1', "2"),
                Client::Node => place.node.to_owned(),
                Client::Outside => "client".to_owned(),
            };
            let cell = match sources {
                Sources::Kept(_) => row.ours[policy as usize],
                Sources::Masqueraded => row.masqueraded(policy),
            };
            for (family, transport) in each() {
                let expected = expected(&stage, cell, &from, &place, family);
                for (to, port) in targets(&stage, &service, row, &place, family) {
                    let request = Request::new(transport, to, port);
                    let seen = ask(&stage, &from, &request);
                    if seen != expected {
                        wrong.push(format!(
                            "{from} → {:?} {} {transport}: expected {expected:?}, saw {seen:?}",
                            row.to, request.to
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{policy:?}:\n{}", wrong.join("\n"));
}

/// Requests from sockets of their own, UDP ones connected and not; what each server saw.
fn ask(stage: &Stage, from: &str, request: &Request) -> BTreeMap<String, IpAddr> {
    let kinds: &[bool] =
        if request.transport == Transport::Udp { &[false, true] } else { &[false] };
    let mut seen: BTreeMap<String, IpAddr> = BTreeMap::new();
    for &connected in kinds {
        let many = Request { connected, ..request.clone() }.times(REQUESTS);
        for outcome in stage.lab().peer(from).unwrap().request(&many).unwrap() {
            let answer = outcome.unwrap_or_else(|failure| panic!("{from} → {many:?}: {failure}"));
            // The application deals with the Service's address, whoever answers.
            assert_eq!(answer.peer_name.unwrap_or(request.to), request.to, "{from}");
            assert_eq!(answer.received_from.unwrap_or(request.to), request.to, "{from}");
            let source = answer.seen.ip();
            let before = *seen.entry(answer.server.clone()).or_insert(source);
            assert_eq!(source, before, "{from} → {}: {} sees two", request.to, answer.server);
        }
    }
    seen
}

#[test]
fn the_table_reaches_whom_kube_proxy_reaches_and_gives_a_reason_for_every_other_source() {
    for Row { client, to, kube_proxy, ours, why } in &TABLE {
        for (theirs, ours) in kube_proxy.iter().zip(ours) {
            let reached = |cell: &Cell| cell.map(|source| source.is_some());
            assert_eq!(reached(theirs), reached(ours), "{client:?} → {to:?}");
        }
        assert_eq!(kube_proxy == ours, why.is_empty(), "{client:?} → {to:?}");
    }
}

for_both! {
    flows_of_policy_cluster_are_those_of_kube_proxy_with_sources_kept,
    flows_of_external_policy_local_are_those_of_kube_proxy_with_sources_kept,
    flows_of_internal_policy_local_are_those_of_kube_proxy_with_sources_kept,
}

fn flows_of_policy_cluster_are_those_of_kube_proxy_with_sources_kept(pods: Pods) {
    holds(Policy::Cluster, Sources::Kept(pods));
}

fn flows_of_external_policy_local_are_those_of_kube_proxy_with_sources_kept(pods: Pods) {
    holds(Policy::ExternalLocal, Sources::Kept(pods));
}

fn flows_of_internal_policy_local_are_those_of_kube_proxy_with_sources_kept(pods: Pods) {
    holds(Policy::InternalLocal, Sources::Kept(pods));
}

#[test]
fn with_all_masqueraded_flows_of_policy_cluster_are_those_of_kube_proxy() {
    holds(Policy::Cluster, Sources::Masqueraded);
}

#[test]
fn with_all_masqueraded_flows_of_external_policy_local_are_those_of_kube_proxy() {
    holds(Policy::ExternalLocal, Sources::Masqueraded);
}

#[test]
fn with_all_masqueraded_flows_of_internal_policy_local_are_those_of_kube_proxy() {
    holds(Policy::InternalLocal, Sources::Masqueraded);
}
