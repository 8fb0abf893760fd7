//! Which endpoints are chosen (contract 1.3 and 1.4).

use super::{NODE, desired, key, texts, web};
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::plan::desired::{Desired, ServicePortPlan};

/// Service `web` with lines of spec, and one slice with the given endpoints (one YAML flow mapping a line);
/// our node is in zone z1.
fn with(spec: &str, endpoints: &[&str]) -> Desired {
    let endpoints: String = endpoints.iter().map(|line| format!("- {{{line}}}\n")).collect();
    desired(&format!(
        "
kind: Node
metadata: {{name: {NODE}, labels: {{topology.kubernetes.io/zone: z1}}}}
---
kind: Service
metadata: {{name: web}}
spec:
  clusterIP: 10.96.0.10
  ports: [{{port: 80}}]
{spec}
---
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: '', port: 8080}}]
endpoints:
{endpoints}
"
    ))
}

/// One expectation: endpoints in, lists out.
struct Row {
    what: &'static str,
    endpoints: &'static [&'static str],
    cluster: &'static [&'static str],
    local: &'static [&'static str],
    has_endpoints: bool,
}

fn check(rows: &[Row]) {
    for row in rows {
        let desired = with("", row.endpoints);
        let plan: &ServicePortPlan = web(&desired);
        assert_eq!(texts(plan.endpoints.cluster()), row.cluster, "cluster: {}", row.what);
        assert_eq!(texts(plan.endpoints.local()), row.local, "local: {}", row.what);
        assert_eq!(plan.has_endpoints, row.has_endpoints, "has_endpoints: {}", row.what);
    }
}

const A: &str = "addresses: [10.0.0.1], nodeName: node-a";
const B: &str = "addresses: [10.0.0.2], nodeName: node-b";
const A_NOT_READY: &str = "addresses: [10.0.0.1], nodeName: node-a, conditions: {ready: false}";
const A_LEAVING: &str = "addresses: [10.0.0.1], nodeName: node-a, \
                         conditions: {ready: false, serving: true, terminating: true}";
const A_LEFT: &str = "addresses: [10.0.0.1], nodeName: node-a, \
                      conditions: {ready: false, serving: false, terminating: true}";
const B_LEAVING: &str = "addresses: [10.0.0.2], nodeName: node-b, \
                         conditions: {ready: false, serving: true, terminating: true}";

#[test]
fn ready_endpoints_are_used_and_terminating_ones_only_when_none_is_ready() {
    check(&[
        Row {
            what: "no endpoints at all",
            endpoints: &[],
            cluster: &[],
            local: &[],
            has_endpoints: false,
        },
        Row {
            what: "both ready",
            endpoints: &[B, A],
            cluster: &["10.0.0.1:8080 local", "10.0.0.2:8080 remote"],
            local: &["10.0.0.1:8080 local"],
            has_endpoints: true,
        },
        Row {
            what: "not ready and not terminating is never used",
            endpoints: &[A_NOT_READY],
            cluster: &[],
            local: &[],
            has_endpoints: false,
        },
        Row {
            what: "terminating and no longer serving is never used",
            endpoints: &[A_LEFT],
            cluster: &[],
            local: &[],
            has_endpoints: false,
        },
        Row {
            what: "only terminating ones are left",
            endpoints: &[A_LEAVING, B_LEAVING],
            cluster: &["10.0.0.1:8080 local", "10.0.0.2:8080 remote"],
            local: &["10.0.0.1:8080 local"],
            has_endpoints: true,
        },
        Row {
            what: "each policy falls back by itself: local here, not cluster",
            endpoints: &[A_LEAVING, B],
            cluster: &["10.0.0.2:8080 remote"],
            local: &["10.0.0.1:8080 local"],
            has_endpoints: true,
        },
        Row {
            what: "a remote terminating one alone makes the Service usable but not local",
            endpoints: &[A_LEFT, B_LEAVING],
            cluster: &["10.0.0.2:8080 remote"],
            local: &[],
            has_endpoints: true,
        },
    ]);
}

