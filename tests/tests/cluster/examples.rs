//! Every manifest of `deploy/examples`, with the API server's addresses and the controllers' slices
//! in place of the hand-written ones: reached from everywhere, then deleted.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lb_lab::topology::{EXTERNAL_IP, LOAD_BALANCER};
use lb_lab::{Dual, Family, Transport};
use lb_tests::cluster::reach::{Expect, Target, eventually};
use lb_tests::cluster::test_cluster::{INSIDE, NODES, OUTSIDE};
use lb_tests::cluster::{Persist, TestCluster, TestNamespace, together};
use serde::Deserialize;
use serde_json::{Value, json};

/// What becomes of each example once its pods run.
struct Example {
    name: &'static str,
    /// Pods of the lab that its selector finds; none for hand-written Endpoints.
    pods: &'static [&'static str],
    /// Who answers.
    servers: &'static [&'static str],
    /// Port on every node.
    node_port: Option<u16>,
    /// Address that clients outside use.
    outside: Option<Dual>,
}

/// The table of `deploy/examples/README.md`.
const BALANCED: [Example; 8] = [
    Example {
        name: "clusterip1",
        pods: &["pod-a1", "pod-a2", "pod-b1", "pod-b2"],
        servers: &["pod-a1", "pod-a2", "pod-b1", "pod-b2"],
        node_port: None,
        outside: None,
    },
    Example {
        name: "nodeport1",
        pods: &["pod-b1", "pod-b2"],
        servers: &["pod-b1", "pod-b2"],
        node_port: Some(30080),
        outside: None,
    },
    Example {
        name: "loadbalancer1",
        pods: &["pod-a1", "pod-b1"],
        servers: &["pod-a1", "pod-b1"],
        node_port: Some(30090),
        outside: Some(LOAD_BALANCER),
    },
    Example {
        name: "externalip1",
        pods: &["pod-a2", "pod-b2"],
        servers: &["pod-a2", "pod-b2"],
        node_port: None,
        outside: Some(EXTERNAL_IP),
    },
    Example {
        name: "endpoint1",
        pods: &["pod-a1"],
        servers: &["pod-a1"],
        node_port: None,
        outside: None,
    },
    Example { name: "endpoint2", pods: &[], servers: &["pod-a2"], node_port: None, outside: None },
    Example { name: "endpoint3", pods: &[], servers: &["site"], node_port: None, outside: None },
    Example { name: "noendpoints1", pods: &[], servers: &[], node_port: None, outside: None },
];

/// Examples that leave no entry in the datapath, and the pods of the one that has some.
const UNBALANCED: [(&str, &[&str]); 2] =
    [("headless1", &["pod-a1", "pod-b1"]), ("externalname1", &[])];

#[test]
fn every_example_is_reached_from_pod_node_and_outside_and_is_gone_once_deleted() -> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("examples")?;
        for example in &BALANCED {
            install(cluster, &namespace, example.name, example.pods)?;
        }
        for (name, pods) in UNBALANCED {
            install(cluster, &namespace, name, pods)?;
        }
        let mut targets = Vec::new();
        for example in &BALANCED {
            for target in targets_of(cluster, &namespace, example)? {
                let expect = match example.servers {
                    [] => Expect::Refused,
                    servers => Expect::Servers(servers),
                };
                for client in target.clients() {
                    cluster
                        .reach(client, target.target, expect)
                        .with_context(|| example.name.to_owned())?;
                }
                targets.push(target);
            }
        }
        let balanced: BTreeSet<String> = BALANCED.iter().map(|it| it.name.to_owned()).collect();
        for node in NODES {
            ensure!(in_the_maps(cluster, node, &namespace)? == balanced, "maps of {node}");
        }
        for example in &BALANCED {
            namespace.delete("Service", example.name)?;
        }
        for target in targets {
            for client in target.clients() {
                cluster.reach(client, target.target, Expect::Nobody)?;
            }
        }
        for node in NODES {
            eventually(&format!("the maps of {node} are empty again"), || {
                let left = in_the_maps(cluster, node, &namespace)?;
                ensure!(left.is_empty(), "{left:?} are left");
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// An address of an example, and whether it is for clients outside too.
struct ExampleTarget {
    target: Target,
    outside: bool,
}

impl ExampleTarget {
    fn clients(&self) -> impl Iterator<Item = &'static str> {
        INSIDE.into_iter().chain(self.outside.then_some(OUTSIDE))
    }
}

/// Every address and port of an example, TCP and UDP, IPv4 and IPv6.
fn targets_of(
    cluster: &TestCluster,
    namespace: &TestNamespace,
    example: &Example,
) -> Result<Vec<ExampleTarget>> {
    let mut places: Vec<(IpAddr, u16, bool)> = Vec::new();
    for family in Family::BOTH {
        places.push((namespace.cluster_ip(example.name, family)?, 80, false));
        if let Some(port) = example.node_port {
            for node in NODES {
                places.push((cluster.address(node, family)?, port, true));
            }
        }
        if let Some(outside) = example.outside {
            places.push((outside.of(family), 80, true));
        }
    }
    let targets = places.into_iter().flat_map(|(address, port, outside)| {
        Transport::BOTH
            .map(|transport| ExampleTarget { target: Target { transport, address, port }, outside })
    });
    Ok(targets.collect())
}

/// Applies an example as somebody would in a real cluster, who writes no slices and no nodes, lets
/// the cloud write the status, and has pods that run.
fn install(
    cluster: &TestCluster,
    namespace: &TestNamespace,
    example: &str,
    pods: &[&str],
) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/examples")
        .join(example)
        .with_extension("yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let mut object = Value::deserialize(document)?;
        if object["kind"] == "EndpointSlice" {
            continue;
        }
        let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
        let labels = object["spec"]["selector"].clone();
        cluster.api().apply_object(namespace.name(), object, Persist::Yes)?;
        if let Some(status) = status {
            cluster.api().patch_status("Service", namespace.name(), example, status)?;
        }
        for host in pods {
            namespace.pod(&format!("{example}-{host}"), &labels, host)?;
        }
    }
    Ok(())
}

/// The Services of `namespace` that the maps on `node` hold, as `lb-agent services` tells.
fn in_the_maps(
    cluster: &TestCluster,
    node: &str,
    namespace: &TestNamespace,
) -> Result<BTreeSet<String>> {
    let listed = cluster.services_in_maps(node)?;
    let rows = listed.as_array().context("`lb-agent services -o json` printed no array")?;
    let ours = rows.iter().filter(|row| row["namespace"] == json!(namespace.name()));
    Ok(ours.filter_map(|row| Some(row["name"].as_str()?.to_owned())).collect())
}
