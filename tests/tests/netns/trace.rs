//! `lb-agent trace` foretells what a real request meets, on every path and for every reason that can be
//! provoked here, and leaves nothing behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use lb_lab::topology::Cni;
use lb_lab::{Dual, Family, LOAD_BALANCER, Options, Request, Transport};
use serde_json::Value;

use crate::manifest::{POD_PORT, PORT, Service};
use crate::stage::{Stage, each, eventually};

/// Patience with silence.
const SILENCE: Duration = Duration::from_millis(300);

const RANGE: &str = "
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, 'fd00:96::/112']}
";

/// Of the range, and no Service has it.
fn unowned() -> Dual {
    Dual::new([10, 96, 200, 7].into(), [0xfd00, 0x96, 0, 0, 0, 0, 0, 0xc807].into())
}

/// A client, the node that sees it first, and where it connects to.
struct Case {
    from: &'static str,
    node: &'static str,
    to: SocketAddr,
    transport: Transport,
    /// The reason, or none when it is served.
    reason: Option<&'static str>,
}

/// Served by a pod of each node, load balancer's address for `pod-a2` alone; without endpoints; with
/// one on node-b and both policies Local; by `pod-a1` alone.
fn services(ranges: [String; 2]) -> [Service; 4] {
    [
        Service { source_ranges: ranges.into(), ..Service::new(1, &["pod-a1", "pod-b1"]) },
        Service::node_port(2, &[]),
        Service {
            external_local: true,
            internal_local: true,
            ..Service::node_port(3, &["pod-b1"])
        },
        Service::node_port(4, &["pod-a1"]),
    ]
}

fn stage(options: &Options, pod_path: &str) -> (Stage, [Service; 4]) {
    let nobody = ["192.0.2.1/32", "2001:db8::1/128"].map(str::to_owned);
    let stage = Stage::with(options, &services(nobody), |agent| {
        agent.arguments.extend(["--pod-path", pod_path].map(str::to_owned));
    });
    stage.write("range.yaml", RANGE);
    let ranges = Family::BOTH.map(|family| {
        let bits = if family == Family::V4 { 32 } else { 128 };
        format!("{}/{bits}", stage.address("pod-a2", family))
    });
    let services = services(ranges);
    stage.publish(&services);
    (stage, services)
}

/// What `trace` says of a client that uses `port`.
fn trace(stage: &Stage, case: &Case, family: Family, port: u16, more: &[&str]) -> Value {
    let from = match case.from {
        node if node == case.node => "node".to_owned(),
        host => SocketAddr::new(stage.address(host, family), port).to_string(),
    };
    let protocol = case.transport.to_string().to_lowercase();
    let to = case.to.to_string();
    let mut words = vec!["trace", "--from", &from, "--to", &to, "--protocol", &protocol];
    words.extend(["-o", "json"].iter().chain(more));
    serde_json::from_str(&stage.agent_says(case.node, &words)).unwrap()
}

/// The host that answers a request from a port, 0 for any, and the address that it saw.
fn served(stage: &Stage, case: &Case, family: Family, port: u16) -> (IpAddr, IpAddr) {
    let answer = stage.answer(case.from, &request(case, port));
    (stage.address(&answer.server, family), answer.seen.ip())
}

fn request(case: &Case, port: u16) -> Request {
    let request = Request::new(case.transport, case.to.ip(), case.to.port()).connected();
    if port == 0 { request } else { request.from_port(port) }
}

fn ip(end: &Value) -> IpAddr {
    end.as_str().unwrap().parse::<SocketAddr>().unwrap().ip()
}

/// How a client's packets or calls are translated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Packet,
    Socket,
}

