//! Changes of Services and endpoints while they are in use, each seen from everywhere it matters.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use lb_lab::topology::LOAD_BALANCER;
use lb_lab::{Family, Load, Request, Transport};
use lb_tests::cluster::reach::{Expect, Target, eventually};
use lb_tests::cluster::test_cluster::{INSIDE, NODES, OTHER, OUTSIDE, WEB};
use lb_tests::cluster::{TestCluster, TestNamespace, together};
use serde_json::{Value, json};

/// A dual-stack Service `web` of TCP and UDP port 80 for pods with `app: web`.
const WEB_SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: tcp, protocol: TCP, port: 80, targetPort: 8080}
  - {name: udp, protocol: UDP, port: 80, targetPort: 8080}
";

fn web() -> Value {
    json!({"app": "web"})
}

/// Everybody inside reaches both families and transports of the ClusterIP of Service `web`.
fn reach_all(
    cluster: &TestCluster,
    namespace: &TestNamespace,
    port: u16,
    expect: Expect<'_>,
) -> Result<()> {
    for family in Family::BOTH {
        let address = namespace.cluster_ip("web", family)?;
        for transport in Transport::BOTH {
            for client in INSIDE {
                cluster.reach(client, Target { transport, address, port }, expect)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_pod_that_is_not_ready_leaves_and_comes_back_while_no_request_is_lost() -> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("readiness")?;
        namespace.apply(WEB_SERVICE)?;
        namespace.pods(&web(), &["pod-a1", "pod-b1"])?;
        let both = Expect::Servers(&["pod-a1", "pod-b1"]);
        reach_all(cluster, &namespace, 80, both)?;
        let address = namespace.cluster_ip("web", Family::V4)?;
        let peer = cluster.lab().peer("pod-b2")?;
        let load = peer.start_load(Load::new(Request::tcp(address, 80)))?;
        for _ in 0..3 {
            namespace.report("pod-a1", "pod-a1", false)?;
            reach_all(cluster, &namespace, 80, Expect::Servers(&["pod-b1"]))?;
            namespace.report("pod-a1", "pod-a1", true)?;
            reach_all(cluster, &namespace, 80, both)?;
        }
        let report = peer.stop_load(load)?;
        assert_eq!(report.lost(), 0, "{report:?}");
        assert!(report.ok > 100, "{report:?}");
        Ok(())
    })
}

#[test]
fn a_service_without_ready_endpoints_refuses_at_once() -> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("empty")?;
        namespace.apply(WEB_SERVICE)?;
        reach_all(cluster, &namespace, 80, Expect::Refused)?;
        namespace.pods(&web(), &["pod-a1"])?;
        reach_all(cluster, &namespace, 80, Expect::Servers(&["pod-a1"]))?;
        namespace.delete("Pod", "pod-a1")?;
        reach_all(cluster, &namespace, 80, Expect::Refused)
    })
}

#[test]
fn changed_ports_and_target_ports_replace_the_old_ones() -> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("ports")?;
        namespace.apply(WEB_SERVICE)?;
        namespace.pods(&web(), &["pod-a1", "pod-b1"])?;
        let both = Expect::Servers(&["pod-a1", "pod-b1"]);
        reach_all(cluster, &namespace, 80, both)?;
        namespace.apply(&WEB_SERVICE.replace("port: 80,", "port: 81,"))?;
        reach_all(cluster, &namespace, 81, both)?;
        reach_all(cluster, &namespace, 80, Expect::Nobody)?;
        let other = format!("targetPort: {OTHER}");
        namespace.apply(&WEB_SERVICE.replace(&format!("targetPort: {WEB}"), &other))?;
        reach_all(cluster, &namespace, 80, both)?;
        eventually("the maps lead to the new target port only", || {
            for node in NODES {
                let rows = cluster.services_in_maps(node)?;
                let rows = rows.as_array().context("no array")?.iter();
                for row in rows.filter(|row| row["namespace"] == "ports") {
                    for backend in row["backends"].as_array().into_iter().flatten() {
                        anyhow::ensure!(backend["port"] == OTHER, "{row}");
                    }
                }
            }
            Ok(())
        })
    })
}

#[test]
fn named_target_ports_that_differ_between_pods_each_get_their_own_traffic() -> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("named")?;
        namespace.apply(&WEB_SERVICE.replace("targetPort: 8080", "targetPort: web"))?;
        // The container's port is fixed once a Pod exists, so the second Pod is written anew.
        namespace.pods(&web(), &["pod-a1"])?;
        namespace.pod_with_port("pod-b1", &web(), "pod-b1", OTHER)?;
        let address = namespace.cluster_ip("web", Family::V4)?;
        for client in INSIDE {
            let both = Expect::Servers(&["pod-a1", "pod-b1"]);
            cluster.reach(client, Target::tcp(address, 80), both)?;
        }
        Ok(())
    })
}

