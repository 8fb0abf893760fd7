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
    let room = header_len::<F>();
    let length = IP_OFFSET + room + size_of::<F::Quote>() as u32;
    // SAFETY: plain numbers; the context is valid.
    unsafe {
        let mode = bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
        if bpf_skb_adjust_room(packet.0, room as i32, mode, 0) != 0 {
            return None;
        }
        if bpf_skb_change_tail(packet.0, length, 0) != 0 {
            return None;
        }
    }
    let stored = packet.store(IP_OFFSET, &header, Balance::Balanced)
        && packet.store(IP_OFFSET + F::HEADER_LEN, &icmp_header, Balance::Balanced)
        && packet.store(IP_OFFSET + F::HEADER_LEN + icmp::HEADER_LEN, &quote, Balance::Balanced);
    (stored && swap_link_addresses(packet)).then_some(())
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
