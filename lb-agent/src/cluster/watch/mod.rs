//! Follows an API server: four watches become one stream of [`Change`]s.
//!
//! Decides what is asked for (kube-proxy's server-side filters), how failures are survived (kube's
//! watcher resumes, and relists after 410 Gone; we add the backoff and say a loss once) and
//! that no Kubernetes object outlives its conversion. Doesn't decide what an object means
//! (`convert`), or when the first state is complete: whoever takes the stream waits for the first
//! [`Change::AllServices`] and [`Change::AllSlices`].

mod backoff;
mod connect;
mod failover;
mod health;
mod served;

pub use connect::{ClientError, client, list};
pub use health::{WatchHealth, WatchState, Watched};

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tracing::debug;

use super::convert::slice::LABEL_HEADLESS;
use super::convert::{Converted, cidr, node, service, slice};
use super::problems::Ledger;
use super::snapshot::{Change, Node, ObjectName, Problem};
use backoff::WatchBackoff;
use served::{Kind, Served};

/// Seconds after which the server ends a watch and we resume it; kube's default is five minutes.
const WATCH_SECONDS: u32 = 120;
/// A request whose answer stalls for this long has failed; longer than a quiet watch lasts.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 30);
/// Events that are ready at once and go into one batch: bounds the objects held undecoded.
const BATCH: usize = 256;

/// Between two streams: as kube's own backoff begins.
const RELIST_DELAY: Duration = Duration::from_millis(800);
/// HTTP 410: the resourceVersion is too old.
const GONE: u16 = 410;
/// HTTP 403: our role doesn't have the resource.
const FORBIDDEN: u16 = 403;
/// HTTP 404: the server doesn't have it.
const NOT_FOUND: u16 = 404;

/// Follows Services, EndpointSlices, ServiceCIDRs and the Node `node_name` until nobody receives any more.
/// `client` is one made by [`client`], with the same `health`.
pub async fn run(
    client: Client,
    node_name: &str,
    health: Arc<WatchHealth>,
    sender: mpsc::Sender<Vec<Change>>,
) {
    let services = Follower {
        watched: Watched::Services,
        convert: service::service,
        changed: Change::Service,
        gone: Change::ServiceGone,
        all: Change::AllServices,
        health: health.clone(),
        sender: sender.clone(),
    };
    let slices = Follower {
        watched: Watched::Slices,
        convert: slice::slice,
        changed: Change::Slice,
        gone: Change::SliceGone,
        all: Change::AllSlices,
        health: health.clone(),
        sender: sender.clone(),
    };
    let node = Follower {
        watched: Watched::Node,
        convert: node::node,
        changed: |node: Node| Change::Node(Some(node)),
        gone: |_: ObjectName| Change::Node(None),
        all: |nodes: Vec<Node>| Change::Node(nodes.into_iter().next()),
        health: health.clone(),
        sender: sender.clone(),
    };
    let cidrs = Follower {
        watched: Watched::Cidrs,
        convert: cidr::cidr,
        changed: Change::Cidr,
        gone: Change::CidrGone,
        all: Change::AllCidrs,
        health,
        sender: sender.clone(),
    };
    let config = || watcher::Config::default().timeout(WATCH_SECONDS);
    let service_filter = format!("!{}", service::LABEL_PROXY_NAME);
    let service_config = config().labels(&service_filter).fields("spec.clusterIP!=None");
    let slice_config = config().labels(&format!("!{LABEL_HEADLESS}"));
    let node_config = config().fields(&format!("metadata.name={node_name}"));
    tokio::select! {
        () = sender.closed() => {}
        ((), (), (), ()) = async { tokio::join!(
            services.follow(Api::all(client.clone()), service_config),
            slices.follow(Api::all(client.clone()), slice_config),
            node.follow(Api::all(client.clone()), node_config),
            cidrs.follow(Api::all(client.clone()), config()),
        ) } => {}
    }
}

/// Turns the events of one watch into changes.
struct Follower<K, V> {
    watched: Watched,
    convert: fn(&K) -> Converted<V>,
    changed: fn(V) -> Change,
    gone: fn(ObjectName) -> Change,
    all: fn(Vec<V>) -> Change,
    health: Arc<WatchHealth>,
    sender: mpsc::Sender<Vec<Change>>,
}

/// What a follower remembers between events.
struct Progress<V> {
    /// The list that is being received: what can be used, and what can't.
    listed: Vec<V>,
    problems: Vec<Problem>,
    ledger: Ledger,
}

