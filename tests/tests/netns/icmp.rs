//! ICMP errors of both directions: from backends and routers to clients, and our own.

use std::time::Duration;

use lb_lab::{Family, Options, PodNetwork, Request, Transport};

use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, for_both};

/// A port that no pod serves.
const CLOSED: u16 = 9;

for_both! { a_backends_port_unreachable_reaches_the_client_of_local_and_remote_flows }

fn a_backends_port_unreachable_reaches_the_client_of_local_and_remote_flows(pods: Pods) {
    let closed = |number, backend: &str| Service {
        target_port: CLOSED,
        ..Service::node_port(number, &[backend])
    };
    for pod_network in [PodNetwork::Routed, PodNetwork::Tunnel] {
        let options = Options { pod_network, masquerade: true, ..Options::default() };
        let services = [closed(1, "pod-a1"), closed(2, "pod-b1")];
        port_unreachable(&Stage::serving(pods, &options, &services), &services);
    }
}

fn port_unreachable(stage: &Stage, services: &[Service]) {
    for service in services {
        for (family, transport) in each() {
            let node = (stage.address("node-a", family), service.node_port_number());
            let cluster_ip = (service.cluster_ip().of(family), PORT);
            // The last one asks itself, where it is the endpoint.
            for (from, (to, port)) in
                [("client", node), ("pod-a2", node), ("pod-a2", cluster_ip), ("pod-a1", cluster_ip)]
            {
                let request = Request::new(transport, to, port).connected();
                let failure = stage.failure(from, &request);
                let backend = &service.backends[0];
                let what = format!("{from} → {backend} {family} {transport}: {failure}");
                assert_eq!(failure.errno, "ECONNREFUSED", "{what}");
                assert!(failure.micros < 500_000, "{what}");
            }
        }
    }
}

/// "Time exceeded" messages that the client has received.
fn times_exceeded(stage: &Stage, family: Family) -> u64 {
    match family {
        Family::V4 => {
            let text = stage.run("client", &["cat", "/proc/net/snmp"]);
            let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
            let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
            let mut pairs = names.split(' ').zip(values.split(' '));
            pairs.find(|(name, _)| *name == "InTimeExcds").unwrap().1.parse().unwrap()
        }
        Family::V6 => {
            let text = stage.run("client", &["cat", "/proc/net/snmp6"]);
            let value = text.lines().find_map(|line| line.strip_prefix("Icmp6InTimeExcds"));
            value.unwrap().trim().parse().unwrap()
        }
    }
}

#[test]
fn the_hop_limit_counts_every_hop_and_who_ends_it_says_so() {
    let services = [Service::node_port(1, &["pod-a1"]), Service::node_port(2, &["pod-b1"])];
    let stage = Stage::up(&Options::default(), &services);
    // Hops: node-a, and for the remote backend node-b too.
    for (service, hops) in services.iter().zip([1, 2]) {
        for limit in 1..=3 {
            stage.lab().nft("client", &set_hop_limit(limit)).unwrap();
            for (family, transport) in each() {
                let what = format!("{hops} hops, limit {limit}, {family} {transport}");
                let before = times_exceeded(&stage, family);
                let to = stage.address("node-a", family);
                let request = Request::new(transport, to, service.node_port_number())
                    .patience(Duration::from_millis(if limit > hops { 2000 } else { 100 }));
                let outcome = stage.ask("client", &request);
                let told = times_exceeded(&stage, family) - before;
                if limit > hops {
                    assert!(outcome.is_ok(), "{what}: {outcome:?}");
                    assert_eq!(told, 0, "{what}");
                } else {
                    assert!(outcome.is_err(), "{what}: {outcome:?}");
                    assert!(told > 0, "{what}: no time exceeded");
                }
            }
        }
    }
}

fn set_hop_limit(limit: u8) -> String {
    format!(
        "table inet hops
delete table inet hops
table inet hops {{
    chain output {{
        type filter hook output priority 0; policy accept;
        ip protocol {{ tcp, udp }} ip ttl set {limit}
        meta nfproto ipv6 meta l4proto {{ tcp, udp }} ip6 hoplimit set {limit}
    }}
}}
"
    )
}

#[test]
fn errors_about_nobodys_flows_are_left_alone() {
    let service = Service::node_port(1, &["pod-a1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    for family in Family::BOTH {
        for host in ["node-a", "pod-a1"] {
            let request = Request::new(Transport::Udp, stage.address(host, family), CLOSED);
            let failure = stage.failure("client", &request.connected());
            assert_eq!(failure.errno, "ECONNREFUSED", "{host} {family}");
        }
    }
}
