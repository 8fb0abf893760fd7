//! lb-agent as the cluster's service proxy: its image packed here, installed by the manifests of deploy/.

use super::cluster::Cluster;
use super::oci::{self, Image};
use super::specs::{Ending, Outcome};
use crate::artifacts::libraries;
use crate::workspace;
use anyhow::{Context, Result};
use std::path::Path;

/// The image that tests/e2e/agent/kustomization.yaml names.
const IMAGE: &str = "localhost/lb-agent:0.1.0";

/// Installs the agent on every node and waits until all are ready.
///
/// # Errors
/// When an agent doesn't become ready: carries what its Pods say.
pub fn install(cluster: &Cluster, agent: &Path, folder: &Path) -> Result<()> {
    let archive = folder.join("lb-agent.tar");
    let program = ("/lb-agent".to_owned(), agent.to_owned());
    let libraries = libraries(agent)?.into_iter().map(|path| (path.display().to_string(), path));
    let image = Image {
        name: IMAGE.to_owned(),
        files: std::iter::once(program).chain(libraries).collect(),
        entrypoint: vec!["/lb-agent".to_owned()],
        arguments: Vec::new(),
    };
    oci::pack(&archive, None, &[image])?;
    cluster.load(&archive)?;
    let manifests = workspace::root().join("tests/e2e/agent");
    cluster.kubectl(&["apply", "-k", &manifests.display().to_string()])?;
    let rollout = ["-n", "kube-system", "rollout", "status", "daemonset/lb-agent"];
    cluster
        .kubectl(&[&rollout[..], &["--timeout=180s"]].concat())
        .with_context(|| format!("the agents did not become ready:\n{}", logs(cluster)))?;
    Ok(())
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
