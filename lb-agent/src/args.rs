//! The command line as it is typed: names, defaults, environment variables and help text.
//!
//! This module knows what can be written, not whether it makes sense: [`crate::config`] judges
//! the values. Flags carry kube-proxy's names where the meaning is the same
//! (<https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/>).

mod doctor;
mod lists;
mod monitor;
mod status;
mod top;
mod trace;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

pub use lists::{BackendState, BackendsArgs, FlowState, FlowsArgs, ServiceFilter, ServicesArgs};

use crate::cluster::snapshot::Protocol;
pub use doctor::{DoctorArgs, DoctorFormat};
pub use monitor::{MonitorArgs, MonitorFormat};
pub use status::{StatusArgs, StatusFormat};
pub use top::{Column, TopArgs};
pub use trace::{TraceArgs, TraceFormat, TracePath};

const TEMPLATE: &str = "\
NAME
  {bin} - {about}

SYNOPSIS
  {usage}

{all-args}{after-help}";

const RUN_USAGE: &str = "\
lb-agent run [--config FILE] [--kubeconfig FILE [--master URL[,URL]...] | --manifests DIR]
      [--hostname-override NAME] [--cluster-cidr CIDR[,CIDR]]
      [--nodeport-addresses primary|CIDR[,CIDR]...] [--devices NAME[,NAME]...]
      [--pod-path socket|packet|both] [--pod-devices NAME[,NAME]...] [--netns-dirs DIR[,DIR]...]
      [--xdp auto|native|generic|off] [--cgroup-root DIR] [--bpffs DIR]
      [--snat-port-range FIRST-LAST] [--traffic-counters on|off] [--service-metrics on|off|N]
      [--max-services N] [--max-backends N] [--max-slots N] [--max-source-ranges N]
      [--max-flows N] [--max-traffic N] [--healthz-bind-address IP[:PORT]]
      [--metrics-bind-address IP[:PORT]] [--log-format FORMAT] [--log-level LEVEL]";

const RUN_AFTER: &str = "\
Configuration file:
  --config reads kube-proxy's own file (kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration), such as
  the key config.conf of kubeadm's ConfigMap kube-proxy, as it is. A flag or environment variable comes
  before the file. The log names each field that is set and ignored, and why. When the file
  says something else later, the agent ends with status 1, to be started again with it; the datapath
  stays.

Signals:
  SIGTERM and SIGINT stop the agent and leave the datapath in the kernel, pinned: Services go on
  working, and the next start adopts them without losing a packet. `lb-agent cleanup` removes it.

Exit status:
  0  stopped by a signal
  1  could not start: the message names the flag, file or kernel feature and the remedy;
     or the file of --config has changed
  2  the command line could not be understood

Examples:
  lb-agent run                                  in a Pod, with the Pod's service account
  lb-agent run --kubeconfig /etc/lb/kubeconfig --hostname-override node-1
  lb-agent run --config /var/lib/kube-proxy/config.conf
  lb-agent run --manifests ./services --devices eth0 --metrics-bind-address ''
";

/// A Kubernetes Service load balancer in the kernel, for any CNI
#[derive(Debug, Parser)]
#[command(name = "lb-agent", bin_name = "lb-agent", version, help_template = TEMPLATE, max_term_width = 100)]
#[command(after_help = "Every option of `run` can also be given as an environment variable \
    LB_<OPTION>, for example LB_HOSTNAME_OVERRIDE.\nSee `lb-agent <COMMAND> --help`.")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to log.
    #[command(flatten)]
    pub logging: LoggingArgs,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this node: follow Services and endpoints, keep the kernel's tables true
    #[command(help_template = TEMPLATE, override_usage = RUN_USAGE, after_help = RUN_AFTER)]
    Run(Box<RunArgs>),
    /// Remove every program, link and map that lb-agent made on this node, and nothing else; or what
    /// kube-proxy left
    ///
    /// Where kube-proxy has rules, it opens all new flows from now on, and those from outside that
    /// lb-agent carries are waited for.
    #[command(help_template = TEMPLATE)]
    Cleanup(CleanupArgs),
    /// Wait for a signal, or until a DaemonSet is ready on every node (and delete it)
    ///
    /// For the Helm chart's uninstall, whose image has neither a shell nor kubectl.
    #[command(hide = true)]
    Wait(WaitArgs),
    /// Print on one screen whether this node's load balancer works: agent, attachments, maps, drops
    #[command(help_template = TEMPLATE, after_help = status::AFTER)]
    Status(StatusArgs),
    /// Print the Services that the kernel's tables hold
    #[command(help_template = TEMPLATE)]
    Services(ServicesArgs),
    /// Print the endpoints that the kernel's tables hold, and what went there
    #[command(help_template = TEMPLATE)]
    Backends(BackendsArgs),
    /// Print the flows that the kernel is translating
    #[command(help_template = TEMPLATE)]
    Flows(FlowsArgs),
    /// Watch Services and their endpoints live: connections, packets, bytes and drops a second
    #[command(help_template = TEMPLATE, after_help = top::after())]
    Top(Box<TopArgs>),
    /// Print drops, refusals and new connections as they happen
    #[command(help_template = TEMPLATE, after_help = monitor::AFTER)]
    Monitor(MonitorArgs),
    /// Find out what on this node keeps Services from working, and what to do about it
    #[command(help_template = TEMPLATE, override_usage = doctor::DOCTOR_USAGE)]
    #[command(after_help = doctor::DOCTOR_AFTER)]
    Doctor(Box<DoctorArgs>),
    /// Say step by step what becomes of a connection: why does this not connect?
    #[command(help_template = TEMPLATE, after_help = trace::AFTER)]
    Trace(TraceArgs),
    /// Print a script that completes this command line in a shell
    #[command(help_template = TEMPLATE)]
    Completion {
        /// For this shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// How to log.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Logging")]
pub struct LoggingArgs {
    /// Form of the log lines on standard error
    #[arg(
        long,
        env = "LB_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        global = true
    )]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace; also per module: `info,lb_agent::node=debug`
    #[arg(long, env = "LB_LOG_LEVEL", value_name = "LEVEL", default_value = "info", global = true)]
    pub log_level: String,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where pins live.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Kernel")]
