//! Which of Kubernetes' own tests run, and how they ended.

use super::Proxy;
use super::cluster::Cluster;
use super::programs::Programs;
use crate::process;
use crate::progress::Step;
use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde::Deserialize;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Tests that no service proxy can make pass here.
const EXCLUDED: &str = include_str!("../../../tests/e2e/excluded.txt");
/// The few that tell most.
const SHORT: &str = include_str!("../../../tests/e2e/short.txt");
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// The names of the tests that `cargo xtask e2e` runs; `short` leaves those of short.txt.
///
/// # Errors
/// When e2e.test can't list its tests, or excluded.txt or short.txt is wrong.
pub fn selection(programs: &Programs, focus: &Regex, short: bool) -> Result<Vec<String>> {
    let list = process::output(Command::new(programs.path("e2e.test")?).arg("--list-tests"))?;
    let all: Vec<&str> = list.lines().filter_map(listed).collect();
    let excluded = excluded(EXCLUDED)?;
    for Excluded { name, .. } in &excluded {
        let known = all.iter().any(|test| test == name);
        ensure!(known, "tests/e2e/excluded.txt names {name:?}, which this release doesn't have");
    }
    let left_out = |name: &str| excluded.iter().any(|excluded| excluded.name == name);
    let wanted = |name: &str| is_wanted(name) && !left_out(name);
    for name in shortened(SHORT) {
        let known = all.contains(&name) && wanted(name);
        ensure!(known, "tests/e2e/short.txt names {name:?}, which the selection doesn't have");
    }
    let chosen = all.iter().filter(|name| {
        wanted(name) && focus.is_match(name) && (!short || shortened(SHORT).any(|it| it == **name))
    });
    Ok(chosen.map(|name| (*name).to_owned()).collect())
}

/// `    file.go:12: [sig-network] …` → the test's name.
fn listed(line: &str) -> Option<&str> {
    line.find("[sig-").and_then(|start| line.get(start..)).map(str::trim_end)
}

/// What concerns a service proxy, and what every cluster must do.
fn is_wanted(name: &str) -> bool {
    let unusual = ["[Feature:", "[Serial]", "[Disruptive]"];
    let ours = name.starts_with("[sig-network] Services ")
        // Datagrams longer than a packet, through a Service.
        || name.contains(" Services should be able to handle large requests: ")
        || name.starts_with("[sig-network] DNS ")
        || (name.starts_with("[sig-network]") && name.contains("[Conformance]"));
    ours && !unusual.iter().any(|tag| name.contains(tag))
}

/// The names of the short list.
fn shortened(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// A test of the list, and why it is there.
#[derive(Debug, PartialEq, Eq)]
struct Excluded {
    name: String,
    reason: String,
}

/// Reads the list: names begin their line, the reason follows, indented.
fn excluded(text: &str) -> Result<Vec<Excluded>> {
    let mut list: Vec<Excluded> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match (line.strip_prefix(' '), list.last_mut()) {
            (None, _) => list.push(Excluded { name: line.to_owned(), reason: String::new() }),
            (Some(reason), Some(last)) => last.reason.push_str(reason.trim()),
            (Some(_), None) => bail!("tests/e2e/excluded.txt begins with a reason: {line:?}"),
        }
    }
    match list.iter().find(|excluded| excluded.reason.is_empty()) {
        Some(bare) => bail!("tests/e2e/excluded.txt gives no reason for {:?}", bare.name),
        None => Ok(list),
    }
}

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub name: String,
    pub ending: Ending,
    pub seconds: u64,
}

/// As the test framework counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Passed,
    /// The test found that it doesn't apply to this cluster.
    Skipped,
    /// With what it said.
    Failed(String),
}

