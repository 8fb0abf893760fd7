//! The flows whose destination the kernel's NAT translates, as conntrack has them
//! (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;

use super::netlink::{Netfilter, attribute, find, is_absent};
use crate::cluster::snapshot::Protocol;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const STATUS_MASK: u16 = 26;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 1 << 5;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its opening packet may come again.
    Opening,
    /// Open; datagrams always are.
    Open,
    /// One side has said that it ends, or both.
    Closing,
}

/// A flow with a translated destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who opened it.
    pub client: SocketAddr,
    /// The address that the client named.
    pub frontend: SocketAddr,
    /// Where it leads.
    pub backend: SocketAddr,
    /// Where the backend answers to: the client, or an address that masquerades it.
    pub answered: SocketAddr,
    /// How far it is.
    pub stage: Stage,
}

/// All flows with a translated destination, of both families.
pub fn translated() -> Result<Vec<Translated>, Errno> {
    let mut filter = attribute(STATUS, &DST_NAT.to_be_bytes());
    filter.extend(attribute(STATUS_MASK, &DST_NAT.to_be_bytes()));
    let mut flows = Vec::new();
    // Entries come and go while they are listed: a dump of conntrack is never torn, only old.
    let dumped = Netfilter::open().and_then(|mut netfilter| {
        netfilter.dump(GET, 0, &filter, |_, attributes| flows.extend(flow(attributes)))
    });
    match dumped {
        Err(errno) if !is_absent(errno) => Err(errno),
        Ok(()) | Err(_) => Ok(flows),
    }
}

fn flow(attributes: &[u8]) -> Option<Translated> {
    let status = u32::from_be_bytes(*find(attributes, STATUS)?.first_chunk()?);
    // Kernels before 5.15 don't filter.
    if status & DST_NAT == 0 {
        return None;
    }
    let (protocol, client, frontend) = tuple(find(attributes, TUPLE_ORIGINAL)?)?;
    let (_, backend, answered) = tuple(find(attributes, TUPLE_REPLY)?)?;
    let stage = stage(protocol, find(attributes, PROTOCOL_INFO).unwrap_or_default());
    Some(Translated { protocol, client, frontend, backend, answered, stage })
}

/// Protocol, source and destination.
fn tuple(attributes: &[u8]) -> Option<(Protocol, SocketAddr, SocketAddr)> {
    let (addresses, transport) = (find(attributes, 1)?, find(attributes, 2)?);
    let address = |v4, v6| match (find(addresses, v4), find(addresses, v6)) {
        (Some(bytes), _) => Some(IpAddr::from(Ipv4Addr::from(*bytes.first_chunk::<4>()?))),
        (None, Some(bytes)) => Some(IpAddr::from(Ipv6Addr::from(*bytes.first_chunk::<16>()?))),
        (None, None) => None,
    };
    let port = |kind| Some(u16::from_be_bytes(*find(transport, kind)?.first_chunk()?));
    let protocol = match i32::from(*find(transport, 1)?.first()?) {
        libc::IPPROTO_TCP => Protocol::Tcp,
        libc::IPPROTO_UDP => Protocol::Udp,
        libc::IPPROTO_SCTP => Protocol::Sctp,
        _ => return None,
    };
    let source = SocketAddr::new(address(1, 3)?, port(2)?);
    Some((protocol, source, SocketAddr::new(address(2, 4)?, port(3)?)))
}

/// The states are those of nf_conntrack_tcp.h and nf_conntrack_sctp.h.
fn stage(protocol: Protocol, info: &[u8]) -> Stage {
    let state = |kind| find(info, kind).and_then(|info| find(info, 1)?.first().copied());
    match protocol {
        Protocol::Tcp => match state(1) {
            Some(1 | 2 | 9) => Stage::Opening,
            Some(4..=8) => Stage::Closing,
            _ => Stage::Open,
        },
        Protocol::Sctp => match state(3) {
            Some(2 | 3) => Stage::Opening,
            Some(1 | 5..=7) => Stage::Closing,
            _ => Stage::Open,
        },
        Protocol::Udp => Stage::Open,
    }
}
