//! Objects that don't fit their type: each is a problem of its own, and nobody else's.

use serde_json::{Value, json};

use super::server::Server;
use super::{Source, cidr, node, service, slice, web, with_lists};
use crate::cluster::watch::Watched;

/// A Service whose port is a word.
fn bad(name: &str) -> Value {
    service(name, &json!({"clusterIP": "10.96.0.11", "ports": [{"port": 1}, {"port": "two"}]}))
}

fn bad_slice() -> Value {
    let mut object = slice("10.0.0.2");
    object["metadata"]["name"] = "bad".into();
    object["endpoints"][0]["addresses"] = "10.0.0.2".into();
    object
}

fn bad_cidr() -> Value {
    json!({"metadata": {"name": "bad"}, "spec": {"cidrs": {}}})
}

fn bad_node() -> Value {
    let mut object = node("z1");
    object["metadata"]["labels"] = json!(["zone"]);
    object
}

impl Source {
    /// Whether this object has one problem, and the field is blamed.
    fn blames(&self, object: &str, field: &str) -> bool {
        let reasons = self.problems.get(object).map(Vec::as_slice);
        matches!(reasons, Some([reason]) if reason.contains(&format!(": {field}: invalid type")))
    }

    fn blames_all(&self) -> bool {
        self.blames("Service default/bad", "spec.ports[1].port")
            && self.blames("EndpointSlice default/bad", "endpoints[0].addresses")
            && self.blames("ServiceCIDR bad", "spec.cidrs")
            && self.blames("Node node-a", "metadata.labels")
    }

    /// The good objects of [`with_lists`] are there, and no other.
    fn has_the_good_ones(&self) -> bool {
        let snapshot = self.snapshot();
        self.port() == Some(80)
            && (snapshot.services.len(), snapshot.slices.len()) == (1, 1)
            && snapshot.node.is_none()
            && self.is_ranges(&["10.96.0.0/16"])
    }

    fn has_no_errors(&self) -> bool {
        Watched::ALL.iter().all(|watched| self.health.of(*watched).errors() == 0)
    }
}

const RESOURCES: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

/// No watch ended because of an object.
fn listed_once(server: &Server) -> bool {
    let state = server.state();
    RESOURCES
        .iter()
        .all(|resource| (state.lists_made[resource], state.watched_from[resource].len()) == (1, 1))
}

#[tokio::test]
async fn in_a_list_they_are_named_and_the_others_are_used() {
    let server = with_lists().await;
    {
        let mut state = server.state();
        state.lists.insert("services", vec![bad("bad"), web(80)]);
        state.lists.insert("endpointslices", vec![bad_slice(), slice("10.0.0.1")]);
        state.lists.insert("nodes", vec![bad_node()]);
        state.lists.insert("servicecidrs", vec![bad_cidr(), cidr("kubernetes", "10.96.0.0/16")]);
    }
    let mut source = Source::of(&server);
    source.until("all named", |source| source.blames_all() && source.has_the_good_ones()).await;
    for resource in RESOURCES {
        server.watched(resource).await;
    }
    assert_eq!(source.problems.len(), 4, "{:?}", source.problems);
    assert!(source.has_no_errors() && listed_once(&server));
}

#[tokio::test]
async fn in_a_watch_they_are_named_and_the_others_are_used() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    source.until("all lists", |source| source.snapshot().node.is_some()).await;
    server.send("services", "ADDED", &bad("bad")).await;
    server.send("endpointslices", "ADDED", &bad_slice()).await;
    server.send("servicecidrs", "ADDED", &bad_cidr()).await;
    server.send("nodes", "MODIFIED", &bad_node()).await;
    source.until("all named", |source| source.blames_all() && source.has_the_good_ones()).await;
    server.send("services", "MODIFIED", &web(81)).await;
    source.until("others go on", |source| source.port() == Some(81)).await;
    server.send("nodes", "MODIFIED", &node("z2")).await;
    source.until("corrected", |source| source.snapshot().node.is_some()).await;
    server.send("services", "DELETED", &bad("bad")).await;
    server.send("endpointslices", "DELETED", &bad_slice()).await;
    server.send("servicecidrs", "DELETED", &bad_cidr()).await;
    source.until("no object, no problem", |source| source.problems.is_empty()).await;
    assert!(source.has_no_errors() && listed_once(&server));
}

#[tokio::test]
async fn one_that_was_in_use_leaves_the_datapath_until_it_is_corrected() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    source.until("in use", |source| source.port() == Some(80)).await;
    server.send("services", "MODIFIED", &bad("web")).await;
    source.until("gone", |source| source.port().is_none()).await;
    assert!(source.blames("Service default/web", "spec.ports[1].port"), "{:?}", source.problems);
    server.send("services", "MODIFIED", &web(82)).await;
    source.until("back", |source| source.port() == Some(82) && source.problems.is_empty()).await;
}

#[tokio::test]
async fn a_cut_watch_resumes_behind_one() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    server.send("services", "ADDED", &bad("bad")).await;
    source.until("named", |source| !source.problems.is_empty()).await;
    server.cut("services");
    server.send("services", "MODIFIED", &web(81)).await;
    source.until("resumed", |source| source.port() == Some(81)).await;
    let state = server.state();
    let versions: Vec<u64> =
        state.watched_from["services"].iter().map(|version| version.parse().unwrap()).collect();
    assert!(matches!(versions[..], [listed, bad] if listed < bad), "{versions:?}");
    assert_eq!(state.lists_made["services"], 1);
}

#[tokio::test]
async fn one_without_a_name_is_a_failure_of_the_watch() {
    let server = with_lists().await;
    let mut source = Source::of(&server);
    source.until("in use", |source| source.port() == Some(80)).await;
    let mut nameless = bad("bad");
    nameless["metadata"] = json!({});
    server.send("services", "ADDED", &nameless).await;
    source.until("counted", |source| source.health.of(Watched::Services).errors() == 1).await;
    assert!(source.problems.is_empty());
    server.send("services", "MODIFIED", &web(81)).await;
    source.until("others go on", |source| source.port() == Some(81)).await;
}

#[tokio::test]
async fn a_condition_without_a_time_disturbs_no_service() {
    let server = with_lists().await;
    // As the API server writes what a client left out.
    let conditioned = |port| {
        let mut object = web(port);
        object["status"] = json!({
            "loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]},
            "conditions": [{"type": "Ready", "status": "True", "reason": "Any", "message": "",
                            "lastTransitionTime": null}],
        });
        object
    };
    let mut source = Source::of(&server);
    server.send("services", "MODIFIED", &conditioned(81)).await;
    source.until("with the condition", |source| source.port() == Some(81)).await;
    server.send("services", "MODIFIED", &web(82)).await;
    source.until("without it", |source| source.port() == Some(82)).await;
    let health = source.health.of(Watched::Services);
    assert_eq!((health.errors(), health.is_connected()), (0, true));
}
