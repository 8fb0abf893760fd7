//! Packets from outside: every address a Service has, local and remote backends, every kind of network.

use std::collections::BTreeSet;

use lb_lab::topology::pod_range;
use lb_lab::{Cni, Family, Options, PodNetwork, Request, ReversePath, Transport};

use crate::manifest::{POD_PORT, PORT, Service};
use crate::ping::ping;
use crate::stage::{Stage, each};

/// With two equal backends one stays without an answer once in eight million runs.
const REQUESTS: u32 = 24;

/// Asks a Service with a backend on each node at all its addresses. Local backends see the client (its
/// port may be another's already), remote ones the node, as it is known on the way to them.
fn every_address_reaches_local_and_remote_backends(options: &Options) {
    let overlay = options.pod_network.is_overlay();
    let service = Service::new(1, &["pod-a1", "pod-b1"]);
    let stage = Stage::up(options, std::slice::from_ref(&service));
    for entry in stage.entries(&service) {
        let number = if entry.node == "node-a" { 1 } else { 2 };
        for (family, transport) in each() {
            let what = format!("{} at {}, {family} {transport}", entry.name, entry.node);
            let request = Request::new(transport, entry.to.of(family), entry.port);
            let mut servers = BTreeSet::new();
            for _ in 0..REQUESTS {
                let answer = stage.answer("client", &request);
                let local =
                    answer.server == format!("pod-{}1", if number == 1 { 'a' } else { 'b' });
                let expected = match (local, overlay) {
                    (true, _) => stage.address("client", family),
                    (false, false) => stage.address(entry.node, family),
                    (false, true) => pod_range(number, 0).unwrap().of(family),
                };
                assert_eq!(answer.seen.ip(), expected, "{what}: {} sees", answer.server);
                if let Some(from) = answer.received_from {
                    assert_eq!(from, request.to, "{what}");
                }
                servers.insert(answer.server);
            }
            assert_eq!(servers.len(), 2, "{what}: {servers:?}");
        }
    }
}

#[test]
fn with_strict_reverse_path_checks_local_backends_see_the_client_and_remote_ones_the_node() {
    let options = Options { reverse_path: ReversePath::Strict, ..Options::default() };
    every_address_reaches_local_and_remote_backends(&options);
}

#[test]
fn with_a_masquerading_cni_the_same() {
    let options = Options { masquerade: true, ..Options::default() };
    every_address_reaches_local_and_remote_backends(&options);
}

#[test]
fn with_pods_on_a_bridge_the_same() {
    let options = Options { cni: Cni::Bridge, ..Options::default() };
    every_address_reaches_local_and_remote_backends(&options);
}

#[test]
fn over_an_overlay_remote_backends_see_the_nodes_overlay_address() {
    for pod_network in [PodNetwork::Vxlan, PodNetwork::Tunnel] {
        let options = Options { pod_network, masquerade: true, ..Options::default() };
        every_address_reaches_local_and_remote_backends(&options);
    }
}

/// What comes in without a link header: to an endpoint here, back to where it came from, and refused.
#[test]
fn node_ports_at_a_tunnels_address_serve_those_behind_it() {
    let options = Options { pod_network: PodNetwork::Tunnel, ..Options::default() };
    let services = [
        Service::node_port(1, &["pod-a1"]),
        Service::node_port(2, &["pod-b1"]),
        Service::node_port(3, &[]),
    ];
    let stage = Stage::up(&options, &services);
    for (family, transport) in each() {
        let to = pod_range(1, 0).unwrap().of(family);
        for service in &services {
            let what = format!("{family} {transport} {:?}", service.backends);
            let request = Request::new(transport, to, service.node_port_number()).connected();
            match service.backends.first() {
                Some(backend) => {
                    assert_eq!(stage.answer("pod-b2", &request).server, *backend, "{what}");
                }
                None => {
                    let failure = stage.failure("pod-b2", &request);
                    assert_eq!(failure.errno, "ECONNREFUSED", "{what}");
                }
            }
        }
    }
}

#[test]
fn two_frontends_with_the_same_backend_serve_the_same_client_port_at_once() {
    let services = [Service::node_port(1, &["pod-a1"]), Service::node_port(2, &["pod-a1"])];
    let stage = Stage::up(&Options::default(), &services);
    for (family, transport) in each() {
        for node in ["node-a", "node-b"] {
            for round in 0..3 {
                for service in &services {
                    let to = stage.address(node, family);
                    let name = format!("{node} {family} {transport} {}", service.number);
                    let mut request = Request::new(transport, to, service.node_port_number());
                    request.connected = true;
                    // UDP sockets can't share a port while both are open: one after the other.
                    let reused = transport == Transport::Tcp;
                    let request = request.from_port(5005);
                    let request = if reused { request.keep(name.clone()) } else { request };
                    let answer = stage.answer("client", &request);
                    assert_eq!(answer.local.port(), 5005, "{name}, round {round}");
                    assert_eq!(answer.server, "pod-a1");
                }
            }
            for service in &services {
                let name = format!("{node} {family} {transport} {}", service.number);
                let _ = stage.lab().peer("client").unwrap().forget(&name);
            }
        }
    }
}

