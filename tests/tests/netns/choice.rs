//! Which endpoints serve a client: what slices say of them, and labels that hand them to somebody else.

use std::collections::BTreeSet;
use std::time::Duration;

use lb_lab::{EXTERNAL_IP, Family, Options, Request};

use crate::manifest::{POD_PORT, PORT, Service};
use crate::stage::{Pods, Stage, each, eventually, for_both};

/// One of two equal endpoints stays without a request once in eight million times.
const REQUESTS: usize = 24;
/// Patience with silence.
const SILENCE: Duration = Duration::from_millis(300);

/// For hints of zones; an agent looks at the Node of its own.
const NODES: &str = "
{apiVersion: v1, kind: Node, metadata: {name: node-a, labels: {topology.kubernetes.io/zone: east}}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-b, labels: {topology.kubernetes.io/zone: west}}}
";

/// What a slice says of an endpoint.
const READY: &str = "";
const NOT_READY: &str = "conditions: {ready: false, serving: false}";
const TERMINATING: &str = "conditions: {ready: false, serving: true, terminating: true}";
const FOR_NODE_A: &str = "hints: {forNodes: [{name: node-a}]}";
const FOR_NODE_B: &str = "hints: {forNodes: [{name: node-b}]}";
const FOR_EAST: &str = "hints: {forZones: [{name: east}]}";
const FOR_WEST: &str = "hints: {forZones: [{name: west}]}";
const FOR_WEST_BUT_NOT_READY: &str =
    "hints: {forZones: [{name: west}]}, conditions: {ready: false, serving: false}";

/// Labels with which somebody else takes over.
const PROXY: &str = "service.kubernetes.io/service-proxy-name: somebody";
const HEADLESS: &str = "service.kubernetes.io/headless: ''";

/// Of a slice: a label, and what it says of pod-a1 and of pod-b1, if it holds them.
type Slice = (&'static str, Option<&'static str>, Option<&'static str>);

/// What is due to clients of node-b.
#[derive(Clone, Copy)]
enum Due {
    Served(&'static [&'static str]),
    Refused,
    /// The Service is nobody's.
    NotOurs,
}

const BOTH: Due = Due::Served(&["pod-a1", "pod-b1"]);
const A: Due = Due::Served(&["pod-a1"]);
const B: Due = Due::Served(&["pod-b1"]);

/// One after the other: a label of the Service, its slices, and what is due.
#[rustfmt::skip]
const STATES: [(&str, &[Slice], Due); 13] = [
    ("", &[("", Some(FOR_NODE_A), Some(FOR_NODE_B))], B),
    // One without a hint, and nobody looks at hints.
    ("", &[("", Some(READY), Some(FOR_NODE_B))], BOTH),
    ("", &[("", Some(FOR_EAST), Some(FOR_WEST))], B),
    // Hints count among those that are ready, and not at all when they leave nobody.
    ("", &[("", Some(FOR_EAST), Some(FOR_WEST_BUT_NOT_READY))], A),
    // The last resort.
    ("", &[("", Some(TERMINATING), Some(TERMINATING))], BOTH),
    ("", &[("", Some(TERMINATING), Some(READY))], B),
    // Said twice: the endpoint that isn't terminating counts.
    ("", &[("", Some(TERMINATING), Some(READY)), ("", Some(READY), None)], BOTH),
    ("", &[("", Some(TERMINATING), Some(READY)), (HEADLESS, Some(READY), None)], B),
    ("", &[(HEADLESS, Some(READY), Some(READY))], Due::Refused),
    ("", &[("", Some(READY), Some(READY))], BOTH),
    (PROXY, &[("", Some(READY), Some(READY))], Due::NotOurs),
    ("", &[("", Some(READY), Some(READY))], BOTH),
    ("", &[("", Some(NOT_READY), Some(NOT_READY))], Due::Refused),
];

for_both! { endpoints_are_those_that_conditions_hints_slices_and_labels_leave }

/// The Service with a label and these slices.
fn objects(stage: &Stage, service: &Service, label: &str, slices: &[Slice]) -> String {
    let mut object = service.documents(stage.lab().topology()).swap_remove(0);
    if let Some((key, value)) = label.split_once(": ") {
        object["metadata"]["labels"] = serde_json::json!({ key: value });
    }
    let mut text = object.to_string();
    for family in Family::BOTH {
        for (number, (label, of_a, of_b)) in slices.iter().enumerate() {
            let endpoint = |pod: &str, node: &str, said: &Option<&str>| {
                let address = stage.address(pod, family);
                said.map(|said| format!("{{addresses: ['{address}'], nodeName: {node}, {said}}}, "))
                    .unwrap_or_default()
            };
            let [a, b] = [endpoint("pod-a1", "node-a", of_a), endpoint("pod-b1", "node-b", of_b)];
            let name = service.name();
            text.push_str(&format!(
                "
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {family}, endpoints: [{a}{b}],
metadata: {{name: {}-{number}, labels: {{kubernetes.io/service-name: {name}, {label}}}}},
ports: [{{name: web, protocol: TCP, port: {POD_PORT}}}, {{name: echo, protocol: UDP, port: {POD_PORT}}}]}}",
                family.to_string().to_lowercase()
            ));
        }
    }
    text
}

fn endpoints_are_those_that_conditions_hints_slices_and_labels_leave(pods: Pods) {
    let service = Service::new(1, &["pod-a1", "pod-b1"]);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    stage.write("nodes.yaml", NODES);
    // Each request has a port of its own: UDP flows keep an endpoint that serves, whatever else it is.
    let mut client_ports = 10_000..;
    let writes = || stage.metric("node-b", "lb_agent_programming_duration_seconds_count");
    for (number, (label, slices, due)) in STATES.into_iter().enumerate() {
        let before = writes();
        stage.write("services.yaml", &objects(&stage, &service, label, slices));
        eventually(&format!("state {number} is written"), || writes() > before);
        for (from, to) in [
            ("pod-b2", service.cluster_ip()),
            ("node-b", service.cluster_ip()),
            // It is routed to node-b.
            ("client", EXTERNAL_IP),
        ] {
            for (family, transport) in each() {
                let request = Request::new(transport, to.of(family), PORT).connected();
                let what = format!("state {number}: {from} {family} {transport}");
                match due {
                    Due::Served(expected) => {
                        let answer = |port| stage.answer(from, &request.clone().from_port(port));
                        let servers: BTreeSet<_> = client_ports
                            .by_ref()
                            .take(REQUESTS)
                            .map(|port| answer(port).server)
                            .collect();
                        assert!(servers.iter().eq(expected), "{what}: {servers:?}");
                    }
                    Due::Refused => {
                        assert_eq!(stage.failure(from, &request).errno, "ECONNREFUSED", "{what}");
                    }
                    Due::NotOurs => {
                        // Whatever the network says to it: we don't.
                        let failure = stage.failure(from, &request.patience(SILENCE));
                        assert_ne!(failure.errno, "ECONNREFUSED", "{what}");
                    }
                }
            }
        }
    }
}
