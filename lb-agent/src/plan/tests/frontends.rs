//! On which addresses a Service answers, and for whom (contract 1.2, 1.7, 1.8, 1.13).

use super::{desired, key, web};
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::plan::desired::{Desired, FrontendAddress, FrontendKind};

/// `10.96.0.10:80/Tcp ClusterIp` for every address that has a holder.
fn held(desired: &Desired) -> Vec<String> {
    let text = |address: &FrontendAddress, kind: FrontendKind| {
        let place = std::net::SocketAddr::new(address.address, address.port);
        format!("{place}/{:?} {kind:?}", address.protocol)
    };
    desired.frontends.iter().map(|(address, (_, kind))| text(address, *kind)).collect()
}

#[test]
fn every_kind_of_address_is_a_frontend_in_its_family() {
    let desired = desired(
        "
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  externalIPs: [203.0.113.250, 'fd00:ee::1']
  ports: [{port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]
status: {loadBalancer: {ingress: [{ip: 10.240.0.200}, {ip: 'fd00:240::200'}]}}
",
    );
    let expected = [
        "0.0.0.0:30080/Tcp NodePort",
        "10.96.0.10:53/Udp ClusterIp",
        "10.96.0.10:80/Tcp ClusterIp",
        "10.240.0.200:53/Udp LoadBalancer",
        "10.240.0.200:80/Tcp LoadBalancer",
        "203.0.113.250:53/Udp ExternalIp",
        "203.0.113.250:80/Tcp ExternalIp",
        "[::]:30080/Tcp NodePort",
        "[fd00:96::10]:53/Udp ClusterIp",
        "[fd00:96::10]:80/Tcp ClusterIp",
        "[fd00:ee::1]:53/Udp ExternalIp",
        "[fd00:ee::1]:80/Tcp ExternalIp",
        "[fd00:240::200]:53/Udp LoadBalancer",
        "[fd00:240::200]:80/Tcp LoadBalancer",
    ];
    assert_eq!(held(&desired), expected);
    assert_eq!(desired.problems, []);
}

#[test]
fn a_family_without_cluster_ip_has_nothing_not_even_a_node_port() {
    let desired = desired(
        "
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  clusterIP: 'fd00:96::10'
  externalIPs: [203.0.113.250]
  ports: [{port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 10.240.0.200}]}}
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
",
    );
    assert_eq!(held(&desired), ["[::]:30080/Tcp NodePort", "[fd00:96::10]:80/Tcp ClusterIp"]);
    assert_eq!(desired.ports.len(), 1);
    assert!(
        desired.ports[&key("web", "", Protocol::Tcp, IpFamily::V6)].endpoints.cluster().is_empty()
    );
}

#[test]
fn node_ports_and_external_addresses_count_by_presence_not_by_type() {
    let desired = desired(
        "
kind: Service
metadata: {name: web}
spec: {type: ClusterIP, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]}
status: {loadBalancer: {ingress: [{ip: 10.240.0.200}]}}
",
    );
    let expected = [
        "0.0.0.0:30080/Tcp NodePort",
        "10.96.0.10:80/Tcp ClusterIp",
        "10.240.0.200:80/Tcp LoadBalancer",
    ];
    assert_eq!(held(&desired), expected);
}

#[test]
fn one_address_in_several_roles_has_the_strongest_role() {
    let desired = desired(
        "
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, externalIPs: [10.96.0.10, 10.240.0.200], ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 10.240.0.200}, {ip: 10.96.0.10}]}}
",
    );
    // As a load balancer address it has the source ranges' protection.
    assert_eq!(held(&desired), ["10.96.0.10:80/Tcp ClusterIp", "10.240.0.200:80/Tcp LoadBalancer"]);
    assert_eq!(desired.problems, []);
}

/// A load balancer with both families and these source ranges.
fn with_ranges(ranges: &str, node: &str) -> Desired {
    desired(&format!(
        "
kind: Node
metadata: {{name: node-a}}
status: {{addresses: [{node}]}}
---
kind: Service
metadata: {{name: web}}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  loadBalancerSourceRanges: {ranges}
  ports: [{{port: 80}}]
status: {{loadBalancer: {{ingress: [{{ip: 10.240.0.200}}, {{ip: 'fd00:240::200'}}]}}}}
"
    ))
}

#[test]
fn source_ranges_apply_per_family_and_a_zero_length_one_admits_all() {
    let table = [
        ("[]", None, None),
        ("[203.0.113.0/24]", Some("203.0.113.0/24"), None),
        ("[203.0.113.0/24, 'fd00:1::/64']", Some("203.0.113.0/24"), Some("fd00:1::/64")),
        ("[203.0.113.0/24, 0.0.0.0/0, 'fd00:1::/64']", None, Some("fd00:1::/64")),
        (
            "[203.0.113.0/24, 198.51.100.0/24, 203.0.113.0/24, '::/0']",
            Some("198.51.100.0/24 203.0.113.0/24"),
            None,
        ),
    ];
    for (ranges, v4, v6) in table {
        let desired = with_ranges(ranges, "");
        for (family, expected) in [(IpFamily::V4, v4), (IpFamily::V6, v6)] {
            let plan = &desired.ports[&key("web", "", Protocol::Tcp, family)];
            let found = plan
                .source_ranges
                .as_ref()
                .map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            assert_eq!(found.as_deref(), expected, "{ranges} {family:?}");
        }
    }
}

#[test]
fn a_range_that_holds_the_node_admits_the_load_balancer_addresses_themselves() {
    let table = [
        ("{type: InternalIP, address: 203.0.113.7}", "10.240.0.200/32 203.0.113.0/24"),
        ("{type: InternalIP, address: 198.51.100.7}", "203.0.113.0/24"),
        ("{type: Hostname, address: node-a}", "203.0.113.0/24"),
    ];
    for (node, expected) in table {
        let desired = with_ranges("[203.0.113.0/24]", node);
        let ranges = web(&desired).source_ranges.as_ref().unwrap();
        let found = ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(found, expected, "{node}");
    }
}

#[test]
fn source_ranges_without_load_balancer_address_restrict_nothing() {
    let desired = desired(
        "
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  externalIPs: [203.0.113.250]
  loadBalancerSourceRanges: [203.0.113.0/24]
  ports: [{port: 80}]
",
    );
    assert_eq!(web(&desired).source_ranges, None);
}

#[test]
fn affinity_belongs_to_every_port_and_family() {
    let desired = desired(
        "
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  sessionAffinity: ClientIP
  ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}]
",
    );
    assert_eq!(desired.ports.len(), 4);
    assert!(desired.ports.values().all(|plan| plan.affinity_timeout == Some(10_800)));
}
