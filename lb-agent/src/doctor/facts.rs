//! Looks at the machine: everything that the checks judge, gathered in one place.
//!
//! What can't be looked at is a fact too: its reason, which the report shows instead of a verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::agent;
use super::others::{self, KubeProxy};
use super::{DoctorError, diff};
use crate::args::{PodPath, RunArgs};
use crate::bpf::attached::{self, Attached};
use crate::bpf::examine::{self, Foreign};
use crate::bpf::pins::{self, Mount};
use crate::bpf::read::Reader;
use crate::bpf::usage::MapUsage;
use crate::bpf::users::{self, Users};
use crate::bpf::{BpfError, slots};
use crate::cluster::snapshot::Protocol;
use crate::config::Config;
use crate::config_file;
use crate::inspect::rows::ServiceRow;
use crate::node::classify::{Selection, node_facts};
use crate::node::facts::NodeFacts;
use crate::node::observe::{Observed, Observer};
use crate::node::{cgroup, listeners, ports};
use crate::plan::Planner;
use crate::plan::desired::{Desired, FrontendAddress, FrontendKind};
use crate::run::source;
use crate::status::http::{self, Answer};
use crate::status::reachable;

/// Longest wait for Services and endpoints.
const PATIENCE: Duration = Duration::from_secs(10);
/// The cluster may change while we look, and the agent be about to write it: a difference counts when it
/// is still there after this.
const SETTLE: Duration = Duration::from_secs(2);
/// Nothing more comes of the first lists after so long.
const QUIET: Duration = Duration::from_millis(300);

/// Why something isn't known.
pub type Unknown = String;

/// What the kernel is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// `uname -r`.
    pub release: String,
    /// Whether the verifier takes the programs: how many; `None` when that was not tried, because
    /// those of a running agent are loaded.
    pub programs: Option<Result<usize, Unknown>>,
}

/// A Service address, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceAddress {
    /// The address.
    pub address: IpAddr,
    /// It is a ClusterIP.
    pub is_cluster_ip: bool,
    /// `namespace/name`.
    pub service: String,
}

/// What the cluster says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Service ports.
    pub ports: usize,
    /// Two Services that claim one address, and the like.
    pub problems: Vec<String>,
    /// Its addresses.
    pub addresses: BTreeSet<ServiceAddress>,
    /// Ranges of ClusterIPs.
    pub ranges: BTreeSet<IpNet>,
    /// `spec.podCIDRs` of this Node.
    pub pod_cidrs: Vec<IpNet>,
    /// ClusterIPs and ports that processes of this node listen at, which are left to them.
    pub left: BTreeSet<SocketAddr>,
    /// Ports on nodes' addresses, and whose they are.
    pub node_ports: BTreeMap<u16, String>,
    /// Some are of SCTP, which is translated by packet for pods.
    pub has_sctp: bool,
    /// Differences between the maps and this; `None` without maps.
    pub differences: Option<Vec<String>>,
}

/// What the running agent answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// `/healthz`; `None` when it is switched off.
    pub healthz: Option<Result<Answer, Unknown>>,
    /// `/proxyMode`, likewise.
    pub mode: Option<Result<Answer, Unknown>>,
    /// Age of the process, seconds.
    pub age: Option<u64>,
}

impl Answers {
    /// The mode of a kube-proxy that answers where the agent would.
    pub fn kube_proxy_mode(&self) -> Option<&str> {
        let Some(Ok(answer)) = &self.mode else { return None };
        let mode = answer.body.trim();
        (answer.status == 200 && ["iptables", "ipvs", "nftables"].contains(&mode)).then_some(mode)
    }
}

/// Whose flags the examination goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// Those that were given.
    Given,
    /// Those of the running agent.
    Agents(u32),
    /// Those that were given: the running agent's name files of another container.
    NotOf(u32),
}

