use super::super::service::service;
use super::{assert_reasons, yaml};
use crate::cluster::convert::Converted;
use crate::cluster::snapshot::{ObjectName, Protocol, Service, ServicePort, TrafficPolicy};

/// A Service `default/web` with the given lines of its spec (indented by two).
fn converted(spec: &str) -> Converted<Service> {
    let head = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\nspec:\n";
    service(&yaml(&format!("{head}{spec}")))
}

/// One with a ClusterIP and a port, and more lines of spec.
fn good(more: &str) -> Converted<Service> {
    converted(&format!("  clusterIP: 10.96.0.10\n  ports: [{{port: 80}}]\n{more}"))
}

fn value(spec: &str) -> Service {
    let converted = good(spec);
    assert_reasons(&converted, &[], spec);
    converted.value.unwrap()
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

#[test]
fn a_plain_service_becomes_its_values() {
    let converted = service(&yaml(
        "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, creationTimestamp: 2026-01-02T03:04:05Z}
spec:
  type: LoadBalancer
  selector: {app: web}
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: PreferDualStack
  externalIPs: [203.0.113.250]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 32000
  loadBalancerSourceRanges: [203.0.113.0/24, 'fd00:1::/64']
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 125}}
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080, appProtocol: http}
  - {name: dns, port: 53, protocol: UDP, targetPort: dns}
  - {name: sig, port: 99, protocol: SCTP, nodePort: 0}
status: {loadBalancer: {ingress: [{ip: 10.240.0.200}, {ip: 'fd00:240::200', ipMode: VIP}]}}
",
    ));
    assert_reasons(&converted, &[], "plain");
    let port = |name: &str, protocol, port, node_port| ServicePort {
        name: name.into(),
        protocol,
        port,
        node_port,
    };
    let expected = Service {
        name: ObjectName::new("shop", "web"),
        created: 1_767_323_045,
        cluster_ips: vec!["10.96.0.10".parse().unwrap(), "fd00:96::10".parse().unwrap()],
        external_ips: vec!["203.0.113.250".parse().unwrap()],
        load_balancer_ips: vec!["10.240.0.200".parse().unwrap(), "fd00:240::200".parse().unwrap()],
        source_ranges: vec!["203.0.113.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        ports: vec![
            port("http", Protocol::Tcp, 80, Some(30080)),
            port("dns", Protocol::Udp, 53, None),
            port("sig", Protocol::Sctp, 99, None),
        ],
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        affinity_timeout: Some(125),
        health_check_node_port: Some(32000),
    };
    assert_eq!(converted.value, Some(expected));
    assert_eq!(converted.object, "Service shop/web");
}

#[test]
fn services_that_no_proxy_balances_have_no_value_and_no_problem() {
    let table = [
        ("headless", "  clusterIP: None\n  ports: [{port: 80}]"),
        ("headless by the list alone", "  clusterIPs: [None]\n  ports: [{port: 80}]"),
        ("ExternalName", "  type: ExternalName\n  externalName: site.example"),
        (
            "ExternalName that kept its clusterIP",
            "  type: ExternalName\n  externalName: site.example\n  clusterIP: 10.96.0.10\n  ports: [{port: 80}]",
        ),
    ];
    for (what, spec) in table {
        let converted = converted(spec);
        assert_eq!(converted.value, None, "{what}");
        assert_reasons(&converted, &[], what);
    }
}

