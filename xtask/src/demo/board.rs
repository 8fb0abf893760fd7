//! What one step of the demo found out: checks that passed or failed, and figures to look at.

use std::collections::BTreeMap;

/// A line of a step's result, in the order in which it is shown.
#[derive(Debug)]
pub(super) enum Entry {
    /// How often each backend answered.
    Bars {
        /// What was counted.
        title: String,
        /// Backend → answers.
        counts: BTreeMap<String, u64>,
    },
    /// A claim and whether it held.
    Check {
        /// What was claimed.
        claim: String,
        /// `Err`: what was seen instead.
        verdict: Result<(), String>,
    },
}

/// The result of one step.
#[derive(Debug, Default)]
pub(super) struct Board {
    entries: Vec<Entry>,
}

impl Board {
    /// The entries in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Shows a distribution.
    pub fn bars(&mut self, title: impl Into<String>, counts: BTreeMap<String, u64>) {
        self.entries.push(Entry::Bars { title: title.into(), counts });
    }

    /// Records a check.
    pub fn check(&mut self, claim: impl Into<String>, verdict: Result<(), String>) {
        self.entries.push(Entry::Check { claim: claim.into(), verdict });
    }

    /// Numbers of checks that passed and failed.
    pub fn score(&self) -> (usize, usize) {
        let verdicts = self.entries.iter().filter_map(|entry| match entry {
            Entry::Check { verdict, .. } => Some(verdict.is_ok()),
            Entry::Bars { .. } => None,
        });
        let verdicts: Vec<_> = verdicts.collect();
        let passed = verdicts.iter().filter(|passed| **passed).count();
        (passed, verdicts.len() - passed)
    }
}

/// `Err` with `seen` unless `holds`.
pub(super) fn expect(holds: bool, seen: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(seen()) }
}
