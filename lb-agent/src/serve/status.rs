//! `/status`: what the agent knows and metrics can't carry, for `lb-agent status`: reasons, and since
//! when.
//!
//! The loop writes it, the server reads it. Numbers are in `/metrics` and are not repeated here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use axum::routing::get;
use lb_common::abi;
use serde::{Deserialize, Serialize};

use super::NO_SNIFF;
use crate::cluster::watch::{WatchHealth, Watched};
use crate::plan::desired::ServicePortKey;

/// Service ports that are named; the metric says how many there are.
const UNFIT_NAMED: usize = 20;

/// A running agent, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its version.
    pub version: String,
    /// Version of the layouts of its maps.
    pub map_schema: u32,
    /// Its process, in its own namespace.
    pub pid: u32,
    /// Name of its node.
    pub node: String,
    /// Where its Services come from: `API server` or a directory of manifests.
    pub source: String,
    /// Source ports for SNAT, such as `61000-65535`.
    pub snat_ports: String,
    /// The watches; none when Services come from manifests.
    pub watches: Vec<WatchStatus>,
    /// Devices that it attached to, or tried to.
    pub attachments: Vec<Attachment>,
    /// Why the datapath can't be written, if so.
    pub datapath_error: Option<DatapathError>,
    /// Service ports that are not, or not wholly, in the datapath, some of them.
    pub unfit: Vec<UnfitPort>,
}

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// The resource, as RBAC rules name it.
    pub resource: String,
    /// How it is.
    pub state: WatchedState,
    /// Since when, in seconds since the epoch.
    pub since: Option<u64>,
    /// When the last object came or the list was complete, likewise.
    pub last_event: Option<u64>,
    /// Failures since the start.
    pub errors: u64,
    /// The last failure, until it is over.
    pub reason: Option<String>,
}

/// How a watch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WatchedState {
    /// The API server accepted it.
    Connected,
    /// It has failed, or has not been answered yet.
    Disconnected,
    /// The API server doesn't show the resource, and the agent does without.
    Hidden,
}

/// What is attached to a device, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its name.
    pub device: String,
    /// Its index.
    pub index: u32,
    /// `external` or `pod`.
    pub role: String,
    /// `tcx` or `filter`; nothing when it could not be attached to.
    pub tc: Option<String>,
    /// `native`, `generic` or `off`.
    pub xdp: String,
    /// Why XDP is off, where it was tried and tc alone will do.
    pub xdp_refusal: Option<String>,
    /// Why nothing is attached.
    pub error: Option<String>,
}

/// A failed write of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathError {
    /// The last error.
    pub message: String,
    /// When the first came, in seconds since the epoch.
    pub since: u64,
}

/// A Service port that is not in the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnfitPort {
    /// Which.
    pub port: String,
    /// Why.
    pub reason: String,
}

/// Shared by the loop and the server.
#[derive(Debug, Default)]
pub struct StatusBoard {
    told: Mutex<AgentStatus>,
    watches: Option<Arc<WatchHealth>>,
}

impl StatusBoard {
    /// A board of an agent on `node` that says of itself only what never changes.
    pub fn new(
        node: &str,
        source: String,
        snat_ports: &std::ops::RangeInclusive<u16>,
        watches: Option<Arc<WatchHealth>>,
    ) -> Self {
        let told = AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            map_schema: abi::VERSION,
            pid: std::process::id(),
            node: node.to_owned(),
            source,
            snat_ports: format!("{}-{}", snat_ports.start(), snat_ports.end()),
            ..AgentStatus::default()
        };
        Self { told: Mutex::new(told), watches }
    }

    /// These devices, and no others, are attached to or could not be.
    pub fn set_attachments(&self, attachments: Vec<Attachment>) {
        self.told().attachments = attachments;
    }

    /// The datapath can't be written.
    pub fn failed(&self, message: String) {
        let mut told = self.told();
        let since = told.datapath_error.as_ref().map_or_else(now, |error| error.since);
        told.datapath_error = Some(DatapathError { message, since });
    }

    /// The datapath was written.
    pub fn written(&self) {
        self.told().datapath_error = None;
    }

    /// These Service ports, and no others, are not in the datapath.
    pub fn set_unfit(&self, unfit: &BTreeMap<ServicePortKey, String>) {
        let named = unfit.iter().take(UNFIT_NAMED);
        let port = |(key, reason): (&ServicePortKey, &String)| UnfitPort {
            port: key.to_string(),
            reason: reason.clone(),
        };
        self.told().unfit = named.map(port).collect();
    }

    /// Everything, now.
    pub fn status(&self) -> AgentStatus {
        let watches = self.watches.iter().flat_map(|health| {
            Watched::ALL.into_iter().map(|watched| watch_status(health, watched))
        });
        AgentStatus { watches: watches.collect(), ..self.told().clone() }
    }

    /// Each critical section only stores, so a panic elsewhere can't leave a torn state.
    fn told(&self) -> MutexGuard<'_, AgentStatus> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `/status`.
pub fn status_router(board: Arc<StatusBoard>) -> Router {
    let answer = get(async move || match serde_json::to_string(&board.status()) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json"), NO_SNIFF], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    });
    Router::new().route("/status", answer)
}

fn watch_status(health: &WatchHealth, watched: Watched) -> WatchStatus {
    let state = health.of(watched);
    let (since, reason) = state.since();
    WatchStatus {
        resource: watched.resource().to_owned(),
        state: if state.is_connected() {
            WatchedState::Connected
        } else if health.is_hidden(watched) {
            WatchedState::Hidden
        } else {
            WatchedState::Disconnected
        },
        since: since.map(seconds),
        last_event: u64::try_from(state.last_event_ms())
            .ok()
            .filter(|&ms| ms > 0)
            .map(|ms| ms / 1_000),
        errors: state.errors(),
        reason,
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

fn now() -> u64 {
    seconds(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_first_time_and_ends_with_a_write() {
        let board = StatusBoard::new("node-a", "manifests".into(), &(61_000..=65_535), None);
        board.failed("first".into());
        let since = board.status().datapath_error.unwrap().since;
        board.failed("second".into());
        let error = board.status().datapath_error.unwrap();
        assert_eq!((error.message.as_str(), error.since), ("second", since));
        board.written();
        assert_eq!(board.status().datapath_error, None);
        assert_eq!(board.status().snat_ports, "61000-65535");
    }

    #[test]
    fn what_is_served_can_be_read_again() {
        let board = StatusBoard::new("node-a", "API server".into(), &(1..=2), Some(Arc::default()));
        let text = serde_json::to_string(&board.status()).unwrap();
        let read: AgentStatus = serde_json::from_str(&text).unwrap();
        assert_eq!(read, board.status());
        let states: Vec<_> = read.watches.iter().map(|watch| watch.state).collect();
        assert_eq!(states, [WatchedState::Disconnected; 4], "nothing has answered yet");
    }
}
