//! Bytes → what the datapath needs to know of a packet. Decides nothing about it.

use bytemuck::{Pod, Zeroable};

use crate::abi::{Flow, FlowKey};
use crate::env::{Env, Frame};
use crate::family::{Addr4, Addr6, Family, V4, V6};
use crate::lb::{Answer, fragment};
use crate::wire::icmp::{self, IcmpHeader};
use crate::wire::ip::{self, Ipv4Header, Ipv6Extension, Ipv6Fragment, Ipv6Header};
use crate::wire::transport::{self, Ports};

/// Extension headers that are walked at most before a packet counts as unknown (RFC 8200 names six
/// kinds; real packets have one or two).
const MAX_EXTENSIONS: u32 = 6;

/// Identity of a fragmented datagram (RFC 791, RFC 8200).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C, align(4))]
pub struct FragmentKey<F: Family> {
    /// Source address.
    pub source: F::Addr,
    /// Destination address.
    pub destination: F::Addr,
    /// Identification as on the wire, widened to 32 bits.
    pub id: u32,
    /// IP protocol number, widened.
    pub protocol: u32,
}

// SAFETY: `repr(C)` over Pod fields of alignment 4; no padding (asserted below).
unsafe impl<F: Family> Zeroable for FragmentKey<F> {}
// SAFETY: as above.
unsafe impl<F: Family> Pod for FragmentKey<F> {}

const _: () = {
    assert!(size_of::<FragmentKey<V4>>() == 2 * size_of::<Addr4>() + 8);
    assert!(size_of::<FragmentKey<V6>>() == 2 * size_of::<Addr6>() + 8);
};

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, with this identification.
    First(u32),
    /// A later fragment, without transport header.
    Later(u32),
}

/// An IP header, with the differences of the families gone.
#[derive(Clone, Copy, Debug)]
pub struct Header<F: Family> {
    /// Source address.
    pub source: F::Addr,
    /// Destination address.
    pub destination: F::Addr,
    /// Protocol of the payload, behind any extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Routers may not fragment it (always so for IPv6).
    pub dont_fragment: bool,
    /// Whole or fragment.
    pub part: Part,
    /// IP length with header, bytes.
    pub length: u32,
    /// Where the payload starts, bytes from the start of the frame.
    pub payload: u32,
}

/// A packet with ports.
#[derive(Clone, Copy, Debug)]
pub struct Packet<F: Family> {
    /// Addresses, ports, protocol.
    pub tuple: FlowKey<F>,
    l4: u32,
    /// Whether it has a transport header (later fragments don't).
    pub has_transport: bool,
    /// Whether all of the datagram is here.
    pub whole: bool,
    /// TCP flags, for SCTP those that say what its first chunk says; 0 for UDP.
    pub flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Routers may not fragment it.
    pub dont_fragment: bool,
    /// IP length with header, bytes.
    pub length: u32,
}

impl<F: Family> Packet<F> {
    /// Where the transport header starts, bytes from the start of the frame; meaningless without
    /// one. A constant where headers are fixed, so that the verifier sees one too.
    #[inline(always)]
    pub fn transport_offset<E: Frame>(&self) -> u32 {
        if E::FIXED_HEADERS { E::IP_OFFSET + F::HEADER_LEN } else { self.l4 }
    }

    /// IP protocol number.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        self.tuple.protocol as u8
    }

    /// Whether a flow of this protocol is a connection, which knows its end and must not be cut.
    #[inline(always)]
    pub fn is_connection(&self) -> bool {
        self.protocol() != ip::UDP
    }

    /// A packet that opens a connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.flags & (transport::SYN | transport::ACK) == transport::SYN
    }
}

/// An ICMP error and the packet that it is about.
#[derive(Clone, Copy, Debug)]
pub struct IcmpError<F: Family> {
    /// Source of the error.
    pub source: F::Addr,
    /// Destination of the error.
    pub destination: F::Addr,
    /// The tuple of the quoted packet, as quoted.
    pub quoted: FlowKey<F>,
    /// Where the ICMP header starts, bytes.
    pub icmp: u32,
    /// Where the quoted IP header starts, bytes.
    pub quoted_l3: u32,
    /// Where the quoted transport header starts, bytes.
    pub quoted_l4: u32,
    /// TTL or hop limit of the error itself.
    pub hop_limit: u8,
    /// IP length of the error, bytes.
    pub length: u32,
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP or UDP, or SCTP in its own program: [`Work::packet`] is filled.
    Transport,
    /// SCTP, which another program carries.
    Sctp,
    /// An ICMP error about one of these: [`Work::error`] is filled.
    Error,
    /// A later fragment that waits for its first one: a copy is kept.
    Parked,
    /// A first fragment that broke while it sent those that waited for it: its addresses are in [`Work::key`].
    Lost,
    /// Anything else, truncated packets included: not ours.
    Unknown,
}