#[test]
fn ready_alone_decides_even_while_terminating_or_not_serving() {
    check(&[Row {
        what: "publishNotReadyAddresses",
        endpoints: &[
            "addresses: [10.0.0.1], conditions: {ready: true, serving: false, terminating: true}",
        ],
        cluster: &["10.0.0.1:8080"],
        local: &[],
        has_endpoints: true,
    }]);
}

#[test]
fn local_means_exactly_our_node_name_and_local_ones_come_first() {
    check(&[
        Row {
            what: "no nodeName is never local",
            endpoints: &["addresses: [10.0.0.9]", "addresses: [10.0.0.8], nodeName: NODE-A"],
            cluster: &["10.0.0.8:8080 remote", "10.0.0.9:8080"],
            local: &[],
            has_endpoints: true,
        },
        Row {
            what: "local endpoints are a prefix, each part by address",
            endpoints: &[
                "addresses: [10.0.0.1]",
                "addresses: [10.0.0.10], nodeName: node-a",
                "addresses: [10.0.0.9], nodeName: node-a",
                "addresses: [10.0.0.2], nodeName: node-b",
            ],
            cluster: &[
                "10.0.0.9:8080 local",
                "10.0.0.10:8080 local",
                "10.0.0.1:8080",
                "10.0.0.2:8080 remote",
            ],
            local: &["10.0.0.9:8080 local", "10.0.0.10:8080 local"],
            has_endpoints: true,
        },
        Row {
            what: "an endpoint outside the cluster is an endpoint",
            endpoints: &["addresses: [203.0.113.10]"],
            cluster: &["203.0.113.10:8080"],
            local: &[],
            has_endpoints: true,
        },
    ]);
}

#[test]
fn zone_hints_restrict_cluster_traffic_when_all_ready_endpoints_have_them() {
    const Z1: &str = "addresses: [10.0.0.1], hints: {forZones: [{name: z1}]}";
    const Z2: &str = "addresses: [10.0.0.2], nodeName: node-a, hints: {forZones: [{name: z2}]}";
    check(&[
        Row {
            what: "ours only; Local policy doesn't look at hints",
            endpoints: &[Z1, Z2],
            cluster: &["10.0.0.1:8080"],
            local: &["10.0.0.2:8080 local"],
            has_endpoints: true,
        },
        Row {
            what: "several zones in one hint",
            endpoints: &["addresses: [10.0.0.3], hints: {forZones: [{name: z2}, {name: z1}]}", Z2],
            cluster: &["10.0.0.3:8080"],
            local: &["10.0.0.2:8080 local"],
            has_endpoints: true,
        },
        Row {
            what: "one endpoint without a hint disables them for the Service",
            endpoints: &[Z1, Z2, "addresses: [10.0.0.3]"],
            cluster: &["10.0.0.2:8080 local", "10.0.0.1:8080", "10.0.0.3:8080"],
            local: &["10.0.0.2:8080 local"],
            has_endpoints: true,
        },
        Row {
            what: "no endpoint for our zone: everywhere",
            endpoints: &[Z2],
            cluster: &["10.0.0.2:8080 local"],
            local: &["10.0.0.2:8080 local"],
            has_endpoints: true,
        },
        Row {
            what: "an endpoint that isn't ready has no say",
            endpoints: &[Z1, Z2, "addresses: [10.0.0.3], conditions: {ready: false}"],
            cluster: &["10.0.0.1:8080"],
            local: &["10.0.0.2:8080 local"],
            has_endpoints: true,
        },
        Row {
            what: "the terminating fallback ignores hints",
            endpoints: &[
                "addresses: [10.0.0.1], hints: {forZones: [{name: z2}]}, \
                 conditions: {ready: false, terminating: true}",
                "addresses: [10.0.0.2], hints: {forZones: [{name: z1}]}, \
                 conditions: {ready: false, terminating: true}",
            ],
            cluster: &["10.0.0.1:8080", "10.0.0.2:8080"],
            local: &[],
            has_endpoints: true,
        },
    ]);
}

