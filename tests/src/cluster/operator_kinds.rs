//! The kinds that Prometheus' operator adds to an API server and of which the chart makes objects: files of
//! the operator's Go module. Nothing of it is built or run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::confined::objects;
use super::go::{Family, GO_VARIABLE, cache_directory};

/// Pinned as the programs are.
const OPERATOR: Family = Family {
    name: "prometheus-operator",
    module: "github.com/prometheus-operator/prometheus-operator",
    linker_flags: "",
    programs: &[],
};
/// In the module.
const FOLDER: &str = "example/prometheus-operator-crd";
const FILES: [&str; 2] =
    ["monitoring.coreos.com_podmonitors.yaml", "monitoring.coreos.com_prometheusrules.yaml"];

/// The CustomResourceDefinitions PodMonitor and PrometheusRule.
///
/// # Errors
/// No cache directory, no Go command, or the module can't be had.
pub fn operator_kinds() -> Result<Vec<Value>> {
    let directory = cache_directory()?.join(format!("operator-kinds/{}", OPERATOR.version()?));
    FILES.into_iter().map(|file| definition(&directory, file)).collect()
}

/// From the cache, else from the module.
fn definition(directory: &Path, file: &str) -> Result<Value> {
    let kept = directory.join(file);
    if !kept.is_file() {
        let from = module()?.join(FOLDER).join(file);
        let text = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        // Others may read it as soon as it has its name.
        let partial = directory.join(format!("{file}.{}", std::process::id()));
        fs::write(&partial, text).with_context(|| format!("writing {}", partial.display()))?;
        fs::rename(&partial, &kept)
            .with_context(|| format!("moving {} in place", partial.display()))?;
    }
    let text = fs::read_to_string(&kept).with_context(|| format!("reading {}", kept.display()))?;
    let found = objects(&text)?.into_iter().find(|object| !object.is_null());
    found.with_context(|| format!("{} holds no object: remove it", kept.display()))
}

/// Where Go has unpacked the module, checked against go.sum.
fn module() -> Result<PathBuf> {
    go(&["mod", "download", OPERATOR.module])?;
    Ok(PathBuf::from(go(&["list", "-m", "-f", "{{.Dir}}", OPERATOR.module])?.trim()))
}

fn go(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(std::env::var_os(GO_VARIABLE).unwrap_or_else(|| "go".into()));
    command.args(arguments).current_dir(OPERATOR.source()).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("running {command:?}"));
    let output = output.context("without Go run `cargo xtask setup`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}; without the module check GOPROXY:\n{said}");
    String::from_utf8(output.stdout).context("go prints something else than text")
}
