//! A kind cluster in our Docker daemon: one control plane, two workers, IPv4 and IPv6.
//!
//! kind's own CNI comes only as an image, so Pods are joined by plain CNI plugins and routes
//! between the nodes, which is what it does too.

use super::Proxy;
use super::docker::{Docker, NAME};
use super::node_image;
use super::programs::Programs;
use crate::process;
use crate::progress::Step;
use crate::workspace;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The cluster that readers make.
const CONFIG: &str = include_str!("../../../deploy/kind.yaml");
/// Machines with cgroup v1 controllers are good enough for tests.
const KUBELET_CONFIG: &str = "\
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
failCgroupV1: false
";
const CREATE_LIMIT: Duration = Duration::from_secs(600);
/// What kind says, and then removes all nodes, when a machine is too busy to boot them in time.
const SLOW_BOOT: &str = "could not find a log line that matches";
/// The plugins' configuration on a node; CNI takes the first file of the folder.
const CNI_CONFIG: &str = "/etc/cni/net.d/10-lb.conflist";

/// deploy/kind.yaml, and what is different here.
fn config(proxy: Proxy) -> Result<String> {
    let mut config: Value =
        serde_yaml_ng::from_str(CONFIG).context("deploy/kind.yaml is no YAML")?;
    if proxy == Proxy::KubeProxy {
        config["networking"]["kubeProxyMode"] = json!("nftables");
    }
    // kind's own comes as an image, which there is no registry for: `join_pods` does the same.
    config["networking"]["disableDefaultCNI"] = json!(true);
    config["kubeadmConfigPatches"] = json!([KUBELET_CONFIG]);
    serde_yaml_ng::to_string(&config).context("write YAML")
}

/// A cluster that runs.
pub struct Cluster<'a> {
    docker: &'a Docker,
    programs: &'a Programs,
    folder: PathBuf,
}

impl<'a> Cluster<'a> {
    /// As deploy/kind.yaml has them.
    pub const WORKERS: u32 = 2;

    /// Creates the cluster; its logs and kubeconfig go to `folder`.
    ///
    /// # Errors
    /// When kind fails: its log is named.
    pub fn create(
        docker: &'a Docker,
        programs: &'a Programs,
        image: &str,
        proxy: Proxy,
        folder: &Path,
        step: &mut Step,
    ) -> Result<Self> {
        let cluster = Self { docker, programs, folder: folder.to_owned() };
        let config = folder.join("kind.yaml");
        fs::write(&config, self::config(proxy)?)
            .with_context(|| format!("write {}", config.display()))?;
        let log = folder.join("kind.log");
        let mut kind = docker.command(programs.path("kind")?);
        // The file names another one from here.
        kind.current_dir(workspace::root());
        kind.args(["create", "cluster", "--name", NAME, "--image", image, "--config"]);
        kind.arg(&config).arg("--kubeconfig").arg(cluster.kubeconfig());
        let mut ending = process::run_logged(&mut kind, &log, CREATE_LIMIT, step)?;
        if !ending.success() && fs::read_to_string(&log).is_ok_and(|log| log.contains(SLOW_BOOT)) {
            step.update("the nodes didn't boot in kind's 30 s: once more");
            ending = process::run_logged(&mut kind, &log, CREATE_LIMIT, step)?;
        }
        ensure!(ending.success(), "kind create cluster failed ({ending}): see {}", log.display());
        cluster.join_pods()?;
        cluster.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=120s"])?;
        // Some tests want three nodes for their Pods.
        let control_plane = format!("{NAME}-control-plane");
        let taint = "node-role.kubernetes.io/control-plane-";
        cluster.kubectl(&["taint", "node", &control_plane, taint])?;
        Ok(cluster)
    }

    /// The nodes' names.
    ///
    /// # Errors
    /// When the API server doesn't answer.
    pub fn node_names(&self) -> Result<Vec<String>> {
        Ok(self.nodes()?.into_iter().map(|node| node.metadata.name).collect())
    }

    /// The nodes' addresses of both families.
    ///
    /// # Errors
    /// When the API server doesn't answer.
    pub fn node_addresses(&self) -> Result<Vec<IpAddr>> {
        Ok(self.nodes()?.iter().flat_map(Node::addresses).collect())
    }

    /// The name of an image of Kubernetes' own tests, which every node has.
    ///
    /// # Errors
    /// When this release has none with that name.
    pub fn test_image(&self, name: &str) -> Result<String> {
        node_image::test_image(self.programs, name)
    }

