//! Which Services are asked for their health on this node, and with how many endpoints they answer.
//!
//! A load balancer that keeps clients' addresses (external policy Local) must know which nodes have
//! endpoints; it asks each node's `healthCheckNodePort`. The rules are kube-proxy's (Kubernetes
//! v1.36: `HealthCheckNodePorts` in `pkg/proxy/servicechangetracker.go`, `LocalReadyEndpoints` in
//! `pkg/proxy/endpointschangetracker.go`). Knows nothing of servers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::PlanContext;
use super::desired::HealthCheck;
use super::endpoints::union;
use crate::cluster::name::Name;
use crate::cluster::snapshot::{IpFamily, Protocol, Service, Slice};

/// What this node answers to health checks of `service`; `None` if nobody asks for it. `slices` are
/// all slices of this Service and no others.
pub fn health_check<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    context: &PlanContext,
) -> Option<HealthCheck> {
    let port = service.health_check_node_port?;
    let count = |family| {
        let is_served = service.cluster_ips.iter().any(|&ip| IpFamily::of(ip) == family);
        is_served.then(|| local_ready(slices.clone(), family, context))
    };
    Some(HealthCheck { port, local_ready4: count(IpFamily::V4), local_ready6: count(IpFamily::V6) })
}

/// How many addresses of this node are ready endpoints, whatever the ports. Ready alone counts:
/// endpoints that are terminating serve while nothing better is left, but load balancers should
/// look elsewhere by then (KEP-1669).
fn local_ready<'a>(
    slices: impl Iterator<Item = &'a Slice> + Clone,
    family: IpFamily,
    context: &PlanContext,
) -> usize {
    let ports: BTreeSet<(&Name, Protocol)> = slices
        .clone()
        .filter(|slice| slice.family == family)
        .flat_map(|slice| slice.ports.iter().map(|port| (&port.name, port.protocol)))
        .collect();
    let addresses: BTreeSet<IpAddr> = ports
        .into_iter()
        .flat_map(|(name, protocol)| union(slices.clone(), name, protocol, family, context))
        .filter(|candidate| candidate.is_local() && candidate.is_ready())
        .map(|candidate| candidate.address())
        .collect();
    addresses.len()
}
