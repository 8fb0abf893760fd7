//! Virtual servers, by the generic netlink family of IPVS (include/uapi/linux/ip_vs.h).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use nix::errno::Errno;

use crate::cluster::snapshot::Protocol;
use crate::tables::encode::{protocol, protocol_number};
use crate::takeover::netlink::{Netlink, Order, attribute, find, name, nested};

/// `GENL_ID_CTRL`, which knows the numbers of families.
const CONTROL: u16 = 16;
/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;
/// `CTRL_ATTR_FAMILY_ID`.
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`.
const FAMILY_NAME: u16 = 2;
/// `IPVS_CMD_DEL_SERVICE`.
const DELETE_SERVICE: u8 = 3;
/// `IPVS_CMD_GET_SERVICE`.
const GET_SERVICE: u8 = 4;
/// `IPVS_CMD_ATTR_SERVICE`.
const SERVICE: u16 = 1;
/// There when the module is loaded; asking for the family would load it.
const PRESENT: &str = "/proc/thread-self/net/ip_vs";

/// A virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its address and port.
    pub address: SocketAddr,
}

/// All that are known by an address. (kube-proxy makes none that is known by a mark of packets.)
pub fn list() -> Result<HashSet<Server>, Errno> {
    if !Path::new(PRESENT).exists() {
        return Ok(HashSet::new());
    }
    let mut netlink = Netlink::generic()?;
    let family = family(&mut netlink)?;
    let mut servers = HashSet::new();
    netlink.dump(family, GET_SERVICE, &[], |_, attributes| servers.extend(read(attributes)))?;
    Ok(servers)
}

/// Removes these; gone already is fine.
pub fn remove(servers: &HashSet<Server>) -> Result<(), Errno> {
    if servers.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::generic()?;
    let kind = family(&mut netlink)?;
    let order = |server: &Server| Order { kind, family: DELETE_SERVICE, attributes: server.emit() };
    let orders: Vec<_> = servers.iter().map(order).collect();
    netlink.each(0, &orders)?.into_iter().try_for_each(|outcome| match outcome {
        Err(Errno::ESRCH) => Ok(()),
        other => other,
    })
}

fn family(netlink: &mut Netlink) -> Result<u16, Errno> {
    let mut family = None;
    let wanted = name(FAMILY_NAME, "IPVS");
    netlink.ask(CONTROL, GET_FAMILY, &wanted, |_, attributes| {
        let id = find(attributes, FAMILY_ID).and_then(|id| id.first_chunk());
        family = id.map(|id| u16::from_ne_bytes(*id));
    })?;
    family.ok_or(Errno::ENOENT)
}

fn read(attributes: &[u8]) -> Option<Server> {
    let service = find(attributes, SERVICE)?;
    let number = |kind| Some(u16::from_ne_bytes(*find(service, kind)?.first_chunk()?));
    let (family, address) = (i32::from(number(1)?), find(service, 3)?);
    let address = match family {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(*address.first_chunk::<4>()?)),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(*address.first_chunk::<16>()?)),
        _ => return None,
    };
    let port = u16::from_be_bytes(*find(service, 4)?.first_chunk()?);
    let protocol = protocol(u8::try_from(number(2)?).ok()?)?;
    Some(Server { protocol, address: SocketAddr::new(address, port) })
}

impl Server {
    /// What the kernel knows it by.
    fn emit(&self) -> Vec<u8> {
        let family = if self.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // `union nf_inet_addr`.
        let mut address = match self.address.ip() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        address.resize(16, 0);
        let service = [
            attribute(1, &(family as u16).to_ne_bytes()),
            attribute(2, &u16::from(protocol_number(self.protocol)).to_ne_bytes()),
            attribute(3, &address),
            attribute(4, &self.address.port().to_be_bytes()),
        ];
        nested(SERVICE, &service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_read_as_it_is_written() {
        for address in ["10.96.0.1:80", "[fd00:96::1]:53"] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let server = Server { protocol, address: address.parse().unwrap() };
                assert_eq!(read(&server.emit()), Some(server));
            }
        }
    }
}
