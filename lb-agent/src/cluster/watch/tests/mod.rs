//! The watches against a server that misbehaves on request.

mod server;
mod undecodable;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{WatchHealth, Watched, client, run};
use crate::cluster::snapshot::{Change, Snapshot};
use crate::plan::Planner;
use server::{Server, failure};

fn service(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

/// A Service with this port.
fn web(port: u16) -> Value {
    service("web", &json!({"clusterIP": "10.96.0.10", "ports": [{"port": port}]}))
}

fn slice(address: &str) -> Value {
    json!({
        "metadata": {"name": "web-1", "namespace": "default",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [address]}],
    })
}

fn node(zone: &str) -> Value {
    json!({"metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": zone}}})
}

fn cidr(name: &str, range: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"cidrs": [range]}})
}

/// A running source and what it has told.
struct Source {
    receiver: mpsc::Receiver<Vec<Change>>,
    health: Arc<WatchHealth>,
    planner: Planner,
    /// Objects with problems, and their reasons.
    problems: BTreeMap<String, Vec<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Source {
    fn of(server: &Server) -> Self {
        Self::of_all(&[server])
    }

    fn of_all(servers: &[&Server]) -> Self {
        let url = |server: &&Server| format!("http://{}", server.address).parse().unwrap();
        let addresses: Vec<http::Uri> = servers.iter().map(url).collect();
        let config = kube::Config::new(addresses[0].clone());
        let health = Arc::new(WatchHealth::default());
        let (sender, receiver) = mpsc::channel(16);
        let client = client(config, addresses, &health).unwrap();
        let watched = health.clone();
        let task = tokio::spawn(async move { run(client, "node-a", watched, sender).await });
        let planner = Planner::new("node-a");
        Self { receiver, health, planner, problems: BTreeMap::new(), task }
    }

    fn snapshot(&self) -> &Snapshot {
        self.planner.snapshot()
    }

    fn port(&self) -> Option<u16> {
        self.snapshot().services.values().next().map(|service| service.ports[0].port)
    }

    /// The ranges of the cluster; `None` while that is not known.
    fn ranges(&self) -> Option<Vec<String>> {
        let ranges = self.planner.desired().ranges.as_ref()?;
        Some(ranges.iter().map(ToString::to_string).collect())
    }

    fn is_ranges(&self, expected: &[&str]) -> bool {
        self.ranges().is_some_and(|ranges| ranges == expected)
    }

    fn take(&mut self, changes: Vec<Change>) {
        for change in &changes {
            if let Change::Problems { object, problems } = change {
                self.problems.remove(object);
                let reasons: Vec<_> = problems.iter().map(|one| one.reason.clone()).collect();
                if !reasons.is_empty() {
                    self.problems.insert(object.clone(), reasons);
                }
            }
        }
        self.planner.apply(changes);
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let wait = async {
            while !done(self) {
                // Health changes without a change, so it is looked at from time to time.
                let next = tokio::time::timeout(Duration::from_millis(20), self.receiver.recv());
                if let Ok(changes) = next.await {
                    self.take(changes.expect("the source runs"));
                }
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(result.is_ok(), "{what}: not seen; {:?}", self.planner.snapshot());
    }

    fn connected(&self) -> [bool; 4] {
        Watched::ALL.map(|watched| self.health.of(watched).is_connected())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn with_lists() -> Server {
    let server = Server::new().await;
    server.state().lists = [
        ("services", vec![web(80)]),
        ("endpointslices", vec![slice("10.0.0.1")]),
        ("nodes", vec![node("z1")]),
        ("servicecidrs", vec![cidr("kubernetes", "10.96.0.0/16")]),
    ]
    .into();
    server
}

#[tokio::test]
async fn the_first_lists_are_asked_for_with_the_filters_of_kube_proxy() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    source
        .until("all lists", |source| source.planner.is_synced() && source.snapshot().node.is_some())
        .await;
    assert_eq!(source.port(), Some(80));
    assert_eq!(source.snapshot().slices.len(), 1);
    for resource in ["services", "endpointslices", "nodes", "servicecidrs"] {
        server.watched(resource).await;
    }
    source.until("all watches", |source| source.connected() == [true; 4]).await;
    assert!(Watched::ALL.iter().all(|one| source.health.of(*one).last_event_ms() > 0));
    let filters = [
        ("services", "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"),
        ("services", "fieldSelector=spec.clusterIP%21%3DNone"),
        ("endpointslices", "labelSelector=%21service.kubernetes.io%2Fheadless"),
        ("nodes", "fieldSelector=metadata.name%3Dnode-a"),
    ];
    let state = server.state();
    for (resource, filter) in filters {
        let mut queries = state.queries.iter().filter(|query| query.0 == resource);
        assert!(queries.clone().count() >= 2, "{resource}: a list and a watch");
        assert!(queries.all(|query| query.1.contains(filter)), "{filter}: {:?}", state.queries);
    }
}

#[tokio::test]
async fn events_become_changes_and_what_leaves_the_datapath_is_gone() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    server.send("services", "MODIFIED", &web(81)).await;
    source.until("modified", |source| source.port() == Some(81)).await;
    let bad = service("web", &json!({"clusterIP": "10.96.0.10", "ports": [{"port": 0}]}));
    server.send("services", "MODIFIED", &bad).await;
    source
        .until("without a usable port", |source| {
            source.port().is_none() && !source.problems.is_empty()
        })
        .await;
    server.send("services", "MODIFIED", &web(82)).await;
    source
        .until("corrected", |source| source.port() == Some(82) && source.problems.is_empty())
        .await;
    let external = service("web", &json!({"type": "ExternalName", "externalName": "a.example"}));
    server.send("services", "MODIFIED", &external).await;
    source.until("ExternalName", |source| source.port().is_none()).await;
    server.send("services", "ADDED", &web(83)).await;
    source.until("added", |source| source.port() == Some(83)).await;
    server.send("services", "DELETED", &web(83)).await;
    source.until("deleted", |source| source.port().is_none()).await;
    server.send("services", "ADDED", &bad).await;
    source.until("a problem", |source| !source.problems.is_empty()).await;
    server.send("services", "DELETED", &bad).await;
    source.until("no object, no problem", |source| source.problems.is_empty()).await;
    server.send("endpointslices", "DELETED", &slice("10.0.0.1")).await;
    source.until("slice deleted", |source| source.snapshot().slices.is_empty()).await;
    server.send("nodes", "DELETED", &node("z1")).await;
    source.until("node deleted", |source| source.snapshot().node.is_none()).await;
}

#[tokio::test]
async fn a_cut_watch_resumes_where_it_was_without_a_new_list() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    server.send("services", "MODIFIED", &web(81)).await;
    source.until("before", |source| source.port() == Some(81)).await;
    server.cut("services");
    server.send("services", "MODIFIED", &web(82)).await;
    source.until("after", |source| source.port() == Some(82)).await;
    let state = server.state();
    assert_eq!(state.lists_made["services"], 1);
    let [first, second] = state.watched_from["services"].as_slice() else {
        panic!("{:?}", state.watched_from);
    };
    assert!(first.parse::<u64>().unwrap() < second.parse::<u64>().unwrap());
}

#[tokio::test]
async fn a_version_that_is_gone_makes_a_new_list_whether_said_by_event_or_by_status() {
    for by_event in [true, false] {
        let server = with_lists().await;
        let mut source = Source::of(&server);
        server.watched("services").await;
        server.state().lists.insert("services", vec![web(99)]);
        if by_event {
            server.send("services", "ERROR", &failure(410, "Expired")).await;
        } else {
            server.state().gone.insert("services");
        }
        server.cut("services");
        source.until("relisted", |source| source.port() == Some(99)).await;
        assert_eq!(server.state().lists_made["services"], 2, "by event: {by_event}");
        assert!(source.health.of(Watched::Services).errors() >= 1);
        server.send("services", "MODIFIED", &web(100)).await;
        source.until("watched again", |source| source.port() == Some(100)).await;
    }
}

#[tokio::test]
async fn objects_that_went_away_during_a_gap_are_gone_after_the_new_list() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    source.until("listed", |source| source.port() == Some(80)).await;
    server.watched("services").await;
    server.state().lists.insert("services", Vec::new());
    server.send("services", "ERROR", &failure(410, "Expired")).await;
    source.until("gone", |source| source.port().is_none()).await;
}

#[tokio::test]
async fn of_a_list_that_failed_half_way_nothing_is_kept() {
    let server = with_lists().await;
    let stale = service("stale", &json!({"clusterIP": "10.96.0.11", "ports": [{"port": 1}]}));
    server.state().broken_lists.insert("services", stale);
    let mut source = Source::of(&server);
    source.until("the second list", |source| source.planner.is_synced()).await;
    assert_eq!(source.snapshot().services.len(), 1);
    assert_eq!(source.port(), Some(80));
    assert_eq!(server.state().lists_made["services"], 2);
}

#[tokio::test]
async fn a_server_that_is_down_is_asked_until_it_answers() {
    let mut server = Server::down().await;
    let mut source = Source::of(&server);
    let failed = |source: &Source| {
        Watched::ALL.iter().all(|watched| source.health.of(*watched).errors() > 0)
    };
    source.until("failures", failed).await;
    assert_eq!(source.connected(), [false; 4]);
    assert!(!source.planner.is_synced(), "nothing is known, so nothing may be written");
    server.state().lists.insert("services", vec![web(80)]);
    server.start().await;
    source.until("lists", |source| source.port() == Some(80) && source.planner.is_synced()).await;
    source.until("all watches", |source| source.connected() == [true; 4]).await;
}

#[tokio::test]
async fn of_several_addresses_the_first_that_answers_is_followed() {
    let (down, up, spare) = (Server::down().await, with_lists().await, with_lists().await);
    let mut source = Source::of_all(&[&down, &up, &spare]);
    source.until("lists", |source| source.connected() == [true; 4]).await;
    source.until("synced", |source| source.planner.is_synced()).await;
    assert!(Watched::ALL.iter().all(|watched| source.health.of(*watched).errors() == 0));
    assert!(spare.state().queries.is_empty(), "{:?}", spare.state().queries);
}

#[tokio::test]
async fn the_watches_go_on_at_another_address_when_their_server_goes_and_back_when_that_one_does() {
    let (mut first, mut second) = (with_lists().await, with_lists().await);
    let mut source = Source::of_all(&[&first, &second]);
    source.until("lists", |source| source.connected() == [true; 4]).await;
    source.until("synced", |source| source.planner.is_synced()).await;
    assert!(second.state().queries.is_empty(), "the preferred one is asked alone");
    for port in [81, 82] {
        first.stop().await;
        second.send("services", "MODIFIED", &web(port)).await;
        source.until("at the other", |source| source.port() == Some(port)).await;
        first.start().await;
        std::mem::swap(&mut first, &mut second);
    }
    source.until("all watches", |source| source.connected() == [true; 4]).await;
}

#[tokio::test]
async fn a_server_that_says_it_cannot_is_left_for_another() {
    let (ill, well) = (with_lists().await, with_lists().await);
    ill.state().ill = true;
    let mut source = Source::of_all(&[&ill, &well]);
    source.until("lists", |source| source.planner.is_synced()).await;
    assert_eq!(source.port(), Some(80));
    // Where all are ill, what they say is seen.
    well.state().ill = true;
    well.cut("services");
    let errors = source.health.of(Watched::Services).errors();
    source.until("an error", |source| source.health.of(Watched::Services).errors() > errors).await;
}

#[tokio::test]
async fn a_resource_that_is_forbidden_does_not_stop_the_others() {
    let server = with_lists().await;
    server.state().forbidden.insert("nodes");
    let mut source = Source::of(&server);
    source
        .until("the others", |source| {
            source.planner.is_synced() && source.connected() == [true, true, false, true]
        })
        .await;
    source.until("an error", |source| source.health.of(Watched::Node).errors() > 0).await;
    server.state().forbidden.clear();
    source.until("allowed", |source| source.snapshot().node.is_some()).await;
    source.until("watched", |source| source.connected() == [true; 4]).await;
}

#[tokio::test]
async fn the_source_ends_when_nobody_receives() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    source.receiver.close();
    let ended = tokio::time::timeout(Duration::from_secs(5), &mut source.task).await;
    assert!(ended.is_ok());
}

