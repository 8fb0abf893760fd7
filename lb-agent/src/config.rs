//! What the agent was told, checked: [`Args`](crate::args::Args) in, [`Config`] out.
//!
//! Everything after this module may rely on the values. It asks the machine for one thing only,
//! the host name; whether files, devices or kernel features exist is found out by those who use
//! them. An error names the flag, its value and the remedy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use http::Uri;
use ipnet::IpNet;

use crate::args::{
    KernelArgs, PodPath, RunArgs, ServingArgs, SizeArgs, SourceArgs, Switch, XdpMode,
};
use crate::cluster::snapshot::IpFamily;

/// Where Services come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An API server.
    ApiServer {
        /// Kubeconfig file; the Pod's service account without one.
        kubeconfig: Option<PathBuf>,
        /// Override the server's address; the preferred one first.
        addresses: Vec<Uri>,
    },
    /// A directory of manifests.
    Manifests(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ApiServer { .. } => f.write_str("the API server"),
            Self::Manifests(directory) => write!(f, "manifests in {}", directory.display()),
        }
    }
}

/// Which of the node's addresses serve NodePorts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every address but loopback and link-local.
    #[default]
    All,
    /// The Node's first InternalIP, else ExternalIP, per family.
    Primary,
    /// Those inside the ranges; a family without a range is not restricted (as in kube-proxy's
    /// `NewNodePortAddresses`).
    Within(Vec<IpNet>),
}

impl NodePortAddresses {
    /// Whether some of the node's addresses of `family` may be left out. (One that covers
    /// everything leaves out none: kube-proxy's `MatchAll`.)
    pub fn restricts(&self, family: IpFamily) -> bool {
        match self {
            Self::All => false,
            Self::Primary => true,
            Self::Within(ranges) => {
                let mut of_family =
                    ranges.iter().filter(|range| IpFamily::of(range.addr()) == family).peekable();
                of_family.peek().is_some() && of_family.all(|range| range.prefix_len() > 0)
            }
        }
    }
}

/// Which devices packets from outside come in on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DeviceSelection {
    /// Those that lead to networks beside the node, and overlay devices.
    #[default]
    Found,
    /// Those with these names, as far as they exist.
    Named(Vec<DevicePattern>),
}

/// Which devices lead to pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodDevices {
    /// One end of a pair whose other end is in another network namespace.
    #[default]
    Pairs,
    /// Those with these names, as far as they exist.
    Named(Vec<DevicePattern>),
}

/// A device name, or the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevicePattern {
    /// Exactly this name.
    Name(String),
    /// Every name that begins so (`eth*`).
    Prefix(String),
}

impl DevicePattern {
    /// Whether the device called `name` is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

/// Sizes of the kernel's tables, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Service ports per family.
    pub services: u32,
    /// Endpoints of all Service ports; one that serves two ports counts twice.
    pub backends: u32,
    /// Places in endpoint lists and Maglev tables.
    pub slots: u32,
    /// Source ranges of load balancer addresses; those of a Service count for each of its ports.
    pub source_ranges: u32,
    /// Flows.
    pub flows: u32,
    /// Endpoints whose traffic is counted.
    pub traffic: u32,
}

/// What `lb-agent run` was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where Services come from.
    pub source: Source,
    /// Our name in the cluster.
    pub node_name: String,
    /// Address ranges of the cluster's pods, at most one per family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Which addresses serve NodePorts.
    pub nodeport_addresses: NodePortAddresses,
    /// Which devices packets from outside come in on.
    pub devices: DeviceSelection,
    /// Where pods are translated.
    pub pod_path: PodPath,
    /// Whether endpoints see an address of the node wherever kube-proxy's `masqueradeAll` has them see one.
    pub masquerade_all: bool,
    /// Which devices lead to pods.
    pub pod_devices: PodDevices,
    /// Whether traffic of endpoints is counted.
    pub traffic_counters: Switch,
    /// Service ports that may have metrics of their own; 0 for none at all.
    pub service_metrics: usize,
    /// Where the network namespaces of pods are mounted; `/proc` for those of processes.
    pub netns_dirs: Vec<PathBuf>,
    /// cgroup2 directory of the socket hooks; the root of the mount without one.
    pub cgroup_root: Option<PathBuf>,
    /// Mount point of the BPF file system.
    pub bpffs: PathBuf,
    /// Where XDP is used.
    pub xdp: XdpMode,
    /// Source ports for SNAT; chosen from the kernel's settings without one.
    pub snat_ports: Option<RangeInclusive<u16>>,
    /// Sizes of the tables.
    pub capacities: Capacities,
    /// Address of `/healthz`.
    pub healthz: Option<SocketAddr>,
    /// Address of `/metrics`.
    pub metrics: Option<SocketAddr>,
}

