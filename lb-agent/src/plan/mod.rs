//! Pure planning: cluster values to the desired datapath.
//!
//! Decides which endpoints each Service port uses (`endpoints`), on which addresses it answers
//! (`service`), who holds an address that several claim (`claims`), which ranges are the cluster's
//! (`ranges`), and what load balancers are told of this node (`health`). [`plan`] computes the whole from a [`Snapshot`]; [`Planner`] keeps it up
//! to date at the cost of what changed, and ends in the same state. Knows neither Kubernetes types
//! nor maps, and does no I/O.

mod claims;
pub mod desired;
mod endpoints;
mod health;
mod planner;
mod ranges;
mod service;

pub use planner::Planner;
pub use ranges::RANGES_MAX;
pub use service::plan_service;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::name::Name;
use crate::cluster::snapshot::{Node, ObjectName, Slice, Snapshot};
use claims::Claims;
use desired::Desired;
use health::health_check;

/// What a plan depends on beside the Service and its slices: who and where this node is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanContext {
    /// Our node's name; endpoints with exactly this `nodeName` are local.
    pub node_name: Name,
    /// Our zone, from the Node's label.
    pub zone: Option<Name>,
    /// The Node's addresses: a source range that holds one of them admits the node itself.
    pub node_addresses: Vec<IpAddr>,
}

impl PlanContext {
    /// The context of `node_name`, with what its Node object tells if there is one.
    pub fn new(node_name: &str, node: Option<&Node>) -> Self {
        Self {
            node_name: node_name.into(),
            zone: node.and_then(|node| node.zone.clone()),
            node_addresses: node.map(|node| node.addresses.clone()).unwrap_or_default(),
        }
    }
}

/// The desired state of a whole snapshot, from scratch.
///
/// [`Planner::desired`] must equal this after any sequence of changes that ends in `snapshot`.
pub fn plan(snapshot: &Snapshot, node_name: &str) -> Desired {
    let context = PlanContext::new(node_name, snapshot.node.as_ref());
    let mut slices: BTreeMap<&ObjectName, Vec<&Slice>> = BTreeMap::new();
    for slice in snapshot.slices.values() {
        slices.entry(&slice.service).or_default().push(slice);
    }
    let mut desired = Desired::default();
    let mut claims = Claims::default();
    for (name, service) in &snapshot.services {
        let own = slices.get(name).map(Vec::as_slice).unwrap_or_default();
        let ports = plan_service(service, own.iter().copied(), &context);
        for (key, port) in &ports {
            claims.add(key, port);
        }
        desired.ports.extend(ports.into_iter().map(|(key, port)| (key, Arc::new(port))));
        let check = health_check(service, own.iter().copied(), &context);
        desired.health_checks.extend(check.map(|check| (name.clone(), check)));
    }
    claims.settle_all();
    desired.frontends = claims.holders();
    desired.problems = claims.problems();
    if let Some(cidrs) = &snapshot.cidrs {
        let (ranges, problems) = ranges::ranges(cidrs);
        desired.ranges = Some(ranges);
        desired.problems.extend(problems);
    }
    desired
}

#[cfg(test)]
mod tests;
