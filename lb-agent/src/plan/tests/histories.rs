//! Random histories: whatever the order of events, the end is the plan from scratch.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::NODE;
use crate::cluster::name::Name;
use crate::cluster::snapshot::{
    Change, Endpoint, EndpointPort, IpFamily, Node, ObjectName, Protocol, Service, ServiceCidr,
    ServicePort, Slice, Snapshot, TrafficPolicy,
};
use crate::plan::desired::{Delta, Desired};
use crate::plan::{Planner, plan};

/// Few names and addresses, so that events meet.
fn service_name() -> impl Strategy<Value = ObjectName> {
    select(vec!["a", "b", "c", "d"]).prop_map(|name| ObjectName::new("default", name))
}

fn v4(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, last))
}

fn v6(last: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(last)))
}

fn addresses(most: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    let pool: Vec<IpAddr> = (1..4).map(v4).chain((1..4).map(v6)).collect();
    subsequence(pool, 0..=most)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp])
}

fn port_name() -> impl Strategy<Value = Name> {
    select(vec!["", "x", "y"]).prop_map(Name::from)
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port =
        (port_name(), protocol(), 80..82u16, proptest::option::of(30080..30082u16)).prop_map(
            |(name, protocol, port, node_port)| ServicePort { name, protocol, port, node_port },
        );
    proptest::collection::vec(port, 1..4).prop_map(|mut ports| {
        // The conversion has made the keys unique.
        let mut keys = BTreeSet::new();
        ports.retain(|port| keys.insert((port.name.clone(), port.protocol)));
        ports
    })
}

fn service() -> impl Strategy<Value = Service> {
    let cluster_ips = (1..4u8, 1..4u8, 0..3u8).prop_map(|(first, second, kind)| match kind {
        0 => vec![v4(first)],
        1 => vec![v6(second)],
        _ => vec![v4(first), v6(second)],
    });
    let ranges = select(vec!["10.0.0.0/8", "0.0.0.0/0", "fd00::/16"]);
    (
        (service_name(), 0..2i64, cluster_ips, addresses(2), addresses(2)),
        (proptest::option::of(ranges), service_ports(), policy(), policy()),
        proptest::option::of(32000..32002u16),
    )
        .prop_map(|(addresses, rest, health_check_node_port)| {
            let (name, created, cluster_ips, external_ips, load_balancer_ips) = addresses;
            let (range, ports, internal_policy, external_policy) = rest;
            Service {
                name,
                created,
                cluster_ips,
                external_ips,
                load_balancer_ips,
                source_ranges: range.map(|text| text.parse().unwrap()).into_iter().collect(),
                ports,
                internal_policy,
                external_policy,
                affinity_timeout: None,
                health_check_node_port,
            }
        })
}

