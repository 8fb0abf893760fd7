//! Random cases. Few names and addresses, so that they meet; most objects are good ones.

use super::case::{Ask, Case, How, PROTOCOLS, Step};
use super::objects::{
    NODE_PORTS, PORTS, SERVICES, SLICES, cluster_ips, frontends, node, service, slice,
};
use super::scenery::{self, CLIENTS, OWN, PODS, both};
use lb_agent::cluster::snapshot::Protocol;
use lb_agent::contract::{self, Cluster, Place};
use lb_common::model::scene::Role;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A case in which all is put up, changed and asked for.
pub fn case() -> impl Strategy<Value = Case> {
    let node_ports = subsequence(OWN.into_iter().flat_map(both).collect::<Vec<_>>(), 4..=6);
    // Boxed: a strategy holds those that it is made of, and these would fill a thread's stack.
    let services = SERVICES.map(|name| weighted(0.9, service(name).boxed()));
    let slices = SLICES.map(|usual| weighted(0.95, slice(usual).boxed()));
    let start = (services, slices, weighted(0.8, node())).prop_map(|(services, slices, node)| {
        node.into_iter()
            .chain(services.into_iter().flatten())
            .chain(slices.into_iter().flatten())
            .collect::<Vec<Step>>()
    });
    let later = prop_oneof![
        8 => raw_ask().prop_map(Later::Ask),
        // Affinity is about those who ask again.
        4 => any::<Index>().prop_map(Later::Again),
        2 => select(&SERVICES[..]).prop_flat_map(|name| service(name).boxed()).prop_map(Later::Step),
        3 => select(&SLICES[..]).prop_flat_map(|usual| slice(usual).boxed()).prop_map(Later::Step),
        1 => change().prop_map(Later::Step),
    ];
    let drawn = (node_ports, prop::bool::weighted(0.25), start, vec(later, 4..20));
    drawn.prop_map(|(node_ports, masquerades_all, start, later)| {
        let mut steps = start;
        for one in later {
            let step = match one {
                Later::Step(step) => step,
                Later::Ask(raw) => Step::Ask(raw.aim(&steps)),
                Later::Again(index) => {
                    let is_ask = |step: &&Step| matches!(step, Step::Ask(_));
                    let asked: Vec<&Step> = steps.iter().filter(is_ask).collect();
                    if asked.is_empty() { Step::Tidy } else { (*index.get(&asked)).clone() }
                }
            };
            steps.push(step);
        }
        Case { node_ports, masquerades_all, steps }
    })
}

/// What comes after the start.
#[derive(Clone, Debug)]
enum Later {
    Step(Step),
    Ask(RawAsk),
    /// One of the questions so far.
    Again(Index),
}

/// Small changes.
fn change() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => select(&SERVICES[..]).prop_map(|name| Step::NoService(name.to_owned())),
        2 => select(&SLICES[..]).prop_map(|(name, ..)| Step::NoSlice(name.to_owned())),
        1 => node(),
        2 => Just(Step::Tidy),
        2 => Just(Step::Restart),
        // No sum of these is the timeout of an affinity.
        2 => select(vec![7, 53]).prop_map(Step::Wait),
    ]
}

/// A question that doesn't know yet what for.
#[derive(Clone, Debug)]
struct RawAsk {
    how: How,
    place: Place,
    source: Index,
    /// Which of the addresses that Services answer on.
    frontend: Index,
    /// Rather another address than a ClusterIP.
    external: bool,
    /// Which of the node's addresses, for a NodePort.
    own: Index,
    /// Another protocol, address or port instead.
    other: (Option<Protocol>, Option<IpAddr>, Option<u16>),
}

