//! ServiceCIDRs: the API server makes the first one itself, others come and go at runtime.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lb_lab::{METRICS, Request};
use lb_tests::cluster::reach::eventually;
use lb_tests::cluster::{TestCluster, alone};
use serde_json::json;

const DROPS: &str = "lb_agent_drops_total{reason=\"unowned_address\"} ";

/// Packets that node-a's agent didn't let out.
fn dropped(cluster: &TestCluster) -> Result<u64> {
    let page = cluster.lab().peer("node-a")?.get(METRICS, "/metrics")?;
    let count = page.body.lines().find_map(|line| line.strip_prefix(DROPS)?.parse().ok());
    count.with_context(|| format!("no counter in {}", page.body))
}

/// Whether a datagram of a pod of node-a to this address is dropped there.
fn is_dropped(cluster: &TestCluster, to: &str) -> Result<bool> {
    let before = dropped(cluster)?;
    let request = Request::udp(to.parse()?, 9).patience(Duration::from_millis(100));
    let outcome = cluster.lab().peer("pod-a1")?.ask(&request)?;
    ensure!(outcome.is_err(), "{to} answers");
    Ok(dropped(cluster)? > before)
}

#[test]
fn addresses_of_service_ranges_that_no_service_has_stay_on_the_node() -> Result<()> {
    // Others' packets would be counted too.
    alone(|cluster| {
        for address in ["10.96.255.200", "fd00:96::fe77"] {
            eventually("the API server's own range", || {
                ensure!(is_dropped(cluster, address)?, "{address} leaves");
                Ok(())
            })?;
        }
        let other = "10.111.0.200";
        ensure!(!is_dropped(cluster, other)?, "{other} is in no range yet");
        cluster.api().create(
            "",
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": "more"}, "spec": {"cidrs": ["10.111.0.0/24"]},
            }),
        )?;
        eventually("a range is added", || {
            ensure!(is_dropped(cluster, other)?, "{other} leaves");
            Ok(())
        })?;
        cluster.api().delete("ServiceCIDR", "", "more")?;
        eventually("the range is deleted", || {
            ensure!(!is_dropped(cluster, other)?, "{other} is still dropped");
            Ok(())
        })
    })
}
