//! Random objects. Most are good ones; some say what nobody should.

use super::case::Step;
use super::scenery::{ELSEWHERE, NODE, OTHER_NODE, PODS, both};
use k8s_openapi::api::core::v1::{
    ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Node, NodeAddress, NodeStatus,
    Service, ServicePort, ServiceSpec, ServiceStatus, SessionAffinityConfig,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use lb_common::model::scene::{Role, port};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names.
pub const SERVICES: [&str; 2] = ["a", "b"];
/// Name, and what such a slice is usually for.
pub const SLICES: [(&str, &str, &str); 5] = [
    ("s", "a", "IPv4"),
    ("t", "a", "IPv6"),
    ("u", "b", "IPv4"),
    ("v", "b", "IPv6"),
    ("w", "a", "IPv4"),
];
const PORT_NAMES: [&str; 2] = ["", "x"];
/// Of Services.
pub const PORTS: [i32; 2] = [80, 81];
/// NodePorts.
pub const NODE_PORTS: [i32; 2] = [30_080, 30_081];
/// Of endpoints.
const TARGETS: [i32; 2] = [port::BACKEND as i32, 9_090];

/// Addresses that Services claim.
pub fn frontends() -> Vec<IpAddr> {
    [Role::ClusterIp, Role::External, Role::LoadBalancer, Role::Node]
        .into_iter()
        .flat_map(both)
        .chain(cluster_ips(11))
        .collect()
}

/// A ClusterIP in both families.
pub fn cluster_ips(last: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 96, 0, last).into(),
        Ipv6Addr::new(0xfd00, 96, 0, 0, 0, 0, 0, last.into()).into(),
    ]
}

/// An address as people write it.
fn written(address: IpAddr) -> impl Strategy<Value = String> {
    let careless = match address {
        IpAddr::V4(v4) => v4.octets().map(|octet| format!("{octet:03}")).join("."),
        IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:05x}")).join(":"),
    };
    let mapped = match address {
        IpAddr::V4(v4) => format!("::ffff:{v4}"),
        IpAddr::V6(v6) => v6.to_string().to_uppercase(),
    };
    prop_oneof![14 => Just(address.to_string()), 1 => Just(careless), 1 => Just(mapped)]
}

fn some_frontend() -> impl Strategy<Value = String> {
    let good = select(frontends()).prop_flat_map(written);
    let bad = select(vec!["", "10.0.0", "127.0.0.1", "0.0.0.0", "::", "::1", "224.0.0.1"]);
    prop_oneof![20 => good, 1 => bad.prop_map(str::to_owned)]
}

fn text(choice: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
    of(select(choice).prop_map(str::to_owned))
}

fn protocol() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        3 => Just(None),
        3 => Just(Some("TCP".to_owned())),
        5 => Just(Some("UDP".to_owned())),
        2 => Just(Some("SCTP".to_owned())),
    ]
}

fn metadata(name: &'static str, created: Option<i64>, labels: Vec<(&str, String)>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        creation_timestamp: created.and_then(|at| Timestamp::from_second(at).ok()).map(Time),
        labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ..ObjectMeta::default()
    }
}

/// `clusterIPs`, `ipFamilies`: of either family, both in either order, none, or nonsense.
fn cluster_addresses() -> impl Strategy<Value = (Vec<String>, Option<Vec<String>>)> {
    let pairs = select(vec![both(Role::ClusterIp), cluster_ips(11)]);
    let addresses = (pairs.clone(), pairs, 0..8_u8).prop_flat_map(|(one, two, kind)| {
        let chosen = match kind {
            0 | 1 => vec![one[0]],
            2 => vec![one[1]],
            3 => vec![one[1], two[0]],
            4 => vec![one[0], two[0]],
            _ => vec![one[0], two[1]],
        };
        chosen.into_iter().map(written).collect::<Vec<_>>()
    });
    let families = prop_oneof![
        6 => Just(None),
        1 => Just(Some(vec!["IPv4".to_owned(), "IPv6".to_owned()])),
        1 => Just(Some(vec!["IPv6".to_owned(), "IPv4".to_owned()])),
    ];
    prop_oneof![
        24 => (addresses, families),
        1 => Just((vec!["None".to_owned()], None)),
        1 => Just((Vec::new(), None)),
    ]
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    let node_port = prop_oneof![
        4 => Just(None),
        4 => select(&NODE_PORTS[..]).prop_map(Some),
        1 => Just(Some(0)),
    ];
    (text(&PORT_NAMES), protocol(), select(&PORTS[..]), node_port).prop_map(
        |(name, protocol, port, node_port)| ServicePort {
            name,
            protocol,
            port,
            node_port,
            ..ServicePort::default()
        },
    )
}

