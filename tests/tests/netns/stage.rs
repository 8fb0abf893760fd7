//! A network with servers in all pods and an agent on every node, all following one directory.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lb_lab::topology::Role;
use lb_lab::{
    Agent, AgentOptions, Answer, Dual, EXTERNAL_IP, Failure, Family, LOAD_BALANCER, Lab, METRICS,
    Options, Outcome, Request, Transport, Xdp, agent_binary,
};
use serde_json::Value;

use crate::manifest::{POD_PORT, PORT, Service};

/// Longest wait for something that takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A network, its servers and its agents.
pub struct Stage {
    // Before the lab, so that agents end first.
    agents: BTreeMap<String, Agent>,
    agent_options: AgentOptions,
    lab: Lab,
}

/// How pods that ask for a Service are served (`--pod-path`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pods {
    /// By the hooks of their sockets.
    BySocket,
    /// By the programs on their devices, as if their sockets couldn't be seen.
    ByPacket,
}

impl Pods {
    /// Tells an agent.
    pub fn tell(self, agent: &mut AgentOptions) {
        let path = match self {
            Self::BySocket => "socket",
            Self::ByPacket => "packet",
        };
        agent.arguments.extend(["--pod-path", path].map(str::to_owned));
    }

    /// Whether what `from` asks for is translated in its packets, and not in its sockets.
    pub fn asks_by_packet(self, from: &str) -> bool {
        self == Self::ByPacket && from.starts_with("pod-")
    }
}

