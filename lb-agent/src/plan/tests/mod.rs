//! Kubernetes YAML → [`Desired`], rule by rule, and random histories against the oracle.

mod choice;
mod disputes;
mod frontends;
mod health;
mod histories;
mod increments;
mod ranges;

use serde::Deserialize;

use super::desired::{Backend, Desired, Placement, ServicePortKey, ServicePortPlan};
use super::plan;
use crate::cluster::convert::{node, service, slice};
use crate::cluster::snapshot::{Change, IpFamily, ObjectName, Protocol, Snapshot};

/// The node that every test plans for.
const NODE: &str = "node-a";

/// What a multi-document YAML says; every object must be good.
fn snapshot(text: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = serde_json::Value::deserialize(document).unwrap();
        let typed = || value.clone();
        match value["kind"].as_str() {
            Some("Service") => {
                let converted = service::service(&serde_json::from_value(typed()).unwrap());
                assert_eq!(converted.problems, []);
                snapshot.services.extend(converted.value.map(|value| (converted.name, value)));
            }
            Some("EndpointSlice") => {
                let converted = slice::slice(&serde_json::from_value(typed()).unwrap());
                assert_eq!(converted.problems, []);
                snapshot.slices.extend(converted.value.map(|value| (converted.name, value)));
            }
            Some("Node") => {
                snapshot.node = node::node(&serde_json::from_value(typed()).unwrap()).value;
            }
            other => panic!("kind {other:?}"),
        }
    }
    snapshot
}

/// The desired state of a multi-document YAML.
fn desired(text: &str) -> Desired {
    plan(&snapshot(text), NODE)
}

/// The lists that make a planner know a snapshot.
fn lists(snapshot: &Snapshot) -> Vec<Change> {
    vec![
        Change::Node(snapshot.node.clone()),
        Change::AllServices(snapshot.services.values().cloned().collect()),
        Change::AllSlices(snapshot.slices.values().cloned().collect()),
    ]
}

fn key(service: &str, port_name: &str, protocol: Protocol, family: IpFamily) -> ServicePortKey {
    ServicePortKey {
        service: ObjectName::new("default", service),
        port_name: port_name.into(),
        protocol,
        family,
    }
}

/// The plan of the unnamed TCP port of `default/web` in IPv4.
fn web(desired: &Desired) -> &ServicePortPlan {
    &desired.ports[&key("web", "", Protocol::Tcp, IpFamily::V4)]
}

/// `10.0.0.1:80 local`, `10.0.0.2:80 remote`, `10.0.0.3:80`.
fn texts(backends: &[Backend]) -> Vec<String> {
    let text = |backend: &Backend| match backend.placement {
        Placement::Local => format!("{} local", backend.address),
        Placement::Remote => format!("{} remote", backend.address),
        Placement::Unknown => backend.address.to_string(),
    };
    backends.iter().map(text).collect()
}
