//! hostPort is the CNI's: the portmap plugin's rules and our programs on one node.

use std::collections::BTreeSet;

use lb_lab::{Family, Options, Request};

use crate::manifest::{POD_PORT, PORT, Service};
use crate::stage::{Pods, Stage, each, for_both};

for_both! {
    a_host_port_a_node_port_and_a_service_lead_to_the_same_pod_side_by_side,
    a_masquerading_cni_changes_nothing_about_it,
}

/// What the pod asked for as `hostPort`.
const HOST_PORT: u16 = 8081;
const REQUESTS: u32 = 16;

/// The rules of the CNI plugin `portmap` (its nftables backend, v1.9.1) for a pod with a `hostPort`
/// over TCP and UDP, with `snat` as it is by default.
fn portmap(stage: &Stage, pod: &str, family: Family) -> String {
    let address = stage.address(pod, family);
    let (ip, to) = match family {
        Family::V4 => ("ip", format!("{address}:{POD_PORT}")),
        Family::V6 => ("ip6", format!("[{address}]:{POD_PORT}")),
    };
    let localhost = match family {
        Family::V4 => format!("ip saddr 127.0.0.1 ip daddr {address} masquerade"),
        Family::V6 => String::new(),
    };
    format!(
        "table {ip} cni_hostport {{
            chain hostports {{
                tcp dport {HOST_PORT} dnat to {to}
                udp dport {HOST_PORT} dnat to {to}
            }}
            chain hostip_hostports {{ }}
            chain hostports_all {{
                jump hostip_hostports
                jump hostports
            }}
            chain prerouting {{
                type nat hook prerouting priority -100;
                fib daddr type local jump hostports_all
            }}
            chain output {{
                type nat hook output priority -100;
                fib daddr type local jump hostports_all
            }}
            chain masquerading {{
                type nat hook postrouting priority 100;
                {ip} saddr {address} {ip} daddr {address} masquerade
                {localhost}
            }}
        }}"
    )
}

/// Who answers requests from sockets of their own.
fn servers(stage: &Stage, from: &str, request: &Request) -> BTreeSet<String> {
    (0..REQUESTS)
        .map(|_| {
            let answer = stage.answer(from, request);
            assert_eq!(answer.received_from.unwrap_or(request.to), request.to, "{from}");
            answer.server
        })
        .collect()
}

/// A pod with a `hostPort` that is an endpoint of a Service, too.
fn all_ways_lead_to_the_pod(pods: Pods, options: &Options) {
    let service = Service::new(1, &["pod-a1", "pod-b1"]);
    let stage = Stage::serving(pods, options, std::slice::from_ref(&service));
    for family in Family::BOTH {
        stage.lab().nft("node-a", &portmap(&stage, "pod-a1", family)).unwrap();
    }
    let pod = BTreeSet::from(["pod-a1".to_owned()]);
    let both = BTreeSet::from(["pod-a1".to_owned(), "pod-b1".to_owned()]);
    for (family, transport) in each() {
        let node = stage.address("node-a", family);
        let host_port = Request::new(transport, node, HOST_PORT);
        let node_port = Request::new(transport, node, service.node_port_number());
        let cluster_ip = Request::new(transport, service.cluster_ip().of(family), PORT);
        // They go on while the others come and go.
        let kept: Vec<_> = [("hostPort", &host_port), ("NodePort", &node_port)]
            .into_iter()
            .map(|(kind, request)| {
                let name = format!("{kind} {family} {transport}");
                Request { connected: true, ..request.clone() }.keep(name)
            })
            .collect();
        let first: Vec<_> =
            kept.iter().map(|request| stage.answer("client", request).server).collect();
        for from in ["client", "node-a", "pod-a2", "pod-b2", "node-b"] {
            let what = format!("{from} {family} {transport}");
            assert_eq!(servers(&stage, from, &host_port), pod, "hostPort, {what}");
            assert_eq!(servers(&stage, from, &node_port), both, "NodePort, {what}");
            assert_eq!(servers(&stage, from, &cluster_ip), both, "ClusterIP, {what}");
        }
        let seen = stage.answer("client", &host_port).seen;
        assert_eq!(seen.ip(), stage.address("client", family), "{family} {transport}");
        for (request, server) in kept.iter().zip(first) {
            assert_eq!(stage.answer("client", request).server, server, "{:?}", request.keep);
        }
    }
    // None of them is a flow of ours: the plugin's connections are the kernel's.
    for flow in stage.flows("node-a") {
        assert_ne!(flow["frontend"].as_str().unwrap().rsplit(':').next(), Some("8081"), "{flow}");
    }
}

fn a_host_port_a_node_port_and_a_service_lead_to_the_same_pod_side_by_side(pods: Pods) {
    all_ways_lead_to_the_pod(pods, &Options::default());
}

fn a_masquerading_cni_changes_nothing_about_it(pods: Pods) {
    all_ways_lead_to_the_pod(pods, &Options { masquerade: true, ..Options::default() });
}