/// Each of these tests twice, for either way to serve pods: what is promised is promised on both.
macro_rules! for_both {
    ($($test:ident),+ $(,)?) => {
        mod pods_by_socket {
            $(#[test] fn $test() { super::$test(crate::stage::Pods::BySocket); })+
        }
        mod pods_by_packet {
            $(#[test] fn $test() { super::$test(crate::stage::Pods::ByPacket); })+
        }
    };
}
pub(crate) use for_both;

/// A way into the cluster from outside.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// As a person calls it.
    pub name: &'static str,
    /// The node that packets arrive at.
    pub node: &'static str,
    /// Where to.
    pub to: Dual,
    /// Port.
    pub port: u16,
}

impl Stage {
    /// Two nodes with agents (tc alone) and these Services.
    pub fn up(options: &Options, services: &[Service]) -> Self {
        Self::with(options, services, |_| {})
    }

    /// As [`Stage::up`], with pods that are served so.
    pub fn serving(pods: Pods, options: &Options, services: &[Service]) -> Self {
        Self::with(options, services, |agent| pods.tell(agent))
    }

    /// As [`Stage::up`], with all that endpoints see masqueraded: pods are served by packet.
    pub fn masquerading(options: &Options, services: &[Service]) -> Self {
        Self::with(options, services, |agent| {
            Pods::ByPacket.tell(agent);
            agent.arguments.push("--masquerade-all".to_owned());
        })
    }

    /// As [`Stage::up`], with other agent options.
    pub fn with(
        options: &Options,
        services: &[Service],
        adjust: impl FnOnce(&mut AgentOptions),
    ) -> Self {
        let lab = Lab::up(options).unwrap();
        let any: IpAddr = Ipv6Addr::UNSPECIFIED.into();
        for host in &lab.topology().hosts {
            if matches!(host.role, Role::Pod { .. }) {
                for transport in Transport::BOTH {
                    lab.peer(&host.name).unwrap().serve(transport, any, POD_PORT).unwrap();
                }
            }
        }
        let manifests = lab.directory().join("manifests");
        fs::create_dir_all(&manifests).unwrap();
        let mut agent_options = AgentOptions {
            xdp: Xdp::Off,
            patience: Duration::from_secs(60),
            ..AgentOptions::manifests(agent_binary().unwrap(), manifests)
        };
        // Tables of a size that a test needs are made faster.
        let sizes = ["--max-flows", "16384", "--max-slots", "262144"];
        agent_options.arguments.extend(sizes.map(str::to_owned));
        adjust(&mut agent_options);
        let mut stage = Self { agents: BTreeMap::new(), agent_options, lab };
        stage.write_services(services);
        for node in stage.nodes() {
            stage.spawn_agent(&node);
        }
        for node in stage.nodes() {
            stage.wait_ready(&node);
        }
        stage
    }

    /// The network.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.lab.topology().nodes().map(|(node, _)| node.name.clone()).collect()
    }

    /// Address of a host.
    pub fn address(&self, host: &str, family: Family) -> IpAddr {
        self.lab.host(host).unwrap().address.of(family)
    }

    /// Every way from the client to `service`, with the node that the network routes it to.
    pub fn entries(&self, service: &Service) -> Vec<Entry> {
        let node_port = service.node_port_number();
        let node = |name: &str| self.lab.host(name).unwrap().address;
        vec![
            Entry { name: "NodePort", node: "node-a", to: node("node-a"), port: node_port },
            Entry { name: "NodePort", node: "node-b", to: node("node-b"), port: node_port },
            Entry { name: "LoadBalancer", node: "node-a", to: LOAD_BALANCER, port: PORT },
            Entry { name: "external IP", node: "node-b", to: EXTERNAL_IP, port: PORT },
            Entry { name: "ClusterIP", node: "node-a", to: service.cluster_ip(), port: PORT },
        ]
    }

    /// One request.
    pub fn ask(&self, from: &str, request: &Request) -> Outcome {
        self.lab.peer(from).unwrap().ask(request).unwrap()
    }

    /// One request that must be answered.
    pub fn answer(&self, from: &str, request: &Request) -> Answer {
        let answer = self.ask(from, request).unwrap_or_else(|failure| {
            panic!("{from} → {} {}: {failure}\n{}", request.transport, request.to, self.report())
        });
        assert!(answer.intact, "{from} → {}: damaged", request.to);
        answer
    }

    /// Each of the requests is answered.
    pub fn all_answered(&self, from: &str, requests: &Request) {
        let outcomes = self.lab().peer(from).unwrap().request(requests).unwrap();
        let lost: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(lost.is_empty(), "{requests:?}: {} lost, {:?}", lost.len(), lost[0]);
    }

    /// One request that must fail.
    pub fn failure(&self, from: &str, request: &Request) -> Failure {
        match self.ask(from, request) {
            Ok(answer) => panic!("{from} → {}: answered by {}", request.to, answer.server),
            Err(failure) => failure,
        }
    }

    /// Replaces the Services and waits until every agent has written them.
    pub fn publish(&self, services: &[Service]) {
        let nodes = self.nodes();
        let before: Vec<_> = nodes.iter().map(|node| self.writes(node)).collect();
        self.write_services(services);
        for (node, before) in nodes.iter().zip(before) {
            eventually(&format!("{node} writes what changed"), || self.writes(node) > before);
        }
    }

    /// Replaces the Services and waits for nobody.
    pub fn write_services(&self, services: &[Service]) {
        self.write("services.yaml", &self.documents(services));
    }

    /// Writes a manifest file in one step.
    pub fn write(&self, file: &str, text: &str) {
        // Beside the directory rather than in it: the agents follow the directory.
        let draft = self.lab.directory().join(format!("{file}.new"));
        fs::write(&draft, text).unwrap();
        fs::rename(&draft, self.manifests().join(file)).unwrap();
    }

    /// The directory that agents follow.
    pub fn manifests(&self) -> PathBuf {
        self.agent_options.manifests.clone().unwrap()
    }

    fn documents(&self, services: &[Service]) -> String {
        let documents = services.iter().flat_map(|service| service.documents(self.lab.topology()));
        documents.map(|document| format!("---\n{document}\n")).collect()
    }

    fn writes(&self, node: &str) -> u64 {
        self.metric(node, "lb_agent_programming_duration_seconds_count") as u64
    }

    /// The value of a metric line of a node's agent; 0 if it isn't there.
    pub fn metric(&self, node: &str, line: &str) -> f64 {
        let page = self.lab.peer(node).unwrap().get(METRICS, "/metrics").unwrap();
        page.body
            .lines()
            .find_map(|text| text.strip_prefix(line)?.trim().parse().ok())
            .unwrap_or_default()
    }

    /// The whole log of a node's agent.
    pub fn log(&self, node: &str) -> String {
        let log = self.lab.directory().join(format!("logs/lb-agent-{node}.log"));
        fs::read_to_string(log).unwrap_or_default()
    }

    /// What `lb-agent <arguments>` prints on a node.
    pub fn agent_says(&self, node: &str, arguments: &[&str]) -> String {
        let mut command = self.lab.command(node, &self.agent_options.binary).unwrap();
        command.args(arguments).arg("--bpffs").arg(self.lab.bpffs(node));
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "lb-agent {arguments:?} on {node}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What comes of `lb-agent <arguments>` on a node, whatever it is.
    pub fn agent_output(&self, node: &str, arguments: &[&str]) -> Output {
        self.agent_command(node, arguments).output().unwrap()
    }

    /// `lb-agent <arguments>` on a node, to be started.
    pub fn agent_command(&self, node: &str, arguments: &[&str]) -> Command {
        let mut command = self.lab.command(node, &self.agent_options.binary).unwrap();
        command.args(arguments).env("LB_BPFFS", self.lab.bpffs(node));
        command
    }

    /// The flows that a node's tables hold.
    pub fn flows(&self, node: &str) -> Vec<Value> {
        serde_json::from_str(&self.agent_says(node, &["flows", "-o", "json"])).unwrap()
    }

    /// Kills a node's agent as a crash would (SIGKILL).
    pub fn kill_agent(&mut self, node: &str) {
        drop(self.agents.remove(node));
    }

    /// Ends a node's agent as an update does (SIGTERM).
    pub fn stop_agent(&mut self, node: &str) {
        let status = self.agents.remove(node).unwrap().stop().unwrap();
        assert!(status.success(), "{status}\n{}", self.log(node));
    }

    /// Gives an argument that agents already have another value, for those that start from now on.
    pub fn set_argument(&mut self, flag: &str, value: &str) {
        let arguments = &mut self.agent_options.arguments;
        let at = arguments.iter().position(|argument| argument == flag).unwrap();
        value.clone_into(&mut arguments[at + 1]);
    }

    /// Starts a node's agent and waits until it is ready.
    pub fn start_agent(&mut self, node: &str) {
        self.spawn_agent(node);
        self.wait_ready(node);
    }

    fn spawn_agent(&mut self, node: &str) {
        let agent = Agent::spawn(&self.lab, node, &self.agent_options).unwrap();
        self.agents.insert(node.to_owned(), agent);
    }

    fn wait_ready(&mut self, node: &str) {
        let agent = self.agents.get_mut(node).unwrap();
        agent.wait_ready(&self.lab, self.agent_options.patience).unwrap();
    }

    /// Runs a command inside a host; its standard output. It must succeed.
    pub fn run(&self, host: &str, command: &[&str]) -> String {
        let output = self.lab.exec(host, command).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{host}: {command:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What a person would look at first after a failure.
    fn report(&self) -> String {
        let mut text = String::new();
        for (node, agent) in &self.agents {
            let drops = self.lab.peer(node).and_then(|peer| peer.get(METRICS, "/metrics"));
            let drops = drops.map(|page| page.body).unwrap_or_default();
            let drops = drops.lines().filter(|line| line.starts_with("lb_agent_drops_total"));
            let drops: Vec<_> = drops.filter(|line| !line.ends_with(" 0")).collect();
            text.push_str(&format!("{node}: {drops:?}\n{}\n", agent.log_tail()));
        }
        text
    }
}

/// Waits until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Both families with both transports.
pub fn each() -> impl Iterator<Item = (Family, Transport)> {
    Family::BOTH.into_iter().flat_map(|family| Transport::BOTH.map(|transport| (family, transport)))
}
