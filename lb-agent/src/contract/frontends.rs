//! On which addresses Services answer, and who holds an address that several claim.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::Cluster;
use super::objects::{self, Port, Service};
use crate::cluster::snapshot::{IpFamily, ObjectName, Protocol};

/// What an address is to its Service; of two claims the kind that stands first here wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    ClusterIp,
    LoadBalancer,
    ExternalIp,
    NodePort,
}

/// Who answers on an address.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub service: Service,
    pub port: Port,
    pub kind: Kind,
}

impl Owner {
    /// The stronger claim is the greater one: the kind of address, then the age, then the name.
    fn strength(&self) -> impl Ord + use<> {
        let Self { service, port, kind } = self;
        let name: (ObjectName, String, Protocol) =
            (service.name.clone(), port.name.clone(), port.protocol);
        Reverse((*kind, service.created, name))
    }

    pub fn name(&self) -> String {
        format!("Service {}, port {:?}", self.service.name, self.port.name)
    }
}

/// The address under which NodePorts are held.
pub(super) fn any_address(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
        IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Who holds each address, port and protocol.
pub(super) fn all(cluster: &Cluster) -> BTreeMap<(SocketAddr, Protocol), Owner> {
    let mut owners: BTreeMap<(SocketAddr, Protocol), Owner> = BTreeMap::new();
    for service in objects::services(cluster) {
        for port in &service.ports {
            for (address, kind) in addresses(&service, port) {
                let claim = Owner { service: service.clone(), port: port.clone(), kind };
                let key = (address, port.protocol);
                let is_stronger = |held: &Owner| claim.strength() > held.strength();
                if owners.get(&key).is_none_or(is_stronger) {
                    owners.insert(key, claim);
                }
            }
        }
    }
    owners
}

/// The addresses of a port; in a family without ClusterIP a Service has nothing.
fn addresses(service: &Service, port: &Port) -> Vec<(SocketAddr, Kind)> {
    let mut found = Vec::new();
    for cluster_ip in &service.cluster_ips {
        let mut add = |address, number, kind| found.push((SocketAddr::new(address, number), kind));
        let same_family = |address: &&IpAddr| address.is_ipv4() == cluster_ip.is_ipv4();
        add(*cluster_ip, port.port, Kind::ClusterIp);
        for address in service.load_balancer_ips.iter().filter(same_family) {
            add(*address, port.port, Kind::LoadBalancer);
        }
        for address in service.external_ips.iter().filter(same_family) {
            add(*address, port.port, Kind::ExternalIp);
        }
        if let Some(number) = port.node_port {
            add(any_address(IpFamily::of(*cluster_ip)), number, Kind::NodePort);
        }
    }
    found
}

/// Who may reach the load balancer addresses of a family; `None` for everybody: without a range of the
/// family, or with one that covers it.
pub(super) fn source_ranges(
    cluster: &Cluster,
    service: &Service,
    family: IpFamily,
) -> Option<Vec<IpNet>> {
    let of_family = |range: &&IpNet| IpFamily::of(range.addr()) == family;
    let mut ranges: Vec<IpNet> = service.source_ranges.iter().filter(of_family).copied().collect();
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    // A node that has the address itself on a device sends from it.
    let own = objects::node_addresses(cluster);
    if own.iter().any(|own| ranges.iter().any(|range| range.contains(own))) {
        ranges.extend(service.load_balancer_ips.iter().copied().map(IpNet::from));
    }
    Some(ranges)
}
