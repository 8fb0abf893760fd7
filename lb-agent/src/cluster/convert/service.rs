//! Service → [`Service`]: which fields count, and what a Service that is not balanced looks like.
//!
//! The fields and their meaning are kube-proxy's (Kubernetes v1.36, `pkg/proxy/serviceport.go`,
//! `pkg/proxy/util/utils.go`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as k8s;

use super::{Converted, Findings, lookup, object_name, port_number, protocol};
use crate::cluster::address::{parse_cidr, parse_ip, unfit_frontend};
use crate::cluster::name::Name;
use crate::cluster::snapshot::{IpFamily, Protocol, Service, ServicePort, TrafficPolicy};

/// A Service with this label, whatever its value, is another proxy's.
pub const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// The API's default for `clientIP.timeoutSeconds`: three hours.
const AFFINITY_TIMEOUT_DEFAULT: u32 = 10_800;
/// The API's maximum for it: a day.
const AFFINITY_TIMEOUT_MAX: u32 = 86_400;

/// Converts a Service. The value is `None` for headless and ExternalName Services, for those of
/// another proxy, and for those in which nothing usable is left.
pub fn service(object: &k8s::Service) -> Converted<Service> {
    let name = object_name(&object.metadata);
    let mut findings = Findings::new("Service", &name);
    if lookup(object.metadata.labels.as_ref(), LABEL_PROXY_NAME).is_some() {
        return findings.finish(name, None);
    }
    let Some(spec) = &object.spec else {
        findings.add("has no spec; write one with ports and a clusterIP");
        return findings.finish(name, None);
    };
    let kind = Kind::of(spec, &mut findings);
    if kind == Kind::ExternalName || is_headless(spec) {
        return findings.finish(name, None);
    }
    let cluster_ips = cluster_ips(spec, &mut findings);
    let ports = ports(spec, &mut findings);
    if cluster_ips.is_empty() || ports.is_empty() {
        return findings.finish(name, None);
    }
    let external_ips = external_ips(spec, &mut findings);
    let mut load_balancer_ips = ingress_ips(object, &mut findings);
    let source_ranges = source_ranges(spec, &mut load_balancer_ips, &mut findings);
    let external_policy = external_policy(spec, kind, &mut findings);
    let value = Service {
        name: name.clone(),
        created: object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        cluster_ips,
        external_ips,
        load_balancer_ips,
        source_ranges,
        ports,
        internal_policy: policy(
            "internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            &mut findings,
        ),
        external_policy,
        affinity_timeout: affinity_timeout(spec, &mut findings),
        health_check_node_port: health_check_port(spec, kind, external_policy, &mut findings),
    };
    findings.finish(name, Some(value))
}

/// `spec.type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

impl Kind {
    fn of(spec: &k8s::ServiceSpec, findings: &mut Findings) -> Self {
        match spec.type_.as_deref() {
            None | Some("" | "ClusterIP") => Self::ClusterIp,
            Some("NodePort") => Self::NodePort,
            Some("LoadBalancer") => Self::LoadBalancer,
            Some("ExternalName") => Self::ExternalName,
            Some(other) => {
                findings.add(format!(
                    "type {other:?} is unknown and treated as ClusterIP; use ClusterIP, NodePort, \
                     LoadBalancer or ExternalName"
                ));
                Self::ClusterIp
            }
        }
    }
}

fn is_headless(spec: &k8s::ServiceSpec) -> bool {
    let first = spec.cluster_ips.as_ref().and_then(|ips| ips.first());
    [spec.cluster_ip.as_ref(), first].into_iter().flatten().any(|text| text == "None")
}