/// A flag whose value can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("--{flag} {value:?}: {reason}; {remedy}")]
pub struct ConfigError {
    /// Name without dashes.
    pub flag: &'static str,
    /// The value as given.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
    /// What to write instead.
    pub remedy: &'static str,
}

impl ConfigError {
    fn new(
        flag: &'static str,
        value: impl Into<String>,
        reason: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self { flag, value: value.into(), reason: reason.into(), remedy }
    }
}

impl Config {
    /// Checks what was typed. `hostname` is this machine's name, used when none was given.
    pub fn new(args: RunArgs, hostname: &str) -> Result<Self, ConfigError> {
        let (healthz, metrics) = serving(&args.serving)?;
        Ok(Self {
            source: source(args.source)?,
            node_name: node_name(args.node.hostname_override, hostname)?,
            cluster_cidrs: cluster_cidrs(&args.node.cluster_cidr)?,
            nodeport_addresses: nodeport_addresses(&args.node.nodeport_addresses)?,
            devices: devices(&args.node.devices)?,
            pod_path: args.kernel.pod_path,
            masquerade_all: masquerade_all(&args.kernel)?,
            pod_devices: pod_devices(&args.node.pod_devices)?,
            traffic_counters: args.kernel.traffic_counters,
            service_metrics: service_metrics(&args.kernel.service_metrics)?,
            netns_dirs: given(&args.node.netns_dirs).map(PathBuf::from).collect(),
            cgroup_root: args.kernel.cgroup_root,
            bpffs: args.pins.bpffs,
            xdp: args.kernel.xdp,
            snat_ports: args.kernel.snat_port_range.as_deref().map(port_range).transpose()?,
            capacities: capacities(args.sizes)?,
            healthz,
            metrics,
        })
    }
}

/// The addresses of the health and the metrics server.
pub fn serving(
    args: &ServingArgs,
) -> Result<(Option<SocketAddr>, Option<SocketAddr>), ConfigError> {
    Ok((
        bind_address(
            "healthz-bind-address",
            args.healthz_bind_address.as_deref().unwrap_or("0.0.0.0:10256"),
            10_256,
        )?,
        bind_address(
            "metrics-bind-address",
            args.metrics_bind_address.as_deref().unwrap_or("127.0.0.1:10249"),
            10_249,
        )?,
    ))
}

fn source(args: SourceArgs) -> Result<Source, ConfigError> {
    if let Some(directory) = args.manifests {
        return Ok(Source::Manifests(directory));
    }
    let addresses = server_addresses(&args.master)?;
    Ok(Source::ApiServer { kubeconfig: args.kubeconfig, addresses })
}

/// The values of `--master`.
pub fn server_addresses(texts: &[String]) -> Result<Vec<Uri>, ConfigError> {
    given(texts).map(server_address).collect()
}

fn server_address(text: &str) -> Result<Uri, ConfigError> {
    let url = text.parse::<Uri>().ok();
    url.filter(|url| matches!(url.scheme_str(), Some("https" | "http"))).ok_or_else(|| {
        ConfigError::new(
            "master",
            text,
            "not a URL of http or https",
            "write it as https://HOST:6443",
        )
    })
}

/// As kube-proxy's `GetHostname`: trimmed, in lower case, never empty.
fn node_name(given: Option<String>, hostname: &str) -> Result<String, ConfigError> {
    let name = given.as_deref().unwrap_or(hostname).trim().to_lowercase();
    if name.is_empty() {
        return Err(ConfigError::new(
            "hostname-override",
            given.unwrap_or_default(),
            "the node's name is empty",
            "give the name that `kubectl get nodes` shows for this node",
        ));
    }
    Ok(name)
}

fn cidr(flag: &'static str, text: &str) -> Result<IpNet, ConfigError> {
    text.trim().parse().map_err(|_| {
        ConfigError::new(
            flag,
            text,
            "not an address range",
            "write ADDRESS/LENGTH, for example 10.244.0.0/16 or fd00:10:244::/56",
        )
    })
}

fn cluster_cidrs(texts: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    const FLAG: &str = "cluster-cidr";
    let cidrs = given(texts).map(|text| cidr(FLAG, text)).collect::<Result<Vec<_>, _>>()?;
    let of_v4 = cidrs.iter().filter(|cidr| matches!(cidr, IpNet::V4(_))).count();
    if of_v4 > 1 || cidrs.len() - of_v4 > 1 {
        return Err(ConfigError::new(
            FLAG,
            texts.join(","),
            "more than one range of one family",
            "give at most one IPv4 and one IPv6 range",
        ));
    }
    Ok(cidrs)
}

