//! What the first line says of the node: the words of `lb-agent status`, and the number of flows.

use std::time::Duration;

use crate::args::TopArgs;
use crate::bpf::BpfError;
use crate::bpf::read::Reader;
use crate::inspect::status::State;
use crate::status;

/// Pause between two looks. An agent that doesn't answer takes seconds to be found out, and flows are
/// counted with a pass over their tables: 100,000 in 60 ms.
pub const PAUSE: Duration = Duration::from_secs(5);

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, as the agent has it.
    pub name: String,
    /// All in all; `None` when it can't be told.
    pub state: Option<State>,
    /// What is wrong.
    pub problems: Vec<String>,
    /// Flows that packets from outside opened.
    pub flows: Option<u64>,
}

impl Node {
    /// Looks. Takes seconds when the agent hangs.
    pub fn look(args: &TopArgs) -> Self {
        let hostname = || {
            let name = nix::unistd::gethostname().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        match status::look(&args.serving, &args.pins) {
            Ok(status) => Self {
                name: status.agent.node.unwrap_or_else(hostname),
                state: Some(status.state),
                problems: status.problems,
                flows: flows(args).ok(),
            },
            Err(error) => Self {
                name: hostname(),
                state: None,
                problems: vec![error.to_string()],
                flows: None,
            },
        }
    }

    /// Looks again and again, until nobody listens.
    pub fn follow(args: &TopArgs, mut tell: impl FnMut(Self) -> bool) {
        while tell(Self::look(args)) {
            std::thread::sleep(PAUSE);
        }
    }

    /// The state in a word.
    pub fn state_word(&self) -> &'static str {
        match self.state {
            Some(State::Ok) => "ok",
            Some(State::Degraded) => "degraded",
            Some(State::Absent) => "absent",
            None => "unknown",
        }
    }
}

fn flows(args: &TopArgs) -> Result<u64, BpfError> {
    Reader::open(&args.pins.bpffs)?.flow_count()
}
