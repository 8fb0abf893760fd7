//! What sockets are told, and what they are shown.

use lb_common::abi::{Address, FrontendKey, ReverseKey, ReverseValue};
use lb_common::bytes::Be16;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::DropReason;
use lb_common::lb::frontend::Destination;
use lb_common::lb::socket::{self, SocketVerdict};
use lb_common::model::scene::{self, Role, at, port};
use lb_common::model::sockets::Sockets;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;

fn node<F: Family>() -> Sockets {
    Sockets { world: scene::world::<F>(), ..Sockets::default() }
}

fn to(address: SocketAddr, protocol: u8) -> Destination {
    Destination { address: address.ip().into(), port: Be16::new(address.port()), protocol }
}

fn translated(address: SocketAddr) -> SocketVerdict {
    SocketVerdict::Translate(address.ip().into(), Be16::new(address.port()))
}

fn pair(address: SocketAddr) -> (Address, Be16) {
    (address.ip().into(), Be16::new(address.port()))
}

fn pod<F: Family>(role: Role) -> SocketAddr {
    at::<F>(role, port::BACKEND)
}

fn loopback<F: Family>(port: u16) -> SocketAddr {
    let ip: IpAddr = if F::HAS_HEADER_CHECKSUM {
        Ipv4Addr::LOCALHOST.into()
    } else {
        Ipv6Addr::LOCALHOST.into()
    };
    SocketAddr::new(ip, port)
}

