//! Whether this node can take traffic (`/healthz`) and whether the agent should be restarted
//! (`/livez`). The rules and the JSON are those of kube-proxy (`pkg/proxy/healthcheck/
//! proxy_health.go`), with one difference: `/healthz` fails until the datapath has been written
//! once, so that a load balancer doesn't send traffic to a node that can't serve it yet. `/livez`
//! doesn't: a restart wouldn't bring back an API server.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use serde::Serialize;

use crate::cluster::snapshot::Node;

/// A change that waits longer than this for the datapath makes the agent unhealthy (twice
/// kube-proxy's default `syncPeriod`).
const TIMEOUT: Duration = Duration::from_secs(60);

/// Which question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// May a load balancer send traffic here?
    Healthz,
    /// Does the agent do its work?
    Livez,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// 200 or 503.
    pub status: StatusCode,
    /// JSON.
    pub body: String,
}

/// Shared by the loop, which writes it, and the servers, which read it.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    /// When the oldest change that isn't in the datapath yet came.
    waiting_since: Option<Instant>,
    /// When the datapath was last brought up to date.
    last_applied: Option<SystemTime>,
    eligible: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Families,
}

/// One datapath serves both families, so they are always in the same state.
#[derive(Serialize)]
struct Families {
    #[serde(rename = "IPv4")]
    v4: FamilyStatus,
    #[serde(rename = "IPv6")]
    v6: FamilyStatus,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: String,
    healthy: bool,
}

impl Health {
    /// `has_node_object`: a Node object will come, and until then the node takes no traffic.
    pub fn new(has_node_object: bool) -> Self {
        let state = State { waiting_since: None, last_applied: None, eligible: !has_node_object };
        Self { state: Mutex::new(state) }
    }

    /// A change came that the datapath doesn't hold yet.
    pub fn waiting(&self) {
        self.state().waiting_since.get_or_insert_with(Instant::now);
    }

    /// As [`Self::waiting`], some time ago.
    #[cfg(test)]
    pub(super) fn has_waited(&self, age: Duration) {
        self.state().waiting_since = Instant::now().checked_sub(age);
    }

    /// The datapath holds everything that came.
    pub fn applied(&self) {
        let mut state = self.state();
        state.waiting_since = None;
        state.last_applied = Some(SystemTime::now());
    }

    /// The Node object changed; `None` when it was deleted. A node that is to go away is not
    /// eligible for traffic that can go to others (KEP-3836).
    pub fn set_node(&self, node: Option<&Node>) {
        self.state().eligible = node.is_some_and(|node| !node.deleting && !node.to_be_deleted);
    }

    /// The datapath keeps up with the cluster: what `/livez` says, and load balancers are told with
    /// each Service.
    pub fn is_healthy(&self) -> bool {
        self.state().in_time(Instant::now())
    }

    /// The answer to a probe, now.
    pub fn report(&self, probe: Probe) -> Report {
        let state = self.state().clone();
        state.report(probe, Instant::now(), SystemTime::now())
    }

    /// Each critical section only stores, so a panic elsewhere can't leave a torn state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// No change has waited for the datapath for too long.
    fn in_time(&self, now: Instant) -> bool {
        self.waiting_since.is_none_or(|since| now.saturating_duration_since(since) < TIMEOUT)
    }

    fn report(&self, probe: Probe, now: Instant, wall_clock: SystemTime) -> Report {
        let in_time = self.in_time(now);
        let (healthy, passes, node_eligible) = match probe {
            Probe::Livez => (in_time, in_time, None),
            Probe::Healthz => {
                let healthy = in_time && self.last_applied.is_some();
                (healthy, healthy && self.eligible, Some(self.eligible))
            }
        };
        let last = self.last_applied.map(rfc3339).unwrap_or_else(|| ZERO_TIME.into());
        let family = FamilyStatus { last_updated: last.clone(), healthy };
        let body = Body {
            // As kube-proxy: whoever is healthy is up to date.
            last_updated: if healthy { rfc3339(wall_clock) } else { last },
            current_time: rfc3339(wall_clock),
            node_eligible,
            healthy,
            status: Families { v4: family.clone(), v6: family },
        };
        Report {
            status: if passes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE },
            // Strings and booleans always serialize.
            body: serde_json::to_string(&body).unwrap_or_default(),
        }
    }
}

/// Go's zero time, which kube-proxy prints for "never".
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        name: &'static str,
        waiting: Option<Duration>,
        applied: bool,
        eligible: bool,
        healthz: u16,
        livez: u16,
    }

    #[test]
    fn healthz_and_livez_follow_the_datapath_and_healthz_the_node_too() {
        let case = |name, waiting: Option<u64>, applied, eligible, healthz, livez| {
            let waiting = waiting.map(Duration::from_secs);
            Case { name, waiting, applied, eligible, healthz, livez }
        };
        for case in [
            case("nothing written yet", None, false, true, 503, 200),
            case("up to date", None, true, true, 200, 200),
            case("a change waits for a moment", Some(59), true, true, 200, 200),
            case("a change waits too long", Some(61), true, true, 503, 503),
            case("the first write takes too long", Some(61), false, true, 503, 503),
            case("the node is to be deleted", None, true, false, 503, 200),
        ] {
            let now = Instant::now() + Duration::from_secs(1000);
            let state = State {
                waiting_since: case.waiting.map(|age| now - age),
                last_applied: case.applied.then_some(SystemTime::UNIX_EPOCH),
                eligible: case.eligible,
            };
            let status = |probe| state.report(probe, now, SystemTime::now()).status.as_u16();
            assert_eq!(status(Probe::Healthz), case.healthz, "{}", case.name);
            assert_eq!(status(Probe::Livez), case.livez, "{}", case.name);
        }
    }

    #[test]
    fn the_body_has_kube_proxys_fields() {
        let health = Health::new(true);
        health.applied();
        let body = |probe| -> serde_json::Value {
            serde_json::from_str(&health.report(probe).body).unwrap()
        };
        let healthz = body(Probe::Healthz);
        // The node is unknown yet: healthy, but not eligible.
        assert_eq!(healthz["nodeEligible"], false);
        assert_eq!(healthz["healthy"], true);
        assert_eq!(healthz["status"]["IPv4"]["healthy"], true);
        assert!(healthz["status"]["IPv6"]["lastUpdated"].as_str().unwrap().ends_with('Z'));
        assert!(healthz["lastUpdated"].is_string() && healthz["currentTime"].is_string());
        assert!(body(Probe::Livez).get("nodeEligible").is_none());
    }

    #[test]
    fn a_node_that_is_unknown_deleting_or_tainted_is_not_eligible() {
        for (node, expected) in [
            (None, 503),
            (Some(Node::default()), 200),
            (Some(Node { deleting: true, ..Node::default() }), 503),
            (Some(Node { to_be_deleted: true, ..Node::default() }), 503),
        ] {
            let health = Health::new(true);
            health.applied();
            health.set_node(node.as_ref());
            assert_eq!(health.report(Probe::Healthz).status.as_u16(), expected, "{node:?}");
        }
    }
}