/// Traces, asks for real, and compares.
fn check(stage: &Stage, case: &Case, family: Family, port: u16, way: Way, more: &[&str]) {
    let said = trace(stage, case, family, port, more);
    let Case { from, to, transport, reason, .. } = case;
    let what = format!("{from} → {to} {transport}: {said:#}");
    assert_eq!(said["reason"]["label"].as_str(), *reason, "{what}");
    let agrees = if way == Way::Packet { Value::Bool(true) } else { Value::Null };
    assert_eq!(said["program"]["agrees"], agrees, "{what}");
    let is_ours = |flow: &Value| {
        let source: SocketAddr = flow["source"].as_str().unwrap().parse().unwrap();
        port != 0 && source == SocketAddr::new(stage.address(from, family), port)
    };
    assert!(!stage.flows(case.node).iter().any(is_ours), "a trace leaves no flow: {what}");
    let port = if way == Way::Packet { port } else { 0 };
    let fails = || stage.failure(from, &request(case, port).patience(SILENCE)).errno;
    match said["verdict"].as_str().unwrap() {
        "translated" => {
            let (server, seen) = served(stage, case, family, port);
            let endpoints = said["endpoints"].as_array().unwrap();
            let is_listed = |endpoint: &Value| ip(&endpoint["address"]) == server;
            assert!(endpoints.iter().any(is_listed), "{server}: {what}");
            if way == Way::Packet {
                assert_eq!(ip(&said["chosen"]), server, "{what}");
                assert_eq!(ip(&said["seen_as"]), seen, "{what}");
                if *transport == Transport::Udp {
                    let again = trace(stage, case, family, port, more);
                    assert_eq!(again["chosen"], said["chosen"], "its flow is there: {again:#}");
                    assert_eq!(again["program"]["agrees"], Value::Null, "not disturbed: {again:#}");
                }
            }
        }
        "untranslated" => {
            let (server, seen) = served(stage, case, family, port);
            assert_eq!((server, seen), (to.ip(), stage.address(from, family)), "{what}");
        }
        "refused" => assert_eq!(fails(), "ECONNREFUSED", "{what}"),
        "dropped" => {
            let errno = fails();
            assert_ne!(errno, "ECONNREFUSED", "{what}");
            let at_once = said["client_meets"].as_str().unwrap().starts_with("EHOSTUNREACH");
            assert_eq!(errno == "EHOSTUNREACH", at_once, "{errno} {what}");
        }
        other => panic!("{other}: {what}"),
    }
}

#[test]
fn trace_says_of_clients_outside_what_they_meet_and_the_program_agrees() {
    let (stage, [both, none, local, _]) = stage(&Options::default(), "socket");
    let mut ports = 41_000..;
    for (family, transport) in each() {
        let node_port = |node: &str, service: &Service| {
            SocketAddr::new(stage.address(node, family), service.node_port_number())
        };
        let cluster =
            |service: &Service, port| SocketAddr::new(service.cluster_ip().of(family), port);
        let balancer = SocketAddr::new(LOAD_BALANCER.of(family), PORT);
        let unowned = SocketAddr::new(unowned().of(family), PORT);
        let pod = SocketAddr::new(stage.address("pod-a1", family), POD_PORT);
        for (from, node, to, reason) in [
            ("client", "node-a", node_port("node-a", &both), None),
            ("client", "node-b", node_port("node-b", &both), None),
            ("node-b", "node-a", node_port("node-a", &both), None),
            ("client", "node-a", cluster(&both, PORT), None),
            ("client", "node-b", node_port("node-b", &local), None),
            ("client", "node-a", pod, None),
            ("client", "node-a", node_port("node-a", &none), Some("no_endpoints")),
            ("client", "node-a", node_port("node-a", &local), Some("no_local_endpoint")),
            ("node-b", "node-a", node_port("node-a", &local), Some("no_local_endpoint")),
            ("client", "node-a", cluster(&local, PORT), Some("no_local_endpoint")),
            ("client", "node-a", cluster(&both, 81), Some("unknown_port")),
            ("client", "node-a", balancer, Some("source_range")),
            ("client", "node-a", unowned, Some("unowned_address")),
        ] {
            let case = Case { from, node, to, transport, reason };
            check(&stage, &case, family, ports.next().unwrap(), Way::Packet, &[]);
        }
    }
}