#[tokio::test]
async fn a_server_with_tls_has_a_client_too() {
    let url: http::Uri = "https://127.0.0.1:1".parse().unwrap();
    assert!(client(kube::Config::new(url.clone()), vec![url], &Arc::default()).is_ok());
}

#[tokio::test]
async fn service_cidrs_come_and_go_while_they_are_watched() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    source.until("the first", |source| source.is_ranges(&["10.96.0.0/16"])).await;
    server.send("servicecidrs", "ADDED", &cidr("more", "10.97.0.0/16")).await;
    source.until("the second", |source| source.is_ranges(&["10.96.0.0/16", "10.97.0.0/16"])).await;
    server.send("servicecidrs", "DELETED", &cidr("kubernetes", "10.96.0.0/16")).await;
    source.until("the first is gone", |source| source.is_ranges(&["10.97.0.0/16"])).await;
}

#[tokio::test]
async fn a_server_without_service_cidrs_or_a_role_without_them_is_no_obstacle() {
    for is_old in [true, false] {
        let server = with_lists().await;
        if is_old {
            server.state().unknown.insert("servicecidrs");
        } else {
            server.state().forbidden.insert("servicecidrs");
        }
        let mut source = Source::of(&server);
        source.until("none", |source| source.planner.is_synced() && source.is_ranges(&[])).await;
        source.until("the others", |source| source.connected() == [true, true, true, false]).await;
        assert_eq!(source.health.of(Watched::Cidrs).errors(), 0, "nothing is wrong");
        server.state().unknown.clear();
        server.state().forbidden.clear();
        source.until("asked again", |source| source.is_ranges(&["10.96.0.0/16"])).await;
        source.until("watched", |source| source.connected() == [true; 4]).await;
        // The role is taken away while we watch.
        server.watched("servicecidrs").await;
        server.state().forbidden.insert("servicecidrs");
        server.cut("servicecidrs");
        source.until("none again", |source| source.is_ranges(&[])).await;
        server.state().forbidden.clear();
        source.until("listed anew", |source| source.is_ranges(&["10.96.0.0/16"])).await;
    }
}
