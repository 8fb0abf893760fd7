//! Whether the API server's watches are alive: for metrics, and said once in the log.
//!
//! kube's watcher tells of failures but not that a resumed watch was accepted (nothing may happen
//! on it for hours), so success is seen where it happens: [`ObserveLayer`] looks at the status
//! of each answer.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Watched {
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// Our own Node.
    Node,
    /// ServiceCIDRs.
    Cidrs,
}

impl Watched {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Services, Self::Slices, Self::Node, Self::Cidrs];

    /// The resource, as RBAC rules and metrics name it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Slices => "endpointslices",
            Self::Node => "nodes",
            Self::Cidrs => "servicecidrs",
        }
    }

    /// What a list or watch request asks for.
    fn of_path(path: &str) -> Option<Self> {
        let last = path.rsplit('/').next()?;
        Self::ALL.into_iter().find(|watched| watched.resource() == last)
    }
}

/// The state of one watch.
#[derive(Debug, Default)]
pub struct WatchState {
    connected: AtomicBool,
    accepted: AtomicU64,
    errors: AtomicU64,
    last_event_ms: AtomicI64,
    turn: Mutex<Turn>,
}

/// The last turn for the better or worse.
#[derive(Clone, Debug, Default)]
struct Turn {
    at: Option<SystemTime>,
    /// Why there is no connection; `None` while there is one, and before the first failure.
    reason: Option<String>,
}

impl WatchState {
    /// The last request was accepted, and nothing has failed since.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Requests that the server accepted since the start.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Errors since the start: failed lists, failed watches, streams that were cut, 410 Gone.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Since when it is as it is, and why it isn't connected if it has failed; nothing before the first
    /// answer.
    pub fn since(&self) -> (Option<SystemTime>, Option<String>) {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        (turn.at, turn.reason.clone())
    }

    /// Notes that the connection is there, or why not.
    fn turn(&self, reason: Option<&str>) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let was_connected = self.connected.swap(reason.is_none(), Ordering::Relaxed);
        if turn.at.is_none() || was_connected == reason.is_some() {
            turn.at = Some(SystemTime::now());
        }
        turn.reason = reason.map(str::to_owned);
    }

    /// When the last object arrived or a list was complete, in milliseconds since the epoch; 0 before the first.
    pub fn last_event_ms(&self) -> i64 {
        self.last_event_ms.load(Ordering::Relaxed)
    }
}

/// The state of all watches; shared between the watches and whoever serves metrics.
#[derive(Debug, Default)]
pub struct WatchHealth {
    services: WatchState,
    slices: WatchState,
    node: WatchState,
    cidrs: WatchState,
    /// What the server doesn't show us, as the log says already.
    hidden: Mutex<BTreeSet<Watched>>,
    loss: Mutex<Loss>,
}

/// What is down, and what the log already says of it.
#[derive(Debug, Default)]
struct Loss {
    lost: BTreeSet<Watched>,
    /// Reasons that were logged since everything was well.
    said: BTreeSet<String>,
}

impl Loss {
    /// A reason that changes with every attempt (it holds a request's id) must not fill the memory.
    const SAID_MAX: usize = 16;

    /// Notes a failure; true when it is worth a log line.
    fn failed(&mut self, watched: Watched, reason: &str) -> bool {
        self.lost.insert(watched);
        self.said.len() < Self::SAID_MAX && self.said.insert(reason.to_owned())
    }

    /// Notes a success; true when with it everything is well again.
    fn answered(&mut self, watched: Watched) -> bool {
        let recovered = self.lost.remove(&watched) && self.lost.is_empty();
        if recovered {
            self.said.clear();
        }
        recovered
    }
}

impl WatchHealth {
    /// The state of one watch.
    pub fn of(&self, watched: Watched) -> &WatchState {
        match watched {
            Watched::Services => &self.services,
            Watched::Slices => &self.slices,
            Watched::Node => &self.node,
            Watched::Cidrs => &self.cidrs,
        }
    }