/// One address per family. `ipFamilies` is only a cross-check: the address tells its family, and
/// hand-written manifests leave the field out.
fn cluster_ips(spec: &k8s::ServiceSpec, findings: &mut Findings) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.as_deref().filter(|text| !text.is_empty());
    let texts: Vec<&str> = match listed {
        [] => single.into_iter().collect(),
        listed => listed.iter().map(String::as_str).collect(),
    };
    if let (Some(single), Some(first)) = (single, listed.first())
        && single != first
    {
        findings.add(format!(
            "clusterIP {single:?} is not the first of clusterIPs ({first:?}), which are used; \
             make them equal"
        ));
    }
    let mut found: Vec<IpAddr> = Vec::new();
    for (index, text) in texts.into_iter().enumerate() {
        let Some(address) = frontend_address("clusterIP", text, findings) else { continue };
        let family = IpFamily::of(address);
        if declared_family(spec, index, findings).is_some_and(|declared| declared != family) {
            findings.add(format!(
                "clusterIP {text} is not of the family that ipFamilies[{index}] names, and is \
                 left out; correct one of the two"
            ));
        } else if found.iter().any(|&other| IpFamily::of(other) == family) {
            findings.add(format!(
                "clusterIP {text} is a second one of its family, and is left out; a Service has \
                 one per family"
            ));
        } else {
            found.push(address);
        }
    }
    if found.is_empty() {
        findings.add(
            "has no usable clusterIP, so nothing of it is served; set spec.clusterIP (in a \
             manifest nobody allocates one), or None for a headless Service",
        );
    }
    found.shrink_to_fit();
    found
}

fn declared_family(
    spec: &k8s::ServiceSpec,
    index: usize,
    findings: &mut Findings,
) -> Option<IpFamily> {
    match spec.ip_families.as_ref()?.get(index)?.as_str() {
        "IPv4" => Some(IpFamily::V4),
        "IPv6" => Some(IpFamily::V6),
        other => {
            findings.add(format!("ipFamilies[{index}] {other:?} is unknown; use IPv4 or IPv6"));
            None
        }
    }
}

fn ports(spec: &k8s::ServiceSpec, findings: &mut Findings) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    let mut keys: BTreeSet<(Name, Protocol)> = BTreeSet::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let Some(port) = service_port(index, port, findings) else { continue };
        if keys.insert((port.name.clone(), port.protocol)) {
            ports.push(port);
        } else {
            findings.add(format!(
                "ports[{index}] has the name {:?} and protocol of an earlier port, and is left \
                 out; give each port its own name",
                port.name
            ));
        }
    }
    if ports.is_empty() {
        findings.add("has no usable port, so nothing of it is served; add one to spec.ports");
    }
    ports.shrink_to_fit();
    ports
}

fn service_port(
    index: usize,
    port: &k8s::ServicePort,
    findings: &mut Findings,
) -> Option<ServicePort> {
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        findings.add(format!(
            "ports[{index}] has the unknown protocol {:?}, and is left out; use TCP, UDP or SCTP",
            port.protocol.as_deref().unwrap_or_default()
        ));
        return None;
    };
    let Some(number) = port_number(port.port) else {
        findings
            .add(format!("ports[{index}] has port {}, and is left out; use 1 to 65535", port.port));
        return None;
    };
    let node_port = port.node_port.filter(|&number| number != 0).and_then(|number| {
        let usable = port_number(number);
        if usable.is_none() {
            findings.add(format!(
                "ports[{index}] has nodePort {number}, which is not opened; use 1 to 65535"
            ));
        }
        usable
    });
    let name = port.name.as_deref().unwrap_or_default().into();
    Some(ServicePort { name, protocol, port: number, node_port })
}

fn external_ips(spec: &k8s::ServiceSpec, findings: &mut Findings) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for text in spec.external_ips.iter().flatten() {
        push_new(&mut found, frontend_address("externalIP", text, findings));
    }
    found
}

/// Only entries with an address, and only those whose traffic may be taken before it reaches the
/// load balancer (`ipMode: VIP`, the default): KEP-1860.
fn ingress_ips(object: &k8s::Service, findings: &mut Findings) -> Vec<IpAddr> {
    let ingress = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut found = Vec::new();
    for entry in ingress.and_then(|status| status.ingress.as_ref()).into_iter().flatten() {
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        match entry.ip_mode.as_deref() {
            None | Some("VIP") => {
                push_new(&mut found, frontend_address("load balancer ingress ip", text, findings));
            }
            Some("Proxy") => {}
            Some(other) => findings.add(format!(
                "load balancer ingress {text} has the unknown ipMode {other:?}, and is left to \
                 the load balancer; use VIP or Proxy"
            )),
        }
    }
    found
}

