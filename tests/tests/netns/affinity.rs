//! Session affinity: a client's connections keep together, wherever the client is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::Duration;

use lb_lab::{EXTERNAL_IP, Family, LOAD_BALANCER, Options, Request, Transport};

use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, for_both};

/// The default of Kubernetes.
const THREE_HOURS: Option<u32> = Some(10_800);
/// Without affinity, as many requests reach one of three endpoints alone once in 10⁷ runs.
const REQUESTS: u32 = 16;

for_both! {
    pods_and_nodes_keep_one_endpoint_through_every_address,
    affinity_is_switched_on_and_off_while_the_service_is_used,
    a_client_that_was_silent_for_longer_than_the_timeout_is_forgotten,
    a_client_whose_endpoint_leaves_gets_another_and_keeps_it,
}

fn three(affinity: Option<u32>) -> Service {
    Service { affinity, ..Service::new(1, &["pod-a1", "pod-a2", "pod-b1"]) }
}

/// Who answers requests, each from a socket of its own, and UDP from a port of its own: a port that is used
/// again belongs to a flow that has its endpoint.
fn servers(stage: &Stage, from: &str, request: &Request) -> BTreeSet<String> {
    static PORTS: AtomicU16 = AtomicU16::new(10_000);
    let server = |_| {
        let request = match request.transport {
            Transport::Tcp => request.clone(),
            Transport::Udp => request.clone().from_port(PORTS.fetch_add(1, Ordering::Relaxed)),
        };
        stage.answer(from, &request).server
    };
    (0..REQUESTS).map(server).collect()
}

fn cluster_ip(service: &Service, family: Family, transport: Transport) -> Request {
    Request::new(transport, service.cluster_ip().of(family), PORT)
}

#[test]
fn a_client_outside_keeps_one_endpoint_through_every_address_of_a_node() {
    let service = three(THREE_HOURS);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    for (family, transport) in each() {
        for node in ["node-a", "node-b"] {
            let mut seen = BTreeSet::new();
            for entry in stage.entries(&service).iter().filter(|entry| entry.node == node) {
                let request = Request::new(transport, entry.to.of(family), entry.port);
                seen.extend(servers(&stage, "client", &request));
            }
            assert_eq!(seen.len(), 1, "through {node}, {family} {transport}: {seen:?}");
        }
    }
}

fn pods_and_nodes_keep_one_endpoint_through_every_address(pods: Pods) {
    let service = three(THREE_HOURS);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    for (from, node) in
        [("pod-b2", "node-b"), ("pod-a2", "node-a"), ("node-a", "node-a"), ("node-b", "node-b")]
    {
        for (family, transport) in each() {
            let own = stage.address(node, family);
            let mut seen = BTreeSet::new();
            for (to, port) in [
                (service.cluster_ip().of(family), PORT),
                (LOAD_BALANCER.of(family), PORT),
                (EXTERNAL_IP.of(family), PORT),
                (own, service.node_port_number()),
            ] {
                for connected in [true, false] {
                    let request = Request { connected, ..Request::new(transport, to, port) };
                    seen.extend(servers(&stage, from, &request));
                }
            }
            assert_eq!(seen.len(), 1, "from {from}, {family} {transport}: {seen:?}");
        }
    }
}

fn affinity_is_switched_on_and_off_while_the_service_is_used(pods: Pods) {
    let stage = Stage::serving(pods, &Options::default(), &[three(THREE_HOURS)]);
    for affinity in [None, THREE_HOURS, None, Some(86_400), Some(600)] {
        let service = three(affinity);
        stage.publish(std::slice::from_ref(&service));
        for (family, transport) in each() {
            let inside = cluster_ip(&service, family, transport);
            let outside = Request::new(
                transport,
                stage.address("node-a", family),
                service.node_port_number(),
            );
            for (from, request) in [("pod-b2", &inside), ("node-a", &inside), ("client", &outside)]
            {
                let seen = servers(&stage, from, request);
                let what = format!("{affinity:?} from {from}, {family} {transport}: {seen:?}");
                assert_eq!(seen.len() == 1, affinity.is_some(), "{what}");
            }
        }
        let rows = stage.agent_says("node-a", &["services", "-o", "wide"]);
        let shown = affinity.map(|seconds| format!("affinity={seconds}s"));
        assert!(shown.is_none_or(|shown| rows.contains(&shown)), "{rows}");
    }
}

fn a_client_that_was_silent_for_longer_than_the_timeout_is_forgotten(pods: Pods) {
    let service = three(Some(1));
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    let outside = Request::tcp(stage.address("node-b", Family::V6), service.node_port_number());
    let inside = cluster_ip(&service, Family::V4, Transport::Udp);
    for (from, request) in [("client", outside), ("pod-a1", inside)] {
        // Every connection counts anew: together they last longer than the timeout.
        let first = stage.answer(from, &request).server;
        for _ in 0..4 {
            sleep(Duration::from_millis(500));
            assert_eq!(stage.answer(from, &request).server, first, "{from}");
        }
        let mut seen = BTreeSet::from([first]);
        for _ in 0..REQUESTS {
            sleep(Duration::from_millis(1100));
            seen.insert(stage.answer(from, &request).server);
            if seen.len() > 1 {
                break;
            }
        }
        assert!(seen.len() > 1, "{from}: {seen:?} is remembered for ever");
    }
}

fn a_client_whose_endpoint_leaves_gets_another_and_keeps_it(pods: Pods) {
    let service = three(THREE_HOURS);
    let mut stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    for (family, transport) in each() {
        let inside = cluster_ip(&service, family, transport);
        let outside =
            Request::new(transport, stage.address("node-a", family), service.node_port_number());
        for (from, request) in [("pod-b2", inside), ("client", outside)] {
            let first = stage.answer(from, &request).server;
            let mut fewer = service.clone();
            fewer.backends.retain(|name| *name != first);
            stage.publish(std::slice::from_ref(&fewer));
            let second = servers(&stage, from, &request);
            assert_eq!(second.len(), 1, "{from} {family} {transport}: {second:?}");
            assert!(!second.contains(&first));
            // It comes back: another endpoint at the same address, and nobody's memory.
            stage.publish(std::slice::from_ref(&service));
            assert_eq!(servers(&stage, from, &request), second, "{from} {family} {transport}");
        }
    }
    let request = cluster_ip(&service, Family::V4, Transport::Tcp);
    let before = servers(&stage, "pod-b2", &request);
    stage.kill_agent("node-b");
    assert_eq!(servers(&stage, "pod-b2", &request), before, "without an agent");
    stage.start_agent("node-b");
    assert_eq!(servers(&stage, "pod-b2", &request), before, "after a restart");
}