    /// Whether the server doesn't show this resource, and we do without.
    pub fn is_hidden(&self, watched: Watched) -> bool {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner).contains(&watched)
    }

    pub(super) fn event(&self, watched: Watched) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        self.of(watched).last_event_ms.store(now, Ordering::Relaxed);
    }

    /// Counts an error that is part of normal life (410 Gone: a relist follows).
    pub(super) fn expired(&self, watched: Watched) {
        self.of(watched).errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an error; logs it unless that has been said of this or another watch.
    pub(super) fn failed(&self, watched: Watched, reason: &str) {
        let state = self.of(watched);
        state.errors.fetch_add(1, Ordering::Relaxed);
        state.turn(Some(reason));
        let mut loss = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        if loss.failed(watched, reason) {
            warn!(
                resource = watched.resource(),
                "can't watch the API server: {reason}; retrying with backoff, what is programmed \
                 stays"
            );
        }
    }

    /// Notes that the server doesn't know this resource, or doesn't let us see it, and we can do
    /// without: said once, and no error.
    pub(super) fn hidden(&self, watched: Watched, reason: &str) {
        self.of(watched).turn(Some(reason));
        let mut hidden = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        if hidden.insert(watched) {
            info!(
                resource = watched.resource(),
                "the API server doesn't show them, which is taken for none; asked again now and \
                 then: {reason}"
            );
        }
    }

    pub(super) fn answered(&self, watched: Watched) {
        let state = self.of(watched);
        state.accepted.fetch_add(1, Ordering::Relaxed);
        state.turn(None);
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner).remove(&watched);
        let mut loss = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        if loss.answered(watched) {
            info!("the API server answers again, all watches are back");
        }
    }
}

/// Wraps a client so that accepted lists and watches are noted.
#[derive(Clone, Debug)]
pub(super) struct ObserveLayer(pub(super) Arc<WatchHealth>);

impl<S> tower_layer::Layer<S> for ObserveLayer {
    type Service = Observe<S>;

    fn layer(&self, inner: S) -> Observe<S> {
        Observe { inner, health: self.0.clone() }
    }
}

/// See [`ObserveLayer`].
#[derive(Clone, Debug)]
pub(super) struct Observe<S> {
    inner: S,
    health: Arc<WatchHealth>,
}

impl<S, A, B> tower_service::Service<http::Request<A>> for Observe<S>
where
    S: tower_service::Service<http::Request<A>, Response = http::Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<A>) -> Self::Future {
        let watched = Watched::of_path(request.uri().path());
        let health = self.health.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            if let Some(watched) = watched
                && response.status().is_success()
            {
                health.answered(watched);
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_connected_from_an_accepted_request_to_the_next_failure() {
        let health = WatchHealth::default();
        assert!(!health.of(Watched::Slices).is_connected());
        health.answered(Watched::Slices);
        assert!(health.of(Watched::Slices).is_connected());
        assert!(!health.of(Watched::Services).is_connected(), "each watch has its own state");
        health.expired(Watched::Slices);
        assert!(health.of(Watched::Slices).is_connected(), "410 Gone is no loss of the server");
        let (connected_at, reason) = health.of(Watched::Slices).since();
        assert_eq!(reason, None);
        health.failed(Watched::Slices, "connection refused");
        assert!(!health.of(Watched::Slices).is_connected());
        assert_eq!(health.of(Watched::Slices).errors(), 2);
        let (lost_at, reason) = health.of(Watched::Slices).since();
        assert!(lost_at > connected_at, "{lost_at:?}");
        assert_eq!(reason.as_deref(), Some("connection refused"));
        health.failed(Watched::Slices, "forbidden");
        let still = (lost_at, Some("forbidden".to_owned()));
        assert_eq!(health.of(Watched::Slices).since(), still, "lost since the first failure");
        health.answered(Watched::Slices);
        assert!(health.of(Watched::Slices).is_connected());
        assert_eq!(health.of(Watched::Slices).since().1, None);
    }

    #[test]
    fn a_loss_is_said_once_for_all_watches_and_again_after_everything_was_well() {
        let mut loss = Loss::default();
        assert!(loss.failed(Watched::Services, "connection refused"));
        assert!(!loss.failed(Watched::Slices, "connection refused"), "the same cause");
        assert!(loss.failed(Watched::Node, "forbidden"), "another cause");
        assert!(!loss.failed(Watched::Services, "connection refused"), "the next attempt");
        assert!(!loss.answered(Watched::Services));
        assert!(!loss.answered(Watched::Slices), "one is still lost");
        assert!(loss.answered(Watched::Node), "the last one is back");
        assert!(!loss.answered(Watched::Node), "nothing was lost");
        assert!(loss.failed(Watched::Services, "connection refused"), "lost again");
        let more = (0..100).filter(|id| loss.failed(Watched::Slices, &format!("request {id}")));
        assert!(more.count() < Loss::SAID_MAX, "reasons that never repeat end");
    }

    #[test]
    fn requests_are_told_apart_by_the_resource_in_their_path() {
        let table = [
            ("/api/v1/services", Some(Watched::Services)),
            ("/apis/discovery.k8s.io/v1/endpointslices", Some(Watched::Slices)),
            ("/api/v1/nodes", Some(Watched::Node)),
            ("/prefix/api/v1/nodes", Some(Watched::Node)),
            ("/apis/networking.k8s.io/v1/servicecidrs", Some(Watched::Cidrs)),
            ("/api/v1/pods", None),
            ("/version", None),
            ("", None),
        ];
        for (path, expected) in table {
            assert_eq!(Watched::of_path(path), expected, "{path}");
        }
    }
}
