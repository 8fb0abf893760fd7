//! What a flow remembers, when it forgets, and how it mends itself.

use super::{ACK, FIN, OPENERS, RST, SYN, external, from_client, pod, source_of};
use lb_common::abi::{Address, Flow, FlowFlags};
use lb_common::bytes::Be16;
use lb_common::env::RENEWAL_TICKS;
use lb_common::family::{V4, V6};
use lb_common::lb::Verdict;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{Fragment, Segment, Transport};
use lb_common::model::node::{Node, Tc};
use lb_common::model::scene::{self, Role, port};

/// Flags of both directions of the only flow: forward, reply.
#[expect(clippy::unwrap_used, reason = "a test fails here")]
fn flow_flags<F: AnswerFormat>(node: &Node<F>) -> (u32, u32) {
    assert_eq!(node.flows.len(), 2);
    let of = |reply| {
        let mut entries = node.flows.values().map(|flow| flow.flags);
        entries.find(|flags| flags & FlowFlags::REPLY == reply).unwrap()
    };
    (of(0), of(FlowFlags::REPLY))
}

/// The backend that a forwarded frame goes to.
fn backend_of<F: AnswerFormat>(bytes: &[u8]) -> Address {
    let at = 14 + F::DESTINATION_OFFSET as usize;
    let address: F::Addr = bytemuck::pod_read_unaligned(&bytes[at..at + size_of::<F::Addr>()]);
    F::widen(address)
}

#[test]
fn a_lost_entry_of_either_direction_is_written_again_by_the_other() {
    fn of<F: AnswerFormat>() {
        for service in [port::LOCAL, port::REMOTE] {
            for opener in OPENERS {
                let mut node = scene::node::<F>();
                let sent = from_client::<F>(external::<F>(service), opener);
                let outcome = node.ingress::<Tc>(&sent.frame());
                let whole = node.flows.clone();
                let data = Segment {
                    transport: match opener {
                        Transport::Tcp(_) => Transport::Tcp(ACK),
                        other => other,
                    },
                    ..sent.clone()
                };
                let reply = match outcome.verdict {
                    Verdict::Forward => {
                        let source = source_of::<F>(&outcome);
                        data.between(source, pod::<F>(Role::RemotePod), 64).reply(ACK)
                    }
                    _ => data.between(sent.source, pod::<F>(Role::LocalPod), 64).reply(ACK),
                };
                // The reply entry is lost: the next packet of the client restores it.
                node.flows.retain(|_, flow| flow.flags & FlowFlags::REPLY == 0);
                node.world.now.set(node.world.now.get() + RENEWAL_TICKS);
                assert_eq!(
                    node.ingress::<Tc>(&data.frame()).bytes[14..],
                    outcome_bytes(&mut node, &data)
                );
                assert_eq!(node.flows.len(), 2, "{opener:?}");
                // The forward entry is lost: the next reply restores it.
                node.flows.retain(|_, flow| flow.flags & FlowFlags::REPLY != 0);
                node.world.now.set(node.world.now.get() + RENEWAL_TICKS);
                match service {
                    port::LOCAL => node.egress::<Tc>(&reply.frame()),
                    _ => node.ingress::<Tc>(&reply.frame()),
                };
                assert_eq!(node.flows.len(), 2, "{opener:?}");
                for (key, flow) in &whole {
                    assert_eq!(node.flows[key].translated, flow.translated);
                }
            }
        }
    }
    fn outcome_bytes<F: AnswerFormat>(node: &mut Node<F>, data: &Segment) -> Vec<u8> {
        node.ingress::<Tc>(&data.frame()).bytes[14..].to_vec()
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_client_whose_forward_entry_was_lost_keeps_its_source_port_and_its_backend() {
    fn of<F: AnswerFormat>() {
        for opener in [Transport::Tcp(ACK), Transport::Udp] {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::SPREAD), opener);
            let before = node.ingress::<Tc>(&sent.frame());
            node.flows.retain(|_, flow| flow.flags & FlowFlags::REPLY != 0);
            let after = node.ingress::<Tc>(&sent.frame());
            assert_eq!(after, before);
            assert_eq!(node.flows.len(), 2);
        }
    }
    of::<V4>();
    of::<V6>();
}

/// An endpoint of SPREAD leaves: its element rises, and the Service's slots don't name it any more.
#[expect(clippy::unwrap_used, reason = "a test fails here")]
fn leave_spread<F: AnswerFormat>(node: &mut Node<F>, leaving: Address) {
    let service = scene::service::<F>(&node.world, port::SPREAD, 17);
    let find = |is_it: &dyn Fn(Address) -> bool| {
        let backends = &node.world.backends;
        backends.iter().position(|b| b.service == service && is_it(b.address)).unwrap()
    };
    let gone = find(&|address| address == leaving);
    let other = lb_common::abi::BackendIndex(find(&|address| address != leaving) as u32);
    node.world.backends[gone].generation += 1;
    for slot in node.world.slots.iter_mut().filter(|slot| slot.0 as usize == gone) {
        *slot = other;
    }
}

