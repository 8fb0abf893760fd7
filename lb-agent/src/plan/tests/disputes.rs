//! Addresses that several Services claim.

use super::{NODE, desired, lists, snapshot};
use crate::cluster::snapshot::{Change, ObjectName};
use crate::plan::desired::{Desired, FrontendKind};
use crate::plan::{Planner, plan};

/// A Service: name, creation year, and its spec without the ports.
fn service(name: &str, year: u32, spec: &str, ports: &str) -> String {
    format!(
        "---\nkind: Service\nmetadata: {{name: {name}, creationTimestamp: {year}-01-01T00:00:00Z}}\n\
         spec: {{{spec}, ports: [{ports}]}}\n"
    )
}

/// Who holds `address` (with port and protocol, as text).
fn holder(desired: &Desired, address: &str, port: u16) -> (String, FrontendKind) {
    let address: std::net::IpAddr = address.parse().unwrap();
    let mut found = desired
        .frontends
        .iter()
        .filter(|(frontend, _)| frontend.address == address && frontend.port == port);
    let (_, (key, kind)) = found.next().unwrap();
    assert!(found.next().is_none(), "one protocol expected");
    (key.to_string(), *kind)
}

#[test]
fn services_may_share_an_address_with_other_ports_or_protocols() {
    let text = [
        service("a", 2020, "clusterIP: 10.96.0.1, externalIPs: [203.0.113.250]", "{port: 80}"),
        service("b", 2020, "clusterIP: 10.96.0.2, externalIPs: [203.0.113.250]", "{port: 81}"),
        service(
            "c",
            2020,
            "clusterIP: 10.96.0.3, externalIPs: [203.0.113.250]",
            "{port: 80, protocol: UDP}",
        ),
    ];
    let desired = desired(&text.concat());
    assert_eq!(desired.problems, []);
    assert_eq!(desired.frontends.len(), 6);
}

#[test]
fn of_two_claims_the_kind_decides_then_age_then_name() {
    let cluster_ip = "clusterIP: 203.0.113.250";
    let external = |own: &str| format!("clusterIP: {own}, externalIPs: [203.0.113.250]");
    let table = [
        (
            "a ClusterIP beats an older externalIP",
            service("a", 2001, &external("10.96.0.1"), "{port: 80}"),
            service("b", 2020, cluster_ip, "{port: 80}"),
            "default/b",
        ),
        (
            "the older Service wins",
            service("a", 2020, &external("10.96.0.1"), "{port: 80}"),
            service("b", 2001, &external("10.96.0.2"), "{port: 80}"),
            "default/b",
        ),
        (
            "of the same age, the first by name wins",
            service("a", 2020, &external("10.96.0.1"), "{port: 80}"),
            service("b", 2020, &external("10.96.0.2"), "{port: 80}"),
            "default/a",
        ),
    ];
    for (what, first, second, winner) in table {
        for text in [[first.clone(), second.clone()].concat(), [second, first].concat()] {
            let desired = desired(&text);
            assert_eq!(holder(&desired, "203.0.113.250", 80).0, winner, "{what}");
            let [problem] = desired.problems.as_slice() else { panic!("{:?}", desired.problems) };
            let loser = if winner == "default/a" { "default/b" } else { "default/a" };
            assert_eq!(problem.object, format!("Service {loser}"), "{what}");
            assert!(problem.reason.contains(winner), "names the winner: {}", problem.reason);
            assert!(problem.reason.contains(loser), "names the loser: {}", problem.reason);
            assert!(problem.reason.contains("203.0.113.250:80/TCP"), "{}", problem.reason);
        }
    }
}

#[test]
fn a_load_balancer_address_beats_an_external_ip() {
    let text = "
kind: Service
metadata: {name: b, creationTimestamp: 2020-01-01T00:00:00Z}
spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.250}]}}
";
    let hijacker =
        service("a", 2001, "clusterIP: 10.96.0.1, externalIPs: [203.0.113.250]", "{port: 80}");
    let desired = desired(&format!("{text}{hijacker}"));
    let expected = ("default/b".to_owned(), FrontendKind::LoadBalancer);
    assert_eq!(holder(&desired, "203.0.113.250", 80), expected);
}