#[test]
fn trace_says_of_sockets_what_they_meet_also_without_an_agent() {
    let (mut stage, [both, none, local, one]) = stage(&Options::default(), "socket");
    for with_agent in [true, false] {
        for (family, transport) in each() {
            let cluster =
                |service: &Service, port| SocketAddr::new(service.cluster_ip().of(family), port);
            let balancer = SocketAddr::new(LOAD_BALANCER.of(family), PORT);
            let node_port =
                SocketAddr::new(stage.address("node-a", family), local.node_port_number());
            let loopback: IpAddr = match family {
                Family::V4 => Ipv4Addr::LOCALHOST.into(),
                Family::V6 => Ipv6Addr::LOCALHOST.into(),
            };
            let unowned = SocketAddr::new(unowned().of(family), PORT);
            let pod = SocketAddr::new(stage.address("pod-b1", family), POD_PORT);
            for (from, to, reason) in [
                ("pod-a1", cluster(&both, PORT), None),
                ("pod-a1", cluster(&one, PORT), None),
                ("node-a", cluster(&both, PORT), None),
                ("pod-a1", node_port, None),
                ("node-a", SocketAddr::new(loopback, local.node_port_number()), None),
                ("pod-a1", pod, None),
                ("pod-a2", balancer, None),
                ("pod-a1", balancer, Some("source_range")),
                ("node-a", balancer, Some("source_range")),
                ("pod-a1", cluster(&none, PORT), Some("no_endpoints")),
                ("node-a", cluster(&none, PORT), Some("no_endpoints")),
                ("pod-a1", cluster(&local, PORT), Some("no_local_endpoint")),
                ("pod-a1", cluster(&both, 81), Some("unknown_port")),
                ("node-a", cluster(&both, 81), Some("unknown_port")),
                ("pod-a1", unowned, Some("unowned_address")),
                ("node-a", unowned, Some("unowned_address")),
            ] {
                let case = Case { from, node: "node-a", to, transport, reason };
                check(&stage, &case, family, 0, Way::Socket, &[]);
            }
        }
        if with_agent {
            stage.kill_agent("node-a");
        }
    }
}

#[test]
fn trace_says_of_pods_packets_what_they_meet_and_the_program_agrees() {
    let bridge = Options { cni: Cni::Bridge, ..Options::default() };
    for options in [Options::default(), bridge] {
        let (stage, [both, none, local, one]) = stage(&options, "packet");
        let mut ports = 42_000..;
        for (family, transport) in each() {
            let cluster =
                |service: &Service, port| SocketAddr::new(service.cluster_ip().of(family), port);
            let balancer = SocketAddr::new(LOAD_BALANCER.of(family), PORT);
            let unowned = SocketAddr::new(unowned().of(family), PORT);
            let pod = SocketAddr::new(stage.address("pod-b1", family), POD_PORT);
            // A bridge learns behind which of its ports a pod is from what the pod sends.
            for host in ["pod-a1", "pod-a2"] {
                stage.answer(host, &Request::new(transport, pod.ip(), pod.port()));
            }
            for (from, to, reason) in [
                ("pod-a2", cluster(&both, PORT), None),
                ("pod-a2", balancer, None),
                ("pod-a1", cluster(&one, PORT), None),
                ("pod-a1", pod, None),
                ("pod-a1", balancer, Some("source_range")),
                ("pod-a1", cluster(&none, PORT), Some("no_endpoints")),
                ("pod-a1", cluster(&local, PORT), Some("no_local_endpoint")),
                ("pod-a1", cluster(&both, 81), Some("unknown_port")),
                ("pod-a1", unowned, Some("unowned_address")),
            ] {
                let case = Case { from, node: "node-a", to, transport, reason };
                check(&stage, &case, family, ports.next().unwrap(), Way::Packet, &[]);
            }
        }
    }
}

