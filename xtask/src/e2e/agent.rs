//! lb-agent as the cluster's service proxy: its image packed here, installed by the manifests of deploy/.

use super::cluster::Cluster;
use super::oci::{self, Image};
use crate::artifacts::libraries;
use crate::workspace;
use anyhow::{Context, Result};
use std::path::Path;

/// The image that deploy/kustomization.yaml names, as the runtime completes it.
const IMAGE: &str = "docker.io/library/lb-agent:0.1.0";

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
