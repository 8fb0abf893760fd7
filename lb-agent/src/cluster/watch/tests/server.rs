//! An API server as far as lists and watches go; what it does wrong is up to the test. (That the real
//! one behaves like this is for the cluster tests to show.)

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

#[derive(Default)]
pub struct State {
    /// What a list of a resource answers.
    pub lists: BTreeMap<&'static str, Vec<Value>>,
    /// Resources whose requests are forbidden.
    pub forbidden: BTreeSet<&'static str>,
    /// Every request is answered by 503.
    pub ill: bool,
    /// Resources that this server doesn't have.
    pub unknown: BTreeSet<&'static str>,
    /// Resources whose next watch answers 410.
    pub gone: BTreeSet<&'static str>,
    /// The first page of a resource's next list, after which the server fails.
    pub broken_lists: BTreeMap<&'static str, Value>,
    /// Every list request of a resource, and every watch with the version it began from.
    pub lists_made: BTreeMap<&'static str, usize>,
    pub watched_from: BTreeMap<&'static str, Vec<String>>,
    pub queries: Vec<(&'static str, String)>,
    watchers: BTreeMap<&'static str, Vec<mpsc::UnboundedSender<String>>>,
    version: u64,
}

pub struct Server {
    state: Arc<Mutex<State>>,
    pub address: SocketAddr,
    task: Option<tokio::task::JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

const RESOURCES: [(&str, &str, &str); 4] = [
    ("services", "v1", "Service"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("nodes", "v1", "Node"),
    ("servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
];

impl Server {
    /// An address on which nobody listens until [`Server::start`].
    pub async fn down() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { state: Arc::default(), address, task: None, stop: None }
    }

    pub async fn new() -> Self {
        let mut server = Self::down().await;
        server.start().await;
        server
    }

    pub async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let state = self.state.clone();
        let router = axum::Router::new().fallback(move |uri: Uri| {
            let state = state.clone();
            async move { answer(&mut state.lock().unwrap(), &uri) }
        });
        let (stop, stopped) = oneshot::channel::<()>();
        self.stop = Some(stop);
        self.task = Some(tokio::spawn(async move {
            let server = axum::serve(listener, router);
            server.with_graceful_shutdown(async { drop(stopped.await) }).await.unwrap();
        }));
    }

    /// Ends every connection; nobody listens until [`Server::start`].
    pub async fn stop(&mut self) {
        drop(self.stop.take());
        let mut task = self.task.take().unwrap();
        let ended = async {
            // A watch that came in at the last moment would be served for ever.
            while tokio::time::timeout(Duration::from_millis(5), &mut task).await.is_err() {
                self.state().watchers.clear();
            }
        };
        tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the server ends");
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Sends an event to all watches of a resource, once there is one.
    pub async fn send(&self, resource: &'static str, kind: &str, object: &Value) {
        self.watched(resource).await;
        let mut state = self.state();
        let object = match kind {
            "ERROR" => object.clone(),
            _ => state.stored(resource, object),
        };
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        for watcher in state.watchers.entry(resource).or_default() {
            watcher.send(line.clone()).unwrap();
        }
    }

    /// Waits until a resource is watched.
    pub async fn watched(&self, resource: &'static str) {
        let watched = async {
            while self.state().watchers.get(resource).is_none_or(Vec::is_empty) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), watched).await.expect("nobody watches");
    }

    /// Ends all watches of a resource, as a server does that restarts.
    pub fn cut(&self, resource: &'static str) {
        self.state().watchers.remove(resource);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl State {
    /// An object with its kind and a new resourceVersion.
    fn stored(&mut self, resource: &str, object: &Value) -> Value {
        self.version += 1;
        let (_, version, kind) = RESOURCES.into_iter().find(|row| row.0 == resource).unwrap();
        let mut object = object.clone();
        object["apiVersion"] = version.into();
        object["kind"] = kind.into();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        object["metadata"]["managedFields"] = json!([{"manager": "test"}]);
        object
    }
}

fn answer(state: &mut State, uri: &Uri) -> Response {
    let last = uri.path().rsplit('/').next().unwrap_or_default();
    let Some((resource, version, kind)) = RESOURCES.into_iter().find(|row| row.0 == last) else {
        return status(StatusCode::NOT_FOUND, "NotFound");
    };
    let query = uri.query().unwrap_or_default();
    state.queries.push((resource, query.to_owned()));
    if state.ill {
        return status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
    }
    if state.unknown.contains(resource) {
        return status(StatusCode::NOT_FOUND, "NotFound");
    }
    if state.forbidden.contains(resource) {
        return status(StatusCode::FORBIDDEN, "Forbidden");
    }
    let parameter = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next()
    };
    if parameter("watch").as_deref() == Some("true") {
        let from = parameter("resourceVersion").unwrap_or_default();
        state.watched_from.entry(resource).or_default().push(from);
        if state.gone.remove(resource) {
            return status(StatusCode::GONE, "Expired");
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        state.watchers.entry(resource).or_default().push(sender);
        let lines = futures::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|line| (Ok::<_, std::convert::Infallible>(line), receiver))
        });
        return Response::new(Body::from_stream(lines));
    }
    if parameter("continue").is_some() {
        return status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    }
    *state.lists_made.entry(resource).or_default() += 1;
    let (objects, more) = match state.broken_lists.remove(resource) {
        Some(object) => (vec![object], "more"),
        None => (state.lists.get(resource).cloned().unwrap_or_default(), ""),
    };
    let items: Vec<_> = objects.iter().map(|object| state.stored(resource, object)).collect();
    let list = json!({
        "apiVersion": version,
        "kind": format!("{kind}List"),
        "metadata": {"resourceVersion": state.version.to_string(), "continue": more},
        "items": items,
    });
    Response::new(Body::from(list.to_string()))
}

/// What an ERROR event or a failed request holds.
pub fn failure(code: u16, reason: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": format!("{reason} of this test"), "reason": reason, "code": code,
    })
}

fn status(code: StatusCode, reason: &str) -> Response {
    let mut response = Response::new(Body::from(failure(code.as_u16(), reason).to_string()));
    *response.status_mut() = code;
    response
}