#[test]
fn traffic_that_is_no_services_is_left_alone() {
    let service = Service::new(1, &["pod-a1", "pod-b1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    for (family, transport) in each() {
        let node = stage.lab().peer("node-a").unwrap();
        let any = stage.address("node-a", family);
        node.serve(transport, any, 2222).unwrap();
        for (host, port, server) in [("node-a", 2222, "node-a"), ("pod-a1", 8080, "pod-a1")] {
            let request = Request::new(transport, stage.address(host, family), port);
            let request = Request { connected: true, ..request.payloads(1200, 1200) };
            let answer = stage.answer("client", &request);
            assert_eq!((answer.server.as_str(), answer.seen), (server, answer.local), "{family}");
        }
        // A port of nobody: the node itself refuses.
        let mut request = Request::new(transport, any, PORT);
        request.connected = true;
        assert_eq!(stage.failure("client", &request).errno, "ECONNREFUSED", "{family} {transport}");
    }
    for host in ["node-a", "node-b", "pod-b2"] {
        for address in stage.lab().host(host).unwrap().address.both() {
            assert!(ping(&stage, "client", address), "client → {host} {address}");
        }
    }
    for node in ["node-a", "node-b"] {
        assert_eq!(
            stage.flows(node).len(),
            0,
            "{node} has no flow of traffic that isn't a Service's"
        );
    }
}

#[test]
fn endpoints_on_the_nodes_own_network_and_outside_the_cluster_are_served_too() {
    let port = 8090;
    let service =
        |number, host: &str| Service { target_port: port, ..Service::node_port(number, &[host]) };
    let services = [service(1, "node-a"), service(2, "node-b"), service(3, "site")];
    for masquerade in [false, true] {
        let options = Options { masquerade, ..Options::default() };
        let stage = Stage::up(&options, &services);
        for service in &services {
            let host = service.backends[0].as_str();
            let peer = stage.lab().peer(host).unwrap();
            for transport in Transport::BOTH {
                peer.serve(transport, "::".parse().unwrap(), port).unwrap();
            }
            for (family, transport) in each() {
                for node in ["node-a", "node-b"] {
                    let what = format!("{host} through {node}, {family} {transport}");
                    let to = stage.address(node, family);
                    let request = Request::new(transport, to, service.node_port_number());
                    let answer = stage.answer("client", &request);
                    let source = if host == node { "client" } else { node };
                    assert_eq!(answer.seen.ip(), stage.address(source, family), "{what}");
                }
                let to = service.cluster_ip().of(family);
                for from in ["pod-a1", "node-a", "node-b"] {
                    stage.answer(from, &Request::new(transport, to, PORT));
                }
            }
        }
    }
}

/// As network plugins have it whose pods have addresses of a second uplink: a rule leads what pods send by their
/// address, and the networks there take nothing from addresses of the first.
#[test]
fn replies_leave_where_the_client_came_in_though_the_pods_address_is_routed_elsewhere() {
    let options = Options {
        pod_network: PodNetwork::Vxlan,
        reverse_path: ReversePath::Off,
        ..Options::default()
    };
    let service = Service::new(1, &["pod-a1"]);
    let silent = Service { target_port: POD_PORT + 1, ..Service::node_port(2, &["pod-a1"]) };
    let stage = Stage::up(&options, &[service.clone(), silent.clone()]);
    for family in Family::BOTH {
        let [pod, client, node] =
            ["pod-a1", "client", "node-a"].map(|host| stage.address(host, family));
        let via = pod_range(2, 0).unwrap().of(family);
        let second = format!("route add {client} via {via} dev vxlan0 onlink table 100");
        stage.lab().ip("node-a", &second).unwrap();
        let (version, from) = (if pod.is_ipv4() { "-4" } else { "-6" }, pod.to_string());
        stage.run("node-a", &["ip", version, "rule", "add", "from", &from, "lookup", "100"]);
        let ip = if pod.is_ipv4() { "ip" } else { "ip6" };
        let strict = format!(
            "table {ip} strict {{\nchain forward {{\ntype filter hook forward priority 0;\n\
             {ip} saddr {node} drop\n}}\n}}\n"
        );
        stage.lab().nft("node-b", &strict).unwrap();
        for entry in stage.entries(&service).into_iter().filter(|entry| entry.node == "node-a") {
            for transport in Transport::BOTH {
                let request = Request::new(transport, entry.to.of(family), entry.port);
                let answer = stage.answer("client", &request.payloads(1_000, 1_000));
                assert_eq!(answer.seen.ip(), client, "{} {transport}", entry.name);
            }
            let bulk = Request::tcp(entry.to.of(family), entry.port).payloads(100_000, 100_000);
            stage.answer("client", &bulk);
            let large = Request::udp(entry.to.of(family), entry.port).payloads(4_000, 4_000);
            // The device that the stack routes to is smaller than the pod's.
            let _learns_the_mtu = stage.ask("client", &large);
            stage.answer("client", &large);
        }
        // Its port is closed, which the pod says by an ICMP error.
        let closed = Request::udp(node, silent.node_port_number()).connected();
        assert_eq!(stage.failure("client", &closed).errno, "ECONNREFUSED", "{family}");
    }
}
