//! Runs the agent under test on a lab's node: starts it, waits until it is ready, stops it.

use std::fmt;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Lab;
use crate::peer::protocol::Page;
use crate::topology::PodNetwork;

/// Where the agent's health server is asked, inside the node; it listens on every address.
pub const HEALTHZ: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
/// Where the agent's metrics server listens, inside the node.
pub const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// The agent's `--xdp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// tc does everything; right for veth.
    Off,
    /// The agent chooses.
    #[default]
    Auto,
    /// On the kernel's generic hook.
    Generic,
    /// In the driver.
    Native,
}

impl fmt::Display for Xdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Generic => "generic",
            Self::Native => "native",
        })
    }
}

/// How to run an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The `lb-agent` binary.
    pub binary: PathBuf,
    /// Directory of manifests that it follows; `None` if `arguments` name an API server.
    pub manifests: Option<PathBuf>,
    /// Where it attaches XDP.
    pub xdp: Xdp,
    /// Further arguments of `lb-agent run`.
    pub arguments: Vec<String>,
    /// Longest wait until it is ready.
    pub patience: Duration,
}

impl AgentOptions {
    /// An agent that follows a directory of manifests.
    pub fn manifests(binary: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            manifests: Some(directory.into()),
            xdp: Xdp::default(),
            arguments: Vec::new(),
            patience: Duration::from_secs(20),
        }
    }
}

/// A running agent. Dropping it kills it (SIGKILL, as a crash would).
pub struct Agent {
    node: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Agent {
    /// Starts an agent on `node` and waits until it is ready.
    pub fn start(lab: &Lab, node: &str, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::spawn(lab, node, options)?;
        agent.wait_ready(lab, options.patience)?;
        Ok(agent)
    }

    /// Starts an agent on `node` without waiting for it.
    pub fn spawn(lab: &Lab, node: &str, options: &AgentOptions) -> Result<Self> {
        let logs = lab.directory().join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
        let log = logs.join(format!("lb-agent-{node}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let mut command = lab.daemon(node, &options.binary)?;
        // Where packets from outside and from endpoints on other nodes come in.
        let devices = match lab.topology().options.pod_network {
            PodNetwork::Routed => "eth0",
            PodNetwork::Vxlan => "eth0,vxlan0",
            PodNetwork::Tunnel => "eth0,tun0",
        };
        command.args(["run", "--hostname-override", node, "--devices", devices]);
        command.arg("--cgroup-root").arg(lab.cgroup(node)?);
        command.arg("--bpffs").arg(lab.bpffs(node));
        command.arg("--netns-dirs").arg(lab.pod_namespaces(node)?);
        command.args(["--xdp", &options.xdp.to_string()]);
        command.args(["--metrics-bind-address", &METRICS.to_string()]);
        if let Some(manifests) = &options.manifests {
            command.arg("--manifests").arg(manifests);
        }
        command.args(&options.arguments).stdin(Stdio::null());
        command.stdout(file.try_clone()?).stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("start {} on {node}", options.binary.display()))?;
        Ok(Self { node: node.to_owned(), child: Some(child), log })
    }

    /// Waits until `/healthz` answers 200.
    pub fn wait_ready(&mut self, lab: &Lab, patience: Duration) -> Result<()> {
        let peer = lab.peer(&self.node)?;
        let deadline = Instant::now() + patience;
        let mut last = String::new();
        while Instant::now() < deadline {
            let exited = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = exited {
                bail!("lb-agent on {} ended ({status}):\n{}", self.node, self.log_tail());
            }
            match peer.get(HEALTHZ, "/healthz") {
                Ok(Page { status: 200, .. }) => return Ok(()),
                Ok(page) => last = format!("status {}: {}", page.status, page.body),
                Err(error) => last = format!("{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "lb-agent on {} is not ready after {patience:?} ({last}):\n{}",
            self.node,
            self.log_tail()
        )
    }

    /// Name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its log file (standard output and error).
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }

    /// Asks it to end (SIGTERM) and waits; it is killed after ten seconds.
    pub fn stop(mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the agent has no process")?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        kill(pid, Signal::SIGTERM).with_context(|| format!("SIGTERM to lb-agent, pid {pid}"))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child = Some(child);
        bail!("lb-agent on {} ignores SIGTERM:\n{}", self.node, self.log_tail())
    }

    /// Waits until it ends by itself.
    pub fn wait_end(mut self, patience: Duration) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the agent has no process")?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("lb-agent on {} still runs after {patience:?}:\n{}", self.node, self.log_tail())
    }

    /// Leaves it running in a lab that is kept.
    pub fn detach(mut self) {
        self.child = None;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already, which is as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
