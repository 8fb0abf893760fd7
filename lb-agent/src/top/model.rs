//! What is shown, without a terminal: samples and keys change it, `view` draws it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::list::{Entry, List, Order};
use super::node::Node;
use super::rate::{Counts, History, Metric, PerMetric, Rates, Track};
use super::sample::{Row as _, Sample};
use crate::inspect::rows::{BackendRow, ServiceRow};

/// Looks that the panels remember: as many as a wide terminal has columns.
const REMEMBERED: usize = 240;

/// One Service's endpoints.
#[derive(Clone, Debug)]
pub struct Drill {
    /// The Service as it was last seen.
    pub service: ServiceRow,
    /// It isn't there any more.
    pub gone: bool,
    /// Its endpoints.
    pub backends: List<BackendRow>,
}

/// Why something was not served, and how often.
#[derive(Clone, Debug)]
pub struct Reason {
    /// So often.
    pub count: u64,
    /// And so often of late.
    pub track: Track,
}

/// Everything that is shown.
#[derive(Clone, Debug)]
pub struct Model {
    /// The node.
    pub node: Node,
    /// Time between two looks.
    pub interval: Duration,
    /// Service ports.
    pub services: List<ServiceRow>,
    /// The endpoints of one, if they are shown instead.
    pub drill: Option<Drill>,
    /// What rows are sorted by.
    pub order: Order,
    /// What names must hold.
    pub search: String,
    /// It is being typed.
    pub typing: bool,
    /// Nothing is looked at.
    pub paused: bool,
    /// Keys are explained.
    pub help: bool,
    /// Why the last look failed.
    pub trouble: Option<String>,
    /// Drops of the node by reason.
    pub reasons: BTreeMap<&'static str, Reason>,
    totals: Rates,
    history: History,
    /// When the last look was.
    at: Instant,
}

impl Model {
    /// Nothing seen yet but the node.
    pub fn new(node: Node, interval: Duration, order: Order) -> Self {
        Self {
            node,
            interval,
            services: List::default(),
            drill: None,
            order,
            search: String::new(),
            typing: false,
            paused: false,
            help: false,
            trouble: None,
            reasons: BTreeMap::new(),
            totals: Rates::default(),
            history: History::new(REMEMBERED),
            at: Instant::now(),
        }
    }

    /// Another look, or why there is none: what was seen before stays.
    pub fn look(&mut self, sample: Result<Sample, String>) {
        let sample = match sample {
            Ok(sample) => sample,
            Err(trouble) => {
                self.trouble = Some(trouble);
                return;
            }
        };
        self.trouble = None;
        let Sample { at, services, drops } = sample;
        self.at = at;
        self.services.look(services, at);
        self.look_at_drops(drops, at);
        self.sum_up();
        self.look_deeper(at);
        self.arrange();
    }

