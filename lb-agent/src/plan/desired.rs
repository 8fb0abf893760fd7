//! What the datapath should hold: the output of `plan`, the input of `tables`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;

use crate::cluster::name::Name;
use crate::cluster::snapshot::{IpFamily, ObjectName, Problem, Protocol};

/// Identity of one load-balanced thing: a Service port in one family
/// (kube-proxy's ServicePortName, per family proxier).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortKey {
    /// The Service.
    pub service: ObjectName,
    /// Port name, may be empty.
    pub port_name: Name,
    /// Transport protocol.
    pub protocol: Protocol,
    /// IP family.
    pub family: IpFamily,
}

impl std::fmt::Display for ServicePortKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.port_name.is_empty() {
            write!(f, "{}", self.service)
        } else {
            write!(f, "{}:{}", self.service, self.port_name)
        }
    }
}

/// Which kind of address a frontend is; decides which policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// ClusterIP: internal traffic policy.
    ClusterIp,
    /// `spec.externalIPs`: external traffic policy.
    ExternalIp,
    /// Load balancer VIP: external traffic policy and source ranges.
    LoadBalancer,
    /// NodePort: external traffic policy; the address is the family's wildcard.
    NodePort,
}

/// What a packet's destination is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddress {
    /// Destination address; `0.0.0.0` or `::` for a NodePort (any address of the node).
    pub address: IpAddr,
    /// Destination port, host byte order.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl From<(Protocol, SocketAddr)> for FrontendAddress {
    fn from((protocol, at): (Protocol, SocketAddr)) -> Self {
        Self { address: at.ip(), port: at.port(), protocol }
    }
}

/// Where a backend runs, as far as the API tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Placement {
    /// `nodeName` is this node.
    Local,
    /// `nodeName` is another node.
    Remote,
    /// No `nodeName`: outside the cluster, or unknown; the route decides.
    Unknown,
}

/// An endpoint that may receive traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Address and port.
    pub address: SocketAddr,
    /// Where it runs.
    pub placement: Placement,
}

/// Which traffic an endpoint takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// That of Cluster policy.
    pub cluster: bool,
    /// That of Local policy.
    pub local: bool,
}

/// The endpoints of a Service port: one list, in an order in which those of each policy are
/// neighbours. First those for Local policy alone, then those for both, those for Cluster policy alone,
/// and those that take nothing new; by address within each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    backends: Box<[Backend]>,
    /// Those for Local policy are the first ones, so many.
    local: usize,
    /// Where those for Cluster policy are.
    cluster: Range<usize>,
}

impl Endpoints {
    /// Puts every endpoint that is ready or serving, each address once, into its place.
    pub fn new(serving: impl IntoIterator<Item = (Backend, Takes)>) -> Self {
        let place = |takes: Takes| match (takes.local, takes.cluster) {
            (true, false) => 0,
            (true, true) => 1,
            (false, true) => 2,
            (false, false) => 3,
        };
        let mut placed: Vec<(u8, Backend)> =
            serving.into_iter().map(|(backend, takes)| (place(takes), backend)).collect();
        placed.sort_unstable_by_key(|(place, backend)| (*place, backend.address));
        let start = |place: u8| placed.partition_point(|(other, _)| *other < place);
        let (local, cluster) = (start(2), start(1)..start(3));
        let backends = placed.iter().map(|(_, backend)| *backend).collect();
        Self { backends, local, cluster }
    }

    /// For Cluster policy. (`plan` finds every local one of them usable for Local policy too, so local
    /// ones come first.)
    pub fn cluster(&self) -> &[Backend] {
        self.backends.get(self.cluster.clone()).unwrap_or_default()
    }

    /// For Local policy.
    pub fn local(&self) -> &[Backend] {
        self.backends.get(..self.local).unwrap_or_default()
    }

    /// For either policy: [`local`](Self::local) is the head of it, [`cluster`](Self::cluster) the tail.
    pub fn chosen(&self) -> &[Backend] {
        self.backends.get(..self.local.max(self.cluster.end)).unwrap_or_default()
    }

    /// Every endpoint that is ready or serving, whatever the policies and hints: flows to these
    /// stay valid.
    pub fn serving(&self) -> &[Backend] {
        &self.backends
    }
}

/// Everything the datapath needs to know of one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortPlan {
    /// The addresses it answers on, won or lost (see [`Desired::frontends`] for who holds them).
    pub frontends: BTreeMap<FrontendAddress, FrontendKind>,
    /// Its endpoints, and which of them take which traffic.
    pub endpoints: Endpoints,
    /// Something usable exists somewhere in the cluster: decides REJECT against DROP.
    pub has_endpoints: bool,
    /// Internal traffic follows Local policy instead of Cluster.
    pub internal_local: bool,
    /// External traffic follows Local policy instead of Cluster.
    pub external_local: bool,
    /// ClientIP affinity timeout in seconds.
    pub affinity_timeout: Option<u32>,
    /// Allowed sources of the load balancer VIPs in this family; `None` allows all.
    pub source_ranges: Option<Vec<IpNet>>,
    /// Seconds since the epoch; the older Service wins a disputed address.
    pub created: i64,
}

impl ServicePortPlan {
    /// Endpoints that new flows are sent to under the policies that it has.
    pub fn active(&self) -> &[Backend] {
        if self.internal_local || self.external_local {
            self.endpoints.chosen()
        } else {
            self.endpoints.cluster()
        }
    }
}

