//! The commands that list what the kernel's tables hold.

use std::net::IpAddr;

use clap::ValueEnum;

use super::{OutputFormat, PinArgs, ProtocolArg};

/// What is counted where, for the help of the lists.
pub(super) const COUNTED: &str = "\
Connections are counted where an endpoint is chosen, whether or not it answers. Packets and bytes are
counted where packets are translated: at tc, XDP and, with --pod-path packet, on the devices of pods.
Of connections that were translated at their socket no packet passes a program: a dash (null in JSON
and YAML) stands where only those were seen. See --traffic-counters and --max-traffic of `run`.";

/// Which Services are shown.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServiceFilter {
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
}

/// `lb-agent services`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = COUNTED)]
pub struct ServicesArgs {
    /// Which Services.
    #[command(flatten)]
    pub filter: ServiceFilter,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// `lb-agent backends`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = COUNTED)]
pub struct BackendsArgs {
    /// Only endpoints of this Service: NAME, or NAMESPACE/NAME
    pub service: Option<String>,
    /// Only endpoints of Services of this namespace
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only endpoints with this address
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Only this protocol
    #[arg(long, value_enum)]
    pub protocol: Option<ProtocolArg>,
    /// Only endpoints in this state
    #[arg(long, value_enum)]
    pub state: Option<BackendState>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// State of an endpoint as a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendState {
    /// New connections may be sent to it
    Active,
    /// It keeps the connections that it has and gets no new ones: it terminates, or hints send this
    /// node's clients elsewhere
    Terminating,
}

/// `lb-agent flows`.
#[derive(Debug, Clone, clap::Args)]
pub struct FlowsArgs {
    /// Only flows of this Service: NAME, or NAMESPACE/NAME
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only flows of Services of this namespace
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only flows with this address as client, frontend or backend
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Only this protocol
    #[arg(long, value_enum)]
    pub protocol: Option<ProtocolArg>,
    /// Only flows in this state
    #[arg(long, value_enum)]
    pub state: Option<FlowState>,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: OutputFormat,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// State of a flow as a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FlowState {
    /// Nothing came back yet
    Unanswered,
    /// TCP or SCTP, and the client hasn't answered the backend's answer
    HalfOpen,
    /// TCP, both sides have answered each other
    Established,
    /// UDP or SCTP, both directions seen
    Answered,
    /// A FIN or an SCTP shutdown was seen
    Closing,
    /// A reset was seen
    Reset,
}

impl FlowState {
    /// As `lb-agent flows` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unanswered => "unanswered",
            Self::HalfOpen => "half-open",
            Self::Established => "established",
            Self::Answered => "answered",
            Self::Closing => "closing",
            Self::Reset => "reset",
        }
    }
}
