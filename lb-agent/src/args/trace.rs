//! `lb-agent trace` as it is typed.

use clap::ValueEnum;

use super::{PinArgs, ProtocolArg};

/// The end of its help.
pub const AFTER: &str = "\
How it answers:
  The datapath's own decisions run over the pinned tables, in this process: nothing is sent, and the
  agent needn't run. Where packets are translated (clients outside; pods with --pod-path packet; SCTP),
  the loaded program is run on such a packet too (BPF_PROG_TEST_RUN), and both answers are compared.
  Socket hooks can't be run so; theirs is the tables' answer alone.

  A run of the program leaves one trace: its packet is counted, in lb_agent_drops_total or among what
  went to the endpoint. The flow that it opens is removed again, and what is remembered for session
  affinity is put back; it isn't run where a flow is in use. --no-run leaves it out.

Exit status:
  0  answered, whatever the answer
  1  could not look: the message says why
  2  the command line could not be understood

Examples:
  lb-agent trace --to default/web                         from this node
  lb-agent trace --to default/web:http --from 10.244.1.7  from a pod of this node
  lb-agent trace --to 192.0.2.10:30080 --from 198.51.100.7
  lb-agent trace --to '[fd00:96::a]:53' --protocol udp -o json
";

/// `lb-agent trace`.
#[derive(Debug, Clone, clap::Args)]
pub struct TraceArgs {
    /// Who connects: `node`, the address of a pod of this node (`kubectl get pod -o wide`), or any other
    /// address, with or without a port
    #[arg(long, value_name = "node|IP[:PORT]", default_value = "node")]
    pub from: String,
    /// Where to: an address and port, or a Service, with the name or number of its port if it has several
    #[arg(long, value_name = "IP:PORT|NAMESPACE/NAME[:PORT]")]
    pub to: String,
    /// Transport protocol
    #[arg(long, value_enum, default_value = "tcp")]
    pub protocol: ProtocolArg,
    /// Which of its two ways to explain for a pod of this node, where the agent runs with
    /// --pod-path both [default: socket]
    #[arg(long, value_name = "PATH", value_enum)]
    pub pod_path: Option<TracePath>,
    /// Don't run the loaded programs
    #[arg(long)]
    pub no_run: bool,
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: TraceFormat,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// Where a pod's connection is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TracePath {
    /// At the calls of its socket
    Socket,
    /// At the packets that it sends: for pods whose sockets the hooks can't see
    Packet,
}

/// How an explanation is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum TraceFormat {
    /// Step by step, for people
    #[default]
    Text,
    /// One JSON object
    Json,
    /// The same as YAML
    Yaml,
}
