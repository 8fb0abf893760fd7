//! The agent and its datapath against the model of the contract (`lb_agent::contract`).
//!
//! A random case ([`draw`]) is a cluster that changes, and questions. [`play`] gives each change to the
//! model and to the agent's own `convert → plan → tables` ([`product`]), and puts each question to the
//! model and to a [`compare::Datapath`]: the host build of the decisions ([`host`]), or the loaded
//! programs (`kernel`). Verdicts must be the same, each endpoint that is allowed must be chosen sooner or
//! later and no other ever, either side must see the addresses that are due, and what was written change
//! by change must answer as what was written at once. [`lasting`] has flows that go on through a whole case.
//!
//! What is new in the datapath is asked for by a new [`case::How`], [`case::PROTOCOLS`] or step, and compared
//! in [`compare`]; what is new in the contract is a rule of the model.

pub mod case;
pub mod compare;
pub mod draw;
pub mod host;
pub mod lasting;
mod objects;
pub mod play;
pub mod product;
pub mod scenery;

use anyhow::{Result, anyhow};
use case::Case;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

/// Asks for so many random cases instead of the usual number.
const CASES: &str = "LB_MODEL_CASES";

/// How many random cases to play: as many as CASES says, or else the usual number.
pub fn cases(usual: u32) -> u32 {
    std::env::var(CASES).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Plays so many random cases, and shrinks the first that fails.
///
/// # Errors
/// Shows that case, as a regression test has it, and what differed.
pub fn random(cases: u32, mut play: impl FnMut(&Case) -> Result<()>) -> Result<()> {
    let play = std::cell::RefCell::new(&mut play);
    let config = Config {
        cases,
        failure_persistence: None,
        // Milliseconds: by then a case is small, and whoever waits wants to see it.
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&draw::case(), |case| {
        let played = (play.borrow_mut())(&case);
        played.map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    result.map_err(|error| match error {
        TestError::Fail(reason, case) => anyhow!("{reason}\nas a case:{case:?}"),
        TestError::Abort(reason) => anyhow!("{reason}"),
    })
}