/// Everything that was seen.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whose flags these are.
    pub flags: Flags,
    /// The kernel.
    pub kernel: Kernel,
    /// Bits of the effective capabilities of this process.
    pub capabilities: u64,
    /// Where pins are to be.
    pub bpffs: PathBuf,
    /// What is there.
    pub mount: Mount,
    /// The cgroup of the socket hooks, and its id.
    pub cgroup: Result<(PathBuf, u64), Unknown>,
    /// Settings of the kernel below /proc/sys by path; without those that aren't there.
    pub sysctls: BTreeMap<String, String>,
    /// Source ports for clients whose endpoint is elsewhere: those that the loaded programs take, else
    /// those that an agent would choose now.
    pub snat_ports: Result<RangeInclusive<u16>, Unknown>,
    /// Pods are translated by packet.
    pub serves_pod_packets: bool,
    /// Links, addresses and routes.
    pub observed: Observed,
    /// What they mean.
    pub node: NodeFacts,
    /// Ranges of pods, from --cluster-cidr.
    pub cluster_cidrs: Vec<IpNet>,
    /// kube-proxy's rules and flows.
    pub kube_proxy: Result<KubeProxy, Unknown>,
    /// Programs of others where ours are.
    pub foreign: BTreeSet<Foreign>,
    /// Who uses the pins.
    pub users: Result<Users, Unknown>,
    /// Directories with pins of other versions; none where that isn't known.
    pub other_versions: Vec<String>,
    /// What is attached; `None` without a datapath.
    pub attachments: Result<Option<Attached>, Unknown>,
    /// How full the maps are; `None` without a datapath.
    pub usage: Option<Result<Vec<MapUsage>, Unknown>>,
    /// What the cluster says.
    pub cluster: Result<Cluster, Unknown>,
    /// What the agent answers.
    pub answers: Answers,
}

impl Facts {
    /// Looks at everything, as an agent with these flags would.
    pub fn gather(args: RunArgs, hostname: &str) -> Result<Self, DoctorError> {
        let users = users::users(&args.pins.bpffs);
        let process = users.as_ref().ok().and_then(|users| users.process);
        let (args, flags) = flags(args, process);
        let config = config_file::configure(args, hostname)?.config;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DoctorError::Runtime)?;
        let users = users.map_err(|error| error.to_string());
        let facts = runtime.block_on(gather(&config, users, flags));
        // Don't wait for requests to a server that may be down.
        runtime.shutdown_background();
        facts
    }
}

/// The flags that were given, or those of the running agent if none says where Services are.
fn flags(args: RunArgs, running: Option<u32>) -> (RunArgs, Flags) {
    let source = &args.source;
    let is_told = args.config.is_some()
        || source.kubeconfig.is_some()
        || source.manifests.is_some()
        || !source.master.is_empty();
    let Some(process) = running.filter(|_| !is_told) else { return (args, Flags::Given) };
    if !agent::shares_files(process) {
        return (args, Flags::NotOf(process));
    }
    match agent::args_of(process) {
        Some(theirs) => (RunArgs { pins: args.pins, ..theirs }, Flags::Agents(process)),
        None => (args, Flags::Given),
    }
}

