//! One build of everything that is run: programs and test binaries.
//!
//! A single cargo command for the whole workspace, because `-p X` alone would compile shared dependencies
//! again with other features.

use crate::{process, workspace};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A test binary of libtest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestBinary {
    /// The package it belongs to.
    pub package: String,
    /// `packet` for `tests/packet.rs`, the crate's name for its unit tests.
    pub target: String,
    /// Whether it is an integration test, not the unit tests of a library or program.
    pub integration: bool,
    /// Where it is.
    pub path: PathBuf,
    /// The package's folder: tests run there, as under `cargo test`.
    pub folder: PathBuf,
}

/// What was built.
#[derive(Debug, Default)]
pub struct Artifacts {
    /// Every test binary.
    pub tests: Vec<TestBinary>,
    /// Every program.
    programs: Vec<PathBuf>,
}

impl Artifacts {
    /// The path of the program `name`.
    ///
    /// # Errors
    /// When the workspace has no such program.
    pub fn program(&self, name: &str) -> Result<&Path> {
        let found = self.programs.iter().find(|path| path.file_name().is_some_and(|n| n == name));
        found.map(PathBuf::as_path).with_context(|| format!("the workspace builds no {name}"))
    }

    fn add(&mut self, message: Message) {
        let Message { reason, package_id, manifest_path, target, profile, executable } = message;
        let (Some(target), Some(profile), Some(path)) = (target, profile, executable) else {
            return;
        };
        if reason != "compiler-artifact" {
            return;
        }
        if !profile.test {
            self.programs.push(path);
            return;
        }
        self.tests.push(TestBinary {
            package: package_name(&package_id.unwrap_or_default()).to_owned(),
            integration: target.kind.iter().any(|kind| kind == "test"),
            target: target.name,
            path,
            folder: manifest_path
                .and_then(|path| Some(path.parent()?.to_owned()))
                .unwrap_or_default(),
        });
    }
}

/// The messages of cargo that we read, and of those what we need:
/// <https://doc.rust-lang.org/cargo/reference/external-tools.html#json-messages>
#[derive(Deserialize)]
struct Message {
    reason: String,
    package_id: Option<String>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// `path+file:///…/tests#lb-tests@0.1.0` and `path+file:///…/lb-common#0.1.0` → the package's name.
fn package_name(id: &str) -> &str {
    let (url, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name,
        None => url.rsplit('/').next().unwrap_or(url),
    }
}

/// Builds every program and test binary of the workspace, showing cargo's own progress.
///
/// # Errors
/// When the build fails; cargo's messages went to stderr.
pub fn build() -> Result<Artifacts> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--workspace", "--exclude", "lb-ebpf", "--lib", "--bins", "--tests"]);
    run(cargo)
}

/// Builds some programs with optimisation, showing cargo's own progress.
///
/// # Errors
/// When the build fails; cargo's messages went to stderr.
pub fn build_optimised(packages: &[&str], programs: &[&str]) -> Result<Artifacts> {
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--release"]);
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    cargo.args(programs.iter().flat_map(|program| ["--bin", program]));
    run(cargo)
}

/// Builds the agent as one static file that is ready to be shipped, showing cargo's own progress.
///
/// # Errors
/// When the build fails; cargo's messages went to stderr.
pub fn build_static_agent() -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "lb-agent", "--bin", "lb-agent", "--profile", "image"]);
    // Named, although it is this machine's: build scripts and macros are then built as always.
    cargo.args(["--target", &target, "--config"]);
    cargo.arg(format!("target.{target}.rustflags=[\"-C\", \"target-feature=+crt-static\"]"));
    Ok(run(cargo)?.program("lb-agent")?.to_owned())
}

/// The shared libraries of a program, its loader included.
///
/// # Errors
/// When it is no program of this machine.
pub fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = process::output(Command::new("ldd").arg(program))?;
    let paths = listed.lines().filter_map(|line| {
        line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
    });
    Ok(paths.collect())
}

/// Runs a build and reads what it made.
fn run(mut cargo: Command) -> Result<Artifacts> {
    cargo.arg("--message-format=json-render-diagnostics");
    let output = cargo
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {cargo:?}"))?;
    ensure!(output.status.success(), "the build failed (see above): {cargo:?}");
    let mut artifacts = Artifacts::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // Lines of other kinds have other shapes; those that we need have this one.
        if let Ok(message) = serde_json::from_str::<Message>(line) {
            artifacts.add(message);
        }
    }
    Ok(artifacts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_ids_of_both_forms_name_their_package() {
        for (id, name) in [
            ("path+file:///home/me/lb/tests#lb-tests@0.1.0", "lb-tests"),
            ("path+file:///home/me/lb/lb-common#0.1.0", "lb-common"),
        ] {
            assert_eq!(package_name(id), name);
        }
    }

    #[test]
    fn test_binaries_and_programs_are_told_apart() {
        let line = |test: bool, kind: &str, name: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///lb/tests#lb-tests@0.1.0",
                "manifest_path":"/lb/tests/Cargo.toml","target":{{"kind":["{kind}"],"name":"{name}"}},
                "profile":{{"test":{test}}},"executable":"/lb/target/debug/{name}"}}"#
            )
        };
        let mut artifacts = Artifacts::default();
        for text in [
            line(true, "test", "packet"),
            line(true, "lib", "lb_tests"),
            line(false, "bin", "vm-init"),
        ] {
            artifacts.add(serde_json::from_str(&text).expect("a message"));
        }
        let integration: Vec<_> =
            artifacts.tests.iter().map(|test| (test.target.as_str(), test.integration)).collect();
        assert_eq!(integration, [("packet", true), ("lb_tests", false)]);
        assert_eq!(artifacts.tests[0].folder, Path::new("/lb/tests"));
        assert!(artifacts.program("vm-init").is_ok());
        assert!(artifacts.program("packet").is_err(), "a test binary is no program");
    }
}
