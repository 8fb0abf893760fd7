//! Endpoints that come and go: who is cut, who moves, and that nobody loses a request.

use std::time::Duration;

use lb_lab::{Family, Load, Options, Request, Transport};

use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, for_both};

/// Every way to a Service whose backends are all on node-b: local, remote, and by the socket hooks.
const WAYS: [(&str, Option<&str>); 4] =
    [("client", Some("node-a")), ("client", Some("node-b")), ("pod-a1", None), ("node-a", None)];

for_both! {
    a_udp_sockets_next_datagram_goes_elsewhere_when_its_endpoint_has_left,
    tcp_connections_survive_the_removal_of_their_endpoint_and_of_their_service,
    a_backend_leaves_and_comes_back_under_load_and_no_request_is_lost,
    a_changed_target_port_moves_udp_sockets_and_leaves_tcp_connections,
    udp_sockets_are_refused_when_the_last_endpoint_or_the_service_goes,
}

fn request(
    stage: &Stage,
    service: &Service,
    node: Option<&str>,
    family: Family,
    transport: Transport,
) -> Request {
    match node {
        Some(node) => {
            Request::new(transport, stage.address(node, family), service.node_port_number())
        }
        None => Request::new(transport, service.cluster_ip().of(family), PORT),
    }
}

fn a_udp_sockets_next_datagram_goes_elsewhere_when_its_endpoint_has_left(pods: Pods) {
    let both = Service::node_port(1, &["pod-b1", "pod-b2"]);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&both));
    for leaving in ["pod-b1", "pod-b2", "pod-b1"] {
        let staying = if leaving == "pod-b1" { "pod-b2" } else { "pod-b1" };
        let mut sockets = Vec::new();
        for (from, node) in WAYS {
            for family in Family::BOTH {
                for number in 0..8 {
                    let name = format!("{node:?} {family} {leaving} {number}");
                    let ask = request(&stage, &both, node, family, Transport::Udp).keep(name);
                    let answer = stage.answer(from, &ask);
                    assert_eq!(stage.answer(from, &ask).server, answer.server, "it stays");
                    sockets.push((from, ask));
                }
            }
        }
        stage.publish(&[Service::node_port(1, &[staying])]);
        for (from, ask) in sockets {
            let answer = stage.answer(from, &ask);
            assert_eq!(answer.server, staying, "{from} {:?}", ask.keep);
            assert_eq!(answer.received_from, Some(ask.to), "{from}");
        }
        stage.publish(std::slice::from_ref(&both));
    }
}

fn tcp_connections_survive_the_removal_of_their_endpoint_and_of_their_service(pods: Pods) {
    let both = Service::node_port(1, &["pod-b1", "pod-b2"]);
    let other = Service::node_port(2, &["pod-a1"]);
    let stage = Stage::serving(pods, &Options::default(), &[both.clone(), other.clone()]);
    let mut connections = Vec::new();
    for (from, node) in WAYS {
        for family in Family::BOTH {
            for number in 0..4 {
                let name = format!("{node:?} {family} {number}");
                let ask = request(&stage, &both, node, family, Transport::Tcp).keep(name);
                let server = stage.answer(from, &ask).server;
                connections.push((from, ask.payloads(10_000, 10_000), server));
            }
        }
    }
    let one = Service::node_port(1, &["pod-b2"]);
    for services in
        [vec![one, other.clone()], vec![Service::node_port(1, &[]), other.clone()], vec![other]]
    {
        stage.publish(&services);
        for (from, ask, server) in &connections {
            assert_eq!(stage.answer(from, ask).server, *server, "{from} {:?}", ask.keep);
        }
    }
    for family in Family::BOTH {
        let request = Request::tcp(stage.address("node-a", family), both.node_port_number());
        assert_eq!(stage.failure("client", &request).errno, "ECONNREFUSED", "the Service is gone");
    }
}

/// Starts loads of every kind: families, transports, ways.
pub fn start_loads(stage: &Stage, service: &Service) -> Vec<(&'static str, String, u64)> {
    let mut loads = Vec::new();
    for (from, node) in WAYS {
        for (family, transport) in each() {
            let request = request(stage, service, node, family, transport);
            let name = format!("{from} → {transport} {}", request.to);
            let load = Load { pause: Duration::from_millis(5), ..Load::new(request) };
            loads.push((from, name, stage.lab().peer(from).unwrap().start_load(load).unwrap()));
        }
    }
    loads
}

