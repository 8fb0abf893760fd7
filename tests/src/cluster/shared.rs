//! One cluster for all tests of a process: made by the first, removed when the process ends.
//!
//! Tests that only add objects of their own run at the same time ([`together`]); a test that breaks
//! something runs while nobody else does ([`alone`]), and what it left broken is repaired after it.
//! Tests of the control plane itself do without agents ([`without_agents`]).

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{OnceLock, PoisonError, RwLock};

use anyhow::{Context, Result, anyhow};

use super::at_exit::at_exit;
use super::test_cluster::TestCluster;

/// A failed start is remembered too: the other tests need not wait for the same failure.
static CLUSTER: OnceLock<Result<RwLock<TestCluster>, String>> = OnceLock::new();

fn cluster() -> Result<&'static RwLock<TestCluster>> {
    let made = CLUSTER.get_or_init(|| {
        at_exit(remove);
        TestCluster::start().map(RwLock::new).map_err(|error| format!("{error:#}"))
    });
    made.as_ref().map_err(|error| anyhow!("no cluster to test with: {error}"))
}

fn remove() {
    if let Some(Ok(cluster)) = CLUSTER.get() {
        let mut cluster = cluster.write().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = cluster.remove() {
            eprintln!("lb-tests: removing the cluster: {error:#}");
        }
    }
}

/// Runs a test that needs the control plane only, possibly beside others.
///
/// # Errors
/// The test's, with the last words of the control plane; or the cluster can't be started.
pub fn without_agents(test: impl FnOnce(&TestCluster) -> Result<()>) -> Result<()> {
    let cluster = cluster()?.read().unwrap_or_else(PoisonError::into_inner);
    test(&cluster).map_err(|error| with_words(&error, &cluster.last_words()))
}

/// Runs a test that leaves the cluster itself alone, possibly beside others.
///
/// # Errors
/// The test's, with the last words of agents and control plane; or the cluster can't be started.
pub fn together(test: impl FnOnce(&TestCluster) -> Result<()>) -> Result<()> {
    let cluster = cluster()?;
    cluster.write().unwrap_or_else(PoisonError::into_inner).ensure_agents()?;
    let cluster = cluster.read().unwrap_or_else(PoisonError::into_inner);
    test(&cluster).map_err(|error| with_words(&error, &cluster.last_words()))
}

/// Runs a test that breaks the cluster, with nobody beside it, and repairs it afterwards.
///
/// # Errors
/// The test's, with the last words of agents and control plane; or the cluster can't be started or
/// repaired.
pub fn alone(test: impl FnOnce(&mut TestCluster) -> Result<()>) -> Result<()> {
    alone_without_agents(|cluster| {
        cluster.ensure_agents()?;
        test(cluster)
    })
}

/// Like [`alone`] for a test that needs the control plane only.
///
/// # Errors
/// As those of [`alone`].
pub fn alone_without_agents(test: impl FnOnce(&mut TestCluster) -> Result<()>) -> Result<()> {
    let mut cluster = cluster()?.write().unwrap_or_else(PoisonError::into_inner);
    let outcome = catch_unwind(AssertUnwindSafe(|| test(&mut cluster)));
    let words = cluster.last_words();
    let repaired = cluster.repair().context("repairing the cluster after the test");
    match outcome {
        Ok(Err(error)) => Err(with_words(&error, &words)),
        Ok(Ok(())) => repaired,
        Err(panic) => resume_unwind(panic),
    }
}

/// What agents and control plane had to say, then the cause: where only the end of a long output is
/// kept, that end is what matters.
fn with_words(cause: &anyhow::Error, words: &str) -> anyhow::Error {
    anyhow!("{words}\n\nthe cause: {cause:#}")
}
