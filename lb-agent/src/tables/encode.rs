//! Values of the plan as keys and values of the maps, and back.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::abi::{
    Address, Backend, BackendFlags, ClientAddresses, Device, DeviceFlags, FrontendKey,
    FrontendKind, ServiceFlags, ServiceIndex, ServiceName, ServiceRange, SourceRange, SourceSet,
};
use lb_common::bytes::Be16;
use lb_common::family::Family;
use lb_common::wire::ip;

use crate::cluster::snapshot::{IpFamily, ObjectName, Protocol};
use crate::node::facts;
use crate::plan::desired::{self, FrontendAddress, Placement, ServicePortKey, ServicePortPlan};

/// IP protocol number.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => ip::TCP,
        Protocol::Udp => ip::UDP,
        Protocol::Sctp => ip::SCTP,
    }
}

/// From an IP protocol number; `None` for those that no Service can have.
pub fn protocol(number: u8) -> Option<Protocol> {
    match number {
        ip::TCP => Some(Protocol::Tcp),
        ip::UDP => Some(Protocol::Udp),
        ip::SCTP => Some(Protocol::Sctp),
        _ => None,
    }
}

/// Half of a flow's key.
pub fn socket_address<F: Family>(address: F::Addr, port: Be16) -> SocketAddr {
    SocketAddr::new(F::widen(address).into(), port.get())
}

/// Key of FRONTENDS.
pub fn frontend_key(frontend: &FrontendAddress) -> FrontendKey {
    FrontendKey {
        address: frontend.address.into(),
        port: Be16::new(frontend.port),
        protocol: protocol_number(frontend.protocol),
        pad: 0,
    }
}

/// Kind of a frontend.
pub fn frontend_kind(kind: desired::FrontendKind) -> FrontendKind {
    match kind {
        desired::FrontendKind::ClusterIp => FrontendKind::ClusterIp,
        desired::FrontendKind::ExternalIp => FrontendKind::ExternalIp,
        desired::FrontendKind::LoadBalancer => FrontendKind::LoadBalancer,
        desired::FrontendKind::NodePort => FrontendKind::NodePort,
    }
}

/// Kind of a frontend, from the map.
pub fn desired_kind(kind: FrontendKind) -> desired::FrontendKind {
    match kind {
        FrontendKind::ClusterIp => desired::FrontendKind::ClusterIp,
        FrontendKind::ExternalIp => desired::FrontendKind::ExternalIp,
        FrontendKind::LoadBalancer => desired::FrontendKind::LoadBalancer,
        FrontendKind::NodePort => desired::FrontendKind::NodePort,
    }
}

/// Value of NAMES; `None` when the name is longer than Kubernetes allows.
pub fn service_name(key: &ServicePortKey) -> Option<ServiceName> {
    let text = format!("{}/{}:{}", key.service.namespace, key.service.name, key.port_name);
    let mut name = ServiceName {
        text: [0; 152],
        protocol: protocol_number(key.protocol),
        family: match key.family {
            IpFamily::V4 => 4,
            IpFamily::V6 => 6,
        },
        pad: [0; 6],
    };
    name.text.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(name)
}

/// The Service port that a value of NAMES names; `None` for bytes that we didn't write.
pub fn service_port_key(name: &ServiceName) -> Option<ServicePortKey> {
    let end = name.text.iter().position(|byte| *byte == 0).unwrap_or(name.text.len());
    let text = std::str::from_utf8(name.text.get(..end)?).ok()?;
    let (namespace, rest) = text.split_once('/')?;
    let (service, port_name) = rest.split_once(':')?;
    Some(ServicePortKey {
        service: ObjectName::new(namespace, service),
        port_name: port_name.into(),
        protocol: protocol(name.protocol)?,
        family: match name.family {
            4 => IpFamily::V4,
            6 => IpFamily::V6,
            _ => return None,
        },
    })
}

/// Flags of a backend in use.
pub fn backend_flags(placement: Placement) -> u16 {
    BackendFlags::LIVE
        | match placement {
            Placement::Local => BackendFlags::LOCAL,
            Placement::Remote => BackendFlags::REMOTE,
            Placement::Unknown => 0,
        }
}

/// Element of BACKENDS.
pub fn backend(address: SocketAddr, flags: u16, service: ServiceIndex, generation: u32) -> Backend {
    Backend {
        address: address.ip().into(),
        port: Be16::new(address.port()),
        flags,
        generation,
        service,
        pad: 0,
    }
}

/// Where an element of BACKENDS leads.
pub fn backend_address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(IpAddr::from(backend.address), backend.port.get())
}

/// Flags of a record.
pub fn record_flags(plan: &ServicePortPlan) -> u32 {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    flag(plan.has_endpoints, ServiceFlags::HAS_ENDPOINTS)
        | flag(plan.internal_local, ServiceFlags::INTERNAL_LOCAL)
        | flag(plan.external_local, ServiceFlags::EXTERNAL_LOCAL)
        | flag(plan.affinity_timeout.is_some(), ServiceFlags::AFFINITY)
        | flag(plan.source_ranges.is_some(), ServiceFlags::SOURCE_RANGES)
}