    /// Standard output of Helm.
    ///
    /// # Errors
    /// Carries what it wrote to standard error.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command(&self.programs.path("helm")?).args(arguments))
    }

    /// Standard output of docker, which runs the nodes.
    ///
    /// # Errors
    /// Carries what it wrote to standard error.
    pub fn docker(&self, arguments: &[&str]) -> Result<String> {
        self.docker.call(arguments)
    }

    /// Gives an image of the Docker daemon to every node.
    ///
    /// # Errors
    /// When kind fails to.
    pub fn load_from_docker(&self, image: &str) -> Result<()> {
        let mut kind = self.docker.command(self.programs.path("kind")?);
        kind.args(["load", "docker-image", "--name", NAME, image]);
        process::output(&mut kind).map(drop)
    }

    /// Gives the images of an archive to every node.
    ///
    /// # Errors
    /// When kind fails to.
    pub fn load(&self, archive: &Path) -> Result<()> {
        let mut kind = self.docker.command(self.programs.path("kind")?);
        kind.args(["load", "image-archive", "--name", NAME]).arg(archive);
        process::output(&mut kind).map(drop)
    }

    /// The file that says how to reach the API server, from the daemon's network namespace.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// A program that reaches the API server, with KUBECONFIG set.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = self.docker.command(program);
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Standard output of kubectl.
    ///
    /// # Errors
    /// Carries what it wrote to standard error.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.command(&self.programs.path("kubectl")?).args(arguments))
    }

    /// Waits until the cluster's name servers are ready: they reach the API server by its Service.
    ///
    /// # Errors
    /// When they don't become ready: says what their Pods are doing.
    pub fn wait_for_dns(&self) -> Result<()> {
        let rollout = ["-n", "kube-system", "rollout", "status", "deployment/coredns"];
        self.kubectl(&[&rollout[..], &["--timeout=180s"]].concat()).map(drop).with_context(|| {
            let pods = self.kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"]);
            format!("CoreDNS did not become ready:\n{}", pods.unwrap_or_default())
        })
    }

    fn nodes(&self) -> Result<Vec<Node>> {
        let list: List = serde_json::from_str(&self.kubectl(&["get", "nodes", "-o", "json"])?)
            .context("kubectl get nodes prints something else")?;
        Ok(list.items)
    }

    /// Configures the CNI plugins of every node and the routes to the Pods of the others.
    ///
    /// # Errors
    /// Names the node where it failed.
    pub fn join_pods(&self) -> Result<()> {
        let nodes = self.nodes()?;
        for node in &nodes {
            let config = conflist(&node.spec.pod_cidrs).to_string();
            // Renamed, so that containerd never reads half of it.
            let script = format!("cat > {CNI_CONFIG}.new && mv {CNI_CONFIG}.new {CNI_CONFIG}");
            self.on_node(&node.metadata.name, &script, &config)?;
            let others = nodes.iter().filter(|other| other.metadata.name != node.metadata.name);
            let routes: Vec<_> = others.flat_map(Node::routes).collect();
            self.on_node(&node.metadata.name, &routes.join(" && "), "")?;
        }
        Ok(())
    }

    /// Runs a shell script on a node with `input` as its standard input.
    fn on_node(&self, node: &str, script: &str, input: &str) -> Result<()> {
        let mut docker = self.docker.command("docker");
        docker.args(["exec", "--interactive", node, "sh", "-c", script]);
        let mut child = docker.stdin(Stdio::piped()).spawn().context("run docker exec")?;
        let mut stdin = child.stdin.take().context("docker exec has no standard input")?;
        stdin.write_all(input.as_bytes()).with_context(|| format!("write to {node}"))?;
        drop(stdin);
        let status = child.wait().context("wait for docker exec")?;
        ensure!(status.success(), "{script:?} on {node} failed ({status})");
        Ok(())
    }
}

/// A veth and a host route per Pod, no masquerade: there is nothing outside to reach.
fn conflist(cidrs: &[String]) -> Value {
    let ranges: Vec<_> = cidrs.iter().map(|cidr| json!([{ "subnet": cidr }])).collect();
    let default = |cidr: &String| if cidr.contains(':') { "::/0" } else { "0.0.0.0/0" };
    let routes: Vec<_> = cidrs.iter().map(|cidr| json!({ "dst": default(cidr) })).collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "lb",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-ipam-state",
                    "ranges": ranges,
                    "routes": routes,
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// The part of a list of Nodes that matters here.
#[derive(Deserialize)]
struct List {
    items: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Deserialize)]
struct Status {
    addresses: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl Node {
    fn addresses(&self) -> Vec<IpAddr> {
        let addresses = self.status.addresses.iter().filter(|address| address.kind == "InternalIP");
        addresses.filter_map(|address| address.address.parse().ok()).collect()
    }

    /// The commands that make this node's Pods reachable from another node.
    fn routes(&self) -> Vec<String> {
        let addresses = self.addresses();
        let via = |cidr: &String| {
            addresses.iter().find(|address| address.is_ipv6() == cidr.contains(':'))
        };
        let cidrs = self.spec.pod_cidrs.iter().filter_map(|cidr| Some((cidr, via(cidr)?)));
        cidrs.map(|(cidr, via)| format!("ip route replace {cidr} via {via}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_that_of_the_readers_file() {
        for (proxy, mode) in [(Proxy::LbAgent, "none"), (Proxy::KubeProxy, "nftables")] {
            let config: Value = serde_yaml_ng::from_str(&config(proxy).unwrap()).unwrap();
            assert_eq!(config["networking"]["kubeProxyMode"], mode);
            assert_eq!(config["networking"]["ipFamily"], "dual");
            let nodes = config["nodes"].as_array().unwrap();
            assert_eq!(nodes.len(), 1 + Cluster::WORKERS as usize);
            for node in nodes {
                let file = node["extraMounts"][0]["hostPath"].as_str().unwrap();
                assert!(workspace::root().join(file).is_file(), "{file}");
            }
        }
    }

    #[test]
    fn pods_of_a_node_are_reached_through_its_address_of_their_family() {
        let list: List = serde_json::from_value(json!({ "items": [{
            "metadata": { "name": "a" },
            "spec": { "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"] },
            "status": { "addresses": [
                { "type": "InternalIP", "address": "172.18.0.3" },
                { "type": "InternalIP", "address": "fc00::3" },
                { "type": "Hostname", "address": "a" },
            ]},
        }]}))
        .expect("a list of Nodes");
        assert_eq!(
            list.items[0].routes(),
            [
                "ip route replace 10.244.1.0/24 via 172.18.0.3",
                "ip route replace fd00:10:244:1::/64 via fc00::3"
            ]
        );
    }
}
