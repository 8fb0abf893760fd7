//! Turns a packet into the answer to itself, an ICMP error or a TCP reset, and sends it back where it
//! came from.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, bpf_adj_room_mode};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail};
use lb_common::abi::{FlowKey, ServiceIndex};
use lb_common::env::{Balance, Tables};
use lb_common::lb::answer::{AnswerFormat, error_len};
use lb_common::lb::{self, Answer, DropReason};
use lb_common::packet::Packet;
use lb_common::wire::transport::{self, TcpHeader};
use lb_common::wire::{ethernet, icmp, ip};

use crate::env::{Kernel, PacketContext};
use crate::tc::Skb;

/// More than any link, IP and extension headers in front of a transport checksum, bytes.
const SURPLUS: u32 = 256;
/// Any length will do, bytes.
const STEP: u32 = 4;

/// Sends an ICMP error; a packet that can't be turned into one is dropped and counted.
#[inline(always)]
pub fn error<F: AnswerFormat, const IP_OFFSET: u32>(skb: *mut __sk_buff, answer: Answer) -> i32 {
    let mut packet = Skb::<IP_OFFSET>(skb);
    let built = build_error::<F, IP_OFFSET>(&mut packet, answer);
    send(packet, built)
}

/// Sends a TCP reset; a packet that can't be turned into one is dropped and counted.
#[inline(always)]
pub fn reset<F: AnswerFormat, const IP_OFFSET: u32>(
    skb: *mut __sk_buff,
    packet: &Packet<F>,
) -> i32 {
    let mut frame = Skb::<IP_OFFSET>(skb);
    let built = build_reset::<F, IP_OFFSET>(&mut frame, packet);
    send(frame, built)
}

#[inline(always)]
fn send<const IP_OFFSET: u32>(packet: Skb<IP_OFFSET>, built: Option<()>) -> i32 {
    match built {
        // SAFETY: plain numbers.
        Some(()) => unsafe { bpf_redirect(packet.device(), 0) as i32 },
        None => {
            Kernel::new(packet).count_drop(ServiceIndex(0), DropReason::Answer);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn build_error<F: AnswerFormat, const IP_OFFSET: u32>(
    packet: &mut Skb<IP_OFFSET>,
    answer: Answer,
) -> Option<()> {
    let quote: F::Quote = packet.load(IP_OFFSET)?;
    let source: F::Addr = packet.load(IP_OFFSET + F::SOURCE_OFFSET)?;
    let destination: F::Addr = packet.load(IP_OFFSET + F::DESTINATION_OFFSET)?;
    // Back to the sender, from the address that it named.
    let icmp_header = F::icmp(answer, destination, source, &quote);
    turn_round::<F, IP_OFFSET>(packet, destination, source, F::ICMP, error_len::<F>())?;
    let stored = packet.store(IP_OFFSET + F::HEADER_LEN, &icmp_header, Balance::Balanced)
        && packet.store(IP_OFFSET + F::HEADER_LEN + icmp::HEADER_LEN, &quote, Balance::Balanced);
    stored.then_some(())
}

#[inline(always)]
fn build_reset<F: AnswerFormat, const IP_OFFSET: u32>(
    frame: &mut Skb<IP_OFFSET>,
    packet: &Packet<F>,
) -> Option<()> {
    let l4 = packet.transport_offset::<Kernel<Skb<IP_OFFSET>>>();
    let segment: TcpHeader = frame.load(l4)?;
    let headers = l4 - IP_OFFSET + (segment.offset >> 4) as u32 * 4;
    let FlowKey { source, destination, .. } = packet.tuple;
    let payload = packet.length.saturating_sub(headers);
    let reset = lb::answer::reset::<F>(destination, source, &segment, payload);
    let room = transport::TCP_HEADER_LEN;
    turn_round::<F, IP_OFFSET>(frame, destination, source, ip::TCP, room)?;
    frame.store(IP_OFFSET + F::HEADER_LEN, &reset, Balance::Balanced).then_some(())
}

/// Makes the packet one of `payload` bytes, still to be written, behind the link and IP headers of an
/// answer.
#[inline(always)]
fn turn_round<F: AnswerFormat, const IP_OFFSET: u32>(
    packet: &mut Skb<IP_OFFSET>,
    from: F::Addr,
    to: F::Addr,
    protocol: u8,
    payload: u32,
) -> Option<()> {
    let header = F::header(from, to, protocol, payload as u16);
    resize(packet, IP_OFFSET + F::HEADER_LEN + payload)?;
    let stored = packet.store(IP_OFFSET, &header, Balance::Balanced);
    (stored && swap_link_addresses(packet)).then_some(())
}

/// Makes the frame `length` bytes long and forgets what the kernel planned for it as a TCP or UDP
/// packet. All bytes behind the link addresses are written anew by the caller.
///
/// A packet of a local sender, and one that GRO merged, waits for its checksum to be filled in
/// (CHECKSUM_PARTIAL): it can't be cut in front of that place, and the device would still write a
/// checksum into our answer. The kernel gives up that plan when the place is taken away from the
/// front of the packet (include/linux/skbuff.h, skb_postpull_rcsum), so that is what happens here;
/// in two steps, because kernels look before or after they move the start. Setting the tail also ends
/// the plan to split a merged packet.
#[inline(always)]
fn resize<const IP_OFFSET: u32>(packet: &mut Skb<IP_OFFSET>, length: u32) -> Option<()> {
    let mode = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
    // SAFETY: plain numbers; the context is valid.
    unsafe {
        let sized = bpf_skb_change_tail(packet.0, length + SURPLUS + STEP, 0) == 0
            && bpf_skb_adjust_room(packet.0, -(SURPLUS as i32), mode, 0) == 0
            && bpf_skb_adjust_room(packet.0, -(STEP as i32), mode, 0) == 0;
        sized.then_some(())
    }
}

#[inline(always)]
fn swap_link_addresses<const IP_OFFSET: u32>(packet: &mut Skb<IP_OFFSET>) -> bool {
    if IP_OFFSET != ethernet::HEADER_LEN {
        return true;
    }
    let Some([to, from]) = packet.load::<[[u8; 6]; 2]>(0) else {
        return false;
    };
    packet.store(0, &[from, to], Balance::Balanced)
}
