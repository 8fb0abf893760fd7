//! Fragments that come before the first one of their datagram.

use super::{external, from_client, pod};
use lb_common::abi::AddressFlags;
use lb_common::family::{Family, V4, V6};
use lb_common::lb::Verdict;
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::fragment::{MAX_FRAME, MAX_PARKED, PATIENCE_TICKS};
use lb_common::model::frame::{Fragment, Segment, Transport};
use lb_common::model::node::{Hook, Node, Parked, PodTc, Tc, TcL3, Xdp};
use lb_common::model::scene::{self, Role, at, device, port};

fn piece(whole: &Segment, offset: u16, more: bool) -> Segment {
    Segment { fragment: Some(Fragment { id: 78, offset, more }), ..whole.clone() }
}

fn to_local<F: Family>() -> Segment {
    from_client::<F>(external::<F>(port::LOCAL), Transport::Udp)
}

/// The frames that the kernel would send through the hook again by now.
fn resent<F: AnswerFormat>(node: &mut Node<F>) -> Vec<Parked> {
    std::mem::take(&mut node.resent)
}

#[test]
fn early_fragments_pass_again_behind_their_first_one_and_arrive_translated() {
    fn of<F: AnswerFormat>() {
        for frontend in [
            at::<F>(Role::ClusterIp, port::LOCAL),
            external::<F>(port::LOCAL),
            at::<F>(Role::LoadBalancer, port::LOCAL),
            at::<F>(Role::Node, port::node_port(port::LOCAL)),
        ] {
            let mut node = scene::node::<F>();
            let whole = from_client::<F>(frontend, Transport::Udp);
            let backend = pod::<F>(Role::LocalPod);
            let early = [piece(&whole, 9, false), piece(&whole, 5, true)];
            for fragment in &early {
                assert_eq!(node.ingress::<Tc>(&fragment.frame()).verdict, Verdict::Parked);
            }
            let first = piece(&whole, 0, true);
            let outcome = node.ingress::<Tc>(&first.frame());
            assert_eq!(outcome.verdict, Verdict::Deliver, "{frontend}");
            assert_eq!(outcome.bytes, first.between(whole.source, backend, 64).frame());
            let resent = resent(&mut node);
            assert_eq!(resent.len(), early.len());
            for (sent, parked) in early.iter().zip(resent) {
                assert_eq!((parked.device, &parked.bytes), (node.input, &sent.frame()));
                let outcome = node.ingress::<Tc>(&parked.bytes);
                assert_eq!(outcome.verdict, Verdict::Deliver);
                assert_eq!(outcome.bytes, sent.between(whole.source, backend, 64).frame());
            }
            assert!(node.parked.is_empty() && node.resent.is_empty());
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_device_without_link_header_parks_the_same() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let whole = to_local::<F>();
        let early = piece(&whole, 5, false).packet();
        assert_eq!(node.ingress::<TcL3>(&early).verdict, Verdict::Parked);
        node.ingress::<TcL3>(&piece(&whole, 0, true).packet());
        let parked = resent(&mut node);
        assert_eq!(parked.iter().map(|parked| &parked.bytes).collect::<Vec<_>>(), [&early]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn replies_to_the_node_wait_for_their_first_fragment() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let request = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        let source = super::source_of::<F>(&node.ingress::<Tc>(&request.frame()));
        let reply = request.between(pod::<F>(Role::RemotePod), source, 64);
        let early = piece(&reply, 5, false);
        assert_eq!(node.ingress::<Tc>(&early.frame()).verdict, Verdict::Parked);
        let first = piece(&reply, 0, true);
        let outcome = node.ingress::<Tc>(&first.frame());
        assert_eq!(outcome.verdict, Verdict::Forward);
        let parked = resent(&mut node);
        let outcome = node.ingress::<Tc>(&parked[0].bytes);
        assert_eq!(outcome.verdict, Verdict::Forward);
        assert_eq!(outcome.bytes, early.between(request.destination, request.source, 63).frame());
    }
    of::<V4>();
    of::<V6>();
}

/// A pod of this node asks, in any order; answers are put in order where they come in, and not again
/// where they get to it.
#[test]
fn fragments_from_a_pod_wait_for_their_first_one() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        node.input = device::POD;
        let frontend = at::<F>(Role::ClusterIp, port::REMOTE);
        let client = at::<F>(Role::UnknownPod, port::CLIENT);
        let request = Segment::new(client, frontend, Transport::Udp);
        let goes = request.between(client, pod::<F>(Role::RemotePod), 64);
        let early = piece(&request, 5, false);
        assert_eq!(node.ingress::<PodTc>(&early.frame()).verdict, Verdict::Parked);
        let outcome = node.ingress::<PodTc>(&piece(&request, 0, true).frame());
        assert_eq!(outcome.bytes, piece(&goes, 0, true).frame());
        let parked = resent(&mut node);
        let outcome = node.ingress::<PodTc>(&parked[0].bytes);
        assert_eq!(outcome.bytes, piece(&goes, 5, false).frame());
        let answer = goes.reply(0);
        let early = piece(&answer, 5, false);
        assert_eq!(node.egress::<PodTc>(&early.frame()).verdict, Verdict::Pass);
        for from in [device::UPLINK, device::POD] {
            let mut node = node.clone();
            node.input = from;
            let comes = |node: &mut Node<F>, sent: &Segment| match from {
                device::POD => node.ingress::<PodTc>(&sent.frame()).verdict,
                _ => node.ingress::<Tc>(&sent.frame()).verdict,
            };
            node.world.addresses.remove(&client.ip().into());
            assert_eq!(comes(&mut node, &early), Verdict::Pass, "a pod that nobody knows");
            node.world.addresses.insert(client.ip().into(), AddressFlags::POD);
            assert_eq!(comes(&mut node, &early), Verdict::Parked);
            assert_eq!(comes(&mut node, &piece(&answer, 0, true)), Verdict::Pass);
            assert_eq!(resent(&mut node).len(), 1);
            assert_eq!(comes(&mut node, &early), Verdict::Pass, "behind the first");
        }
    }
    of::<V4>();
    of::<V6>();
}