fn hints(names: [&'static str; 2]) -> impl Strategy<Value = Box<[Name]>> {
    subsequence(names.to_vec(), 0..=2).prop_map(|names| names.into_iter().map(Name::from).collect())
}

fn endpoint(family: IpFamily) -> impl Strategy<Value = Endpoint> {
    let node = proptest::option::of(select(vec![NODE, "node-b"]));
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
    (1..6u8, conditions, node, hints(["z1", "z2"]), hints([NODE, "node-b"])).prop_map(
        move |(last, (ready, serving, terminating), node, zone_hints, node_hints)| Endpoint {
            address: match family {
                IpFamily::V4 => v4(100 + last),
                IpFamily::V6 => v6(100 + last),
            },
            ready,
            serving,
            terminating,
            node: node.map(Name::from),
            zone_hints,
            node_hints,
        },
    )
}

fn slice() -> impl Strategy<Value = Slice> {
    let name = select(vec!["s1", "s2", "s3", "s4", "s5"]);
    let ports = proptest::collection::vec((port_name(), protocol(), 8080..8082u16), 0..3);
    (name, service_name(), select(vec![IpFamily::V4, IpFamily::V6]), ports).prop_flat_map(
        |(name, service, family, ports)| {
            proptest::collection::vec(endpoint(family), 0..6).prop_map(move |endpoints| Slice {
                name: ObjectName::new("default", name),
                service: service.clone(),
                family,
                ports: ports
                    .iter()
                    .map(|(name, protocol, port)| EndpointPort {
                        name: name.clone(),
                        protocol: *protocol,
                        port: *port,
                    })
                    .collect(),
                endpoints,
                trigger_time: None,
            })
        },
    )
}

fn node() -> impl Strategy<Value = Option<Node>> {
    let zone = proptest::option::of(select(vec!["z1", "z2"]));
    proptest::option::of((zone, addresses(1)).prop_map(|(zone, addresses)| Node {
        name: NODE.into(),
        zone: zone.map(Name::from),
        addresses,
        ..Node::default()
    }))
}

fn cidr_name() -> impl Strategy<Value = ObjectName> {
    select(vec!["kubernetes", "more"]).prop_map(|name| ObjectName::new("", name))
}

/// More ranges than fit, so that some don't.
fn cidr() -> impl Strategy<Value = ServiceCidr> {
    let pool =
        (0..10).map(|n| format!("10.{n}.0.0/16")).chain(["::/0".into(), "fd00::/112".into()]);
    let pool: Vec<String> = pool.collect();
    (cidr_name(), subsequence(pool, 0..=10)).prop_map(|(name, ranges)| ServiceCidr {
        name,
        ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
    })
}

/// One event. Lists are rare, and may hold an object twice.
fn change() -> impl Strategy<Value = Change> {
    let slice_name = select(vec!["s1", "s2", "s3", "s4", "s5"]);
    prop_oneof![
        6 => service().prop_map(Change::Service),
        2 => service_name().prop_map(Change::ServiceGone),
        8 => slice().prop_map(Change::Slice),
        3 => slice_name.prop_map(|name| Change::SliceGone(ObjectName::new("default", name))),
        1 => node().prop_map(Change::Node),
        1 => cidr().prop_map(Change::Cidr),
        1 => cidr_name().prop_map(Change::CidrGone),
        1 => proptest::collection::vec(cidr(), 0..3).prop_map(Change::AllCidrs),
        1 => proptest::collection::vec(service(), 0..5).prop_map(Change::AllServices),
        1 => proptest::collection::vec(slice(), 0..6).prop_map(Change::AllSlices),
    ]
}

/// What a history ends in: the obvious implementation.
fn end_of(history: &[Change]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for change in history.iter().cloned() {
        match change {
            Change::Service(service) => {
                snapshot.services.insert(service.name.clone(), service);
            }
            Change::ServiceGone(name) => {
                snapshot.services.remove(&name);
            }
            Change::Slice(slice) => {
                snapshot.slices.insert(slice.name.clone(), slice);
            }
            Change::SliceGone(name) => {
                snapshot.slices.remove(&name);
            }
            Change::Node(node) => snapshot.node = node,
            Change::AllServices(services) => {
                snapshot.services =
                    services.into_iter().map(|service| (service.name.clone(), service)).collect();
            }
            Change::AllSlices(slices) => {
                snapshot.slices =
                    slices.into_iter().map(|slice| (slice.name.clone(), slice)).collect();
            }
            Change::Cidr(cidr) => {
                let cidrs = snapshot.cidrs.get_or_insert_default();
                cidrs.insert(cidr.name.clone(), cidr);
            }
            Change::CidrGone(name) => {
                snapshot.cidrs.get_or_insert_default().remove(&name);
            }
            Change::AllCidrs(cidrs) => {
                let cidrs = cidrs.into_iter().map(|cidr| (cidr.name.clone(), cidr));
                snapshot.cidrs = Some(cidrs.collect());
            }
            Change::Problems { .. } => {}
        }
    }
    snapshot
}

/// A history that begins with both lists, cut into batches.
fn history() -> impl Strategy<Value = Vec<Vec<Change>>> {
    let start = (
        proptest::collection::vec(service(), 0..4).prop_map(Change::AllServices),
        proptest::collection::vec(slice(), 0..4).prop_map(Change::AllSlices),
    )
        .prop_map(|(services, slices)| vec![services, slices]);
    let batches = proptest::collection::vec(proptest::collection::vec(change(), 1..4), 0..12);
    (start, batches).prop_map(|(start, batches)| [vec![start], batches].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_history_ends_in_the_plan_from_scratch_and_its_deltas_add_up(batches in history()) {
        let mut planner = Planner::new(NODE);
        let mut desired = Desired::default();
        let mut past = Vec::new();
        for batch in batches {
            past.extend(batch.iter().cloned());
            desired.apply(planner.apply(batch.clone()));
            let snapshot = end_of(&past);
            prop_assert_eq!(planner.snapshot(), &snapshot);
            prop_assert_eq!(planner.desired(), &plan(&snapshot, NODE));
            prop_assert_eq!(&desired, planner.desired());
            // Events are repeated by every reconnection.
            let mut again = planner.clone();
            let repeated: Vec<_> = batch
                .into_iter()
                .rev()
                .take(1)
                .collect();
            prop_assert_eq!(again.apply(repeated), Delta::default());
        }
    }

    #[test]
    fn the_same_objects_in_any_order_end_in_the_same_plan(
        (services, slices, order) in (
            proptest::collection::vec(service(), 1..5),
            proptest::collection::vec(slice(), 1..6),
        ).prop_flat_map(|(services, slices)| {
            let once: BTreeSet<_> = services.iter().map(|one| one.name.clone()).collect();
            let mut changes: Vec<Change> = once
                .iter()
                .filter_map(|name| services.iter().find(|one| one.name == *name))
                .cloned().map(Change::Service).collect();
            let once: BTreeSet<_> = slices.iter().map(|one| one.name.clone()).collect();
            changes.extend(once
                .iter()
                .filter_map(|name| slices.iter().find(|one| one.name == *name))
                .cloned().map(Change::Slice));
            (Just(services), Just(slices), Just(changes).prop_shuffle())
        })
    ) {
        let mut planner = Planner::new(NODE);
        planner.apply([Change::AllServices(Vec::new()), Change::AllSlices(Vec::new())]);
        for change in order {
            planner.apply([change]);
        }
        let mut first = Snapshot::default();
        for service in services.into_iter().rev() {
            first.services.insert(service.name.clone(), service);
        }
        for slice in slices.into_iter().rev() {
            first.slices.insert(slice.name.clone(), slice);
        }
        prop_assert_eq!(planner.desired(), &plan(&first, NODE));
    }
}