fn nodeport_addresses(texts: &[String]) -> Result<NodePortAddresses, ConfigError> {
    const FLAG: &str = "nodeport-addresses";
    let texts: Vec<&str> = given(texts).collect();
    match texts.as_slice() {
        [] => Ok(NodePortAddresses::All),
        ["primary"] => Ok(NodePortAddresses::Primary),
        several if several.contains(&"primary") => Err(ConfigError::new(
            FLAG,
            several.join(","),
            "`primary` can't be combined with ranges",
            "give either `primary` or ranges",
        )),
        ranges => Ok(NodePortAddresses::Within(
            ranges.iter().map(|text| cidr(FLAG, text)).collect::<Result<_, _>>()?,
        )),
    }
}

fn devices(texts: &[String]) -> Result<DeviceSelection, ConfigError> {
    let patterns = device_patterns("devices", texts)?;
    Ok(if patterns.is_empty() { DeviceSelection::Found } else { DeviceSelection::Named(patterns) })
}

fn pod_devices(texts: &[String]) -> Result<PodDevices, ConfigError> {
    let patterns = device_patterns("pod-devices", texts)?;
    Ok(if patterns.is_empty() { PodDevices::Pairs } else { PodDevices::Named(patterns) })
}

fn device_patterns(
    flag: &'static str,
    texts: &[String],
) -> Result<Vec<DevicePattern>, ConfigError> {
    const REMEDY: &str = "write names as `ip link` shows them, separated by commas; a `*` may only \
        stand at the end";
    let mut patterns = Vec::new();
    for text in given(texts) {
        let (name, is_prefix) = match text.strip_suffix('*') {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        // IFNAMSIZ is 16 with the final NUL (include/uapi/linux/if.h); the rest as dev_valid_name().
        if name.len() > 15 || name.contains(['*', '/', ':']) || name.contains(char::is_whitespace) {
            return Err(ConfigError::new(flag, text, "not a device name", REMEDY));
        }
        let name = name.to_owned();
        patterns.push(if is_prefix {
            DevicePattern::Prefix(name)
        } else {
            DevicePattern::Name(name)
        });
    }
    Ok(patterns)
}

fn masquerade_all(args: &KernelArgs) -> Result<bool, ConfigError> {
    let wanted = args.masquerade_all.unwrap_or(false);
    let can_be = !wanted || args.pod_path == PodPath::Packet;
    can_be.then_some(wanted).ok_or_else(|| {
        ConfigError::new(
            "masquerade-all",
            "true",
            "the sockets of pods are led to an endpoint before there is a packet whose source could be \
             replaced",
            "give --pod-path packet with it",
        )
    })
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, ConfigError> {
    const FLAG: &str = "snat-port-range";
    const REMEDY: &str = "write FIRST-LAST, for example 61000-65535";
    let error = |reason: &str| ConfigError::new(FLAG, text, reason, REMEDY);
    let (first, last) = text.trim().split_once('-').ok_or_else(|| error("not a range"))?;
    let port = |text: &str| text.trim().parse().map_err(|_| error("not a port number"));
    let (first, last): (u16, u16) = (port(first)?, port(last)?);
    if first < 1024 {
        return Err(error("ports below 1024 belong to the node's services"));
    }
    if first > last {
        return Err(error("the first port is greater than the last"));
    }
    // A small range exhausts at once: each port carries one flow per endpoint and protocol.
    if last - first < 255 {
        return Err(error("fewer than 256 ports"));
    }
    Ok(first..=last)
}

/// Each has five series at most.
fn service_metrics(text: &str) -> Result<usize, ConfigError> {
    const DEFAULT: usize = 500;
    const MOST: usize = 100_000;
    match text.trim() {
        "on" => Ok(DEFAULT),
        "off" => Ok(0),
        number => {
            number.parse().ok().filter(|number| (1..=MOST).contains(number)).ok_or_else(|| {
                ConfigError::new(
                    "service-metrics",
                    text,
                    format!("neither `on` nor `off` nor a number from 1 to {MOST}"),
                    "say `on`, `off`, or how many Service ports may have metrics of their own",
                )
            })
        }
    }
}

fn capacities(args: SizeArgs) -> Result<Capacities, ConfigError> {
    // The upper bounds keep each table under 2 GiB: array maps are allocated whole.
    let checks: [(&'static str, u32, RangeInclusive<u32>); 6] = [
        ("max-services", args.max_services, 16..=1 << 22),
        ("max-backends", args.max_backends, 16..=1 << 24),
        ("max-slots", args.max_slots, 256..=1 << 28),
        ("max-source-ranges", args.max_source_ranges, 16..=1 << 24),
        ("max-flows", args.max_flows, 256..=1 << 24),
        // Each takes 48 bytes on every CPU.
        ("max-traffic", args.max_traffic, 16..=1 << 20),
    ];
    for (flag, value, allowed) in checks {
        if !allowed.contains(&value) {
            return Err(ConfigError::new(
                flag,
                value.to_string(),
                format!("not between {} and {}", allowed.start(), allowed.end()),
                "give a size within these bounds, or leave the flag out",
            ));
        }
    }
    Ok(Capacities {
        services: args.max_services,
        backends: args.max_backends,
        slots: args.max_slots,
        source_ranges: args.max_source_ranges,
        flows: args.max_flows,
        traffic: args.max_traffic,
    })
}

/// `IP`, `IP:PORT`, `[IPv6]:PORT`, `:PORT`, or nothing; a missing port is `default_port`.
fn bind_address(
    flag: &'static str,
    text: &str,
    default_port: u16,
) -> Result<Option<SocketAddr>, ConfigError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Some(address));
    }
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(Some(SocketAddr::new(ip, default_port)));
    }
    if let Some(port) = text.strip_prefix(':').and_then(|port| port.parse().ok()) {
        return Ok(Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)));
    }
    Err(ConfigError::new(
        flag,
        text,
        "not an address to listen on",
        "write IP:PORT, for example 127.0.0.1:10249 or [::]:10256, or '' for none",
    ))
}