fn raw_ask() -> impl Strategy<Value = RawAsk> {
    let hows = prop_oneof![
        3 => Just((How::Packet, Place::Outside)),
        2 => Just((How::Packet, Place::Pod)),
        1 => Just((How::Connect, Place::Pod)),
        1 => Just((How::Connect, Place::Node)),
        1 => Just((How::Send, Place::Pod)),
        1 => Just((How::Send, Place::Node)),
    ];
    let addresses: Vec<IpAddr> =
        frontends().into_iter().chain(loopback()).chain(both(Role::LocalPod)).collect();
    let ports: Vec<u16> =
        PORTS.into_iter().chain(NODE_PORTS).chain([9]).map(|port| port as u16).collect();
    let other = (
        weighted(0.06, select(PROTOCOLS.map(|(protocol, _)| protocol).to_vec())),
        weighted(0.08, select(addresses)),
        weighted(0.08, select(ports)),
    );
    let frontend = (any::<Index>(), prop::bool::weighted(0.7));
    (hows, any::<Index>(), frontend, any::<Index>(), other).prop_map(
        |((how, place), source, (frontend, external), own, other)| RawAsk {
            how,
            place,
            source,
            frontend,
            external,
            own,
            other,
        },
    )
}

impl RawAsk {
    /// Asks for something that the Services of these steps had or have.
    fn aim(self, steps: &[Step]) -> Ask {
        let mut cluster = Cluster::default();
        for step in steps {
            if let Step::Service(object) = step {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                let name = super::product::object_name(name);
                cluster.services.insert(name, (**object).clone());
            }
        }
        let mut frontends = contract::frontends(&cluster);
        let askable = |protocol| match self.how {
            How::Packet => true,
            How::Connect => protocol != Protocol::Sctp,
            How::Send => protocol == Protocol::Udp,
        };
        frontends.retain(|(_, protocol)| askable(*protocol));
        let cluster_ips: Vec<IpAddr> =
            both(Role::ClusterIp).into_iter().chain(cluster_ips(11)).collect();
        let is_external = |(at, _): &(SocketAddr, Protocol)| !cluster_ips.contains(&at.ip());
        if self.external && frontends.iter().any(is_external) {
            frontends.retain(is_external);
        }
        let nothing = (SocketAddr::new(both(Role::ClusterIp)[0], 80), Protocol::Tcp);
        let (mut destination, mut protocol) =
            if frontends.is_empty() { nothing } else { *self.frontend.get(&frontends) };
        if destination.ip().is_unspecified() {
            let of_family = |ip: &IpAddr| ip.is_ipv4() == destination.is_ipv4();
            let mut own: Vec<IpAddr> = OWN.into_iter().flat_map(both).filter(of_family).collect();
            if self.how != How::Packet {
                own.extend(loopback().into_iter().filter(of_family));
            }
            destination.set_ip(*self.own.get(&own));
        }
        let (other_protocol, other_address, other_port) = self.other;
        protocol = other_protocol.filter(|other| askable(*other)).unwrap_or(protocol);
        if self.how == How::Send {
            protocol = Protocol::Udp;
        }
        // Nobody sends packets to another host's loopback.
        let fits = |ip: &IpAddr| self.how != How::Packet || !loopback().contains(ip);
        destination.set_ip(other_address.filter(fits).unwrap_or(destination.ip()));
        destination.set_port(other_port.unwrap_or(destination.port()));
        let ip = destination.ip();
        let sources = match (self.how, self.place) {
            (_, Place::Outside) => CLIENTS.map(|role| Some(scenery::beside(role, ip))).to_vec(),
            (How::Packet, _) => PODS.map(|role| Some(scenery::beside(role, ip))).to_vec(),
            (How::Connect | How::Send, Place::Pod | Place::Node) => {
                let known = scenery::known_source(self.place, ip);
                vec![known, known, known, Some(scenery::beside(bound(self.place), ip))]
            }
        };
        let source = *self.source.get(&sources);
        Ask { how: self.how, place: self.place, protocol, source, destination }
    }
}

/// A second address of a place.
fn bound(place: Place) -> Role {
    match place {
        Place::Node => Role::Management,
        Place::Pod | Place::Outside => Role::UnknownPod,
    }
}

fn loopback() -> [IpAddr; 4] {
    [
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv4Addr::new(127, 8, 9, 1).into(),
        Ipv4Addr::UNSPECIFIED.into(),
    ]
}