/// What this node answers to health checks of one Service (`spec.healthCheckNodePort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// TCP port on which it is asked, host byte order.
    pub port: u16,
    /// IPv4 addresses of ready endpoints on this node, each counted once; `None` if the Service has
    /// no IPv4 ClusterIP, and then nobody asks by IPv4.
    pub local_ready4: Option<usize>,
    /// The same for IPv6.
    pub local_ready6: Option<usize>,
}

impl HealthCheck {
    /// Addresses of ready endpoints on this node; `None` if the Service doesn't have the family.
    pub fn local_ready(&self, family: IpFamily) -> Option<usize> {
        match family {
            IpFamily::V4 => self.local_ready4,
            IpFamily::V6 => self.local_ready6,
        }
    }
}

/// The whole desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// By Service port and family.
    pub ports: BTreeMap<ServicePortKey, Arc<ServicePortPlan>>,
    /// Who holds each frontend address after disputes are settled.
    pub frontends: BTreeMap<FrontendAddress, (ServicePortKey, FrontendKind)>,
    /// Services that load balancers ask this node about.
    pub health_checks: BTreeMap<ObjectName, HealthCheck>,
    /// Ranges that ClusterIPs are taken from, without host bits; `None` while nobody has told, and then the
    /// datapath keeps those that it has.
    pub ranges: Option<BTreeSet<IpNet>>,
    /// Disputes and what else could not be honoured, with the objects' names.
    pub problems: Vec<Problem>,
}

impl Desired {
    /// The ClusterIPs of all Services.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        let is_cluster_ip = |kind: &FrontendKind| *kind == FrontendKind::ClusterIp;
        let frontends = self.frontends.iter().filter(move |(_, (_, kind))| is_cluster_ip(kind));
        frontends.map(|(frontend, _)| frontend.address)
    }

    /// Applies a delta of [`super::Planner::apply`] to the state that it was computed from.
    pub fn apply(&mut self, delta: Delta) {
        for (key, plan) in delta.ports {
            match plan {
                Some(plan) => {
                    self.ports.insert(key, plan);
                }
                None => {
                    self.ports.remove(&key);
                }
            }
        }
        for (address, holder) in delta.frontends {
            match holder {
                Some(holder) => {
                    self.frontends.insert(address, holder);
                }
                None => {
                    self.frontends.remove(&address);
                }
            }
        }
        for (service, check) in delta.health_checks {
            match check {
                Some(check) => {
                    self.health_checks.insert(service, check);
                }
                None => {
                    self.health_checks.remove(&service);
                }
            }
        }
        if let Some(ranges) = delta.ranges {
            self.ranges = Some(ranges);
        }
        if let Some(problems) = delta.problems {
            self.problems = problems;
        }
    }
}

/// The difference that one batch of changes made to [`Desired`], in the same terms.
///
/// Applying every delta in order yields the same as applying the whole [`Desired`] once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// New or changed Service ports; `None` for those that are gone.
    pub ports: BTreeMap<ServicePortKey, Option<Arc<ServicePortPlan>>>,
    /// Frontends with a new holder or kind; `None` for those that are gone.
    pub frontends: BTreeMap<FrontendAddress, Option<(ServicePortKey, FrontendKind)>>,
    /// Health checks with a new port or count; `None` for those that are gone. Not for the datapath.
    pub health_checks: BTreeMap<ObjectName, Option<HealthCheck>>,
    /// All ranges that ClusterIPs are taken from, when they changed.
    pub ranges: Option<BTreeSet<IpNet>>,
    /// Problems that appeared or went away are recomputed whole when anything changed them.
    pub problems: Option<Vec<Problem>>,
}

impl Delta {
    /// Whether the datapath stays as it is.
    pub fn is_nothing_to_write(&self) -> bool {
        self.ports.is_empty() && self.frontends.is_empty() && self.ranges.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_takes_what_each_list_holds_exactly_its_endpoints() {
        let kinds = [(false, false), (false, true), (true, false), (true, true)];
        // Five endpoints, each of any of the four kinds.
        for code in 0..4usize.pow(5) {
            let serving: Vec<(Backend, Takes)> = (0..5u8)
                .map(|number| {
                    let (cluster, local) = kinds[code >> (2 * number) & 3];
                    let address = (IpAddr::from([10, 0, 0, number]), 80).into();
                    let placement = Placement::Unknown;
                    (Backend { address, placement }, Takes { cluster, local })
                })
                .collect();
            let of = |wanted: fn(&Takes) -> bool| -> Vec<Backend> {
                let those = serving.iter().filter(|(_, takes)| wanted(takes));
                those.map(|(backend, _)| *backend).collect()
            };
            let endpoints = Endpoints::new(serving.iter().rev().copied());
            let sorted = |list: &[Backend]| {
                let mut list = list.to_vec();
                list.sort();
                list
            };
            assert_eq!(sorted(endpoints.cluster()), of(|takes| takes.cluster), "{serving:?}");
            assert_eq!(sorted(endpoints.local()), of(|takes| takes.local), "{serving:?}");
            assert_eq!(sorted(endpoints.serving()), of(|_| true), "{serving:?}");
            let chosen = endpoints.chosen();
            assert_eq!(sorted(chosen), of(|takes| takes.cluster || takes.local), "{serving:?}");
            assert!(chosen.starts_with(endpoints.local()) && chosen.ends_with(endpoints.cluster()));
        }
    }
}