#[test]
fn node_hints_come_before_zone_hints() {
    const HERE: &str =
        "addresses: [10.0.0.1], hints: {forNodes: [{name: node-a}], forZones: [{name: z1}]}";
    const NEAR: &str =
        "addresses: [10.0.0.2], hints: {forNodes: [{name: node-b}], forZones: [{name: z1}]}";
    const FAR: &str =
        "addresses: [10.0.0.3], hints: {forNodes: [{name: node-c}], forZones: [{name: z2}]}";
    const ZONE_ONLY: &str = "addresses: [10.0.0.4], hints: {forZones: [{name: z1}]}";
    check(&[
        Row {
            what: "this node",
            endpoints: &[HERE, NEAR, FAR],
            cluster: &["10.0.0.1:8080"],
            local: &[],
            has_endpoints: true,
        },
        Row {
            what: "none for this node: this zone",
            endpoints: &[NEAR, FAR],
            cluster: &["10.0.0.2:8080"],
            local: &[],
            has_endpoints: true,
        },
        Row {
            what: "one without a node hint: this zone",
            endpoints: &[HERE, ZONE_ONLY, FAR],
            cluster: &["10.0.0.1:8080", "10.0.0.4:8080"],
            local: &[],
            has_endpoints: true,
        },
        Row {
            what: "neither this node nor this zone",
            endpoints: &[FAR],
            cluster: &["10.0.0.3:8080"],
            local: &[],
            has_endpoints: true,
        },
    ]);
}

#[test]
fn a_node_without_zone_follows_no_zone_hints() {
    let desired = desired(
        "
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints:
- {addresses: [10.0.0.1], hints: {forZones: [{name: z1}]}}
- {addresses: [10.0.0.2], hints: {forZones: [{name: ''}]}}
",
    );
    assert_eq!(texts(web(&desired).endpoints.cluster()), ["10.0.0.1:8080", "10.0.0.2:8080"]);
}

#[test]
fn flows_stay_valid_to_every_endpoint_that_is_ready_or_serving() {
    let plan = with(
        "",
        &[
            A,
            B_LEAVING,
            "addresses: [10.0.0.3], conditions: {ready: false, serving: false}",
            "addresses: [10.0.0.4], conditions: {ready: true, serving: false}",
            "addresses: [10.0.0.5], hints: {forZones: [{name: z2}]}",
        ],
    );
    let mut serving = texts(web(&plan).endpoints.serving());
    serving.sort();
    let expected =
        ["10.0.0.1:8080 local", "10.0.0.2:8080 remote", "10.0.0.4:8080", "10.0.0.5:8080"];
    assert_eq!(serving, expected);
}

#[test]
fn the_policies_say_which_traffic_stays_local() {
    let table = [
        ("", (false, false)),
        ("  internalTrafficPolicy: Local", (true, false)),
        ("  type: NodePort\n  externalTrafficPolicy: Local", (false, false)),
        ("  externalTrafficPolicy: Local\n  externalIPs: [203.0.113.250]", (false, true)),
        ("  externalTrafficPolicy: Local\n  externalIPs: ['fd00::1']", (false, false)),
        (
            "  internalTrafficPolicy: Local\n  externalTrafficPolicy: Local\n  externalIPs: [203.0.113.250]",
            (true, true),
        ),
    ];
    for (spec, expected) in table {
        let desired = with(spec, &[A, B]);
        let plan = web(&desired);
        assert_eq!((plan.internal_local, plan.external_local), expected, "{spec}");
        assert_eq!(
            plan.endpoints.cluster().len(),
            2,
            "{spec}: the cluster's list is there for short-circuits"
        );
    }
}

const SERVICE: &str = "
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]
";

/// A slice of `web`: name, and the lines that differ.
fn slice(name: &str, lines: &str) -> String {
    format!(
        "---\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\n{lines}\n"
    )
}

