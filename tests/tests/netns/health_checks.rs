//! What load balancers are told: health check ports of Services, and `/healthz` of the node.

use std::net::{IpAddr, SocketAddr};

use lb_lab::topology::pod_range;
use lb_lab::{Family, HEALTHZ, Options, Page};

use crate::manifest::Service;
use crate::stage::{Stage, eventually};

fn local(backends: &[&str]) -> Service {
    Service { external_local: true, ..Service::new(1, backends) }
}

/// What `from` is told at an address; `None` if nobody listens there.
fn ask(stage: &Stage, from: &str, address: IpAddr, port: u16) -> Option<Page> {
    stage.lab().peer(from).unwrap().get(SocketAddr::new(address, port), "/").ok()
}

/// Waits until everybody is told `expected` endpoints of each node, in both families; `None` where
/// nobody must listen.
fn until(stage: &Stage, service: &Service, expected: [Option<usize>; 2]) {
    for (node, expected) in ["node-a", "node-b"].into_iter().zip(expected) {
        for family in Family::BOTH {
            for from in ["client", "node-a", "node-b", "pod-b1"] {
                let what = format!("{from} hears {expected:?} of {node} by {family}");
                eventually(&what, || {
                    let address = stage.address(node, family);
                    let page = ask(stage, from, address, service.health_port_number());
                    match (page, expected) {
                        (Some(page), Some(count)) => says(&page, count),
                        (page, expected) => page.is_none() && expected.is_none(),
                    }
                });
            }
        }
    }
}

fn says(page: &Page, count: usize) -> bool {
    let weight = format!("X-Load-Balancing-Endpoint-Weight: {count}");
    page.status == if count > 0 { 200 } else { 503 }
        && page.headers.contains(&weight)
        && page.body.contains(&format!("\t\"localEndpoints\": {count},\n"))
}

#[test]
fn each_node_tells_everybody_how_many_endpoints_of_a_service_it_has() {
    let service = local(&["pod-a1", "pod-a2"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    until(&stage, &service, [Some(2), Some(0)]);
    stage.publish(&[local(&["pod-a1", "pod-b1"])]);
    until(&stage, &service, [Some(1), Some(1)]);
    stage.publish(&[local(&[])]);
    until(&stage, &service, [Some(0), Some(0)]);
    // Policy Cluster: any node will do, and nobody need ask.
    stage.publish(&[Service::new(1, &["pod-a1"])]);
    until(&stage, &service, [None, None]);
    stage.publish(&[local(&["pod-b1"])]);
    until(&stage, &service, [Some(0), Some(1)]);
    stage.publish(&[Service::new(2, &["pod-a1"])]);
    until(&stage, &service, [None, None]);
}

#[test]
fn health_checks_are_answered_where_node_ports_are_while_addresses_come_and_go() {
    let service = local(&["pod-a1"]);
    let stage = Stage::with(&Options::default(), std::slice::from_ref(&service), |agent| {
        let addresses = "10.240.0.0/24,fd00:240::/64".to_owned();
        agent.arguments.extend(["--nodeport-addresses".into(), addresses]);
    });
    until(&stage, &service, [Some(1), Some(0)]);
    let port = service.health_port_number();
    for family in Family::BOTH {
        // The gateway of node-a's pods is an address of node-a outside the ranges.
        let gateway = pod_range(1, 1).unwrap().of(family);
        assert_eq!(ask(&stage, "client", gateway, port), None, "{family}");
    }
    let added: [IpAddr; 2] = ["10.240.0.77".parse().unwrap(), "fd00:240::77".parse().unwrap()];
    for _ in 0..2 {
        // With duplicate detection: the kernel refuses to bind the address at first.
        let lines = "address add 10.240.0.77/24 dev eth0\naddress add fd00:240::77/64 dev eth0";
        stage.lab().ip("node-a", lines).unwrap();
        for address in added {
            eventually(&format!("{address} answers"), || {
                ask(&stage, "client", address, port).is_some_and(|page| says(&page, 1))
            });
        }
        stage.lab().ip("node-a", &lines.replace("add ", "del ")).unwrap();
        // Without the address nobody can ask; that the socket is gone only the node knows.
        for address in added.map(|address| SocketAddr::new(address, port).to_string()) {
            eventually(&format!("the socket on {address} is closed"), || {
                !stage.run("node-a", &["ss", "-Htln"]).contains(&address)
            });
        }
        until(&stage, &service, [Some(1), Some(0)]);
    }
    assert!(!stage.log("node-a").contains("load balancers can't ask"), "{}", stage.log("node-a"));
}

#[test]
fn the_nodes_own_health_is_told_on_every_address_of_both_families() {
    let stage = Stage::up(&Options::default(), &[]);
    let port = HEALTHZ.port();
    let loopbacks: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    let asked = Family::BOTH.map(|family| ("client", stage.address("node-a", family)));
    for (from, address) in asked.into_iter().chain(loopbacks.map(|address| ("node-a", address))) {
        let to = SocketAddr::new(address, port);
        let page = stage.lab().peer(from).unwrap().get(to, "/healthz").unwrap();
        assert_eq!(page.status, 200, "{from} → {to}");
        assert!(page.body.contains("\"lastUpdated\":"), "{from} → {to}: {}", page.body);
    }
}
