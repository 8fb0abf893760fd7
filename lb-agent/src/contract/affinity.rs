//! What session affinity remembers: the endpoint of a client's last flow to a Service port.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::frontends::Owner;
use super::objects::{self, Port};
use super::{Cluster, Here, Place, Question, endpoints};
use crate::cluster::snapshot::{IpFamily, ObjectName, Protocol};

/// A client of a Service port in one family. All addresses of the port share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    client: Client,
    port: PortKey,
    /// Seconds for which an endpoint is remembered.
    timeout: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PortKey {
    service: ObjectName,
    name: String,
    protocol: Protocol,
    family: IpFamily,
}

/// A client is its address; where that isn't known, the place that it asks from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    Address(IpAddr),
    Place(Place),
}

impl Key {
    pub(super) fn new(owner: &Owner, question: &Question, timeout: u64) -> Self {
        Self {
            client: question.source.map_or(Client::Place(question.from), Client::Address),
            port: PortKey {
                service: owner.service.name.clone(),
                name: owner.port.name.clone(),
                protocol: owner.port.protocol,
                family: IpFamily::of(question.destination.ip()),
            },
            timeout,
        }
    }
}

/// What is remembered, and since when, in seconds.
#[derive(Clone, Debug, Default)]
pub struct Memory(BTreeMap<(Client, PortKey), (SocketAddr, u64)>);

impl Memory {
    /// The endpoint of the client's last flow, if that isn't too long ago.
    pub(super) fn recall(&self, key: &Key, now: u64) -> Option<SocketAddr> {
        let (backend, since) = self.0.get(&(key.client.clone(), key.port.clone()))?;
        (now.saturating_sub(*since) < key.timeout).then_some(*backend)
    }

    /// A flow went to this endpoint.
    pub fn remember(&mut self, key: &Key, backend: SocketAddr, now: u64) {
        self.0.insert((key.client.clone(), key.port.clone()), (backend, now));
    }

    /// Forgets the endpoints that have left: those that don't even serve any more.
    pub fn settle(&mut self, cluster: &Cluster, here: &Here) {
        let services = objects::services(cluster);
        let serves = |key: &PortKey, backend: &SocketAddr| {
            let service = services.iter().find(|service| service.name == key.service)?;
            let is_it = |port: &&Port| port.name == key.name && port.protocol == key.protocol;
            let port = service.ports.iter().find(is_it)?;
            let has_family = |ip: &IpAddr| IpFamily::of(*ip) == key.family;
            service.cluster_ips.iter().find(|ip| has_family(ip))?;
            let all = endpoints::of_port(cluster, here, service, port, key.family);
            all.iter().find(|one| one.address == *backend && one.is_serving()).map(drop)
        };
        self.0.retain(|(_, port), (backend, _)| serves(port, backend).is_some());
    }
}
