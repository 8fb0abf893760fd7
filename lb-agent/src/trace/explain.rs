//! The steps of a decision in words. Asks the same functions that decide, one by one.

use std::net::SocketAddr;
use std::time::Duration;

use lb_common::abi::{
    Address, AddressFlags, AffinityKey, Backend, BackendFlags, FrontendKey, FrontendKind,
    ServiceFlags, ServiceIndex, ServiceRecord, TakeoverFlags,
};
use lb_common::env::Tables;
use lb_common::lb::frontend::{self, Destination, Found, Lookup};
use lb_common::lb::policy::{self, Allowed, Client};
use lb_common::lb::source;

use super::{Endpoint, Place, Step};

/// What is asked of the Service tables.
pub struct Ask<'a> {
    /// Where to.
    pub destination: Destination,
    /// Whether the address counts as the node's own beyond ADDRESSES (loopback, from the node).
    pub own: bool,
    /// Whom policies see.
    pub client: Client,
    /// The client's address; `None` when nobody knows it.
    pub source: Option<Address>,
    /// How an endpoint is chosen afresh, in words.
    pub choice: &'a str,
    /// The names of Service ports.
    pub name: &'a dyn Fn(ServiceIndex) -> String,
}

/// What the Service tables say.
#[derive(Debug, Default)]
pub struct Steps {
    /// In words.
    pub steps: Vec<Step>,
    /// The Service port.
    pub service: Option<String>,
    /// Endpoints that the policy allows.
    pub endpoints: Vec<Endpoint>,
    /// The one that session affinity remembers.
    pub remembered: Option<SocketAddr>,
    /// Where session affinity remembers this client, if the Service has it.
    pub affinity: Option<AffinityKey>,
}

/// Goes through frontend, source ranges, policy and choice, until one ends it. `affinity` is what stands
/// for the client where session affinity is remembered.
pub fn steps<T: Tables>(tables: &mut T, ask: &Ask<'_>, affinity: Address) -> Steps {
    let mut result = Steps::default();
    if tables.takeover() & TakeoverFlags::YIELDS != 0 {
        let yields = "another service proxy opens the flows of this node for the moment; \
            what follows is what this one would do";
        result.say("take-over", yields);
    }
    let found = match frontend::find(tables, &ask.destination, ask.own) {
        Lookup::Service(found) => found,
        Lookup::UnknownPort => {
            result.say(
                "frontend",
                "the address is a ClusterIP, whose Service has no such port or protocol",
            );
            return result;
        }
        Lookup::NotOurs => {
            result.say("frontend", not_ours(tables, &ask.destination));
            return result;
        }
    };
    let name = (ask.name)(found.service);
    result.say("frontend", format!("{} {name}", kind_text(found.kind)));
    result.service = Some(name);
    let Some(record) = tables.record(found.service).copied() else {
        result.say("service", "its record isn't there");
        return result;
    };
    if !admits(tables, &record, &found, ask.source, &mut result) {
        return result;
    }
    let allowed = policy::allowed(&record, &found, ask.client);
    let candidates = match allowed {
        Allowed::Endpoints(candidates) => candidates,
        Allowed::Refuse => {
            result.say(
                "policy",
                format!("{}; no endpoint anywhere", policy_text(&record, &found, ask.client)),
            );
            return result;
        }
        Allowed::Drop => {
            result.say(
                "policy",
                format!(
                    "{}; endpoints exist, none on this node",
                    policy_text(&record, &found, ask.client)
                ),
            );
            return result;
        }
    };
    let slots = candidates.slots;
    let indices = (0..slots.len).filter_map(|at| tables.slot(slots.offset.wrapping_add(at)));
    result.endpoints = indices.filter_map(|index| tables.backend(index)).map(endpoint).collect();
    result.endpoints.sort_by_key(|endpoint| endpoint.address);
    let (all, here) = (result.endpoints.len(), result.on_this_node());
    let plural = if all == 1 { "" } else { "s" };
    result.say(
        "policy",
        format!(
            "{}: {all} endpoint{plural} (ready, and after topology hints), {here} on this node",
            policy_text(&record, &found, ask.client)
        ),
    );
    if let Some(timeout) = candidates.affinity {
        let key = AffinityKey { client: affinity, service: found.service };
        result.affinity = Some(key);
        let known =
            lb_common::lb::affinity::choose(tables, &key, timeout, candidates.list, |_| None);
        let backend = known.and_then(|index| tables.backend(index)).map(endpoint);
        result.remembered = backend.map(|backend| backend.address);
        let timeout = humantime::format_duration(Duration::from_secs(timeout.into()));
        result.say(
            "affinity",
            match result.remembered {
                Some(address) => format!("ClientIP for {timeout}: this client keeps {address}"),
                None => format!("ClientIP for {timeout}: nothing is remembered of this client"),
            },
        );
    }
    if result.remembered.is_none() {
        result.say("choice", if all == 1 { "the only one" } else { ask.choice });
    }
    result
}

