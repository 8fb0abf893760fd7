//! What the API's objects say: which of them count, and which of their fields.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::Cluster;
use super::address::{address, cidr, is_endpoint, is_unicast};
use super::endpoints::Policy;
use crate::cluster::snapshot::{IpFamily, ObjectName, Protocol};

const ANOTHER_PROXYS: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const SERVICE: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";

/// A Service that is load-balanced.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub name: ObjectName,
    /// Seconds since the epoch; 0 when unknown.
    pub created: i64,
    /// One for each family that it has.
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<IpNet>,
    pub ports: Vec<Port>,
    pub internal_policy: Policy,
    /// Cluster for a Service that nobody outside can reach.
    pub external_policy: Policy,
    /// Seconds.
    pub affinity: Option<u64>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// All Services that are load-balanced, by name.
pub(super) fn services(cluster: &Cluster) -> Vec<Service> {
    cluster.services.iter().filter_map(|(name, object)| service(name, object)).collect()
}

fn service(name: &ObjectName, object: &core::Service) -> Option<Service> {
    let labels = object.metadata.labels.iter().flatten();
    if labels.into_iter().any(|(label, _)| label == ANOTHER_PROXYS) {
        return None;
    }
    let spec = object.spec.as_ref()?;
    let type_ = spec.type_.as_deref().unwrap_or_default();
    let none = |text: &String| text == "None";
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    if type_ == "ExternalName" || spec.cluster_ip.iter().any(none) || listed.iter().any(none) {
        return None;
    }
    let ports = ports(spec);
    let cluster_ips = cluster_ips(spec);
    if cluster_ips.is_empty() || ports.is_empty() {
        return None;
    }
    let external_texts = spec.external_ips.as_deref().unwrap_or_default();
    let reachable = matches!(type_, "NodePort" | "LoadBalancer") || !external_texts.is_empty();
    let external_policy = policy(spec.external_traffic_policy.as_deref());
    let texts = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let source_ranges: Vec<IpNet> = texts.iter().filter_map(|text| cidr(text)).collect();
    let mut load_balancer_ips = load_balancer_ips(object);
    if source_ranges.len() < texts.len() {
        // A range that nobody can read must not open the address to everybody.
        load_balancer_ips.retain(|address| {
            source_ranges.iter().any(|range| range.addr().is_ipv4() == address.is_ipv4())
        });
    }
    Some(Service {
        name: name.clone(),
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        cluster_ips,
        external_ips: external_texts.iter().filter_map(|text| frontend(text)).collect(),
        load_balancer_ips,
        source_ranges,
        ports,
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: if reachable { external_policy } else { Policy::Cluster },
        affinity: affinity(spec),
    })
}

fn frontend(text: &str) -> Option<IpAddr> {
    address(text).filter(|address| is_unicast(*address))
}

/// Only what the address itself says is trusted; `ipFamilies` can only contradict it.
fn cluster_ips(spec: &core::ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.clone().unwrap_or_default();
    let single = spec.cluster_ip.clone().filter(|text| !text.is_empty());
    let texts = if listed.is_empty() { single.into_iter().collect() } else { listed };
    let mut found: Vec<IpAddr> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let Some(address) = frontend(text) else { continue };
        let declared = spec.ip_families.as_ref().and_then(|families| families.get(index));
        let contradicted = match declared.map(String::as_str) {
            Some("IPv4") => address.is_ipv6(),
            Some("IPv6") => address.is_ipv4(),
            Some(_) | None => false,
        };
        let second = found.iter().any(|other| other.is_ipv4() == address.is_ipv4());
        if !contradicted && !second {
            found.push(address);
        }
    }
    found
}

/// `ipMode: Proxy` and host names mean that traffic really goes to the load balancer.
fn load_balancer_ips(object: &core::Service) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let vip = |entry: &&core::LoadBalancerIngress| {
        entry.ip_mode.as_deref().is_none_or(|mode| mode == "VIP")
    };
    ingress.iter().filter(vip).filter_map(|entry| frontend(entry.ip.as_deref()?)).collect()
}

