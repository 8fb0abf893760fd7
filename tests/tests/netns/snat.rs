//! Source ports of flows to remote backends.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use lb_lab::{Family, Options, Request, Transport};

use crate::manifest::{POD_PORT, Service};
use crate::stage::{Stage, each, eventually};

/// The smallest range that the agent accepts.
const TINY: (u16, u16) = (20_000, 20_255);

fn with_tiny_range(services: &[Service]) -> Stage {
    Stage::with(&Options::default(), services, |agent| {
        let range = format!("{}-{}", TINY.0, TINY.1);
        agent.arguments.extend(["--snat-port-range".into(), range]);
    })
}

#[test]
fn source_ports_are_none_that_the_nodes_own_sockets_or_node_ports_use() {
    let service = Service::node_port(1, &["pod-b1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let text = stage.run("node-a", &["cat", "/proc/sys/net/ipv4/ip_local_port_range"]);
    let range: Vec<u16> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let mut ports = BTreeSet::new();
    for (family, transport) in each() {
        let to = stage.address("node-a", family);
        let request = Request::new(transport, to, service.node_port_number());
        for _ in 0..50 {
            let port = stage.answer("client", &request).seen.port();
            assert!(!(range[0]..=range[1]).contains(&port), "{port} is the kernel's");
            assert!(!(30_000..=32_767).contains(&port), "{port} is a NodePort");
            assert!(port >= 1024, "{port} is a system port");
            ports.insert(port);
        }
    }
    assert!(ports.len() > 150, "only {} ports for 200 flows", ports.len());
}

#[test]
fn a_port_where_a_socket_of_the_node_listens_is_never_taken() {
    let service = Service::node_port(1, &["pod-b1"]);
    let stage = with_tiny_range(std::slice::from_ref(&service));
    let node = stage.lab().peer("node-a").unwrap();
    let taken: BTreeSet<u16> = (TINY.0..=TINY.1).filter(|port| port % 4 == 0).collect();
    for transport in Transport::BOTH {
        for port in &taken {
            node.serve(transport, "::".parse().unwrap(), *port).unwrap();
        }
    }
    for (family, transport) in each() {
        let to = stage.address("node-a", family);
        let request = Request::new(transport, to, service.node_port_number());
        for _ in 0..60 {
            let port = stage.answer("client", &request).seen.port();
            assert!((TINY.0..=TINY.1).contains(&port), "{family} {transport}: {port}");
            assert!(!taken.contains(&port), "{family} {transport}: {port} is a socket's");
        }
    }
}

/// As many connections as are needed to take the whole range, and some.
const TOO_MANY: usize = 300;

#[test]
fn exhausted_ports_are_counted_and_existing_flows_go_on() {
    let service = Service::node_port(1, &["pod-b1"]);
    let stage = with_tiny_range(std::slice::from_ref(&service));
    let reason = "lb_agent_drops_total{reason=\"snat_exhausted\"}";
    for family in Family::BOTH {
        let (to, port) = (stage.address("node-a", family), service.node_port_number());
        let before = stage.metric("node-a", reason);
        let open: Vec<_> = (0..TOO_MANY)
            .map(|number| Request::tcp(to, port).keep(format!("{family} {number}")))
            .filter(|request| {
                let request = request.clone().patience(Duration::from_millis(200));
                stage.ask("client", &request).is_ok()
            })
            .collect();
        let lost = TOO_MANY - open.len();
        // A few find all ports taken that they try while others are free yet, or are just slow.
        assert!((44..=80).contains(&lost), "{family}: {lost} of {TOO_MANY} found no port of 256");
        eventually("drops are counted", || stage.metric("node-a", reason) - before >= 44.0);
        for request in &open {
            stage.answer("client", request);
        }
        // The other transport has ports of its own.
        stage.answer("client", &Request::udp(to, port));
    }
}

#[test]
fn ports_of_flows_that_are_over_serve_new_ones() {
    let service = Service::node_port(1, &["pod-b1"]);
    let stage = with_tiny_range(std::slice::from_ref(&service));
    let requests: Vec<_> = each()
        .map(|(family, transport)| {
            let to = stage.address("node-a", family);
            Request::new(transport, to, service.node_port_number()).times(150)
        })
        .collect();
    // Three times the range, long before the agent removes the first of these flows.
    for _ in 0..5 {
        for request in &requests {
            stage.all_answered("client", request);
        }
        std::thread::sleep(Duration::from_secs(6));
    }
    let text = stage.agent_says("node-a", &["status"]);
    assert!(!text.contains("snat_exhausted"), "{text}");
}

/// The port is free when the flow gets it, and a socket of the node takes it later, for the same endpoint.
#[test]
fn a_socket_of_the_node_on_the_port_of_a_flow_gets_its_own_answers() {
    let service = Service::node_port(1, &["pod-b1"]);
    let stage = with_tiny_range(std::slice::from_ref(&service));
    for (family, transport) in each() {
        let to = stage.address("node-a", family);
        let name = format!("{family} {transport}");
        let flow = Request::new(transport, to, service.node_port_number()).keep(name.clone());
        let port = stage.answer("client", &flow).seen.port();
        let direct = Request::new(transport, stage.address("pod-b1", family), POD_PORT)
            .from_port(port)
            .patience(Duration::from_millis(500));
        match transport {
            Transport::Udp => {
                let direct = direct.keep(name);
                let answer = stage.answer("node-a", &direct);
                assert_eq!(answer.seen, SocketAddr::new(to, port), "{family}");
                let again = stage.answer("client", &flow).seen;
                assert_ne!(again.port(), port, "{family}: both have one port");
                assert_eq!(stage.answer("node-a", &direct).seen.port(), port, "{family}");
            }
            // A connection that goes on has the older right.
            Transport::Tcp => {
                stage.failure("node-a", &direct);
                assert_eq!(stage.answer("client", &flow).seen.port(), port, "{family}");
                stage.lab().peer("client").unwrap().forget(&name).unwrap();
                eventually("the flow is over", || stage.ask("node-a", &direct).is_ok());
            }
        }
    }
}
