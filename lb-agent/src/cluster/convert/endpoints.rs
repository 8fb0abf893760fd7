//! Endpoints → mirrored [`Slice`]s, as kube-controller-manager's EndpointSliceMirroring makes them.
//!
//! Only manifests need this: with an API server the controller has done it, and proxies never
//! watch Endpoints. The controller's rules are kept (skip label, leader-election annotation, one
//! slice per subset and family); whether the Endpoints of a Service count at all depends on other
//! objects and is decided by the manifest directory.

use k8s_openapi::api::core::v1 as k8s;

use super::slice::{endpoint_address, trigger_time};
use super::{Converted, Findings, Repeated, lookup, object_name, port_number, protocol};
use crate::cluster::address::parse_ip;
use crate::cluster::name::Name;
use crate::cluster::snapshot::{Endpoint, EndpointPort, IpFamily, ObjectName, Slice};

/// Endpoints that must not be mirrored.
const LABEL_SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that are only a lock of an old leader election.
const ANNOTATION_LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// Converts Endpoints into one slice per subset and family that has addresses. `None` when the
/// object asks not to be mirrored.
///
/// The slices' names are `NAME~SUBSET-FAMILY`; `~` can't be in a real slice's name.
pub fn endpoints(object: &k8s::Endpoints) -> Converted<Vec<Slice>> {
    let name = object_name(&object.metadata);
    let mut findings = Findings::new("Endpoints", &name);
    let skip = lookup(object.metadata.labels.as_ref(), LABEL_SKIP_MIRROR) == Some("true");
    if skip || lookup(object.metadata.annotations.as_ref(), ANNOTATION_LEADER).is_some() {
        return findings.finish(name, None);
    }
    let trigger_time = trigger_time(&object.metadata);
    let mut slices = Vec::new();
    for (index, subset) in object.subsets.iter().flatten().enumerate() {
        let ports = ports(index, subset, &mut findings);
        let (v4, v6) = addresses(index, subset, &mut findings);
        for (family, suffix, endpoints) in [(IpFamily::V4, "ipv4", v4), (IpFamily::V6, "ipv6", v6)]
        {
            if endpoints.is_empty() {
                continue;
            }
            slices.push(Slice {
                name: ObjectName::new(
                    name.namespace.clone(),
                    format!("{}~{index}-{suffix}", name.name),
                ),
                service: name.clone(),
                family,
                ports: ports.clone(),
                endpoints,
                trigger_time,
            });
        }
    }
    findings.finish(name, Some(slices))
}

fn ports(index: usize, subset: &k8s::EndpointSubset, findings: &mut Findings) -> Vec<EndpointPort> {
    let mut found = Vec::new();
    for (port_index, port) in subset.ports.iter().flatten().enumerate() {
        let place = format!("subsets[{index}].ports[{port_index}]");
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            findings.add(format!(
                "{place} has the unknown protocol {:?}, and is ignored; use TCP, UDP or SCTP",
                port.protocol.as_deref().unwrap_or_default()
            ));
            continue;
        };
        match port_number(port.port) {
            Some(number) => found.push(EndpointPort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol,
                port: number,
            }),
            None => findings
                .add(format!("{place} has port {}, and is ignored; use 1 to 65535", port.port)),
        }
    }
    found
}

/// The subset's endpoints by family: ready ones first, then those that are not.
fn addresses(
    index: usize,
    subset: &k8s::EndpointSubset,
    findings: &mut Findings,
) -> (Vec<Endpoint>, Vec<Endpoint>) {
    let mut bad = Repeated::default();
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    let ready = subset.addresses.iter().flatten().map(|address| (address, true));
    let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
    for (entry, ready) in ready.chain(not_ready) {
        let family = parse_ip(&entry.ip).map_or(IpFamily::V4, IpFamily::of);
        match endpoint_address(&entry.ip, family) {
            Err(why) => bad.add(|| format!("subsets[{index}] {why}")),
            Ok(address) => {
                let endpoint = Endpoint {
                    address,
                    ready,
                    serving: true,
                    terminating: false,
                    node: entry.node_name.as_ref().map(Name::from),
                    zone_hints: Default::default(),
                    node_hints: Default::default(),
                };
                match family {
                    IpFamily::V4 => v4.push(endpoint),
                    IpFamily::V6 => v6.push(endpoint),
                }
            }
        }
    }
    bad.report(findings);
    (v4, v6)
}
