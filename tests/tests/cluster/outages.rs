//! The API server, etcd, the network and the agents fail; the datapath does not.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_lab::{Family, Load, LoadReport, Request};
use lb_tests::cluster::reach::{Expect, Target, eventually};
use lb_tests::cluster::test_cluster::{INSIDE, NODES, OUTSIDE};
use lb_tests::cluster::{TestCluster, TestNamespace, alone};
use serde_json::json;

const NODE_PORT: u16 = 31777;
const BOTH: Expect<'_> = Expect::Servers(&["pod-a1", "pod-b1"]);

/// A Service `web` with a NodePort and two pods that answer, programmed on both nodes.
fn service(cluster: &TestCluster, name: &str) -> Result<TestNamespace> {
    let namespace = cluster.namespace(name)?;
    namespace.apply(&format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {NODE_PORT}}}]
"
    ))?;
    namespace.pods(&json!({"app": "web"}), &["pod-a1", "pod-b1"])?;
    everybody(cluster, &namespace, BOTH)?;
    Ok(namespace)
}

/// Pods and nodes by ClusterIP, the client outside by NodePort.
fn everybody(cluster: &TestCluster, namespace: &TestNamespace, expect: Expect<'_>) -> Result<()> {
    for family in Family::BOTH {
        let address = namespace.cluster_ip("web", family)?;
        for client in INSIDE {
            cluster.reach(client, Target::tcp(address, 80), expect)?;
        }
        for node in NODES {
            let target = Target::tcp(cluster.address(node, family)?, NODE_PORT);
            cluster.reach(OUTSIDE, target, expect)?;
        }
    }
    Ok(())
}

/// Requests that run from a pod, a node and outside until they are stopped: new connections, and
/// connections that stay.
struct Traffic<'a> {
    cluster: &'a lb_lab::Lab,
    loads: Vec<(&'static str, u64)>,
}

impl<'a> Traffic<'a> {
    fn start(
        cluster: &TestCluster,
        lab: &'a lb_lab::Lab,
        namespace: &TestNamespace,
    ) -> Result<Self> {
        let mut loads = Vec::new();
        for family in Family::BOTH {
            let inside = Request::tcp(namespace.cluster_ip("web", family)?, 80);
            let outside = Request::tcp(cluster.address("node-a", family)?, NODE_PORT);
            for (client, request) in
                [("pod-a2", &inside), ("pod-b2", &inside), ("node-b", &inside), (OUTSIDE, &outside)]
            {
                for persistent in [false, true] {
                    let mut load = Load::new(request.clone());
                    load.persistent = persistent;
                    load.pause = Duration::from_millis(5);
                    loads.push((client, lab.peer(client)?.start_load(load)?));
                }
            }
        }
        Ok(Self { cluster: lab, loads })
    }

    /// Ends the requests; none may have failed.
    fn stop(self) -> Result<()> {
        for (client, load) in self.loads {
            let report: LoadReport = self.cluster.peer(client)?.stop_load(load)?;
            ensure!(report.lost() == 0 && report.ok > 0, "requests of {client}: {report:?}");
        }
        Ok(())
    }
}

#[test]
fn the_api_server_dies_and_returns_and_no_request_notices() -> Result<()> {
    alone(|cluster| {
        let lab = std::sync::Arc::clone(cluster.lab());
        let namespace = service(cluster, "api-restart")?;
        let addresses = Family::BOTH.map(|family| namespace.cluster_ip("web", family));
        let traffic = Traffic::start(cluster, &lab, &namespace)?;
        cluster.control_plane.kill_apiserver()?;
        for address in addresses {
            let target = Target::tcp(address?, 80);
            for client in INSIDE {
                cluster.reach(client, target, BOTH).context("while the API server is dead")?;
            }
        }
        cluster.control_plane.start_apiserver()?;
        traffic.stop()?;
        namespace.report("pod-a1", "pod-a1", false)?;
        everybody(cluster, &namespace, Expect::Servers(&["pod-b1"]))
            .context("what changed after the restart")
    })
}

#[test]
fn etcd_dies_and_returns_and_changes_are_followed_again() -> Result<()> {
    alone(|cluster| {
        let namespace = service(cluster, "etcd-restart")?;
        cluster.control_plane.restart_etcd()?;
        everybody(cluster, &namespace, BOTH)?;
        namespace.report("pod-b1", "pod-b1", false)?;
        everybody(cluster, &namespace, Expect::Servers(&["pod-a1"]))
    })
}

#[test]
fn a_node_that_was_cut_off_keeps_serving_and_then_catches_up() -> Result<()> {
    alone(|cluster| {
        let lab = std::sync::Arc::clone(cluster.lab());
        let namespace = service(cluster, "cut")?;
        cluster.cut("node-a")?;
        let traffic = Traffic::start(cluster, &lab, &namespace)?;
        namespace.pods(&json!({"app": "web"}), &["pod-b2"])?;
        let address = namespace.cluster_ip("web", Family::V4)?;
        let three = Expect::Servers(&["pod-a1", "pod-b1", "pod-b2"]);
        cluster.reach("node-b", Target::tcp(address, 80), three)?;
        cluster.reach("node-a", Target::tcp(address, 80), BOTH).context("node-a is cut off")?;
        cluster.mend("node-a")?;
        cluster.reach("node-a", Target::tcp(address, 80), three).context("node-a is back")?;
        traffic.stop()
    })
}

