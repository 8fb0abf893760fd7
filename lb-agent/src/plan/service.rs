//! One Service and its slices → what each of its ports needs in each family.
//!
//! Decides the addresses of a port, which policy its traffic follows, and who may reach its load
//! balancer addresses. Knows one Service at a time: disputes between Services are `claims`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::PlanContext;
use super::claims::rank;
use super::desired::{FrontendAddress, FrontendKind, ServicePortKey, ServicePortPlan};
use super::endpoints::choose;
use crate::cluster::snapshot::{IpFamily, Service, ServicePort, Slice, TrafficPolicy};

/// Plans every port of `service` in each family of which it has a ClusterIP; a family without one
/// has nothing, not even a NodePort. `slices` are all slices of this Service and no others.
pub fn plan_service<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    context: &PlanContext,
) -> BTreeMap<ServicePortKey, ServicePortPlan> {
    let mut plans = BTreeMap::new();
    for &cluster_ip in &service.cluster_ips {
        let family = IpFamily::of(cluster_ip);
        for port in &service.ports {
            let key = ServicePortKey {
                service: service.name.clone(),
                port_name: port.name.clone(),
                protocol: port.protocol,
                family,
            };
            plans.insert(key, plan_port(service, cluster_ip, port, slices.clone(), context));
        }
    }
    plans
}

fn plan_port<'a>(
    service: &Service,
    cluster_ip: IpAddr,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
    context: &PlanContext,
) -> ServicePortPlan {
    let family = IpFamily::of(cluster_ip);
    let frontends = frontends(service, cluster_ip, port);
    let external = frontends.values().any(|&kind| kind != FrontendKind::ClusterIp);
    let choice = choose(slices, &port.name, port.protocol, family, context);
    ServicePortPlan {
        frontends,
        endpoints: choice.endpoints,
        has_endpoints: choice.has_endpoints,
        internal_local: service.internal_policy == TrafficPolicy::Local,
        external_local: external && service.external_policy == TrafficPolicy::Local,
        affinity_timeout: service.affinity_timeout,
        source_ranges: source_ranges(service, family, context),
        created: service.created,
    }
}

fn frontends(
    service: &Service,
    cluster_ip: IpAddr,
    port: &ServicePort,
) -> BTreeMap<FrontendAddress, FrontendKind> {
    let family = IpFamily::of(cluster_ip);
    let of_family = |&&address: &&IpAddr| IpFamily::of(address) == family;
    let external = service.external_ips.iter().filter(of_family);
    let balanced = service.load_balancer_ips.iter().filter(of_family);
    let addresses = std::iter::once((cluster_ip, FrontendKind::ClusterIp))
        .chain(balanced.map(|&address| (address, FrontendKind::LoadBalancer)))
        .chain(external.map(|&address| (address, FrontendKind::ExternalIp)))
        .map(|(address, kind)| (address, port.port, kind))
        .chain(port.node_port.map(|number| (wildcard(family), number, FrontendKind::NodePort)));
    let mut frontends = BTreeMap::new();
    for (address, number, kind) in addresses {
        let address = FrontendAddress { address, port: number, protocol: port.protocol };
        // One address in several roles has the role that would win it between Services.
        let held = frontends.entry(address).or_insert(kind);
        if rank(kind) < rank(*held) {
            *held = kind;
        }
    }
    frontends
}

/// The address of a NodePort's frontend: any address of the node.
fn wildcard(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpFamily::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Who may reach the load balancer addresses of a family: no range of that family, or one that
/// covers everything, admits all. When a range holds one of the node's own addresses, the
/// addresses themselves are admitted too: a node that has a VIP bound uses it as source.
fn source_ranges(service: &Service, family: IpFamily, context: &PlanContext) -> Option<Vec<IpNet>> {
    let balanced = || service.load_balancer_ips.iter().filter(|&&ip| IpFamily::of(ip) == family);
    balanced().next()?;
    let ranges = service.source_ranges.iter().filter(|range| IpFamily::of(range.addr()) == family);
    let mut ranges: Vec<IpNet> = ranges.copied().collect();
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let node_admitted =
        context.node_addresses.iter().any(|node| ranges.iter().any(|range| range.contains(node)));
    if node_admitted {
        ranges.extend(balanced().map(|&address| IpNet::from(address)));
    }
    ranges.sort();
    ranges.dedup();
    Some(ranges)
}
