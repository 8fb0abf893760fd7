//! What a Service promises, said as plainly as possible: the model of kube-proxy's contract.
//!
//! Given the objects of a cluster, this node and somebody who asks for an address, [`answer`] says which
//! verdict is due, which endpoints may get the traffic, which addresses either side sees, and by
//! which rules. It is slow, keeps no state but what affinity remembers ([`affinity`]), and shares no
//! line with `cluster::convert`, `plan`, `tables` or the datapath, so that it can judge them; only
//! types of names and addresses are common.
//!
//! The rules are kube-proxy's (Kubernetes v1.36, `pkg/proxy`, nftables mode). Where this datapath
//! promises more, and says so in docs/design.md, the model follows it: the source stays for endpoints
//! on this node, TCP is refused by a reset, NodePorts are on loopback for the node's own
//! sockets, one address that several Services claim has one holder on every node.

mod address;
pub mod affinity;
mod endpoints;
mod frontends;
mod objects;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::cluster::snapshot::{IpFamily, ObjectName, Protocol};
use affinity::Memory;
use endpoints::Policy;
use frontends::{Kind, Owner};

/// The objects of a cluster as the API server has them.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Services by namespace and name.
    pub services: BTreeMap<ObjectName, Service>,
    /// EndpointSlices likewise.
    pub slices: BTreeMap<ObjectName, EndpointSlice>,
    /// The Node object of this node.
    pub node: Option<Node>,
}

/// This node, as its kernel knows it.
#[derive(Clone, Debug, Default)]
pub struct Here {
    /// The node's name.
    pub name: String,
    /// The addresses of its devices, loopback and link-local ones aside; true where NodePorts are served.
    pub addresses: BTreeMap<IpAddr, bool>,
    /// The addresses of its pods.
    pub pods: BTreeSet<IpAddr>,
    /// Whether it was told to masquerade all (`masqueradeAll`).
    pub masquerades_all: bool,
}

/// Where somebody is who asks for an address.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Place {
    /// Outside this node, other nodes and their pods included.
    Outside,
    /// In a pod of this node.
    Pod,
    /// On the node itself.
    Node,
}

/// How somebody asks.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum By {
    /// With the first packet of a flow.
    Packet,
    /// With a call on a socket (`connect`, `sendmsg`).
    Call,
}

/// Somebody asks for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Where they are.
    pub from: Place,
    /// How they ask.
    pub by: By,
    /// Their address; `None` for a socket of which nobody knows what it will send from.
    pub source: Option<IpAddr>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The address that they ask for.
    pub destination: SocketAddr,
}

/// What is due to somebody who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not a Service's: nothing happens.
    NotOurs,
    /// They are told that nobody listens.
    Refuse(Refusal),
    /// Nothing comes back.
    Drop,
    /// The traffic goes to one of several endpoints.
    Translate(Translation),
}

/// How somebody is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// By a TCP reset.
    Reset,
    /// By an ICMP "port unreachable".
    PortUnreachable,
    /// The call fails: `ECONNREFUSED`.
    Call,
}

/// Where traffic goes, and what either side sees of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Every endpoint that is allowed, and the source that it sees.
    pub backends: BTreeMap<SocketAddr, Source>,
    /// From where the client believes to be answered.
    pub shown: SocketAddr,
}

/// Which source an endpoint sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's own.
    Client,
    /// One of this node's.
    Node,
}

/// A verdict and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What is due.
    pub verdict: Verdict,
    /// The rules that led there, in their order.
    pub because: Vec<Reason>,
    /// What is remembered under, when the Service has session affinity and the verdict is to translate.
    pub remembered_as: Option<affinity::Key>,
}

/// A rule and what it said here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The rule's name.
    pub rule: &'static str,
    /// What it found.
    pub finding: String,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.finding)
    }
}

/// What this question deserves. `memory` is what affinity remembers at `now`, in seconds.
pub fn answer(
    cluster: &Cluster,
    here: &Here,
    memory: &Memory,
    now: u64,
    question: &Question,
) -> Answer {
    let mut because = Vec::new();
    let (verdict, remembered_as) = judge(cluster, here, memory, now, question, &mut because);
    Answer { verdict, because, remembered_as }
}