#[test]
fn a_connection_that_died_in_silence_is_noticed_and_replaced() -> Result<()> {
    alone(|cluster| {
        let namespace = service(cluster, "silence")?;
        cluster.cut("node-a")?;
        // The end of the connection is lost with the cut, so node-a waits for a server that is gone.
        cluster.control_plane.kill_apiserver()?;
        cluster.control_plane.start_apiserver()?;
        cluster.mend("node-a")?;
        namespace.report("pod-a1", "pod-a1", false)?;
        everybody(cluster, &namespace, Expect::Servers(&["pod-b1"]))
    })
}

#[test]
fn a_watch_that_resumes_from_a_compacted_version_lists_anew() -> Result<()> {
    alone(|cluster| {
        let namespace = service(cluster, "gone")?;
        let doomed = cluster.namespace("gone-doomed")?;
        doomed.apply(
            "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
",
        )?;
        doomed.pods(&json!({"app": "web"}), &["pod-b2"])?;
        let forgotten = Target::tcp(doomed.cluster_ip("web", Family::V4)?, 80);
        cluster.reach("node-a", forgotten, Expect::Servers(&["pod-b2"]))?;
        // The agents see their connections end, and node-a does not get a new one.
        cluster.control_plane.kill_apiserver()?;
        cluster.cut("node-a")?;
        cluster.control_plane.start_apiserver()?;
        doomed.delete("Service", "web")?;
        namespace.report("pod-a1", "pod-a1", false)?;
        let address = namespace.cluster_ip("web", Family::V4)?;
        let one = Expect::Servers(&["pod-b1"]);
        cluster.reach("node-b", Target::tcp(address, 80), one)?;
        cluster.reach("node-a", Target::tcp(address, 80), BOTH).context("node-a is cut off")?;
        cluster.reach("node-a", forgotten, Expect::Servers(&["pod-b2"]))?;
        // Neither etcd nor the API server's memory has what node-a will ask for.
        cluster.control_plane.compact()?;
        cluster.control_plane.kill_apiserver()?;
        cluster.control_plane.start_apiserver()?;
        cluster.mend("node-a")?;
        everybody(cluster, &namespace, one).context("node-a has listed anew")?;
        cluster.reach("node-a", forgotten, Expect::Nobody).context("deleted while cut off")
    })
}

#[test]
fn agents_are_restarted_and_killed_under_load_and_no_connection_fails() -> Result<()> {
    alone(|cluster| {
        let lab = std::sync::Arc::clone(cluster.lab());
        let namespace = service(cluster, "agent-restart")?;
        let traffic = Traffic::start(cluster, &lab, &namespace)?;
        for node in NODES {
            cluster.stop_agent(node)?;
            thread::sleep(Duration::from_millis(500));
            cluster.start_agent(node)?;
            cluster.kill_agent(node);
            cluster.start_agent(node)?;
        }
        thread::sleep(Duration::from_millis(500));
        traffic.stop()
    })
}

#[test]
fn what_changed_while_an_agent_was_away_is_applied_at_its_start() -> Result<()> {
    alone(|cluster| {
        let namespace = service(cluster, "away")?;
        cluster.stop_agent("node-a")?;
        namespace.report("pod-a1", "pod-a1", false)?;
        let target = Target::tcp(namespace.cluster_ip("web", Family::V4)?, 80);
        cluster.reach("node-b", target, Expect::Servers(&["pod-b1"]))?;
        cluster.reach("node-a", target, BOTH).context("nobody told node-a's datapath")?;
        cluster.start_agent("node-a")?;
        everybody(cluster, &namespace, Expect::Servers(&["pod-b1"]))
    })
}

#[test]
fn an_agent_that_finds_no_api_server_says_so_once_and_waits_for_it() -> Result<()> {
    alone(|cluster| {
        let namespace = service(cluster, "no-api")?;
        let said_before = cluster.agent_log("node-a")?.len();
        cluster.stop_agent("node-a")?;
        cluster.control_plane.kill_apiserver()?;
        cluster.spawn_agent("node-a")?;
        let said = |cluster: &TestCluster| -> Result<usize> {
            let log = cluster.agent_log("node-a")?;
            let new = log.get(said_before..).unwrap_or_default();
            Ok(new.lines().filter(|line| line.contains("can't watch the API server")).count())
        };
        eventually("the agent says that there is no API server", || {
            ensure!(said(cluster)? > 0, "nothing yet");
            Ok(())
        })?;
        thread::sleep(Duration::from_secs(5));
        ensure!(said(cluster)? == 1, "said {} times", said(cluster)?);
        let page = lab_health(cluster, "node-a")?;
        ensure!(page != 200, "healthy without having seen a Service");
        cluster.control_plane.start_apiserver()?;
        cluster.wait_for_agent("node-a")?;
        everybody(cluster, &namespace, BOTH)
    })
}

/// Status of the agent's `/healthz`.
fn lab_health(cluster: &TestCluster, node: &str) -> Result<u16> {
    Ok(cluster.lab().peer(node)?.get(lb_lab::HEALTHZ, "/healthz")?.status)
}