async fn gather(
    config: &Config,
    users: Result<Users, Unknown>,
    flags: Flags,
) -> Result<Facts, DoctorError> {
    let (_observer, observed) = Observer::start().await?;
    let observed = observed.borrow().clone();
    let attachments = attached::attached(&config.bpffs).map_err(|error| error.to_string());
    let has_maps = matches!(attachments, Ok(Some(_)));
    let own = observed.addresses.iter().map(|own| own.address).collect();
    let (planner, cluster) = cluster(config, &own, has_maps).await;
    let addresses = planner.as_ref().and_then(|planner| planner.snapshot().node.as_ref());
    let addresses = addresses.map(|node| node.addresses.clone()).unwrap_or_default();
    let selection = Selection {
        devices: config.devices.clone(),
        pod_devices: config.pod_devices.clone(),
        nodeport_addresses: config.nodeport_addresses.clone(),
    };
    let node = node_facts(&observed, &selection, &addresses);
    let cgroup = cgroup::cgroup_root(config.cgroup_root.as_deref())
        .map_err(|error| error.to_string())
        .and_then(|path| Ok((path.clone(), inode(&path).map_err(|error| error.to_string())?)));
    let names = node.devices.values().map(|device| (device.index, device.name.clone())).collect();
    let ours = attachments.as_ref().ok().and_then(Option::as_ref);
    let foreign =
        examine::foreign(cgroup.as_ref().ok().map(|(path, _)| path.as_path()), &names, ours);
    let (process, is_running) =
        users.as_ref().map_or((None, false), |users| (users.process, users.is_in_use));
    Ok(Facts {
        flags,
        kernel: kernel(&config.bpffs, is_running),
        capabilities: capabilities(),
        bpffs: config.bpffs.clone(),
        mount: pins::mount_at(&config.bpffs),
        cgroup,
        sysctls: sysctls(&node),
        snat_ports: snat_ports(config, has_maps),
        serves_pod_packets: config.pod_path != PodPath::Socket,
        observed,
        node,
        cluster_cidrs: config.cluster_cidrs.clone(),
        kube_proxy: others::kube_proxy(&config.bpffs).map_err(|error| error.to_string()),
        foreign,
        answers: answers(config, process).await,
        users,
        other_versions: users::other_versions(&config.bpffs).unwrap_or_default(),
        usage: has_maps.then(|| usage(&config.bpffs).map_err(|error| error.to_string())),
        attachments,
        cluster,
    })
}

/// What the loaded programs take, else what an agent would choose now.
fn snat_ports(config: &Config, has_maps: bool) -> Result<RangeInclusive<u16>, Unknown> {
    let loaded = has_maps.then(|| examine::constants(&config.bpffs).ok().flatten()).flatten();
    match (loaded, &config.snat_ports) {
        (Some(loaded), _) => Ok(loaded.snat_port_min..=loaded.snat_port_max),
        (None, Some(ports)) => Ok(ports.clone()),
        (None, None) => ports::snat_ports().map_err(|error| error.to_string()),
    }
}

fn usage(bpffs: &Path) -> Result<Vec<MapUsage>, BpfError> {
    Reader::open(bpffs)?.usage()
}

fn inode(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata(path)?.ino())
}

fn kernel(bpffs: &Path, is_running: bool) -> Kernel {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let programs =
        (!is_running).then(|| examine::try_programs(bpffs).map_err(|error| error.to_string()));
    Kernel { release, programs }
}

fn capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default()
}

fn sysctls(node: &NodeFacts) -> BTreeMap<String, String> {
    let general = [
        "net/core/bpf_jit_enable",
        "kernel/unprivileged_bpf_disabled",
        "net/ipv4/ip_local_port_range",
        "net/ipv4/ip_local_reserved_ports",
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/all/forwarding",
        "net/ipv6/conf/all/forwarding",
    ];
    let of_devices = node.devices.values().flat_map(|device| {
        ["ipv4/conf/@/rp_filter", "ipv4/conf/@/forwarding", "ipv6/conf/@/forwarding"]
            .map(|path| format!("net/{}", path.replace('@', &device.name)))
    });
    general
        .map(str::to_owned)
        .into_iter()
        .chain(of_devices)
        .filter_map(|path| {
            let value = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
            Some((path, value.trim().to_owned()))
        })
        .collect()
}

async fn answers(config: &Config, process: Option<u32>) -> Answers {
    let ask = async |address: Option<SocketAddr>, path| match address {
        Some(address) => Some(http::get(reachable(address), path).await),
        None => None,
    };
    let started = process.and_then(|it| std::fs::metadata(format!("/proc/{it}")).ok());
    let age = started.and_then(|it| it.modified().ok()?.elapsed().ok());
    Answers {
        healthz: ask(config.healthz, "/healthz").await,
        mode: ask(config.metrics, "/proxyMode").await,
        age: age.map(|age| age.as_secs()),
    }
}

