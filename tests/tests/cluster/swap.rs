//! Blue and green: the only endpoint of a Service is replaced while requests go on, and none fails.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_lab::{Load, LoadReport, Request, Transport};
use lb_tests::cluster::reach::eventually;
use lb_tests::cluster::requests::{inside, outside, reach_all};
use lb_tests::cluster::test_cluster::NODES;
use lb_tests::cluster::{TestCluster, TestNamespace, together};
use serde_json::{Value, json};

/// Each is the only endpoint in turn: local to one node, remote from the other.
const COLOURS: [&str; 2] = ["pod-a1", "pod-b1"];
/// The client inside; it is on green's node.
const INSIDE: &str = "pod-b2";
const SWAPS: usize = 24;
const NODE_PORT: u16 = 31_557;
/// Nobody else's: servers come and go here.
const TARGET: u16 = 7070;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: swap}
  ports:
  - {name: tcp, protocol: TCP, port: 80, targetPort: 7070, nodePort: 31557}
  - {name: udp, protocol: UDP, port: 80, targetPort: 7070, nodePort: 31557}
";

/// Requests that go on, each from a socket of its own.
struct Running {
    from: &'static str,
    request: Request,
    number: u64,
}

impl Running {
    fn report(&self, cluster: &TestCluster) -> Result<LoadReport> {
        cluster.lab().peer(self.from)?.read_load(self.number)
    }

    /// Waits until `server` has answered once more: so no swap goes by between two requests.
    fn wait_for(&self, cluster: &TestCluster, server: &str) -> Result<()> {
        let answered = |report: LoadReport| report.servers.get(server).copied().unwrap_or(0);
        let before = answered(self.report(cluster)?);
        eventually(&format!("{} → {}: {server} answers", self.from, self.request.to), || {
            let report = self.report(cluster)?;
            ensure!(report.lost() == 0, "{report:?}");
            ensure!(answered(report.clone()) > before, "{report:?}");
            Ok(())
        })
    }
}

/// Starts a colour's servers; their numbers.
fn serve(cluster: &TestCluster, host: &str) -> Result<Vec<u64>> {
    let peer = cluster.lab().peer(host)?;
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    Transport::BOTH.into_iter().map(|transport| peer.serve(transport, any, TARGET)).collect()
}

/// How a node's tables know an endpoint.
#[derive(Clone, Copy, Debug)]
enum Known {
    /// New flows go there.
    Active,
    /// Flows may still be there.
    AtAll,
}

/// Waits until every node's tables know `host` like this, and nobody else.
fn wait_for_tables(
    cluster: &TestCluster,
    namespace: &TestNamespace,
    host: &str,
    known: Known,
) -> Result<()> {
    let wanted: BTreeSet<String> =
        cluster.lab().host(host)?.address.both().map(|address| address.to_string()).into();
    for node in NODES {
        eventually(&format!("the tables of {node} know {host} alone ({known:?})"), || {
            let rows = cluster.services_in_maps(node)?;
            let rows = rows.as_array().context("`lb-agent services -o json` printed no array")?;
            let ours = rows.iter().filter(|row| row["namespace"] == json!(namespace.name()));
            let backends = ours.filter_map(|row| row["backends"].as_array()).flatten();
            let meant = |backend: &&Value| match known {
                Known::Active => backend["active"] == json!(true),
                Known::AtAll => true,
            };
            let held: BTreeSet<String> = backends
                .filter(meant)
                .filter_map(|backend| Some(backend["address"].as_str()?.to_owned()))
                .collect();
            ensure!(held == wanted, "{held:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn the_only_endpoint_is_swapped_again_and_again_and_not_one_request_fails() -> Result<()> {
    together(|cluster| {
        let namespace = cluster.namespace("swap")?;
        let labels = json!({"app": "swap"});
        namespace.apply(SERVICE)?;
        let mut servers = serve(cluster, COLOURS[0])?;
        namespace.pods(&labels, &COLOURS[..1])?;
        let inside = inside(&namespace, "web", &[INSIDE])?;
        let requests = [inside, outside(cluster, NODE_PORT)?].concat();
        reach_all(cluster, &requests, &COLOURS[..1])?;
        let mut loads = Vec::new();
        for (from, request) in requests {
            let load = Load {
                pause: Duration::from_millis(10),
                at_most: Duration::from_secs(600),
                ..Load::new(request.clone())
            };
            let number = cluster.lab().peer(from)?.start_load(load)?;
            loads.push(Running { from, request, number });
        }
        for swap in 0..SWAPS {
            let (old, new) = (COLOURS[swap % 2], COLOURS[(swap + 1) % 2]);
            let new_servers = serve(cluster, new)?;
            namespace.pods(&labels, &[new])?;
            // As a Deployment does: the old one begins to end as soon as the new one is ready, and
            // serves while it does.
            namespace.hold(old, true)?;
            namespace.delete("Pod", old)?;
            wait_for_tables(cluster, &namespace, new, Known::Active)?;
            // The requests that began before are answered when another is.
            for load in &loads {
                load.wait_for(cluster, new).with_context(|| format!("swap {swap}"))?;
            }
            namespace.hold(old, false)?;
            wait_for_tables(cluster, &namespace, new, Known::AtAll)?;
            // Whoever were still led to the old one would find nobody.
            for load in &loads {
                load.wait_for(cluster, new).with_context(|| format!("swap {swap}, tables"))?;
            }
            for number in std::mem::replace(&mut servers, new_servers) {
                cluster.lab().peer(old)?.stop_server(number)?;
            }
            for load in &loads {
                load.wait_for(cluster, new).with_context(|| format!("after swap {swap}"))?;
            }
        }
        for Running { from, request, number } in loads {
            let report = cluster.lab().peer(from)?.stop_load(number)?;
            ensure!(report.lost() == 0, "{from} → {}: {report:?}", request.to);
        }
        for number in servers {
            cluster.lab().peer(COLOURS[SWAPS % 2])?.stop_server(number)?;
        }
        Ok(())
    })
}
