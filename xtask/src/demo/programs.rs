//! The programs that the demo and the lab run, built with cargo's own progress to be seen.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::setup::{self, Purpose};
use crate::workspace;

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The agent, with the kernel object inside; `None` for a network without agents.
    pub agent: Option<PathBuf>,
    /// The helper process inside the lab's hosts.
    pub peer: PathBuf,
}

/// Programs that are there already.
#[derive(clap::Args)]
pub(crate) struct ProgramArgs {
    /// Use this lb-agent instead of building one
    #[arg(long, value_name = "FILE", env = "LB_AGENT_BIN", hide = true)]
    agent: Option<PathBuf>,
    /// Use this lab-peer instead of building one
    #[arg(long, value_name = "FILE", env = "LB_LAB_PEER", hide = true)]
    peer: Option<PathBuf>,
}

impl ProgramArgs {
    /// These, if both are named; else sets the machine up and builds both.
    pub fn find_or_build(&self) -> Result<Programs> {
        match (&self.agent, &self.peer) {
            (agent @ Some(_), Some(peer)) => {
                Ok(Programs { agent: agent.clone(), peer: peer.clone() })
            }
            (_, _) => {
                setup::ensure(Purpose::Demo)?;
                Programs::build(true)
            }
        }
    }
}

impl Programs {
    /// Builds what is needed.
    pub fn build(with_agent: bool) -> Result<Self> {
        let packages: &[&str] = if with_agent { &["lb-agent", "lb-lab"] } else { &["lb-lab"] };
        eprintln!("building {}", packages.join(" and "));
        let output = workspace::cargo()
            .args(["build", "--bins", "--message-format", "json-render-diagnostics"])
            .args(packages.iter().flat_map(|package| ["--package", package]))
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("run cargo")?;
        let names = packages.join(" and ");
        ensure!(output.status.success(), "cargo could not build {names} (see above)");
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
        let agent = with_agent.then(|| find("lb-agent")).transpose()?;
        Ok(Self { agent, peer: find("lab-peer")? })
    }
    /// The options `--agent` and `--peer` that name these programs to the same command under sudo.
    pub fn options(&self) -> Vec<OsString> {
        let agent = self.agent.iter().flat_map(|path| ["--agent".into(), path.into()]);
        agent.chain(["--peer".into(), self.peer.clone().into()]).collect()
    }
}