/// Runs `tests` against the cluster, some at a time; logs and reports go to `folder`.
///
/// # Errors
/// When the tests ended without a report: the log is named.
pub fn run(
    cluster: &Cluster,
    programs: &Programs,
    tests: &[String],
    processes: u32,
    folder: &Path,
    step: &mut Step,
) -> Result<Vec<Outcome>> {
    if tests.is_empty() {
        return Ok(Vec::new());
    }
    let log = folder.join("e2e.log");
    let report = folder.join("report.json");
    let _ = fs::remove_file(&report);
    let names: Vec<_> = tests.iter().map(|name| regex::escape(name)).collect();
    let mut ginkgo = cluster.command(&programs.path("ginkgo")?);
    ginkgo.args([
        "run",
        "--no-color",
        "--silence-skips",
        "--timeout=4h",
        &format!("--procs={processes}"),
    ]);
    // Matched against the name with the suite's before it.
    ginkgo.arg(format!("--focus=({})$", names.join("|")));
    ginkgo.args(["--json-report=report.json", "--junit-report=junit.xml"]);
    ginkgo.arg(format!("--output-dir={}", folder.display()));
    ginkgo.arg(programs.path("e2e.test")?).arg("--");
    ginkgo.arg(format!("--kubeconfig={}", cluster.kubeconfig().display()));
    // No cloud: tests that need one skip themselves.
    ginkgo.args(["--provider=skeleton", &format!("--num-nodes={}", Cluster::WORKERS)]);
    let ending = process::run_logged(&mut ginkgo, &log, LIMIT, step)?;
    let text = fs::read_to_string(&report).with_context(|| {
        format!("the tests ended without a report ({ending}): see {}", log.display())
    })?;
    let outcomes = read(&text)?;
    for test in tests {
        let ran = outcomes.iter().any(|outcome| outcome.name == *test);
        ensure!(ran, "{test:?} did not run ({ending}): see {}", log.display());
    }
    Ok(outcomes)
}

/// The parts of Ginkgo's report that matter here; only what ran stands in the result.
/// <https://pkg.go.dev/github.com/onsi/ginkgo/v2/types#Report>
fn read(report: &str) -> Result<Vec<Outcome>> {
    let suites: Vec<Suite> = serde_json::from_str(report).context("read Ginkgo's report")?;
    let mut outcomes = Vec::new();
    for spec in suites.into_iter().flat_map(|suite| suite.specs) {
        let message = spec.failure.map(|failure| failure.message).unwrap_or_default();
        let ending = match spec.state.as_str() {
            "passed" => Ending::Passed,
            // Left out by the focus, without a word.
            "pending" => continue,
            "skipped" if message.is_empty() => continue,
            "skipped" => Ending::Skipped,
            other => Ending::Failed(format!("{other}: {message}")),
        };
        let is_test = spec.kind == "It";
        // What surrounds the tests is worth a line only when it fails.
        if !is_test && !matches!(ending, Ending::Failed(_)) {
            continue;
        }
        let mut words = spec.containers.unwrap_or_default();
        words.push(if is_test { spec.text } else { format!("{} {}", spec.kind, spec.text) });
        let seconds = Duration::from_nanos(spec.nanoseconds).as_secs();
        outcomes.push(Outcome { name: words.join(" "), ending, seconds });
    }
    outcomes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(outcomes)
}

#[derive(Deserialize)]
struct Suite {
    #[serde(rename = "SpecReports")]
    specs: Vec<Spec>,
}

#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "ContainerHierarchyTexts")]
    containers: Option<Vec<String>>,
    #[serde(rename = "LeafNodeText")]
    text: String,
    #[serde(rename = "LeafNodeType")]
    kind: String,
    #[serde(rename = "State")]
    state: String,
    #[serde(rename = "RunTime")]
    nanoseconds: u64,
    #[serde(rename = "Failure")]
    failure: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(rename = "Message")]
    message: String,
}

/// Numbers of tests by their ending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

/// Counts.
pub fn sum(outcomes: &[Outcome]) -> Sum {
    let mut sum = Sum::default();
    for outcome in outcomes {
        match outcome.ending {
            Ending::Passed => sum.passed += 1,
            Ending::Failed(_) => sum.failed += 1,
            Ending::Skipped => sum.skipped += 1,
        }
    }
    sum
}