fn unspecified<F: Family>(port: u16) -> SocketAddr {
    let ip: IpAddr = if F::HAS_HEADER_CHECKSUM {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(ip, port)
}

#[test]
fn every_kind_of_frontend_is_translated_and_shown_again_by_getpeername_and_recvmsg() {
    fn of<F: Family>() {
        let frontends = [
            at::<F>(Role::ClusterIp, port::LOCAL),
            at::<F>(Role::External, port::LOCAL),
            at::<F>(Role::LoadBalancer, port::LOCAL),
            at::<F>(Role::Node, port::node_port(port::LOCAL)),
        ];
        for frontend in frontends {
            for protocol in [TCP, UDP] {
                for host in [true, false] {
                    let mut node = node::<F>();
                    let mut socket = node.socket(1, host);
                    let verdict = socket::connect(&mut socket, &to(frontend, protocol));
                    assert_eq!(verdict, translated(pod::<F>(Role::LocalPod)));
                    let (address, port) = pair(pod::<F>(Role::LocalPod));
                    let shown = Some(pair(frontend));
                    assert_eq!(socket::reveal(&socket, address, port), shown);
                    assert_eq!(socket::reveal(&socket, address, port), shown);
                    // Another socket that talks to the pod itself sees the pod.
                    let other = node.socket(2, host);
                    assert_eq!(socket::reveal(&other, address, port), None);
                    assert_eq!(socket::reveal(&other, address, port), None);
                }
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_unconnected_socket_sees_the_frontend_as_the_source_of_the_answer() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let frontend = at::<F>(Role::ClusterIp, port::REMOTE);
        let mut socket = node.socket(1, false);
        let verdict = socket::sendmsg(&mut socket, &to(frontend, UDP));
        assert_eq!(verdict, translated(pod::<F>(Role::RemotePod)));
        let (address, port) = pair(pod::<F>(Role::RemotePod));
        assert_eq!(socket::reveal(&socket, address, port), Some(pair(frontend)));
        assert_eq!(socket::reveal(&socket, address, Be16::new(1)), None);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_service_without_endpoints_refuses_at_once_and_counts() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let frontend = at::<F>(Role::ClusterIp, port::EMPTY);
        let mut socket = node.socket(1, false);
        let refused = SocketVerdict::Refuse;
        assert_eq!(socket::connect(&mut socket, &to(frontend, TCP)), refused);
        assert_eq!(socket::connect(&mut socket, &to(frontend, UDP)), refused);
        assert_eq!(socket::sendmsg(&mut socket, &to(frontend, UDP)), refused);
        let counts: Vec<_> =
            node.world.drops.borrow().iter().map(|((_, reason), n)| (*reason, *n)).collect();
        assert_eq!(counts, [(DropReason::NoEndpoints, 1), (DropReason::NoEndpoints, 2)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn the_internal_policy_binds_cluster_ip_and_no_external_policy_binds_a_socket_here() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let mut socket = node.socket(1, false);
        let internal = at::<F>(Role::ClusterIp, port::INTERNAL_ELSEWHERE);
        assert_eq!(socket::connect(&mut socket, &to(internal, TCP)), SocketVerdict::Discard);
        for frontend in [
            at::<F>(Role::External, port::ELSEWHERE),
            at::<F>(Role::LoadBalancer, port::ELSEWHERE),
            at::<F>(Role::Node, port::node_port(port::ELSEWHERE)),
            at::<F>(Role::ClusterIp, port::ELSEWHERE),
        ] {
            let verdict = socket::connect(&mut socket, &to(frontend, TCP));
            assert_eq!(verdict, translated(pod::<F>(Role::RemotePod)), "{frontend}");
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn node_ports_on_loopback_are_for_sockets_of_the_node_itself() {
    fn of<F: Family>() {
        let number = port::node_port(port::LOCAL);
        for address in [loopback::<F>(number), unspecified::<F>(number)] {
            let mut node = node::<F>();
            let verdict = socket::connect(&mut node.socket(1, true), &to(address, TCP));
            assert_eq!(verdict, translated(pod::<F>(Role::LocalPod)), "{address}");
            for protocol in [TCP, UDP] {
                let mut pods = node.socket(2, false);
                let verdict = socket::connect(&mut pods, &to(address, protocol));
                assert_eq!(verdict, SocketVerdict::Pass, "{address} from a pod");
                let verdict = socket::sendmsg(&mut pods, &to(address, protocol));
                assert_eq!(verdict, SocketVerdict::Pass, "{address} from a pod");
            }
        }
        let mut node = node::<F>();
        let management = at::<F>(Role::Management, number);
        let verdict = socket::connect(&mut node.socket(1, true), &to(management, TCP));
        assert_eq!(verdict, SocketVerdict::Pass);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_mapped_address_is_the_ipv4_service() {
    let mut node = node::<V4>();
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    // The hook hands over 16 bytes; `IpAddr` of a mapped address has the same ones.
    let frontend = mapped(at::<V4>(Role::ClusterIp, port::LOCAL));
    let mut socket = node.socket(1, false);
    let verdict = socket::sendmsg(&mut socket, &to(frontend, UDP));
    assert_eq!(verdict, translated(pod::<V4>(Role::LocalPod)));
    let (address, port) = pair(mapped(pod::<V4>(Role::LocalPod)));
    assert_eq!(socket::reveal(&socket, address, port), Some(pair(frontend)));
    assert_eq!(socket::connect(&mut socket, &to(frontend, TCP)), verdict);
    assert_eq!(socket::reveal(&socket, address, port), Some(pair(frontend)));
}

#[test]
fn a_socket_that_connects_elsewhere_forgets_its_frontend() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let mut socket = node.socket(1, false);
        let frontend = at::<F>(Role::ClusterIp, port::LOCAL);
        socket::connect(&mut socket, &to(frontend, UDP));
        // To the backend itself: the only address at which a memory of the frontend would lie.
        let backend = pod::<F>(Role::LocalPod);
        assert_eq!(socket::connect(&mut socket, &to(backend, UDP)), SocketVerdict::Pass);
        let (address, port) = pair(backend);
        assert_eq!(socket::reveal(&socket, address, port), None);
        assert_eq!(socket::reveal(&socket, address, port), None);
    }
    of::<V4>();
    of::<V6>();
}

/// What REVERSE says of the backends that sockets talk to, as the agent asks: cookie, backend, and
/// whether it has left since.
fn remembered(node: &Sockets) -> BTreeSet<(u64, Address, bool)> {
    let generation = |value: &ReverseValue| {
        node.world.backends.get(value.backend.0 as usize).map(|backend| backend.generation)
    };
    let entry = |(key, value): (&ReverseKey, &ReverseValue)| {
        (key.cookie, key.address, generation(value) != Some(value.generation))
    };
    node.reverse.iter().map(entry).collect()
}

#[test]
fn a_connected_socket_is_remembered_with_its_endpoint() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let frontend = at::<F>(Role::ClusterIp, port::LOCAL);
        node.socket(1, false).connect(&to(frontend, TCP));
        node.socket(2, false).connect(&to(frontend, UDP));
        // Talks to the endpoint itself: nobody's business.
        node.socket(3, false).connect(&to(pod::<F>(Role::LocalPod), UDP));
        let (address, _) = pair(pod::<F>(Role::LocalPod));
        assert_eq!(remembered(&node), [(1, address, false), (2, address, false)].into());
        node.world.leave(pod::<F>(Role::LocalPod));
        assert_eq!(remembered(&node), [(1, address, true), (2, address, true)].into());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn of_all_that_a_udp_socket_connected_to_only_the_last_is_remembered() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let [first, second] =
            [port::LOCAL, port::REMOTE].map(|port| at::<F>(Role::ClusterIp, port));
        let [local, remote] =
            [Role::LocalPod, Role::RemotePod].map(|pod| pair(self::pod::<F>(pod)).0);
        let own = pod::<F>(Role::LocalPod);
        for (to_next, expected) in [
            (first, Some(local)),
            (second, Some(remote)),
            (first, Some(local)),
            // The address that it is connected to already, but as the socket's own choice.
            (own, None),
            (first, Some(local)),
            (at::<F>(Role::ClusterIp, port::EMPTY), Some(local)),
        ] {
            node.socket(1, false).connect(&to(to_next, UDP));
            let expected = expected.map(|address| (1, address, false));
            assert_eq!(remembered(&node), expected.into_iter().collect(), "{to_next}");
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_socket_whose_packets_are_dropped_is_led_to_nobody_and_shown_the_service() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let frontend = at::<F>(Role::ClusterIp, port::INTERNAL_ELSEWHERE);
        let (address, port) = pair(frontend);
        let nobody = address.discard();
        for (cookie, protocol) in [(1, TCP), (2, UDP)] {
            let mut socket = node.socket(cookie, false);
            assert_eq!(socket.connect(&to(frontend, protocol)), SocketVerdict::Discard);
            assert_eq!(socket::reveal(&socket, nobody, port), Some((address, port)));
        }
        // An unconnected one is judged at every datagram: nothing is kept of it.
        let mut sender = node.socket(3, false);
        assert_eq!(socket::sendmsg(&mut sender, &to(frontend, UDP)), SocketVerdict::Discard);
        assert_eq!(socket::reveal(&sender, nobody, port), None);
        assert!(node.peers.is_empty());
        let drops: Vec<_> =
            node.world.drops.borrow().iter().map(|((_, reason), n)| (*reason, *n)).collect();
        assert_eq!(drops, [(DropReason::NoLocalEndpoint, 1), (DropReason::NoLocalEndpoint, 2)]);
        // One that connects elsewhere leaves nothing behind.
        let other = at::<F>(Role::ClusterIp, port::LOCAL);
        node.socket(2, false).connect(&to(other, UDP));
        assert_eq!(socket::reveal(&node.socket(2, false), nobody, port), None);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_refused_connect_leaves_the_socket_with_the_peer_that_it_had() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let mut socket = node.socket(1, false);
        let frontend = at::<F>(Role::ClusterIp, port::LOCAL);
        socket::connect(&mut socket, &to(frontend, UDP));
        let refusing = at::<F>(Role::ClusterIp, port::EMPTY);
        socket::connect(&mut socket, &to(refusing, UDP));
        // The kernel keeps a UDP socket's old peer when the hook refuses the new one.
        let (address, port) = pair(pod::<F>(Role::LocalPod));
        assert_eq!(socket::reveal(&socket, address, port), Some(pair(frontend)));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn connections_are_spread_at_random_and_datagrams_of_one_socket_stay_together() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let frontend = to(at::<F>(Role::ClusterIp, port::SPREAD), UDP);
        let mut connected = BTreeSet::new();
        let mut sent = BTreeSet::new();
        for cookie in 0..60 {
            let mut socket = node.socket(cookie, false);
            if let SocketVerdict::Translate(address, _) = socket::connect(&mut socket, &frontend) {
                connected.insert(address);
            }
            let first = socket::sendmsg(&mut socket, &frontend);
            for _ in 0..5 {
                assert_eq!(socket::sendmsg(&mut socket, &frontend), first);
            }
            if let SocketVerdict::Translate(address, _) = first {
                sent.insert(address);
            }
        }
        assert_eq!((connected.len(), sent.len()), (3, 3));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_unconnected_socket_chooses_anew_when_its_endpoint_left_or_after_two_quiet_minutes() {
    fn of<F: Family>() {
        const TWO_MINUTES: u32 = (120_000_000_000_u64 >> lb_common::env::TICK_SHIFT) as u32;
        let mut node = node::<F>();
        let frontend = at::<F>(Role::ClusterIp, port::LOCAL);
        let destination = to(frontend, UDP);
        let first = socket::sendmsg(&mut node.socket(1, false), &destination);
        assert_eq!(first, translated(pod::<F>(Role::LocalPod)));
        // The Service has another endpoint now; the old one is still there.
        let service = scene::service::<F>(&node.world, port::LOCAL, UDP);
        let other = scene::service::<F>(&node.world, port::REMOTE, UDP);
        let cluster = node.world.records[&other].cluster;
        node.world.records.get_mut(&service).unwrap().cluster = cluster;
        node.world.now.set(TWO_MINUTES - 1);
        assert_eq!(socket::sendmsg(&mut node.socket(1, false), &destination), first);
        let fresh = translated(pod::<F>(Role::RemotePod));
        let mut quiet = node.clone();
        quiet.world.now.set(2 * TWO_MINUTES - 1);
        assert_eq!(socket::sendmsg(&mut quiet.socket(1, false), &destination), fresh);
        node.world.leave(pod::<F>(Role::LocalPod));
        assert_eq!(socket::sendmsg(&mut node.socket(1, false), &destination), fresh);
        // The old endpoint's last answer is still shown as the frontend's.
        let (address, port) = pair(pod::<F>(Role::LocalPod));
        let socket = node.socket(1, false);
        assert_eq!(socket::reveal(&socket, address, port), Some(pair(frontend)));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_unconnected_socket_follows_an_address_that_another_service_has_now() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let frontend = at::<F>(Role::ClusterIp, port::LOCAL);
        let destination = to(frontend, UDP);
        let first = socket::sendmsg(&mut node.socket(1, false), &destination);
        assert_eq!(first, translated(pod::<F>(Role::LocalPod)));
        // The old endpoint is still there, and its Service's.
        let (address, port) = pair(frontend);
        let key = FrontendKey { address, port, protocol: UDP, pad: 0 };
        let other = scene::service::<F>(&node.world, port::REMOTE, UDP);
        node.world.frontends.get_mut(&key).unwrap().service = other;
        let fresh = translated(pod::<F>(Role::RemotePod));
        assert_eq!(socket::sendmsg(&mut node.socket(1, false), &destination), fresh);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_socket_that_reaches_one_endpoint_by_two_frontends_sees_the_one_that_it_used_last() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let frontends = [port::LOCAL, port::LOCAL_TOO].map(|port| at::<F>(Role::ClusterIp, port));
        for frontend in [frontends, frontends].concat() {
            let mut socket = node.socket(1, false);
            socket::sendmsg(&mut socket, &to(frontend, UDP));
            let (address, port) = pair(pod::<F>(Role::LocalPod));
            assert_eq!(socket::reveal(&socket, address, port), Some(pair(frontend)));
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn what_is_not_a_services_passes() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let mut socket = node.socket(1, true);
        for address in [
            at::<F>(Role::External, 7),
            at::<F>(Role::LoadBalancer, 7),
            at::<F>(Role::Site, port::node_port(port::LOCAL)),
            pod::<F>(Role::LocalPod),
            loopback::<F>(22),
        ] {
            assert_eq!(socket::connect(&mut socket, &to(address, TCP)), SocketVerdict::Pass);
            assert_eq!(socket::sendmsg(&mut socket, &to(address, UDP)), SocketVerdict::Pass);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_port_that_a_live_cluster_ip_does_not_have_is_refused() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        let unknown = at::<F>(Role::ClusterIp, 7);
        let mut socket = node.socket(1, false);
        assert_eq!(socket::connect(&mut socket, &to(unknown, TCP)), SocketVerdict::Refuse);
        assert_eq!(socket::sendmsg(&mut socket, &to(unknown, UDP)), SocketVerdict::Refuse);
        let counted = [((0, DropReason::UnknownPort as u32), 2)];
        assert!(node.world.dropped().into_iter().eq(counted));
        // A node that has the address itself serves its other ports itself.
        node.world.own(unknown.ip(), false);
        let mut socket = node.socket(1, false);
        assert_eq!(socket::connect(&mut socket, &to(unknown, TCP)), SocketVerdict::Pass);
        let served = at::<F>(Role::ClusterIp, port::LOCAL);
        let verdict = socket::connect(&mut socket, &to(served, TCP));
        assert_eq!(verdict, translated(pod::<F>(Role::LocalPod)));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_service_whose_record_is_missing_refuses_and_says_why() {
    fn of<F: Family>() {
        let mut node = node::<F>();
        node.world.records.clear();
        let frontend = at::<F>(Role::ClusterIp, port::LOCAL);
        let verdict = socket::connect(&mut node.socket(1, false), &to(frontend, TCP));
        assert_eq!(verdict, SocketVerdict::Refuse);
        let drops = node.world.drops.borrow();
        assert_eq!(drops.keys().map(|key| key.1).collect::<Vec<_>>(), [DropReason::Inconsistent]);
    }
    of::<V4>();
    of::<V6>();
}