/// The addresses and ports that Services answer on, and for which protocol: worth asking for. NodePorts have
/// the unspecified address of their family.
pub fn frontends(cluster: &Cluster) -> Vec<(SocketAddr, Protocol)> {
    frontends::all(cluster).into_keys().collect()
}

/// Every endpoint that serves some Service port of this protocol: conntrack keeps a datagram's flow to one
/// of them, whatever the policies say by now (`pkg/proxy/conntrack/cleanup.go`), and to no other.
pub fn serving(cluster: &Cluster, here: &Here, protocol: Protocol) -> BTreeSet<SocketAddr> {
    let mut serving = BTreeSet::new();
    for service in objects::services(cluster) {
        for port in service.ports.iter().filter(|port| port.protocol == protocol) {
            for family in [IpFamily::V4, IpFamily::V6] {
                let endpoints = endpoints::of_port(cluster, here, &service, port, family);
                let those = endpoints.iter().filter(|one| one.is_serving());
                serving.extend(those.map(|one| one.address));
            }
        }
    }
    serving
}

fn judge(
    cluster: &Cluster,
    here: &Here,
    memory: &Memory,
    now: u64,
    question: &Question,
    because: &mut Vec<Reason>,
) -> (Verdict, Option<affinity::Key>) {
    let mut say = |rule, finding: String| because.push(Reason { rule, finding });
    let owner = match owner(cluster, here, question) {
        Found::Owner(owner) => owner,
        Found::UnknownPort => {
            say("a ClusterIP refuses on ports that no Service has there", text(question));
            return (refusal(question), None);
        }
        Found::Nobody => {
            say("an address that no Service has is left alone", text(question));
            return (Verdict::NotOurs, None);
        }
    };
    let Owner { service, port, kind } = &*owner;
    let family = IpFamily::of(question.destination.ip());
    say("an address has one holder", format!("{kind:?} of {}", owner.name()));

    if *kind == Kind::LoadBalancer
        && let Some(ranges) = frontends::source_ranges(cluster, service, family)
    {
        let admitted = question
            .source
            .is_some_and(|source| ranges.iter().any(|range| range.contains(&source)));
        let source = question.source.map_or("unknown".to_owned(), |source| source.to_string());
        let verb = if admitted { "is" } else { "isn't" };
        say("source ranges come first", format!("{source} {verb} in {ranges:?}"));
        if !admitted {
            return (Verdict::Drop, None);
        }
    }

    let policy = policy(service, *kind, question.from, &mut say);
    let endpoints = endpoints::of_port(cluster, here, service, port, family);
    let (chosen, why) = endpoints::choose(&endpoints, policy, cluster, here);
    say("which endpoints a policy allows", why);
    if chosen.is_empty() {
        let usable = endpoints.iter().filter(|one| one.is_usable()).count();
        say(
            "usable endpoints elsewhere mean silence, none at all a refusal",
            format!("{usable} of {} are usable", endpoints.len()),
        );
        return (if usable == 0 { refusal(question) } else { Verdict::Drop }, None);
    }

    let is_masked = here.masquerades_all
        && (*kind == Kind::ClusterIp || service.external_policy == Policy::Cluster);
    if is_masked {
        say("all is masqueraded but what externalTrafficPolicy Local spares", owner.name());
    }
    let seen = |one: &&endpoints::Endpoint| match source_seen(here, one, question) {
        Source::Client if is_masked && question.by == By::Packet => behind_node(here, one),
        source => source,
    };
    let mut allowed: BTreeMap<SocketAddr, Source> =
        chosen.iter().map(|one| (one.address, seen(one))).collect();
    let key = service.affinity.map(|timeout| affinity::Key::new(&owner, question, timeout));
    if let Some(key) = &key
        && let Some(backend) = memory.recall(key, now)
    {
        let keeps = allowed.contains_key(&backend);
        let verb = if keeps { "allowed" } else { "not allowed any more" };
        say("session affinity keeps an endpoint that is allowed", format!("{backend} is {verb}"));
        if keeps {
            allowed.retain(|address, _| *address == backend);
        }
    }
    let translation = Translation { backends: allowed, shown: question.destination };
    (Verdict::Translate(translation), key)
}

