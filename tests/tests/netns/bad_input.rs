//! Manifests that are broken in every way, while requests run: nothing else suffers.

use std::fmt::Write as _;

use lb_lab::{Options, Request};

use crate::manifest::{PORT, Service};
use crate::stage::{Stage, each, eventually};

/// Files that must be survived: name and content.
const BROKEN: &[(&str, &str)] = &[
    ("not-yaml.yaml", "this: is: not: yaml\n\t- [}"),
    ("binary.yaml", "\u{0}\u{1}\u{7f}\u{feff}"),
    ("empty.yaml", ""),
    ("list.yaml", "- 1\n- 2\n"),
    ("scalar.yaml", "just text\n"),
    ("no-kind.yaml", "apiVersion: v1\nmetadata: {name: x}\n"),
    ("other-kind.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"),
    ("no-name.yaml", "apiVersion: v1\nkind: Service\nmetadata: {}\nspec: {clusterIP: 10.96.9.1}\n"),
    (
        "no-ports.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: noports}\nspec: {clusterIP: 10.96.9.2}\n",
    ),
    (
        "zero-port.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: zero}\nspec:\n  clusterIP: 10.96.9.3\n  \
         ports: [{port: 0}, {name: big, port: 70000}, {name: neg, port: -1}]\n",
    ),
    (
        "odd-enums.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: odd}\nspec:\n  type: Teleport\n  clusterIP: \
         10.96.9.4\n  externalTrafficPolicy: Sometimes\n  internalTrafficPolicy: Never\n  \
         sessionAffinity: Love\n  ipFamilies: [IPv5]\n  ports: [{port: 80, protocol: QUIC}]\n",
    ),
    (
        "odd-addresses.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: addresses}\nspec:\n  clusterIP: \
         300.1.2.3\n  clusterIPs: [300.1.2.3, 'fe80::1%eth0', '::', 0.0.0.0]\n  externalIPs: [x, \
         127.0.0.1, 224.0.0.1]\n  ports: [{port: 80}]\n",
    ),
    (
        "no-label.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: \
         orphan}\naddressType: IPv4\nports: [{port: 1}]\nendpoints: [{addresses: [10.244.1.11]}]\n",
    ),
    (
        "odd-slice.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: odd-slice, labels: \
         {kubernetes.io/service-name: s1}}\naddressType: FQDN\nports: [{port: 8080}]\nendpoints: \
         [{addresses: [example.org]}]\n",
    ),
    (
        "garbage-endpoints.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: garbage, labels: \
         {kubernetes.io/service-name: s1}}\naddressType: IPv4\nports:\n- {name: web, port: 0, \
         protocol: TCP}\n- {name: echo, port: 99999, protocol: UDP}\nendpoints:\n- {addresses: \
         []}\n- {addresses: [nonsense]}\n- {addresses: ['::1']}\n- {addresses: [127.0.0.1]}\n- \
         {addresses: [0.0.0.0]}\n",
    ),
    (
        "bomb.yaml",
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
    ),
];

/// Asserts that the good Service is served, by its own backends alone.
fn good_service_works(stage: &Stage, service: &Service, after: &str) {
    for (family, transport) in each() {
        for (from, to, port) in [
            ("client", stage.address("node-a", family), service.node_port_number()),
            ("pod-a2", service.cluster_ip().of(family), PORT),
        ] {
            let answer = stage.answer(from, &Request::new(transport, to, port));
            assert!(service.backends.contains(&answer.server), "after {after}: {answer:?}");
        }
    }
}

#[test]
fn broken_manifests_are_reported_and_the_other_services_keep_working() {
    let service = Service::node_port(1, &["pod-a1", "pod-b1"]);
    let mut stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    for (file, text) in BROKEN {
        stage.write(file, text);
        good_service_works(&stage, &service, file);
    }
    // Changes still arrive, and the files that are broken were named.
    let changed = Service::node_port(1, &["pod-b2"]);
    stage.publish(std::slice::from_ref(&changed));
    good_service_works(&stage, &changed, "the change");
    for file in ["not-yaml.yaml", "list.yaml", "no-name.yaml"] {
        eventually(file, || stage.log("node-a").contains(file));
    }
    let log = stage.log("node-a");
    assert!(!log.contains("panicked"), "{log}");
    // An agent that finds them all at its start works, too.
    stage.kill_agent("node-a");
    stage.start_agent("node-a");
    good_service_works(&stage, &changed, "a restart");
    // An agent that would have died is found here.
    for node in stage.nodes() {
        stage.stop_agent(&node);
    }
}

#[test]
fn a_service_with_100_000_endpoints_leaves_the_others_working() {
    let service = Service::node_port(1, &["pod-a1", "pod-b1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let mut text = String::from(
        "apiVersion: v1\nkind: Service\nmetadata: {name: huge}\nspec:\n  clusterIP: 10.96.9.9\n  \
         ports: [{port: 80}]\n",
    );
    for slice in 0..100 {
        let _ = write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: \
             huge-{slice}, labels: {{kubernetes.io/service-name: huge}}}}\naddressType: \
             IPv4\nports: [{{port: 8080}}]\nendpoints:\n"
        );
        for endpoint in 0..1000 {
            let number = slice * 1000 + endpoint;
            let (third, fourth) = (number / 250 % 250, number % 250 + 1);
            let second = 64 + number / 62_500;
            let _ = writeln!(text, "- {{addresses: [10.{second}.{third}.{fourth}]}}");
        }
    }
    stage.write("huge.yaml", &text);
    let entries = || stage.metric("node-a", "lb_agent_map_entries{map=\"backends\"}");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while entries() < 100_000.0 && stage.metric("node-a", "lb_agent_unfit_service_ports") < 1.0 {
        assert!(std::time::Instant::now() < deadline, "{} backends", entries());
        good_service_works(&stage, &service, "100,000 endpoints");
    }
    good_service_works(&stage, &service, "100,000 endpoints");
    let changed = Service::node_port(1, &["pod-b2"]);
    stage.publish(std::slice::from_ref(&changed));
    good_service_works(&stage, &changed, "a change beside 100,000 endpoints");
}
