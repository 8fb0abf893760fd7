//! Changes something while requests run, and counts what was lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_lab::{Dual, Family, Peer, Request, Transport};

use super::board::{Board, expect};
use super::probe::counts;
use super::stage::Stage;

/// How often the backend goes and comes.
const ROUNDS: usize = 3;
/// A backend without an answer for this long has left (its workers send about a thousand
/// requests a second).
const QUIET: Duration = Duration::from_millis(60);
/// Longest wait for a change to be seen.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests that go on while something changes.
pub(super) struct Load<'a> {
    /// Host that asks.
    pub from: &'a str,
    /// What is asked.
    pub to: Dual,
    /// Port, for both transports.
    pub port: u16,
}

/// What happens meanwhile.
pub(super) enum Event<'a> {
    /// One endpoint goes and comes back, several times.
    Endpoint {
        /// The Service's manifest.
        manifest: &'a str,
        /// The backend's name.
        backend: &'a str,
    },
    /// The agent of a node is replaced, as by an update.
    AgentRestart {
        /// The node.
        node: &'a str,
    },
}

struct Running {
    claim: String,
    load: u64,
}

impl Load<'_> {
    /// Runs it; one check per kind of request and one for the change itself.
    pub fn during(&self, event: &Event<'_>, stage: &Stage, board: &mut Board) -> Result<()> {
        let peer = stage.lab().peer(self.from)?;
        let mut running = Vec::new();
        for family in Family::BOTH {
            for transport in Transport::BOTH {
                let request = Request::new(transport, self.to.of(family), self.port);
                let claim = format!("{transport} {} → {}", self.from, request.to);
                let load = peer.start_load(lb_lab::Load::new(request))?;
                running.push(Running { claim, load });
            }
        }
        let (claim, verdict) = match event {
            Event::Endpoint { manifest, backend } => (
                format!("{backend} left and came back {ROUNDS} times"),
                rounds(stage, &peer, &running, manifest, backend)?,
            ),
            Event::AgentRestart { node } => (
                format!("the agent of {node} ended and another took over"),
                stage.restart_agent(node).map_err(|error| format!("{error:#}")),
            ),
        };
        let mut total = BTreeMap::<String, u64>::new();
        let mut checks = Vec::new();
        for Running { claim, load } in running {
            let report = peer.stop_load(load)?;
            let claim = format!("{claim}  {} requests, {} lost", report.ok, report.lost());
            let lost = || counts(&report.errors);
            checks.push((claim, expect(report.lost() == 0 && report.ok > 0, lost)));
            for (server, count) in report.servers {
                *total.entry(server).or_default() += count;
            }
        }
        board.bars(format!("answers to {} meanwhile", self.from), total);
        for (claim, verdict) in checks {
            board.check(claim, verdict);
        }
        board.check(claim, verdict);
        Ok(())
    }
}

/// Takes the backend away and gives it back; inside, whether each change was seen in the answers.
fn rounds(
    stage: &Stage,
    peer: &Arc<Peer>,
    running: &[Running],
    manifest: &str,
    backend: &str,
) -> Result<Result<(), String>> {
    let answers = || -> Result<u64> {
        running.iter().try_fold(0, |sum, running| {
            let report = peer.read_load(running.load)?;
            Ok(sum + report.servers.get(backend).copied().unwrap_or(0))
        })
    };
    for round in 1..=ROUNDS {
        for present in [true, false, true] {
            stage.edit(manifest, |text| set_present(text, backend, present))?;
            if !settles(present, answers)? {
                let state = if present { "gets no" } else { "still gets" };
                return Ok(Err(format!(
                    "round {round}: {backend} {state} requests {PATIENCE:?} after the change"
                )));
            }
        }
    }
    Ok(Ok(()))
}

/// Waits until the backend answers (`present`) or has stopped to; whether it did.
fn settles(present: bool, answers: impl Fn() -> Result<u64>) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let before = answers()?;
        std::thread::sleep(QUIET);
        if (answers()? > before) == present {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The examples name an endpoint's pod in a comment at the end of its line: the line becomes a
/// comment as a whole, and back.
fn set_present(text: &str, backend: &str, present: bool) -> String {
    let mark = format!("# {backend}");
    let mut changed = String::with_capacity(text.len());
    for line in text.lines() {
        let bare = line.strip_prefix("#- ").map(|rest| format!("- {rest}"));
        match (line.ends_with(&mark), present, bare) {
            (true, true, Some(bare)) => changed.push_str(&bare),
            (true, false, None) => {
                changed.push('#');
                changed.push_str(line);
            }
            (_, _, _) => changed.push_str(line),
        }
        changed.push('\n');
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::set_present;

    #[test]
    fn an_endpoint_becomes_a_comment_and_comes_back() {
        let with = "endpoints:\n- {addresses: [1]}   # pod-a1\n- {addresses: [2]}   # pod-b1\n";
        let without = "endpoints:\n- {addresses: [1]}   # pod-a1\n#- {addresses: [2]}   # pod-b1\n";
        assert_eq!(set_present(with, "pod-b1", false), without);
        assert_eq!(set_present(without, "pod-b1", false), without);
        assert_eq!(set_present(without, "pod-b1", true), with);
        assert_eq!(set_present(with, "pod-b1", true), with);
    }
}