    fn look_at_drops(&mut self, drops: Vec<(&'static str, u64)>, at: Instant) {
        for (label, count) in drops {
            let counts: Counts = PerMetric([None, None, None, Some(count)]);
            match self.reasons.get_mut(label) {
                Some(reason) => {
                    reason.count = count;
                    reason.track.look(counts, at);
                }
                None => {
                    let track = Track::new(counts, at, 0);
                    self.reasons.insert(label, Reason { count, track });
                }
            }
        }
    }

    /// Of the Services that are shown, but drops: of the node, as not all are a Service's.
    fn sum_up(&mut self) {
        let rates = self.services.all().iter().map(|entry| entry.track.rates());
        let reasons = self.reasons.values().map(|reason| reason.track.rates());
        let mut totals = Rates::default();
        for metric in Metric::ALL {
            let known: Vec<f64> = match metric {
                Metric::Drops => reasons.clone().filter_map(|rates| rates[metric]).collect(),
                _ => rates.clone().filter_map(|rates| rates[metric]).collect(),
            };
            totals.0[metric as usize] = (!known.is_empty()).then(|| known.iter().sum());
        }
        self.totals = totals;
        self.history.push(totals);
    }

    fn look_deeper(&mut self, at: Instant) {
        let Some(drill) = &mut self.drill else { return };
        let key = drill.service.key();
        let found = self.services.all().iter().find(|entry| entry.row.key() == key);
        drill.gone = found.is_none();
        if let Some(entry) = found {
            drill.service = entry.row.clone();
            drill.backends.look(entry.row.backends.clone(), at);
        }
    }

    /// Chooses and sorts the rows anew.
    pub fn arrange(&mut self) {
        self.services.arrange(self.order, &self.search);
        if let Some(drill) = &mut self.drill {
            drill.backends.arrange(self.order, "");
        }
    }

    /// Shows the endpoints of the Service that the cursor is on.
    pub fn enter(&mut self) {
        let Some(entry) = self.services.chosen().filter(|_| self.drill.is_none()) else { return };
        let mut backends = List::default();
        backends.look(entry.row.backends.clone(), self.at);
        self.drill = Some(Drill { service: entry.row.clone(), gone: false, backends });
        // The cursor stays with the Service that was entered.
        self.services.step(0);
        self.arrange();
    }

    /// Moves the cursor of what is shown.
    pub fn step(&mut self, rows: isize) {
        match &mut self.drill {
            Some(drill) => drill.backends.step(rows),
            None => self.services.step(rows),
        }
    }

    /// The Service whose endpoints are shown, in the list.
    pub fn drilled(&self) -> Option<&Entry<ServiceRow>> {
        let key = self.drill.as_ref()?.service.key();
        self.services.all().iter().find(|entry| entry.row.key() == key)
    }

    /// Rates of all rows together, of drops those of the node.
    pub fn totals(&self) -> &Rates {
        &self.totals
    }

    /// The same through all looks.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Number of endpoints of the Services that are shown.
    pub fn backend_count(&self) -> usize {
        self.services.all().iter().map(|entry| entry.row.backends.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::testing::{Looks, backend, service};

    #[test]
    fn totals_are_of_all_rows_and_drops_of_the_node() {
        let mut looks = Looks::new();
        looks.look(vec![service("a", 0, 0), service("b", 5, 0)], &[("no_endpoints", 1)]);
        assert_eq!(*looks.model.totals(), Rates::default());
        looks.look(vec![service("a", 10, 0), service("b", 7, 0)], &[("no_endpoints", 4)]);
        let PerMetric([connections, packets, bytes, drops]) = *looks.model.totals();
        assert_eq!((connections, packets, bytes, drops), (Some(12.0), None, None, Some(3.0)));
    }

    #[test]
    fn a_look_that_fails_is_said_and_what_was_seen_stays() {
        let mut looks = Looks::new();
        looks.look(vec![service("a", 0, 0)], &[]);
        looks.model.look(Err("no datapath here".into()));
        assert_eq!(looks.model.trouble.as_deref(), Some("no datapath here"));
        assert_eq!(looks.model.services.len(), 1);
        looks.look(Vec::new(), &[]);
        assert_eq!((looks.model.trouble.as_deref(), looks.model.services.len()), (None, 0));
    }

    #[test]
    fn endpoints_have_rates_of_their_own_and_a_service_that_goes_is_said_to_be_gone() {
        let mut looks = Looks::new();
        let with = |connections| ServiceRow {
            backends: vec![backend(1, connections), backend(2, 0)],
            ..service("a", connections, 0)
        };
        looks.look(vec![with(5)], &[]);
        looks.model.enter();
        looks.look(vec![with(9)], &[]);
        let drill = looks.model.drill.as_ref().unwrap();
        assert!(!drill.gone && drill.backends.len() == 2);
        let busiest = drill.backends.chosen().unwrap();
        assert_eq!(busiest.row.address.to_string(), "10.244.0.1");
        assert_eq!(busiest.track.rates()[Metric::Connections], Some(4.0), "since the last look");
        looks.look(vec![service("b", 0, 0)], &[]);
        assert!(looks.model.drill.as_ref().unwrap().gone);
        assert!(looks.model.drilled().is_none());
    }

    #[test]
    fn a_service_made_anew_has_no_rate_below_zero() {
        let mut looks = Looks::new();
        for connections in [1_000, 1_010, 2, 3, 9] {
            looks.look(vec![service("a", connections, 0)], &[("no_endpoints", connections)]);
            for entry in looks.model.services.all() {
                let rate = entry.track.rates()[Metric::Connections];
                assert!(rate.is_none_or(|rate| (0.0..=10.0).contains(&rate)), "{rate:?}");
            }
            let rate = looks.model.totals()[Metric::Drops];
            assert!(rate.is_none_or(|rate| (0.0..=10.0).contains(&rate)), "{rate:?}");
        }
    }
}
