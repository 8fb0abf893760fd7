//! What `lb-agent doctor` says on a node of a stage, and what it must say.

use std::process::Output;
use std::time::Instant;

use lb_lab::{Lab, agent_binary};
use serde_json::Value;

use crate::stage::{PATIENCE, Stage};

/// Where things are broken.
pub const NODE: &str = "node-a";

/// What is due: severity, check, and words of the finding.
pub type Due<'a> = (&'a str, &'a str, &'a str);

/// One report.
#[derive(Debug)]
pub struct Report {
    status: Option<i32>,
    findings: Vec<Value>,
}

impl Report {
    /// Of output on standard output as JSON.
    pub fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let findings = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr))
        });
        Self { status: output.status.code(), findings }
    }

    /// With these flags on the node of a lab.
    pub fn with(lab: &Lab, flags: &[&str]) -> Self {
        let mut command = lab.command(NODE, agent_binary().unwrap()).unwrap();
        command.args(["doctor", "-o", "json"]).args(flags);
        if !flags.contains(&"--bpffs") {
            command.arg("--bpffs").arg(lab.bpffs(NODE));
        }
        Self::of(&command.output().unwrap())
    }

    /// Without flags about Services: they are the running agent's.
    pub fn of_running(stage: &Stage) -> Self {
        Self::with(stage.lab(), &[])
    }

    /// With the flags that the agents of a stage have.
    pub fn with_flags(stage: &Stage, more: &[&str]) -> Self {
        let manifests = stage.manifests().display().to_string();
        let cgroup = stage.lab().cgroup(NODE).unwrap().display().to_string();
        let flags = ["--manifests", &manifests, "--cgroup-root", &cgroup, "--devices", "eth0"];
        let flags = [&flags[..], &["--hostname-override", NODE], more].concat();
        Self::with(stage.lab(), &flags)
    }

    /// The findings of a check.
    pub fn of_check(&self, check: &str) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["check"] == check).collect()
    }

    /// What is worse than info.
    fn bad(&self) -> Vec<&Value> {
        let is_bad = |finding: &&Value| ["warning", "error"].contains(&text(finding, "severity"));
        self.findings.iter().filter(is_bad).collect()
    }

    /// Whether these are all that is worse than info.
    pub fn is(&self, due: &[Due]) -> bool {
        let bad = self.bad();
        bad.len() == due.len() && bad.iter().all(|finding| due.iter().any(|due| is(finding, due)))
    }

    /// Each of these is found, each with a remedy, and nothing else that is worse than info; the exit
    /// status is that of the worst.
    pub fn expect(&self, what: &str, due: &[Due]) {
        let bad = self.bad();
        for due in due {
            assert!(bad.iter().any(|it| is(it, due)), "{what}: no {due:?} in {bad:#?}");
        }
        for finding in &bad {
            assert!(due.iter().any(|due| is(finding, due)), "{what}: {finding:#} is not due");
            assert_ne!(finding["remedy"], "", "{what}: {finding:#}");
        }
        let worst = |severity| due.iter().any(|due| due.0 == severity);
        let status = if worst("error") { 4 } else { 3 * i32::from(worst("warning")) };
        assert_eq!(self.status, Some(status), "{what}: {bad:#?}");
    }

    /// The command in the remedy of the first finding about `check` that is worse than info.
    pub fn command(&self, check: &str) -> Vec<String> {
        let bad = self.bad();
        let finding = bad.iter().find(|finding| text(finding, "check") == check).unwrap();
        let remedy = text(finding, "remedy");
        let starts = ["sysctl -w ", "ip addr ", "lb-agent "].iter();
        let start = starts.filter_map(|program| remedy.find(program)).min();
        let start = start.unwrap_or_else(|| panic!("no command: {remedy}"));
        let command = remedy[start..].split(['`', ';', '(']).next().unwrap();
        command.split_whitespace().map(str::to_owned).collect()
    }
}

pub fn is(finding: &Value, (severity, check, words): &Due) -> bool {
    text(finding, "severity") == *severity
        && text(finding, "check") == *check
        && text(finding, "finding").contains(words)
}

fn text<'a>(finding: &'a Value, field: &str) -> &'a str {
    finding[field].as_str().unwrap()
}

/// Breaks something, expects what is due, mends it, and expects a node that is in order.
pub fn broken(
    stage: &Stage,
    what: &str,
    breaks: impl FnOnce(),
    due: &[Due],
    mends: impl FnOnce(&Report),
) {
    breaks();
    let report = Report::of_running(stage);
    report.expect(what, due);
    mends(&report);
    in_order(stage, &format!("mended: {what}"));
}

/// Nothing is wrong, or won't be as soon as the agent has written what changed.
pub fn in_order(stage: &Stage, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    let mut report = Report::of_running(stage);
    while report.status != Some(0) && Instant::now() < deadline {
        report = Report::of_running(stage);
    }
    report.expect(what, &[]);
}

/// Does what the report says to do about `check`.
pub fn obey(stage: &Stage, report: &Report, check: &str) {
    let command = report.command(check);
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    match words.split_first() {
        Some((&"lb-agent", arguments)) => drop(stage.agent_says(NODE, arguments)),
        _ => drop(stage.run(NODE, &words)),
    }
}