/// Each pair of name and protocol once, the first time.
fn ports(spec: &core::ServiceSpec) -> Vec<Port> {
    let mut found: Vec<Port> = Vec::new();
    for object in spec.ports.iter().flatten() {
        let name = object.name.clone().unwrap_or_default();
        let Some(protocol) = protocol(object.protocol.as_deref()) else { continue };
        let Some(port) = port(object.port) else { continue };
        let node_port = object.node_port.and_then(self::port);
        if !found.iter().any(|known| known.name == name && known.protocol == protocol) {
            found.push(Port { name, protocol, port, node_port });
        }
    }
    found
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number > 0)
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn policy(text: Option<&str>) -> Policy {
    if text == Some("Local") { Policy::Local } else { Policy::Cluster }
}

/// Three hours unless the object says something between a second and a day.
fn affinity(spec: &core::ServiceSpec) -> Option<u64> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|all| all.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(10_800);
    let seconds = u64::try_from(seconds).ok().filter(|seconds| (1..=86_400).contains(seconds));
    Some(seconds.unwrap_or(10_800))
}

/// An endpoint of a slice under one of the slice's ports, before anything is chosen.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub address: IpAddr,
    pub port: u16,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<String>,
    pub zone_hints: Vec<String>,
    pub node_hints: Vec<String>,
}

/// What the slices of a Service say of one of its ports, in the order of their names.
pub(super) fn entries(
    cluster: &Cluster,
    service: &ObjectName,
    port: &Port,
    family: IpFamily,
) -> Vec<Entry> {
    let slices = cluster.slices.iter().filter(|(name, object)| {
        name.namespace == service.namespace
            && label(object, SERVICE) == Some(&*service.name)
            && label(object, HEADLESS).is_none()
            && object.address_type
                == match family {
                    IpFamily::V4 => "IPv4",
                    IpFamily::V6 => "IPv6",
                }
    });
    slices.flat_map(|(_, object)| entries_of(object, port, family)).collect()
}

fn entries_of(object: &EndpointSlice, wanted: &Port, family: IpFamily) -> Vec<Entry> {
    let mut found = Vec::new();
    for object_port in object.ports.iter().flatten() {
        let is_wanted = object_port.name.as_ref() == Some(&wanted.name)
            && protocol(object_port.protocol.as_deref()) == Some(wanted.protocol);
        let Some(port) = object_port.port.and_then(port).filter(|_| is_wanted) else { continue };
        for endpoint in object.endpoints.iter().flatten() {
            // Only the first address counts.
            let text = endpoint.addresses.first().map(String::as_str).unwrap_or_default();
            let Some(address) = address(text) else { continue };
            if !is_endpoint(address) || IpFamily::of(address) != family {
                continue;
            }
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let hints = endpoint.hints.clone().unwrap_or_default();
            found.push(Entry {
                address,
                port,
                ready: conditions.ready.unwrap_or(true),
                serving: conditions.serving.unwrap_or(true),
                terminating: conditions.terminating.unwrap_or(false),
                node: endpoint.node_name.clone(),
                zone_hints: hints.for_zones.into_iter().flatten().map(|zone| zone.name).collect(),
                node_hints: hints.for_nodes.into_iter().flatten().map(|node| node.name).collect(),
            });
        }
    }
    found
}

fn label<'a>(object: &'a EndpointSlice, name: &str) -> Option<&'a str> {
    object.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// The zone of this node.
pub(super) fn zone(cluster: &Cluster) -> Option<String> {
    let labels = cluster.node.as_ref()?.metadata.labels.as_ref()?;
    labels.get(ZONE).filter(|zone| !zone.is_empty()).cloned()
}

/// The addresses that the Node object names.
pub(super) fn node_addresses(cluster: &Cluster) -> Vec<IpAddr> {
    let status = cluster.node.as_ref().and_then(|node| node.status.as_ref());
    let addresses = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let counts = |kind: &str| kind == "InternalIP" || kind == "ExternalIP";
    let counted = addresses.iter().filter(|entry| counts(&entry.type_));
    counted.filter_map(|entry| address(&entry.address)).collect()
}
