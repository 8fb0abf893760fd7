//! Go, which builds the real API server of the cluster tests.

use crate::process;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// What the Kubernetes modules of the cluster tests ask for.
const WANTED: (u32, u32) = (1, 26);
/// From here on, go fetches a newer toolchain by itself through its module proxy.
const FETCHES_TOOLCHAINS: (u32, u32) = (1, 21);
const REMEDY: &str = "install Go 1.26 or later and put its bin folder on PATH";

/// Checks the go that is on PATH.
///
/// # Errors
/// When it is too old and can't fetch a newer toolchain.
pub fn check() -> Result<()> {
    let version = process::output(Command::new("go").args(["env", "GOVERSION"]))
        .with_context(|| format!("no usable Go for the cluster tests: {REMEDY}"))?;
    let fetches = process::output(Command::new("go").args(["env", "GOTOOLCHAIN"]))?;
    let found = parse(version.trim().trim_start_matches("go"))
        .with_context(|| format!("go names its version {version:?}"))?;
    if found >= WANTED || (found >= FETCHES_TOOLCHAINS && fetches.trim() != "local") {
        return Ok(());
    }
    bail!("Go {} is too old for the cluster tests: {REMEDY}", version.trim())
}

/// Checks the Go that apt would install.
///
/// # Errors
/// When it is too old to be of use: better said before installing it than after.
pub fn check_candidate() -> Result<()> {
    let policy = process::output(Command::new("apt-cache").args(["policy", "golang-go"]))?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"));
    let candidate = candidate.unwrap_or("(none)").trim();
    let upstream = candidate.split_once(':').map_or(candidate, |(_, upstream)| upstream);
    if parse(upstream).is_some_and(|version| version >= FETCHES_TOOLCHAINS) {
        return Ok(());
    }
    bail!("Go is missing, and this machine's apt offers only golang-go {candidate}: {REMEDY}")
}

/// Major and minor number.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_of_go_and_of_debian_packages_are_understood() {
        for (text, expected) in [
            ("1.26.8", Some((1, 26))),
            ("1.27rc1", Some((1, 27))),
            ("1.19~1", Some((1, 19))),
            ("(none)", None),
            ("", None),
        ] {
            assert_eq!(super::parse(text), expected, "{text:?}");
        }
    }
}
