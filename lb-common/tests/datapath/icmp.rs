//! ICMP errors inside flows, in every direction they can take.

use super::{ACK, OPENERS, SYN, drops, external, from_client, pod, source_of};
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::lb::{DropReason, Verdict};
use lb_common::model::frame::{Fragment, IcmpError, Problem, Segment, Transport, with_link};
use lb_common::model::node::{Tc, Xdp};
use lb_common::model::scene::{self, Role, device, ip, port};

const PROBLEMS: [Problem; 3] =
    [Problem::PortUnreachable, Problem::TooBig(1400), Problem::TimeExceeded];

/// How much of the packet different routers quote: the least that RFC 792 asks for, and everything.
const QUOTES: [usize; 2] = [28, 576];

/// The least quote that holds the ports of a packet of the family.
fn quote_len<F: AnswerFormat>(len: usize) -> usize {
    if F::HAS_HEADER_CHECKSUM { len } else { len + 20 }
}

#[test]
fn errors_about_a_reply_of_a_local_backend_reach_the_backend() {
    fn of<F: AnswerFormat>() {
        for (opener, problem, len) in every() {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::LOCAL), opener);
            node.ingress::<Tc>(&sent.frame());
            let backend = pod::<F>(Role::LocalPod);
            let reply = sent.reply(ACK);
            let error = |destination, from| IcmpError {
                source: ip::<F>(Role::Router),
                destination,
                problem,
                quote: reply.quote(from, sent.source, quote_len::<F>(len)),
                hop_limit: 60,
                own: false,
            };
            let outcome =
                node.ingress::<Tc>(&error(sent.destination.ip(), sent.destination).frame());
            assert_eq!(outcome.verdict, Verdict::Deliver);
            assert_eq!(
                outcome.bytes,
                error(backend.ip(), backend).frame(),
                "{opener:?} {problem:?}"
            );
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn errors_of_a_local_backend_reach_the_client_from_the_frontend() {
    fn of<F: AnswerFormat>() {
        for (opener, problem, len) in every() {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::LOCAL), opener);
            node.ingress::<Tc>(&sent.frame());
            let arrived = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
            let error = |source, to| IcmpError {
                source,
                destination: sent.source.ip(),
                problem,
                quote: arrived.quote(sent.source, to, quote_len::<F>(len)),
                hop_limit: 64,
                own: false,
            };
            let backend = pod::<F>(Role::LocalPod);
            // Where the client came in, and where the stack routes by the endpoint's address.
            for (leaves, verdict) in
                [(device::UPLINK, Verdict::Deliver), (device::OVERLAY, Verdict::Forward)]
            {
                node.input = leaves;
                let outcome = node.egress::<Tc>(&error(backend.ip(), backend).frame());
                assert_eq!(outcome.verdict, verdict);
                let expected = error(sent.destination.ip(), sent.destination).frame();
                assert_eq!(outcome.bytes, expected, "{opener:?} {problem:?}");
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn errors_from_the_path_to_a_remote_backend_reach_the_client_from_the_frontend() {
    fn of<F: AnswerFormat>() {
        for (opener, problem, len) in every() {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::REMOTE), opener);
            let source = source_of::<F>(&node.ingress::<Tc>(&sent.frame()));
            let leaves = sent.between(source, pod::<F>(Role::RemotePod), 63);
            let error = IcmpError {
                source: ip::<F>(Role::Router),
                destination: source.ip(),
                problem,
                quote: leaves.packet()[..quote_len::<F>(len).min(leaves.packet().len())].to_vec(),
                hop_limit: 60,
                own: false,
            };
            let outcome = node.ingress::<Tc>(&error.frame());
            assert_eq!((outcome.verdict, outcome.device), (Verdict::Forward, device::UPLINK));
            let expected = IcmpError {
                source: sent.destination.ip(),
                destination: sent.source.ip(),
                quote: leaves.quote(sent.source, sent.destination, quote_len::<F>(len)),
                hop_limit: 59,
                ..error
            };
            assert_eq!(outcome.bytes, expected.frame(), "{opener:?} {problem:?}");
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn errors_from_the_path_to_the_client_reach_a_remote_backend_from_the_node() {
    fn of<F: AnswerFormat>() {
        for (opener, problem, len) in every() {
            let mut node = scene::node::<F>();
            let sent = from_client::<F>(external::<F>(port::REMOTE), opener);
            let source = source_of::<F>(&node.ingress::<Tc>(&sent.frame()));
            let backend = pod::<F>(Role::RemotePod);
            let reply = sent.reply(SYN | ACK);
            let error = IcmpError {
                source: ip::<F>(Role::Router),
                destination: sent.destination.ip(),
                problem,
                quote: reply.packet()[..quote_len::<F>(len).min(reply.packet().len())].to_vec(),
                hop_limit: 60,
                own: false,
            };
            let outcome = node.ingress::<Tc>(&error.frame());
            assert_eq!((outcome.verdict, outcome.device), (Verdict::Forward, device::UPLINK));
            let expected = IcmpError {
                source: source.ip(),
                destination: backend.ip(),
                quote: reply.quote(backend, source, quote_len::<F>(len)),
                hop_limit: 59,
                ..error
            };
            assert_eq!(outcome.bytes, expected.frame(), "{opener:?} {problem:?}");
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_error_about_a_quoted_packet_with_options_is_translated_too() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent =
            Segment { extras: 2, ..from_client::<F>(external::<F>(port::LOCAL), Transport::Udp) };
        node.ingress::<Tc>(&sent.frame());
        let backend = pod::<F>(Role::LocalPod);
        let arrived = sent.between(sent.source, backend, 64);
        let error = |source, to| IcmpError {
            source,
            destination: sent.source.ip(),
            problem: Problem::PortUnreachable,
            quote: arrived.quote(sent.source, to, 576),
            hop_limit: 64,
            own: false,
        };
        let outcome = node.egress::<Tc>(&error(backend.ip(), backend).frame());
        let expected = error(sent.destination.ip(), sent.destination);
        assert_eq!(outcome.bytes, expected.frame());
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn errors_about_what_is_not_ours_pass_untouched() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::LOCAL), Transport::Udp);
        node.ingress::<Tc>(&sent.frame());
        let stranger = from_client::<F>(external::<F>(7), Transport::Udp);
        let later = Segment {
            fragment: Some(Fragment { id: 5, offset: 9, more: false }),
            ..sent.reply(ACK)
        };
        let cut = sent.reply(ACK).packet();
        for quote in [
            stranger.packet(),
            later.packet(),
            cut[..F::HEADER_LEN as usize + 3].to_vec(),
            Vec::new(),
        ] {
            let error = IcmpError {
                source: ip::<F>(Role::Router),
                destination: sent.destination.ip(),
                problem: Problem::PortUnreachable,
                quote,
                hop_limit: 60,
                own: false,
            };
            for outcome in [
                node.ingress::<Tc>(&error.frame()),
                node.egress::<Tc>(&error.frame()),
                node.ingress::<Xdp>(&error.frame()),
            ] {
                assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, error.frame()));
            }
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn echo_requests_and_unknown_protocols_pass_untouched() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let v4 = F::HAS_HEADER_CHECKSUM;
        let mut packet = from_client::<F>(external::<F>(port::LOCAL), Transport::Udp).packet();
        for protocol in (0..=255).filter(|number| ![6, 17, 132].contains(number)) {
            packet[if v4 { 9 } else { 6 }] = protocol;
            let frame = with_link(v4, &packet);
            let outcome = node.ingress::<Tc>(&frame);
            assert_eq!((outcome.verdict, outcome.bytes), (Verdict::Pass, frame), "{protocol}");
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn an_error_on_its_last_hop_is_dropped_with_its_reason_and_never_answered() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let sent = from_client::<F>(external::<F>(port::REMOTE), Transport::Udp);
        let source = source_of::<F>(&node.ingress::<Tc>(&sent.frame()));
        let error = IcmpError {
            source: ip::<F>(Role::Router),
            destination: source.ip(),
            problem: Problem::PortUnreachable,
            quote: sent.between(source, pod::<F>(Role::RemotePod), 63).packet(),
            hop_limit: 1,
            own: false,
        };
        assert_eq!(node.ingress::<Tc>(&error.frame()).verdict, Verdict::Drop);
        assert_eq!(drops(&node), [(DropReason::HopLimit, 1)]);
    }
    of::<V4>();
    of::<V6>();
}

fn every() -> impl Iterator<Item = (Transport, Problem, usize)> {
    OPENERS.into_iter().flat_map(|opener| {
        PROBLEMS.into_iter().flat_map(move |problem| QUOTES.map(|len| (opener, problem, len)))
    })
}