/// Working memory for one packet. A kernel program's stack is 512 bytes, too small for IPv6 tuples
/// by the handful, so everything large lives here: per-CPU memory there, a local on the host.
#[derive(Clone, Copy, Debug)]
pub struct Work<F: Family> {
    /// The packet, if it has ports.
    pub packet: Packet<F>,
    /// The packet, if it is an ICMP error.
    pub error: IcmpError<F>,
    /// The flow entry that the packet found or opens.
    pub entry: Flow<F>,
    /// The entry of the other direction, while it is written.
    pub other: Flow<F>,
    /// The key that is looked up or written.
    pub key: FlowKey<F>,
    /// What the sender is told when the verdict is to answer.
    pub answer: Answer,
    /// Where the packet leaves when the verdict is to forward: an interface index.
    pub device: u32,
    /// Whether the packet opened its flow: 0 or 1.
    pub opened: u32,
}

// SAFETY: every field is valid when all its bytes are zero (integers, bools that are false, and an
// enum whose first variant has the tag zero).
unsafe impl<F: Family> Zeroable for Work<F> {}

/// The part of parsing that differs between the families.
pub trait ReadHeader: Family {
    /// Reads the IP header at `offset`; `None` when it is malformed, truncated or not understood.
    fn read<E: Frame>(frame: &E, offset: u32) -> Option<Header<Self>>;
    /// Whether this ICMP type of the family is an error that quotes a packet.
    fn is_error(kind: u8) -> bool;
}

impl ReadHeader for V4 {
    #[inline(always)]
    fn read<E: Frame>(frame: &E, offset: u32) -> Option<Header<Self>> {
        let header: Ipv4Header = frame.load(offset)?;
        let words = (header.version_ihl & 0xf) as u32;
        if header.version_ihl >> 4 != 4 || words < 5 || (E::FIXED_HEADERS && words != 5) {
            return None;
        }
        let fragment = header.fragment.get();
        let id = header.id.raw() as u32;
        let part = if fragment & ip::FRAGMENT_OFFSET != 0 {
            Part::Later(id)
        } else if fragment & ip::MORE_FRAGMENTS != 0 {
            Part::First(id)
        } else {
            Part::Whole
        };
        Some(Header {
            source: header.source,
            destination: header.destination,
            protocol: header.protocol,
            hop_limit: header.ttl,
            dont_fragment: fragment & ip::DONT_FRAGMENT != 0,
            part,
            length: header.total_len.get() as u32,
            payload: offset + if E::FIXED_HEADERS { Self::HEADER_LEN } else { words * 4 },
        })
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, icmp::V4_UNREACHABLE | icmp::V4_TIME_EXCEEDED | icmp::V4_PARAMETER_PROBLEM)
    }
}

/// Values of [`Walk::fragment`].
const WHOLE: u32 = 0;
const FIRST: u32 = 1;
const LATER: u32 = 2;

/// A walk over IPv6 extension headers. Plain numbers: each step makes them opaque, so that the
/// verifier sees one state behind it, whichever header it was.
struct Walk {
    protocol: u32,
    payload: u32,
    fragment: u32,
    id: u32,
}

impl Walk {
    /// Steps over one header; `Some(false)` when there is none, `None` when it is cut off.
    #[inline(always)]
    fn step<E: Frame>(&mut self, frame: &E) -> Option<bool> {
        match self.protocol as u8 {
            ip::HOP_BY_HOP | ip::ROUTING | ip::DESTINATION_OPTIONS => {
                let extension: Ipv6Extension = frame.load(self.payload)?;
                self.protocol = extension.next_header as u32;
                self.payload += (extension.len as u32 + 1) * 8;
            }
            ip::FRAGMENT => {
                let header: Ipv6Fragment = frame.load(self.payload)?;
                self.protocol = header.next_header as u32;
                self.payload += 8;
                self.id = header.id;
                let offset_more = header.offset_more.get();
                self.fragment = match (offset_more >> 3, offset_more & 1) {
                    (0, 0) => WHOLE,
                    (0, _) => FIRST,
                    (_, _) => LATER,
                };
            }
            _ => return Some(false),
        }
        self.protocol = frame.opaque(self.protocol)?;
        self.payload = frame.opaque(self.payload)?;
        self.fragment = frame.opaque(self.fragment)?;
        self.id = frame.opaque(self.id)?;
        Some(true)
    }
}

impl ReadHeader for V6 {
    #[inline(always)]
    fn read<E: Frame>(frame: &E, offset: u32) -> Option<Header<Self>> {
        let header: Ipv6Header = frame.load(offset)?;
        if (u32::from_be(header.version_class_flow) >> 28) != 6 {
            return None;
        }
        let mut walk = Walk {
            protocol: header.next_header as u32,
            payload: offset + Self::HEADER_LEN,
            fragment: WHOLE,
            id: 0,
        };
        if !E::FIXED_HEADERS {
            // Bounded, so that the verifier can follow; a longer chain is nobody's honest packet.
            for _ in 0..MAX_EXTENSIONS {
                if walk.fragment == LATER || !walk.step(frame)? {
                    break;
                }
            }
        }
        Some(Header {
            source: header.source,
            destination: header.destination,
            protocol: walk.protocol as u8,
            hop_limit: header.hop_limit,
            dont_fragment: true,
            part: match walk.fragment {
                FIRST => Part::First(walk.id),
                LATER => Part::Later(walk.id),
                _ => Part::Whole,
            },
            length: header.payload_len.get() as u32 + Self::HEADER_LEN,
            payload: walk.payload,
        })
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(
            kind,
            icmp::V6_UNREACHABLE
                | icmp::V6_PACKET_TOO_BIG
                | icmp::V6_TIME_EXCEEDED
                | icmp::V6_PARAMETER_PROBLEM
        )
    }
}

