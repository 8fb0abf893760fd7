//! The Helm chart of `deploy/`, and the plain manifests that are made from it. Shared with `cargo xtask`,
//! so it may use nothing but std and anyhow.

use super::go::HELM;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// In place of the API server's address. It resolves nowhere, so that a forgotten edit shows at once.
const ADDRESS: &str = "https://set-the-address-of-the-api-server.invalid:6443";
const INSTALL: &str = "# Made from deploy/chart by `cargo xtask manifests`: change that.
# Set the API server's address: --master says where the agents find it, deploy/chart/values.yaml which one.
";
const CLEANUP: &str = "# Made from deploy/chart by `cargo xtask manifests`: change that.
# For after the removal of install.yaml: takes the datapath from every node. Remove it when its Pods are ready.
";

/// Where the chart and the manifests are.
#[must_use]
pub fn folder() -> PathBuf {
    // In this crate and in xtask alike, the package's folder lies in the workspace's root.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).join("deploy")
}

/// What the chart has a copy of, as Helm reads nothing outside of it.
const COPIES: [(&str, &str); 2] = [
    ("prometheus/alerts.yaml", "chart/files/alerts.yaml"),
    ("grafana/lb-agent.json", "chart/files/dashboard.json"),
];

/// The files of `deploy/` that the chart has of others or that are made from it, and what they hold.
///
/// # Errors
/// When Helm can't be built or refuses the chart: carries its words.
pub fn manifests() -> Result<Vec<(&'static str, String)>> {
    let address = format!("apiServer.addresses={{{ADDRESS}}}");
    let render = |arguments: &[&str]| {
        let output = template(&[&["--set", &address], arguments].concat())?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm refuses the chart: {words}");
        String::from_utf8(output.stdout).context("helm prints something else than text")
    };
    let install = render(&["--no-hooks"])?;
    let cleanup = render(&["--show-only", "templates/cleanup-daemon-set.yaml"])?;
    let mut files = vec![
        ("install.yaml", format!("{INSTALL}{install}")),
        ("cleanup.yaml", format!("{CLEANUP}{cleanup}")),
    ];
    for (from, to) in COPIES {
        let path = folder().join(from);
        let text = std::fs::read_to_string(&path);
        files.push((to, text.with_context(|| format!("reading {}", path.display()))?));
    }
    Ok(files)
}

/// Runs `helm template` on the chart as a release in kube-system.
///
/// # Errors
/// When Helm can't be built or run; that it refuses is no error here.
pub fn template(arguments: &[&str]) -> Result<Output> {
    helm(&[&["template", "lb-agent", "chart", "--namespace", "kube-system"], arguments].concat())
}

/// Runs Helm in `deploy/`.
///
/// # Errors
/// When Helm can't be built or run; that it refuses is no error here.
pub fn helm(arguments: &[&str]) -> Result<Output> {
    let program = HELM.ensure(&["helm"])?.join("helm");
    let mut helm = Command::new(&program);
    helm.args(arguments).current_dir(folder());
    helm.output().with_context(|| format!("running {}", program.display()))
}