impl Steps {
    fn say(&mut self, step: &'static str, text: impl Into<String>) {
        self.steps.push(Step { step, says: text.into() });
    }

    fn on_this_node(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.place == Place::ThisNode).count()
    }
}

fn not_ours<T: Tables>(tables: &T, destination: &Destination) -> &'static str {
    let flags = tables.address_flags(&destination.address);
    let key = FrontendKey {
        address: destination.address.wildcard(),
        port: destination.port,
        protocol: destination.protocol,
        pad: 0,
    };
    let is_node = flags & AddressFlags::NODE != 0;
    if is_node && flags & AddressFlags::NODE_PORTS == 0 && tables.frontend(&key).is_some() {
        "a Service has this NodePort, but --nodeport-addresses leaves this address out"
    } else if is_node && flags & AddressFlags::CLUSTER_IP != 0 {
        "a ClusterIP that this node has on a device: left to the process that listens there"
    } else if is_node {
        "an address of this node itself, and no Service has this NodePort"
    } else if flags & AddressFlags::EXTERNAL != 0 {
        "a Service has this address, but not this port or protocol"
    } else {
        "no Service has this address"
    }
}

fn kind_text(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "the ClusterIP of",
        FrontendKind::ExternalIp => "an external IP of",
        FrontendKind::LoadBalancer => "the load balancer's address of",
        FrontendKind::NodePort => "on an address of this node, the NodePort of",
    }
}

fn admits<T: Tables>(
    tables: &T,
    record: &ServiceRecord,
    found: &Found,
    client: Option<Address>,
    result: &mut Steps,
) -> bool {
    if record.flags & ServiceFlags::SOURCE_RANGES == 0 {
        return true;
    }
    let admitted = source::admitted(tables, record, found, |_| client);
    let client = client.map(|address| std::net::IpAddr::from(address).to_string());
    let text = match (found.kind, admitted, client) {
        (FrontendKind::LoadBalancer, true, Some(client)) => {
            format!("loadBalancerSourceRanges admit {client}")
        }
        (FrontendKind::LoadBalancer, _, Some(client)) => {
            format!("loadBalancerSourceRanges don't hold {client}")
        }
        (FrontendKind::LoadBalancer, _, None) => {
            "nobody knows this client's address, so loadBalancerSourceRanges don't admit it"
                .to_owned()
        }
        (FrontendKind::ClusterIp | FrontendKind::ExternalIp | FrontendKind::NodePort, _, _) => {
            "loadBalancerSourceRanges don't bind this kind of address".to_owned()
        }
    };
    result.say("sources", text);
    admitted
}

fn policy_text(record: &ServiceRecord, found: &Found, client: Client) -> &'static str {
    let has = |flag| record.flags & flag != 0;
    match (found.kind, client) {
        (FrontendKind::ClusterIp, _) if has(ServiceFlags::INTERNAL_LOCAL) => {
            "internalTrafficPolicy Local"
        }
        (FrontendKind::ClusterIp, _) => "internalTrafficPolicy Cluster",
        (_, Client::OnNode) if has(ServiceFlags::EXTERNAL_LOCAL) => {
            "externalTrafficPolicy Local doesn't bind clients on this node"
        }
        (_, Client::Outside) if has(ServiceFlags::EXTERNAL_LOCAL) => "externalTrafficPolicy Local",
        (FrontendKind::ExternalIp | FrontendKind::LoadBalancer | FrontendKind::NodePort, _) => {
            "externalTrafficPolicy Cluster"
        }
    }
}

fn endpoint(backend: &Backend) -> Endpoint {
    let has = |flag| backend.flags & flag != 0;
    let place = if has(BackendFlags::LOCAL) {
        Place::ThisNode
    } else if has(BackendFlags::REMOTE) {
        Place::OtherNode
    } else {
        Place::Unknown
    };
    Endpoint { address: SocketAddr::new(backend.address.into(), backend.port.get()), place }
}

#[cfg(test)]
mod tests {
    use lb_common::bytes::Be16;
    use lb_common::model::world::{Endpoint as At, Place as Of, Service, World};

    use super::*;

    const REMOTE: &str = "10.244.2.5:8080";

