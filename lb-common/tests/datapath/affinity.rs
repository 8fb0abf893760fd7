//! Session affinity: a client's flows keep together, packets and sockets alike.

use super::{SYN, from_client, pod};
use lb_common::abi::{Address, BackendFlags, ClientAddresses, ServiceIndex};
use lb_common::bytes::Be16;
use lb_common::env::TICK_NANOSECONDS;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::frontend::Destination;
use lb_common::lb::socket::{self, SocketVerdict};
use lb_common::model::frame::Transport;
use lb_common::model::node::{Node, Tc};
use lb_common::model::scene::{self, AFFINITY, Role, at, ip, port};
use lb_common::model::sockets::{HOST, POD, Sockets};
use lb_common::model::world::World;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const PODS: [Role; 4] =
    [Role::RemotePod, Role::SecondRemotePod, Role::ThirdRemotePod, Role::LocalPod];

/// The shortest time after which a client is forgotten, ticks.
fn timeout() -> u32 {
    (u64::from(AFFINITY) * 1_000_000_000 / TICK_NANOSECONDS) as u32
}

/// Where a first packet from `source` goes.
fn delivered<F: AnswerFormat>(
    node: &mut Node<F>,
    source: SocketAddr,
    to: SocketAddr,
    transport: Transport,
) -> IpAddr {
    let mut sent = from_client::<F>(to, transport);
    sent.source = source;
    let start = 14 + F::DESTINATION_OFFSET as usize;
    let bytes = node.ingress::<Tc>(&sent.frame()).bytes;
    let address: F::Addr =
        bytemuck::pod_read_unaligned(&bytes[start..start + size_of::<F::Addr>()]);
    F::widen(address).into()
}

/// The endpoints that one client's flows from different ports reach.
fn reached<F: AnswerFormat>(
    node: &mut Node<F>,
    from: Role,
    to: SocketAddr,
    transport: Transport,
) -> BTreeSet<IpAddr> {
    let first = port::CLIENT + node.flows.len() as u16;
    (0..40).map(|number| delivered(node, at::<F>(from, first + number), to, transport)).collect()
}

fn frontends<F: Family>(service: u16) -> [SocketAddr; 4] {
    [
        at::<F>(Role::External, service),
        at::<F>(Role::LoadBalancer, service),
        at::<F>(Role::ClusterIp, service),
        at::<F>(Role::Node, port::node_port(service)),
    ]
}

fn to(address: SocketAddr, protocol: u8) -> Destination {
    Destination { address: address.ip().into(), port: Be16::new(address.port()), protocol }
}

fn sockets<F: Family>() -> Sockets {
    Sockets { world: scene::world::<F>(), ..Sockets::default() }
}

/// Where a new connection of a namespace's socket goes.
fn connected(node: &mut Sockets, namespace: u64, destination: &Destination) -> Address {
    let mut socket = node.socket(1, false);
    socket.namespace = namespace;
    verdict_address(socket::connect(&mut socket, destination))
}

