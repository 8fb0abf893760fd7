//! `lb-agent wait`: what the Helm chart needs beside `cleanup` to remove everything. Helm waits for
//! Jobs but not for DaemonSets, and the containers of a DaemonSet may not end. Helm would also delete the
//! DaemonSet when it isn't ready in time, and what isn't clean by then would never be.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::api::DeleteParams;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::args::WaitArgs;
use crate::config::server_addresses;
use crate::run::source;

/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(1);

/// Waits for SIGTERM, or for the DaemonSet if one is named.
///
/// # Errors
/// When there is no way to ask for the DaemonSet, or a signal came first.
pub fn wait(args: &WaitArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start waiting")?.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let Some(name) = &args.daemon_set else {
            terminated.recv().await;
            return Ok(());
        };
        tokio::select! {
            done = until_done(name, args) => done,
            _ = terminated.recv() => anyhow::bail!("{name} is not ready on every node yet"),
        }
    })
}

async fn until_done(name: &str, args: &WaitArgs) -> anyhow::Result<()> {
    let (namespace, name) = name.split_once('/').context("--daemon-set: write NAMESPACE/NAME")?;
    let addresses = server_addresses(&args.master)?;
    let client = source::connect(None, &addresses, &std::sync::Arc::default()).await?;
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client, namespace);
    let mut said = String::new();
    loop {
        let state = match daemon_sets.get(name).await {
            Ok(daemon_set) => match Progress::of(&daemon_set) {
                Some(Progress { ready, nodes }) if ready == nodes => break,
                Some(Progress { ready, nodes }) => format!("ready on {ready} of {nodes} nodes"),
                None => "not seen by its controller yet".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        if said != state {
            info!(daemon_set = name, "{state}");
            said = state;
        }
        tokio::time::sleep(INTERVAL).await;
    }
    if args.delete {
        let deleted = daemon_sets.delete(name, &DeleteParams::background()).await;
        deleted.with_context(|| format!("delete the DaemonSet {namespace}/{name}"))?;
    }
    Ok(())
}

/// How far a DaemonSet is.
#[derive(Debug, PartialEq, Eq)]
struct Progress {
    ready: i32,
    nodes: i32,
}

impl Progress {
    /// None while its status is about an earlier version of it.
    fn of(daemon_set: &DaemonSet) -> Option<Self> {
        let status = daemon_set.status.as_ref()?;
        let is_current = status.observed_generation >= daemon_set.metadata.generation;
        let nodes = status.desired_number_scheduled;
        let ready = status.number_ready.min(status.updated_number_scheduled.unwrap_or(0));
        is_current.then_some(Self { ready, nodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_present_version_counts_on_every_node() {
        let of = |observed, ready, updated| {
            let daemon_set = json!({
                "metadata": {"generation": 2},
                "status": {
                    "observedGeneration": observed, "desiredNumberScheduled": 3, "numberReady": ready,
                    "updatedNumberScheduled": updated, "currentNumberScheduled": 3,
                    "numberMisscheduled": 0,
                },
            });
            Progress::of(&serde_json::from_value(daemon_set).unwrap())
        };
        assert_eq!(of(1, 3, 3), None, "the controller hasn't seen it");
        assert_eq!(of(2, 2, 3), Some(Progress { ready: 2, nodes: 3 }));
        assert_eq!(of(2, 3, 1), Some(Progress { ready: 1, nodes: 3 }), "pods of before");
        assert_eq!(of(2, 3, 3), Some(Progress { ready: 3, nodes: 3 }));
        assert_eq!(Progress::of(&DaemonSet::default()), None);
    }
}
