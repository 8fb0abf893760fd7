//! The model against kube-proxy's own table of flows, and against examples of what this datapath adds.

use serde::Deserialize;

use super::*;

const OBJECTS: &str = "
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10]
  internalTrafficPolicy: INTERNAL
  externalTrafficPolicy: EXTERNAL
  ports: [{port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.5}]}}
---
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-a}
- {addresses: [10.244.2.5], nodeName: node-b}
";

fn cluster(text: &str) -> Cluster {
    let mut cluster = Cluster::default();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = serde_json::Value::deserialize(document).unwrap();
        let name = value["metadata"]["name"].as_str().unwrap();
        let name = ObjectName::new("default", name);
        match value["kind"].as_str() {
            Some("Service") => {
                cluster.services.insert(name, serde_json::from_value(value).unwrap());
            }
            Some("EndpointSlice") => {
                cluster.slices.insert(name, serde_json::from_value(value).unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
    cluster
}

fn here() -> Here {
    Here {
        name: "node-a".to_owned(),
        addresses: [("10.0.0.1".parse().unwrap(), true), ("10.0.0.2".parse().unwrap(), false)]
            .into(),
        pods: ["10.244.1.5".parse().unwrap()].into(),
        masquerades_all: false,
    }
}

fn question(from: Place, destination: &str) -> Question {
    Question {
        from,
        by: if from == Place::Outside { By::Packet } else { By::Call },
        source: Some("192.0.2.10".parse().unwrap()),
        protocol: Protocol::Tcp,
        destination: destination.parse().unwrap(),
    }
}

fn ask(cluster: &Cluster, question: &Question) -> Verdict {
    answer(cluster, &here(), &Memory::default(), 0, question).verdict
}

/// `L`, `LR`, `LrSN`: the local and the remote endpoint; each with the source that it sees.
fn text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Translate(to) => {
            let letter = |(address, source): (&SocketAddr, &Source)| {
                let letter = if address.ip().to_string() == "10.244.1.5" { 'L' } else { 'R' };
                format!("{letter}{}", if *source == Source::Node { "+" } else { "" })
            };
            to.backends.iter().map(letter).collect()
        }
        other => format!("{other:?}"),
    }
}

/// TestInternalExternalMasquerade of kube-proxy, but that sockets are translated before they have a
/// source, and that an endpoint here sees the client (`+` stands for an address of the node).
#[test]
fn flows_go_where_kube_proxys_own_table_says() {
    use Place::{Node, Outside, Pod};
    let (cluster_ip, node_port, balanced) = ("10.96.0.10:80", "10.0.0.1:30080", "203.0.113.5:80");
    for (from, to, both_cluster, external_local, internal_local) in [
        (Pod, cluster_ip, "LR", "LR", "L"),
        (Pod, node_port, "LR", "LR", "LR"),
        (Pod, balanced, "LR", "LR", "LR"),
        (Node, cluster_ip, "LR", "LR", "L"),
        (Node, node_port, "LR", "LR", "LR"),
        (Node, balanced, "LR", "LR", "LR"),
        (Outside, cluster_ip, "LR+", "LR+", "L"),
        (Outside, node_port, "LR+", "L", "LR+"),
        (Outside, balanced, "LR+", "L", "LR+"),
    ] {
        for (internal, external, due) in [
            ("Cluster", "Cluster", both_cluster),
            ("Cluster", "Local", external_local),
            ("Local", "Cluster", internal_local),
        ] {
            let objects = OBJECTS.replace("INTERNAL", internal).replace("EXTERNAL", external);
            let verdict = ask(&cluster(&objects), &question(from, to));
            assert_eq!(text(&verdict), due, "{from:?} to {to}: {internal}, {external}");
        }
    }
}

#[test]
fn silence_and_refusals_are_told_apart_by_what_is_usable_anywhere() {
    let objects = OBJECTS.replace("INTERNAL", "Local").replace("EXTERNAL", "Local");
    let elsewhere = objects.replace("nodeName: node-a", "nodeName: node-c");
    let ending = "conditions: {ready: false, serving: true, terminating: true}, nodeName";
    let gone = objects.replace("nodeName", "conditions: {ready: false}, nodeName");
    for (objects, from, to, due) in [
        (&elsewhere, Place::Pod, "10.96.0.10:80", "Drop"),
        (&elsewhere, Place::Outside, "10.96.0.10:80", "Drop"),
        (&elsewhere, Place::Outside, "203.0.113.5:80", "Drop"),
        (&elsewhere, Place::Node, "203.0.113.5:80", "LR"),
        (&gone, Place::Pod, "10.96.0.10:80", "Refuse(Call)"),
        (&gone, Place::Outside, "203.0.113.5:80", "Refuse(Reset)"),
        (&objects.replace("nodeName", ending), Place::Outside, "203.0.113.5:80", "L"),
        (&objects, Place::Outside, "10.96.0.10:81", "Refuse(Reset)"),
        (&objects, Place::Outside, "203.0.113.5:81", "NotOurs"),
        (&objects, Place::Outside, "10.0.0.2:30080", "NotOurs"),
        (&objects, Place::Node, "127.0.0.1:30080", "LR"),
        (&objects, Place::Pod, "127.0.0.1:30080", "NotOurs"),
    ] {
        let verdict = ask(&cluster(objects), &question(from, to));
        let found = text(&verdict).replace("L+", "L");
        assert_eq!(found, due, "{from:?} to {to}");
    }
}

#[test]
fn an_answer_says_by_which_rules_it_came_about() {
    let objects = OBJECTS.replace("INTERNAL", "Cluster").replace("EXTERNAL", "Local");
    let asked = question(Place::Pod, "203.0.113.5:80");
    let answer = answer(&cluster(&objects), &here(), &Memory::default(), 0, &asked);
    let because: Vec<String> = answer.because.iter().map(ToString::to_string).collect();
    assert_eq!(
        because,
        [
            "an address has one holder: LoadBalancer of Service default/web, port \"\"",
            "clients on this node aren't bound by externalTrafficPolicy: Cluster, as if the traffic \
             had gone out and come back",
            "which endpoints a policy allows: Cluster: 2 ready ones of 2",
        ]
    );
}

#[test]
fn addresses_are_read_as_they_have_always_been() {
    for (text, due) in [
        ("172.30.0.041", Some("172.30.0.41")),
        ("0000010.0.0.1", Some("10.0.0.1")),
        ("fd00:0010:00096::00001", Some("fd00:10:96::1")),
        ("::ffff:010.0.0.041", Some("10.0.0.41")),
        ("::", Some("::")),
        ("1:2:3:4:5:6:7:8", Some("1:2:3:4:5:6:7:8")),
        ("1:2:3:4:5:6:7::", Some("1:2:3:4:5:6:7:0")),
        ("1:2:3:4:5:6:7:8::", None),
        ("fd00:::1", None),
        ("::1::", None),
        ("10.0.0.256", None),
        ("10.0.0", None),
        ("10.0.0.1.2", None),
        ("fe80::1%eth0", None),
        ("", None),
    ] {
        let due = due.map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(address::address(text), due, "{text:?}");
    }
    let cidr = |text| address::cidr(text).map(|cidr| cidr.to_string());
    assert_eq!(cidr(" 203.0.113.077/025 "), Some("203.0.113.0/25".to_owned()));
    assert_eq!((cidr("203.0.113.0"), cidr("fd00::/129"), cidr("10.0.0.0/33")), (None, None, None));
}