/// A line for every test, one column for every proxy, then what the failed ones said.
pub fn table(results: &[(Proxy, Vec<Outcome>)]) -> String {
    let mut names: Vec<&str> =
        results.iter().flat_map(|(_, list)| list).map(|outcome| outcome.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut text = String::new();
    for (proxy, _) in results {
        text.push_str(&format!("{:>12} ", proxy.name()));
    }
    text.push('\n');
    for name in names {
        for (_, outcomes) in results {
            let found = outcomes.iter().find(|outcome| outcome.name == name);
            let cell = match found.map(|outcome| (&outcome.ending, outcome.seconds)) {
                Some((Ending::Passed, seconds)) => format!("ok {seconds:>4} s"),
                Some((Ending::Failed(_), seconds)) => format!("FAILED {seconds:>3} s"),
                Some((Ending::Skipped, _)) => "skipped".to_owned(),
                None => "not run".to_owned(),
            };
            text.push_str(&format!("{cell:>12} "));
        }
        text.push_str(name);
        text.push('\n');
    }
    for (proxy, outcomes) in results {
        for outcome in outcomes {
            if let Ending::Failed(message) = &outcome.ending {
                text.push_str(&format!("\n{}: {}\n{message}\n", proxy.name(), outcome.name));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_dns_and_conformance_are_wanted_but_nothing_that_needs_a_special_cluster() {
        for (name, expected) in [
            ("[sig-network] Services should serve endpoints on same port", true),
            ("[sig-network] DNS should provide DNS for services [Conformance]", true),
            ("[sig-network] EndpointSlice should create and delete [Conformance]", true),
            (
                "[sig-network] Networking: Services should be able to handle large requests: udp",
                true,
            ),
            ("[sig-network] Networking Granular Checks: Pods should function", false),
            ("[sig-network] Services should work [Feature:LoadBalancer]", false),
            ("[sig-network] Services should work after restarting kube-proxy [Disruptive]", false),
            ("[sig-network] Conntrack should drop INVALID conntrack entries", false),
            ("[sig-apps] Deployment should run [Conformance]", false),
        ] {
            assert_eq!(is_wanted(name), expected, "{name}");
        }
    }

    #[test]
    fn every_excluded_test_has_a_reason() {
        let list = excluded("# Why.\n\nname a\n  because\nname b\n  of that\n").expect("a list");
        assert_eq!(list.len(), 2);
        assert_eq!(list[1], Excluded { name: "name b".to_owned(), reason: "of that".to_owned() });
        excluded("name a\nname b\n  reason\n").expect_err("no reason");
        excluded("  reason\n").expect_err("no name");
        excluded(EXCLUDED).expect("our own list");
    }

    #[test]
    fn a_report_gives_what_ran_and_what_failed_around_it() {
        let spec = |kind: &str, text: &str, state: &str, message: &str| {
            format!(
                r#"{{"ContainerHierarchyTexts":["[sig-network] Services"],"LeafNodeText":"{text}",
                "LeafNodeType":"{kind}","State":"{state}","RunTime":2500000000,
                "Failure":{{"Message":"{message}"}}}}"#
            )
        };
        let specs = [
            spec("It", "works", "passed", ""),
            spec("It", "breaks", "failed", "no answer"),
            spec("It", "is left out", "skipped", ""),
            spec("It", "needs a cloud", "skipped", "only for gce"),
            spec("ReportAfterSuite", "junit", "passed", ""),
            spec("SynchronizedBeforeSuite", "", "timedout", "nodes"),
        ];
        let report = format!(r#"[{{"SpecReports":[{}]}}]"#, specs.join(","));
        let outcomes = read(&report).expect("a report");
        assert_eq!(sum(&outcomes), Sum { passed: 1, failed: 2, skipped: 1 });
        assert_eq!(outcomes[1].name, "[sig-network] Services breaks");
        assert_eq!(outcomes[1].ending, Ending::Failed("failed: no answer".to_owned()));
        assert_eq!(outcomes[1].seconds, 2);
    }
}
