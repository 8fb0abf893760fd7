//! Which endpoints of a Service a packet may be sent to, or the verdict when there are none
//! (kube-proxy's rules: pkg/proxy/topology.go, nftables/proxier.go).

use super::frontend::Found;
use crate::abi::{FrontendKind, Region, ServiceFlags, ServiceRecord};

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
    /// One of the endpoints in `slots`; `maglev` is their hash table, empty when there is none.
    Endpoints {
        /// Region of SLOTS with each endpoint once.
        slots: Region,
        /// Region of SLOTS with the Maglev table.
        maglev: Region,
    },
    /// No endpoint anywhere: refuse.
    Refuse,
    /// Endpoints exist, but none that the policy allows: drop.
    Drop,
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
    let (slots, maglev) = if local {
        (record.local, record.local_maglev)
    } else {
        (record.cluster, record.cluster_maglev)
    };
    if slots.len != 0 {
        Allowed::Endpoints { slots, maglev }
    } else if record.flags & ServiceFlags::HAS_ENDPOINTS != 0 {
        Allowed::Drop
    } else {
        Allowed::Refuse
    }
}