impl<K: Kind, V> Follower<K, V> {
    /// Follows until nobody receives any more.
    async fn follow(self, api: Api<Served<K>>, config: watcher::Config) {
        let mut progress =
            Progress { listed: Vec::new(), problems: Vec::new(), ledger: Ledger::default() };
        while let Next::Relist =
            self.follow_stream(watcher(api.clone(), config.clone()), &mut progress).await
        {
            tokio::time::sleep(RELIST_DELAY).await;
        }
    }

    async fn follow_stream(
        &self,
        events: impl Stream<Item = watcher::Result<Event<Served<K>>>> + Send,
        progress: &mut Progress<V>,
    ) -> Next {
        let events = events
            .backoff(WatchBackoff::new(self.health.clone(), self.watched))
            .ready_chunks(BATCH);
        let mut events = std::pin::pin!(events);
        while let Some(chunk) = events.next().await {
            let mut changes = Vec::new();
            let mut stale = false;
            for event in chunk {
                match event {
                    Ok(event) => self.take(event, progress, &mut changes),
                    Err(error) if self.is_hidden(&error) => {
                        self.health.hidden(self.watched, &root_cause(&error));
                        changes.extend(progress.ledger.report_all([]));
                        changes.push((self.all)(Vec::new()));
                        // kube's watcher would go on from where it was, without what we just dropped.
                        stale |= matches!(error, watcher::Error::WatchStartFailed(_));
                    }
                    Err(error) => stale |= self.note(&error),
                }
            }
            if !changes.is_empty() && self.sender.send(changes).await.is_err() {
                return Next::Stop;
            }
            if stale {
                return Next::Relist;
            }
        }
        Next::Relist
    }

    fn take(&self, event: Event<Served<K>>, progress: &mut Progress<V>, changes: &mut Vec<Change>) {
        match event {
            Event::Init => {
                progress.listed.clear();
                progress.problems.clear();
            }
            Event::InitApply(object) => {
                let converted = self.converted(object);
                progress.listed.extend(converted.value);
                progress.problems.extend(converted.problems);
            }
            Event::InitDone => {
                let values = std::mem::take(&mut progress.listed);
                let problems = std::mem::take(&mut progress.problems);
                debug!(resource = self.watched.resource(), used = values.len(), "listed");
                changes.extend(progress.ledger.report_all(problems));
                changes.push((self.all)(values));
                self.health.event(self.watched);
            }
            Event::Apply(object) => {
                let converted = self.converted(object);
                changes.extend(progress.ledger.report(&converted.object, converted.problems));
                changes.push(match converted.value {
                    Some(value) => (self.changed)(value),
                    None => (self.gone)(converted.name),
                });
                self.health.event(self.watched);
            }
            Event::Delete(object) => {
                let converted = self.converted(object);
                changes.extend(progress.ledger.report(&converted.object, Vec::new()));
                changes.push((self.gone)(converted.name));
                self.health.event(self.watched);
            }
        }
    }

    /// What becomes of an object; of one that can't be decoded only its name is known.
    fn converted(&self, Served { object, error }: Served<K>) -> Converted<V> {
        let mut converted = (self.convert)(&object);
        if let Some(error) = error {
            converted.value = None;
            converted.problems = vec![Problem {
                object: converted.object.clone(),
                reason: format!("can't be decoded, and is not used: {error}; correct it"),
            }];
        }
        converted
    }

    /// Whether the server says that there is nothing to see, of something that we can do without:
    /// ServiceCIDRs came with Kubernetes 1.33, and a role that was bound before doesn't have them.
    fn is_hidden(&self, error: &watcher::Error) -> bool {
        let (watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
        else {
            return false;
        };
        self.watched == Watched::Cidrs && matches!(status.code, FORBIDDEN | NOT_FOUND)
    }

    /// Counts an error; true when only a new list helps, and kube's watcher would not make one.
    fn note(&self, error: &watcher::Error) -> bool {
        debug!(resource = self.watched.resource(), %error, "watch error");
        match error {
            watcher::Error::WatchError(status) if status.code == GONE => {
                self.health.expired(self.watched);
                false
            }
            // It would ask for the same resourceVersion for ever.
            watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == GONE => {
                self.health.expired(self.watched);
                true
            }
            watcher::Error::WatchError(_)
            | watcher::Error::InitialListFailed(_)
            | watcher::Error::WatchStartFailed(_)
            | watcher::Error::WatchFailed(_)
            | watcher::Error::NoResourceVersion => {
                self.health.failed(self.watched, &root_cause(error));
                false
            }
        }
    }
}

/// How a stream of events ended.
enum Next {
    /// Nobody receives any more.
    Stop,
    /// A new one is needed.
    Relist,
}

/// The innermost error: the same for every watch that one cause has ended.
fn root_cause(error: &watcher::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
