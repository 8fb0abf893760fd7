//! FLOWS4 and FLOWS6: what was decided for a flow, found from either of its directions.

use bytemuck::{Pod, Zeroable};

use super::{BackendIndex, ServiceIndex};
use crate::bytes::Be16;
use crate::family::{Family, V4, V6};

/// A 5-tuple as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FlowKey<F: Family> {
    /// Source address.
    pub source: F::Addr,
    /// Destination address.
    pub destination: F::Addr,
    /// Source port.
    pub source_port: Be16,
    /// Destination port.
    pub destination_port: Be16,
    /// IP protocol number, widened so that there is no padding.
    pub protocol: u32,
}

impl<F: Family> Default for FlowKey<F> {
    fn default() -> Self {
        Zeroable::zeroed()
    }
}

impl<F: Family> FlowKey<F> {
    /// Copies every field; see [`Flow::copy_from`].
    #[inline(always)]
    pub fn copy_from(&mut self, from: &Self) {
        let Self { source, destination, source_port, destination_port, protocol } = from;
        F::copy(&mut self.source, source);
        F::copy(&mut self.destination, destination);
        self.source_port = *source_port;
        self.destination_port = *destination_port;
        self.protocol = *protocol;
    }

    /// The tuple of packets that answer this one.
    #[inline(always)]
    #[must_use]
    pub fn inverse(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// One direction of a flow: how its packets are rewritten.
///
/// Both directions are entries of their own, and each holds what is needed to write the other
/// again: the key of the other is the inverse of `translated`, and its `translated` is the inverse
/// of this key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Flow<F: Family> {
    /// The tuple that packets of this direction leave with.
    pub translated: FlowKey<F>,
    /// The chosen backend.
    pub backend: BackendIndex,
    /// Its generation when it was chosen.
    pub generation: u32,
    /// The Service port.
    pub service: ServiceIndex,
    /// Time of the last packet, in ticks ([`crate::env::TICK_NANOSECONDS`]), renewed about once a second.
    pub last_seen: u32,
    /// Bits of [`FlowFlags`].
    pub flags: u32,
    /// Index of a device, 0 when unknown: that through which a forwarded flow was first sent; of another that
    /// through which its client's first packet came in.
    pub device: u32,
}

impl<F: Family> Flow<F> {
    /// Copies every field. Assigning the whole makes the compiler call `memmove` for IPv6: a loop
    /// over bytes, in a function of its own, behind which the verifier of Linux 6.1 tells no two
    /// states apart as equal.
    #[inline(always)]
    pub fn copy_from(&mut self, from: &Self) {
        let Self { translated, backend, generation, service, last_seen, flags, device } = from;
        self.translated.copy_from(translated);
        self.backend = *backend;
        self.generation = *generation;
        self.service = *service;
        self.last_seen = *last_seen;
        self.flags = *flags;
        self.device = *device;
    }
}

/// Bits of [`Flow::flags`].
pub struct FlowFlags;

impl FlowFlags {
    /// This entry is the reply direction (backend to client).
    pub const REPLY: u32 = 1;
    /// The client or the backend is on this node: packets pass its stack, and are rewritten where they
    /// come in, replies where they leave. Without it the flow is forwarded in both directions by us.
    pub const LOCAL: u32 = 1 << 1;
    /// A TCP FIN was seen in this direction.
    pub const FIN: u32 = 1 << 2;
    /// A TCP RST was seen in this direction.
    pub const RST: u32 = 1 << 3;
    /// A reply was seen (kept in both entries).
    pub const ANSWERED: u32 = 1 << 4;
    /// Another proxy's: its packets are passed on untouched, in both directions. It has one entry, whose
    /// `translated` is the inverse of its key, so that it is its own other direction; backend 0 when
    /// nobody knows where it goes.
    pub const FOREIGN: u32 = 1 << 5;
    /// The client is a process of this node that no socket hook serves (SCTP): its packets are rewritten
    /// where they would leave, and sent on by us; replies where they come in, and go up the stack. With
    /// [`LOCAL`](Self::LOCAL) its address is kept, as the backend is a pod of this node, or has an
    /// address of the node's own.
    pub const FROM_NODE: u32 = 1 << 6;
    /// Nothing says yet that more will come: a connection whose client hasn't answered the backend's
    /// answer, or datagrams within one second. What conntrack has before IPS_ASSURED; kept in both
    /// entries, and not set in entries of agents that didn't know it.
    pub const UNASSURED: u32 = 1 << 7;
    /// A TCP FIN was seen in the other direction.
    pub const OTHER_FIN: u32 = 1 << 8;

    /// Whether neither side sends anything any more, but for the last acknowledgments.
    #[inline(always)]
    #[must_use]
    pub const fn has_ended(flags: u32) -> bool {
        const BOTH: u32 = FlowFlags::FIN | FlowFlags::OTHER_FIN;
        flags & Self::RST != 0 || flags & BOTH == BOTH
    }
}

// SAFETY: `repr(C)` over Pod fields of alignment 4 or 2 in pairs; the const assertions below prove
// that neither instantiation has padding.
unsafe impl<F: Family> Zeroable for FlowKey<F> {}
// SAFETY: as above.
unsafe impl<F: Family> Pod for FlowKey<F> {}
// SAFETY: as above.
unsafe impl<F: Family> Zeroable for Flow<F> {}
// SAFETY: as above.
unsafe impl<F: Family> Pod for Flow<F> {}

const _: () = {
    assert!(size_of::<FlowKey<V4>>() == 4 + 4 + 2 + 2 + 4);
    assert!(size_of::<FlowKey<V6>>() == 16 + 16 + 2 + 2 + 4);
    assert!(size_of::<Flow<V4>>() == size_of::<FlowKey<V4>>() + 24);
    assert!(size_of::<Flow<V6>>() == size_of::<FlowKey<V6>>() + 24);
};
