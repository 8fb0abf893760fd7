//! Checksums after rewriting, against etherparse's full computation, for arbitrary packets.

use super::{external, pod};
use lb_common::family::{V4, V6};
use lb_common::lb::Verdict;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{Segment, Transport};
use lb_common::model::node::Tc;
use lb_common::model::scene::{self, Role, at, port};
use proptest::prelude::*;

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![
        (0..32_u8).prop_map(Transport::Tcp),
        Just(Transport::Udp),
        Just(Transport::UdpWithoutChecksum),
    ]
}

fn rewritten<F: AnswerFormat>(
    transport: Transport,
    payload: Vec<u8>,
    (client, backend): (u16, u16),
    hop_limit: u8,
) -> Result<(), TestCaseError> {
    for service in [port::LOCAL, port::REMOTE] {
        let mut node = scene::node::<F>();
        for element in &mut node.world.backends {
            element.port = lb_common::bytes::Be16::new(backend);
        }
        let mut sent =
            Segment::new(at::<F>(Role::Client, client), external::<F>(service), transport);
        sent.payload.clone_from(&payload);
        sent.hop_limit = hop_limit;
        let outcome = node.ingress::<Tc>(&sent.frame());
        let expected = if service == port::LOCAL {
            prop_assert_eq!(outcome.verdict, Verdict::Deliver);
            let mut to = pod::<F>(Role::LocalPod);
            to.set_port(backend);
            sent.between(sent.source, to, hop_limit)
        } else {
            prop_assert_eq!(outcome.verdict, Verdict::Forward);
            let mut to = pod::<F>(Role::RemotePod);
            to.set_port(backend);
            sent.between(super::source_of::<F>(&outcome), to, hop_limit - 1)
        };
        prop_assert_eq!(outcome.bytes, expected.frame());
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_checksum_equals_the_full_computation_after_the_rewrite(
        transport in transport(),
        payload in prop::collection::vec(any::<u8>(), 0..64),
        ports in (1..u16::MAX, 1..u16::MAX),
        hop_limit in 2..=255_u8,
    ) {
        rewritten::<V4>(transport, payload.clone(), ports, hop_limit)?;
        rewritten::<V6>(transport, payload, ports, hop_limit)?;
    }
}

/// Ports and addresses that the rewrite changes are undone by a word of the payload: for one value of
/// that word the new checksum is zero, which UDP must not send.
#[test]
fn a_computed_udp_checksum_of_zero_is_sent_as_all_ones() {
    fn of<F: AnswerFormat>() {
        let mut ones = 0;
        let mut node = scene::node::<F>();
        for word in 0..=u16::MAX {
            let mut sent = super::from_client::<F>(external::<F>(port::LOCAL), Transport::Udp);
            sent.payload = word.to_be_bytes().to_vec();
            let outcome = node.ingress::<Tc>(&sent.frame());
            let at = 14 + F::HEADER_LEN as usize + 6;
            let field = u16::from_be_bytes([outcome.bytes[at], outcome.bytes[at + 1]]);
            assert_ne!(field, 0);
            if field == 0xffff {
                let arrives = sent.between(sent.source, pod::<F>(Role::LocalPod), 64);
                assert_eq!(outcome.bytes, arrives.frame());
                ones += 1;
            }
        }
        assert_eq!(ones, 1);
    }
    of::<V4>();
    of::<V6>();
}
