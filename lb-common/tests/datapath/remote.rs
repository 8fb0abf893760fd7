//! Backends elsewhere: both directions are forwarded by us, behind the node's address.

use super::{ACK, FIN, OPENERS, RST, SYN, drops, external, from_client, pod, source_of};
use lb_common::abi::{Address, DeviceFlags};
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::{DropReason, Verdict};
use lb_common::model::frame::{Fragment, IcmpError, Problem, Segment, Transport, returned};
use lb_common::model::node::{NextHop, Tc, Xdp};
use lb_common::model::scene::{self, Role, at, device, ip, port};

/// Bytes of a packet that an answer of ours quotes.
fn quoted<F: AnswerFormat>() -> usize {
    size_of::<F::Quote>()
}

#[test]
fn a_remote_backend_sees_the_node_and_the_client_sees_the_frontend() {
    fn of<F: AnswerFormat>() {
        for frontend in [external::<F>(port::REMOTE), at::<F>(Role::Node, 30_081)] {
            for opener in OPENERS {
                let mut node = scene::node::<F>();
                let sent = from_client::<F>(frontend, opener);
                let outcome = node.ingress::<Tc>(&sent.frame());
                assert_eq!(outcome.device, device::UPLINK);
                let source = source_of::<F>(&outcome);
                assert_eq!(source.ip(), ip::<F>(Role::Node));
                assert!((20_000..30_000).contains(&source.port()));
                let leaves = sent.between(source, pod::<F>(Role::RemotePod), 63);
                assert_eq!(outcome.bytes, leaves.frame(), "{opener:?}");
                let reply = leaves.between(leaves.source, leaves.destination, 64).reply(SYN | ACK);
                let outcome = node.ingress::<Tc>(&reply.frame());
                assert_eq!((outcome.verdict, outcome.device), (Verdict::Forward, device::UPLINK));
                assert_eq!(outcome.bytes, reply.between(frontend, sent.source, 63).frame());
                // What we forwarded passes egress as it is.
                for frame in [leaves.frame(), outcome.bytes] {
                    let again = node.egress::<Tc>(&frame);
                    assert_eq!((again.verdict, again.bytes), (Verdict::Pass, frame));
                }
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn the_source_is_the_address_of_the_device_towards_the_backend() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::OVERLAY), Transport::Udp);
        let outcome = node.ingress::<Tc>(&sent.frame());
        assert_eq!(outcome.device, device::OVERLAY);
        assert_eq!(source_of::<F>(&outcome).ip(), ip::<F>(Role::Overlay));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_host_outside_the_cluster_can_be_a_backend() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::SITE), Transport::Tcp(SYN));
        let outcome = node.ingress::<Tc>(&sent.frame());
        let source = source_of::<F>(&outcome);
        assert_eq!(outcome.bytes, sent.between(source, pod::<F>(Role::Site), 63).frame());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn fragments_are_forwarded_behind_the_node_too() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let whole = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        let piece = |offset, more| Some(Fragment { id: 79, offset, more });
        let first = Segment { fragment: piece(0, true), ..whole.clone() };
        let bytes = node.ingress::<Tc>(&first.frame()).bytes;
        let skip = if F::HAS_HEADER_CHECKSUM { 34 } else { 62 };
        let source = at::<F>(Role::Node, u16::from_be_bytes([bytes[skip], bytes[skip + 1]]));
        let backend = pod::<F>(Role::RemotePod);
        assert_eq!(bytes, first.between(source, backend, 63).frame());
        let later = Segment { fragment: piece(5, false), ..whole };
        let outcome = node.ingress::<Tc>(&later.frame());
        assert_eq!(outcome.verdict, Verdict::Forward);
        assert_eq!(outcome.bytes, later.between(source, backend, 63).frame());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_backend_with_a_forbidding_route_or_without_source_address_is_a_drop_with_its_reason() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOST), Transport::Udp);
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::NoRoute, 1)]);

        let mut node = scene::node::<F>();
        let uplink = node.world.devices.get_mut(&device::UPLINK).unwrap();
        uplink.address4 = Address::UNSPECIFIED_V6;
        uplink.address6 = Address::UNSPECIFIED_V6;
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::NoSourceAddress, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn the_last_hop_is_answered_with_time_exceeded_in_both_directions() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let alive = from_client::<F>(external::<F>(port::REMOTE), Transport::Tcp(SYN));
        let source = source_of::<F>(&node.ingress::<Tc>(&alive.frame()));
        let leaves = alive.between(source, pod::<F>(Role::RemotePod), 63);
        for dying in [
            alive.between(alive.source, alive.destination, 1),
            leaves.reply(ACK).between(leaves.destination, leaves.source, 1),
        ] {
            let outcome = node.ingress::<Tc>(&dying.frame());
            let answer = IcmpError {
                source: dying.destination.ip(),
                destination: dying.source.ip(),
                problem: Problem::TimeExceeded,
                quote: dying.packet()[..quoted::<F>()].to_vec(),
                hop_limit: 64,
                own: true,
            };
            assert_eq!(outcome.verdict, Verdict::Answer);
            assert_eq!(outcome.bytes, returned(answer.frame()));
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn what_is_too_long_for_the_path_is_answered_with_its_mtu_unless_routers_may_fragment_it() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let mut sent = from_client::<F>(external::<F>(port::OVERLAY), Transport::Udp);
        sent.payload = vec![7; 1500 - F::HEADER_LEN as usize - 8];
        let outcome = node.ingress::<Tc>(&sent.frame());
        let answer = IcmpError {
            source: sent.destination.ip(),
            destination: sent.source.ip(),
            problem: Problem::TooBig(1450),
            quote: sent.packet()[..quoted::<F>()].to_vec(),
            hop_limit: 64,
            own: true,
        };
        assert_eq!(outcome.verdict, Verdict::Answer);
        assert_eq!(outcome.bytes, returned(answer.frame()));
        sent.dont_fragment = false;
        let outcome = node.ingress::<Tc>(&sent.frame());
        if F::HAS_HEADER_CHECKSUM {
            assert_eq!((outcome.verdict, outcome.device), (Verdict::Forward, device::OVERLAY));
        } else {
            assert_eq!(outcome.verdict, Verdict::Answer, "IPv6 routers never fragment");
        }
        // One byte less than too much.
        sent.payload.truncate(1450 - F::HEADER_LEN as usize - 8);
        sent.dont_fragment = true;
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn merged_segments_are_judged_by_the_length_of_one() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let mut sent = from_client::<F>(external::<F>(port::OVERLAY), Transport::Udp);
        sent.payload = vec![7; 9000];
        node.segment = 1442 - F::HEADER_LEN;
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
        node.segment += 1;
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Answer);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn xdp_forwards_known_flows_and_leaves_first_packets_to_tc() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::REMOTE), opener);
            assert_eq!(node.ingress::<Xdp>(&sent.frame()).verdict, Verdict::Pass);
            assert!(node.flows.is_empty());
            let by_tc = node.ingress::<Tc>(&sent.frame());
            let by_xdp = node.ingress::<Xdp>(&sent.frame());
            assert_eq!(by_xdp, by_tc);
            let leaves = sent.between(source_of::<F>(&by_tc), pod::<F>(Role::RemotePod), 64);
            let reply = leaves.reply(ACK);
            let outcome = node.ingress::<Xdp>(&reply.frame());
            let back = reply.between(sent.destination, sent.source, 63);
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Forward, back.frame()));
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn xdp_leaves_to_tc_untouched_what_it_cannot_carry() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let pass = |node: &mut lb_common::model::node::Node<F>, sent: &Segment, why: &str| {
            let outcome = node.ingress::<Xdp>(&sent.frame());
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, sent.frame()), "{why}");
        };
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        let overlay = from_client::<F>(external::<F>(port::OVERLAY), Transport::Udp);
        node.ingress::<Tc>(&sent.frame());
        node.ingress::<Tc>(&overlay.frame());
        pass(&mut node, &overlay, "a device that isn't prepared for XDP");
        pass(&mut node, &Segment { extras: 1, ..sent.clone() }, "options or extension headers");
        let fragment = Some(Fragment { id: 80, offset: 0, more: true });
        pass(&mut node, &Segment { fragment, ..sent.clone() }, "a fragment");
        node.routes.insert(
            ip::<F>(Role::RemotePod).into(),
            NextHop::Device { index: device::UPLINK, mtu: 1500, resolved: false },
        );
        pass(&mut node, &sent, "a next hop that isn't resolved yet");
        let overlay_device = node.world.devices.get_mut(&device::OVERLAY).unwrap();
        overlay_device.flags |= DeviceFlags::XDP;
        assert_eq!(node.ingress::<Xdp>(&overlay.frame()).verdict, Verdict::Forward);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_answer_is_left_to_tc_by_xdp() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        node.ingress::<Tc>(&sent.frame());
        let dying = sent.between(sent.source, sent.destination, 1).frame();
        let outcome = node.ingress::<Xdp>(&dying);
        assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Answer, dying));
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn ports_that_sockets_of_the_node_use_are_not_taken_and_running_out_has_its_own_reason() {
    fn of<F: AnswerFormat>() {
        for opener in OPENERS {
            let mut node = scene::node::<F>();
            node.snat_ports = (20_000, 20_003);
            node.bound_ports = [20_000, 20_002].into();
            let mut taken = Vec::new();
            for client in 0..2 {
                let mut sent = from_client::<F>(external::<F>(port::REMOTE), opener);
                sent.source.set_port(port::CLIENT + client);
                taken.push(source_of::<F>(&node.ingress::<Tc>(&sent.frame())).port());
            }
            taken.sort_unstable();
            assert_eq!(taken, [20_001, 20_003]);
            let mut sent = from_client::<F>(external::<F>(port::REMOTE), opener);
            sent.source.set_port(port::CLIENT + 2);
            assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
            assert_eq!(drops(&node), [(DropReason::SnatExhausted, 1)]);
            // Another backend has the whole range to itself.
            let sent = from_client::<F>(external::<F>(port::SITE), opener);
            assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Forward);
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn ports_are_found_until_seven_tenths_of_the_range_are_taken() {
    fn of<F: AnswerFormat>() {
        for range in [1_000, 8_192, 28_232] {
            let mut node = scene::node::<F>();
            node.snat_ports = (32_768, 32_768 + (range - 1));
            let mut sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
            for client in 0..range / 10 * 7 {
                sent.source.set_port(1 + client);
                let outcome = node.ingress::<Tc>(&sent.frame());
                assert_eq!(outcome.verdict, Verdict::Forward, "{client} of {range} taken");
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

/// Seconds in ticks, rounded up.
fn ticks(seconds: u64) -> u32 {
    (seconds * 1_000_000_000).div_ceil(lb_common::env::TICK_NANOSECONDS) as u32
}

#[test]
fn without_a_free_port_the_flow_that_is_over_longest_gives_way() {
    fn of<F: AnswerFormat>() {
        let (client, backend) = (true, false);
        // Who sends what after the first packet, and whether the flow's port may be taken then.
        let half_open = [(backend, SYN | ACK)];
        let established = [half_open[0], (client, ACK)];
        let half_closed = [half_open[0], established[1], (client, FIN | ACK)];
        let closed = [half_open[0], established[1], half_closed[2], (backend, FIN | ACK)];
        let reset = [half_open[0], established[1], (backend, RST)];
        type Case<'a> = (&'static str, Transport, &'a [(bool, u8)], bool);
        let cases: [Case; 8] = [
            ("a SYN without an answer", Transport::Tcp(SYN), &[], true),
            ("a half-open connection", Transport::Tcp(SYN), &half_open, true),
            ("an established one", Transport::Tcp(SYN), &established, false),
            ("one half closed", Transport::Tcp(SYN), &half_closed, false),
            ("one closed", Transport::Tcp(SYN), &closed, true),
            ("one reset", Transport::Tcp(SYN), &reset, true),
            ("a datagram", Transport::Udp, &[], true),
            ("a datagram and its answer", Transport::Udp, &[(backend, 0)], true),
        ];
        for (case, opener, rest, gives_way) in cases {
            let mut node = scene::node::<F>();
            node.snat_ports = (20_000, 20_001);
            let mut taken = Vec::new();
            let mut sent = from_client::<F>(external::<F>(port::REMOTE), opener);
            // The first is over longer than the second.
            for client in [1, 2] {
                sent.source.set_port(client);
                let source = source_of::<F>(&node.ingress::<Tc>(&sent.frame()));
                taken.push(source);
                let arrived = sent.between(source, pod::<F>(Role::RemotePod), 64);
                for (by_client, flags) in rest {
                    let packet = if *by_client {
                        Segment { transport: Transport::Tcp(*flags), ..sent.clone() }
                    } else {
                        arrived.reply(*flags)
                    };
                    let outcome = node.ingress::<Tc>(&packet.frame());
                    assert_eq!(outcome.verdict, Verdict::Forward, "{case}");
                }
                node.world.now.set(node.world.now.get() + ticks(2));
            }
            sent.source.set_port(3);
            let third = node.ingress::<Tc>(&sent.frame()).verdict;
            assert_eq!(third, Verdict::Drop, "{case}: it is over for four seconds");
            node.world.now.set(node.world.now.get() + ticks(2));
            let outcome = node.ingress::<Tc>(&sent.frame());
            if !gives_way {
                assert_eq!(outcome.verdict, Verdict::Drop, "{case}");
                continue;
            }
            assert_eq!(source_of::<F>(&outcome), taken[0], "{case}");
            assert_eq!(node.flows.len(), 4, "{case}: the old flow is gone in both directions");
            // The old client's next packet can't be sent as the new one's.
            sent.source.set_port(1);
            let old = node.ingress::<Tc>(&sent.frame());
            if old.verdict == Verdict::Forward {
                assert_ne!(source_of::<F>(&old), taken[0], "{case}");
            }
        }
        // Datagrams that go on for a second are more than a question.
        let mut node = scene::node::<F>();
        node.snat_ports = (20_000, 20_000);
        let mut sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        let source = source_of::<F>(&node.ingress::<Tc>(&sent.frame()));
        let reply = sent.between(source, pod::<F>(Role::RemotePod), 64).reply(0);
        node.ingress::<Tc>(&reply.frame());
        node.world.now.set(node.world.now.get() + ticks(2));
        node.ingress::<Tc>(&sent.frame());
        node.world.now.set(node.world.now.get() + ticks(60));
        sent.source.set_port(3);
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::SnatExhausted, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_flow_table_that_refuses_is_a_drop_with_its_reason() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        node.flows_full = true;
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Tcp(SYN));
        assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::FlowTable, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn a_route_that_is_gone_drops_the_flows_packets_with_its_reason() {
    fn of<F: AnswerFormat>() {
        for gone in [Some(NextHop::Forbidden), None] {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
            node.ingress::<Tc>(&sent.frame());
            let backend = ip::<F>(Role::RemotePod).into();
            node.routes.remove(&backend);
            node.routes.extend(gone.map(|hop| (backend, hop)));
            assert_eq!(node.ingress::<Tc>(&sent.frame()).verdict, Verdict::Drop);
            assert_eq!(drops(&node), [(DropReason::NoRoute, 1)]);
        }
    }
    of::<V4>();
    of::<V6>();
}
