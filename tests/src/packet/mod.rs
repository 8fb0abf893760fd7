//! The loaded tc and XDP programs: frames in, frames out.
//!
//! Every case runs frames through a program by `BPF_PROG_TEST_RUN` and, side by side, through the model of
//! `lb_common::model`; both must agree in verdict, bytes and counters, and the expected bytes are written
//! by etherparse besides. No files and no other programs, so that it runs in the virtual machines too.

pub mod bench;
pub mod network;
pub mod programs;

mod answers;
mod contract;
mod errors;
mod forwarding;
mod fragments;
mod live;
mod node_sctp;
mod pods;
mod random;
mod robustness;

use crate::report::Outcome;
use anyhow::{Context, Result, anyhow};
use bench::Bench;
use lb_common::abi::Config;
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use std::thread;

/// One row of a table.
pub(crate) type Case<F> = (&'static str, fn(&mut Bench<F>) -> Result<()>);

/// Runs every case for both families, in a network namespace of its own.
pub fn run_all() -> Vec<Outcome> {
    let mut outcomes = family::<V4>("IPv4");
    outcomes.extend(family::<V6>("IPv6"));
    outcomes
}

/// Verified instructions of every program of the object, by name.
///
/// # Errors
/// The verifier's log when a program is rejected.
pub fn verified_instructions() -> Result<Vec<(String, u32)>> {
    let programs = programs::Programs::load(&Config::default(), programs::FLOWS, |_| true)?;
    Ok(programs.verified()?.into_iter().collect())
}

fn cases<F: AnswerFormat>() -> Vec<Case<F>> {
    let mut cases = forwarding::cases::<F>();
    cases.extend(pods::cases::<F>());
    cases.extend(node_sctp::cases::<F>());
    cases.extend(fragments::cases::<F>());
    cases.extend(errors::cases::<F>());
    cases.extend(answers::cases::<F>());
    cases.extend(robustness::cases::<F>());
    cases.extend(random::cases::<F>());
    cases.extend(contract::table::<F>());
    cases
}

fn family<F: AnswerFormat>(family: &str) -> Vec<Outcome> {
    let name = |case: &str| format!("packet: {family}: {case}");
    // The namespace is the thread's, and ends with it.
    let ran = thread::scope(|scope| scope.spawn(|| run::<F>(&name)).join());
    let mut outcomes = match ran {
        Ok(Ok(outcomes)) => outcomes,
        Ok(Err(error)) => vec![(name("the bench is set up"), Err(format!("{error:#}")))],
        Err(_) => vec![(name("the cases run to their end"), Err("a case panicked".to_owned()))],
    };
    outcomes.extend(live::outcomes::<F>(&name));
    outcomes
}

fn run<F: AnswerFormat>(name: &dyn Fn(&str) -> String) -> Result<Vec<Outcome>> {
    network::enter()?;
    let mut bench = Bench::<F>::new().context("set up the bench")?;
    let mut outcomes = Vec::new();
    for (case, run) in cases::<F>() {
        let result = bench.reset().and_then(|()| run(&mut bench));
        outcomes.push((name(case), result.map_err(|error| format!("{error:#}"))));
    }
    Ok(outcomes)
}

/// An error that shows two frames that should be equal.
pub(crate) fn differ(what: &str, expected: &[u8], found: &[u8]) -> anyhow::Error {
    let at = expected.iter().zip(found).position(|(a, b)| a != b);
    let at = at.unwrap_or_else(|| expected.len().min(found.len()));
    anyhow!(
        "{what}: bytes differ from {at} on\n  expected {expected:02x?}\n  found    {found:02x?}"
    )
}
