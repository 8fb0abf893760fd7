//! Source ranges: who may open a flow to a load balancer's address.

use super::{ACK, OPENERS, SYN, drops, from_client};
use lb_common::abi::{Address, ClientAddresses, SourceRange, SourceSet};
use lb_common::bytes::Be16;
use lb_common::env::Tables;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::frontend::Destination;
use lb_common::lb::socket::{self, SocketVerdict};
use lb_common::lb::{DropReason, Verdict};
use lb_common::model::frame::{Segment, Transport};
use lb_common::model::node::Tc;
use lb_common::model::scene::{self, Role, at, ip, port};
use lb_common::model::sockets::{HOST, POD, Sockets};
use lb_common::model::world::World;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;

fn from<F: Family>(role: Role, to: SocketAddr, transport: Transport) -> Segment {
    let mut sent = from_client::<F>(to, transport);
    sent.source.set_ip(ip::<F>(role));
    sent
}

fn to(address: SocketAddr, protocol: u8) -> Destination {
    Destination { address: address.ip().into(), port: Be16::new(address.port()), protocol }
}

#[test]
fn a_client_that_is_not_in_the_ranges_is_dropped_in_silence_and_counted() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            // Before the Service's own verdict: nobody outside learns that it has no endpoints.
            let refused = match opener {
                Transport::Tcp(_) => Verdict::Reset,
                Transport::Udp
                | Transport::UdpWithoutChecksum
                | Transport::Sctp(_)
                | Transport::SctpWithoutChecksum(_) => Verdict::Answer,
            };
            for (service, verdict) in
                [(port::RANGES, Verdict::Deliver), (port::RANGES_EMPTY, refused)]
            {
                let mut node = scene::node::<F>();
                let frontend = at::<F>(Role::LoadBalancer, service);
                let admitted = from::<F>(Role::Client, frontend, opener);
                assert_eq!(node.ingress::<Tc>(&admitted.frame()).verdict, verdict);
                let other = from::<F>(Role::OtherClient, frontend, opener);
                assert_eq!(node.ingress::<Tc>(&other.frame()).verdict, Verdict::Drop);
                assert!(drops(&node).contains(&(DropReason::SourceRange, 1)));
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn every_other_address_of_the_service_is_open_to_everybody() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        for frontend in [
            at::<F>(Role::External, port::RANGES),
            at::<F>(Role::ClusterIp, port::RANGES),
            at::<F>(Role::Node, port::node_port(port::RANGES)),
        ] {
            for opener in OPENERS {
                let other = from::<F>(Role::OtherClient, frontend, opener);
                assert_eq!(node.ingress::<Tc>(&other.frame()).verdict, Verdict::Deliver);
            }
            for namespace in [HOST, POD] {
                let mut sockets = Sockets { world: scene::world::<F>(), ..Sockets::default() };
                let mut socket = sockets.socket(1, namespace == HOST);
                let verdict = socket::connect(&mut socket, &to(frontend, TCP));
                assert!(matches!(verdict, SocketVerdict::Translate(..)), "{frontend}");
            }
        }
        assert_eq!(drops(&node), []);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_flow_that_was_admitted_goes_on_when_the_ranges_change() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let frontend = at::<F>(Role::LoadBalancer, port::RANGES);
        let syn = from::<F>(Role::Client, frontend, Transport::Tcp(SYN));
        let datagram = from::<F>(Role::Client, frontend, Transport::Udp);
        for opener in [&syn, &datagram] {
            assert_eq!(node.ingress::<Tc>(&opener.frame()).verdict, Verdict::Deliver);
        }
        node.world.source_ranges.clear();
        let data = Segment { transport: Transport::Tcp(ACK), ..syn.clone() };
        for later in [&data, &datagram] {
            assert_eq!(node.ingress::<Tc>(&later.frame()).verdict, Verdict::Deliver);
        }
        let mut fresh = syn;
        fresh.source.set_port(port::CLIENT + 1);
        assert_eq!(node.ingress::<Tc>(&fresh.frame()).verdict, Verdict::Drop);
    }
    of::<V4>();
    of::<V6>();
}