#[test]
fn a_datagram_that_was_begun_with_an_endpoint_is_ended_with_it() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let whole = from_client::<F>(external::<F>(port::SPREAD), Transport::Udp);
        let send = |node: &mut Node<F>, id, offset, more| {
            let fragment = Some(Fragment { id, offset, more });
            let outcome = node.ingress::<Tc>(&Segment { fragment, ..whole.clone() }.frame());
            assert_eq!(outcome.verdict, Verdict::Forward);
            backend_of::<F>(&outcome.bytes)
        };
        let before = send(&mut node, 1, 0, true);
        leave_spread::<F>(&mut node, before);
        assert_eq!(send(&mut node, 1, 5, true), before);
        assert_eq!(send(&mut node, 1, 9, false), before);
        let after = send(&mut node, 2, 0, true);
        assert_ne!(after, before);
        assert_eq!(send(&mut node, 2, 5, false), after);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn udp_goes_elsewhere_with_the_first_datagram_after_its_endpoint_left() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::SPREAD), Transport::Udp);
        let before = backend_of::<F>(&node.ingress::<Tc>(&sent.frame()).bytes);
        leave_spread::<F>(&mut node, before);
        let after = node.ingress::<Tc>(&sent.frame());
        assert_eq!(after.verdict, Verdict::Forward);
        assert_ne!(backend_of::<F>(&after.bytes), before);
        assert_eq!(node.flows.len(), 2, "the old pair of entries is gone");
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn tcp_is_never_cut_when_its_endpoint_left_but_a_new_connection_goes_elsewhere() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Tcp(SYN));
        node.ingress::<Tc>(&sent.frame());
        node.world.leave(pod::<F>(Role::LocalPod));
        for record in node.world.records.values_mut() {
            record.cluster.len = 0;
        }
        let data = Segment { transport: Transport::Tcp(ACK), ..sent.clone() };
        assert_eq!(node.ingress::<Tc>(&data.frame()).verdict, Verdict::Deliver);
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
        assert!(node.flows.is_empty());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_port_that_is_used_again_after_fin_or_rst_opens_a_new_flow() {
    fn of<F: AnswerFormat>() {
        for last in [FIN | ACK, RST] {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Tcp(SYN));
            node.ingress::<Tc>(&sent.frame());
            let other_backend = scene::at::<F>(Role::UnknownPod, port::BACKEND);
            for backend in &mut node.world.backends {
                backend.address = other_backend.ip().into();
            }
            // A retransmitted SYN stays with its flow.
            let outcome = node.ingress::<Tc>(&sent.frame());
            assert_eq!(backend_of::<F>(&outcome.bytes), scene::ip::<F>(Role::LocalPod).into());
            let end = Segment { transport: Transport::Tcp(last), ..sent.clone() };
            node.ingress::<Tc>(&end.frame());
            let outcome = node.ingress::<Tc>(&sent.frame());
            assert_eq!(backend_of::<F>(&outcome.bytes), scene::ip::<F>(Role::UnknownPod).into());
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn each_direction_remembers_its_own_fin_and_both_a_reset_and_an_answer() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Tcp(SYN));
        node.ingress::<Tc>(&sent.frame());
        let local = FlowFlags::LOCAL | FlowFlags::UNASSURED;
        assert_eq!(flow_flags(&node), (local, local | FlowFlags::REPLY));
        let arrived = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
        node.egress::<Tc>(&arrived.reply(SYN | ACK).frame());
        let answered = local | FlowFlags::ANSWERED;
        assert_eq!(flow_flags(&node), (answered, answered | FlowFlags::REPLY));
        node.egress::<Tc>(&arrived.reply(FIN | ACK).frame());
        let reply = answered | FlowFlags::REPLY | FlowFlags::FIN;
        let request = answered | FlowFlags::OTHER_FIN;
        assert_eq!(flow_flags(&node), (request, reply));
        node.egress::<Tc>(&arrived.reply(RST).frame());
        assert_eq!(flow_flags(&node), (request | FlowFlags::RST, reply | FlowFlags::RST));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_connection_has_ended_with_a_fin_from_each_side_or_a_reset() {
    fn of<F: AnswerFormat>() {
        for (backend, client, expected) in [
            (FIN, FIN, true),
            (FIN, 0, false),
            (0, FIN, false),
            (RST, 0, true),
            (0, RST, true),
            (0, 0, false),
        ] {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Tcp(SYN));
            node.ingress::<Tc>(&sent.frame());
            let arrived = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
            node.egress::<Tc>(&arrived.reply(backend | ACK).frame());
            let last = Segment { transport: Transport::Tcp(client | ACK), ..sent };
            node.ingress::<Tc>(&last.frame());
            let case = format!("{backend:#x} {client:#x}");
            let ended = |node: &Node<F>, reply| {
                let mut entries = node.flows.values().map(|flow| flow.flags);
                let flags = entries.find(|flags| flags & FlowFlags::REPLY == reply).unwrap();
                assert_eq!(FlowFlags::has_ended(flags), expected, "{case}");
            };
            ended(&node, FlowFlags::REPLY);
            ended(&node, 0);
            // An entry that was lost is written again as it was.
            node.flows.retain(|_, flow| flow.flags & FlowFlags::REPLY != 0);
            node.world.now.set(node.world.now.get() + RENEWAL_TICKS);
            node.egress::<Tc>(&arrived.reply(ACK).frame());
            ended(&node, 0);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_question_from_a_port_that_was_just_used_finds_both_entries_again() {
    fn of<F: AnswerFormat>() {
        for opener in [Transport::Udp, Transport::Tcp(SYN)] {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::REMOTE), opener);
            let source = source_of::<F>(&node.ingress::<Tc>(&sent.frame()));
            let reply = sent.between(source, pod::<F>(Role::RemotePod), 64).reply(SYN | ACK);
            node.ingress::<Tc>(&reply.frame());
            let whole = node.flows.clone();
            node.flows.retain(|_, flow| flow.flags & FlowFlags::REPLY == 0);
            node.ingress::<Tc>(&sent.frame());
            assert_eq!(node.flows, whole);
            assert_eq!(node.ingress::<Tc>(&reply.frame()).verdict, Verdict::Forward);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_flow_whose_port_became_anothers_gets_a_new_one() {
    fn of<F: AnswerFormat>() {
        for opener in [Transport::Udp, Transport::Tcp(ACK)] {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::REMOTE), opener);
            let source = source_of::<F>(&node.ingress::<Tc>(&sent.frame()));
            // Its reply entry was lost, and another client's flow had the port next.
            let is_reply = |flow: &&mut Flow<F>| flow.flags & FlowFlags::REPLY != 0;
            let reply = node.flows.values_mut().find(is_reply).unwrap();
            reply.translated.destination_port = Be16::new(port::CLIENT + 1);
            let others = *reply;
            node.world.now.set(node.world.now.get() + RENEWAL_TICKS);
            assert_ne!(source_of::<F>(&node.ingress::<Tc>(&sent.frame())), source);
            let left = node.flows.values().find(|flow| flow.translated == others.translated);
            assert_eq!(left, Some(&others));
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_flow_is_assured_by_the_clients_answer_to_an_answer_or_by_later_datagrams() {
    fn of<F: AnswerFormat>() {
        let is_assured = |node: &Node<F>| {
            let (request, reply) = flow_flags(node);
            assert_eq!((request ^ reply) & FlowFlags::UNASSURED, 0);
            request & FlowFlags::UNASSURED == 0
        };
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::LOCAL), opener);
            let arrived = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
            let is_tcp = matches!(opener, Transport::Tcp(_));
            let transport = if is_tcp { Transport::Tcp(ACK) } else { opener };
            let next = Segment { transport, ..sent.clone() };
            for packet in [&sent, &sent] {
                node.ingress::<Tc>(&packet.frame());
                assert!(!is_assured(&node), "{opener:?}: nobody has answered");
            }
            node.egress::<Tc>(&arrived.reply(SYN | ACK).frame());
            assert!(!is_assured(&node), "{opener:?}: an answer may be unasked for");
            node.ingress::<Tc>(&next.frame());
            assert_eq!(is_assured(&node), is_tcp, "{opener:?}");
            node.world.now.set(node.world.now.get() + RENEWAL_TICKS);
            node.ingress::<Tc>(&next.frame());
            assert!(is_assured(&node), "{opener:?}");
        }
        // A connection that is met on its way, as after the loss of its entries.
        let mut node = scene::node::<F>();
        let met = from_client::<F>(external::<F>(port::LOCAL), Transport::Tcp(ACK));
        node.ingress::<Tc>(&met.frame());
        assert!(is_assured(&node));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn the_time_of_the_last_packet_is_renewed_in_both_entries_about_once_a_second() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Udp);
        // The clock wraps between the packets.
        node.world.now.set(u32::MAX - 1);
        node.ingress::<Tc>(&sent.frame());
        node.world.now.set(RENEWAL_TICKS - 3);
        node.ingress::<Tc>(&sent.frame());
        assert!(node.flows.values().all(|flow| flow.last_seen == u32::MAX - 1));
        node.world.now.set(RENEWAL_TICKS - 2);
        node.ingress::<Tc>(&sent.frame());
        assert!(node.flows.values().all(|flow| flow.last_seen == RENEWAL_TICKS - 2));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_reply_still_finds_the_client_after_its_endpoint_left() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::LOCAL), opener);
            node.ingress::<Tc>(&sent.frame());
            node.world.leave(pod::<F>(Role::LocalPod));
            let reply = sent.between(sent.source, pod::<F>(Role::LocalPod), 64).reply(ACK);
            let outcome = node.egress::<Tc>(&reply.frame());
            let back = reply.between(sent.destination, sent.source, 64);
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Deliver, back.frame()));
        }
    }
    of::<V4>();
    of::<V6>();
}