#[test]
fn a_node_port_claimed_twice_has_one_holder_in_each_family() {
    let text = [
        service("a", 2020, "clusterIPs: [10.96.0.1, 'fd00:96::1']", "{port: 80, nodePort: 30080}"),
        service("b", 2001, "clusterIP: 10.96.0.2", "{port: 80, nodePort: 30080}"),
    ];
    let desired = desired(&text.concat());
    assert_eq!(holder(&desired, "0.0.0.0", 30080).0, "default/b");
    assert_eq!(holder(&desired, "::", 30080).0, "default/a", "b has no IPv6");
    assert_eq!(desired.problems.len(), 1);
    assert!(desired.problems[0].reason.contains("NodePort 0.0.0.0:30080/TCP"));
}

#[test]
fn a_node_port_does_not_dispute_with_an_address_of_the_same_port() {
    let text = [
        service("a", 2020, "clusterIP: 10.96.0.1", "{port: 80, nodePort: 30080}"),
        service("b", 2020, "clusterIP: 10.96.0.2, externalIPs: [10.240.0.1]", "{port: 30080}"),
    ];
    let desired = desired(&text.concat());
    assert_eq!(desired.problems, []);
    assert_eq!(holder(&desired, "0.0.0.0", 30080).0, "default/a");
    assert_eq!(holder(&desired, "10.240.0.1", 30080).0, "default/b");
}

#[test]
fn two_ports_of_one_service_can_dispute_too() {
    let ports = "{name: y, port: 80}, {name: x, port: 80}";
    let desired = desired(&service("a", 2020, "clusterIP: 10.96.0.1", ports));
    assert_eq!(holder(&desired, "10.96.0.1", 80).0, "default/a:x");
    assert_eq!(desired.problems.len(), 1);
}

#[test]
fn when_the_winner_goes_the_loser_takes_over_in_the_same_delta() {
    let text = [
        service("a", 2020, "clusterIP: 10.96.0.1, externalIPs: [203.0.113.250]", "{port: 80}"),
        service("b", 2021, "clusterIP: 10.96.0.2, externalIPs: [203.0.113.250]", "{port: 80}"),
        service("c", 2022, "clusterIP: 10.96.0.3, externalIPs: [203.0.113.250]", "{port: 80}"),
    ];
    let mut snapshot = snapshot(&text.concat());
    let mut planner = Planner::new(NODE);
    planner.apply(lists(&snapshot));
    assert_eq!(holder(planner.desired(), "203.0.113.250", 80).0, "default/a");
    assert_eq!(planner.desired().problems.len(), 2);

    let gone = ObjectName::new("default", "a");
    let delta = planner.apply([Change::ServiceGone(gone.clone())]);
    snapshot.services.remove(&gone);
    assert_eq!(holder(planner.desired(), "203.0.113.250", 80).0, "default/b");
    let taken_over = delta.frontends.values().flatten().count();
    assert_eq!((taken_over, delta.frontends.len()), (1, 2), "one moved, one gone");
    let problems = delta.problems.unwrap();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].reason.contains("default/b") && problems[0].reason.contains("default/c"));
    assert_eq!(*planner.desired(), plan(&snapshot, NODE));
}

#[test]
fn a_stronger_claim_takes_an_address_over_and_gives_it_back() {
    let weak =
        service("a", 2020, "clusterIP: 10.96.0.1, externalIPs: [203.0.113.250]", "{port: 80}");
    let strong = service("b", 2021, "clusterIP: 203.0.113.250", "{port: 80}");
    let mut planner = Planner::new(NODE);
    planner.apply(lists(&snapshot(&weak)));
    assert_eq!(holder(planner.desired(), "203.0.113.250", 80).0, "default/a");
    let strong = snapshot(&strong).services.into_values().next().unwrap();
    planner.apply([Change::Service(strong.clone())]);
    let taken = ("default/b".to_owned(), FrontendKind::ClusterIp);
    assert_eq!(holder(planner.desired(), "203.0.113.250", 80), taken);
    planner.apply([Change::ServiceGone(strong.name)]);
    let given_back = ("default/a".to_owned(), FrontendKind::ExternalIp);
    assert_eq!(holder(planner.desired(), "203.0.113.250", 80), given_back);
    assert_eq!(planner.desired().problems, []);
}
