//! Objects that a kubelet would write: Nodes, and Pods with the status of running ones.

use lb_lab::topology::{Host, Role};
use serde_json::{Value, json};

/// The zone of a node: its own, so that topology hints can tell the nodes apart.
#[must_use]
pub fn zone(node: &str) -> String {
    format!("zone-of-{node}")
}

/// The Node object of the lab's node `host` with pod ranges of both families.
#[must_use]
pub fn node(host: &Host, number: u8) -> Value {
    let ranges = [format!("10.244.{number}.0/24"), format!("fd00:244:{number}::/64")];
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": host.name,
            "labels": {
                "kubernetes.io/hostname": host.name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": zone(&host.name),
            },
        },
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
    })
}

/// What the node's kubelet would report.
#[must_use]
pub fn node_status(host: &Host) -> Value {
    let [v4, v6] = host.address.both();
    json!({
        "addresses": [
            {"type": "InternalIP", "address": v4},
            {"type": "InternalIP", "address": v6},
            {"type": "Hostname", "address": host.name},
        ],
        "conditions": [{"type": "Ready", "status": "True"}],
        "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"},
        "capacity": {"cpu": "2", "memory": "4Gi", "pods": "110"},
    })
}

/// A Pod that stands for the lab's pod `host`. Its one container names port `web`. It has no grace
/// period: nobody would end it.
#[must_use]
pub fn pod(name: &str, labels: &Value, host: &Host, web: u16) -> Value {
    let node = match &host.role {
        Role::Pod { node, .. } => node.as_str(),
        // A Pod of the host network.
        Role::Fabric | Role::Node { .. } | Role::Client | Role::Site | Role::Edge => &host.name,
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "web",
                "image": "registry.invalid/web",
                "ports": [{"name": "web", "containerPort": web}],
            }],
        },
    })
}

/// The status of a running Pod at `host`'s addresses.
#[must_use]
pub fn pod_status(host: &Host, ready: bool) -> Value {
    let [v4, v6] = host.address.both();
    let ready = if ready { "True" } else { "False" };
    json!({
        "phase": "Running",
        "podIP": v4,
        "podIPs": [{"ip": v4}, {"ip": v6}],
        "conditions": [
            {"type": "Ready", "status": ready},
            {"type": "ContainersReady", "status": ready},
        ],
    })
}