/// List items without surrounding blanks and without empty ones: an environment variable that is
/// set to nothing means the default.
fn given(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn config(flags: &[&str]) -> Result<Config, ConfigError> {
        let words = ["lb-agent", "run"].iter().chain(flags);
        match Args::try_parse_from(words).expect("clap accepts the flags").command {
            Command::Run(args) => Config::new(*args, " Node-A.Example "),
            other => unreachable!("{other:?}"),
        }
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn without_flags_the_defaults_are_those_of_kube_proxy() {
        let config = config(&[]).unwrap();
        assert_eq!(config.source, Source::ApiServer { kubeconfig: None, addresses: Vec::new() });
        assert_eq!(config.node_name, "node-a.example");
        assert_eq!(config.nodeport_addresses, NodePortAddresses::All);
        assert_eq!(config.devices, DeviceSelection::Found);
        assert_eq!(config.bpffs, PathBuf::from("/sys/fs/bpf"));
        assert_eq!(config.xdp, XdpMode::Auto);
        assert_eq!(config.healthz, Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(config.metrics, Some("127.0.0.1:10249".parse().unwrap()));
        assert_eq!(config.snat_ports, None);
    }

    #[test]
    fn all_is_masqueraded_only_where_packets_of_pods_are_translated() {
        assert!(!config(&["--pod-path", "packet"]).unwrap().masquerade_all);
        assert!(!config(&["--masquerade-all=false"]).unwrap().masquerade_all);
        assert!(config(&["--masquerade-all", "--pod-path", "packet"]).unwrap().masquerade_all);
        for flags in [&["--masquerade-all"][..], &["--masquerade-all=true", "--pod-path=both"]] {
            let error = config(flags).expect_err("sockets are translated").to_string();
            assert!(error.contains("give --pod-path packet with it"), "{error}");
        }
    }

    #[test]
    fn the_node_name_is_trimmed_and_in_lower_case() {
        assert_eq!(config(&["--hostname-override", " Node-B "]).unwrap().node_name, "node-b");
    }

    #[test]
    fn bind_addresses_may_be_of_either_family_lack_the_port_or_be_empty() {
        for (text, expected) in [
            ("", None),
            ("0.0.0.0", Some("0.0.0.0:10256")),
            ("[::]:9000", Some("[::]:9000")),
            ("::", Some("[::]:10256")),
            ("[::1]", Some("[::1]:10256")),
            (":1234", Some("0.0.0.0:1234")),
            ("10.0.0.1:1", Some("10.0.0.1:1")),
        ] {
            let config = config(&["--healthz-bind-address", text]).unwrap();
            assert_eq!(config.healthz, expected.map(|e| e.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn nodeport_addresses_are_ranges_or_primary() {
        for (text, expected) in [
            ("", NodePortAddresses::All),
            ("primary", NodePortAddresses::Primary),
            ("10.0.0.0/8,fd00::/8", NodePortAddresses::Within(nets(&["10.0.0.0/8", "fd00::/8"]))),
        ] {
            let config = config(&["--nodeport-addresses", text]).unwrap();
            assert_eq!(config.nodeport_addresses, expected, "{text:?}");
        }
    }

    #[test]
    fn a_family_without_a_range_or_with_one_that_covers_everything_is_not_restricted() {
        for (text, v4, v6) in [
            ("", false, false),
            ("primary", true, true),
            ("10.0.0.0/8", true, false),
            ("10.0.0.0/8,fd00::/8", true, true),
            ("10.0.0.0/8,0.0.0.0/0", false, false),
            ("::/0,192.0.2.0/24", true, false),
        ] {
            let addresses = config(&["--nodeport-addresses", text]).unwrap().nodeport_addresses;
            let restricted = [IpFamily::V4, IpFamily::V6].map(|family| addresses.restricts(family));
            assert_eq!(restricted, [v4, v6], "{text:?}");
        }
    }

    #[test]
    fn directories_of_network_namespaces_are_those_of_the_usual_runtimes_or_as_given() {
        let usual = ["/run/netns", "/var/run/netns", "/run/docker/netns", "/proc"];
        for (flags, expected) in [
            (&[][..], &usual[..]),
            (&["--netns-dirs", "/a, /proc"], &["/a", "/proc"]),
            (&["--netns-dirs", ""], &[]),
        ] {
            let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(config(flags).unwrap().netns_dirs, expected, "{flags:?}");
        }
    }

    #[test]
    fn metrics_of_services_are_bounded_or_off() {
        for (flags, expected) in [
            (&[][..], 500),
            (&["--service-metrics", "on"], 500),
            (&["--service-metrics", "off"], 0),
            (&["--service-metrics", "20000"], 20_000),
        ] {
            assert_eq!(config(flags).unwrap().service_metrics, expected, "{flags:?}");
        }
    }

    #[test]
    fn devices_are_names_or_prefixes() {
        assert_eq!(
            config(&["--devices", "eth0, ens*"]).unwrap().devices,
            DeviceSelection::Named(vec![
                DevicePattern::Name("eth0".into()),
                DevicePattern::Prefix("ens".into())
            ])
        );
        assert!(DevicePattern::Prefix("ens".into()).matches("ens3"));
        assert!(!DevicePattern::Name("ens".into()).matches("ens3"));
    }

    #[test]
    fn a_value_that_cannot_be_used_is_refused_with_flag_value_and_remedy() {
        for (flags, expected) in [
            (&["--hostname-override", " "][..], "--hostname-override \" \": the node's name is"),
            (&["--cluster-cidr", "10.0.0.0"], "--cluster-cidr \"10.0.0.0\": not an address range"),
            (&["--cluster-cidr", "10.0.0.0/8,11.0.0.0/8"], "more than one range of one family"),
            (&["--nodeport-addresses", "primary,10.0.0.0/8"], "`primary` can't be combined"),
            (&["--nodeport-addresses", "eth0"], "not an address range"),
            (&["--devices", "e*h"], "--devices \"e*h\": not a device name"),
            (&["--devices", "a-name-that-is-far-too-long"], "not a device name"),
            (&["--snat-port-range", "61000"], "not a range"),
            (&["--snat-port-range", "x-y"], "not a port number"),
            (&["--snat-port-range", "80-4000"], "ports below 1024"),
            (&["--snat-port-range", "65000-64000"], "the first port is greater"),
            (&["--snat-port-range", "65000-65100"], "fewer than 256 ports"),
            (&["--max-services", "1"], "--max-services \"1\": not between 16"),
            (&["--service-metrics", "0"], "--service-metrics \"0\": neither `on` nor `off`"),
            (&["--service-metrics", "many"], "nor a number from 1 to 100000"),
            (&["--metrics-bind-address", "localhost:1"], "not an address to listen on"),
            (&["--master", "apiserver:6443"], "--master \"apiserver:6443\": not a URL"),
        ] {
            let error = config(flags).expect_err("refused").to_string();
            assert!(error.contains(expected), "{flags:?}: {error}");
            assert!(error.contains("; "), "no remedy: {error}");
        }
    }

    #[test]
    fn kubeconfig_and_manifests_exclude_each_other() {
        let words = ["lb-agent", "run", "--kubeconfig", "a", "--manifests", "b"];
        assert!(Args::try_parse_from(words).is_err());
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