#[test]
fn the_union_of_all_slices_is_joined_by_port_name_protocol_and_family() {
    let text = [
        SERVICE.to_owned(),
        slice(
            "web-1",
            "addressType: IPv4\nports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]\n\
             endpoints: [{addresses: [10.0.0.1]}]",
        ),
        slice(
            "web-2",
            "addressType: IPv4\nports: [{name: http, port: 9090}, {name: dns, port: 53}]\n\
             endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}]",
        ),
        slice(
            "web-3",
            "addressType: IPv6\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: ['fd00::1']}]",
        ),
        slice(
            "web-4",
            "addressType: IPv4\nports: [{name: other, port: 1}]\nendpoints: [{addresses: [10.0.0.3]}]",
        ),
    ];
    let desired = desired(&text.concat());
    let cluster = |name, protocol, family| {
        texts(desired.ports[&key("web", name, protocol, family)].endpoints.cluster())
    };
    assert_eq!(
        cluster("http", Protocol::Tcp, IpFamily::V4),
        ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:9090"],
        "a named target port may differ from slice to slice"
    );
    assert_eq!(
        cluster("dns", Protocol::Udp, IpFamily::V4),
        ["10.0.0.1:5353"],
        "the slice's protocol is part of the key: TCP 53 doesn't count"
    );
    assert_eq!(cluster("http", Protocol::Tcp, IpFamily::V6), ["[fd00::1]:8080"]);
    assert_eq!(cluster("dns", Protocol::Udp, IpFamily::V6), [""; 0]);
}

#[test]
fn of_duplicates_the_first_stays_unless_it_is_terminating() {
    let port = "addressType: IPv4\nports: [{name: http, port: 8080}]\n";
    let leaving = "conditions: {ready: false, serving: true, terminating: true}";
    let table = [
        ("the first one stays", "nodeName: node-a", "nodeName: node-b", "10.0.0.1:8080 local"),
        (
            "one that isn't terminating replaces one that is",
            leaving,
            "nodeName: node-b",
            "10.0.0.1:8080 remote",
        ),
        (
            "of two that are terminating the first stays",
            "nodeName: node-a, conditions: {ready: false, serving: true, terminating: true}",
            leaving,
            "10.0.0.1:8080 local",
        ),
        (
            "one that is terminating replaces nothing",
            "nodeName: node-b",
            leaving,
            "10.0.0.1:8080 remote",
        ),
    ];
    for (what, first, second, expected) in table {
        let endpoint = |more: &str| format!("{port}endpoints: [{{addresses: [10.0.0.1], {more}}}]");
        let text =
            [SERVICE.to_owned(), slice("b", &endpoint(second)), slice("a", &endpoint(first))];
        let desired = desired(&text.concat());
        let plan = &desired.ports[&key("web", "http", Protocol::Tcp, IpFamily::V4)];
        assert_eq!(texts(plan.endpoints.cluster()), [expected], "{what}");
        assert_eq!(plan.endpoints.serving().len(), 1, "{what}");
    }
}

#[test]
fn slices_of_other_services_and_namespaces_do_not_count() {
    let text = [
        SERVICE.to_owned(),
        "---\nkind: EndpointSlice\nmetadata: {name: a, namespace: other, labels: {kubernetes.io/service-name: web}}\n\
         addressType: IPv4\nports: [{name: http, port: 1}]\nendpoints: [{addresses: [10.0.0.1]}]\n"
            .to_owned(),
        "---\nkind: EndpointSlice\nmetadata: {name: web-1, labels: {kubernetes.io/service-name: web2}}\n\
         addressType: IPv4\nports: [{name: http, port: 1}]\nendpoints: [{addresses: [10.0.0.1]}]\n"
            .to_owned(),
    ];
    let desired = desired(&text.concat());
    assert_eq!(desired.ports.len(), 4);
    assert!(
        desired
            .ports
            .values()
            .all(|plan| plan.endpoints.cluster().is_empty() && !plan.has_endpoints)
    );
}

#[test]
fn a_hundred_thousand_endpoints_in_one_slice_are_planned() {
    let text = [
        SERVICE.to_owned(),
        slice(
            "web-1",
            "addressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.0.0.1]}]",
        ),
    ];
    let mut snapshot = super::snapshot(&text.concat());
    for slice in snapshot.slices.values_mut() {
        let one = slice.endpoints[0].clone();
        let address = |index: u32| std::net::IpAddr::V4((0x0b00_0000 + index / 2).into());
        slice.endpoints = (0..200_000)
            .map(|index| crate::cluster::snapshot::Endpoint {
                address: address(index),
                ..one.clone()
            })
            .collect();
    }
    let desired = crate::plan::plan(&snapshot, NODE);
    let plan = &desired.ports[&key("web", "http", Protocol::Tcp, IpFamily::V4)];
    assert_eq!(plan.endpoints.cluster().len(), 100_000, "every duplicate once");
}
