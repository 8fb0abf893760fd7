//! Frames, written with etherparse: headers and full checksums, independent of the datapath's own code.
//!
//! A test writes what goes in and, with other addresses, what must come out; both are whole frames.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::vec::Vec;

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options,
    Ipv6FragmentHeader, Ipv6Header, TcpHeader, UdpHeader,
};

/// Link addresses of every frame: destination, source.
pub const LINK: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

/// Sequence number of every segment, verification tag of every SCTP packet.
const SEQUENCE: u32 = 0x0102_0304;
/// Acknowledgment number of every segment.
const ACKNOWLEDGED: u32 = 0x0a0b_0c0d;

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with these flags.
    Tcp(u8),
    /// UDP.
    Udp,
    /// UDP whose checksum field is zero.
    UdpWithoutChecksum,
    /// SCTP with a chunk of this type.
    Sctp(u8),
    /// The same, as a kernel hands it to a device that is to fill in the checksum.
    SctpWithoutChecksum(u8),
}

impl Transport {
    /// IP protocol number.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp(_) => 6,
            Self::Udp | Self::UdpWithoutChecksum => 17,
            Self::Sctp(_) | Self::SctpWithoutChecksum(_) => 132,
        }
    }

    /// Length of the transport header, bytes; for SCTP with that of the chunk.
    pub const fn header_len(self) -> usize {
        match self {
            Self::Tcp(_) => 20,
            Self::Udp | Self::UdpWithoutChecksum => 8,
            Self::Sctp(_) | Self::SctpWithoutChecksum(_) => 16,
        }
    }

    const fn checksum_len(self) -> usize {
        match self {
            Self::Sctp(_) | Self::SctpWithoutChecksum(_) => 4,
            Self::Tcp(_) | Self::Udp | Self::UdpWithoutChecksum => 2,
        }
    }

    const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp(_) => 16,
            Self::Udp | Self::UdpWithoutChecksum => 6,
            Self::Sctp(_) | Self::SctpWithoutChecksum(_) => 8,
        }
    }
}

/// Which piece of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    pub id: u16,
    /// Where the piece starts in the datagram, units of 8 bytes; only 0 has a transport header.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
}

/// A TCP segment, a UDP datagram or an SCTP packet, or a fragment of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source.
    pub source: SocketAddr,
    /// Destination, of the same family.
    pub destination: SocketAddr,
    /// What it carries.
    pub transport: Transport,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// The "don't fragment" bit (IPv4).
    pub dont_fragment: bool,
    /// A fragment.
    pub fragment: Option<Fragment>,
    /// IPv4: words of options. IPv6: extension headers of 8 bytes each (hop-by-hop, then destination
    /// options).
    pub extras: usize,
    /// The bytes behind the transport header; for SCTP whole words.
    pub payload: Vec<u8>,
}

