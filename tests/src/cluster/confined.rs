//! Runs the agent with exactly the capabilities that `deploy/install.yaml` asks for, so that one
//! that is missing there fails the tests, and one that is not needed can be tried without.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use lb_lab::run_with_input;
use serde::Deserialize as _;
use serde_json::Value;

/// What the cluster would run.
pub const INSTALL: &str = include_str!("../../../deploy/install.yaml");

/// Writes a program into `directory` that runs `agent` with those capabilities only; its path.
///
/// # Errors
/// The manifest lists none, or the file can't be written.
pub fn confined(agent: &Path, directory: &Path) -> Result<PathBuf> {
    let set = daemon_set(INSTALL)?;
    confined_as(&set["spec"]["template"]["spec"]["containers"][0], agent, directory)
}

/// The same with the capabilities of any container.
///
/// # Errors
/// As those of [`confined`].
pub fn confined_as(container: &Value, agent: &Path, directory: &Path) -> Result<PathBuf> {
    let name = container["name"].as_str().context("a container without a name")?;
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-all{} --inh-caps=-all {} \"$@\"\n",
        capabilities(container)?.iter().map(|name| format!(",+{name}")).collect::<String>(),
        agent.display()
    );
    let path = directory.join(format!("{name}-confined"));
    // By a process of its own: what another thread starts meanwhile would inherit the open file, and no
    // program runs that somebody may write to (ETXTBSY).
    let mut install = Command::new("install");
    run_with_input(install.args(["-m", "755", "/dev/stdin"]).arg(&path), &script)?;
    Ok(path)
}

/// The objects of a file of manifests.
///
/// # Errors
/// The file is no YAML.
pub fn objects(manifests: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(manifests);
    let objects = documents.map(|document| Value::deserialize(document).context("reading YAML"));
    objects.collect()
}

/// The agents' DaemonSet among manifests.
///
/// # Errors
/// There is none.
pub fn daemon_set(manifests: &str) -> Result<Value> {
    let is_it =
        |object: &Value| object["kind"] == "DaemonSet" && object["metadata"]["name"] == "lb-agent";
    objects(manifests)?.into_iter().find(is_it).context("no DaemonSet lb-agent among the manifests")
}

/// The capabilities by the names that setpriv knows, such as `net_admin`.
fn capabilities(container: &Value) -> Result<Vec<String>> {
    let added = &container["securityContext"]["capabilities"]["add"];
    let names = added.as_array().with_context(|| format!("nothing is added: {container}"))?;
    Ok(names.iter().filter_map(|name| Some(name.as_str()?.to_lowercase())).collect())
}