#[test]
fn trace_explains_both_ways_of_a_pod_that_has_both() {
    let (stage, [both, none, ..]) = stage(&Options::default(), "both");
    for (family, transport) in each() {
        for (service, reason) in [(&both, None), (&none, Some("no_endpoints"))] {
            let to = SocketAddr::new(service.cluster_ip().of(family), PORT);
            let case = Case { from: "pod-a2", node: "node-a", to, transport, reason };
            check(&stage, &case, family, 0, Way::Socket, &[]);
            // Real sockets are seen: what their packets would meet is the program's answer alone.
            let said = trace(&stage, &case, family, 43_000, &["--pod-path", "packet"]);
            assert_eq!(said["reason"]["label"].as_str(), reason, "{said:#}");
            assert_eq!(said["program"]["agrees"], true, "{said:#}");
        }
    }
}

#[test]
fn trace_sees_routes_that_are_missing_forbidden_or_lead_where_no_reply_comes_from() {
    let service = Service::node_port(1, &["pod-b1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let node_ip = |arguments: &str| stage.lab().ip("node-a", arguments).unwrap();
    let mut ports = 44_000..;
    for (family, transport) in each() {
        let to = SocketAddr::new(stage.address("node-a", family), service.node_port_number());
        let case = |reason| Case { from: "client", node: "node-a", to, transport, reason };
        let mut check = |reason| {
            check(&stage, &case(reason), family, ports.next().unwrap(), Way::Packet, &[]);
        };
        check(None);
        let backend = stage.address("pod-b1", family);
        for (route, reason) in [
            (format!("blackhole {backend}"), "no_route"),
            (format!("unreachable {backend}"), "no_route"),
            (format!("{backend} dev veth-pod-a1"), "no_source_address"),
        ] {
            node_ip(&format!("route add {route}"));
            check(Some(reason));
            node_ip(&format!("route del {route}"));
        }
        let number = if family == Family::V4 { 4 } else { 6 };
        let forwarding = |value| {
            let setting = format!("net.ipv{number}.conf.eth0.forwarding={value}");
            stage.run("node-a", &["sysctl", "-q", "-w", &setting]);
        };
        forwarding(0);
        check(Some("no_route"));
        forwarding(1);
        check(None);
    }
}

#[test]
fn trace_sees_that_the_ports_for_one_client_are_in_use() {
    let service = Service::node_port(1, &["pod-b1"]);
    let stage = Stage::with(&Options::default(), std::slice::from_ref(&service), |agent| {
        // The smallest range.
        agent.arguments.extend(["--snat-port-range", "20000-20255"].map(str::to_owned));
    });
    for family in Family::BOTH {
        let to = SocketAddr::new(stage.address("node-a", family), service.node_port_number());
        let transport = Transport::Udp;
        let reason = Some("snat_exhausted");
        let case = Case { from: "client", node: "node-a", to, transport, reason };
        let is_refused =
            |port: &u16| stage.ask("client", &request(&case, *port).patience(SILENCE)).is_err();
        let port =
            (46_000..46_600).find(is_refused).expect("256 ports are not enough for 600 flows");
        check(&stage, &case, family, port, Way::Packet, &[]);
    }
}

/// No socket hook sees it: the program of the device that the Service's address is routed to translates it.
#[test]
fn trace_runs_the_program_that_sctp_of_the_nodes_processes_meets() {
    let services = [Service::new(1, &["pod-a1"]), Service::node_port(2, &["pod-b1"])];
    let none = Service::node_port(3, &[]);
    let stage = Stage::up(&Options::default(), &[]);
    let all = services.iter().chain([&none]);
    let documents = all.flat_map(|service| service.documents(stage.lab().topology()));
    let text: String = documents.map(|document| format!("---\n{document}\n")).collect();
    stage.write("services.yaml", &text.replace("\"UDP\"", "\"SCTP\""));
    let says = |to: SocketAddr| {
        let to = to.to_string();
        stage.agent_says("node-a", &["trace", "--to", &to, "--protocol", "sctp"])
    };
    for family in Family::BOTH {
        let [here, elsewhere, refused] =
            [&services[0], &services[1], &none].map(|service| service.cluster_ip().of(family));
        let at = |address| SocketAddr::new(address, PORT);
        eventually("the Services are served", || says(at(here)).contains("says the same"));
        let endpoint = SocketAddr::new(stage.address("pod-a1", family), POD_PORT);
        let text = says(at(here));
        for part in [&format!("sent to {endpoint}"), "address is kept", "says the same"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let endpoint = SocketAddr::new(stage.address("pod-b1", family), POD_PORT);
        let text = says(at(elsewhere));
        for part in [&format!("forwarded to {endpoint}"), "as its source", "says the same"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = says(at(refused));
        for part in ["refused (no_endpoints)", "port unreachable", "says the same"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let own = |service: &Service| {
            SocketAddr::new(stage.address("node-a", family), service.node_port_number())
        };
        // The first Service with SCTP has brought programs to devices, one after the other.
        eventually("lo has its program", || says(own(&services[1])).contains("says the same"));
        let text = says(own(&services[1]));
        for part in ["leave through lo", "forwarded to", "as its source", "says the same"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = says(own(&none));
        for part in ["refused (no_endpoints)", "port unreachable", "says the same"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn trace_says_when_no_program_sees_a_clients_packets() {
    let (stage, [both, ..]) = stage(&Options::default(), "socket");
    for family in Family::BOTH {
        let to = SocketAddr::new(both.cluster_ip().of(family), PORT);
        let address = SocketAddr::new(stage.address("pod-a1", family), 4_000).to_string();
        let to = to.to_string();
        // The node's end of a pod's device has programs only while there is an SCTP port.
        let words = ["trace", "--from", &address, "--to", &to, "--protocol", "sctp"];
        let text = stage.agent_says("node-a", &words);
        assert!(text.contains("no program is attached there"), "{text}");
        assert!(text.contains("not translated"), "{text}");
        let words = [&words[..], &["--pod-path", "socket"]].concat();
        let output = stage.agent_output("node-a", &words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("--pod-path socket"), "{errors}");
    }
}

#[test]
fn trace_knows_session_affinity_and_leaves_it_as_it_was() {
    let service = Service { affinity: Some(600), ..Service::node_port(1, &["pod-b1", "pod-b2"]) };
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let mut ports = 45_000..;
    for (family, transport) in each() {
        let to = SocketAddr::new(stage.address("node-a", family), service.node_port_number());
        let case = |reason| Case { from: "client", node: "node-a", to, transport, reason };
        let mut says = |reason: Option<&'static str>| {
            let said = trace(&stage, &case(reason), family, ports.next().unwrap(), &[]);
            assert_eq!(said["reason"]["label"].as_str(), reason, "{said:#}");
            assert_eq!(said["program"]["agrees"], true, "{said:#}");
            let steps = said["steps"].as_array().unwrap();
            let step = steps.iter().find(|step| step["step"] == "affinity").unwrap();
            (step["says"].as_str().unwrap().to_owned(), said["chosen"].clone())
        };
        let backends = ["pod-b1", "pod-b2"].map(|pod| stage.address(pod, family));
        let routes = |verb: &str| {
            for backend in backends {
                stage.lab().ip("node-a", &format!("route {verb} blackhole {backend}")).unwrap();
            }
        };
        // Neither a run that opens a flow nor one that doesn't is remembered.
        says(None);
        routes("add");
        says(Some("no_route"));
        routes("del");
        let (fresh, _) = says(None);
        assert!(fresh.contains("nothing is remembered"), "{fresh}");
        let (server, _) = served(&stage, &case(None), family, 0);
        for _ in 0..4 {
            let (kept, chosen) = says(None);
            assert!(kept.contains("this client keeps"), "{kept}");
            assert_eq!(ip(&chosen), server, "{kept}");
        }
    }
}

#[test]
fn trace_finds_a_service_by_name_and_prints_it_for_people() {
    let (stage, [_, none, ..]) = stage(&Options::default(), "socket");
    let service = format!("default/{}:web", none.name());
    let text = stage.agent_says("node-a", &["trace", "--to", &service]);
    for part in
        ["no endpoint anywhere", "refused (no_endpoints)", "CAUSE", "CURE", "endpointslices"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}
