//! Turns a packet into an ICMP error about itself and sends it back where it came from.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, bpf_adj_room_mode};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail};
use lb_common::abi::ServiceIndex;
use lb_common::env::{Balance, Tables};
use lb_common::lb::answer::{AnswerFormat, header_len};
use lb_common::lb::{Answer, DropReason};
use lb_common::wire::{ethernet, icmp};

use crate::env::{Kernel, PacketContext};
use crate::tc::Skb;

/// More than any link, IP and extension headers in front of a transport checksum, bytes.
const SURPLUS: u32 = 256;
/// Any length will do, bytes.
const STEP: u32 = 4;

/// Sends the answer; a packet that can't be turned into one is dropped and counted.
#[inline(always)]
pub fn send<F: AnswerFormat, const IP_OFFSET: u32>(skb: *mut __sk_buff, answer: Answer) -> i32 {
    let mut packet = Skb::<IP_OFFSET>(skb);
    match build::<F, IP_OFFSET>(&mut packet, answer) {
        // SAFETY: plain numbers.
        Some(()) => unsafe { bpf_redirect(packet.device(), 0) as i32 },
        None => {
            Kernel::new(packet).count_drop(ServiceIndex(0), DropReason::Answer);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn build<F: AnswerFormat, const IP_OFFSET: u32>(
    packet: &mut Skb<IP_OFFSET>,
    answer: Answer,
) -> Option<()> {
    let quote: F::Quote = packet.load(IP_OFFSET)?;
    let source: F::Addr = packet.load(IP_OFFSET + F::SOURCE_OFFSET)?;
    let destination: F::Addr = packet.load(IP_OFFSET + F::DESTINATION_OFFSET)?;
    // Back to the sender, from the address that it named.
    let (header, icmp_header) = F::headers(answer, destination, source, &quote);
    let length = IP_OFFSET + header_len::<F>() + size_of::<F::Quote>() as u32;
    resize(packet, length)?;
    let stored = packet.store(IP_OFFSET, &header, Balance::Balanced)
        && packet.store(IP_OFFSET + F::HEADER_LEN, &icmp_header, Balance::Balanced)
        && packet.store(IP_OFFSET + F::HEADER_LEN + icmp::HEADER_LEN, &quote, Balance::Balanced);
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
