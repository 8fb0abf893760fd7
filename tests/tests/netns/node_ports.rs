//! Which addresses serve NodePorts, and to whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use lb_lab::topology::pod_range;
use lb_lab::{Family, Options, Request};

use crate::manifest::Service;
use crate::stage::{Pods, Stage, each, eventually, for_both};

for_both! {
    every_address_of_the_node_serves_node_ports_unless_some_are_named,
    loopback_serves_node_ports_to_the_nodes_own_sockets_only,
    pods_and_nodes_reach_node_ports_of_their_own_node_and_of_others,
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn every_address_of_the_node_serves_node_ports_unless_some_are_named(pods: Pods) {
    let service = Service::node_port(1, &["pod-a1", "pod-b1"]);
    for named in [None, Some("10.240.0.0/24,fd00:240::/64"), Some("primary")] {
        let stage = Stage::with(&Options::default(), std::slice::from_ref(&service), |agent| {
            pods.tell(agent);
            let named = named.map(|addresses| ["--nodeport-addresses", addresses]);
            agent.arguments.extend(named.into_iter().flatten().map(str::to_owned));
        });
        for (family, transport) in each() {
            let port = service.node_port_number();
            let request = |to| Request { connected: true, ..Request::new(transport, to, port) };
            // The gateway of node-a's pods is an address of node-a too.
            let gateway = request(pod_range(1, 1).unwrap().of(family));
            for from in ["client", "pod-a2"] {
                stage.answer(from, &request(stage.address("node-a", family)));
                if named.is_some() {
                    let failure = stage.failure(from, &gateway);
                    let what = format!("{from} {named:?} {family} {transport}");
                    assert_eq!(failure.errno, "ECONNREFUSED", "{what}");
                } else {
                    stage.answer(from, &gateway);
                }
            }
        }
    }
}

fn loopback_serves_node_ports_to_the_nodes_own_sockets_only(pods: Pods) {
    let service = Service::node_port(1, &["pod-a1", "pod-b1"]);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    for (family, transport) in each() {
        let request = Request::new(transport, loopback(family), service.node_port_number());
        let request = Request { connected: true, ..request };
        for node in ["node-a", "node-b"] {
            stage.answer(node, &request);
        }
        let failure = stage.failure("pod-a1", &request);
        assert_eq!(failure.errno, "ECONNREFUSED", "{family} {transport}");
    }
}

fn pods_and_nodes_reach_node_ports_of_their_own_node_and_of_others(pods: Pods) {
    let service = Service::node_port(1, &["pod-a1", "pod-b1"]);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    for (family, transport) in each() {
        for from in ["pod-a2", "node-a", "pod-b2", "node-b"] {
            for node in ["node-a", "node-b"] {
                let to = stage.address(node, family);
                stage.answer(from, &Request::new(transport, to, service.node_port_number()));
            }
        }
    }
}

#[test]
fn an_address_that_comes_serves_node_ports_and_one_that_goes_no_longer_does() {
    let service = Service::node_port(1, &["pod-a1", "pod-b1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let added: [IpAddr; 2] = ["10.240.0.77".parse().unwrap(), "fd00:240::77".parse().unwrap()];
    let requests: Vec<_> = added
        .into_iter()
        .flat_map(|address| {
            lb_lab::Transport::BOTH
                .map(|transport| Request::new(transport, address, service.node_port_number()))
        })
        .map(|request| Request { connected: true, ..request }.patience(Duration::from_millis(500)))
        .collect();
    for _ in 0..2 {
        let lines =
            "address add 10.240.0.77/24 dev eth0\naddress add fd00:240::77/64 dev eth0 nodad";
        stage.lab().ip("node-a", lines).unwrap();
        for request in &requests {
            let what = format!("{} serves {}", request.to, request.transport);
            eventually(&what, || stage.ask("client", request).is_ok());
        }
        stage.lab().ip("node-a", &lines.replace("add ", "del ").replace(" nodad", "")).unwrap();
        for request in &requests {
            let what = format!("{} serves {} no longer", request.to, request.transport);
            eventually(&what, || stage.ask("client", request).is_err());
        }
        for (family, transport) in each() {
            let to = stage.address("node-a", family);
            stage.answer("client", &Request::new(transport, to, service.node_port_number()));
        }
    }
}
