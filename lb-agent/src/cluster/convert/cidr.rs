//! ServiceCIDR → [`ServiceCidr`]: the ranges that ClusterIPs are taken from.
//!
//! Conditions and deletion don't matter, as for kube-proxy (pkg/proxy/config/config.go,
//! `ServiceCIDRConfig`): as long as the object is there, a Service may still have an address of it.

use k8s_openapi::api::networking::v1 as networking;

use super::{Converted, Findings, object_name};
use crate::cluster::address::parse_cidr;
use crate::cluster::snapshot::{ObjectName, ServiceCidr};

/// Converts a ServiceCIDR; there is always a value.
pub fn cidr(object: &networking::ServiceCIDR) -> Converted<ServiceCidr> {
    // It has no namespace: problems name it alone.
    let name = ObjectName::new("", object_name(&object.metadata).name);
    let mut findings =
        Findings { object: format!("ServiceCIDR {}", name.name), problems: Vec::new() };
    let texts = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    let mut ranges = Vec::new();
    for text in texts {
        match parse_cidr(text) {
            Some(range) => ranges.push(range.trunc()),
            None => findings.add(format!("range {text:?} is not a CIDR; correct it")),
        }
    }
    let value = ServiceCidr { name: name.clone(), ranges };
    findings.finish(name, Some(value))
}