impl Segment {
    /// A plain packet from `source` to `destination`.
    pub fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        Self {
            source,
            destination,
            transport,
            hop_limit: 64,
            dont_fragment: true,
            fragment: None,
            extras: 0,
            payload: (0..32).collect(),
        }
    }

    /// The same packet between other addresses, with this hop limit.
    #[must_use]
    pub fn between(&self, source: SocketAddr, destination: SocketAddr, hop_limit: u8) -> Self {
        Self { source, destination, hop_limit, ..self.clone() }
    }

    /// An answer to this packet, with these TCP flags.
    #[must_use]
    pub fn reply(&self, flags: u8) -> Self {
        let transport = match self.transport {
            Transport::Tcp(_) => Transport::Tcp(flags),
            other @ (Transport::Udp
            | Transport::UdpWithoutChecksum
            | Transport::Sctp(_)
            | Transport::SctpWithoutChecksum(_)) => other,
        };
        Self { source: self.destination, destination: self.source, transport, ..self.clone() }
    }

    /// The packet of a datapath that refuses this TCP segment with a reset.
    pub fn reset(&self) -> Vec<u8> {
        let mut tcp = TcpHeader::new(self.destination.port(), self.source.port(), 0, 0);
        tcp.rst = true;
        match self.transport {
            Transport::Tcp(flags) if flags & 0x10 != 0 => {
                tcp.sequence_number = ACKNOWLEDGED;
            }
            Transport::Tcp(flags) => {
                let counted = u32::from(flags & 0x02 != 0) + u32::from(flags & 0x01 != 0);
                tcp.ack = true;
                tcp.acknowledgment_number = SEQUENCE + self.payload.len() as u32 + counted;
            }
            Transport::Udp
            | Transport::UdpWithoutChecksum
            | Transport::Sctp(_)
            | Transport::SctpWithoutChecksum(_) => {}
        }
        let (from, to) = (self.destination.ip(), self.source.ip());
        let sum = pseudo_header(from, to, 6, 20).add_slice(&tcp.to_bytes()).ones_complement();
        tcp.checksum = sum.to_be();
        let mut packet = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => own_header4(from, to, 6, 20),
            (from, to) => ipv6_header(v6(from), v6(to), 6, 64, 20),
        };
        packet.extend_from_slice(&tcp.to_bytes());
        packet
    }

    /// The frame with its Ethernet header.
    pub fn frame(&self) -> Vec<u8> {
        with_link(self.source.is_ipv4(), &self.packet())
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let body = self.body();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = self.header4(source, destination, body.len());
                packet.extend(body);
                packet
            }
            (source, destination) => {
                let mut packet = self.header6(v6(source), v6(destination), body.len());
                packet.extend(body);
                packet
            }
        }
    }

    /// The start of this packet as an ICMP error about it quotes it, at most `len` bytes, with the
    /// addresses replaced but the transport checksum as it was.
    pub fn quote(&self, source: SocketAddr, destination: SocketAddr, len: usize) -> Vec<u8> {
        let original = self.packet();
        let mut quoted = self.between(source, destination, self.hop_limit).packet();
        let at = quoted.len() - self.payload.len() - self.transport.header_len()
            + self.transport.checksum_offset();
        for (to, from) in
            quoted.iter_mut().zip(&original).skip(at).take(self.transport.checksum_len())
        {
            *to = *from;
        }
        quoted.truncate(len);
        quoted
    }

    /// Transport header, when the piece has one, and payload.
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        if self.fragment.is_none_or(|piece| piece.offset == 0) {
            body.extend(self.transport_header());
        }
        body.extend(&self.payload);
        body
    }

    fn transport_header(&self) -> Vec<u8> {
        let (source_port, destination_port) = (self.source.port(), self.destination.port());
        let length = self.transport.header_len() + self.payload.len();
        let header = |checksum: u16| -> Vec<u8> {
            match self.transport {
                Transport::Tcp(flags) => {
                    let mut tcp = TcpHeader::new(source_port, destination_port, SEQUENCE, 8192);
                    tcp.acknowledgment_number = ACKNOWLEDGED;
                    tcp.fin = flags & 0x01 != 0;
                    tcp.syn = flags & 0x02 != 0;
                    tcp.rst = flags & 0x04 != 0;
                    tcp.ack = flags & 0x10 != 0;
                    tcp.checksum = checksum;
                    tcp.to_bytes().to_vec()
                }
                Transport::Udp | Transport::UdpWithoutChecksum => {
                    let length = length as u16;
                    UdpHeader { source_port, destination_port, length, checksum }
                        .to_bytes()
                        .to_vec()
                }
                Transport::Sctp(chunk) | Transport::SctpWithoutChecksum(chunk) => {
                    self.sctp_header(chunk)
                }
            }
        };
        match self.transport {
            Transport::UdpWithoutChecksum | Transport::SctpWithoutChecksum(_) => return header(0),
            Transport::Sctp(_) => {
                let mut header = header(0);
                let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
                let sum = crc.checksum(&[&header[..], &self.payload[..]].concat());
                for (to, from) in header.iter_mut().skip(8).zip(sum.to_le_bytes()) {
                    *to = from;
                }
                return header;
            }
            Transport::Tcp(_) | Transport::Udp => {}
        }
        let protocol = self.transport.protocol();
        let sum = pseudo_header(self.source.ip(), self.destination.ip(), protocol, length)
            .add_slice(&header(0))
            .add_slice(&self.payload)
            .ones_complement()
            .to_be();
        // A UDP checksum of zero would mean "none" (RFC 768).
        header(if sum == 0 && self.transport == Transport::Udp { 0xffff } else { sum })
    }

    /// Common header without checksum, and the header of a chunk that holds the payload.
    fn sctp_header(&self, chunk: u8) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend(self.source.port().to_be_bytes());
        header.extend(self.destination.port().to_be_bytes());
        header.extend(SEQUENCE.to_be_bytes());
        header.extend([0; 4]);
        header.extend([chunk, 0]);
        header.extend((4 + self.payload.len() as u16).to_be_bytes());
        header
    }

    fn header4(&self, source: Ipv4Addr, destination: Ipv4Addr, body: usize) -> Vec<u8> {
        // Option "no operation". There is room for ten words; more are left out.
        let options: Vec<u8> = std::vec![1; self.extras * 4];
        let mut header = Ipv4Header {
            options: Ipv4Options::try_from(options.as_slice()).unwrap_or_default(),
            total_len: (20 + self.extras * 4 + body) as u16,
            identification: self.fragment.map_or(0x1234, |piece| piece.id),
            dont_fragment: self.dont_fragment && self.fragment.is_none(),
            more_fragments: self.fragment.is_some_and(|piece| piece.more),
            fragment_offset: self
                .fragment
                .and_then(|piece| IpFragOffset::try_new(piece.offset).ok())
                .unwrap_or_default(),
            time_to_live: self.hop_limit,
            protocol: IpNumber(self.transport.protocol()),
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv4Header::default()
        };
        header.header_checksum = header.calc_header_checksum();
        header.to_bytes().to_vec()
    }

    fn header6(&self, source: Ipv6Addr, destination: Ipv6Addr, body: usize) -> Vec<u8> {
        const HOP_BY_HOP: u8 = 0;
        const FRAGMENT: u8 = 44;
        const DESTINATION_OPTIONS: u8 = 60;
        let mut kinds: Vec<u8> = (0..self.extras)
            .map(|at| if at == 0 { HOP_BY_HOP } else { DESTINATION_OPTIONS })
            .collect();
        if self.fragment.is_some() {
            kinds.push(FRAGMENT);
        }
        kinds.push(self.transport.protocol());
        let mut bytes = Vec::new();
        for pair in kinds.windows(2) {
            if let [kind, next] = pair {
                match self.fragment.filter(|_| *kind == FRAGMENT) {
                    Some(piece) => bytes.extend(fragment_header(*next, piece)),
                    // Padding option of four bytes.
                    None => bytes.extend([*next, 0, 1, 4, 0, 0, 0, 0]),
                }
            }
        }
        let mut packet = ipv6_header(
            source,
            destination,
            kinds.first().copied().unwrap_or_default(),
            self.hop_limit,
            bytes.len() + body,
        );
        packet.extend(bytes);
        packet
    }
}

