//! lb-agent as the cluster's service proxy: its image packed here, installed by the Helm chart of deploy/.

use super::cluster::Cluster;
use super::docker::NAME;
use super::specs::{Ending, Outcome};
use crate::chart;
use crate::image;
use anyhow::{Context, Result};
use std::path::Path;

/// Installs the agent on every node and waits until all are ready.
///
/// # Errors
/// When an agent doesn't become ready: carries what its Pods say.
pub fn install(cluster: &Cluster, agent: &Path, folder: &Path) -> Result<()> {
    let archive = folder.join("lb-agent.tar");
    image::pack(agent, image::NAME, &archive)?;
    cluster.load(&archive)?;
    install_chart(cluster)
}

/// Installs the chart; every node has the image.
///
/// # Errors
/// When an agent doesn't become ready: carries what its Pods say.
pub fn install_chart(cluster: &Cluster) -> Result<()> {
    // Nobody listens at the first address: the next one must do.
    let addresses = format!("https://{NAME}-worker:6443,https://{NAME}-control-plane:6443");
    let address = format!("apiServer.addresses={{{addresses}}}");
    helm(cluster, &["install", "--set", &address])
}

/// Runs a command of Helm on the release and waits until all agents are ready.
///
/// # Errors
/// When an agent doesn't become ready: carries what its Pods say.
pub fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    let chart = chart::folder().join("chart").display().to_string();
    let release = ["lb-agent", &chart, "--namespace", "kube-system", "--wait", "--timeout", "180s"];
    let ready = || format!("the agents did not become ready:\n{}", logs(cluster));
    cluster.helm(&[arguments, &release].concat()).with_context(ready)?;
    let rollout = ["-n", "kube-system", "rollout", "status", "daemonset/lb-agent"];
    cluster.kubectl(&[&rollout[..], &["--timeout=180s"]].concat()).map(drop).with_context(ready)
}

/// Whether the agents of the beginning still run: a proxy that must be started again fails no test of others.
///
/// # Errors
/// When the API server doesn't answer.
pub fn steadiness(cluster: &Cluster) -> Result<Outcome> {
    let columns = "jsonpath={range .items[*]}{.spec.nodeName} \
                   {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
    let pods = ["-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=lb-agent", "-o"];
    let counts = cluster.kubectl(&[&pods[..], &[columns]].concat())?;
    let restarted: Vec<_> = counts.lines().filter(|line| !line.ends_with(" 0")).collect();
    let ending = match restarted.as_slice() {
        [] => Ending::Passed,
        lines => Ending::Failed(format!("restarts by node: {}", lines.join(", "))),
    };
    Ok(Outcome {
        name: "lb-agent runs on every node without a restart".to_owned(),
        ending,
        seconds: 0,
    })
}

/// What the agents say, and what happened to their Pods.
pub fn logs(cluster: &Cluster) -> String {
    let calls: [&[&str]; 3] = [
        &["get", "pods", "-o", "wide"],
        &["get", "events", "--sort-by=.lastTimestamp"],
        &[
            "logs",
            "-l",
            "app.kubernetes.io/name=lb-agent",
            "--all-containers",
            "--prefix",
            "--tail=-1",
        ],
    ];
    let said = calls.map(|words| {
        let said = cluster.kubectl(&[&["-n", "kube-system"], words].concat());
        said.unwrap_or_else(|error| format!("{error:#}\n"))
    });
    said.join("\n")
}
