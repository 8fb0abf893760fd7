//! Which endpoints of a Service a packet may be sent to, or the verdict when there are none
//! (kube-proxy's rules: pkg/proxy/topology.go, nftables/proxier.go).

use super::frontend::Found;
use crate::abi::{BackendFlags, FrontendKind, Region, ServiceFlags, ServiceRecord};

/// Where a client is, as far as traffic policies care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A socket of this node or of a pod on it: external policies don't bind it ("short-circuit").
    OnNode,
    /// Anyone whose packets arrive on an external device.
    Outside,
}

/// What the policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// One of these endpoints.
    Endpoints(Candidates),
    /// No endpoint anywhere: refuse.
    Refuse,
    /// Endpoints exist, but none that the policy allows: drop.
    Drop,
}

/// The endpoints that the policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidates {
    /// Region of SLOTS with each endpoint once; not empty.
    pub slots: Region,
    /// Region of SLOTS with their Maglev table; empty when there is none.
    pub maglev: Region,
    /// The bit of [`BackendFlags`] that these endpoints have.
    pub list: u16,
    /// How long a client keeps its endpoint, seconds; `None` without session affinity.
    pub affinity: Option<u32>,
}

/// Applies the Service's policies.
#[inline(always)]
pub fn allowed(record: &ServiceRecord, found: &Found, client: Client) -> Allowed {
    let local = match (found.kind, client) {
        (FrontendKind::ClusterIp, _) => record.flags & ServiceFlags::INTERNAL_LOCAL != 0,
        (
            FrontendKind::ExternalIp | FrontendKind::LoadBalancer | FrontendKind::NodePort,
            Client::OnNode,
        ) => false,
        (
            FrontendKind::ExternalIp | FrontendKind::LoadBalancer | FrontendKind::NodePort,
            Client::Outside,
        ) => record.flags & ServiceFlags::EXTERNAL_LOCAL != 0,
    };
    let (slots, maglev, list) = if local {
        (record.local, record.local_maglev, BackendFlags::IN_LOCAL)
    } else {
        (record.cluster, record.cluster_maglev, BackendFlags::IN_CLUSTER)
    };
    if slots.len != 0 {
        Allowed::Endpoints(Candidates { slots, maglev, list, affinity: record.affinity() })
    } else if record.flags & ServiceFlags::HAS_ENDPOINTS != 0 {
        Allowed::Drop
    } else {
        Allowed::Refuse
    }
}
