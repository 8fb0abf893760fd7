//! `lb-agent monitor` as it is typed.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};

use clap::ValueEnum;

use super::{PinArgs, ProtocolArg};

/// The end of its help.
pub const AFTER: &str = "\
What is shown:
  A connection where an endpoint is chosen for it: at the socket's call, or at the packet that opens a
  flow. A refusal where nobody listens (no_endpoints, unknown_port), a drop for every other reason that
  `lb-agent status` counts. Packets of connections that are established are no events. A socket that
  isn't bound yet has no port of its own to be shown.

  What doesn't match stays in the kernel. One command can watch a node at a time; when it ends, however
  it does, nothing is left behind. The agent needn't run.

Exit status:
  0  ended by --count, --timeout, a signal, or its reader
  1  could not watch: the message says why
  2  the command line could not be understood

Examples:
  lb-agent monitor                                  everything, until Ctrl-C
  lb-agent monitor --drops --refusals -n default    what Services of a namespace don't serve
  lb-agent monitor --address 10.244.1.7 -o wide     what one pod does, or is asked
  lb-agent monitor --connections --count 10 --timeout 1m -o json
";

/// `lb-agent monitor`.
#[derive(Debug, Clone, clap::Args)]
pub struct MonitorArgs {
    /// Show what is dropped [default without these three: everything]
    #[arg(long)]
    pub drops: bool,
    /// Show what is refused
    #[arg(long)]
    pub refusals: bool,
    /// Show new connections, and first datagrams
    #[arg(long)]
    pub connections: bool,
    /// Only events of this Service: NAME, or NAMESPACE/NAME
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only events of Services of this namespace
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only events with this address as client, frontend or backend
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Only events with this port as that of the frontend or the backend
    #[arg(long, value_name = "PORT")]
    pub port: Option<NonZeroU16>,
    /// Only this protocol
    #[arg(long, value_enum)]
    pub protocol: Option<ProtocolArg>,
    /// Events in a second on each CPU at most; how many there were besides is said on standard error
    #[arg(long, value_name = "N", default_value = "100")]
    pub rate: NonZeroU32,
    /// End after so many events
    #[arg(long, value_name = "N")]
    pub count: Option<NonZeroU64>,
    /// End after this time, such as 30s
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<humantime::Duration>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: MonitorFormat,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// How events are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum MonitorFormat {
    /// One line for each, with the columns that matter most
    #[default]
    Table,
    /// One line for each, with all columns
    Wide,
    /// One JSON object a line
    Json,
    /// One YAML document for each
    Yaml,
}