fn ingress() -> impl Strategy<Value = LoadBalancerIngress> {
    let mode = prop_oneof![
        4 => Just(None),
        4 => Just(Some("VIP".to_owned())),
        1 => Just(Some("Proxy".to_owned())),
    ];
    let named = Just((None, Some("lb.example".to_owned())));
    let ip = prop_oneof![9 => some_frontend().prop_map(|ip| (Some(ip), None)), 1 => named];
    (ip, mode).prop_map(|((ip, hostname), ip_mode)| LoadBalancerIngress {
        ip,
        hostname,
        ip_mode,
        ..LoadBalancerIngress::default()
    })
}

fn source_ranges() -> impl Strategy<Value = Option<Vec<String>>> {
    let ranges: Vec<&str> = vec![
        "192.0.2.10/32",
        " 192.0.002.0/27 ",
        "10.0.0.0/8",
        "10.244.1.0/24",
        "0.0.0.0/0",
        "2001:db8:2::10/128",
        "2001:db8:2::/64",
        "fd00::/16",
        "::/0",
        "192.0.2.0",
        "anybody",
    ];
    weighted(0.6, vec(select(ranges).prop_map(str::to_owned), 0..4))
}

fn affinity() -> impl Strategy<Value = (Option<String>, Option<SessionAffinityConfig>)> {
    let config = |timeout_seconds| SessionAffinityConfig {
        client_ip: Some(ClientIPConfig { timeout_seconds }),
    };
    let timeout = select(vec![None, Some(10), Some(100), Some(0)]);
    let config = of(timeout.prop_map(config));
    let kind = prop_oneof![
        2 => Just(None),
        1 => Just(Some("None".to_owned())),
        3 => Just(Some("ClientIP".to_owned())),
    ];
    (kind, config)
}

/// A Service of this name.
pub fn service(name: &'static str) -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        2 => Just(None),
        6 => text(&["ClusterIP", "NodePort", "LoadBalancer"]),
        1 => Just(Some("ExternalName".to_owned())),
    ];
    let labels = weighted(0.06, Just(("service.kubernetes.io/service-proxy-name", "x".to_owned())));
    let policy = || text(&["Local", "Local", "Cluster"]);
    let policies = (policy(), policy());
    (
        (of(select(vec![1_i64, 2])), labels, kind, cluster_addresses()),
        (vec(service_port(), 1..4), weighted(0.5, vec(some_frontend(), 0..3))),
        (weighted(0.6, vec(ingress(), 0..3)), source_ranges(), policies, affinity()),
        any::<bool>(),
    )
        .prop_map(move |(identity, addresses, rest, single)| {
            let (created, label, type_, (cluster_ips, ip_families)) = identity;
            let (ports, external_ips) = addresses;
            let (ingress, ranges, (internal, external), (affinity, config)) = rest;
            let first = cluster_ips.first().cloned();
            Step::Service(Box::new(Service {
                metadata: metadata(name, created, label.into_iter().collect()),
                spec: Some(ServiceSpec {
                    type_,
                    cluster_ip: first.filter(|_| single || cluster_ips.len() > 1),
                    cluster_ips: Some(cluster_ips).filter(|all| !single || all.len() > 1),
                    ip_families,
                    ports: Some(ports),
                    external_ips,
                    load_balancer_source_ranges: ranges,
                    internal_traffic_policy: internal,
                    external_traffic_policy: external,
                    session_affinity: affinity,
                    session_affinity_config: config,
                    ..ServiceSpec::default()
                }),
                status: ingress.map(|ingress| ServiceStatus {
                    load_balancer: Some(LoadBalancerStatus { ingress: Some(ingress) }),
                    ..ServiceStatus::default()
                }),
            }))
        })
}