/// Asks the source of Services, plans as the agent does, and compares.
async fn cluster(
    config: &Config,
    own: &BTreeSet<IpAddr>,
    has_maps: bool,
) -> (Option<Planner>, Result<Cluster, Unknown>) {
    let mut following = match source::follow(&config.source, &config.node_name).await {
        Ok(following) => following,
        Err(error) => return (None, Err(error.to_string())),
    };
    let mut planner = Planner::new(&config.node_name);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !planner.is_synced() {
        match tokio::time::timeout_at(deadline, following.changes.recv()).await {
            Ok(Some(batch)) => drop(planner.apply(batch)),
            Ok(None) | Err(_) => {
                let text = format!(
                    "Services and EndpointSlices didn't come within {} s; the log on standard error \
                     says why",
                    PATIENCE.as_secs()
                );
                return (None, Err(text));
            }
        }
    }
    take_for(&mut planner, &mut following, QUIET).await;
    let mut differences = None;
    if has_maps {
        let compare = |planner: &Planner| -> Result<Vec<String>, Unknown> {
            let mut wanted = planner.desired().clone();
            let left = left_to_listeners(&wanted, own)?;
            wanted.frontends.retain(|frontend, _| !left.contains(frontend));
            let mut lines = diff::differences(&wanted, &services(&config.bpffs)?);
            let misled = slots::misled(&config.bpffs).map_err(|error| error.to_string())?;
            lines.extend(misled.iter().map(diff::misled));
            Ok(lines)
        };
        let first = match compare(&planner) {
            Ok(first) => first,
            Err(error) => return (Some(planner), Err(error)),
        };
        differences = Some(if first.is_empty() {
            first
        } else {
            take_for(&mut planner, &mut following, SETTLE).await;
            let again = compare(&planner).unwrap_or_default();
            again.into_iter().filter(|line| first.contains(line)).collect()
        });
    }
    let cluster = told(&planner, own, differences);
    (Some(planner), cluster)
}

/// The frontends that processes of this node listen at, of the ClusterIPs that it has on its devices.
fn left_to_listeners(
    desired: &Desired,
    own: &BTreeSet<IpAddr>,
) -> Result<BTreeSet<FrontendAddress>, Unknown> {
    let of_node = desired.cluster_ips().filter(|address| own.contains(address)).collect();
    let found = listeners::at(&of_node).map_err(|error| error.to_string())?;
    let frontends = found.into_iter().map(FrontendAddress::from);
    Ok(frontends.filter(|frontend| desired.frontends.contains_key(frontend)).collect())
}

fn services(bpffs: &Path) -> Result<Vec<ServiceRow>, Unknown> {
    Reader::open(bpffs).and_then(|reader| reader.services()).map_err(|error| error.to_string())
}

/// Takes what comes for so long.
async fn take_for(planner: &mut Planner, following: &mut source::Following, time: Duration) {
    let deadline = tokio::time::Instant::now() + time;
    while let Ok(Some(batch)) = tokio::time::timeout_at(deadline, following.changes.recv()).await {
        drop(planner.apply(batch));
    }
}

fn told(
    planner: &Planner,
    own: &BTreeSet<IpAddr>,
    differences: Option<Vec<String>>,
) -> Result<Cluster, Unknown> {
    let desired = planner.desired();
    let left = left_to_listeners(desired, own)?;
    let addresses =
        desired.frontends.iter().filter(|(_, (_, kind))| *kind != FrontendKind::NodePort).map(
            |(address, (key, kind))| ServiceAddress {
                address: address.address,
                is_cluster_ip: *kind == FrontendKind::ClusterIp,
                service: key.service.to_string(),
            },
        );
    let node = planner.snapshot().node.as_ref();
    let node_ports = desired.frontends.iter().filter_map(|(address, (key, kind))| {
        let is_node_port = *kind == FrontendKind::NodePort;
        is_node_port.then(|| (address.port, key.service.to_string()))
    });
    Ok(Cluster {
        left: left.into_iter().map(|own| SocketAddr::new(own.address, own.port)).collect(),
        node_ports: node_ports.collect(),
        has_sctp: desired.ports.keys().any(|key| key.protocol == Protocol::Sctp),
        ports: desired.ports.len(),
        problems: desired
            .problems
            .iter()
            .map(|problem| format!("{}: {}", problem.object, problem.reason))
            .collect(),
        addresses: addresses.collect(),
        ranges: desired.ranges.clone().unwrap_or_default(),
        pod_cidrs: node.map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
        differences,
    })
}
