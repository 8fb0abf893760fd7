//! Whose an address and port are, as the maps say.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use lb_common::abi::{Address, AddressFlags, Frontend, FrontendKey, ServiceIndex, map};
use lb_common::bytes::Be16;

use super::error::BpfError;
use super::hash::Hash;
use super::pins::Pins;
use super::sys::Access;

/// The maps that tell it: FRONTENDS and ADDRESSES.
#[derive(Debug)]
pub struct FrontendMaps {
    frontends: Hash<FrontendKey, Frontend>,
    addresses: Hash<Address, u32>,
}

impl FrontendMaps {
    /// Opens the pins.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        Ok(Self {
            frontends: Hash::open(pins, map::FRONTENDS, Access::Read)?,
            addresses: Hash::open(pins, map::ADDRESSES, Access::Read)?,
        })
    }

    /// Reads both.
    pub fn read(&self) -> Result<Frontends, BpfError> {
        let error = |name| BpfError::call(name, "bpf(BPF_MAP_LOOKUP_BATCH)");
        let frontends = self.frontends.entries().map_err(error(self.frontends.name()))?;
        let addresses = self.addresses.entries().map_err(error(self.addresses.name()))?;
        Ok(Frontends::new(frontends, addresses))
    }
}

/// All frontends, at one moment.
#[derive(Debug, Default)]
pub struct Frontends {
    services: BTreeMap<FrontendKey, ServiceIndex>,
    /// Addresses of this node that have NodePorts.
    node: HashSet<Address>,
}

impl Frontends {
    fn new(frontends: Vec<(FrontendKey, Frontend)>, addresses: Vec<(Address, u32)>) -> Self {
        let services = frontends.into_iter().map(|(key, frontend)| (key, frontend.service));
        let node = addresses.into_iter().filter(|(_, flags)| flags & AddressFlags::NODE_PORTS != 0);
        Self { services: services.collect(), node: node.map(|(address, _)| address).collect() }
    }

    /// The Service port that has this address and port; `protocol` is IP's number.
    pub fn of(&self, protocol: u8, to: SocketAddr) -> Option<ServiceIndex> {
        let (address, port) = (Address::from(to.ip()), Be16::new(to.port()));
        let service = |address| self.services.get(&FrontendKey { address, port, protocol, pad: 0 });
        let node_port =
            || self.node.contains(&address).then(|| service(address.wildcard())).flatten();
        service(address).or_else(node_port).copied()
    }
}

#[cfg(test)]
mod tests {
    use lb_common::wire::ip;

    use super::*;

    #[test]
    fn an_address_is_its_own_before_it_is_the_nodes() {
        let entry = |to: &str, service| {
            let to: SocketAddr = to.parse().unwrap();
            let (address, port) = (to.ip().into(), Be16::new(to.port()));
            let key = FrontendKey { address, port, protocol: ip::UDP, pad: 0 };
            (key, Frontend { service: ServiceIndex(service), kind: 0 })
        };
        let frontends = Frontends::new(
            vec![
                entry("10.96.0.1:80", 1),
                entry("0.0.0.0:30080", 2),
                entry("[::]:30080", 3),
                entry("10.240.0.11:30080", 4),
            ],
            ["10.240.0.11", "10.240.0.12", "fd00:240::11"]
                .map(|text| {
                    (text.parse::<std::net::IpAddr>().unwrap().into(), AddressFlags::NODE_PORTS)
                })
                .into(),
        );
        for (to, expected) in [
            ("10.96.0.1:80", Some(1)),
            ("10.96.0.1:30080", None),
            ("10.240.0.11:30080", Some(4)),
            ("10.240.0.12:30080", Some(2)),
            ("10.240.0.13:30080", None),
            ("[fd00:240::11]:30080", Some(3)),
        ] {
            let found = frontends.of(ip::UDP, to.parse().unwrap());
            assert_eq!(found, expected.map(ServiceIndex), "{to}");
        }
        assert_eq!(frontends.of(ip::TCP, "10.96.0.1:80".parse().unwrap()), None);
    }
}