/// Ranges as a set of SOURCE_RANGES holds them: in order, each once, without host bits.
pub fn ranges(planned: &[IpNet]) -> Vec<IpNet> {
    let ranges: BTreeSet<IpNet> = planned.iter().map(IpNet::trunc).collect();
    ranges.into_iter().collect()
}

/// Key of SOURCE_RANGES.
pub fn source_range(set: SourceSet, range: &IpNet) -> SourceRange {
    let mapped = match range {
        IpNet::V4(_) => SourceRange::MAPPED_BITS,
        IpNet::V6(_) => 0,
    };
    SourceRange {
        prefix_len: SourceRange::SET_BITS + mapped + u32::from(range.prefix_len()),
        set,
        address: range.network().into(),
    }
}

/// The range of a key of SOURCE_RANGES; `None` for a prefix length that we don't write.
pub fn range_net(range: &SourceRange) -> Option<IpNet> {
    let address = IpAddr::from(range.address);
    let before = match address {
        IpAddr::V4(_) => SourceRange::SET_BITS + SourceRange::MAPPED_BITS,
        IpAddr::V6(_) => SourceRange::SET_BITS,
    };
    IpNet::new(address, range.prefix_len.checked_sub(before)?.try_into().ok()?).ok()
}

/// Range of SERVICE_RANGES.
pub fn service_range(range: &IpNet) -> ServiceRange {
    let mask = match range.netmask() {
        // Of the mapped form, everything before the address counts.
        IpAddr::V4(mask) => {
            let [before @ .., _] = [u32::MAX; 4];
            let [a, b, c] = before;
            Address::from_words([a, b, c, u32::from_ne_bytes(mask.octets())])
        }
        mask @ IpAddr::V6(_) => mask.into(),
    };
    ServiceRange { network: range.network().into(), mask }
}

/// Value of CLIENTS.
pub fn client(addresses: &facts::ClientAddresses) -> ClientAddresses {
    let facts::ClientAddresses { address4, address6 } = *addresses;
    ClientAddresses {
        address4: address4.map_or(Address::UNSPECIFIED_V4, |a| IpAddr::V4(a).into()),
        address6: address6.map_or(Address::UNSPECIFIED_V6, |a| IpAddr::V6(a).into()),
    }
}

/// Value of DEVICES. `xdp` says whether frames may be sent to it from XDP.
pub fn device(device: &facts::Device, xdp: bool) -> Device {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    Device {
        address4: device.address4.map_or(Address::UNSPECIFIED_V4, |a| IpAddr::V4(a).into()),
        address6: device.address6.map_or(Address::UNSPECIFIED_V6, |a| IpAddr::V6(a).into()),
        mtu: device.mtu,
        flags: flag(device.ethernet, DeviceFlags::ETHERNET) | flag(xdp, DeviceFlags::XDP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: &str, port_name: &str) -> ServicePortKey {
        ServicePortKey {
            service: ObjectName::new(namespace, name),
            port_name: port_name.into(),
            protocol: Protocol::Udp,
            family: IpFamily::V6,
        }
    }

    #[test]
    fn the_longest_names_that_kubernetes_allows_survive_the_round_trip() {
        for key in
            [key("default", "web", ""), key(&"n".repeat(63), &"s".repeat(63), &"p".repeat(15))]
        {
            assert_eq!(service_port_key(&service_name(&key).unwrap()), Some(key));
        }
    }

    #[test]
    fn ranges_survive_the_round_trip_and_lose_what_does_not_count() {
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let planned = nets(&["203.0.113.77/25", "10.0.0.0/8", "203.0.113.0/25", "fd00::7/64"]);
        let written = ranges(&planned);
        assert_eq!(written, nets(&["10.0.0.0/8", "203.0.113.0/25", "fd00::/64"]));
        for net in written {
            let key = source_range(SourceSet(7), &net);
            assert_eq!((key.set, range_net(&key)), (SourceSet(7), Some(net)));
        }
        let key = source_range(SourceSet(7), &"203.0.113.0/25".parse().unwrap());
        assert_eq!(key.prefix_len, 32 + 96 + 25);
    }

    #[test]
    fn a_service_range_holds_its_first_and_last_address_and_not_their_neighbours() {
        for (text, inside, outside) in [
            ("10.96.0.0/12", ["10.96.0.0", "10.111.255.255"], ["10.95.255.255", "10.112.0.0"]),
            ("10.96.0.7/32", ["10.96.0.7", "10.96.0.7"], ["10.96.0.6", "10.96.0.8"]),
            ("fd00::/108", ["fd00::", "fd00::f:ffff"], ["fcff::", "fd00::10:0"]),
            ("8000::/1", ["8000::", "ffff::"], ["7fff::", "10.0.0.1"]),
        ] {
            let range = service_range(&text.parse().unwrap());
            let holds = |text: &str| range.holds(text.parse::<IpAddr>().unwrap().into());
            assert!(inside.into_iter().all(holds), "{text}");
            assert!(!outside.into_iter().any(holds), "{text}");
        }
    }

    #[test]
    fn a_longer_name_is_refused_and_foreign_bytes_are_nobodys_name() {
        assert!(service_name(&key(&"n".repeat(100), &"s".repeat(100), "p")).is_none());
        let zero: ServiceName = bytemuck::Zeroable::zeroed();
        assert_eq!(service_port_key(&zero), None);
    }
}