/// An endpoint where its address is, said or not.
fn endpoint(v4: bool) -> impl Strategy<Value = Endpoint> {
    let place = |role: Role, node: Option<&'static str>| (both(role)[usize::from(!v4)], node);
    let mut places: Vec<(IpAddr, Option<&'static str>)> = Vec::new();
    for role in PODS.into_iter().chain([Role::Node]) {
        places.extend([place(role, Some(NODE)), place(role, Some(NODE)), place(role, None)]);
    }
    for role in ELSEWHERE {
        places.extend([place(role, Some(OTHER_NODE)), place(role, None)]);
    }
    let address = select(places).prop_flat_map(|(ip, node)| (written(ip), Just(node)));
    let condition = || prop_oneof![3 => Just(None), 2 => Just(Some(true)), 2 => Just(Some(false))];
    let any = (condition(), condition(), condition());
    // Ready; terminating, but still serving; neither; and whatever else can be written.
    let conditions = weighted(
        0.9,
        prop_oneof![
            4 => Just((Some(true), Some(true), Some(false))),
            4 => Just((Some(false), Some(true), Some(true))),
            1 => Just((Some(false), Some(false), Some(false))),
            3 => any,
        ]
        .prop_map(|(ready, serving, terminating)| EndpointConditions {
            ready,
            serving,
            terminating,
        }),
    );
    let names = |choice: &'static [&'static str]| {
        weighted(0.7, subsequence(choice.to_vec(), 0..=choice.len()))
    };
    let hints = weighted(0.6, (names(&["z1", "z2"]), names(&[NODE, OTHER_NODE])));
    (address, conditions, hints, 0..20_u8).prop_map(|((text, node), conditions, hints, bad)| {
        let addresses = match bad {
            0 => vec![],
            1 => vec!["169.254.1.1".to_owned(), text],
            2 => vec![text, "not looked at".to_owned()],
            _ => vec![text],
        };
        Endpoint {
            addresses,
            conditions,
            node_name: node.map(str::to_owned),
            hints: hints.map(|(zones, nodes)| EndpointHints {
                for_zones: zones
                    .map(|all| all.into_iter().map(|name| ForZone { name: name.into() }).collect()),
                for_nodes: nodes
                    .map(|all| all.into_iter().map(|name| ForNode { name: name.into() }).collect()),
            }),
            ..Endpoint::default()
        }
    })
}

/// A slice of this name, mostly for this Service and family.
pub fn slice(
    (name, for_service, of_family): (&'static str, &'static str, &'static str),
) -> impl Strategy<Value = Step> {
    let port_name = prop_oneof![
        1 => Just(None),
        12 => select(&PORT_NAMES[..]).prop_map(|name| Some(name.to_owned())),
    ];
    let number = prop_oneof![12 => select(&TARGETS[..]).prop_map(Some), 1 => Just(None)];
    let port = (port_name, protocol(), number).prop_map(|(name, protocol, port)| EndpointPort {
        name,
        protocol,
        port,
        ..EndpointPort::default()
    });
    // Most slices have what most Services ask for.
    let usual: Vec<EndpointPort> = PORT_NAMES
        .into_iter()
        .flat_map(|name| {
            [
                (name, "TCP", TARGETS[0]),
                (name, "UDP", TARGETS[0]),
                (name, "SCTP", TARGETS[0]),
                (name, "TCP", TARGETS[1]),
            ]
        })
        .map(|(name, protocol, port)| EndpointPort {
            name: Some(name.to_owned()),
            protocol: Some(protocol.to_owned()),
            port: Some(port),
            ..EndpointPort::default()
        })
        .collect();
    let ports = prop_oneof![3 => subsequence(usual, 6..=8), 1 => vec(port, 1..4)];
    let labels = (
        prop_oneof![
            40 => Just(Some(for_service)),
            3 => select(&SERVICES[..]).prop_map(Some),
            1 => Just(None),
        ],
        weighted(0.03, Just(("service.kubernetes.io/headless", String::new()))),
    );
    let family =
        prop_oneof![40 => Just(of_family), 2 => Just("IPv4"), 2 => Just("IPv6"), 1 => Just("FQDN")];
    (labels, family, ports).prop_flat_map(move |((service, headless), family, ports)| {
        vec(endpoint(family == "IPv4"), 1..5).prop_map(move |endpoints| {
            let service = service.map(|name| ("kubernetes.io/service-name", name.to_owned()));
            Step::Slice(Box::new(EndpointSlice {
                metadata: metadata(
                    name,
                    None,
                    service.into_iter().chain(headless.clone()).collect(),
                ),
                address_type: family.to_owned(),
                ports: Some(ports.clone()),
                endpoints: Some(endpoints),
            }))
        })
    })
}

/// The Node object.
pub fn node() -> impl Strategy<Value = Step> {
    let address = |kind: &str, address: IpAddr| NodeAddress {
        type_: kind.to_owned(),
        address: address.to_string(),
    };
    let all = [
        address("InternalIP", both(Role::Node)[0]),
        address("InternalIP", both(Role::Node)[1]),
        address("ExternalIP", both(Role::Management)[0]),
        address("Hostname", both(Role::Overlay)[0]),
    ];
    let zone = of(select(vec!["z1", "z2", ""]));
    (zone, subsequence(all.to_vec(), 0..=4)).prop_map(|(zone, addresses)| {
        let zone = zone.map(|zone| ("topology.kubernetes.io/zone", zone.to_owned()));
        Step::Node(Box::new(Node {
            metadata: ObjectMeta {
                namespace: None,
                ..metadata(NODE, None, zone.into_iter().collect())
            },
            status: Some(NodeStatus { addresses: Some(addresses), ..NodeStatus::default() }),
            ..Node::default()
        }))
    })
}
