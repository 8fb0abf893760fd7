//! Packets that are not ours, cut short or malformed.

use super::Case;
use super::bench::Bench;
use super::forwarding::{OPENERS, external, sent};
use super::programs::Hook;
use anyhow::Result;
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{LINK, Segment, Transport, with_link};
use lb_common::model::scene::{Role, at, port};

const HOOKS: [Hook; 3] = [Hook::Ingress, Hook::Egress, Hook::Xdp];

pub(super) fn cases<F: AnswerFormat>() -> Vec<Case<F>> {
    vec![
        ("what is not a Service's passes untouched", strangers),
        ("unknown protocols pass untouched", protocols),
        ("unknown EtherTypes and VLAN tags pass untouched", ether_types),
        ("headers that lie about version and length pass untouched", liars),
        ("packets cut at every length are handled as the model says", cut),
    ]
}

fn strangers<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for to in [
        external::<F>(4),
        at::<F>(Role::Management, port::node_port(port::LOCAL)),
        at::<F>(Role::Site, port::node_port(port::LOCAL)),
        at::<F>(Role::Node, port::LOCAL),
        at::<F>(Role::LocalPod, port::BACKEND),
    ] {
        for opener in OPENERS {
            for hook in HOOKS {
                bench.untouched(hook, &sent::<F>(to, opener).frame())?;
            }
        }
    }
    bench.same_counts()
}

fn protocols<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::LOCAL), Transport::Udp);
    let field = if F::HAS_HEADER_CHECKSUM { 9 } else { 6 };
    for protocol in (0..=255_u8).filter(|number| ![6, 17, 132].contains(number)) {
        let mut packet = request.packet();
        packet.iter_mut().skip(field).take(1).for_each(|byte| *byte = protocol);
        for hook in HOOKS {
            bench.untouched(hook, &with_link(F::HAS_HEADER_CHECKSUM, &packet))?;
        }
    }
    bench.same_counts()
}

fn ether_types<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let packet = sent::<F>(external::<F>(port::LOCAL), Transport::Udp).packet();
    for ether_type in [0x0806_u16, 0x8847, 0x88cc, 0x0001, 0xffff] {
        let mut frame = LINK.concat();
        frame.extend(ether_type.to_be_bytes());
        frame.extend(&packet);
        for hook in HOOKS {
            // The model begins behind the EtherType: ask the programs alone.
            bench.alone(hook, &frame)?;
        }
    }
    let mut tagged = LINK.concat();
    tagged.extend([0x81, 0x00, 0x00, 0x05]);
    tagged.extend(F::ETHERTYPE.to_be_bytes());
    tagged.extend(&packet);
    bench.alone(Hook::Xdp, &tagged)
}

fn liars<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    let request = sent::<F>(external::<F>(port::LOCAL), Transport::Udp);
    let honest = |byte: u8| match (F::HAS_HEADER_CHECKSUM, byte >> 4) {
        (true, 4) => byte & 0xf >= 5,
        (false, 6) => true,
        (true | false, _) => false,
    };
    for first in (0..=255_u8).filter(|byte| !honest(*byte)) {
        let mut packet = request.packet();
        packet.iter_mut().take(1).for_each(|byte| *byte = first);
        for hook in HOOKS {
            bench.untouched(hook, &with_link(F::HAS_HEADER_CHECKSUM, &packet))?;
        }
    }
    bench.same_counts()
}

fn cut<F: AnswerFormat>(bench: &mut Bench<F>) -> Result<()> {
    for service in [port::LOCAL, port::REMOTE, port::EMPTY] {
        for transport in [OPENERS[0], OPENERS[1]] {
            for extras in [0, 2] {
                let request = Segment { extras, ..sent::<F>(external::<F>(service), transport) };
                let frame = request.frame();
                for known in [false, true] {
                    bench.reset()?;
                    if known {
                        bench.run(Hook::Ingress, &frame)?;
                    }
                    for hook in HOOKS {
                        for len in bench.shortest(hook)..frame.len() {
                            bench.run(hook, frame.get(..len).unwrap_or_default())?;
                        }
                    }
                    bench.same_counts()?;
                }
            }
        }
    }
    Ok(())
}
