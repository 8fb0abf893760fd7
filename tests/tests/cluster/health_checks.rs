//! Health check ports that the API server allocates, and the events that tell of agents.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lb_lab::{Family, Transport};
use lb_tests::cluster::reach::{Expect, Target, eventually};
use lb_tests::cluster::test_cluster::{NODES, OUTSIDE};
use lb_tests::cluster::{TestCluster, TestNamespace, together};
use serde_json::{Value, json};

/// A load balancer's Service `web` for pods with `app: web`, with this line of spec.
fn service(line: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
{line}
"
    )
}

fn web() -> Value {
    json!({"app": "web"})
}

/// What is asked at one node: the number of endpoints that it must tell, or that nobody listens.
#[derive(Clone, Copy, Debug)]
enum Told {
    Count(usize),
    Closed,
}

/// Waits until client and nodes are told `expected` of both nodes, by both families.
fn told(cluster: &TestCluster, port: u16, expected: [Told; 2]) -> Result<()> {
    for (node, expected) in NODES.into_iter().zip(expected) {
        for family in Family::BOTH {
            let to = SocketAddr::new(cluster.address(node, family)?, port);
            for from in NODES.into_iter().chain([OUTSIDE]) {
                eventually(&format!("{from} asks {to}"), || look(cluster, from, to, expected))?;
            }
        }
    }
    Ok(())
}

fn look(cluster: &TestCluster, from: &str, to: SocketAddr, expected: Told) -> Result<()> {
    let answer = cluster.lab().peer(from)?.get(to, "/any/path");
    match (answer, expected) {
        (Ok(page), Told::Count(count)) => {
            let status = if count > 0 { 200 } else { 503 };
            let weight = format!("X-Load-Balancing-Endpoint-Weight: {count}");
            let body: Value = serde_json::from_str(&page.body).context("the body")?;
            ensure!(page.status == status && page.headers.contains(&weight), "{page:?}");
            ensure!(body["localEndpoints"] == count && body["service"]["name"] == "web", "{body}");
            Ok(())
        }
        (Ok(page), Told::Closed) => anyhow::bail!("answered: {page:?}"),
        (Err(error), Told::Count(_)) => Err(error),
        (Err(_), Told::Closed) => Ok(()),
    }
}

fn field(namespace: &TestNamespace, cluster: &TestCluster, pointer: &str) -> Result<u16> {
    let object = cluster.api().get("Service", namespace.name(), "web")?.context("no Service")?;
    let number = object.data.pointer(pointer).and_then(Value::as_u64);
    Ok(u16::try_from(number.with_context(|| format!("no {pointer} in {}", object.data))?)?)
}

#[test]
fn load_balancers_are_told_which_nodes_have_endpoints_and_terminating_ones_do_not_count()
-> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("health-checks")?;
        namespace.apply(&service(""))?;
        let port = field(&namespace, cluster, "/spec/healthCheckNodePort")?;
        let node_port = field(&namespace, cluster, "/spec/ports/0/nodePort")?;
        told(cluster, port, [Told::Count(0), Told::Count(0)])?;
        namespace.pods(&web(), &["pod-a1", "pod-a2"])?;
        told(cluster, port, [Told::Count(2), Told::Count(0)])?;
        namespace.report("pod-a2", "pod-a2", false)?;
        told(cluster, port, [Told::Count(1), Told::Count(0)])?;

        // Deleted, but held back: it is terminating, and goes on answering.
        namespace.hold("pod-a1", true)?;
        namespace.delete("Pod", "pod-a1")?;
        let outcome = told(cluster, port, [Told::Count(0), Told::Count(0)]).and_then(|()| {
            for family in Family::BOTH {
                let target = Target::tcp(cluster.address("node-a", family)?, node_port);
                cluster.reach(OUTSIDE, target, Expect::Servers(&["pod-a1"]))?;
            }
            Ok(())
        });
        namespace.hold("pod-a1", false)?;
        outcome.context("with a terminating endpoint only")?;

        namespace.report("pod-a2", "pod-a2", true)?;
        namespace.pods(&web(), &["pod-b1"])?;
        told(cluster, port, [Told::Count(1), Told::Count(1)])?;
        namespace.patch_service("web", json!({"spec": {"externalTrafficPolicy": "Cluster"}}))?;
        told(cluster, port, [Told::Closed, Told::Closed])?;
        namespace.patch_service("web", json!({"spec": {"externalTrafficPolicy": "Local"}}))?;
        let port = field(&namespace, cluster, "/spec/healthCheckNodePort")?;
        told(cluster, port, [Told::Count(1), Told::Count(1)])?;
        namespace.delete("Service", "web")?;
        told(cluster, port, [Told::Closed, Told::Closed])
    })
}

