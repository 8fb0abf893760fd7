//! The flows whose destination the kernel's NAT translates, as conntrack has them, and ours, as it has to
//! know them (include/uapi/linux/netfilter/nfnetlink_conntrack.h).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::netlink::{NLM_F_CREATE_EXCL, Netlink, Order, attribute, find, is_absent, nested};
use crate::cluster::snapshot::Protocol;
use crate::tables::encode::{protocol, protocol_number};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW`.
const NEW: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const TIMEOUT: u16 = 7;
const STATUS_MASK: u16 = 26;
/// `IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED`: an entry that makes no room for others.
const ASSURED: u32 = 1 << 1 | 1 << 2 | 1 << 3;
/// `TCP_CONNTRACK_ESTABLISHED`: others let a new connection have their port.
const TCP_ESTABLISHED: u8 = 3;
/// An entry lives so long when nobody is left to remove it, and is renewed after half of it.
const HELD: Duration = Duration::from_secs(600);
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
    /// Conntrack forgets it after this long without a packet, seconds and rounded down.
    pub expires: u32,
}

/// Which packets are a flow's: those from here to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Its protocol.
    pub protocol: Protocol,
    /// Where they come from.
    pub source: SocketAddr,
    /// Where they go to.
    pub destination: SocketAddr,
}

impl Tuple {
    fn inverse(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }

    fn parse(attributes: &[u8]) -> Option<Self> {
        let (addresses, transport) = (find(attributes, 1)?, find(attributes, 2)?);
        let address = |v4, v6| match (find(addresses, v4), find(addresses, v6)) {
            (Some(bytes), _) => Some(IpAddr::from(Ipv4Addr::from(*bytes.first_chunk::<4>()?))),
            (None, Some(bytes)) => Some(IpAddr::from(Ipv6Addr::from(*bytes.first_chunk::<16>()?))),
            (None, None) => None,
        };
        let port = |kind| Some(u16::from_be_bytes(*find(transport, kind)?.first_chunk()?));
        let protocol = protocol(*find(transport, 1)?.first()?)?;
        let source = SocketAddr::new(address(1, 3)?, port(2)?);
        let destination = SocketAddr::new(address(2, 4)?, port(3)?);
        Some(Self { protocol, source, destination })
    }

    /// As an attribute of this kind.
    fn emit(self, kind: u16) -> Vec<u8> {
        let address = |v4, v6, address| match address {
            IpAddr::V4(address) => attribute(v4, &address.octets()),
            IpAddr::V6(address) => attribute(v6, &address.octets()),
        };
        let addresses = [address(1, 3, self.source.ip()), address(2, 4, self.destination.ip())];
        let transport = [
            attribute(1, &[protocol_number(self.protocol)]),
            attribute(2, &self.source.port().to_be_bytes()),
            attribute(3, &self.destination.port().to_be_bytes()),
        ];
        nested(kind, &[nested(1, &addresses), nested(2, &transport)])
    }

    /// An order about the entry with this tuple of this kind.
    fn order(self, kind: u16, attributes: Vec<u8>) -> Order {
        let family = if self.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        Order { kind, family: family as u8, attributes }
    }
}

/// Flows of ours that conntrack knows, so that what it masquerades leaves their ports alone. Our hooks
/// come before it: it never sees their packets, and a port that carries two flows to one endpoint brings
/// the answers of both to one of them.
#[derive(Default)]
pub struct Held {
    netfilter: Option<Netlink>,
    /// As they leave this node, and since when.
    flows: HashMap<Tuple, Instant>,
}

impl Held {
    /// Makes `flows` known, and has those forgotten that it has made known before.
    pub fn replace(&mut self, flows: &HashSet<Tuple>) -> Result<(), Errno> {
        let netfilter = match &mut self.netfilter {
            Some(netfilter) => netfilter,
            None => self.netfilter.insert(Netlink::netfilter()?),
        };
        let gone: Vec<_> = self.flows.extract_if(|flow, _| !flows.contains(flow)).collect();
        forget(netfilter, TUPLE_ORIGINAL, gone.into_iter().map(|(flow, _)| flow))?;
        let is_fresh =
            |flow: &Tuple| self.flows.get(flow).is_some_and(|since| since.elapsed() < HELD / 2);
        let new: Vec<_> = flows.iter().copied().filter(|flow| !is_fresh(flow)).collect();
        let taken = hold(netfilter, &new)?;
        // By an older entry of ours, or a connection that has ended: the kernel would give its port to the
        // next one.
        forget(netfilter, TUPLE_REPLY, taken.iter().map(|flow| flow.inverse()))?;
        hold(netfilter, &taken)?;
        let now = Instant::now();
        self.flows.extend(new.into_iter().map(|flow| (flow, now)));
        Ok(())
    }
}

/// Makes flows known; those whose answers are another flow's.
fn hold(netfilter: &mut Netlink, flows: &[Tuple]) -> Result<Vec<Tuple>, Errno> {
    let orders: Vec<_> = flows.iter().map(|flow| flow.order(NEW, held(*flow))).collect();
    let mut taken = Vec::new();
    for (flow, outcome) in flows.iter().zip(netfilter.each(NLM_F_CREATE_EXCL, &orders)?) {
        match outcome {
            Ok(()) => {}
            Err(Errno::EEXIST) => taken.push(*flow),
            // Without conntrack nothing is masqueraded.
            Err(errno) if is_absent(errno) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(taken)
}

/// Removes the entries whose tuples of a kind are these; gone already is fine.
fn forget(
    netfilter: &mut Netlink,
    kind: u16,
    tuples: impl Iterator<Item = Tuple>,
) -> Result<(), Errno> {
    let orders: Vec<_> = tuples.map(|tuple| tuple.order(DELETE, tuple.emit(kind))).collect();
    for outcome in netfilter.each(0, &orders)? {
        match outcome {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The entry of a flow that conntrack has to know.
fn held(flow: Tuple) -> Vec<u8> {
    let mut attributes = flow.emit(TUPLE_ORIGINAL);
    attributes.extend(flow.inverse().emit(TUPLE_REPLY));
    attributes.extend(attribute(STATUS, &ASSURED.to_be_bytes()));
    attributes.extend(attribute(TIMEOUT, &(HELD.as_secs() as u32).to_be_bytes()));
    if flow.protocol == Protocol::Tcp {
        let state = nested(1, &[attribute(1, &[TCP_ESTABLISHED])]);
        attributes.extend(nested(PROTOCOL_INFO, &[state]));
    }
    attributes
}

/// All flows with a translated destination, of both families.
pub fn translated() -> Result<Vec<Translated>, Errno> {
    let mut filter = attribute(STATUS, &DST_NAT.to_be_bytes());
    filter.extend(attribute(STATUS_MASK, &DST_NAT.to_be_bytes()));
    let mut flows = Vec::new();
    // Entries come and go while they are listed: a dump of conntrack is never torn, only old.
    let dumped = Netlink::netfilter().and_then(|mut netfilter| {
        netfilter.dump(GET, 0, &filter, |_, attributes| flows.extend(flow(attributes)))
    });
    match dumped {
        Err(errno) if !is_absent(errno) => Err(errno),
        Ok(()) | Err(_) => Ok(flows),
    }
}

/// Where the answers of each flow go, by its own packets. Of those of IPVS conntrack knows that alone.
pub(super) fn answered() -> Result<HashMap<Tuple, SocketAddr>, Errno> {
    let mut answered = HashMap::new();
    let listed = Netlink::netfilter()?.dump(GET, 0, &[], |_, attributes| {
        let tuple = |kind| Tuple::parse(find(attributes, kind)?);
        if let (Some(original), Some(reply)) = (tuple(TUPLE_ORIGINAL), tuple(TUPLE_REPLY)) {
            answered.insert(original, reply.destination);
        }
    });
    match listed {
        Err(errno) if !is_absent(errno) => Err(errno),
        Ok(()) | Err(_) => Ok(answered),
    }
}

fn flow(attributes: &[u8]) -> Option<Translated> {
    let status = u32::from_be_bytes(*find(attributes, STATUS)?.first_chunk()?);
    // Kernels before 5.15 don't filter.
    if status & DST_NAT == 0 {
        return None;
    }
    let Tuple { protocol, source: client, destination: frontend } =
        Tuple::parse(find(attributes, TUPLE_ORIGINAL)?)?;
    let Tuple { source: backend, destination: answered, .. } =
        Tuple::parse(find(attributes, TUPLE_REPLY)?)?;
    let stage = stage(protocol, find(attributes, PROTOCOL_INFO).unwrap_or_default());
    let expires = find(attributes, TIMEOUT).and_then(|seconds| seconds.first_chunk());
    let expires = expires.map_or(0, |seconds| u32::from_be_bytes(*seconds));
    Some(Translated { protocol, client, frontend, backend, answered, stage, expires })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_read_as_it_is_written() {
        for (source, destination) in
            [("10.0.0.1:1024", "10.96.0.1:80"), ("[fd00::1]:65535", "[fd00:96::1]:53")]
        {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
                let tuple = Tuple { protocol, source, destination };
                let written = tuple.emit(TUPLE_REPLY);
                assert_eq!(Tuple::parse(find(&written, TUPLE_REPLY).unwrap()), Some(tuple));
            }
        }
    }
}
