//! `lb-agent status` as it is typed.

use clap::ValueEnum;

use super::{PinArgs, ServingArgs};

/// What follows the help.
pub const AFTER: &str = "\
Works from the pinned maps and links, while the agent is down too; what only the agent knows is asked
at the addresses that it serves: give those that it runs with.

Exit status:
  0  an agent runs, is healthy, follows the cluster and is attached to everything
  1  the state could not be read: the message names the call and the remedy
  2  the command line could not be understood
  3  something is wrong: the lines under PROBLEM say what
  4  there is no datapath on this node, and no agent
";

/// `lb-agent status`.
#[derive(Debug, Clone, clap::Args)]
pub struct StatusArgs {
    /// Form of the output
    #[arg(long, short, value_enum, default_value_t)]
    pub output: StatusFormat,
    /// Where the agent is asked.
    #[command(flatten)]
    pub serving: ServingArgs,
    /// Where pins live.
    #[command(flatten)]
    pub pins: PinArgs,
}

/// How a status is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum StatusFormat {
    /// One screen
    #[default]
    Table,
    /// One JSON object
    Json,
    /// The same as YAML
    Yaml,
}
