//! Which suites there are, what each runs, and which may run side by side.

use crate::artifacts::{Artifacts, TestBinary};
use crate::privilege;
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
const KNOWN: [Known; 10] = [
    known("lb-common", Lane::Pure, 10),
    known("lb-agent", Lane::Pure, 10),
    known("xtask", Lane::Pure, 2),
    known("vm", Lane::Pure, 20),
    known("lb-lab", Lane::Network, 10),
    known("packet", Lane::Network, 10),
    known("socket", Lane::Network, 10),
    known("netns", Lane::Network, 20),
    known("demo", Lane::Network, 10),
    known("cluster", Lane::Network, 40),
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
    }
    Ok(ordered(runs))
}

/// The known suites in their order, then the others.
fn ordered(mut runs: BTreeMap<String, Vec<Run>>) -> Vec<Suite> {
    let mut suites = Vec::new();
    for Known { name, lane, limit } in KNOWN {
        let runs = runs.remove(name).unwrap_or_default();
        suites.push(Suite { name: name.to_owned(), lane, limit, required: true, runs });
    }
    suites.extend(runs.into_iter().map(|(name, runs)| Suite {
        name,
        lane: Lane::Network,
        limit: OTHER_LIMIT,
        required: false,
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

/// What the tests are told: what was built, so that none of them calls cargo, and how to speak of errors.
pub fn environment(artifacts: &Artifacts) -> Result<Vec<(String, OsString)>> {
    let pair = |name: &str, path: &Path| (name.to_owned(), path.as_os_str().to_owned());
    Ok(vec![
        pair("LB_AGENT_BIN", artifacts.program("lb-agent")?),
        pair("LB_LAB_PEER", artifacts.program("lab-peer")?),
        // The chain of an error's causes is to be read; where in anyhow it was made is not.
        ("RUST_LIB_BACKTRACE".to_owned(), "0".into()),
    ])
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