pub struct PinArgs {
    /// Mount point of a BPF file system; the agent pins its objects under <DIR>/lb
    #[arg(long, env = "LB_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
}

/// `lb-agent cleanup`.
#[derive(Debug, Clone, clap::Args)]
pub struct CleanupArgs {
    /// Remove what kube-proxy left instead (in every of its modes), once that carries no flow that
    /// would break. Beside a running lb-agent; stop kube-proxy first, it would make them again
    #[arg(long)]
    pub kube_proxy: bool,
    /// Wait at most this long for flows that would break, such as 10m
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    pub wait: humantime::Duration,
    /// Remove at once, whatever breaks
    #[arg(long)]
    pub force: bool,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// `lb-agent wait`.
#[derive(Debug, Clone, clap::Args)]
pub struct WaitArgs {
    /// This one
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub daemon_set: Option<String>,
    /// And delete it then: it has done its work
    #[arg(long, requires = "daemon_set")]
    pub delete: bool,
    /// As for `run`
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub master: Vec<String>,
}

/// `lb-agent run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Configuration file of kube-proxy, for what isn't given otherwise; see below
    #[arg(long, env = "LB_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where Services come from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// What this node is.
    #[command(flatten)]
    pub node: NodeArgs,
    /// How the kernel is used.
    #[command(flatten)]
    pub kernel: KernelArgs,
    /// Sizes of the tables.
    #[command(flatten)]
    pub sizes: SizeArgs,
    /// What the agent serves.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// Where Services come from.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Source of Services (default: the Pod's service account)")]
pub struct SourceArgs {
    /// Kubeconfig file with the address of the API server and credentials
    #[arg(long, env = "LB_KUBECONFIG", value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server, or several, the preferred one first: when one fails, the next is
    /// asked; overrides what the kubeconfig or the Pod's environment says. No ClusterIP: those work
    /// only once the agent runs
    #[arg(long, env = "LB_MASTER", value_name = "URL", conflicts_with = "manifests")]
    #[arg(value_delimiter = ',')]
    pub master: Vec<String>,
    /// Directory of Service, EndpointSlice, Endpoints and Node YAML to follow; no API server
    #[arg(long, env = "LB_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
}

/// What this node is.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Node")]
pub struct NodeArgs {
    /// Name of this node in the cluster [default: the host name in lower case]
    #[arg(long, env = "LB_HOSTNAME_OVERRIDE", value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Address ranges of the cluster's pods, at most one per family. No effect on traffic: pods are told
    /// from other sources by device and socket. `lb-agent doctor` compares Service addresses with them
    #[arg(long, env = "LB_CLUSTER_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<String>,
    /// Node addresses that serve NodePorts and health checks of Services: ranges, or `primary`
    /// [default: all of them]
    #[arg(long, env = "LB_NODEPORT_ADDRESSES", value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Devices on which clients and other nodes reach this node; `eth*` names all that begin with
    /// eth [default: all that have an address and aren't for pods or containers, and overlay devices]
    #[arg(long, env = "LB_DEVICES", value_name = "NAME", value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Devices behind which pods are, for --pod-path; `veth*` names all that begin with veth
    /// [default: pairs whose other end is in another network namespace]
    #[arg(long, env = "LB_POD_DEVICES", value_name = "NAME", value_delimiter = ',')]
    pub pod_devices: Vec<String>,
    /// Directories where container runtimes mount the network namespaces of pods; /proc stands for
    /// those of all processes that can be seen; empty for none
    #[arg(long, env = "LB_NETNS_DIRS", value_name = "DIR", value_delimiter = ',')]
    #[arg(default_value = "/run/netns,/var/run/netns,/run/docker/netns,/proc")]
    pub netns_dirs: Vec<String>,
}

/// How the kernel is used.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Kernel")]
pub struct KernelArgs {
    /// cgroup2 directory whose processes get ClusterIPs translated at connect, or a directory below
    /// which cgroup2 is mounted [default: the root of the cgroup2 mount]
    #[arg(long, env = "LB_CGROUP_ROOT", value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Where pods that connect to a Service are translated; SCTP always by packet
    #[arg(long, env = "LB_POD_PATH", value_name = "PATH", value_enum, default_value_t)]
    pub pod_path: PodPath,
    /// Endpoints see an address of the node in place of every client's, but for what external policy Local
    /// spares. Needs --pod-path packet: what a socket sends to an endpoint has the pod's address
    #[arg(long, env = "LB_MASQUERADE_ALL", value_name = "true|false", hide_possible_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: Option<bool>,
    /// Where packets from outside are translated first
    #[arg(long, env = "LB_XDP", value_name = "MODE", value_enum, default_value_t)]
    pub xdp: XdpMode,
    /// Source ports for clients whose endpoint is on another node [default: the widest range
    /// outside net.ipv4.ip_local_port_range and the NodePorts]
    #[arg(long, env = "LB_SNAT_PORT_RANGE", value_name = "FIRST-LAST")]
    pub snat_port_range: Option<String>,
    /// Count connections of Services and endpoints, and packets and bytes where packets are translated;
    /// none pass a program behind a socket that was translated at connect, so those aren't counted
    #[arg(long, env = "LB_TRAFFIC_COUNTERS", value_name = "on|off", value_enum)]
    #[arg(default_value_t = Switch::On, hide_possible_values = true)]
    pub traffic_counters: Switch,
    /// Metrics of traffic per Service port: for how many at most (on: 500), or off. The others are added up
    /// under one name
    #[arg(long, env = "LB_SERVICE_METRICS", value_name = "on|off|N", default_value = "on")]
    #[arg(help_heading = "Serving")]
    pub service_metrics: String,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is
    On,
    /// It isn't
    Off,
}

/// Where pods are translated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum PodPath {
    /// When a socket connects or sends: no cost per packet
    #[default]
    Socket,
    /// When a packet leaves the pod: also for pods with a kernel of their own (VMs, gVisor) and for
    /// sidecars of a service mesh
    Packet,
    /// Sockets as far as they can be seen, and the packets of all others
    Both,
}

