//! The demo's network with everything that runs on it: servers in the pods and on the site, one
//! agent per node, and a copy of the example manifests that the agents follow.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use lb_lab::{Agent, AgentOptions, Lab, Options, Transport, Xdp, topology::Role};
use nix::sys::signal::{SigSet, Signal};

use super::programs::Programs;
use crate::workspace;

/// Where pods serve.
pub(crate) const POD_PORT: u16 = 8080;
/// Where the site serves.
pub(crate) const SITE_PORT: u16 = 80;

/// The network and what runs on it.
pub(crate) struct Stage {
    // Before the lab, so that agents end first. Locked because a step restarts one.
    agents: Mutex<Vec<Agent>>,
    manifests: PathBuf,
    agent: Option<PathBuf>,
    lab: Lab,
}

impl Stage {
    /// Makes the network, starts servers, copies the manifests. No agents yet.
    pub fn up(id: Option<&str>, options: &Options, programs: &Programs) -> Result<Self> {
        lb_lab::use_peer_binary(&programs.peer);
        let lab = Lab::up_as(id, options)?;
        let any: IpAddr = Ipv6Addr::UNSPECIFIED.into();
        for host in &lab.topology().hosts {
            let port = match host.role {
                Role::Pod { .. } => POD_PORT,
                Role::Site => SITE_PORT,
                Role::Fabric | Role::Node { .. } | Role::Client | Role::Edge => continue,
            };
            for transport in Transport::BOTH {
                lab.peer(&host.name)?.serve(transport, any, port)?;
            }
        }
        let manifests = lab.directory().join("manifests");
        copy_examples(&workspace::root().join("deploy/examples"), &manifests)?;
        Ok(Self { agents: Mutex::default(), manifests, agent: programs.agent.clone(), lab })
    }

    /// Starts an agent on every node and waits until all are ready.
    pub fn start_agents(&self) -> Result<()> {
        let options = self.agent_options()?;
        let mut agents = self.agents();
        for (node, _) in self.lab.topology().nodes() {
            agents.push(Agent::spawn(&self.lab, &node.name, &options)?);
        }
        agents.iter_mut().try_for_each(|agent| agent.wait_ready(&self.lab, options.patience))
    }

    /// Ends the agent of `node` as an update does (SIGTERM) and starts another.
    pub fn restart_agent(&self, node: &str) -> Result<()> {
        let mut agents = self.agents();
        let index = agents.iter().position(|agent| agent.node() == node);
        let old = agents.remove(index.with_context(|| format!("no agent runs on {node}"))?);
        old.stop()?;
        agents.push(Agent::start(&self.lab, node, &self.agent_options()?)?);
        Ok(())
    }

    fn agent_options(&self) -> Result<AgentOptions> {
        // On veth, where XDP needs the peers prepared, `auto` chooses tc.
        Ok(AgentOptions {
            xdp: Xdp::Auto,
            ..AgentOptions::manifests(self.agent()?, &self.manifests)
        })
    }

    fn agent(&self) -> Result<&Path> {
        self.agent.as_deref().context("this network was made without an agent (--agents)")
    }

    fn agents(&self) -> MutexGuard<'_, Vec<Agent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The network.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// `lb-agent` with `arguments` on `node`, to be run.
    pub fn agent_command(&self, node: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = self.lab.command(node, self.agent()?)?;
        command.args(arguments).arg("--bpffs").arg(self.lab.bpffs(node));
        Ok(command)
    }

    /// Runs `lb-agent` with `arguments` on `node`; its standard output.
    pub fn agent_says(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.agent_command(node, arguments)?;
        let output = command.output().with_context(|| format!("run lb-agent on {node}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lb-agent {} on {node}: {errors}", arguments.join(" "));
        String::from_utf8(output.stdout).context("lb-agent printed something that is no text")
    }

    /// Rewrites a manifest in one step, so that no agent reads half a file.
    pub fn edit(&self, file: &str, change: impl FnOnce(&str) -> String) -> Result<()> {
        let path = self.manifests.join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        // Beside the directory rather than in it: the agents follow the directory.
        let draft = self.lab.directory().join(format!("{file}.new"));
        fs::write(&draft, change(&text))
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Name of each agent's node and the last lines of its log.
    pub fn agent_logs(&self) -> Vec<(PathBuf, String)> {
        let agents = self.agents();
        agents.iter().map(|agent| (agent.log().to_owned(), agent.log_tail())).collect()
    }

    /// Removes the network.
    pub fn down(self) -> Result<()> {
        self.agents().clear();
        self.lab.down()
    }

    /// Leaves everything running; commands to look around, each with what it shows.
    pub fn keep(self) -> Result<Vec<(&'static str, String)>> {
        let hints = self.hints();
        for agent in self.agents().drain(..) {
            agent.detach();
        }
        self.lab.keep()?;
        Ok(hints)
    }

    fn hints(&self) -> Vec<(&'static str, String)> {
        let id = self.lab.id();
        let exec = |rest: &str| format!("cargo xtask lab exec --id {id} {rest}");
        let mut hints = vec![
            ("a shell on a node", exec("node-a bash")),
            ("from pod to pod", exec("pod-a1 curl -s http://10.244.2.11:8080/")),
        ];
        let logs = self.agent_logs().into_iter().map(|(log, _)| log.display().to_string());
        let logs = logs.collect::<Vec<_>>().join(" ");
        if let (Some(agent), false) = (&self.agent, logs.is_empty()) {
            let (agent, pins) = (agent.display(), self.lab.bpffs("node-a"));
            let show = |command: &str| {
                exec(&format!("node-a {agent} {command} --bpffs {}", pins.display()))
            };
            hints.extend([
                ("clusterip1 from a pod", exec("pod-a3 curl -s http://10.96.0.11/")),
                ("nodeport1 from outside", exec("client curl -s http://10.240.0.11:30080/")),
                ("Services in the kernel's tables", show("services")),
                ("flows that are translated", show("flows")),
                ("an agent's metrics", exec("node-a curl -s http://127.0.0.1:10249/metrics")),
                ("the agents' logs", format!("tail -f {logs}")),
                ("change a manifest: agents follow", format!("ls {}", self.manifests.display())),
            ]);
        }
        hints.push(("remove it", format!("cargo xtask lab down --id {id}")));
        hints
    }
}

fn copy_examples(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("read {}", from.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", from.display()))?.path();
        if let (true, Some(name)) =
            (path.extension().is_some_and(|e| e == "yaml"), path.file_name())
        {
            fs::copy(&path, to.join(name)).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Does not return after an interrupt: what fails while the network is removed is no finding.
pub(super) fn stay_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

/// Holds SIGINT and SIGTERM back until [`remove_on_interrupt`] waits for them.
pub(crate) fn block_interrupts() -> Result<SigSet> {
    let set: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    set.thread_block().context("block SIGINT and SIGTERM")?;
    Ok(set)
}

/// From now on SIGINT and SIGTERM remove the lab and end the program.
pub(crate) fn remove_on_interrupt(interrupts: SigSet, id: &str) {
    let id = id.to_owned();
    std::thread::spawn(move || {
        if let Ok(signal) = interrupts.wait() {
            INTERRUPTED.store(true, Ordering::Relaxed);
            eprintln!("\n{signal}: removing the network");
            if let Err(error) = Lab::clean(&id) {
                eprintln!("{error:#}");
            }
            // As a shell reports a program that a signal ended.
            std::process::exit(128 + signal as i32);
        }
    });
}
