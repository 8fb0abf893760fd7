//! Which endpoints a Service port uses on this node: readiness, locality, topology, fallback.
//!
//! The rules are kube-proxy's (Kubernetes v1.36: `pkg/proxy/endpointslicecache.go` for the union
//! of slices, `pkg/proxy/topology.go` for the choice). Knows nothing of frontends and policies:
//! it answers for both policies, and the caller says which traffic uses which.

use std::net::{IpAddr, SocketAddr};

use super::PlanContext;
use super::desired::{Backend, Endpoints, Placement, Takes};
use crate::cluster::name::Name;
use crate::cluster::snapshot::{Endpoint, IpFamily, Protocol, Slice};

/// The chosen endpoints of one Service port in one family.
pub(super) struct Choice {
    /// Ready or serving ones.
    pub endpoints: Endpoints,
    /// Something usable exists anywhere.
    pub has_endpoints: bool,
}

/// An endpoint of a slice with one of the slice's ports.
pub(super) struct Candidate<'a> {
    backend: Backend,
    endpoint: &'a Endpoint,
}

impl Candidate<'_> {
    /// May take traffic when nothing ready is left (KEP-1669).
    fn is_fallback(&self) -> bool {
        self.endpoint.serving && self.endpoint.terminating
    }

    pub(super) fn is_ready(&self) -> bool {
        self.endpoint.ready
    }

    pub(super) fn is_local(&self) -> bool {
        self.backend.placement == Placement::Local
    }

    pub(super) fn address(&self) -> IpAddr {
        self.backend.address.ip()
    }
}

/// Chooses among the endpoints of `slices` (all of one Service) for the port that `name`,
/// `protocol` and `family` identify.
pub(super) fn choose<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    name: &Name,
    protocol: Protocol,
    family: IpFamily,
    context: &PlanContext,
) -> Choice {
    let candidates = union(slices, name, protocol, family, context);
    let topology = Topology::of(&candidates, context);
    let for_cluster = |one: &Candidate| one.endpoint.ready && topology.admits(one, context);
    let for_local = |one: &Candidate| one.endpoint.ready && one.is_local();
    let cluster_is_ready = candidates.iter().any(for_cluster);
    let local_is_ready = candidates.iter().any(for_local);
    let takes = |one: &Candidate| Takes {
        cluster: if cluster_is_ready { for_cluster(one) } else { one.is_fallback() },
        local: if local_is_ready { for_local(one) } else { one.is_local() && one.is_fallback() },
    };
    let serving = candidates.iter().filter(|one| one.endpoint.ready || one.endpoint.serving);
    Choice {
        endpoints: Endpoints::new(serving.map(|one| (one.backend, takes(one)))),
        has_endpoints: candidates.iter().any(|one| one.endpoint.ready || one.is_fallback()),
    }
}

/// All slices together, sorted by address, each address once: the first one found stays, but an
/// endpoint that isn't terminating replaces one that is (a pod's address that was reused).
pub(super) fn union<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    name: &Name,
    protocol: Protocol,
    family: IpFamily,
    context: &PlanContext,
) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for slice in slices.filter(|slice| slice.family == family) {
        for port in &slice.ports {
            if port.name != *name || port.protocol != protocol {
                continue;
            }
            candidates.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                backend: Backend {
                    address: SocketAddr::new(endpoint.address, port.port),
                    placement: placement(endpoint, context),
                },
                endpoint,
            }));
        }
    }
    // Stable, so that "first" below is the order of slices and endpoints.
    candidates.sort_by_key(|candidate| candidate.backend.address);
    candidates.dedup_by(|later, kept| {
        let same = later.backend.address == kept.backend.address;
        if same && kept.endpoint.terminating && !later.endpoint.terminating {
            std::mem::swap(later, kept);
        }
        same
    });
    candidates
}

fn placement(endpoint: &Endpoint, context: &PlanContext) -> Placement {
    match &endpoint.node {
        None => Placement::Unknown,
        Some(node) if *node == context.node_name => Placement::Local,
        Some(_) => Placement::Remote,
    }
}

/// How hints restrict the ready endpoints (`topologyModeFromHints`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    /// Hints are not used.
    Anywhere,
    /// Only endpoints whose hints name this node.
    SameNode,
    /// Only endpoints whose hints name this zone.
    SameZone,
}

impl Topology {
    /// Decided over ready endpoints only; one of them without a hint disables that kind of hint,
    /// and hints that leave nothing for us are not followed.
    fn of(candidates: &[Candidate], context: &PlanContext) -> Self {
        let ready = || candidates.iter().filter(|candidate| candidate.endpoint.ready);
        let usable = |hints: fn(&Endpoint) -> &[Name], ours: &Name| {
            ready().all(|candidate| !hints(candidate.endpoint).is_empty())
                && ready().any(|candidate| hints(candidate.endpoint).contains(ours))
        };
        if usable(|endpoint| &endpoint.node_hints, &context.node_name) {
            return Self::SameNode;
        }
        match &context.zone {
            Some(zone) if usable(|endpoint| &endpoint.zone_hints, zone) => Self::SameZone,
            Some(_) | None => Self::Anywhere,
        }
    }

    fn admits(self, candidate: &Candidate, context: &PlanContext) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameNode => candidate.endpoint.node_hints.contains(&context.node_name),
            Self::SameZone => {
                let zone = context.zone.as_ref();
                zone.is_some_and(|zone| candidate.endpoint.zone_hints.contains(zone))
            }
        }
    }
}