#[test]
fn the_service_proxy_name_label_disables_whatever_its_value() {
    for label in ["other-proxy", "kube-proxy", "''"] {
        let converted = service(&yaml(&format!(
            "
metadata: {{name: web, labels: {{service.kubernetes.io/service-proxy-name: {label}}}}}
spec: {{clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}
"
        )));
        assert_eq!(converted.value, None, "{label}");
        assert_reasons(&converted, &[], label);
    }
}

#[test]
fn the_headless_label_on_a_service_means_nothing() {
    let converted = service(&yaml(
        "
metadata: {name: web, labels: {service.kubernetes.io/headless: ''}}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
",
    ));
    assert!(converted.value.is_some());
}

#[test]
fn each_family_has_one_cluster_ip() {
    let table: [(&str, &[&str], &[&str]); 12] = [
        ("  clusterIP: 10.96.0.10", &["10.96.0.10"], &[]),
        ("  clusterIP: 'fd00:96::10'", &["fd00:96::10"], &[]),
        ("  clusterIPs: ['fd00:96::10', 10.96.0.10]", &["fd00:96::10", "10.96.0.10"], &[]),
        ("  clusterIP: 172.30.0.041", &["172.30.0.41"], &[]),
        (
            "  clusterIPs: [10.96.0.10, 10.96.0.11]",
            &["10.96.0.10"],
            &["10.96.0.11 is a second one of its family"],
        ),
        (
            "  clusterIPs: [10.96.0.10, 'fd00:96::10']\n  ipFamilies: [IPv6, IPv6]",
            &["fd00:96::10"],
            &["not of the family that ipFamilies[0] names"],
        ),
        (
            "  clusterIP: 10.96.0.10\n  ipFamilies: [IPv5]",
            &["10.96.0.10"],
            &["\"IPv5\" is unknown"],
        ),
        (
            "  clusterIP: 10.96.0.9\n  clusterIPs: [10.96.0.10]",
            &["10.96.0.10"],
            &["is not the first of clusterIPs"],
        ),
        ("  clusterIP: 10.96.0.300", &[], &["is not an IP address", "has no usable clusterIP"]),
        ("  clusterIP: 0.0.0.0", &[], &["the unspecified address", "has no usable clusterIP"]),
        ("  clusterIP: 127.0.0.1", &[], &["a loopback address", "has no usable clusterIP"]),
        ("  clusterIP: ''", &[], &["has no usable clusterIP"]),
    ];
    for (spec, addresses, problems) in table {
        let converted = converted(&format!("{spec}\n  ports: [{{port: 80}}]"));
        assert_reasons(&converted, problems, spec);
        let found = converted.value.map(|service| texts(&service.cluster_ips)).unwrap_or_default();
        assert_eq!(found, addresses, "{spec}");
    }
}

#[test]
fn a_bad_port_is_left_out_and_the_others_work() {
    let table = [
        ("{port: 0}", "has port 0"),
        ("{port: 65536}", "has port 65536"),
        ("{port: -1}", "has port -1"),
        ("{port: 81, protocol: QUIC}", "unknown protocol \"QUIC\""),
        ("{port: 81, name: http}", "has the name \"http\" and protocol of an earlier port"),
    ];
    for (port, problem) in table {
        let converted = converted(&format!(
            "  clusterIP: 10.96.0.10\n  ports: [{{name: http, port: 80}}, {port}]"
        ));
        assert_reasons(&converted, &[problem], port);
        assert_eq!(converted.value.unwrap().ports.len(), 1, "{port}");
    }
}

#[test]
fn a_bad_node_port_leaves_the_port_itself() {
    let converted = converted("  clusterIP: 10.96.0.10\n  ports: [{port: 80, nodePort: 70000}]");
    assert_reasons(&converted, &["has nodePort 70000"], "nodePort");
    assert_eq!(converted.value.unwrap().ports[0].node_port, None);
}

#[test]
fn the_same_name_with_another_protocol_is_another_port() {
    let converted = converted(
        "  clusterIP: 10.96.0.10\n  ports: [{name: dns, port: 53}, {name: dns, port: 53, protocol: UDP}]",
    );
    assert_reasons(&converted, &[], "dns");
    assert_eq!(converted.value.unwrap().ports.len(), 2);
}

#[test]
fn a_service_without_ports_is_a_problem_that_says_what_to_do() {
    for spec in ["  clusterIP: 10.96.0.10", "  clusterIP: 10.96.0.10\n  ports: []"] {
        let converted = converted(spec);
        assert_eq!(converted.value, None);
        assert_reasons(&converted, &["has no usable port"], spec);
    }
    let bare = service(&yaml("metadata: {name: web}"));
    assert_eq!(bare.value, None);
    assert_reasons(&bare, &["has no spec"], "no spec");
}

#[test]
fn load_balancer_addresses_count_when_they_are_virtual_ips() {
    let table: [(&str, &[&str], &[&str]); 8] = [
        ("{ip: 10.240.0.200}", &["10.240.0.200"], &[]),
        ("{ip: 10.240.0.200, ipMode: VIP}", &["10.240.0.200"], &[]),
        ("{ip: 10.240.0.200, ipMode: Proxy}", &[], &[]),
        ("{hostname: lb.example}", &[], &[]),
        ("{ip: 10.240.0.200, hostname: lb.example}", &["10.240.0.200"], &[]),
        ("{ip: 10.240.0.200, ports: [{port: 443, protocol: TCP}]}", &["10.240.0.200"], &[]),
        ("{ip: 10.240.0.200, ipMode: Magic}", &[], &["unknown ipMode \"Magic\""]),
        ("{ip: 10.240.0}", &[], &["is not an IP address"]),
    ];
    for (ingress, addresses, problems) in table {
        let converted = service(&yaml(&format!(
            "
metadata: {{name: web}}
spec: {{type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}
status: {{loadBalancer: {{ingress: [{ingress}]}}}}
"
        )));
        assert_reasons(&converted, problems, ingress);
        assert_eq!(texts(&converted.value.unwrap().load_balancer_ips), addresses, "{ingress}");
    }
}

#[test]
fn external_ips_are_any_addresses_each_once() {
    let converted =
        good("  externalIPs: [203.0.113.250, 203.0.113.250, 'fd00::1', nonsense, '::1']");
    assert_reasons(&converted, &["\"nonsense\" is not an IP", "::1 is a loopback"], "externalIPs");
    assert_eq!(texts(&converted.value.unwrap().external_ips), ["203.0.113.250", "fd00::1"]);
}

#[test]
fn load_balancer_ip_and_class_and_the_old_range_annotation_are_ignored() {
    let converted = service(&yaml(
        "
metadata:
  name: web
  annotations: {service.beta.kubernetes.io/load-balancer-source-ranges: 203.0.113.0/24}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  loadBalancerIP: 10.240.0.7
  loadBalancerClass: example.com/lb
  ports: [{port: 80}]
",
    ));
    assert_reasons(&converted, &[], "ignored fields");
    let service = converted.value.unwrap();
    assert!(service.load_balancer_ips.is_empty());
    assert!(service.source_ranges.is_empty());
}

#[test]
fn source_ranges_are_read_with_whitespace_and_leading_zeros() {
    let service = value("  loadBalancerSourceRanges: [' 203.0.113.000/025 ', 'fd00:1::/64']");
    assert_eq!(texts(&service.source_ranges), ["203.0.113.0/25", "fd00:1::/64"]);
}

#[test]
fn a_source_range_that_cannot_be_read_never_opens_a_service_to_everybody() {
    let table: [(&str, &[&str], usize); 4] = [
        ("[203.0.113.0/24, bad]", &["10.240.0.200"], 2),
        ("['fd00:1::/64', bad]", &["fd00:240::200"], 2),
        ("[203.0.113.0/24, 'fd00:1::/64', bad]", &["10.240.0.200", "fd00:240::200"], 1),
        ("[bad]", &[], 2),
    ];
    for (ranges, addresses, problems) in table {
        let converted = service(&yaml(&format!(
            "
metadata: {{name: web}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  loadBalancerSourceRanges: {ranges}
  ports: [{{port: 80}}]
status: {{loadBalancer: {{ingress: [{{ip: 10.240.0.200}}, {{ip: 'fd00:240::200'}}]}}}}
"
        )));
        assert_eq!(converted.problems.len(), problems, "{ranges}: {:?}", converted.problems);
        assert_eq!(texts(&converted.value.unwrap().load_balancer_ips), addresses, "{ranges}");
    }
}

#[test]
fn the_external_policy_counts_only_for_services_reachable_from_outside() {
    let table = [
        ("type: ClusterIP", TrafficPolicy::Cluster),
        ("type: ClusterIP\n  externalIPs: [203.0.113.250]", TrafficPolicy::Local),
        ("type: NodePort", TrafficPolicy::Local),
        ("type: LoadBalancer\n  healthCheckNodePort: 32000", TrafficPolicy::Local),
    ];
    for (lines, expected) in table {
        let service = value(&format!("  externalTrafficPolicy: Local\n  {lines}"));
        assert_eq!(service.external_policy, expected, "{lines}");
    }
}

#[test]
fn policies_default_to_cluster() {
    let service = value("  type: NodePort");
    assert_eq!(service.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(service.external_policy, TrafficPolicy::Cluster);
}

#[test]
fn unknown_enum_values_have_a_safe_meaning_and_are_named() {
    let table = [
        ("type: Mesh", "type \"Mesh\" is unknown"),
        ("internalTrafficPolicy: Nearby", "internalTrafficPolicy \"Nearby\" is unknown"),
        ("externalTrafficPolicy: Nearby", "externalTrafficPolicy \"Nearby\" is unknown"),
        ("sessionAffinity: Cookie", "sessionAffinity \"Cookie\" is unknown"),
    ];
    let plain = value("");
    for (line, problem) in table {
        let converted = good(&format!("  {line}"));
        assert_reasons(&converted, &[problem], line);
        assert_eq!(converted.value.as_ref(), Some(&plain), "{line}");
    }
}

#[test]
fn client_ip_affinity_has_a_timeout_of_three_hours_unless_it_says() {
    let table: [(&str, Option<u32>, &[&str]); 6] = [
        ("  sessionAffinity: None", None, &[]),
        ("  sessionAffinity: ClientIP", Some(10_800), &[]),
        (
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}",
            Some(1),
            &[],
        ),
        (
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
            Some(10_800),
            &["clientIP.timeoutSeconds is 0"],
        ),
        (
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            Some(10_800),
            &["clientIP.timeoutSeconds is 86401"],
        ),
        (
            "  sessionAffinity: None\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 9}}",
            None,
            &[],
        ),
    ];
    for (lines, expected, problems) in table {
        let converted = good(lines);
        assert_reasons(&converted, problems, lines);
        assert_eq!(converted.value.unwrap().affinity_timeout, expected, "{lines}");
    }
}

#[test]
fn the_health_check_port_is_only_for_load_balancers_with_local_policy() {
    let table: [(&str, Option<u16>, &[&str]); 4] = [
        (
            "  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000",
            Some(32000),
            &[],
        ),
        ("  type: LoadBalancer\n  healthCheckNodePort: 32000", None, &[]),
        (
            "  type: NodePort\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000",
            None,
            &[],
        ),
        (
            "  type: LoadBalancer\n  externalTrafficPolicy: Local",
            None,
            &["no usable healthCheckNodePort"],
        ),
    ];
    for (lines, expected, problems) in table {
        let converted = good(lines);
        assert_reasons(&converted, problems, lines);
        assert_eq!(converted.value.unwrap().health_check_node_port, expected, "{lines}");
    }
}

#[test]
fn target_port_publish_not_ready_and_selector_mean_nothing_to_a_proxy() {
    let plain = value("");
    let same = converted(
        "  clusterIP: 10.96.0.10\n  ports: [{port: 80, targetPort: 8080, appProtocol: h2c}]\n  \
         publishNotReadyAddresses: true\n  trafficDistribution: PreferClose\n  selector: {app: web}",
    );
    assert_eq!(same.value, Some(plain));
}

#[test]
fn a_service_without_namespace_is_in_default() {
    let converted = service(&yaml("metadata: {name: web}\nspec: {clusterIP: None}"));
    assert_eq!(converted.name, ObjectName::new("default", "web"));
}