fn push_new(found: &mut Vec<IpAddr>, address: Option<IpAddr>) {
    if let Some(address) = address
        && !found.contains(&address)
    {
        found.push(address);
    }
}

fn frontend_address(what: &str, text: &str, findings: &mut Findings) -> Option<IpAddr> {
    let Some(address) = parse_ip(text) else {
        findings.add(format!("{what} {text:?} is not an IP address, and is left out; correct it"));
        return None;
    };
    if let Some(why) = unfit_frontend(address) {
        findings.add(format!(
            "{what} {text} is {why}, and is left out; use a unicast address that is not the node's \
             loopback"
        ));
        return None;
    }
    Some(address)
}

/// A range that can't be read must not open the Service to everybody: without another range of
/// a family, that family's load balancer addresses are left out.
fn source_ranges(
    spec: &k8s::ServiceSpec,
    load_balancer_ips: &mut Vec<IpAddr>,
    findings: &mut Findings,
) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    let mut bad = 0;
    for text in spec.load_balancer_source_ranges.iter().flatten() {
        match parse_cidr(text) {
            Some(range) => ranges.push(range),
            None => {
                bad += 1;
                findings.add(format!(
                    "loadBalancerSourceRanges has {text:?}, which is not a CIDR and is left out; \
                     correct it"
                ));
            }
        }
    }
    if bad > 0 {
        let before = load_balancer_ips.len();
        load_balancer_ips.retain(|&address| {
            ranges.iter().any(|range| IpFamily::of(range.addr()) == IpFamily::of(address))
        });
        if load_balancer_ips.len() != before {
            findings.add(
                "load balancer addresses of a family without a readable source range are not \
                 served until loadBalancerSourceRanges is corrected",
            );
        }
    }
    ranges
}

fn policy(field: &str, text: Option<&str>, findings: &mut Findings) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            findings.add(format!(
                "{field} {other:?} is unknown and treated as Cluster; use Cluster or Local"
            ));
            TrafficPolicy::Cluster
        }
    }
}

/// The external policy counts only for Services that can be reached from outside
/// (`ExternallyAccessible` in pkg/api/v1/service/util.go).
fn external_policy(spec: &k8s::ServiceSpec, kind: Kind, findings: &mut Findings) -> TrafficPolicy {
    let policy = policy("externalTrafficPolicy", spec.external_traffic_policy.as_deref(), findings);
    let accessible = match kind {
        Kind::NodePort | Kind::LoadBalancer => true,
        Kind::ClusterIp => spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()),
        Kind::ExternalName => false,
    };
    if accessible { policy } else { TrafficPolicy::Cluster }
}

fn affinity_timeout(spec: &k8s::ServiceSpec, findings: &mut Findings) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            findings.add(format!(
                "sessionAffinity {other:?} is unknown and treated as None; use None or ClientIP"
            ));
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let client_ip = config.and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = client_ip.and_then(|client_ip| client_ip.timeout_seconds) else {
        return Some(AFFINITY_TIMEOUT_DEFAULT);
    };
    match u32::try_from(seconds) {
        Ok(seconds) if (1..=AFFINITY_TIMEOUT_MAX).contains(&seconds) => Some(seconds),
        Ok(_) | Err(_) => {
            findings.add(format!(
                "clientIP.timeoutSeconds is {seconds}, and {AFFINITY_TIMEOUT_DEFAULT} is used; \
                 use 1 to {AFFINITY_TIMEOUT_MAX}"
            ));
            Some(AFFINITY_TIMEOUT_DEFAULT)
        }
    }
}

fn health_check_port(
    spec: &k8s::ServiceSpec,
    kind: Kind,
    external_policy: TrafficPolicy,
    findings: &mut Findings,
) -> Option<u16> {
    if kind != Kind::LoadBalancer || external_policy != TrafficPolicy::Local {
        return None;
    }
    let port = spec.health_check_node_port.and_then(port_number);
    if port.is_none() {
        findings.add(
            "has externalTrafficPolicy Local but no usable healthCheckNodePort, so the load \
             balancer can't ask this node; set one from 1 to 65535",
        );
    }
    port
}
