//! What is wrong with the cluster's objects, said once.
//!
//! Both sources report through a [`Ledger`]: it logs a problem when it appears and when it is
//! gone, and turns it into a [`Change`] only then, so that an object that is re-sent or re-listed
//! with the same problem causes neither a log line nor work.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::snapshot::{Change, Problem};

/// The problems of all objects that have any.
#[derive(Debug, Default)]
pub struct Ledger {
    known: BTreeMap<String, Vec<Problem>>,
}

impl Ledger {
    /// Notes the present problems of one object; the change, if they are not what they were.
    pub fn report(&mut self, object: &str, mut problems: Vec<Problem>) -> Option<Change> {
        problems.sort();
        problems.dedup();
        let before = self.known.get(object).map(Vec::as_slice).unwrap_or_default();
        if before == problems {
            return None;
        }
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            warn!(object = %problem.object, "{}", problem.reason);
        }
        if problems.is_empty() {
            info!(object, "has no problem any more");
            self.known.remove(object);
        } else {
            self.known.insert(object.to_owned(), problems.clone());
        }
        Some(Change::Problems { object: object.to_owned(), problems })
    }

    /// Notes that these are the problems of *all* objects: those of others are gone.
    pub fn report_all(&mut self, problems: impl IntoIterator<Item = Problem>) -> Vec<Change> {
        let mut present: BTreeMap<String, Vec<Problem>> = BTreeMap::new();
        for problem in problems {
            present.entry(problem.object.clone()).or_default().push(problem);
        }
        let gone: Vec<String> =
            self.known.keys().filter(|object| !present.contains_key(*object)).cloned().collect();
        let cleared = gone.into_iter().map(|object| (object, Vec::new()));
        let all: Vec<_> = cleared.chain(present).collect();
        all.into_iter().filter_map(|(object, problems)| self.report(&object, problems)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(object: &str, reason: &str) -> Problem {
        Problem { object: object.into(), reason: reason.into() }
    }

    #[test]
    fn a_problem_is_a_change_when_it_appears_and_when_it_is_gone_and_not_between() {
        let mut ledger = Ledger::default();
        let web = || vec![problem("Service default/web", "has no usable port")];
        let appeared = ledger.report("Service default/web", web());
        assert_eq!(
            appeared,
            Some(Change::Problems { object: "Service default/web".into(), problems: web() })
        );
        assert_eq!(ledger.report("Service default/web", web()), None);
        let gone = ledger.report("Service default/web", Vec::new());
        assert_eq!(
            gone,
            Some(Change::Problems { object: "Service default/web".into(), problems: Vec::new() })
        );
        assert_eq!(ledger.report("Service default/web", Vec::new()), None);
    }

    #[test]
    fn a_full_report_clears_the_problems_of_objects_that_it_does_not_hold() {
        let mut ledger = Ledger::default();
        ledger.report_all([problem("a", "1"), problem("b", "1"), problem("b", "2")]);
        let changes = ledger.report_all([problem("b", "2"), problem("b", "1"), problem("c", "1")]);
        assert_eq!(
            changes,
            [
                Change::Problems { object: "a".into(), problems: Vec::new() },
                Change::Problems { object: "c".into(), problems: vec![problem("c", "1")] },
            ]
        );
    }
}