/// An endpoint of this node answers a client outside, in any order: also where its own device has a hook
/// that has seen the first fragment already.
#[test]
fn what_endpoints_of_this_node_send_out_waits_for_its_first_fragment() {
    fn of<F: AnswerFormat>(first_is_known: bool) {
        let mut node = scene::node::<F>();
        let whole = to_local::<F>();
        node.ingress::<Tc>(&whole.frame());
        let reply = whole.between(pod::<F>(Role::LocalPod), whole.source, 64);
        let leaves = whole.reply(0);
        let leaves = leaves.between(whole.destination, whole.source, 64);
        let early = piece(&reply, 5, false);
        let first = piece(&reply, 0, true);
        assert_eq!(node.egress::<Tc>(&early.frame()).verdict, Verdict::Parked);
        if first_is_known {
            assert_eq!(node.ingress::<PodTc>(&first.frame()).verdict, Verdict::Pass);
            assert_eq!((node.parked.len(), node.resent.len()), (1, 0), "it has yet to leave");
        }
        let outcome = node.egress::<Tc>(&first.frame());
        assert_eq!(outcome.verdict, Verdict::Deliver);
        assert_eq!(outcome.bytes, piece(&leaves, 0, true).frame());
        let parked = resent(&mut node);
        let outcome = node.egress::<Tc>(&parked[0].bytes);
        assert_eq!(outcome.verdict, Verdict::Deliver);
        assert_eq!(outcome.bytes, piece(&leaves, 5, false).frame());
        assert!(node.parked.is_empty());
    }
    for first_is_known in [false, true] {
        of::<V4>(first_is_known);
        of::<V6>(first_is_known);
    }
}

#[test]
fn what_others_send_out_and_what_pods_send_where_sockets_are_served_does_not_wait() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let whole = to_local::<F>();
        node.ingress::<Tc>(&whole.frame());
        let reply = whole.between(pod::<F>(Role::UnknownPod), whole.source, 64);
        let early = piece(&reply, 5, false);
        assert_eq!(node.egress::<Tc>(&early.frame()).verdict, Verdict::Pass);
        let reply = whole.between(pod::<F>(Role::LocalPod), whole.source, 64);
        let early = piece(&reply, 5, false);
        assert_eq!(node.egress::<PodTc>(&early.frame()).verdict, Verdict::Pass);
        node.pod_packets = false;
        let early = piece(&whole, 5, false);
        assert_eq!(node.ingress::<PodTc>(&early.frame()).verdict, Verdict::Pass);
        assert!(node.parked.is_empty());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn what_is_for_others_passes_untouched_and_so_does_what_xdp_sees() {
    fn untouched<F: AnswerFormat, H: Hook>(sent: &Segment) {
        let mut node = scene::node::<F>();
        let outcome = node.ingress::<H>(&sent.frame());
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, sent.frame()));
        assert!(node.parked.is_empty());
    }
    fn of<F: AnswerFormat>() {
        for role in [Role::Client, Role::LocalPod, Role::RemotePod, Role::Site] {
            let whole = from_client::<F>(at::<F>(role, port::LOCAL), Transport::Udp);
            untouched::<F, Tc>(&piece(&whole, 5, false));
        }
        untouched::<F, Xdp>(&piece(&to_local::<F>(), 5, false));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn one_datagram_parks_no_more_fragments_and_no_longer_ones_than_there_can_be() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let whole = to_local::<F>();
        for number in 1..=MAX_PARKED as u16 {
            let outcome = node.ingress::<Tc>(&piece(&whole, number, true).frame());
            assert_eq!(outcome.verdict, Verdict::Parked);
        }
        let outcome = node.ingress::<Tc>(&piece(&whole, 100, true).frame());
        assert_eq!(outcome.verdict, Verdict::Pass);
        assert_eq!(node.parked.len(), MAX_PARKED as usize);
        let mut node = scene::node::<F>();
        let long = Segment { payload: vec![0; MAX_FRAME as usize], ..piece(&whole, 5, true) };
        assert_eq!(node.ingress::<Tc>(&long.frame()).verdict, Verdict::Pass);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_fragment_of_an_earlier_datagram_with_the_same_identification_is_not_sent() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let whole = to_local::<F>();
        node.ingress::<Tc>(&piece(&whole, 5, true).frame());
        node.ingress::<Tc>(&piece(&whole, 7, true).frame());
        node.world.now.set(node.world.now.get() + PATIENCE_TICKS);
        // The first place is free again.
        let fresh = piece(&whole, 9, false).frame();
        assert_eq!(node.ingress::<Tc>(&fresh).verdict, Verdict::Parked);
        assert_eq!(node.parked.len(), 2);
        node.ingress::<Tc>(&piece(&whole, 0, true).frame());
        let parked = resent(&mut node);
        assert_eq!(parked.iter().map(|parked| &parked.bytes).collect::<Vec<_>>(), [&fresh]);
        assert!(node.parked.is_empty());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn fragments_of_other_datagrams_go_on_waiting() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let whole = to_local::<F>();
        let other = Some(Fragment { id: 79, offset: 5, more: false });
        node.ingress::<Tc>(&Segment { fragment: other, ..whole.clone() }.frame());
        node.ingress::<Tc>(&piece(&whole, 0, true).frame());
        assert_eq!((node.parked.len(), node.resent.len()), (1, 0));
    }
    of::<V4>();
    of::<V6>();
}
