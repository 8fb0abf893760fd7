//! Backends on this node: rewritten at ingress, replies rewritten at egress, the stack between them.

use super::{ACK, OPENERS, SYN, drops, external, from_client, pod};
use lb_common::abi::FrontendKind;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::Verdict;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{Fragment, Segment, Transport};
use lb_common::model::node::{Tc, TcL3, Xdp};
use lb_common::model::scene::{self, Role, at, device, port};
use lb_common::model::world::frontend_key;
use std::net::SocketAddr;

fn frontends<F: Family>(service: u16) -> [SocketAddr; 5] {
    [
        at::<F>(Role::ClusterIp, service),
        at::<F>(Role::External, service),
        at::<F>(Role::LoadBalancer, service),
        at::<F>(Role::Node, port::node_port(service)),
        at::<F>(Role::Overlay, port::node_port(service)),
    ]
}

#[test]
fn every_kind_of_frontend_reaches_the_local_backend_and_its_reply_comes_from_the_frontend() {
    fn of<F: AnswerFormat>() {
        for frontend in frontends::<F>(port::LOCAL) {
            for opener in OPENERS {
                let mut node = scene::node::<F>();
                let sent = from_client::<F>(frontend, opener);
                let outcome = node.ingress::<Tc>(&sent.frame());
                let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
                assert_eq!(outcome.verdict, Verdict::Deliver, "{frontend} {opener:?}");
                assert_eq!(outcome.bytes, arrives.frame(), "{frontend} {opener:?}");
                let reply = arrives.reply(SYN | ACK);
                let outcome = node.egress::<Tc>(&reply.frame());
                assert_eq!(outcome.verdict, Verdict::Deliver, "{frontend} {opener:?}");
                assert_eq!(outcome.bytes, reply.between(frontend, sent.source, 64).frame());
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn options_and_extension_headers_are_stepped_over() {
    fn of<F: AnswerFormat>() {
        for extras in 0..=6 {
            for opener in OPENERS {
                let sent =
                    Segment { extras, ..from_client::<F>(external::<F>(port::LOCAL), opener) };
                let outcome = scene::node::<F>().ingress::<Tc>(&sent.frame());
                let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
                assert_eq!(outcome.bytes, arrives.frame(), "{extras} {opener:?}");
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_device_without_link_header_works_the_same() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Tcp(SYN));
        let outcome = node.ingress::<TcL3>(&sent.packet());
        let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Deliver, arrives.packet()));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn fragments_follow_the_first_one_in_both_directions() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let piece = |offset, more| Some(Fragment { id: 77, offset, more });
        let frontend = external::<F>(port::LOCAL);
        let whole = from_client::<F>(frontend, Transport::Udp);
        let backend = pod::<F>(Role::LocalPod);
        for fragment in [piece(0, true), piece(5, true), piece(9, false)] {
            let sent = Segment { fragment, ..whole.clone() };
            let outcome = node.ingress::<Tc>(&sent.frame());
            assert_eq!(outcome.verdict, Verdict::Deliver, "{fragment:?}");
            assert_eq!(outcome.bytes, sent.between(sent.source, backend, 64).frame());
        }
        for fragment in [piece(0, true), piece(5, false)] {
            let sent = Segment { fragment, ..whole.between(backend, whole.source, 64) };
            let outcome = node.egress::<Tc>(&sent.frame());
            assert_eq!(outcome.bytes, sent.between(frontend, whole.source, 64).frame());
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn what_is_not_a_services_passes_untouched() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let strangers = [
            ("another port of a Service address", external::<F>(4)),
            ("a NodePort on an address that serves none", at::<F>(Role::Management, 30_080)),
            ("a NodePort on an address that isn't the node's", at::<F>(Role::Site, 30_080)),
            ("a Service's port on the node's address", at::<F>(Role::Node, port::LOCAL)),
            ("a pod's own address", pod::<F>(Role::LocalPod)),
        ];
        for (name, to) in strangers {
            for opener in OPENERS {
                let sent = from_client::<F>(to, opener).frame();
                for outcome in [node.ingress::<Tc>(&sent), node.egress::<Tc>(&sent)] {
                    assert_eq!((outcome.verdict, &outcome.bytes), (Verdict::Pass, &sent), "{name}");
                }
            }
        }
        assert!(node.flows.is_empty());
        assert_eq!(drops(&node), []);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_address_of_the_node_that_is_a_frontend_itself_beats_the_node_port() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let address = at::<F>(Role::Node, port::node_port(port::REMOTE));
        let service = scene::service::<F>(&node.world, port::LOCAL, 6);
        let exact = lb_common::abi::Frontend { service, kind: FrontendKind::ExternalIp as u32 };
        node.world.frontends.insert(frontend_key(address, 6), exact);
        let sent = from_client::<F>(address, Transport::Tcp(SYN));
        let outcome = node.ingress::<Tc>(&sent.frame());
        let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
        assert_eq!(outcome.bytes, arrives.frame());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn the_unspecified_address_is_no_frontend_although_node_ports_are_kept_under_it() {
    fn of<F: AnswerFormat>() {
        let wildcard: SocketAddr = if F::HAS_HEADER_CHECKSUM {
            (std::net::Ipv4Addr::UNSPECIFIED, port::node_port(port::LOCAL)).into()
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, port::node_port(port::LOCAL)).into()
        };
        let sent = from_client::<F>(wildcard, Transport::Tcp(SYN)).frame();
        let outcome = scene::node::<F>().ingress::<Tc>(&sent);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, sent));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn two_frontends_of_one_backend_keep_apart_a_client_that_uses_the_same_port_for_both() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            let backend = pod::<F>(Role::LocalPod);
            let first = from_client::<F>(external::<F>(port::LOCAL), opener);
            let second = from_client::<F>(external::<F>(port::LOCAL_TOO), opener);
            let outcome = node.ingress::<Tc>(&first.frame());
            assert_eq!(outcome.bytes, first.between(first.source, backend, 64).frame());
            let outcome = node.ingress::<Tc>(&second.frame());
            let at = 14 + F::HEADER_LEN as usize;
            let changed = u16::from_be_bytes([outcome.bytes[at], outcome.bytes[at + 1]]);
            assert!((20_000..30_000).contains(&changed), "{changed}");
            let source = SocketAddr::new(second.source.ip(), changed);
            let arrives = second.between(source, backend, 64);
            assert_eq!(outcome.bytes, arrives.frame());
            // Each reply finds its own frontend, and the client its own port.
            let reply = arrives.reply(ACK);
            let outcome = node.egress::<Tc>(&reply.frame());
            let back = reply.between(second.destination, second.source, 64);
            assert_eq!(outcome.bytes, back.frame());
            let reply = first.between(first.source, backend, 64).reply(ACK);
            let outcome = node.egress::<Tc>(&reply.frame());
            let back = reply.between(first.destination, first.source, 64);
            assert_eq!(outcome.bytes, back.frame());
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_client_that_uses_its_port_again_to_talk_to_the_backend_itself_gets_its_own_replies() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            let backend = pod::<F>(Role::LocalPod);
            let through = from_client::<F>(external::<F>(port::LOCAL), opener);
            assert_eq!(node.ingress::<Tc>(&through.frame()).verdict, Verdict::Deliver);
            let direct = from_client::<F>(backend, opener);
            let outcome = node.ingress::<Tc>(&direct.frame());
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, direct.frame()));
            let reply = direct.reply(ACK);
            let outcome = node.egress::<Tc>(&reply.frame());
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, reply.frame()));
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn xdp_leaves_local_backends_to_tc() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Tcp(SYN));
        for _ in 0..2 {
            let outcome = node.ingress::<Xdp>(&sent.frame());
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, sent.frame()));
            assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Deliver);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_endpoint_of_unknown_place_is_local_when_its_route_leads_to_a_pods_device() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::UNKNOWN), Transport::Udp);
        let outcome = node.ingress::<Tc>(&sent.frame());
        let arrives = sent.between(sent.source, pod::<F>(Role::UnknownPod), 64);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Deliver, arrives.frame()));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_reply_leaves_where_the_services_address_is_routed_and_not_the_endpoints() {
    fn of<F: AnswerFormat>() {
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Tcp(SYN));
        // Where the client's packets come in, where the stack sends the reply, and what becomes of it.
        for (came, leaves, expected) in [
            (device::UPLINK, device::UPLINK, (Verdict::Deliver, 0)),
            (device::UPLINK, device::OVERLAY, (Verdict::Forward, device::UPLINK)),
            // A load balancer sends through a tunnel and clients are answered directly.
            (device::OVERLAY, device::UPLINK, (Verdict::Deliver, 0)),
            // The way of the client isn't known.
            (0, device::OVERLAY, (Verdict::Deliver, 0)),
        ] {
            let mut node = scene::node::<F>();
            node.input = came;
            let outcome = node.ingress::<Tc>(&sent.frame());
            assert_eq!(outcome.verdict, Verdict::Deliver);
            let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
            let reply = arrives.reply(SYN | ACK);
            node.input = leaves;
            let outcome = node.egress::<Tc>(&reply.frame());
            assert_eq!((outcome.verdict, outcome.device), expected, "{came} {leaves}");
            let due = reply.between(sent.destination, sent.source, 64);
            assert_eq!(outcome.bytes, due.frame(), "{came} {leaves}");
        }
    }
    of::<V4>();
    of::<V6>();
}