fn fragment_header(next: u8, piece: Fragment) -> [u8; 8] {
    let offset = IpFragOffset::try_new(piece.offset).unwrap_or_default();
    Ipv6FragmentHeader::new(IpNumber(next), offset, piece.more, piece.id.into()).to_bytes()
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Nobody listens on the port.
    PortUnreachable,
    /// The packet is longer than this MTU, bytes.
    TooBig(u16),
    /// The hop limit ran out.
    TimeExceeded,
}

/// An ICMP or ICMPv6 error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Who says it.
    pub source: IpAddr,
    /// Who is told.
    pub destination: IpAddr,
    /// What.
    pub problem: Problem,
    /// About which packet: its first bytes.
    pub quote: Vec<u8>,
    /// TTL or hop limit of the error itself.
    pub hop_limit: u8,
    /// Identification and "don't fragment" as a datapath writes them that sends the error itself.
    pub own: bool,
}

impl IcmpError {
    /// The frame with its Ethernet header.
    pub fn frame(&self) -> Vec<u8> {
        with_link(self.source.is_ipv4(), &self.packet())
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.packet4(source, destination),
            (source, destination) => self.packet6(v6(source), v6(destination)),
        }
    }

    fn packet4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let [high, low] = match self.problem {
            Problem::TooBig(mtu) => mtu.to_be_bytes(),
            Problem::PortUnreachable | Problem::TimeExceeded => [0; 2],
        };
        let (kind, code) = match self.problem {
            Problem::PortUnreachable => (3, 3),
            Problem::TooBig(_) => (3, 4),
            Problem::TimeExceeded => (11, 0),
        };
        let message = self.message(Sum16BitWords::new(), [kind, code, 0, 0, 0, 0, high, low]);
        let mut header = Ipv4Header {
            total_len: (20 + message.len()) as u16,
            identification: if self.own { 0 } else { 0x4321 },
            dont_fragment: false,
            time_to_live: self.hop_limit,
            protocol: IpNumber(1),
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv4Header::default()
        };
        header.header_checksum = header.calc_header_checksum();
        let mut packet = header.to_bytes().to_vec();
        packet.extend(message);
        packet
    }

    fn packet6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let [high, low] = match self.problem {
            Problem::TooBig(mtu) => mtu.to_be_bytes(),
            Problem::PortUnreachable | Problem::TimeExceeded => [0; 2],
        };
        let (kind, code) = match self.problem {
            Problem::PortUnreachable => (1, 4),
            Problem::TooBig(_) => (2, 0),
            Problem::TimeExceeded => (3, 0),
        };
        let length = 8 + self.quote.len();
        let pseudo = pseudo_header(source.into(), destination.into(), 58, length);
        let message = self.message(pseudo, [kind, code, 0, 0, 0, 0, high, low]);
        let mut packet = ipv6_header(source, destination, 58, self.hop_limit, length);
        packet.extend(message);
        packet
    }

    fn message(&self, pseudo: Sum16BitWords, mut header: [u8; 8]) -> Vec<u8> {
        let sum = pseudo.add_slice(&header).add_slice(&self.quote).ones_complement();
        let [high, low] = sum.to_ne_bytes();
        header[2] = high;
        header[3] = low;
        let mut message = header.to_vec();
        message.extend(&self.quote);
        message
    }
}