/// Where XDP is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// Native XDP on the devices whose driver can forward with it, tc on the others
    #[default]
    Auto,
    /// Native XDP on every external device; refuse to start without
    Native,
    /// The kernel's generic XDP: slow, for tests
    Generic,
    /// tc only
    Off,
}

/// Sizes of the kernel's tables; fixed when the tables are made.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Table sizes")]
pub struct SizeArgs {
    /// Service ports, each family counted by itself
    #[arg(long, env = "LB_MAX_SERVICES", value_name = "N", default_value_t = 65_536)]
    pub max_services: u32,
    /// Endpoints of all Service ports; one that serves two ports counts twice
    #[arg(long, env = "LB_MAX_BACKENDS", value_name = "N", default_value_t = 262_144)]
    pub max_backends: u32,
    /// Places in endpoint lists and Maglev tables, all Services together
    #[arg(long, env = "LB_MAX_SLOTS", value_name = "N", default_value_t = 1_048_576)]
    pub max_slots: u32,
    /// Source ranges of load balancers; those of a Service count for each of its ports
    #[arg(long, env = "LB_MAX_SOURCE_RANGES", value_name = "N", default_value_t = 65_536)]
    pub max_source_ranges: u32,
    /// Flows from outside that are translated at one time
    #[arg(long, env = "LB_MAX_FLOWS", value_name = "N", default_value_t = 524_288)]
    pub max_flows: u32,
    /// Endpoints that are counted at one time, each on every CPU: those that this node's clients use
    #[arg(long, env = "LB_MAX_TRAFFIC", value_name = "N", default_value_t = 16_384)]
    pub max_traffic: u32,
}

/// What the agent serves.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Serving")]
pub struct ServingArgs {
    /// Address of /healthz and /livez; 0.0.0.0 and [::] both mean every address of both families;
    /// empty for none [default: 0.0.0.0:10256]
    #[arg(long, env = "LB_HEALTHZ_BIND_ADDRESS", value_name = "IP[:PORT]")]
    pub healthz_bind_address: Option<String>,
    /// Address of /metrics and /proxyMode, likewise; empty for none [default: 127.0.0.1:10249]
    #[arg(long, env = "LB_METRICS_BIND_ADDRESS", value_name = "IP[:PORT]")]
    pub metrics_bind_address: Option<String>,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table with the columns that matter most
    #[default]
    Table,
    /// A table with all columns
    Wide,
    /// One JSON array
    Json,
    /// The same as YAML
    Yaml,
}

/// Transport protocol as a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProtocolArg {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl From<ProtocolArg> for Protocol {
    fn from(protocol: ProtocolArg) -> Self {
        match protocol {
            ProtocolArg::Tcp => Self::Tcp,
            ProtocolArg::Udp => Self::Udp,
            ProtocolArg::Sctp => Self::Sctp,
        }
    }
}