/// Starts loads from outside that keep their sockets, with a bulk of data in each request.
pub fn start_persistent_loads(
    stage: &Stage,
    service: &Service,
) -> Vec<(&'static str, String, u64)> {
    let mut loads = Vec::new();
    for (family, transport) in each() {
        let bytes = if transport == Transport::Tcp { 100_000 } else { 4000 };
        let request = request(stage, service, Some("node-a"), family, transport);
        let name = format!("client → {transport} {}, kept", request.to);
        let request = request.payloads(bytes, bytes);
        let pause = Duration::from_millis(5);
        let load = Load { persistent: true, workers: 2, pause, ..Load::new(request) };
        loads.push(("client", name, stage.lab().peer("client").unwrap().start_load(load).unwrap()));
    }
    loads
}

/// Ends them; each must have been served without a failure.
pub fn stop_loads(stage: &Stage, loads: Vec<(&'static str, String, u64)>) {
    let mut lost = Vec::new();
    for (from, name, load) in loads {
        let report = stage.lab().peer(from).unwrap().stop_load(load).unwrap();
        assert!(report.ok > 10, "{name}: {report:?}");
        if report.lost() > 0 {
            lost.push(format!("{name}: {report:?}"));
        }
    }
    if !lost.is_empty() {
        for node in stage.nodes() {
            let status = stage.agent_output(&node, &["status"]);
            println!("{node}: {}", String::from_utf8_lossy(&status.stdout));
        }
        println!("what the kernel lost:\n{}", stage.lab().losses().unwrap());
        panic!("requests were lost:\n{}", lost.join("\n"));
    }
}

fn a_backend_leaves_and_comes_back_under_load_and_no_request_is_lost(pods: Pods) {
    let both = Service::node_port(1, &["pod-b1", "pod-b2"]);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&both));
    let mut loads = start_loads(&stage, &both);
    loads.extend(start_persistent_loads(&stage, &both));
    for _ in 0..5 {
        for backends in [&["pod-b1"][..], &["pod-b1", "pod-b2"], &["pod-b2"], &["pod-b2", "pod-b1"]]
        {
            stage.publish(&[Service::node_port(1, backends)]);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    stop_loads(&stage, loads);
}

/// Opens a kept, connected socket on every way over both families and transports.
fn open_sockets(stage: &Stage, pods: Pods, service: &Service) -> Vec<(&'static str, Request)> {
    let mut sockets = Vec::new();
    for (from, node) in WAYS {
        for (family, transport) in each() {
            let name = format!("{node:?} {family} {transport}");
            let ask = request(stage, service, node, family, transport).keep(name);
            // Unconnected sockets never hear of a refusal by packet.
            let connected = from == "client" || pods.asks_by_packet(from);
            let ask = Request { connected, ..ask };
            stage.answer(from, &ask);
            sockets.push((from, ask));
        }
    }
    sockets
}

fn a_changed_target_port_moves_udp_sockets_and_leaves_tcp_connections(pods: Pods) {
    let old = Service::node_port(1, &["pod-b1"]);
    let new = Service { target_port: 8081, ..old.clone() };
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&old));
    let pod = stage.lab().peer("pod-b1").unwrap();
    for transport in Transport::BOTH {
        let address = "::".parse().unwrap();
        let serve = lb_lab::Serve { transport, address, port: 8081, name: "new port".into() };
        pod.serve_as(serve).unwrap();
    }
    let sockets = open_sockets(&stage, pods, &old);
    stage.publish(std::slice::from_ref(&new));
    for (from, ask) in sockets {
        let moves = ask.transport == Transport::Udp;
        let expected = if moves { "new port" } else { "pod-b1" };
        assert_eq!(stage.answer(from, &ask).server, expected, "{from} {:?}", ask.keep);
    }
}

fn udp_sockets_are_refused_when_the_last_endpoint_or_the_service_goes(pods: Pods) {
    let service = Service::node_port(1, &["pod-b1"]);
    let other = Service::node_port(2, &["pod-a1"]);
    let stage = Stage::serving(pods, &Options::default(), &[service.clone(), other.clone()]);
    for left in [vec![Service::node_port(1, &[]), other.clone()], vec![other.clone()]] {
        let sockets = open_sockets(&stage, pods, &service);
        let gone = left.len() == 1;
        stage.publish(&left);
        for (from, ask) in &sockets {
            if ask.transport == Transport::Udp && (*from == "client" || !gone) {
                let failure = stage.failure(from, ask);
                assert_eq!(failure.errno, "ECONNREFUSED", "{from} {:?} {gone}", ask.keep);
            }
            // A failure has closed it already.
            let _ = stage.lab().peer(from).unwrap().forget(ask.keep.as_deref().unwrap());
        }
        stage.publish(&[service.clone(), other.clone()]);
    }
}
