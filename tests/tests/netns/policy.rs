//! Verdicts and traffic policies: refusals, silence, and who may serve whom.

use std::time::Duration;

use lb_lab::{Options, PodNetwork, Request, Transport};

use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, eventually, for_both};

/// Patience with silence.
const SILENCE: Duration = Duration::from_millis(300);

for_both! {
    a_service_without_endpoints_refuses_at_once_at_every_address,
    external_policy_local_keeps_the_client_and_is_silent_on_a_node_without_endpoint,
    internal_policy_local_serves_from_the_clients_own_node_or_not_at_all,
    a_port_that_a_live_cluster_ip_does_not_have_is_refused_and_a_forgotten_one_is_nobodys,
}

fn a_service_without_endpoints_refuses_at_once_at_every_address(pods: Pods) {
    let service = Service::new(1, &[]);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    for from in ["client", "pod-a1"] {
        for entry in stage.entries(&service) {
            for (family, transport) in each() {
                let mut request = Request::new(transport, entry.to.of(family), entry.port);
                request.connected = true;
                let what =
                    format!("{from} → {} at {}, {family} {transport}", entry.name, entry.node);
                let failure = stage.failure(from, &request);
                assert_eq!(failure.errno, "ECONNREFUSED", "{what}");
                // No retransmission was needed: those begin after a second.
                assert!(failure.micros < 900_000, "{what}: {failure}");
            }
        }
    }
    for from in ["pod-a1", "node-a"] {
        for (family, transport) in each() {
            let request = Request::new(transport, service.cluster_ip().of(family), PORT);
            // A socket that isn't connected doesn't hear of ICMP errors.
            let request = Request { connected: pods.asks_by_packet(from), ..request };
            let failure = stage.failure(from, &request);
            assert_eq!(failure.errno, "ECONNREFUSED", "{from} {family} {transport}");
        }
    }
    assert!(stage.metric("node-a", "lb_agent_drops_total{reason=\"no_endpoints\"}") > 0.0);
}

fn external_policy_local_keeps_the_client_and_is_silent_on_a_node_without_endpoint(pods: Pods) {
    let masquerade = Options { masquerade: true, ..Options::default() };
    let overlay = Options { pod_network: PodNetwork::Vxlan, ..masquerade.clone() };
    let tunnel = Options { pod_network: PodNetwork::Tunnel, ..masquerade.clone() };
    for options in [Options::default(), masquerade, overlay, tunnel] {
        external_policy_local(pods, &options);
    }
}

fn external_policy_local(pods: Pods, options: &Options) {
    let service = Service { external_local: true, ..Service::new(1, &["pod-a1", "pod-a2"]) };
    let stage = Stage::serving(pods, options, std::slice::from_ref(&service));
    for (entry, client_port) in stage.entries(&service).into_iter().zip(6000..) {
        for (family, transport) in each() {
            let what = format!("{} at {}, {family} {transport}", entry.name, entry.node);
            let mut request = Request::new(transport, entry.to.of(family), entry.port);
            request.connected = true;
            // Flows with the same client port, client and backend would have to give way.
            request.local_port = Some(client_port);
            if entry.node == "node-a" {
                let answer = stage.answer("client", &request);
                assert_eq!(answer.seen, answer.local, "{what}");
            } else {
                let failure = stage.failure("client", &request.patience(SILENCE));
                assert_eq!(failure.errno, "ETIMEDOUT", "{what}");
            }
        }
    }
    let reason = "lb_agent_drops_total{reason=\"no_local_endpoint\"}";
    eventually("silent drops are counted", || stage.metric("node-b", reason) > 0.0);
    // Inside the cluster the policy does not bind: node-b's pods reach node-a's.
    for (family, transport) in each() {
        let to = stage.entries(&service)[2].to.of(family);
        let answer = stage.answer("pod-b1", &Request::new(transport, to, PORT));
        assert!(answer.server.starts_with("pod-a"), "{family} {transport}");
    }
}

fn internal_policy_local_serves_from_the_clients_own_node_or_not_at_all(pods: Pods) {
    let both = Service { internal_local: true, ..Service::new(1, &["pod-a1", "pod-b1"]) };
    let one = Service { internal_local: true, ..Service::node_port(2, &["pod-a1"]) };
    let stage = Stage::serving(pods, &Options::default(), &[both.clone(), one.clone()]);
    for (family, transport) in each() {
        let to = both.cluster_ip().of(family);
        for (from, server) in [("pod-a2", "pod-a1"), ("pod-b2", "pod-b1"), ("node-b", "pod-b1")] {
            for _ in 0..8 {
                let answer = stage.answer(from, &Request::new(transport, to, PORT));
                assert_eq!(answer.server, server, "{from} {family} {transport}");
            }
        }
        let to = one.cluster_ip().of(family);
        let request = Request::new(transport, to, PORT).patience(SILENCE);
        let failure = stage.failure("pod-b2", &request);
        assert_eq!(failure.errno, "ETIMEDOUT", "{family} {transport}");
        // The NodePort follows the external policy.
        let to = stage.address("node-b", family);
        let answer = stage.answer("client", &Request::new(transport, to, one.node_port_number()));
        assert_eq!(answer.server, "pod-a1", "{family} {transport}");
    }
}

fn a_port_that_a_live_cluster_ip_does_not_have_is_refused_and_a_forgotten_one_is_nobodys(
    pods: Pods,
) {
    let service = Service::new(1, &["pod-a1"]);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    for (family, transport) in each() {
        let to = service.cluster_ip().of(family);
        for from in ["pod-a2", "pod-b1", "node-b", "client"] {
            let request = Request::new(transport, to, 81).connected();
            let failure = stage.failure(from, &request);
            assert_eq!(failure.errno, "ECONNREFUSED", "{from} {family} {transport}");
        }
    }
    let request = Request::new(Transport::Tcp, service.cluster_ip().v4.into(), PORT);
    assert_eq!(stage.answer("pod-a2", &request).server, "pod-a1");
    let unknown = "lb_agent_drops_total{reason=\"unknown_port\"}";
    eventually("refusals are counted", || stage.metric("node-b", unknown) > 0.0);
    stage.publish(&[Service::new(2, &["pod-a1"])]);
    for (family, transport) in each() {
        for from in ["pod-a2", "node-b"] {
            let to = service.cluster_ip().of(family);
            let request = Request::new(transport, to, PORT).connected().patience(SILENCE);
            // Whatever the network says to it: we don't.
            let failure = stage.failure(from, &request);
            assert_ne!(failure.errno, "ECONNREFUSED", "{from} {family} {transport}");
        }
    }
}
