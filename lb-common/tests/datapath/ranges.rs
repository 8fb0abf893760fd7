//! Addresses of a Service range that nobody owns: nothing for them leaves the node.

use super::{OPENERS, drops, external, from_client, pod};
use lb_common::abi::Address;
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::{DropReason, Verdict};
use lb_common::model::frame::{Fragment, Segment, Transport, with_link};
use lb_common::model::node::{Tc, TcL3};
use lb_common::model::scene::{self, Role, at, ip, port};
use std::net::SocketAddr;

#[test]
fn nothing_for_an_address_of_a_service_range_leaves_the_node() {
    fn of<F: AnswerFormat>() {
        for role in [Role::LocalPod, Role::Node] {
            for to in [Role::Unowned, Role::ClusterIp] {
                for opener in OPENERS {
                    let mut node = scene::node::<F>();
                    let (from, to) = (at::<F>(role, port::CLIENT), at::<F>(to, 1));
                    let frame = Segment::new(from, to, opener).frame();
                    assert_eq!(node.egress::<Tc>(&frame).verdict, Verdict::Drop);
                    assert_eq!(node.egress::<TcL3>(&frame[14..]).verdict, Verdict::Drop);
                    assert_eq!(drops(&node), [(DropReason::UnownedAddress, 2)]);
                }
                let mut node = scene::node::<F>();
                let (from, to) = (at::<F>(role, port::CLIENT), at::<F>(to, 1));
                let sent = Segment::new(from, to, Transport::Udp);
                let fragment = Some(Fragment { id: 1, offset: 10, more: false });
                let later = Segment { fragment, ..sent.clone() };
                let stays = match role {
                    // What an endpoint sends waits for its first fragment, to be dropped behind it.
                    Role::LocalPod => Verdict::Parked,
                    _ => Verdict::Drop,
                };
                assert_eq!(node.egress::<Tc>(&later.frame()).verdict, stays);
                let mut packet = sent.packet();
                // SCTP of the node's own may be for a Service.
                for protocol in (0..=255).filter(|protocol| *protocol != 132) {
                    packet[if from.is_ipv4() { 9 } else { 6 }] = protocol;
                    let frame = with_link(from.is_ipv4(), &packet);
                    assert_eq!(node.egress::<Tc>(&frame).verdict, Verdict::Drop, "{protocol}");
                }
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn what_sockets_send_to_nobody_stays_and_was_counted_before() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            node.world.service_ranges = Default::default();
            let from = at::<F>(Role::LocalPod, port::CLIENT);
            let nobody = Address::from(from.ip()).discard().into();
            let frame = Segment::new(from, SocketAddr::new(nobody, 80), opener).frame();
            assert_eq!(node.egress::<Tc>(&frame).verdict, Verdict::Drop);
            assert_eq!(node.egress::<TcL3>(&frame[14..]).verdict, Verdict::Drop);
            assert_eq!(drops(&node), []);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn what_is_outside_the_ranges_and_what_comes_in_is_not_touched() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            for to in [Role::Site, Role::RemotePod, Role::External, Role::Management] {
                let sent = Segment::new(at::<F>(Role::LocalPod, 7), at::<F>(to, 1), opener);
                let outcome = node.egress::<Tc>(&sent.frame());
                assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, sent.frame()));
            }
            let stray = from_client::<F>(at::<F>(Role::Unowned, 1), opener);
            assert_eq!(node.ingress::<Tc>(&stray.frame()).verdict, Verdict::Pass);
            node.world.service_ranges = Default::default();
            assert_eq!(node.egress::<Tc>(&stray.frame()).verdict, Verdict::Pass);
            assert_eq!(drops(&node), []);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_flow_is_known_before_ranges_are_asked() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            // A client that has an address of the range: its flow goes on.
            let (range, len) =
                (ip::<F>(Role::Client), if ip::<F>(Role::Client).is_ipv4() { 32 } else { 128 });
            node.world.reserve(range, len);
            let sent = from_client::<F>(external::<F>(port::LOCAL), opener);
            node.ingress::<Tc>(&sent.frame());
            let reply = sent.between(pod::<F>(Role::LocalPod), sent.source, 64);
            assert_eq!(node.egress::<Tc>(&reply.frame()).verdict, Verdict::Deliver);
        }
    }
    of::<V4>();
    of::<V6>();
}