#[expect(clippy::panic, reason = "a test fails here")]
fn verdict_address(verdict: SocketVerdict) -> Address {
    match verdict {
        SocketVerdict::Translate(address, _) => address,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_clients_flows_reach_one_endpoint_through_every_frontend_and_other_clients_any() {
    fn of<F: AnswerFormat>() {
        for transport in [Transport::Tcp(SYN), Transport::Udp] {
            let mut node = scene::node::<F>();
            let mut all = BTreeSet::new();
            for frontend in frontends::<F>(port::STICKY) {
                all.extend(reached(&mut node, Role::Client, frontend, transport));
            }
            assert_eq!(all.len(), 1, "{all:?}");
            let mut clients = BTreeMap::new();
            for client in 1..=40 {
                let mut source = at::<F>(Role::Client, port::CLIENT);
                source.set_ip(match source.ip() {
                    IpAddr::V4(_) => [203, 0, 113, client].into(),
                    IpAddr::V6(_) => [0x2001, 0xdb8, 9, 0, 0, 0, 0, client.into()].into(),
                });
                let to = at::<F>(Role::External, port::STICKY);
                clients.insert(client, delivered(&mut node, source, to, transport));
            }
            assert_eq!(clients.values().collect::<BTreeSet<_>>().len(), 3);
            // Without affinity the same client reaches all of them.
            let spread = at::<F>(Role::External, port::SPREAD);
            assert_eq!(reached(&mut node, Role::Client, spread, transport).len(), 3);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn two_ports_of_a_service_and_two_protocols_share_nothing() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        for (transport, service) in [
            (Transport::Tcp(SYN), port::STICKY),
            (Transport::Udp, port::STICKY),
            (Transport::Udp, port::STICKY_LOCAL),
        ] {
            reached(&mut node, Role::Client, at::<F>(Role::ClusterIp, service), transport);
        }
        let services: BTreeSet<ServiceIndex> =
            node.world.affinity.keys().map(|key| key.service).collect();
        assert_eq!(services.len(), 3);
        assert!(node.world.affinity.keys().all(|key| key.client == ip::<F>(Role::Client).into()));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn each_new_flow_makes_the_memory_last_longer_and_a_packet_of_an_old_one_does_not() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let frontend = at::<F>(Role::External, port::STICKY);
        let flow = at::<F>(Role::Client, port::CLIENT);
        let first = delivered(&mut node, flow, frontend, Transport::Udp);
        let service = scene::service::<F>(&node.world, port::STICKY, UDP);
        let seen = |node: &Node<F>| {
            let mut known = node.world.affinity.iter().filter(|(key, _)| key.service == service);
            known.next().map(|(_, value)| value.last_seen).unwrap_or_default()
        };
        for round in 1..=4 {
            node.world.now.set(round * (timeout() - 1));
            let next = at::<F>(Role::Client, port::CLIENT + round as u16);
            assert_eq!(delivered(&mut node, next, frontend, Transport::Udp), first);
            assert_eq!(seen(&node), node.world.now.get());
        }
        node.world.now.set(node.world.now.get() + 1000);
        let before = seen(&node);
        delivered(&mut node, flow, frontend, Transport::Udp);
        assert_eq!(seen(&node), before, "the flow is known");
        // Forgotten to the tick.
        node.world.now.set(before + timeout());
        assert_eq!(reached_after_forgetting(&mut node, frontend), 3);
    }
    of::<V4>();
    of::<V6>();
}

/// How many endpoints a client's flows reach when each comes after the last one is forgotten.
fn reached_after_forgetting<F: AnswerFormat>(node: &mut Node<F>, frontend: SocketAddr) -> usize {
    let mut all = BTreeSet::new();
    for number in 100..140 {
        let source = at::<F>(Role::Client, port::CLIENT + number);
        all.insert(delivered(node, source, frontend, Transport::Udp));
        node.world.now.set(node.world.now.get() + timeout());
    }
    all.len()
}

#[test]
fn an_endpoint_that_left_is_remembered_for_nobody() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let frontend = at::<F>(Role::External, port::STICKY);
        let source = at::<F>(Role::Client, port::CLIENT);
        let first = delivered(&mut node, source, frontend, Transport::Tcp(SYN));
        leave_list(&mut node.world, first, BackendFlags::IN_CLUSTER);
        let service = scene::service::<F>(&node.world, port::STICKY, TCP);
        drop_slot(&mut node.world, service, first);
        let second = delivered(&mut node, at::<F>(Role::Client, 7), frontend, Transport::Tcp(SYN));
        assert_ne!(first, second);
        let again = reached(&mut node, Role::Client, frontend, Transport::Tcp(SYN));
        assert_eq!(again, BTreeSet::from([second]), "and the new choice is remembered");
        // The element serves another endpoint now: its generation says so, whatever its flags.
        node.world.leave(SocketAddr::new(second, port::BACKEND));
        drop_slot(&mut node.world, service, second);
        let third = delivered(&mut node, at::<F>(Role::Client, 8), frontend, Transport::Tcp(SYN));
        assert!(![first, second].contains(&third));
    }
    of::<V4>();
    of::<V6>();
}

/// Clears the bit of an endpoint in a list.
fn leave_list(world: &mut World, endpoint: IpAddr, list: u16) {
    for backend in world.backends.iter_mut().filter(|b| b.address == endpoint.into()) {
        backend.flags &= !list;
    }
}

/// Takes an endpoint out of a Service's list, and its Maglev table away.
#[expect(clippy::unwrap_used, reason = "a test fails here")]
fn drop_slot(world: &mut World, service: ServiceIndex, endpoint: IpAddr) {
    let backends = world.backends.clone();
    let record = world.records.get_mut(&service).unwrap();
    record.cluster_maglev.len = 0;
    let (start, len) = (record.cluster.offset as usize, record.cluster.len as usize);
    let slots = &mut world.slots[start..start + len];
    let at =
        slots.iter().position(|slot| backends[slot.0 as usize].address == endpoint.into()).unwrap();
    slots.swap(at, len - 1);
    record.cluster.len -= 1;
}

#[test]
fn what_policy_cluster_chose_does_not_bind_policy_local() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        // The ClusterIP has no policy: the choice may fall on any of four, and does within a few
        // clients on a remote one. The external address has the local endpoint alone.
        let internal = at::<F>(Role::ClusterIp, port::STICKY_LOCAL);
        let external = at::<F>(Role::External, port::STICKY_LOCAL);
        let local = ip::<F>(Role::LocalPod);
        let mut remote = false;
        for client in [Role::Client, Role::OtherClient, Role::Router] {
            let source = at::<F>(client, port::CLIENT);
            remote |= delivered(&mut node, source, internal, Transport::Udp) != local;
            let source = at::<F>(client, port::CLIENT + 1);
            assert_eq!(delivered(&mut node, source, external, Transport::Udp), local);
            // The last choice is what is remembered, and is good for both.
            let source = at::<F>(client, port::CLIENT + 2);
            assert_eq!(delivered(&mut node, source, internal, Transport::Udp), local);
        }
        assert!(remote, "the scene's hashes tell nothing");
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn sockets_of_a_pod_keep_together_under_its_address_or_its_namespace() {
    fn of<F: Family>() {
        for known in [false, true] {
            let mut node = sockets::<F>();
            if known {
                let addresses = ClientAddresses {
                    address4: ip::<V4>(Role::LocalPod).into(),
                    address6: ip::<V6>(Role::LocalPod).into(),
                };
                node.world.clients.insert(POD, addresses);
            }
            for protocol in [TCP, UDP] {
                let mut all = BTreeSet::new();
                for frontend in frontends::<F>(port::STICKY) {
                    for _ in 0..20 {
                        all.insert(connected(&mut node, POD, &to(frontend, protocol)));
                    }
                }
                assert_eq!(all.len(), 1, "{all:?}");
            }
            let client =
                if known { ip::<F>(Role::LocalPod).into() } else { Address::of_namespace(POD) };
            assert!(node.world.affinity.keys().all(|key| key.client == client));
            assert_eq!(node.world.affinity.len(), 2);
            // Pods are clients of their own.
            let frontend = to(at::<F>(Role::ClusterIp, port::STICKY), TCP);
            let pods: BTreeSet<Address> =
                (100..140).map(|pod| connected(&mut node, pod, &frontend)).collect();
            assert_eq!(pods.len(), 3);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_bound_socket_is_a_client_by_its_own_address() {
    fn of<F: Family>() {
        let mut node = sockets::<F>();
        let own = ip::<F>(Role::Node).into();
        node.world.clients.insert(HOST, ClientAddresses { address4: own, address6: own });
        let frontend = to(at::<F>(Role::ClusterIp, port::STICKY), TCP);
        let other_family =
            if F::HAS_HEADER_CHECKSUM { ip::<V6>(Role::Node) } else { ip::<V4>(Role::Node) };
        for (bound, client) in [
            (Address::UNSPECIFIED_V4, own),
            (Address::UNSPECIFIED_V6, own),
            (other_family.into(), own),
            (ip::<F>(Role::Management).into(), ip::<F>(Role::Management).into()),
        ] {
            node.world.affinity.clear();
            let mut socket = node.socket(1, true);
            socket.bound = bound;
            socket::connect(&mut socket, &frontend);
            let clients: Vec<Address> = node.world.affinity.keys().map(|key| key.client).collect();
            assert_eq!(clients, [client], "bound to {bound:?}");
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_unconnected_socket_asks_what_is_remembered_only_when_it_chooses() {
    fn of<F: Family>() {
        let mut node = sockets::<F>();
        let frontend = to(at::<F>(Role::ClusterIp, port::STICKY), UDP);
        let first = connected(&mut node, POD, &frontend);
        for cookie in 2..20 {
            let verdict = socket::sendmsg(&mut node.socket(cookie, false), &frontend);
            assert_eq!(verdict_address(verdict), first);
        }
        let seen = |node: &Sockets| node.world.affinity.values().map(|v| v.last_seen).max();
        node.world.now.set(100);
        socket::sendmsg(&mut node.socket(2, false), &frontend);
        assert_eq!(seen(&node), Some(0), "its backend is known");
        socket::sendmsg(&mut node.socket(20, false), &frontend);
        assert_eq!(seen(&node), Some(100));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn affinity_may_be_switched_on_and_off_and_its_time_changed() {
    fn of<F: Family>() {
        let mut node = sockets::<F>();
        let frontend = to(at::<F>(Role::ClusterIp, port::STICKY), TCP);
        let service = scene::service::<F>(&node.world, port::STICKY, TCP);
        let reached = |node: &mut Sockets| -> BTreeSet<Address> {
            (0..40).map(|_| connected(node, POD, &frontend)).collect()
        };
        let first = reached(&mut node);
        assert_eq!(first.len(), 1);
        let sticky = node.world.records[&service];
        let plain = scene::service::<F>(&node.world, port::SPREAD, TCP);
        let flags = node.world.records[&plain].flags;
        node.world.records.get_mut(&service).unwrap().flags = flags;
        assert_eq!(reached(&mut node).len(), 3);
        node.world.records.insert(service, sticky);
        assert_eq!(reached(&mut node), first, "what was remembered is still young");
        node.world.records.get_mut(&service).unwrap().affinity_timeout = 10;
        node.world.now.set(timeout() / 2);
        let mut after = BTreeSet::new();
        for _ in 0..40 {
            after.insert(connected(&mut node, POD, &frontend));
            node.world.now.set(node.world.now.get() + timeout() / 2);
        }
        assert_eq!(after.len(), 3, "ten seconds are over each time");
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn the_longest_time_that_kubernetes_allows_is_not_cut_short_by_the_clocks_wrap() {
    fn of<F: Family>() {
        let mut node = sockets::<F>();
        let service = scene::service::<F>(&node.world, port::STICKY, TCP);
        node.world.records.get_mut(&service).unwrap().affinity_timeout = 86_400;
        let day = (86_400_000_000_000_u64 / TICK_NANOSECONDS) as u32;
        node.world.now.set(u32::MAX - 10);
        let frontend = to(at::<F>(Role::ClusterIp, port::STICKY), TCP);
        let first = connected(&mut node, POD, &frontend);
        for _ in 0..20 {
            node.world.now.set(node.world.now.get().wrapping_add(day - 1));
            assert_eq!(connected(&mut node, POD, &frontend), first);
        }
    }
    of::<V4>();
    of::<V6>();
}

/// What may happen between two connections.
#[derive(Clone, Copy, Debug)]
enum Step {
    Connect { client: u64, node_port: bool },
    Wait { ticks: u32 },
    Leave { endpoint: usize },
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u64, any::<bool>())
            .prop_map(|(client, node_port)| Step::Connect { client, node_port }),
        1 => (0..2 * timeout()).prop_map(|ticks| Step::Wait { ticks }),
        1 => (0..3_usize).prop_map(|endpoint| Step::Leave { endpoint }),
    ]
}

proptest! {
    /// Against the sentence itself: the last endpoint, if it is young enough and still there.
    #[test]
    fn any_history_of_connections_is_remembered_as_the_contract_says(
        history in prop::collection::vec(steps(), 1..60),
    ) {
        let mut node = sockets::<V4>();
        let mut last: BTreeMap<u64, (Address, u32)> = BTreeMap::new();
        for step in history {
            let now = node.world.now.get();
            match step {
                Step::Wait { ticks } => node.world.now.set(now + ticks),
                Step::Leave { endpoint } => {
                    // It leaves and is replaced at once: the list keeps its length.
                    let endpoint = pod::<V4>(PODS[endpoint]);
                    node.world.leave(endpoint);
                    last.retain(|_, (address, _)| *address != endpoint.ip().into());
                }
                Step::Connect { client, node_port } => {
                    let [cluster_ip, own] = [
                        at::<V4>(Role::ClusterIp, port::STICKY),
                        at::<V4>(Role::Node, port::node_port(port::STICKY)),
                    ];
                    let frontend = to(if node_port { own } else { cluster_ip }, TCP);
                    let chosen = connected(&mut node, 10 + client, &frontend);
                    if let Some((address, seen)) = last.get(&client)
                        && now - seen < timeout()
                    {
                        prop_assert_eq!(chosen, *address);
                    }
                    last.insert(client, (chosen, now));
                }
            }
        }
    }
}
