//! Whom load balancers ask about, and the counts that they hear (contract 1.9).

use super::{NODE, desired, lists, snapshot};
use crate::cluster::snapshot::{Change, ObjectName};
use crate::plan::Planner;
use crate::plan::desired::{Delta, HealthCheck};

/// Service `web` with these lines of spec, and slices of both families.
fn objects(spec: &str, v4: &[&str], v6: &[&str]) -> String {
    let list =
        |lines: &[&str]| -> String { lines.iter().map(|line| format!("- {{{line}}}\n")).collect() };
    let (v4, v6) = (list(v4), list(v6));
    format!(
        "
kind: Service
metadata: {{name: web}}
spec:
{spec}
  ports: [{{name: http, port: 80}}, {{name: dns, port: 53, protocol: UDP}}]
---
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}, {{name: dns, port: 5353, protocol: UDP}}]
endpoints:
{v4}
---
kind: EndpointSlice
metadata: {{name: web-2, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv6
ports: [{{name: http, port: 8080}}]
endpoints:
{v6}
---
kind: EndpointSlice
metadata: {{name: web-3, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8081}}]
endpoints:
{v4}
"
    )
}

const DUAL: &str = "  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  clusterIPs: [10.96.0.10, 'fd00:96::10']";

fn check_of(text: &str) -> Option<HealthCheck> {
    desired(text).health_checks.get(&ObjectName::new("default", "web")).copied()
}

/// The answer on port 32000.
fn counts(v4: Option<usize>, v6: Option<usize>) -> Option<HealthCheck> {
    Some(HealthCheck { port: 32000, local_ready4: v4, local_ready6: v6 })
}

const A1: &str = "addresses: [10.0.0.1], nodeName: node-a";
const A2: &str = "addresses: [10.0.0.2], nodeName: node-a";
const B: &str = "addresses: [10.0.0.3], nodeName: node-b";
const NOWHERE: &str = "addresses: [10.0.0.4]";
const A1_V6: &str = "addresses: ['fd00::1'], nodeName: node-a";
const A1_NOT_READY: &str = "addresses: [10.0.0.1], nodeName: node-a, conditions: {ready: false}";
const A1_LEAVING: &str = "addresses: [10.0.0.1], nodeName: node-a, \
                          conditions: {ready: false, serving: true, terminating: true}";
const A1_LEAVING_BUT_READY: &str = "addresses: [10.0.0.1], nodeName: node-a, \
                                    conditions: {ready: true, serving: true, terminating: true}";

#[test]
fn the_count_is_of_distinct_local_ready_addresses_of_the_family() {
    type Row = (&'static str, &'static [&'static str], &'static [&'static str], usize, usize);
    let table: [Row; 10] = [
        ("nothing", &[], &[], 0, 0),
        ("one address under three ports counts once", &[A1], &[], 1, 0),
        ("two addresses", &[A1, A2], &[], 2, 0),
        ("other nodes' endpoints don't count", &[A1, B], &[], 1, 0),
        ("endpoints without a node don't count", &[NOWHERE], &[], 0, 0),
        ("each family is counted by itself", &[A1, A2], &[A1_V6], 2, 1),
        ("the other family alone", &[], &[A1_V6], 0, 1),
        ("what isn't ready doesn't count", &[A1_NOT_READY, A2], &[], 1, 0),
        ("what is terminating doesn't count, though it serves", &[A1_LEAVING], &[], 0, 0),
        ("ready decides, also for what is terminating", &[A1_LEAVING_BUT_READY], &[], 1, 0),
    ];
    for (what, v4, v6, expected4, expected6) in table {
        let check = check_of(&objects(DUAL, v4, v6));
        assert_eq!(check, counts(Some(expected4), Some(expected6)), "{what}");
    }
}

#[test]
fn only_load_balancers_with_local_policy_are_asked_about_and_only_in_their_families() {
    let spec = |lines: &str| format!("  healthCheckNodePort: 32000\n{lines}");
    for (what, lines, expected) in [
        ("dual stack", DUAL.to_owned(), counts(Some(1), Some(1))),
        (
            "IPv4 only",
            spec("  type: LoadBalancer\n  externalTrafficPolicy: Local\n  clusterIP: 10.96.0.10"),
            counts(Some(1), None),
        ),
        (
            "IPv6 only",
            spec("  type: LoadBalancer\n  externalTrafficPolicy: Local\n  clusterIP: 'fd00::10'"),
            counts(None, Some(1)),
        ),
        ("policy Cluster", spec("  type: LoadBalancer\n  clusterIP: 10.96.0.10"), None),
        (
            "a NodePort",
            spec("  type: NodePort\n  externalTrafficPolicy: Local\n  clusterIP: 10.96.0.10"),
            None,
        ),
    ] {
        assert_eq!(check_of(&objects(&lines, &[A1], &[A1_V6])), expected, "{what}");
    }
}

#[test]
fn a_delta_holds_changed_checks_only_and_no_port_that_is_unchanged() {
    let known = snapshot(&objects(DUAL, &[A1, B], &[]));
    let name = ObjectName::new("default", "web");
    let mut planner = Planner::new(NODE);
    planner.apply(lists(&known));
    let slice = known.slices[&ObjectName::new("default", "web-1")].clone();

    let mut other_node = slice.clone();
    other_node.endpoints[1].ready = false;
    let delta = planner.apply([Change::Slice(other_node)]);
    assert!(!delta.ports.is_empty() && delta.health_checks.is_empty(), "the count is the same");

    let mut service = known.services[&name].clone();
    service.health_check_node_port = Some(32001);
    let delta = planner.apply([Change::Service(service.clone())]);
    let check = HealthCheck { port: 32001, local_ready4: Some(1), local_ready6: Some(0) };
    let expected =
        Delta { health_checks: [(name.clone(), Some(check))].into(), ..Delta::default() };
    assert_eq!(delta, expected, "the datapath has nothing to do with it");

    service.health_check_node_port = None;
    let delta = planner.apply([Change::Service(service)]);
    assert_eq!(delta.health_checks, [(name, None)].into());
    assert!(planner.desired().health_checks.is_empty());
}
