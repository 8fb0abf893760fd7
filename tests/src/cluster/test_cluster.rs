//! A lab of two nodes with a control plane and an agent on each node: what the tests act upon.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lb_lab::{Agent, AgentOptions, Family, Lab, Options, Transport, Xdp};
use serde_json::Value;

use super::api::{ApiClient, Persist};
use super::confined::{self, confined};
use super::control_plane::{ControlPlane, HOST};
use super::credentials::{Identity, PORT};
use super::namespace::TestNamespace;
use super::objects;
use super::reach::{Expect, Target, reach};

/// The nodes' names, in order.
pub const NODES: [&str; 2] = ["node-a", "node-b"];
/// Everybody who sends requests: a pod, the nodes themselves, and the client outside. The pod
/// serves nothing in most tests, so that no request meets itself.
pub const INSIDE: [&str; 3] = ["pod-b2", "node-a", "node-b"];
/// The client outside.
pub const OUTSIDE: &str = "client";
/// Where every pod serves, TCP and UDP.
pub const WEB: u16 = 8080;
/// Where every pod serves too, for ports that change.
pub const OTHER: u16 = 9090;
/// Where the site on the Internet serves.
const SITE_PORT: u16 = 80;

/// How long an agent may take until it is ready.
const AGENT_START: Duration = Duration::from_secs(30);

/// The whole: lab, control plane, agents.
pub struct TestCluster {
    agents: BTreeMap<&'static str, Agent>,
    /// The control plane, for tests that break it.
    pub control_plane: ControlPlane,
    /// Some test has asked for agents, and they could be started.
    agents_wanted: bool,
    /// Why agents can't be started: the other tests need not wait for the same failure.
    no_agents: Option<String>,
    lab: Arc<Lab>,
}

impl TestCluster {
    /// Sets up lab and control plane: ready when this returns. Agents are started by the first
    /// test that needs them.
    ///
    /// # Errors
    /// A part can't be made; the error says which.
    pub fn start() -> Result<Self> {
        let lab = Arc::new(Lab::up(&Options::default())?);
        serve(&lab)?;
        let control_plane = ControlPlane::start(&lab).context("starting the control plane")?;
        add_nodes(control_plane.api(), &lab)?;
        install(control_plane.api())?;
        Ok(Self {
            agents: BTreeMap::new(),
            control_plane,
            agents_wanted: false,
            no_agents: None,
            lab,
        })
    }

    /// Starts the agents, once.
    ///
    /// # Errors
    /// One does not become ready; said at once when it is asked for again.
    pub fn ensure_agents(&mut self) -> Result<()> {
        if let Some(reason) = &self.no_agents {
            bail!("no agents to test with, as before: {reason}");
        }
        for node in NODES {
            if !self.agents.contains_key(node)
                && let Err(error) = self.start_agent(node)
            {
                self.no_agents = Some(format!("{error:#}"));
                return Err(error);
            }
        }
        self.agents_wanted = true;
        Ok(())
    }

    /// The network.
    #[must_use]
    pub fn lab(&self) -> &Arc<Lab> {
        &self.lab
    }

    /// The API server's client with every right.
    #[must_use]
    pub fn api(&self) -> &ApiClient {
        self.control_plane.api()
    }

    /// The agent on `node`.
    ///
    /// # Errors
    /// None runs there.
    pub fn agent(&self, node: &str) -> Result<&Agent> {
        self.agents.get(node).with_context(|| format!("no agent runs on {node}"))
    }

    /// All that the agents on `node` have logged so far, earlier ones included.
    ///
    /// # Errors
    /// No agent runs there, or the log can't be read.
    pub fn agent_log(&self, node: &str) -> Result<String> {
        let path = self.agent(node)?.log();
        fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    }

    /// What the maps on `node` hold, as `lb-agent services -o json` prints it.
    ///
    /// # Errors
    /// The command fails or prints no JSON.
    pub fn services_in_maps(&self, node: &str) -> Result<Value> {
        let mut command = self.lab.command(node, lb_lab::agent_binary()?)?;
        command.arg("services").arg("--bpffs").arg(self.lab.bpffs(node)).args(["-o", "json"]);
        let output = command.output().context("starting lb-agent services")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lb-agent services on {node}: {complaint}");
        serde_json::from_slice(&output.stdout).context("what lb-agent services printed")
    }

    /// How the agents are started: with the rights of `deploy/`, at the API server and in the kernel.
    fn options(&self) -> Result<AgentOptions> {
        let kubeconfig = self.control_plane.kubeconfig(Identity::Agent);
        Ok(AgentOptions {
            binary: confined(&lb_lab::agent_binary()?, self.lab.directory())?,
            manifests: None,
            xdp: Xdp::Off,
            arguments: vec!["--kubeconfig".into(), kubeconfig.display().to_string()],
            patience: AGENT_START,
        })
    }

    /// Starts an agent on `node` and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready; the error carries its log.
    pub fn start_agent(&mut self, node: &'static str) -> Result<()> {
        let agent = Agent::start(&self.lab, node, &self.options()?)?;
        self.agents.insert(node, agent);
        Ok(())
    }

    /// Starts an agent on `node` without waiting: it may have nobody to talk to yet.
    ///
    /// # Errors
    /// The program can't be started.
    pub fn spawn_agent(&mut self, node: &'static str) -> Result<()> {
        let agent = Agent::spawn(&self.lab, node, &self.options()?)?;
        self.agents.insert(node, agent);
        Ok(())
    }

