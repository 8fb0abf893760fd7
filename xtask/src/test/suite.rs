//! Which suites there are, what each runs, and which may run side by side.

use crate::artifacts::{Artifacts, TestBinary};
use crate::{e2e, privilege};
use anyhow::Result;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// Suites of one lane run one after another, lanes side by side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// Computes, or lives in its own machine: disturbed by nothing.
    Pure,
    /// Makes namespaces on this machine and measures time in them.
    Network,
}

/// What is known of a suite before anything is built.
struct Known {
    name: &'static str,
    lane: Lane,
    limit: Duration,
}

const fn known(name: &'static str, lane: Lane, minutes: u32) -> Known {
    Known { name, lane, limit: MINUTE.saturating_mul(minutes) }
}

/// The suites that must be there, in the order in which their lane runs them: quick ones first. A suite
/// that vanishes is a failure, not a shorter run.
const KNOWN: [Known; 12] = [
    known("lb-common", Lane::Pure, 10),
    known("lb-agent", Lane::Pure, 10),
    // The first time it builds what checks the workflows.
    known("xtask", Lane::Pure, 10),
    known("model", Lane::Pure, 10),
    known("vm", Lane::Pure, 80),
    known("lb-lab", Lane::Network, 10),
    known("packet", Lane::Network, 10),
    known("socket", Lane::Network, 10),
    known("netns", Lane::Network, 20),
    known("demo", Lane::Network, 10),
    known("cluster", Lane::Network, 40),
    // A cluster of containers boots within kind's time only if it has the machine's cores.
    known("e2e", Lane::Network, 30),
];
/// For suites that are not in the list.
const OTHER_LIMIT: Duration = Duration::from_secs(600);

/// One suite, ready to run.
#[derive(Debug)]
pub struct Suite {
    pub name: String,
    pub lane: Lane,
    pub limit: Duration,
    /// Whether running no test at all is a failure.
    pub required: bool,
    /// Why it would not run now; asked for by name, it runs.
    pub left_out: Option<String>,
    pub runs: Vec<Run>,
}

/// One program of a suite.
#[derive(Debug)]
pub struct Run {
    /// Whether it runs as root; our own commands become root by themselves where they need it.
    root: bool,
    program: PathBuf,
    arguments: Vec<OsString>,
    folder: PathBuf,
}

impl Run {
    /// The command, with root's rights if it needs them.
    ///
    /// # Errors
    /// When it needs root, we are not, and there is no sudo.
    pub fn command(&self, environment: &[(String, OsString)]) -> Result<Command> {
        let mut command = if self.root {
            privilege::as_root("running the tests", &self.program, environment)?
        } else {
            Command::new(&self.program)
        };
        command.args(&self.arguments).current_dir(&self.folder);
        Ok(command)
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {}", argument.display()))
    }
}

/// Every suite of the workspace; `filter` reaches those whose tests have names.
pub fn all(artifacts: &Artifacts, filter: Option<&str>) -> Result<Vec<Suite>> {
    let mut runs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
    for test in &artifacts.tests {
        runs.entry(suite_name(test)).or_default().push(libtest(test, filter));
    }
    runs.insert("vm".to_owned(), vec![vm(artifacts, filter)?]);
    if filter.is_none() {
        // The demo is one story: none of its steps is told without the others.
        runs.insert("demo".to_owned(), vec![demo(artifacts)?]);
        runs.insert("e2e".to_owned(), vec![e2e(artifacts)?]);
    }
    let mut suites = ordered(runs);
    // Its cluster is built from Go modules: half an hour, once for each version of Kubernetes.
    if let Some(suite) = suites.iter_mut().find(|suite| suite.name == "e2e") {
        suite.left_out = e2e::missing()?.map(|parts| {
            format!("{parts} not built yet: `cargo xtask test --suite e2e` builds them and runs it")
        });
    }
    Ok(suites)
}

/// The known suites in their order, then the others.
fn ordered(mut runs: BTreeMap<String, Vec<Run>>) -> Vec<Suite> {
    let mut suites = Vec::new();
    for Known { name, lane, limit } in KNOWN {
        let runs = runs.remove(name).unwrap_or_default();
        let name = name.to_owned();
        suites.push(Suite { name, lane, limit, required: true, left_out: None, runs });
    }
    suites.extend(runs.into_iter().map(|(name, runs)| Suite {
        name,
        lane: Lane::Network,
        limit: OTHER_LIMIT,
        required: false,
        left_out: None,
        runs,
    }));
    suites
}