/// Who answers on the destination.
enum Found {
    Owner(Box<Owner>),
    UnknownPort,
    Nobody,
}

/// Addresses of Services first; then NodePorts, on addresses of the node that serve them.
fn owner(cluster: &Cluster, here: &Here, question: &Question) -> Found {
    let (address, port) = (question.destination.ip(), question.destination.port());
    let owners = frontends::all(cluster);
    let held = |address: IpAddr| {
        owners.get(&(SocketAddr::new(address, port), question.protocol)).cloned().map(Box::new)
    };
    // The unspecified address is that of NodePorts in `owners`; a socket that names it means loopback.
    if !address.is_unspecified()
        && let Some(owner) = held(address)
    {
        return Found::Owner(owner);
    }
    let loopback = address.is_loopback() || address.is_unspecified();
    let own_loopback = loopback && question.from == Place::Node && question.by == By::Call;
    let serves = here.addresses.get(&address).copied().unwrap_or(false);
    if (own_loopback || serves)
        && let Some(owner) = held(frontends::any_address(IpFamily::of(address)))
    {
        return Found::Owner(owner);
    }
    let is_cluster_ip =
        owners.iter().any(|((at, _), owner)| at.ip() == address && owner.kind == Kind::ClusterIp);
    if is_cluster_ip && !here.addresses.contains_key(&address) {
        Found::UnknownPort
    } else {
        Found::Nobody
    }
}

/// The policy for this kind of address and this client.
fn policy(
    service: &objects::Service,
    kind: Kind,
    from: Place,
    say: &mut impl FnMut(&'static str, String),
) -> Policy {
    let internal = kind == Kind::ClusterIp;
    let set = if internal { service.internal_policy } else { service.external_policy };
    let field = if internal { "internalTrafficPolicy" } else { "externalTrafficPolicy" };
    if !internal && from != Place::Outside && set == Policy::Local {
        say(
            "clients on this node aren't bound by externalTrafficPolicy",
            "Cluster, as if the traffic had gone out and come back".to_owned(),
        );
        return Policy::Cluster;
    }
    say("a kind of address has its own policy", format!("{field} {set:?}"));
    set
}

fn refusal(question: &Question) -> Verdict {
    Verdict::Refuse(match (question.by, question.protocol) {
        (By::Call, _) => Refusal::Call,
        (By::Packet, Protocol::Tcp) => Refusal::Reset,
        (By::Packet, Protocol::Udp | Protocol::Sctp) => Refusal::PortUnreachable,
    })
}

/// A socket's traffic is translated before it has a source. A packet from outside keeps its source unless
/// the endpoint is elsewhere: the answers must come back through this node. They do to a pod's packet, but
/// a pod that reaches itself wouldn't take a packet from its own address.
fn source_seen(here: &Here, endpoint: &endpoints::Endpoint, question: &Question) -> Source {
    let address = endpoint.address.ip();
    let is_here =
        endpoint.local || here.pods.contains(&address) || here.addresses.contains_key(&address);
    let keeps = match (question.by, question.from) {
        (By::Call, _) => true,
        (By::Packet, Place::Pod) => question.source != Some(address),
        (By::Packet, Place::Outside | Place::Node) => is_here,
    };
    if keeps { Source::Client } else { Source::Node }
}

/// What masquerading does: packets that leave the node's stack get its address, those for the node itself
/// stay in it.
fn behind_node(here: &Here, endpoint: &endpoints::Endpoint) -> Source {
    if here.addresses.contains_key(&endpoint.address.ip()) { Source::Client } else { Source::Node }
}

fn text(question: &Question) -> String {
    let protocol = match question.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    format!("{}/{protocol}", question.destination)
}