    /// Waits until the agent on `node` is ready.
    ///
    /// # Errors
    /// It ended, or does not become ready; the error carries its log.
    pub fn wait_for_agent(&mut self, node: &str) -> Result<()> {
        let agent = self.agents.get_mut(node).with_context(|| format!("no agent on {node}"))?;
        agent.wait_ready(&self.lab, AGENT_START)
    }

    /// Ends the agent on `node` as a crash would (SIGKILL).
    pub fn kill_agent(&mut self, node: &str) {
        self.agents.remove(node);
    }

    /// Asks the agent on `node` to end (SIGTERM) and expects success.
    ///
    /// # Errors
    /// It does not end, or not with success.
    pub fn stop_agent(&mut self, node: &str) -> Result<()> {
        let agent = self.agents.remove(node).with_context(|| format!("no agent on {node}"))?;
        let log = agent.log().to_owned();
        let status = agent.stop()?;
        ensure!(status.success(), "lb-agent on {node} ended with {status}: {}", log.display());
        Ok(())
    }

    /// Cuts `node` off from the API server: its packets are dropped without a word, connections
    /// that exist hang.
    ///
    /// # Errors
    /// nftables refuses.
    pub fn cut(&self, node: &str) -> Result<()> {
        let [v4, v6] = self.lab.host(node)?.address.both();
        let table = cut_table(node);
        self.lab.nft(
            HOST,
            &format!(
                "table inet {table} {{
                    chain input {{
                        type filter hook input priority 0; policy accept;
                        ip saddr {v4} tcp dport {PORT} drop
                        ip6 saddr {v6} tcp dport {PORT} drop
                    }}
                    chain output {{
                        type filter hook output priority 0; policy accept;
                        ip daddr {v4} tcp sport {PORT} drop
                        ip6 daddr {v6} tcp sport {PORT} drop
                    }}
                }}"
            ),
        )
    }

    /// Ends [`Self::cut`]; nothing to do if there was none.
    ///
    /// # Errors
    /// nftables refuses.
    pub fn mend(&self, node: &str) -> Result<()> {
        // Declared first, as deleting a table that does not exist is an error.
        let table = cut_table(node);
        self.lab.nft(HOST, &format!("table inet {table} {{}}\ndelete table inet {table}"))
    }

    /// A namespace of the API server for one test; its objects go with it.
    ///
    /// # Errors
    /// The API server's refusal.
    pub fn namespace(&self, name: &str) -> Result<TestNamespace> {
        TestNamespace::create(self.api().clone(), Arc::clone(&self.lab), name)
    }

    /// Requests from `client` to `target` until `expect` holds.
    ///
    /// # Errors
    /// It does not; the error says who answered instead.
    pub fn reach(&self, client: &str, target: Target, expect: Expect<'_>) -> Result<()> {
        reach(&self.lab, client, target, expect)
    }

    /// The address of `host` in `family`.
    ///
    /// # Errors
    /// The lab has no such host.
    pub fn address(&self, host: &str, family: Family) -> Result<IpAddr> {
        Ok(self.lab.host(host)?.address.of(family))
    }

    /// What agents and control plane said last, for a failed test's report.
    #[must_use]
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for (node, agent) in &self.agents {
            words.push_str(&format!(
                "the last lines of lb-agent on {node}:\n{}\n",
                agent.log_tail()
            ));
        }
        words + &self.control_plane.last_words()
    }

    /// Starts, mends and makes ready again whatever a test left broken.
    ///
    /// # Errors
    /// Something can't be repaired.
    pub fn repair(&mut self) -> Result<()> {
        self.control_plane.repair()?;
        for node in NODES {
            self.mend(node)?;
            if !self.agents_wanted {
                continue;
            }
            if self.agents.contains_key(node) && self.wait_for_agent(node).is_ok() {
                continue;
            }
            self.kill_agent(node);
            self.start_agent(node)?;
        }
        Ok(())
    }

    /// Removes everything; the cluster is of no use afterwards.
    ///
    /// # Errors
    /// Something of the lab resists.
    pub fn remove(&mut self) -> Result<()> {
        self.agents.clear();
        self.control_plane.kill()?;
        Lab::clean(self.lab.id())
    }
}

/// The lab's nodes as their kubelets would register them.
///
/// # Errors
/// The API server's refusal.
pub fn add_nodes(api: &ApiClient, lab: &Lab) -> Result<()> {
    for (host, number) in lab.topology().nodes() {
        api.apply_object("", objects::node(host, number), Persist::Yes)?;
        api.patch_status("Node", "", &host.name, objects::node_status(host))?;
    }
    Ok(())
}

fn cut_table(node: &str) -> String {
    format!("lb-tests-cut-{node}")
}

/// Servers in every pod and on the site, of both transports and families.
fn serve(lab: &Lab) -> Result<()> {
    let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    for node in NODES {
        for pod in lab.topology().pods_of(node) {
            for transport in Transport::BOTH {
                for port in [WEB, OTHER] {
                    lab.peer(&pod.name)?.serve(transport, any, port)?;
                }
            }
        }
    }
    for transport in Transport::BOTH {
        lab.peer("site")?.serve(transport, any, SITE_PORT)?;
    }
    Ok(())
}

/// The manifests of `deploy/` that the agents' rights come from.
fn install(api: &ApiClient) -> Result<()> {
    for object in confined::objects(confined::INSTALL)? {
        if object["kind"] != "DaemonSet" {
            api.apply_object("kube-system", object, Persist::Yes)?;
        }
    }
    Ok(())
}
