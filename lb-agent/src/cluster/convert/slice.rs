//! EndpointSlice → [`Slice`]: which slices, ports and endpoints count
//! (Kubernetes v1.36, `pkg/proxy/endpointslicecache.go`).

use std::collections::BTreeSet;
use std::time::SystemTime;

use k8s_openapi::api::discovery::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::{Converted, Findings, Repeated, lookup, object_name, port_number, protocol};
use crate::cluster::address::{parse_ip, unfit_endpoint};
use crate::cluster::name::Name;
use crate::cluster::snapshot::{Endpoint, EndpointPort, IpFamily, ObjectName, Slice};

/// Names the Service of a slice.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// A slice with this label, whatever its value, is not for proxies.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// When the change that the object reflects happened (RFC 3339).
const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Converts a slice. The value is `None` for slices that no proxy uses: headless ones, those
/// without a Service, and those whose addresses are not IP addresses.
pub fn slice(object: &k8s::EndpointSlice) -> Converted<Slice> {
    let name = object_name(&object.metadata);
    let mut findings = Findings::new("EndpointSlice", &name);
    let labels = object.metadata.labels.as_ref();
    if lookup(labels, LABEL_HEADLESS).is_some() {
        return findings.finish(name, None);
    }
    let Some(service) = lookup(labels, LABEL_SERVICE_NAME).filter(|text| !text.is_empty()) else {
        findings.add(format!(
            "has no label {LABEL_SERVICE_NAME}, and is ignored; set it to the Service's name"
        ));
        return findings.finish(name, None);
    };
    let family = match object.address_type.as_str() {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        other => {
            findings.add(format!(
                "has addressType {other:?}, and is ignored; only IPv4 and IPv6 can be balanced"
            ));
            return findings.finish(name, None);
        }
    };
    let value = Slice {
        name: name.clone(),
        service: ObjectName::new(name.namespace.clone(), service),
        family,
        ports: ports(object, &mut findings),
        endpoints: endpoints(object, family, &mut findings),
        trigger_time: trigger_time(&object.metadata),
    };
    findings.finish(name, Some(value))
}

/// The annotation's time; a text that doesn't parse is as good as none (it only feeds a metric).
pub(super) fn trigger_time(metadata: &ObjectMeta) -> Option<SystemTime> {
    let text = lookup(metadata.annotations.as_ref(), ANNOTATION_TRIGGER_TIME)?;
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

fn ports(object: &k8s::EndpointSlice, findings: &mut Findings) -> Vec<EndpointPort> {
    let mut bad = Repeated::default();
    let mut found = Vec::new();
    for (index, port) in object.ports.iter().flatten().enumerate() {
        match slice_port(port) {
            Ok(port) => found.push(port),
            Err(why) => bad.add(|| format!("ports[{index}] {why}")),
        }
    }
    bad.report(findings);
    found.shrink_to_fit();
    found
}

/// A port without name or number means "any", which a load balancer can't honour; the API server
/// fills in the empty name, so a missing one was never meant for us.
fn slice_port(port: &k8s::EndpointPort) -> Result<EndpointPort, String> {
    let Some(name) = port.name.as_ref().map(Name::from) else {
        return Err("has no name, and is ignored; set the name of the Service's port".into());
    };
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        return Err(format!(
            "has the unknown protocol {:?}, and is ignored; use TCP, UDP or SCTP",
            port.protocol.as_deref().unwrap_or_default()
        ));
    };
    let Some(number) = port.port else {
        return Err("has no port number, and is ignored; set one".into());
    };
    match port_number(number) {
        Some(port) => Ok(EndpointPort { name, protocol, port }),
        None => Err(format!("has port {number}, and is ignored; use 1 to 65535")),
    }
}

fn endpoints(
    object: &k8s::EndpointSlice,
    family: IpFamily,
    findings: &mut Findings,
) -> Vec<Endpoint> {
    let mut bad = Repeated::default();
    let objects = object.endpoints.as_deref().unwrap_or_default();
    let mut found = Vec::with_capacity(objects.len());
    for (index, endpoint) in objects.iter().enumerate() {
        match endpoint_value(endpoint, family) {
            Ok(endpoint) => found.push(endpoint),
            Err(why) => bad.add(|| format!("endpoints[{index}] {why}")),
        }
    }
    bad.report(findings);
    found
}

fn endpoint_value(endpoint: &k8s::Endpoint, family: IpFamily) -> Result<Endpoint, String> {
    let Some(text) = endpoint.addresses.first() else {
        return Err("has no address, and is ignored; set one".into());
    };
    let address = endpoint_address(text, family)?;
    let conditions = endpoint.conditions.as_ref();
    let hints = endpoint.hints.as_ref();
    Ok(Endpoint {
        address,
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node: endpoint.node_name.as_ref().map(Name::from),
        zone_hints: names(hints.and_then(|hints| hints.for_zones.as_deref()), |zone| &zone.name),
        node_hints: names(hints.and_then(|hints| hints.for_nodes.as_deref()), |node| &node.name),
    })
}

/// Reads an endpoint's address; the error says what is wrong with it and what to do.
pub(super) fn endpoint_address(text: &str, family: IpFamily) -> Result<std::net::IpAddr, String> {
    let Some(address) = parse_ip(text) else {
        return Err(format!(
            "has {text:?}, which is not an IP address, and is ignored; correct it"
        ));
    };
    if IpFamily::of(address) != family {
        return Err(format!(
            "has {text}, which is not of the slice's addressType, and is ignored; put it into a \
             slice of its own family"
        ));
    }
    match unfit_endpoint(address) {
        Some(why) => Err(format!("has {text}, {why}, and is ignored; use the pod's own address")),
        None => Ok(address),
    }
}

/// The names in hints, sorted, each once.
fn names<T>(hints: Option<&[T]>, name: impl Fn(&T) -> &String) -> Box<[Name]> {
    let names: BTreeSet<&String> = hints.unwrap_or_default().iter().map(name).collect();
    names.into_iter().map(Name::from).collect()
}