/// Each integration test of lb-tests is a suite; every other package is one.
fn suite_name(test: &TestBinary) -> String {
    if test.integration && test.package == "lb-tests" {
        test.target.clone()
    } else {
        test.package.clone()
    }
}

fn libtest(test: &TestBinary, filter: Option<&str>) -> Run {
    let mut arguments: Vec<OsString> = vec!["--show-output".into()];
    arguments.extend(filter.map(Into::into));
    Run { root: true, program: test.path.clone(), arguments, folder: test.folder.clone() }
}

/// A command of our own. Not this very program: the build may just have replaced its file.
fn own(artifacts: &Artifacts, arguments: Vec<OsString>) -> Result<Run> {
    let program = artifacts.program("xtask")?.to_owned();
    Ok(Run { root: false, program, arguments, folder: crate::workspace::root().to_owned() })
}

fn vm(artifacts: &Artifacts, filter: Option<&str>) -> Result<Run> {
    let mut arguments = vec!["vm".into(), "--init".into(), artifacts.program("vm-init")?.into()];
    if let Some(filter) = filter {
        arguments.extend(["--filter".into(), filter.into()]);
    }
    own(artifacts, arguments)
}

fn demo(artifacts: &Artifacts) -> Result<Run> {
    let mut arguments = vec!["demo".into()];
    for (option, program) in [("--agent", "lb-agent"), ("--peer", "lab-peer")] {
        arguments.extend([option.into(), artifacts.program(program)?.into()]);
    }
    own(artifacts, arguments)
}

/// Kubernetes' own tests. To build all that they need takes longer than all other suites. They run the agent that is
/// shipped, which is built another way than the one that other suites run: one static file.
fn e2e(artifacts: &Artifacts) -> Result<Run> {
    own(artifacts, vec!["e2e".into(), "--short".into()])
}

/// More time than any of so many random cases takes.
pub fn with_cases(limit: Duration, cases: Option<u32>) -> Duration {
    const CASE: Duration = Duration::from_secs(1);
    limit.saturating_add(CASE.saturating_mul(cases.unwrap_or(0)))
}

/// What the tests are told: what was built, so that none of them calls cargo, how to speak of errors, and
/// how many random cases to play.
pub fn environment(artifacts: &Artifacts, cases: Option<u32>) -> Result<Vec<(String, OsString)>> {
    let pair = |name: &str, path: &Path| (name.to_owned(), path.as_os_str().to_owned());
    let mut environment = vec![
        pair("LB_AGENT_BIN", artifacts.program("lb-agent")?),
        pair("LB_LAB_PEER", artifacts.program("lab-peer")?),
        // The chain of an error's causes is to be read; where in anyhow it was made is not.
        ("RUST_LIB_BACKTRACE".to_owned(), "0".into()),
    ];
    environment.extend(cases.map(|cases| ("LB_MODEL_CASES".to_owned(), cases.to_string().into())));
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(package: &str, target: &str, integration: bool) -> TestBinary {
        TestBinary {
            package: package.to_owned(),
            target: target.to_owned(),
            integration,
            path: PathBuf::new(),
            folder: PathBuf::new(),
        }
    }

    #[test]
    fn integration_tests_of_lb_tests_are_suites_of_their_own() {
        for (test, suite) in [
            (binary("lb-tests", "packet", true), "packet"),
            (binary("lb-tests", "lb_tests", false), "lb-tests"),
            (binary("lb-agent", "manifests", true), "lb-agent"),
            (binary("lb-common", "lb_common", false), "lb-common"),
        ] {
            assert_eq!(suite_name(&test), suite);
        }
    }

    #[test]
    fn a_known_suite_that_is_not_there_stays_in_the_list_and_so_fails() {
        let suites = ordered(BTreeMap::from([("extra".to_owned(), Vec::new())]));
        let packet = suites.iter().find(|suite| suite.name == "packet").expect("packet");
        assert!(packet.required && packet.runs.is_empty());
        let extra = suites.last().expect("the unknown suite");
        assert_eq!((extra.name.as_str(), extra.required), ("extra", false));
    }
}
