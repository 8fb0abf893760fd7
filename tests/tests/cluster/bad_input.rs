//! Objects that the API server accepts and that make no sense to a load balancer: each degrades at
//! most itself. The Service beside them works throughout, and no agent restarts.

use anyhow::{Context, Result, ensure};
use lb_lab::Family;
use lb_tests::cluster::reach::{Expect, Target};
use lb_tests::cluster::test_cluster::{INSIDE, NODES};
use lb_tests::cluster::{TestCluster, together};
use serde_json::{Value, json};

/// What nobody should write but the API server takes; one string for each case.
const ODD: [(&str, &str); 8] = [
    (
        "a headless Service without ports",
        "
apiVersion: v1
kind: Service
metadata: {name: no-ports}
spec: {clusterIP: None, selector: {app: web}}
",
    ),
    (
        "a slice of names",
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names, labels: {kubernetes.io/service-name: web}}
addressType: FQDN
ports: [{name: '', protocol: TCP, port: 8080}]
endpoints: [{addresses: [site.example]}]
",
    ),
    (
        "a slice whose port has no number",
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: any-port, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', protocol: TCP}]
endpoints: [{addresses: [10.244.2.11]}]
",
    ),
    (
        "a slice without ports",
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: portless, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.2.11]}]
",
    ),
    (
        "a slice without endpoints",
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hollow, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', protocol: TCP, port: 8080}]
endpoints: []
",
    ),
    (
        "a slice that names no Service",
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: stray}
addressType: IPv4
ports: [{name: '', protocol: TCP, port: 8080}]
endpoints: [{addresses: [10.244.2.11]}]
",
    ),
    (
        "a slice of a Service that does not exist",
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orphan, labels: {kubernetes.io/service-name: nobody}}
addressType: IPv6
ports: [{name: '', protocol: TCP, port: 8080}]
endpoints: [{addresses: ['fd00:244:2::11']}]
",
    ),
    (
        "a slice that repeats an endpoint, for a protocol and port name that the Service has not",
        "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: repeats, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports:
- {name: '', protocol: TCP, port: 8080}
- {name: unknown, protocol: SCTP, port: 9}
endpoints:
- {addresses: [10.244.1.11], nodeName: nowhere, conditions: {ready: true}}
- {addresses: [10.244.1.11], conditions: {ready: true, terminating: true}}
",
    ),
];

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

fn pids(cluster: &TestCluster) -> Result<Vec<Option<u32>>> {
    NODES.into_iter().map(|node| Ok(cluster.agent(node)?.pid())).collect()
}

#[test]
fn odd_objects_degrade_nothing_but_themselves() -> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("odd")?;
        let before = pids(cluster)?;
        namespace.apply(WEB)?;
        namespace.pods(&json!({"app": "web"}), &["pod-a1"])?;
        let sound = |case: &str| -> Result<()> {
            for family in Family::BOTH {
                let target = Target::tcp(namespace.cluster_ip("web", family)?, 80);
                for client in INSIDE {
                    let one = Expect::Servers(&["pod-a1"]);
                    cluster.reach(client, target, one).with_context(|| case.to_owned())?;
                }
            }
            Ok(())
        };
        sound("before")?;
        for (case, yaml) in ODD {
            namespace.apply(yaml).with_context(|| case.to_owned())?;
            // Seen by the agents once a later change is: the order of watches is that of writes.
            namespace.report("pod-a1", "pod-a1", true)?;
            sound(case)?;
        }
        for (_, yaml) in ODD {
            let object: Value = serde_yaml_ng::from_str(yaml)?;
            let field = |value: &Value| value.as_str().map(str::to_owned).context("no text");
            namespace.delete(&field(&object["kind"])?, &field(&object["metadata"]["name"])?)?;
        }
        sound("after")?;
        ensure!(pids(cluster)? == before, "an agent was restarted");
        Ok(())
    })
}

#[test]
fn slices_that_outlive_their_service_wait_for_its_return() -> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("outlive")?;
        let service = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{name: http, port: 80}]}
";
        namespace.apply(service)?;
        namespace.apply(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: by-hand, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints: [{addresses: [10.244.2.11], conditions: {ready: true}}]
",
        )?;
        for _ in 0..2 {
            let target = Target::tcp(namespace.cluster_ip("web", Family::V4)?, 80);
            cluster.reach("node-a", target, Expect::Servers(&["pod-b1"]))?;
            namespace.delete("Service", "web")?;
            cluster.reach("node-a", target, Expect::Nobody)?;
            namespace.apply(service)?;
        }
        Ok(())
    })
}

#[test]
fn a_hundred_thousand_endpoints_of_one_service_leave_the_others_alone() -> Result<()> {
    const SLICES: u32 = 100;
    const EACH: u32 = 1000;
    together(|cluster| {
        let namespace = cluster.namespace("crowd")?;
        let before = pids(cluster)?;
        namespace.apply(WEB)?;
        namespace.pods(&json!({"app": "web"}), &["pod-a1"])?;
        namespace.apply(
            "
apiVersion: v1
kind: Service
metadata: {name: crowd}
spec: {ports: [{port: 80}]}
",
        )?;
        for slice in 0..SLICES {
            let endpoints: Vec<Value> = (0..EACH)
                .map(|endpoint| {
                    // 100.64.0.0/10 (RFC 6598) is nobody's here, and nothing is sent to it.
                    let address = 0x6440_0000 + 1 + slice * EACH + endpoint;
                    json!({"addresses": [std::net::Ipv4Addr::from_bits(address)]})
                })
                .collect();
            let object = json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("crowd-{slice}"),
                    "labels": {"kubernetes.io/service-name": "crowd"},
                },
                "addressType": "IPv4",
                "ports": [{"name": "", "protocol": "TCP", "port": 80}],
                "endpoints": endpoints,
            });
            cluster.api().create(namespace.name(), object)?;
        }
        // A watch keeps the order of writes, so whoever follows this has seen the whole crowd. (The
        // list of the maps itself is long, and printing it over and over would slow the agents.)
        namespace.pods(&json!({"app": "web"}), &["pod-b1"])?;
        let target = Target::tcp(namespace.cluster_ip("web", Family::V6)?, 80);
        for client in INSIDE {
            cluster.reach(client, target, Expect::Servers(&["pod-a1", "pod-b1"]))?;
        }
        for node in NODES {
            let rows = cluster.services_in_maps(node)?;
            let mut rows = rows.as_array().context("no array")?.iter();
            let crowd = rows
                .find(|row| row["namespace"] == "crowd" && row["name"] == "crowd")
                .context("no such Service in the maps")?;
            let backends = crowd["backends"].as_array().map_or(0, Vec::len);
            ensure!(backends == (SLICES * EACH) as usize, "{backends} backends on {node}");
        }
        ensure!(pids(cluster)? == before, "an agent was restarted");
        Ok(())
    })
}
