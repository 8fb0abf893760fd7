//! Changes endpoints while requests run, and counts what was lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use lb_lab::{Dual, Family, Load, Peer, Request, Transport};

use super::board::{Board, expect};
use super::stage::Stage;

/// How often the backend goes and comes.
const ROUNDS: usize = 3;
/// A backend without an answer for this long has left (its workers send about a thousand
/// requests a second).
const QUIET: Duration = Duration::from_millis(60);
/// Longest wait for a change to be seen.
const PATIENCE: Duration = Duration::from_secs(5);

/// One backend of one Service, taken away and given back under load.
pub(super) struct Change<'a> {
    /// Host that asks.
    pub from: &'a str,
    /// What is asked.
    pub to: Dual,
    /// Port, for both transports.
    pub port: u16,
    /// The Service's manifest.
    pub manifest: &'a str,
    /// The backend that goes and comes.
    pub backend: &'a str,
}

struct Running {
    claim: String,
    load: u64,
}

impl Change<'_> {
    /// Runs it; one check per kind of request and one for the change itself.
    pub fn run(&self, stage: &Stage, board: &mut Board) -> Result<()> {
        let peer = stage.lab().peer(self.from)?;
        let mut running = Vec::new();
        for family in Family::BOTH {
            for transport in Transport::BOTH {
                let request = Request::new(transport, self.to.of(family), self.port);
                let claim = format!("{transport} {} → {}", self.from, request.to);
                running.push(Running { claim, load: peer.start_load(Load::new(request))? });
            }
        }
        let changes = self.rounds(stage, &peer, &running)?;
        let mut total = BTreeMap::<String, u64>::new();
        let mut checks = Vec::new();
        for Running { claim, load } in running {
            let report = peer.stop_load(load)?;
            let claim = format!("{claim}  {} requests, {} lost", report.ok, report.failed);
            let lost = || super::probe::counts(&report.errors);
            checks.push((claim, expect(report.failed == 0 && report.ok > 0, lost)));
            for (server, count) in report.servers {
                *total.entry(server).or_default() += count;
            }
        }
        board.bars(format!("answers to {} meanwhile", self.from), total);
        for (claim, verdict) in checks {
            board.check(claim, verdict);
        }
        board.check(format!("{} left and came back {ROUNDS} times", self.backend), changes);
        Ok(())
    }

    fn rounds(
        &self,
        stage: &Stage,
        peer: &Arc<Peer>,
        running: &[Running],
    ) -> Result<Result<(), String>> {
        let answers = || -> Result<u64> {
            running.iter().try_fold(0, |sum, running| {
                let report = peer.read_load(running.load)?;
                Ok(sum + report.servers.get(self.backend).copied().unwrap_or(0))
            })
        };
        for round in 1..=ROUNDS {
            for present in [true, false, true] {
                stage.edit(self.manifest, |text| set_present(text, self.backend, present))?;
                if !settles(present, answers)? {
                    let state = if present { "gets no" } else { "still gets" };
                    return Ok(Err(format!(
                        "round {round}: {} {state} requests {PATIENCE:?} after the change",
                        self.backend
                    )));
                }
            }
        }
        Ok(Ok(()))
    }
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
