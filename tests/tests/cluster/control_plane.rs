//! What the other tests rely on: the control plane is a real one, and survives what they do to it.
//! And what needs no agent: the API server accepts the manifests of `deploy/`.

use anyhow::{Result, ensure};
use lb_lab::{Family, Request};
use lb_tests::cluster::credentials::PORT;
use lb_tests::cluster::test_cluster::NODES;
use lb_tests::cluster::{Identity, Persist, alone_without_agents, chart, confined, without_agents};
use serde_json::json;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: web}]
";

#[test]
fn the_controllers_publish_ready_pods_of_both_families_and_withdraw_unready_ones() -> Result<()> {
    without_agents(|cluster| {
        let namespace = cluster.namespace("publish")?;
        namespace.apply(SERVICE)?;
        namespace.pods(&json!({"app": "web"}), &["pod-a1", "pod-b1"])?;
        let [a4, a6] = cluster.lab().host("pod-a1")?.address.both();
        let [b4, b6] = cluster.lab().host("pod-b1")?.address.both();
        namespace.wait_for_endpoints("web", &[a4, a6, b4, b6])?;
        namespace.report("pod-a1", "pod-a1", false)?;
        namespace.wait_for_endpoints("web", &[b4, b6])?;
        namespace.delete("Pod", "pod-b1")?;
        namespace.wait_for_endpoints("web", &[])
    })
}

#[test]
fn hand_written_endpoints_are_mirrored_into_a_slice() -> Result<()> {
    without_agents(|cluster| {
        let namespace = cluster.namespace("mirror")?;
        namespace.apply(
            "
apiVersion: v1
kind: Service
metadata: {name: outside}
spec:
  ports: [{port: 80}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: outside}
subsets: [{addresses: [{ip: 203.0.113.10}], ports: [{port: 80}]}]
",
        )?;
        namespace.wait_for_endpoints("outside", &[cluster.address("site", Family::V4)?])
    })
}

#[test]
fn restarts_of_the_api_server_and_etcd_lose_no_object() -> Result<()> {
    alone_without_agents(|cluster| {
        let namespace = cluster.namespace("restarts")?;
        namespace.apply(SERVICE)?;
        cluster.control_plane.kill_apiserver()?;
        ensure!(!cluster.api().is_ready(), "a killed API server can't be ready");
        cluster.control_plane.start_apiserver()?;
        cluster.control_plane.compact()?;
        cluster.control_plane.restart_etcd()?;
        let service = cluster.api().get("Service", namespace.name(), "web")?;
        ensure!(service.is_some(), "the Service is gone");
        Ok(())
    })
}

#[test]
fn a_node_that_is_cut_off_reaches_the_api_server_no_more_until_it_is_mended() -> Result<()> {
    alone_without_agents(|cluster| {
        let reaches = || -> Result<[bool; 2]> {
            let server = cluster.address("fabric", Family::V4)?;
            let mut reached = [false; 2];
            for (node, reached) in NODES.into_iter().zip(&mut reached) {
                // The API server takes the connection and then finds that this is no TLS.
                let outcome = cluster.lab().peer(node)?.ask(&Request::tcp(server, PORT))?;
                *reached = outcome.is_err_and(|failure| failure.call != "connect");
            }
            Ok(reached)
        };
        assert_eq!(reaches()?, [true, true], "at first");
        cluster.cut("node-a")?;
        assert_eq!(reaches()?, [false, true], "while node-a is cut off");
        cluster.mend("node-a")?;
        assert_eq!(reaches()?, [true, true], "after mending");
        Ok(())
    })
}

#[test]
fn the_manifests_of_deploy_pass_a_strict_server_side_dry_run() -> Result<()> {
    without_agents(|cluster| {
        let manifests = confined::objects(confined::INSTALL)?;
        let kinds: Vec<_> = manifests.iter().filter_map(|object| object["kind"].as_str()).collect();
        ensure!(
            kinds == ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"],
            "install.yaml holds {kinds:?}"
        );
        let hooks = chart::template(&["--set", "apiServer.addresses={https://10.0.0.10:6443}"])?;
        let hooks = confined::objects(&String::from_utf8(hooks.stdout)?)?;
        let hooks: Vec<_> = hooks
            .into_iter()
            .filter(|object| object["metadata"]["annotations"]["helm.sh/hook"].is_string())
            .collect();
        ensure!(hooks.len() == 5, "the chart has {} hooks", hooks.len());
        for manifest in manifests.into_iter().chain(hooks) {
            cluster.api().apply_object("default", manifest, Persist::DryRun)?;
        }
        Ok(())
    })
}

#[test]
fn the_agents_account_reads_what_it_balances_and_nothing_else() -> Result<()> {
    without_agents(|cluster| {
        let agent = cluster.control_plane.api_as(Identity::Agent)?;
        for kind in ["Service", "EndpointSlice", "Node"] {
            agent.list(kind, "default", "")?;
        }
        for kind in ["Secret", "ConfigMap", "Pod", "Endpoints"] {
            let error = agent.list(kind, "default", "").err();
            let refused = error.as_ref().and_then(|error| error.downcast_ref::<kube::Error>());
            ensure!(
                matches!(refused, Some(kube::Error::Api(status)) if status.code == 403),
                "listing {kind}: expected to be forbidden, got {error:?}"
            );
        }
        let change = json!({"metadata": {"labels": {"touched": "yes"}}});
        ensure!(agent.patch("Service", "default", "kubernetes", change).is_err(), "may write");
        Ok(())
    })
}
