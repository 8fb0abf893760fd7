//! Turns a packet into the answer to itself, an ICMP error or a TCP reset, and sends it back where it
//! came from.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC, bpf_adj_room_mode};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail};
use lb_common::abi::FlowKey;
use lb_common::env::Balance;
use lb_common::lb::answer::{AnswerFormat, error_len};
use lb_common::lb::{self, Answer, LOOPBACK};
use lb_common::packet::Packet;
use lb_common::wire::transport::{self, TcpHeader};
use lb_common::wire::{ethernet, icmp, ip};

use crate::env::{Kernel, PacketContext};
use crate::tc::{self, Skb};

/// What becomes the answer. Which hook it met makes no difference any more.
type Frame<const IP_OFFSET: u32> = Skb<IP_OFFSET, false, false, false>;

/// More than any link, IP and extension headers in front of a transport checksum, bytes.
const SURPLUS: u32 = 256;
/// Any length will do, bytes.
const STEP: u32 = 4;

/// Sends an ICMP error; `None` for a packet that can't be turned into one. `towards`: flags of
/// `bpf_redirect`, as the sender is behind the device or this node.
#[inline(always)]
pub fn error<F: AnswerFormat, const IP_OFFSET: u32>(
    skb: *mut __sk_buff,
    answer: Answer,
    towards: u64,
) -> Option<i32> {
    let mut packet = Skb::<IP_OFFSET, false, false, false>(skb);
    build_error::<F, IP_OFFSET>(&mut packet, answer)?;
    Some(send(&packet, towards))
}

/// Sends a TCP reset; `None` for a packet that can't be turned into one.
#[inline(always)]
pub fn reset<F: AnswerFormat, const IP_OFFSET: u32>(
    skb: *mut __sk_buff,
    packet: &Packet<F>,
) -> Option<i32> {
    let mut frame = Skb::<IP_OFFSET, false, false, false>(skb);
    build_reset::<F, IP_OFFSET>(&mut frame, packet)?;
    Some(send(&frame, tc::OUTWARDS))
}

#[inline(always)]
fn send<const IP_OFFSET: u32>(packet: &Frame<IP_OFFSET>, towards: u64) -> i32 {
    // It is on the way to this node, and an answer from an address of this node's enters nowhere else.
    if packet.device() == LOOPBACK {
        return TC_ACT_UNSPEC;
    }
    if IP_OFFSET == 0 && towards == tc::OUTWARDS {
        return tc::redirect_by_route(packet, packet.device());
    }
    // SAFETY: plain numbers.
    unsafe { bpf_redirect(packet.device(), towards) as i32 }
}

#[inline(always)]
fn build_error<F: AnswerFormat, const IP_OFFSET: u32>(
    packet: &mut Frame<IP_OFFSET>,
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
    frame: &mut Frame<IP_OFFSET>,
    packet: &Packet<F>,
) -> Option<()> {
    let l4 = packet.transport_offset::<Kernel<Frame<IP_OFFSET>>>();
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
    packet: &mut Frame<IP_OFFSET>,
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
fn resize<const IP_OFFSET: u32>(packet: &mut Frame<IP_OFFSET>, length: u32) -> Option<()> {
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
fn swap_link_addresses<const IP_OFFSET: u32>(packet: &mut Frame<IP_OFFSET>) -> bool {
    if IP_OFFSET != ethernet::HEADER_LEN {
        return true;
    }
    let Some([to, from]) = packet.load::<[[u8; 6]; 2]>(0) else {
        return false;
    };
    packet.store(0, &[from, to], Balance::Balanced)
}
