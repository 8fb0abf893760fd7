use std::time::{Duration, SystemTime};

use super::super::slice::slice;
use super::{assert_reasons, yaml};
use crate::cluster::convert::Converted;
use crate::cluster::snapshot::{Endpoint, EndpointPort, IpFamily, ObjectName, Protocol, Slice};

/// A slice of Service `default/web` with the given lines.
fn converted(lines: &str) -> Converted<Slice> {
    let head = "metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n";
    slice(&yaml(&format!("{head}{lines}")))
}

fn endpoints(lines: &str) -> Vec<Endpoint> {
    let converted = converted(&format!("addressType: IPv4\nendpoints: {lines}"));
    assert_reasons(&converted, &[], lines);
    converted.value.unwrap().endpoints
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone_hints: Default::default(),
        node_hints: Default::default(),
    }
}

#[test]
fn a_plain_slice_becomes_its_values() {
    let converted = slice(&yaml(
        "
metadata:
  name: web-1
  namespace: shop
  labels: {kubernetes.io/service-name: web, endpointslice.kubernetes.io/managed-by: somebody}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: '2026-01-02T03:04:05.250Z'}
addressType: IPv4
ports:
- {name: http, port: 8080, protocol: TCP, appProtocol: http}
- {name: '', port: 53, protocol: UDP}
endpoints:
- addresses: [10.244.1.12, 10.244.1.13]
  conditions: {ready: false, serving: true, terminating: true}
  nodeName: node-a
  zone: ignored
  hostname: ignored
  hints: {forZones: [{name: z2}, {name: z1}, {name: z2}], forNodes: [{name: node-a}]}
",
    ));
    assert_reasons(&converted, &[], "plain");
    let port = |name: &str, protocol, port| EndpointPort { name: name.into(), protocol, port };
    let expected = Slice {
        name: ObjectName::new("shop", "web-1"),
        service: ObjectName::new("shop", "web"),
        family: IpFamily::V4,
        ports: vec![port("http", Protocol::Tcp, 8080), port("", Protocol::Udp, 53)],
        endpoints: vec![Endpoint {
            ready: false,
            serving: true,
            terminating: true,
            node: Some("node-a".into()),
            zone_hints: ["z1".into(), "z2".into()].into(),
            node_hints: ["node-a".into()].into(),
            ..endpoint("10.244.1.12")
        }],
        trigger_time: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_250)),
    };
    assert_eq!(converted.value, Some(expected));
}

#[test]
fn a_slice_without_service_label_is_ignored_and_said() {
    for labels in ["{}", "{kubernetes.io/service-name: ''}", "{app: web}"] {
        let converted =
            slice(&yaml(&format!("metadata: {{name: s, labels: {labels}}}\naddressType: IPv4")));
        assert_eq!(converted.value, None, "{labels}");
        assert_reasons(&converted, &["has no label kubernetes.io/service-name"], labels);
    }
}

#[test]
fn the_headless_label_hides_a_slice_whatever_its_value() {
    for label in ["''", "'true'", "'false'"] {
        let converted = slice(&yaml(&format!(
            "
metadata:
  name: s
  labels: {{kubernetes.io/service-name: web, service.kubernetes.io/headless: {label}}}
addressType: IPv4
endpoints: [{{addresses: [10.244.1.12]}}]
"
        )));
        assert_eq!(converted.value, None, "{label}");
        assert_reasons(&converted, &[], label);
    }
}

#[test]
fn the_service_proxy_name_label_on_a_slice_means_nothing() {
    let converted = slice(&yaml(
        "
metadata:
  name: s
  labels: {kubernetes.io/service-name: web, service.kubernetes.io/service-proxy-name: other}
addressType: IPv4
",
    ));
    assert!(converted.value.is_some());
}

#[test]
fn only_ip_slices_can_be_balanced() {
    for (kind, used) in [("IPv4", true), ("IPv6", true), ("FQDN", false), ("Carrier", false)] {
        let converted = converted(&format!("addressType: {kind}"));
        assert_eq!(converted.value.is_some(), used, "{kind}");
        assert_eq!(converted.problems.is_empty(), used, "{kind}");
    }
}

