//! Node → [`Node`]: zone, addresses and eligibility of our own node.

use k8s_openapi::api::core::v1 as k8s;

use super::{Converted, Findings, lookup, object_name};
use crate::cluster::address::{parse_cidr, parse_ip};
use crate::cluster::name::Name;
use crate::cluster::snapshot::{Node, ObjectName};

const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// The autoscaler is about to remove this node: load balancers should stop sending to it (KEP-3836).
const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Converts a Node; there is always a value.
pub fn node(object: &k8s::Node) -> Converted<Node> {
    // A Node has no namespace: problems name it alone.
    let name = ObjectName::new("", object_name(&object.metadata).name);
    let mut findings = Findings { object: format!("Node {}", name.name), problems: Vec::new() };
    let zone = lookup(object.metadata.labels.as_ref(), LABEL_ZONE).filter(|zone| !zone.is_empty());
    let mut pod_cidrs = Vec::new();
    for text in pod_cidr_texts(object) {
        match parse_cidr(text) {
            Some(cidr) => pod_cidrs.push(cidr),
            None => findings.add(format!("podCIDR {text:?} is not a CIDR; correct it")),
        }
    }
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let value = Node {
        name: name.name.clone(),
        zone: zone.map(Name::from),
        addresses: addresses(object, &mut findings),
        pod_cidrs,
        deleting: object.metadata.deletion_timestamp.is_some(),
        to_be_deleted: taints.iter().any(|taint| taint.key == TAINT_TO_BE_DELETED),
    };
    findings.finish(name, Some(value))
}

fn pod_cidr_texts(object: &k8s::Node) -> Vec<&str> {
    let Some(spec) = &object.spec else { return Vec::new() };
    match spec.pod_cidrs.as_deref() {
        Some(texts @ [_, ..]) => texts.iter().map(String::as_str).collect(),
        Some([]) | None => {
            spec.pod_cidr.as_deref().filter(|text| !text.is_empty()).into_iter().collect()
        }
    }
}

/// InternalIP before ExternalIP, as kube-proxy chooses its node address.
fn addresses(object: &k8s::Node, findings: &mut Findings) -> Vec<std::net::IpAddr> {
    let status = object.status.as_ref();
    let all = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for entry in all.iter().filter(|entry| entry.type_ == kind) {
            match parse_ip(&entry.address) {
                Some(address) if found.contains(&address) => {}
                Some(address) => found.push(address),
                None => findings.add(format!(
                    "{kind} {:?} is not an IP address, and is ignored; correct it",
                    entry.address
                )),
            }
        }
    }
    found
}