    fn world(change: impl FnOnce(&mut Service<'_>)) -> World {
        let mut world = World::default();
        world.own("192.0.2.1".parse().unwrap(), true);
        world.own("192.0.2.2".parse().unwrap(), false);
        let at = |text: &str, place| At { address: text.parse().unwrap(), place };
        let endpoints = [at("10.244.1.5:8080", Of::Here), at(REMOTE, Of::There)];
        let frontends = [
            ("10.96.0.1:80".parse().unwrap(), FrontendKind::ClusterIp),
            ("10.1.0.1:80".parse().unwrap(), FrontendKind::LoadBalancer),
            ("0.0.0.0:30080".parse().unwrap(), FrontendKind::NodePort),
        ];
        let mut service = Service {
            frontends: &frontends,
            protocol: 6,
            cluster: &endpoints,
            local: &endpoints[..1],
            flags: ServiceFlags::HAS_ENDPOINTS,
            maglev: false,
            affinity: None,
            sources: None,
        };
        change(&mut service);
        world.serve(&service);
        world
    }

    fn asked(mut world: World, to: &str, client: Client) -> (String, usize) {
        let to: SocketAddr = to.parse().unwrap();
        let destination =
            Destination { address: to.ip().into(), port: Be16::new(to.port()), protocol: 6 };
        let source = Some("203.0.113.9".parse::<std::net::IpAddr>().unwrap().into());
        let name = |_| "default/web:http".to_owned();
        let ask = Ask { destination, own: false, client, source, choice: "random", name: &name };
        let Steps { steps, endpoints, .. } = steps(&mut world, &ask, Address::default());
        let texts: Vec<_> =
            steps.iter().map(|step| format!("{}: {}", step.step, step.says)).collect();
        (texts.join("\n"), endpoints.len())
    }

    #[test]
    fn each_step_says_what_decided() {
        let plain = |_: &mut Service<'_>| {};
        let none: &'static [At] = &[];
        const NET: std::net::IpAddr =
            std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 0));
        let nobody: &'static [(std::net::IpAddr, u8)] = &[(NET, 24)];
        for (case, world, to, client, expected, endpoints) in [
            (
                "cluster",
                world(plain),
                "10.96.0.1:80",
                Client::OnNode,
                "internalTrafficPolicy Cluster: 2 endpoints (ready, and after topology hints), 1 on this node\nchoice: random",
                2,
            ),
            (
                "port",
                world(plain),
                "10.96.0.1:81",
                Client::OnNode,
                "whose Service has no such port",
                0,
            ),
            (
                "a port of the node's own",
                {
                    let mut world = world(plain);
                    world.own("10.96.0.1".parse().unwrap(), false);
                    world
                },
                "10.96.0.1:81",
                Client::OnNode,
                "left to the process that listens there",
                0,
            ),
            (
                "nobody's",
                world(plain),
                "10.97.0.1:80",
                Client::OnNode,
                "no Service has this address",
                0,
            ),
            (
                "node port",
                world(plain),
                "192.0.2.1:30080",
                Client::Outside,
                "the NodePort of default/web:http",
                2,
            ),
            (
                "other port",
                world(plain),
                "192.0.2.1:30081",
                Client::Outside,
                "no Service has this NodePort",
                0,
            ),
            (
                "left out",
                world(plain),
                "192.0.2.2:30080",
                Client::Outside,
                "--nodeport-addresses leaves",
                0,
            ),
            (
                "lb port",
                world(plain),
                "10.1.0.1:81",
                Client::Outside,
                "not this port or protocol",
                0,
            ),
            (
                "local",
                world(|s| s.flags |= ServiceFlags::EXTERNAL_LOCAL),
                "10.1.0.1:80",
                Client::Outside,
                "externalTrafficPolicy Local: 1 endpoint (",
                1,
            ),
            (
                "short-circuit",
                world(|s| s.flags |= ServiceFlags::EXTERNAL_LOCAL),
                "10.1.0.1:80",
                Client::OnNode,
                "doesn't bind clients on this node: 2",
                2,
            ),
            (
                "none here",
                world(|s| {
                    s.flags |= ServiceFlags::INTERNAL_LOCAL;
                    s.local = none;
                }),
                "10.96.0.1:80",
                Client::OnNode,
                "none on this node",
                0,
            ),
            (
                "none",
                world(|s| {
                    s.flags = 0;
                    s.cluster = none;
                    s.local = none;
                }),
                "10.96.0.1:80",
                Client::OnNode,
                "no endpoint anywhere",
                0,
            ),
            (
                "sources",
                world(|s| s.sources = Some(nobody)),
                "10.1.0.1:80",
                Client::Outside,
                "don't hold 203.0.113.9",
                0,
            ),
            (
                "other kind",
                world(|s| s.sources = Some(nobody)),
                "10.96.0.1:80",
                Client::Outside,
                "don't bind this kind",
                2,
            ),
            (
                "affinity",
                world(|s| s.affinity = Some(60)),
                "10.96.0.1:80",
                Client::OnNode,
                "ClientIP for 1m: nothing is remembered",
                2,
            ),
        ] {
            let (text, count) = asked(world, to, client);
            assert!(text.contains(expected), "{case}: {text}");
            assert_eq!(count, endpoints, "{case}: {text}");
        }
    }
}