#[test]
fn ports_without_name_or_number_are_ignored_and_the_others_work() {
    let table = [
        ("{port: 81}", "has no name"),
        ("{name: b}", "has no port number"),
        ("{name: b, port: 0}", "has port 0"),
        ("{name: b, port: 70000}", "has port 70000"),
        ("{name: b, port: 81, protocol: QUIC}", "unknown protocol \"QUIC\""),
    ];
    for (port, problem) in table {
        let converted =
            converted(&format!("addressType: IPv4\nports: [{{name: a, port: 80}}, {port}]"));
        assert_reasons(&converted, &[problem], port);
        assert_eq!(converted.value.unwrap().ports.len(), 1, "{port}");
    }
}

#[test]
fn conditions_that_are_nil_mean_ready_serving_and_not_terminating() {
    let table = [
        ("", (true, true, false)),
        (", conditions: {}", (true, true, false)),
        (", conditions: {ready: false}", (false, true, false)),
        (", conditions: {serving: false}", (true, false, false)),
        (", conditions: {terminating: true}", (true, true, true)),
    ];
    for (conditions, expected) in table {
        let found = endpoints(&format!("[{{addresses: [10.244.1.12]{conditions}}}]"));
        let found = (found[0].ready, found[0].serving, found[0].terminating);
        assert_eq!(found, expected, "{conditions}");
    }
}

#[test]
fn an_endpoint_is_its_first_address() {
    let found = endpoints("[{addresses: [10.244.1.12, 10.244.1.13]}]");
    assert_eq!(found, [endpoint("10.244.1.12")]);
}

#[test]
fn addresses_with_leading_zeros_are_decimal() {
    assert_eq!(endpoints("[{addresses: [10.244.01.012]}]"), [endpoint("10.244.1.12")]);
}

#[test]
fn endpoints_with_garbage_are_left_out_and_said_once() {
    let table = [
        ("{addresses: []}", "has no address"),
        ("{addresses: [pod.example]}", "\"pod.example\", which is not an IP address"),
        ("{addresses: ['']}", "which is not an IP address"),
        ("{addresses: ['fd00::1']}", "not of the slice's addressType"),
        ("{addresses: [127.0.0.1]}", "a loopback address"),
        ("{addresses: [169.254.0.1]}", "a link-local address"),
        ("{addresses: [0.0.0.0]}", "the unspecified address"),
        ("{addresses: [224.0.0.1]}", "a multicast or broadcast address"),
    ];
    for (bad, problem) in table {
        let lines = format!("addressType: IPv4\nendpoints: [{{addresses: [10.0.0.1]}}, {bad}]");
        let converted = converted(&lines);
        assert_reasons(&converted, &[problem], bad);
        assert_eq!(converted.value.unwrap().endpoints.len(), 1, "{bad}");
    }
}

#[test]
fn a_hundred_thousand_endpoints_are_converted_and_as_many_bad_ones_are_one_problem() {
    let list = |address: &dyn Fn(u32) -> String| {
        let endpoints: Vec<_> = (0..100_000)
            .map(|index| k8s_openapi::api::discovery::v1::Endpoint {
                addresses: vec![address(index)],
                ..Default::default()
            })
            .collect();
        let mut object: k8s_openapi::api::discovery::v1::EndpointSlice = yaml(
            "metadata: {name: big, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4",
        );
        object.endpoints = Some(endpoints);
        slice(&object)
    };
    let good = list(&|index| std::net::Ipv4Addr::from(0x0a00_0001 + index).to_string());
    assert_reasons(&good, &[], "good");
    assert_eq!(good.value.unwrap().endpoints.len(), 100_000);
    let bad = list(&|index| format!("bad-{index}"));
    assert_reasons(&bad, &["\"bad-0\", which is not an IP address"], "bad");
    assert!(bad.problems[0].reason.ends_with("(and 99999 more like it)"), "{:?}", bad.problems);
    assert_eq!(bad.value.unwrap().endpoints, []);
}

#[test]
fn a_trigger_time_that_is_no_time_is_no_problem() {
    let converted = slice(&yaml(
        "
metadata:
  name: s
  labels: {kubernetes.io/service-name: web}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: yesterday}
addressType: IPv4
",
    ));
    assert_reasons(&converted, &[], "trigger time");
    assert_eq!(converted.value.unwrap().trigger_time, None);
}
