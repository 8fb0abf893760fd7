//! The command line as it is typed: names, defaults, environment variables and help text.
//!
//! This module knows what can be written, not whether it makes sense: [`crate::config`] judges
//! the values. Flags carry kube-proxy's names where the meaning is the same
//! (<https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/>).

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::cluster::snapshot::Protocol;

const TEMPLATE: &str = "\
NAME
  {bin} - {about}

SYNOPSIS
  {usage}

{all-args}{after-help}";

const RUN_USAGE: &str = "\
lb-agent run [--kubeconfig FILE [--master URL] | --manifests DIR]
      [--hostname-override NAME] [--cluster-cidr CIDR[,CIDR]]
      [--nodeport-addresses primary|CIDR[,CIDR]...] [--devices NAME[,NAME]...]
      [--netns-dirs DIR[,DIR]...]
      [--xdp auto|native|generic|off] [--cgroup-root DIR] [--bpffs DIR]
      [--snat-port-range FIRST-LAST] [--max-services N] [--max-backends N]
      [--max-slots N] [--max-source-ranges N] [--max-flows N] [--healthz-bind-address IP[:PORT]]
      [--metrics-bind-address IP[:PORT]] [--log-format FORMAT] [--log-level LEVEL]";

const RUN_AFTER: &str = "\
Signals:
  SIGTERM and SIGINT stop the agent and leave the datapath in the kernel, pinned: Services go on
  working, and the next start adopts them without losing a packet. `lb-agent cleanup` removes it.

Exit status:
  0  stopped by a signal
  1  could not start: the message names the flag, file or kernel feature and the remedy
  2  the command line could not be understood

Examples:
  lb-agent run                                  in a Pod, with the Pod's service account
  lb-agent run --kubeconfig /etc/lb/kubeconfig --hostname-override node-1
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
    /// Remove every program, link and map that lb-agent made on this node, and nothing else
    #[command(help_template = TEMPLATE)]
    Cleanup(PinArgs),
    /// Mount a BPF file system where `run` pins its objects, unless one is there
    ///
    /// For the init container of the DaemonSet: `run` has no right to mount on the node.
    #[command(help_template = TEMPLATE)]
    MountBpffs(PinArgs),
    /// Print the Services that the kernel's tables hold
    #[command(help_template = TEMPLATE)]
    Services(ServicesArgs),
    /// Print the flows that the kernel is translating
    #[command(help_template = TEMPLATE)]
    Flows(FlowsArgs),
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

/// `lb-agent run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
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
    /// Address of the API server; overrides what the kubeconfig or the Pod's environment says
    #[arg(long, env = "LB_MASTER", value_name = "URL", conflicts_with = "manifests")]
    pub master: Option<String>,
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
    /// Address ranges of the cluster's pods, at most one per family
    #[arg(long, env = "LB_CLUSTER_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<String>,
    /// Node addresses that serve NodePorts and health checks of Services: ranges, or `primary`
    /// [default: all of them]
    #[arg(long, env = "LB_NODEPORT_ADDRESSES", value_name = "CIDR", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Devices on which clients and other nodes reach this node; `eth*` names all that begin with
    /// eth [default: those of the default routes, and overlay devices]
    #[arg(long, env = "LB_DEVICES", value_name = "NAME", value_delimiter = ',')]
    pub devices: Vec<String>,
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
    /// Where packets from outside are translated first
    #[arg(long, env = "LB_XDP", value_name = "MODE", value_enum, default_value_t)]
    pub xdp: XdpMode,
    /// Source ports for clients whose endpoint is on another node [default: the widest range
    /// outside net.ipv4.ip_local_port_range and the NodePorts]
    #[arg(long, env = "LB_SNAT_PORT_RANGE", value_name = "FIRST-LAST")]
    pub snat_port_range: Option<String>,
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
}

/// What the agent serves.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Serving")]
pub struct ServingArgs {
    /// Address of /healthz and /livez; 0.0.0.0 and [::] both mean every address of both families;
    /// empty for none
    #[arg(long, env = "LB_HEALTHZ_BIND_ADDRESS", value_name = "IP[:PORT]")]
    #[arg(default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: String,
    /// Address of /metrics and /proxyMode, likewise; empty for none
    #[arg(long, env = "LB_METRICS_BIND_ADDRESS", value_name = "IP[:PORT]")]
    #[arg(default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: String,
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

/// `lb-agent services`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServicesArgs {
    /// Only this Service: NAME, or NAMESPACE/NAME
    pub service: Option<String>,
    /// Only Services of this namespace
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only Services that this address is a frontend or a backend of
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Only this protocol
    #[arg(long, value_enum)]
    pub protocol: Option<ProtocolArg>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// `lb-agent flows`.
#[derive(Debug, Clone, clap::Args)]
pub struct FlowsArgs {
    /// Only flows of this Service: NAME, or NAMESPACE/NAME
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only flows with this address as client, frontend or backend
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Only this protocol
    #[arg(long, value_enum)]
    pub protocol: Option<ProtocolArg>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}
