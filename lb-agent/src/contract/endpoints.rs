//! Which endpoints a policy allows (`pkg/proxy/endpointslicecache.go`, `pkg/proxy/topology.go`).

use std::net::SocketAddr;

use super::objects::{self, Entry, Port, Service};
use super::{Cluster, Here};
use crate::cluster::snapshot::IpFamily;

/// A traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    Cluster,
    Local,
}

/// An endpoint of a Service port.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub address: SocketAddr,
    /// Its `nodeName` is this node.
    pub local: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
    zone_hints: Vec<String>,
    node_hints: Vec<String>,
}

impl Endpoint {
    /// May get traffic when nothing ready is left (KEP-1669).
    fn is_fallback(&self) -> bool {
        self.serving && self.terminating
    }

    /// May get traffic at all.
    pub fn is_usable(&self) -> bool {
        self.ready || self.is_fallback()
    }

    /// Still answers those who are connected to it.
    pub fn is_serving(&self) -> bool {
        self.ready || self.serving
    }
}

/// The endpoints of a Service port: each address once, as it was found first, but one that isn't
/// terminating replaces one that is.
pub(super) fn of_port(
    cluster: &Cluster,
    here: &Here,
    service: &Service,
    port: &Port,
    family: IpFamily,
) -> Vec<Endpoint> {
    let mut found: Vec<Endpoint> = Vec::new();
    for entry in objects::entries(cluster, &service.name, port, family) {
        let endpoint = endpoint(entry, here);
        match found.iter_mut().find(|known| known.address == endpoint.address) {
            None => found.push(endpoint),
            Some(known) if known.terminating && !endpoint.terminating => *known = endpoint,
            Some(_) => {}
        }
    }
    found
}

fn endpoint(entry: Entry, here: &Here) -> Endpoint {
    Endpoint {
        address: SocketAddr::new(entry.address, entry.port),
        local: entry.node.as_deref() == Some(&here.name),
        ready: entry.ready,
        serving: entry.serving,
        terminating: entry.terminating,
        zone_hints: entry.zone_hints,
        node_hints: entry.node_hints,
    }
}

/// The endpoints that a policy allows, and by which rule.
pub(super) fn choose<'a>(
    all: &'a [Endpoint],
    policy: Policy,
    cluster: &Cluster,
    here: &Here,
) -> (Vec<&'a Endpoint>, String) {
    let zone = objects::zone(cluster);
    let ready: Vec<&Endpoint> = match policy {
        Policy::Cluster => by_hints(all, here, zone.as_deref()),
        Policy::Local => all.iter().filter(|one| one.ready && one.local).collect(),
    };
    if !ready.is_empty() {
        let finding = format!("{policy:?}: {} ready ones of {}", ready.len(), all.len());
        return (ready, finding);
    }
    let of_policy = |one: &&Endpoint| policy == Policy::Cluster || one.local;
    let fallback: Vec<&Endpoint> =
        all.iter().filter(of_policy).filter(|one| one.is_fallback()).collect();
    let count = fallback.len();
    let finding =
        format!("{policy:?}: none ready of {}, {count} terminating that still serve", all.len());
    (fallback, finding)
}

/// The ready endpoints that hints leave to this node: all of them, unless each has a hint of one sort and
/// one of these names us.
fn by_hints<'a>(all: &'a [Endpoint], here: &Here, zone: Option<&str>) -> Vec<&'a Endpoint> {
    let ready: Vec<&Endpoint> = all.iter().filter(|one| one.ready).collect();
    let node_hints: fn(&Endpoint) -> &Vec<String> = |one| &one.node_hints;
    let zone_hints: fn(&Endpoint) -> &Vec<String> = |one| &one.zone_hints;
    for (hints, ours) in [(node_hints, Some(here.name.as_str())), (zone_hints, zone)] {
        let names_us = |one: &&Endpoint| hints(one).iter().any(|name| Some(name.as_str()) == ours);
        let each_has_one = ready.iter().all(|one| !hints(one).is_empty());
        if each_has_one && ready.iter().any(names_us) {
            return ready.into_iter().filter(names_us).collect();
        }
    }
    ready
}