#[test]
fn a_service_changes_its_type_back_and_forth() -> Result<()> {
    const NODE_PORT: u16 = 31555;
    together(|cluster| {
        let namespace = cluster.namespace("types")?;
        namespace.pods(&web(), &["pod-a1", "pod-b1"])?;
        let both = Expect::Servers(&["pod-a1", "pod-b1"]);
        let exposed = WEB_SERVICE
            .replace("spec:\n", "spec:\n  type: NodePort\n")
            .replace("targetPort: 8080", &format!("targetPort: 8080, nodePort: {NODE_PORT}"));
        let balanced = exposed.replace("type: NodePort", "type: LoadBalancer");
        let named = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: ExternalName, externalName: site.example}
";
        let node_ports = |expect| -> Result<()> {
            for family in Family::BOTH {
                for node in NODES {
                    let address = cluster.address(node, family)?;
                    for transport in Transport::BOTH {
                        let target = Target { transport, address, port: NODE_PORT };
                        cluster.reach(OUTSIDE, target, expect)?;
                    }
                }
            }
            Ok(())
        };
        for _ in 0..2 {
            namespace.apply(WEB_SERVICE)?;
            reach_all(cluster, &namespace, 80, both)?;
            node_ports(Expect::Nobody)?;
            namespace.apply(&exposed)?;
            node_ports(both)?;
            namespace.apply(&balanced)?;
            node_ports(both)?;
            reach_all(cluster, &namespace, 80, both)?;
            let old = namespace.cluster_ip("web", Family::V4)?;
            namespace.apply(named)?;
            node_ports(Expect::Nobody)?;
            cluster.reach("pod-b2", Target::tcp(old, 80), Expect::Nobody)?;
        }
        Ok(())
    })
}

#[test]
fn a_service_of_another_proxy_is_left_alone_until_the_label_goes() -> Result<()> {
    const LABEL: &str = "service.kubernetes.io/service-proxy-name";
    together(|cluster| {
        let namespace = cluster.namespace("other-proxy")?;
        namespace.apply(WEB_SERVICE)?;
        namespace.pods(&web(), &["pod-a1"])?;
        let one = Expect::Servers(&["pod-a1"]);
        reach_all(cluster, &namespace, 80, one)?;
        namespace.patch_service("web", json!({"metadata": {"labels": {LABEL: "another"}}}))?;
        reach_all(cluster, &namespace, 80, Expect::Nobody)?;
        namespace.patch_service("web", json!({"metadata": {"labels": {LABEL: null}}}))?;
        reach_all(cluster, &namespace, 80, one)
    })
}

