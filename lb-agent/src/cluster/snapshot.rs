//! What the rest of the agent knows of the cluster: plain values, no Kubernetes types.
//!
//! Kubernetes types end in `cluster/`: a reflector and a manifest directory both produce these
//! values. Everything questionable in an object has been judged before it gets here; what could
//! not be used is a [`Problem`] beside the object, never a reason to lose the others.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::name::Name;

/// `namespace/name` of a Kubernetes object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace; never empty (manifests without one get `default`).
    pub namespace: Name,
    /// Name within the namespace.
    pub name: Name,
}

impl ObjectName {
    /// Joins the two parts.
    pub fn new(namespace: impl Into<Name>, name: impl Into<Name>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Transport protocols a Service port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP (6).
    Tcp,
    /// UDP (17).
    Udp,
    /// SCTP (132).
    Sctp,
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints on this node only.
    Local,
}

/// One `spec.ports[]` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port name; empty when the Service has a single unnamed port. The join key with slice ports.
    pub name: Name,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port of the Service's own addresses, host byte order, never 0.
    pub port: u16,
    /// NodePort, host byte order; `None` when there is none.
    pub node_port: Option<u16>,
}

/// A Service that belongs into the datapath (headless and ExternalName Services never get here).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since the epoch; older Services win disputed
    /// addresses. 0 when unknown (manifests).
    pub created: i64,
    /// One ClusterIP per family at most, in the order of `spec.clusterIPs`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, any family, parsed.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose ipMode is VIP (or unset).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, any family, parsed.
    pub source_ranges: Vec<IpNet>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// Policy for ClusterIP traffic.
    pub internal_policy: TrafficPolicy,
    /// Policy for NodePort, LoadBalancer and external addresses.
    pub external_policy: TrafficPolicy,
    /// ClientIP session affinity: timeout in seconds; `None` without affinity.
    pub affinity_timeout: Option<u32>,
    /// `spec.healthCheckNodePort` of a LoadBalancer Service with external policy Local.
    pub health_check_node_port: Option<u16>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `conditions.ready`, nil counts as true.
    pub ready: bool,
    /// `conditions.serving`, nil counts as true.
    pub serving: bool,
    /// `conditions.terminating`, nil counts as false.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Name>,
    /// `hints.forZones`, sorted, each once. (A set would take ten times the memory of its one name.)
    pub zone_hints: Box<[Name]>,
    /// `hints.forNodes`, likewise.
    pub node_hints: Box<[Name]>,
}

/// One `ports[]` entry of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Port name, empty allowed.
    pub name: Name,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number, host byte order, never 0.
    pub port: u16,
}

/// An EndpointSlice (or a mirrored Endpoints object) with addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its name.
    pub name: ObjectName,
    /// The Service that the label `kubernetes.io/service-name` names, in the slice's namespace.
    pub service: ObjectName,
    /// Family of every address in it.
    pub family: IpFamily,
    /// Ports; every port applies to every endpoint.
    pub ports: Vec<EndpointPort>,
    /// Endpoints in the order of the object.
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, if it parses.
    pub trigger_time: Option<std::time::SystemTime>,
}

/// A ServiceCIDR: ranges that ClusterIPs are taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name; the namespace is empty.
    pub name: ObjectName,
    /// `spec.cidrs`, parsed and without host bits.
    pub ranges: Vec<IpNet>,
}

/// Our own Node object, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Node name.
    pub name: Name,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Name>,
    /// `status.addresses` of type InternalIP, then ExternalIP, in order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Has the taint `ToBeDeletedByClusterAutoscaler`.
    pub to_be_deleted: bool,
}

/// Why an object, or a part of one, is not in the datapath. One line that names the remedy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The object: kind and name, for example `Service default/web` or `nodeport.yaml:12`.
    pub object: String,
    /// What is wrong and what to change.
    pub reason: String,
}

/// Everything known of the cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Services in the datapath, by name.
    pub services: BTreeMap<ObjectName, Service>,
    /// Slices by their own name.
    pub slices: BTreeMap<ObjectName, Slice>,
    /// Our own Node, once known.
    pub node: Option<Node>,
    /// ServiceCIDRs by name; `None` while nobody has told whether there are any.
    pub cidrs: Option<BTreeMap<ObjectName, ServiceCidr>>,
}

/// What changed since the last look: the unit of work between `cluster` and `plan`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service was added or changed.
    Service(Service),
    /// A Service went away (deleted, became headless or ExternalName, or belongs to another proxy).
    ServiceGone(ObjectName),
    /// A slice was added or changed.
    Slice(Slice),
    /// A slice went away.
    SliceGone(ObjectName),
    /// Our Node changed; `None` when it was deleted.
    Node(Option<Node>),
    /// A ServiceCIDR was added or changed.
    Cidr(ServiceCidr),
    /// A ServiceCIDR went away.
    CidrGone(ObjectName),
    /// A full list of ServiceCIDRs replaces what was known; empty where the cluster has none, or we may
    /// not see them.
    AllCidrs(Vec<ServiceCidr>),
    /// A full list of Services replaces what was known (first sync or relist).
    AllServices(Vec<Service>),
    /// A full list of slices replaces what was known.
    AllSlices(Vec<Slice>),
    /// What was wrong with one source object; an empty list clears earlier problems of `object`.
    Problems {
        /// The object, as in [`Problem::object`].
        object: String,
        /// Its present problems.
        problems: Vec<Problem>,
    },
}