/// Events of `namespace` with this reason, about an object of this kind and name.
fn events(
    cluster: &TestCluster,
    namespace: &str,
    reason: &str,
    regarding: (&str, &str),
) -> Result<Vec<Value>> {
    let events = cluster.api().list("Event", namespace, "")?.into_iter().map(|event| event.data);
    let (kind, name) = (json!(regarding.0), json!(regarding.1));
    Ok(events
        .filter(|event| event["reason"] == reason)
        .filter(|event| event["regarding"]["kind"] == kind && event["regarding"]["name"] == name)
        .collect())
}

#[test]
fn a_health_check_port_in_use_is_an_event_on_the_service_and_opens_when_it_is_free() -> Result<()> {
    const PORT: u16 = 31888;
    together(|cluster| {
        let namespace = cluster.namespace("health-port-in-use")?;
        namespace.pods(&web(), &["pod-a1", "pod-b1"])?;
        let squatter = cluster.lab().peer("node-a")?;
        let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let number = squatter.serve(Transport::Tcp, any, PORT)?;
        let outcome = in_use(cluster, &namespace, PORT);
        squatter.stop_server(number)?;
        outcome?;
        told(cluster, PORT, [Told::Count(1), Told::Count(1)]).context("the port is free")
    })
}

fn in_use(cluster: &TestCluster, namespace: &TestNamespace, port: u16) -> Result<()> {
    const REASON: &str = "FailedToStartServiceHealthcheck";
    namespace.apply(&service(&format!("  healthCheckNodePort: {port}")))?;
    let uid = cluster.api().get("Service", namespace.name(), "web")?.context("no Service")?;
    let uid = uid.metadata.uid.context("no uid")?;
    eventually("the API server shows the event", || {
        let events = events(cluster, namespace.name(), REASON, ("Service", "web"))?;
        let event = events.first().context("no event yet")?;
        ensure!(event["type"] == "Warning" && event["action"] == "Listen", "{event}");
        ensure!(event["regarding"]["uid"] == uid.as_str(), "{event}");
        let note = event["note"].as_str().unwrap_or_default();
        ensure!(note.contains("node-a") && note.contains(&format!(":{port}")), "{event}");
        Ok(())
    })?;
    let address = cluster.address("node-b", Family::V4)?;
    let other = SocketAddr::new(address, port);
    eventually("node-b answers", || look(cluster, OUTSIDE, other, Told::Count(1)))?;
    let log = cluster.agent_log("node-a")?;
    for socket in [format!("0.0.0.0:{port}"), format!("[::]:{port}")] {
        let said = log.lines().filter(|line| line.contains(&format!("listen on {socket}")));
        ensure!(said.count() == 1, "not said once: {socket} in\n{log}");
    }
    Ok(())
}

#[test]
fn an_agent_that_serves_its_node_says_so_by_an_event_on_the_node() -> Result<()> {
    together(|cluster| {
        for node in NODES {
            eventually(&format!("the event of {node}"), || {
                let events = events(cluster, "default", "Starting", ("Node", node))?;
                let event = events.first().context("no event yet")?;
                ensure!(
                    event["type"] == "Normal" && event["action"] == "StartKubeProxy",
                    "{event}"
                );
                ensure!(event["reportingController"] == "lb-agent", "{event}");
                Ok(())
            })?;
        }
        Ok(())
    })
}