#[test]
fn the_api_servers_own_service_is_reached_through_the_datapath() -> Result<()> {
    together(|cluster| {
        let api = cluster.api().get("Service", "default", "kubernetes")?.context("no Service")?;
        let address = api.data["spec"]["clusterIP"].as_str().context("no ClusterIP")?.parse()?;
        for client in INSIDE {
            eventually(&format!("{client} reaches Service kubernetes"), || {
                // The API server takes the connection and then finds that this is no TLS.
                let outcome = cluster.lab().peer(client)?.ask(&Request::tcp(address, 443))?;
                let connected = outcome.as_ref().is_err_and(|failure| failure.call != "connect");
                anyhow::ensure!(connected, "{outcome:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn services_that_claim_one_address_and_port_have_the_same_winner_on_every_node() -> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("claims")?;
        namespace.pods(&json!({"app": "first"}), &["pod-a1"])?;
        namespace.pods(&json!({"app": "second"}), &["pod-b1"])?;
        let service = |name: &str| {
            format!(
                "
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  externalIPs: [198.51.100.81]
  ports: [{{port: 80, targetPort: 8080}}]
"
            )
        };
        let claimed = Target::tcp("198.51.100.81".parse()?, 80);
        let all = |server: &str| -> Result<()> {
            for client in INSIDE {
                cluster.reach(client, claimed, Expect::Servers(&[server]))?;
            }
            Ok(())
        };
        namespace.apply(&service("first"))?;
        all("pod-a1")?;
        // The age of a Service has a resolution of one second.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        namespace.apply(&service("second"))?;
        eventually("both nodes warn and name both Services", || {
            for node in NODES {
                let log = cluster.agent_log(node)?;
                let named =
                    |line: &str| line.contains("claims/first") && line.contains("claims/second");
                anyhow::ensure!(log.lines().any(named), "nothing in the log of {node}");
            }
            Ok(())
        })?;
        all("pod-a1")?;
        namespace.delete("Service", "first")?;
        all("pod-b1")
    })
}

/// Whether requests of one client, each from a socket of its own, all have the same server.
fn keeps_its_server(cluster: &TestCluster, client: &str, request: &Request) -> Result<bool> {
    let outcomes = cluster.lab().peer(client)?.request(&request.clone().times(24))?;
    let mut servers = BTreeSet::new();
    for outcome in outcomes {
        let answer = outcome.map_err(|failure| anyhow::anyhow!("{client}: {failure}"))?;
        servers.insert(answer.server);
    }
    Ok(servers.len() == 1)
}

#[test]
fn session_affinity_is_switched_and_its_timeout_changed_while_the_service_is_used() -> Result<()> {
    const NODE_PORT: u16 = 31556;
    together(|cluster| {
        let namespace = cluster.namespace("affinity")?;
        let exposed = WEB_SERVICE
            .replace("spec:\n", "spec:\n  type: NodePort\n")
            .replace("targetPort: 8080", &format!("targetPort: 8080, nodePort: {NODE_PORT}"));
        namespace.apply(&exposed)?;
        namespace.pods(&web(), &["pod-a1", "pod-a2", "pod-b1"])?;
        reach_all(cluster, &namespace, 80, Expect::Servers(&["pod-a1", "pod-a2", "pod-b1"]))?;
        let for_seconds = |seconds: u32| {
            json!({"spec": {
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
            }})
        };
        let none = json!({"spec": {"sessionAffinity": "None", "sessionAffinityConfig": null}});
        for (change, sticks) in [
            (for_seconds(10_800), true),
            (none.clone(), false),
            (for_seconds(600), true),
            (for_seconds(86_400), true),
            (none, false),
        ] {
            namespace.patch_service("web", change.clone())?;
            for family in Family::BOTH {
                let cluster_ip = namespace.cluster_ip("web", family)?;
                let node = cluster.address("node-b", family)?;
                let targets = INSIDE.map(|client| (client, cluster_ip, 80));
                for (client, address, port) in
                    targets.into_iter().chain([(OUTSIDE, node, NODE_PORT)])
                {
                    for transport in Transport::BOTH {
                        let request = Request::new(transport, address, port);
                        let what = format!("{client} → {address} {transport} with {change}");
                        eventually(&what, || {
                            let keeps = keeps_its_server(cluster, client, &request)?;
                            anyhow::ensure!(keeps == sticks, "keeps its server: {keeps}");
                            Ok(())
                        })?;
                    }
                }
            }
        }
        // A second of silence, and the client is as good as new.
        namespace.patch_service("web", for_seconds(1))?;
        let request = Request::tcp(namespace.cluster_ip("web", Family::V4)?, 80);
        let mut servers = BTreeSet::new();
        eventually("a client is forgotten after a second", || {
            std::thread::sleep(std::time::Duration::from_millis(1100));
            let outcome = cluster.lab().peer("pod-b2")?.ask(&request)?;
            servers.insert(outcome.map_err(|failure| anyhow::anyhow!("{failure}"))?.server);
            anyhow::ensure!(servers.len() > 1, "always {servers:?}");
            Ok(())
        })
    })
}

#[test]
fn source_ranges_are_changed_while_the_load_balancer_is_used() -> Result<()> {
    // The address is another test's, too.
    const PORT: u16 = 8088;
    together(|cluster| {
        let namespace = cluster.namespace("ranges")?;
        namespace.pods(&web(), &["pod-a1", "pod-b1"])?;
        let balanced = WEB_SERVICE.replace("spec:\n", "spec:\n  type: LoadBalancer\n");
        namespace.apply(&balanced.replace("port: 80,", &format!("port: {PORT},")))?;
        let ingress = LOAD_BALANCER.both().map(|ip| json!({"ip": ip}));
        cluster.api().patch_status(
            "Service",
            namespace.name(),
            "web",
            json!({"loadBalancer": {"ingress": ingress}}),
        )?;
        let of = |hosts: &[&str]| -> Result<Value> {
            let mut ranges = Vec::new();
            for host in hosts {
                for (family, bits) in [(Family::V4, 32), (Family::V6, 128)] {
                    ranges.push(format!("{}/{bits}", cluster.address(host, family)?));
                }
            }
            Ok(json!({"spec": {"loadBalancerSourceRanges": ranges}}))
        };
        let both = Expect::Servers(&["pod-a1", "pod-b1"]);
        for (change, admitted) in [
            (json!({"spec": {"loadBalancerSourceRanges": null}}), vec![OUTSIDE, "node-a"]),
            (of(&[OUTSIDE])?, vec![OUTSIDE]),
            (of(&["node-a"])?, vec!["node-a"]),
            (of(&["node-a", OUTSIDE, "site"])?, vec![OUTSIDE, "node-a"]),
            (of(&["site"])?, vec![]),
            (json!({"spec": {"loadBalancerSourceRanges": null}}), vec![OUTSIDE, "node-a"]),
        ] {
            namespace.patch_service("web", change)?;
            for family in Family::BOTH {
                for transport in Transport::BOTH {
                    let target =
                        Target { transport, address: LOAD_BALANCER.of(family), port: PORT };
                    for client in [OUTSIDE, "node-a"] {
                        let is_in = admitted.contains(&client);
                        let expect = if is_in { both } else { Expect::Nobody };
                        cluster.reach(client, target, expect)?;
                    }
                }
            }
            reach_all(cluster, &namespace, PORT, both)?;
        }
        Ok(())
    })
}
