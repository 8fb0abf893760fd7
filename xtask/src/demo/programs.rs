//! The programs that the demo and the lab run, built once.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The agent, with the kernel object inside.
    pub agent: PathBuf,
    /// The helper process inside the lab's hosts.
    pub peer: PathBuf,
}

impl Programs {
    /// Builds both; cargo's own progress is shown.
    pub fn build() -> Result<Self> {
        eprintln!("building lb-agent and lab-peer");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let output = Command::new(cargo)
            .current_dir(workspace::root())
            .args(["build", "--package", "lb-agent", "--package", "lb-lab", "--bins"])
            .args(["--message-format", "json-render-diagnostics"])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("run cargo")?;
        ensure!(output.status.success(), "cargo could not build lb-agent and lab-peer (see above)");
        let text = String::from_utf8_lossy(&output.stdout);
        let built: Vec<PathBuf> = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
            .collect();
        let find = |name: &str| {
            let found = built.iter().find(|path| path.file_name().is_some_and(|n| n == name));
            found.cloned().with_context(|| format!("cargo did not say where it put {name}"))
        };
        Ok(Self { agent: find("lb-agent")?, peer: find("lab-peer")? })
    }
}
