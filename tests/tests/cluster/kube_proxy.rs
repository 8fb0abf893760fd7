//! The real kube-proxy on the nodes of a cluster, and the rules that it writes there.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use lb_tests::cluster::TestCluster;
use lb_tests::cluster::credentials::Identity;
use lb_tests::cluster::go::KUBERNETES;
use lb_tests::cluster::process::{Namespace, Process};
use lb_tests::cluster::reach::eventually;
use lb_tests::cluster::test_cluster::NODES;

/// A way in which kube-proxy works.
#[derive(Clone, Copy)]
pub enum Mode {
    /// By nf_tables itself.
    Nftables,
    /// By `iptables-nft`, which the machine's `iptables` is.
    Iptables,
    /// By `iptables-legacy`, as in images that find the kubelet's chains there.
    LegacyIptables,
}

impl Mode {
    fn flag(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables | Self::LegacyIptables => "iptables",
        }
    }

    /// As a part of names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::LegacyIptables => "legacy",
        }
    }
}

/// It, on every node.
pub struct KubeProxy {
    program: PathBuf,
    mode: Mode,
    node_port: u16,
    /// Where it finds its programs first.
    path: String,
    namespaces: Vec<Arc<Namespace>>,
    running: Vec<Process>,
}

impl KubeProxy {
    /// Not started yet. Its rules are there when they name `node_port`.
    pub fn new(cluster: &TestCluster, mode: Mode, node_port: u16) -> Result<Self> {
        let program = KUBERNETES.ensure(&["kube-proxy"])?.join("kube-proxy");
        let open = |node| Ok(Arc::new(Namespace::open(&cluster.lab().namespace(node)?)?));
        let namespaces = NODES.into_iter().map(open).collect::<Result<_>>()?;
        let path = match mode {
            Mode::LegacyIptables => legacy_programs(cluster)?,
            Mode::Nftables | Mode::Iptables => "/usr/sbin".into(),
        };
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", path.display());
        Ok(Self { program, mode, node_port, path, namespaces, running: Vec::new() })
    }

    /// Starts it on both nodes, and waits until it has written its rules.
    pub fn start(&mut self, cluster: &TestCluster) -> Result<()> {
        let kubeconfig = cluster.control_plane.kubeconfig(Identity::Admin);
        for (node, namespace) in NODES.into_iter().zip(&self.namespaces) {
            let arguments = [
                format!("PATH={}", self.path),
                self.program.display().to_string(),
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--proxy-mode={}", self.mode.flag()),
                format!("--hostname-override={node}"),
                "--cluster-cidr=10.244.0.0/16,fd00:244::/32".into(),
                // The agent has kube-proxy's usual ports.
                "--healthz-bind-address=127.0.0.1:11256".into(),
                "--metrics-bind-address=127.0.0.1:11249".into(),
                "--conntrack-max-per-core=0".into(),
                "--conntrack-tcp-timeout-established=0s".into(),
                "--conntrack-tcp-timeout-close-wait=0s".into(),
            ];
            let log = cluster.lab().directory().join(format!("kube-proxy-{node}.log"));
            let place = (&**cluster.lab(), node);
            let process = Process::start(namespace, place, Path::new("env"), &arguments, &log)?;
            self.running.push(process);
        }
        let node_port = self.node_port.to_string();
        for node in NODES {
            // One proxier for each family, and neither waits for the other.
            for family in ["ip", "ip6"] {
                eventually(&format!("kube-proxy writes its rules for {family} on {node}"), || {
                    let rules = ruleset(cluster, node, Some(family))?;
                    ensure!(rules.matches(&node_port).count() >= 2, "{rules}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Ends it, as its DaemonSet's end does. Its rules stay.
    pub fn stop(&mut self) -> Result<()> {
        self.running.drain(..).try_for_each(|mut process| process.kill())
    }
}

/// A folder in which `iptables` and what belongs to it are the old ones.
fn legacy_programs(cluster: &TestCluster) -> Result<PathBuf> {
    const ALL: &str = "/usr/sbin/xtables-legacy-multi";
    ensure!(Path::new(ALL).exists(), "no {ALL}: run `cargo xtask setup`");
    let folder = cluster.lab().directory().join("legacy-programs");
    std::fs::create_dir_all(&folder)?;
    for program in ["iptables", "ip6tables"] {
        for part in ["", "-save", "-restore"] {
            symlink(ALL, folder.join(format!("{program}{part}")))?;
        }
    }
    Ok(folder)
}

/// The rules of nf_tables, and those of the old iptables.
pub fn ruleset(cluster: &TestCluster, node: &str, family: Option<&str>) -> Result<String> {
    let nft: Vec<_> = ["nft", "list", "ruleset"].into_iter().chain(family).collect();
    let mut rules = String::new();
    for command in [nft, vec!["iptables-legacy-save"], vec!["ip6tables-legacy-save"]] {
        let is_other = match family {
            Some("ip") => command[0].starts_with("ip6"),
            Some(_) => command[0].starts_with("iptables"),
            None => false,
        };
        if !is_other {
            let listed = cluster.lab().exec(node, &command)?;
            rules.push_str(&String::from_utf8_lossy(&listed.stdout));
        }
    }
    Ok(rules)
}

/// No rules at all. What iptables leaves would keep NAT going.
pub fn flush(cluster: &TestCluster, node: &str) -> Result<()> {
    cluster.lab().nft(node, "flush ruleset")?;
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        let saved = cluster.lab().exec(node, &[&format!("{program}-save")])?;
        let saved = String::from_utf8_lossy(&saved.stdout).into_owned();
        // Asking for another table would make it.
        for table in saved.lines().filter_map(|line| line.strip_prefix('*')) {
            for what in ["-F", "-X"] {
                cluster.lab().exec(node, &[program, "-t", table, what])?;
            }
        }
    }
    Ok(())
}
