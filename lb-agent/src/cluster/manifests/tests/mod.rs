//! Files in a real directory → changes.

mod files;
mod following;
mod merging;

use crate::cluster::snapshot::{Change, ObjectName, Problem, Snapshot};
use crate::plan::Planner;

/// What a receiver of the stream knows.
struct Known {
    planner: Planner,
    problems: std::collections::BTreeMap<String, Vec<Problem>>,
}

impl Known {
    fn new() -> Self {
        Self { planner: Planner::new("node-a"), problems: Default::default() }
    }

    fn take(&mut self, changes: Vec<Change>) {
        for change in &changes {
            if let Change::Problems { object, problems } = change {
                if problems.is_empty() {
                    assert!(self.problems.remove(object).is_some(), "{object} had no problem");
                } else {
                    self.problems.insert(object.clone(), problems.clone());
                }
            }
        }
        self.planner.apply(changes);
    }

    fn snapshot(&self) -> &Snapshot {
        self.planner.snapshot()
    }

    /// The names of all Services, in order.
    fn services(&self) -> Vec<String> {
        self.snapshot().services.keys().map(ToString::to_string).collect()
    }

    fn slices(&self) -> Vec<String> {
        self.snapshot().slices.keys().map(ToString::to_string).collect()
    }

    /// The port of `default/NAME`, to tell one version of it from another.
    fn port(&self, name: &str) -> Option<u16> {
        let service = self.snapshot().services.get(&ObjectName::new("default", name))?;
        service.ports.first().map(|port| port.port)
    }

    /// `object: reason` of every problem.
    fn problems(&self) -> Vec<String> {
        let all = self.problems.values().flatten();
        all.map(|problem| format!("{}: {}", problem.object, problem.reason)).collect()
    }
}

/// A Service manifest with a ClusterIP and this port.
fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: 10.96.0.10\n  \
         ports:\n  - port: {port}\n"
    )
}
