//! Which endpoints of a Service a packet may be sent to, or the verdict when there are none
//! (kube-proxy's rules: pkg/proxy/topology.go, nftables/proxier.go).

use super::frontend::Found;
use crate::abi::{BackendFlags, FrontendKind, Region, ServiceFlags, ServiceRecord, SourceSet};

/// Where a client is, as far as traffic policies care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A socket of this node, or of a pod on it, or such a pod's packets: external policies don't bind
    /// them ("short-circuit").
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

/// Whether the endpoint may see an address of the node for the client's, if the operator wants that for all
/// traffic: what kube-proxy masquerades with `masqueradeAll` (pkg/proxy/nftables/proxier.go, the chains of
/// external traffic and of the ClusterIP).
#[inline(always)]
#[must_use]
pub fn may_be_masqueraded(record: &ServiceRecord, found: &Found) -> bool {
    found.kind == FrontendKind::ClusterIp || record.flags & ServiceFlags::EXTERNAL_LOCAL == 0
}

/// Whether the call of a socket of this node that was dropped in silence still would be. `sources`: the
/// set of source ranges that the client wasn't in; nothing else drops what is for a load balancer's address.
pub fn still_silent(record: &ServiceRecord, found: &Found, sources: SourceSet) -> bool {
    match found.kind {
        FrontendKind::LoadBalancer => {
            record.flags & ServiceFlags::SOURCE_RANGES != 0 && record.sources == sources
        }
        FrontendKind::ClusterIp | FrontendKind::ExternalIp | FrontendKind::NodePort => {
            allowed(record, found, Client::OnNode) == Allowed::Drop
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::ServiceIndex;

    #[test]
    fn silence_lasts_while_policy_or_ranges_that_made_it_do() {
        const LOCAL: u32 = ServiceFlags::HAS_ENDPOINTS | ServiceFlags::INTERNAL_LOCAL;
        const RANGES: u32 = ServiceFlags::HAS_ENDPOINTS | ServiceFlags::SOURCE_RANGES;
        let (some, none) = (Region { offset: 8, len: 1 }, Region::default());
        let (cluster_ip, balancer) = (FrontendKind::ClusterIp, FrontendKind::LoadBalancer);
        for (case, kind, flags, local, sources, silent) in [
            ("endpoints elsewhere alone", cluster_ip, LOCAL, none, 0, true),
            ("an endpoint here", cluster_ip, LOCAL, some, 0, false),
            ("policy Cluster", cluster_ip, LOCAL ^ ServiceFlags::INTERNAL_LOCAL, some, 0, false),
            ("no endpoints: refused", cluster_ip, ServiceFlags::INTERNAL_LOCAL, none, 0, false),
            ("the same ranges", balancer, RANGES, some, 5, true),
            ("the same, and endpoints elsewhere", balancer, RANGES | LOCAL, some, 5, true),
            ("other ranges", balancer, RANGES, some, 6, false),
            ("no ranges", balancer, LOCAL, some, 5, false),
            ("ranges don't bind this address", cluster_ip, RANGES, some, 5, false),
        ] {
            let (sources, cluster) = (SourceSet(sources), Region { offset: 0, len: 2 });
            let record =
                ServiceRecord { flags, cluster, local, sources, ..ServiceRecord::default() };
            let found = Found { service: ServiceIndex(1), kind };
            assert_eq!(still_silent(&record, &found, SourceSet(5)), silent, "{case}");
        }
    }
}
