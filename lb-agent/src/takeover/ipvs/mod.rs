//! What kube-proxy's mode ipvs leaves beside its chains: virtual servers, sets of addresses and ports, and
//! the device that has the Services' addresses.
//!
//! A virtual server is kube-proxy's if its address is on that device, or if a set of kube-proxy names it: by
//! address, by address and port, or (NodePorts) by port where the address is the node's own. Where neither
//! the device nor a set is left nothing tells, and virtual servers stay.

mod connections;
mod device;
mod servers;
mod sets;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use super::conntrack::{self, Translated};
use crate::cluster::snapshot::{IpFamily, Protocol};
use connections::Connection;
use servers::Server;

pub use device::DEVICE;

/// Why it can't be read or removed.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel refuses.
    #[error("{what}: {source}; this needs CAP_NET_ADMIN in the node's network namespace")]
    Call {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// Connections can't be listed, or the device not be looked at or removed.
    #[error("{what}: {source}; this needs root in the node's network namespace")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Somebody else's rule uses a set.
    #[error(
        "kube-proxy's set {0} is used by a rule of somebody else (see `iptables-save | grep {0}`): change \
         that rule, and run this again; everything else of kube-proxy is removed"
    )]
    InUse(String),
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> IpvsError {
    move |source| IpvsError::Call { what, source }
}

fn io_failed(what: &'static str) -> impl FnOnce(io::Error) -> IpvsError {
    move |source| IpvsError::Io { what, source }
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipvs {
    servers: HashSet<Server>,
    /// Names of sets.
    sets: Vec<String>,
    has_device: bool,
}

impl Ipvs {
    /// Looks at this network namespace. Loads no module of the kernel.
    pub fn read() -> Result<Self, IpvsError> {
        let addresses = device::addresses().map_err(io_failed("list the node's addresses"))?;
        let sets = sets::names().map_err(failed("list the sets of ip_set"))?;
        let mut servers = servers::list().map_err(failed("list the virtual servers of IPVS"))?;
        if !servers.is_empty() {
            let mut evidence = Evidence { own: addresses.own, ..Evidence::default() };
            evidence.addresses.extend(addresses.of_device.iter().flatten());
            for set in &sets {
                sets::read(set, &mut evidence).map_err(failed("read a set of ip_set"))?;
            }
            servers.retain(|server| evidence.names(server.protocol, server.address));
        }
        Ok(Self { servers, sets, has_device: addresses.of_device.is_some() })
    }

    /// Whether there is anything.
    pub fn any(&self) -> bool {
        self.has_device || !self.servers.is_empty() || !self.sets.is_empty()
    }

    /// Whether a virtual server has this address and port.
    pub fn serves(&self, protocol: Protocol, frontend: SocketAddr) -> bool {
        self.servers.contains(&Server { protocol, address: frontend })
    }

    /// The connections of its virtual servers.
    pub fn flows(&self) -> Result<Vec<Translated>, IpvsError> {
        if self.servers.is_empty() {
            return Ok(Vec::new());
        }
        let connections = connections::list().map_err(io_failed("list the connections of IPVS"))?;
        let ours = |connection: &Connection| self.serves(connection.protocol, connection.frontend);
        let connections: Vec<_> = connections.into_iter().filter(ours).collect();
        if connections.is_empty() {
            return Ok(Vec::new());
        }
        // IPVS leaves it to conntrack who a client is for an endpoint.
        let answered = conntrack::answered().map_err(failed("list the flows of conntrack"))?;
        Ok(connections.into_iter().map(|connection| connection.answered_by(&answered)).collect())
    }

    /// Ends its virtual servers and their connections.
    pub fn remove_servers(&self) -> Result<(), IpvsError> {
        servers::remove(&self.servers).map_err(failed("remove kube-proxy's virtual servers"))
    }

    /// Removes the device and the sets, for when no rule of kube-proxy uses them any more.
    pub fn remove_device_and_sets(&self) -> Result<(), IpvsError> {
        if self.has_device {
            device::remove().map_err(io_failed("remove the device kube-ipvs0"))?;
        }
        sets::remove(&self.sets)
    }
}

impl fmt::Display for Ipvs {
    /// What it is, in a phrase.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = if self.has_device { DEVICE } else { "no device" };
        let (servers, sets) = (self.servers.len(), self.sets.len());
        write!(f, "{servers} virtual servers, {sets} sets and {device} (ipvs)")
    }
}

/// What tells kube-proxy's virtual servers from others.
#[derive(Debug, Default)]
struct Evidence {
    /// Every virtual server at these addresses.
    addresses: HashSet<IpAddr>,
    /// At these addresses and ports.
    frontends: HashSet<(Protocol, SocketAddr)>,
    /// At these ports of the node's own addresses.
    node_ports: HashSet<(IpFamily, Protocol, u16)>,
    own: HashSet<IpAddr>,
}

impl Evidence {
    fn names(&self, protocol: Protocol, at: SocketAddr) -> bool {
        let node_port = (IpFamily::of(at.ip()), protocol, at.port());
        self.addresses.contains(&at.ip())
            || self.frontends.contains(&(protocol, at))
            || self.node_ports.contains(&node_port) && self.own.contains(&at.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_server_is_kube_proxys_by_address_by_port_or_not_at_all() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let evidence = Evidence {
            addresses: [at("10.96.0.1:0").ip()].into(),
            frontends: [(Protocol::Sctp, at("[fd00::7]:5000"))].into(),
            node_ports: [(IpFamily::V4, Protocol::Tcp, 30_080)].into(),
            own: [at("192.0.2.1:0").ip(), at("[fd00::1]:0").ip()].into(),
        };
        for (protocol, text, expected) in [
            (Protocol::Tcp, "10.96.0.1:443", true),
            (Protocol::Tcp, "10.96.0.2:443", false),
            (Protocol::Sctp, "[fd00::7]:5000", true),
            (Protocol::Sctp, "[fd00::7]:5001", false),
            (Protocol::Tcp, "[fd00::7]:5000", false),
            (Protocol::Tcp, "192.0.2.1:30080", true),
            (Protocol::Udp, "192.0.2.1:30080", false),
            (Protocol::Tcp, "192.0.2.2:30080", false),
            (Protocol::Tcp, "[fd00::1]:30080", false),
        ] {
            assert_eq!(evidence.names(protocol, at(text)), expected, "{protocol:?} {text}");
        }
    }
}