/// What a socket gets for a load balancer's address with ranges.
fn asked<F: Family>(sockets: &mut Sockets, host: bool, bound: Address) -> [SocketVerdict; 3] {
    let frontend = at::<F>(Role::LoadBalancer, port::RANGES);
    let mut socket = sockets.socket(1, host);
    socket.bound = bound;
    [
        socket::connect(&mut socket, &to(frontend, TCP)),
        socket::connect(&mut socket, &to(frontend, UDP)),
        socket::sendmsg(&mut socket, &to(frontend, UDP)),
    ]
}

#[test]
fn a_socket_is_judged_by_the_address_that_it_will_send_from() {
    fn of<F: Family>() {
        let unbound = Address::UNSPECIFIED_V6;
        let pod = at::<F>(Role::LocalPod, port::BACKEND);
        let open = [SocketVerdict::Translate(pod.ip().into(), Be16::new(pod.port())); 3];
        let closed = [SocketVerdict::Discard; 3];
        let unknown = [SocketVerdict::Unreachable; 3];
        let address = |role| Address::from(ip::<F>(role));
        for (host, namespace) in [(true, HOST), (false, POD)] {
            for (known, bound, expected) in [
                (Some(Role::LocalPod), unbound, open),
                (Some(Role::Node), unbound, open),
                (Some(Role::RemotePod), unbound, closed),
                (Some(Role::RemotePod), address(Role::LocalPod), open),
                (Some(Role::LocalPod), address(Role::Management), closed),
                // Nothing is known of the namespace, or not of this family.
                (None, unbound, unknown),
                (None, address(Role::Node), open),
            ] {
                let mut sockets = Sockets { world: scene::world::<F>(), ..Sockets::default() };
                sockets.world.clients.clear();
                let mut own = ClientAddresses::default();
                if let Some(role) = known {
                    own.address4 = ip::<V4>(role).into();
                    own.address6 = ip::<V6>(role).into();
                    sockets.world.clients.insert(namespace, own);
                }
                let what = format!("{namespace}: {known:?}, bound to {bound:?}");
                assert_eq!(asked::<F>(&mut sockets, host, bound), expected, "{what}");
                let counts: Vec<_> = sockets.world.drops.borrow().keys().map(|k| k.1).collect();
                assert!(counts.iter().all(|reason| *reason == DropReason::SourceRange), "{what}");
                assert_eq!(counts.is_empty(), expected == open, "{what}");
            }
        }
        let mut sockets = Sockets { world: scene::world::<F>(), ..Sockets::default() };
        sockets.world.clients.insert(POD, ClientAddresses::default());
        assert_eq!(asked::<F>(&mut sockets, false, unbound), unknown);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_set_that_has_no_ranges_admits_nobody() {
    fn of<F: Family>() {
        let mut sockets = Sockets { world: scene::world::<F>(), ..Sockets::default() };
        for record in sockets.world.records.values_mut() {
            record.sources = SourceSet(0);
        }
        let bound = ip::<F>(Role::LocalPod).into();
        assert_eq!(asked::<F>(&mut sockets, false, bound), [SocketVerdict::Discard; 3]);
    }
    of::<V4>();
    of::<V6>();
}

proptest! {
    #[test]
    fn a_range_holds_the_addresses_of_its_prefix_in_its_own_set_and_no_others(
        network in any::<u128>(),
        length in 0_u8..=128,
        near in any::<u128>(),
        keep in 0_u8..=128,
        set in 1_u32..3,
        v4 in any::<bool>(),
    ) {
        let bits = if v4 { 32 } else { 128 };
        let (length, keep) = (length.min(bits), keep.min(bits));
        let low = if v4 { u128::from(u32::MAX) } else { u128::MAX };
        let host = |len: u8| low.checked_shr(len.into()).unwrap_or(0);
        // An address that has at least `keep` bits in common with the network.
        let address = (network & !host(keep)) | (near & host(keep));
        let ip = |number: u128| -> IpAddr {
            if v4 {
                Ipv4Addr::from(number as u32).into()
            } else {
                // Not in the mapped range, where an IPv4 address would be meant.
                Ipv6Addr::from(number | 1 << 127).into()
            }
        };
        let mut world = World::default();
        world.admit(SourceSet(1), &[(ip(network & !host(length)), length)]);
        let number = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let same = (number(ip(address)) ^ number(ip(network))) & !host(length) & low == 0;
        let key = SourceRange::around(SourceSet(set), ip(address).into());
        prop_assert_eq!(world.source_range(&key), set == 1 && same);
    }
}
