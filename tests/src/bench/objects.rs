//! Ten thousand Services with ten endpoints each, as an API server shows them. Even numbers are IPv4,
//! odd ones IPv6; every 25th has a NodePort (and so a Maglev table); endpoints are spread over a hundred
//! nodes in three zones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::{ENDPOINTS, SERVICES};

/// The Services' port.
pub(super) const PORT: u16 = 80;
const ENDPOINT_PORT: u16 = 8080;

/// What endpoint `place` of a Service is: the first ones are 0, each replacement has a number of its own.
pub(super) type Replaced = u32;

/// The ClusterIP of a Service.
pub(super) fn cluster_ip(service: u32) -> IpAddr {
    let [_, _, high, low] = service.to_be_bytes();
    if service.is_multiple_of(2) {
        Ipv4Addr::new(10, 96, high, low).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, service as u16).into()
    }
}

/// The address of an endpoint.
fn endpoint(service: u32, place: u32, replaced: Replaced) -> IpAddr {
    let number = match replaced {
        0 => service * ENDPOINTS + place,
        replaced => SERVICES * ENDPOINTS + replaced,
    };
    let [_, high, middle, low] = number.to_be_bytes();
    if service.is_multiple_of(2) {
        Ipv4Addr::new(10, 128 + high, middle, low).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, high.into(), number as u16).into()
    }
}

/// All endpoint addresses of a Service, sorted; the one at place 0 may have been replaced.
pub(super) fn endpoints(service: u32, replaced: Replaced) -> Vec<IpAddr> {
    let first = endpoint(service, 0, replaced);
    let rest = (1..ENDPOINTS).map(|place| endpoint(service, place, 0));
    let mut all: Vec<_> = std::iter::once(first).chain(rest).collect();
    all.sort_unstable();
    all
}

fn metadata(service: u32, suffix: &str, version: u32) -> Value {
    json!({
        "name": format!("service-{service}{suffix}"),
        "namespace": format!("namespace-{}", service % 100),
        "uid": format!("00000000-0000-4000-8000-{service:012}"),
        "resourceVersion": version.to_string(),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app": format!("service-{service}")},
    })
}

/// A Service.
pub(super) fn service(service: u32) -> Value {
    let (address, family) = (cluster_ip(service), family(service));
    let kind = if service.is_multiple_of(25) { "NodePort" } else { "ClusterIP" };
    let node_port = service.is_multiple_of(25).then_some(30_000 + service / 25);
    json!({
        "metadata": metadata(service, "", service + 1),
        "spec": {
            "type": kind, "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": [family], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app": format!("service-{service}")},
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": ENDPOINT_PORT,
                       "nodePort": node_port}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// The EndpointSlice of a Service.
pub(super) fn slice(service: u32, replaced: Replaced) -> Value {
    let mut metadata = metadata(service, "-abcde", SERVICES + 1 + replaced);
    metadata["labels"]["kubernetes.io/service-name"] = format!("service-{service}").into();
    let endpoints: Vec<_> = (0..ENDPOINTS)
        .map(|place| {
            let node = (service + place) % 100;
            json!({
                "addresses": [endpoint(service, place, if place == 0 { replaced } else { 0 })],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": format!("node-{node}"), "zone": format!("zone-{}", node % 3),
                "targetRef": {"kind": "Pod", "name": format!("service-{service}-{place}"),
                              "namespace": format!("namespace-{}", service % 100)},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata, "addressType": family(service), "endpoints": endpoints,
        "ports": [{"name": "http", "protocol": "TCP", "port": ENDPOINT_PORT}],
    })
}

fn family(service: u32) -> &'static str {
    if service.is_multiple_of(2) { "IPv4" } else { "IPv6" }
}