/// An Ethernet header in front of an IP packet.
pub fn with_link(ipv4: bool, packet: &[u8]) -> Vec<u8> {
    let [destination, source] = LINK;
    let ether_type = if ipv4 { EtherType::IPV4 } else { EtherType::IPV6 };
    let mut frame = Ethernet2Header { source, destination, ether_type }.to_bytes().to_vec();
    frame.extend(packet);
    frame
}

/// The frame with its link addresses exchanged, as an answer to it has them.
pub fn returned(mut frame: Vec<u8>) -> Vec<u8> {
    frame.get_mut(..12).into_iter().for_each(|addresses| addresses.rotate_left(6));
    frame
}

/// Without identification and "don't fragment", as a datapath writes it that sends the packet itself.
fn own_header4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: usize) -> Vec<u8> {
    let mut header = Ipv4Header {
        total_len: (20 + payload) as u16,
        dont_fragment: false,
        time_to_live: 64,
        protocol: IpNumber(protocol),
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv4Header::default()
    };
    header.header_checksum = header.calc_header_checksum();
    header.to_bytes().to_vec()
}

fn ipv6_header(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next: u8,
    hop_limit: u8,
    payload: usize,
) -> Vec<u8> {
    Ipv6Header {
        payload_length: payload as u16,
        next_header: IpNumber(next),
        hop_limit,
        source: source.octets(),
        destination: destination.octets(),
        ..Ipv6Header::default()
    }
    .to_bytes()
    .to_vec()
}

fn pseudo_header(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    length: usize,
) -> Sum16BitWords {
    let mut sum = Sum16BitWords::new();
    sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            sum.add_4bytes(source.octets()).add_4bytes(destination.octets())
        }
        (source, destination) => {
            sum.add_16bytes(v6(source).octets()).add_16bytes(v6(destination).octets())
        }
    };
    sum.add_2bytes([0, protocol]).add_4bytes((length as u32).to_be_bytes())
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}