/// Reads the frame.
#[inline(always)]
pub fn parse<F: ReadHeader, E: Env<F>>(env: &mut E, work: &mut Work<F>) -> Kind {
    let l3 = E::IP_OFFSET;
    let Some(header) = F::read(env, l3) else {
        return Kind::Unknown;
    };
    match header.protocol {
        // XDP leaves it to tc, which has a program for it.
        ip::SCTP if !E::SCTP => {
            if E::FIXED_HEADERS {
                Kind::Unknown
            } else {
                Kind::Sctp
            }
        }
        ip::TCP | ip::UDP if E::SCTP => Kind::Unknown,
        ip::TCP | ip::UDP | ip::SCTP => match transport_packet(env, &header) {
            Ok(packet) => {
                work.packet = packet;
                Kind::Transport
            }
            Err(kind) => {
                if kind == Kind::Lost {
                    work.key = tuple(&header, Ports::default());
                }
                kind
            }
        },
        protocol if protocol == F::ICMP && !E::SCTP => match icmp_error(env, &header) {
            Some(error) => {
                work.error = error;
                Kind::Error
            }
            None => Kind::Unknown,
        },
        _ => Kind::Unknown,
    }
}

#[inline(always)]
fn tuple<F: Family>(header: &Header<F>, ports: Ports) -> FlowKey<F> {
    FlowKey {
        source: header.source,
        destination: header.destination,
        source_port: ports.source,
        destination_port: ports.destination,
        protocol: header.protocol as u32,
    }
}

#[inline(always)]
fn transport_packet<F: ReadHeader, E: Env<F>>(
    env: &mut E,
    header: &Header<F>,
) -> Result<Packet<F>, Kind> {
    if E::FIXED_HEADERS && header.part != Part::Whole {
        return Err(Kind::Unknown);
    }
    let mut flags = 0;
    let ports = match header.part {
        Part::Later(id) => fragment::ports(env, &fragment_key(header, id))?,
        Part::Whole | Part::First(_) => {
            if E::SCTP {
                let chunk = env.load::<u8>(header.payload + transport::SCTP_CHUNK_OFFSET);
                flags = transport::flags_of_chunk(chunk.ok_or(Kind::Unknown)?);
            } else if header.protocol == ip::TCP {
                let byte = env.load::<u8>(header.payload + transport::TCP_FLAGS_OFFSET);
                flags = byte.ok_or(Kind::Unknown)?;
            }
            env.load::<Ports>(header.payload).ok_or(Kind::Unknown)?
        }
    };
    if let Part::First(id) = header.part {
        let datagram = fragment_key(header, id);
        env.remember_fragment(&datagram, &ports);
        if !fragment::release(env, &datagram) {
            return Err(Kind::Lost);
        }
    }
    Ok(Packet {
        tuple: tuple(header, ports),
        l4: header.payload,
        has_transport: !matches!(header.part, Part::Later(_)),
        whole: header.part == Part::Whole,
        flags,
        hop_limit: header.hop_limit,
        dont_fragment: header.dont_fragment,
        length: header.length,
    })
}

#[inline(always)]
fn fragment_key<F: Family>(header: &Header<F>, id: u32) -> FragmentKey<F> {
    FragmentKey {
        source: header.source,
        destination: header.destination,
        id,
        protocol: header.protocol as u32,
    }
}

#[inline(always)]
fn icmp_error<F: ReadHeader, E: Env<F>>(env: &mut E, header: &Header<F>) -> Option<IcmpError<F>> {
    if E::FIXED_HEADERS || header.part != Part::Whole {
        // Errors are rare; XDP leaves them to tc.
        return None;
    }
    let icmp: IcmpHeader = env.load(header.payload)?;
    if !F::is_error(icmp.kind) {
        return None;
    }
    let quoted_l3 = header.payload + icmp::HEADER_LEN;
    let quoted = F::read(env, quoted_l3)?;
    if !matches!(quoted.protocol, ip::TCP | ip::UDP | ip::SCTP)
        || matches!(quoted.part, Part::Later(_))
    {
        return None;
    }
    let ports: Ports = env.load(quoted.payload)?;
    Some(IcmpError {
        source: header.source,
        destination: header.destination,
        quoted: tuple(&quoted, ports),
        icmp: header.payload,
        quoted_l3,
        quoted_l4: quoted.payload,
        hop_limit: header.hop_limit,
        length: header.length,
    })
}
