//! Values for the tests of this module.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_common::abi::Traffic;

use super::list::Order;
use super::model::Model;
use super::node::Node;
use super::sample::Sample;
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::inspect::rows::{BackendRow, FrontendRow, PolicyRow, ServiceRow};
use crate::inspect::status::State;
use crate::plan::desired::FrontendKind;

/// A model, and a clock by the second.
pub struct Looks {
    pub model: Model,
    now: Instant,
}

impl Looks {
    pub fn new() -> Self {
        let node = Node {
            name: "node-a".into(),
            state: Some(State::Ok),
            problems: Vec::new(),
            flows: Some(3),
        };
        let model = Model::new(node, Duration::from_secs(1), Order::default());
        Self { model, now: Instant::now() }
    }

    /// A second goes by.
    pub fn look(&mut self, services: Vec<ServiceRow>, drops: &[(&'static str, u64)]) {
        self.now += Duration::from_secs(1);
        self.model.look(Ok(Sample { at: self.now, services, drops: drops.to_vec() }));
    }
}

/// The port `http` of `default/<name>`, with connections at sockets and drops.
pub fn service(name: &str, connections: u64, drops: u64) -> ServiceRow {
    let frontend =
        |address: [u8; 4], port, kind| FrontendRow { address: address.into(), port, kind };
    ServiceRow {
        namespace: "default".into(),
        name: name.into(),
        port_name: "http".into(),
        protocol: Protocol::Tcp,
        family: IpFamily::V4,
        frontends: vec![
            frontend([10, 96, 0, 11], 80, FrontendKind::ClusterIp),
            frontend([0, 0, 0, 0], 30_080, FrontendKind::NodePort),
        ],
        backends: vec![backend(1, connections)],
        traffic: Traffic { sockets: connections, ..Traffic::default() }.into(),
        drops: BTreeMap::from([("no_endpoints", drops)]),
        policy: PolicyRow::default(),
    }
}

/// 10.244.0.`last`, on this node if it is the first.
pub fn backend(last: u8, connections: u64) -> BackendRow {
    BackendRow {
        address: [10, 244, 0, last].into(),
        port: 8080,
        local: last == 1,
        active: true,
        traffic: Traffic { sockets: connections, ..Traffic::default() }.into(),
    }
}
