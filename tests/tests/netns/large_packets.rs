//! Packets that are too large for some part of their way: path-MTU discovery, overlays, fragments.

use std::time::Duration;

use lb_lab::{Options, PodNetwork, Request, Transport};

use crate::manifest::{PORT, Service};
use crate::stage::{Stage, each};

/// Bytes of a bulk transfer.
const BULK: u32 = 3 << 20;
/// Patience with a bulk transfer: it waits for a few retransmissions until the MTU is learnt.
const LONG: Duration = Duration::from_secs(10);

/// A few megabytes in each direction, through each address, to a local and to a remote backend.
fn bulk_passes(stage: &Stage, services: &[Service]) {
    for service in services {
        for entry in stage.entries(service) {
            for family in lb_lab::Family::BOTH {
                let request = Request::tcp(entry.to.of(family), entry.port).patience(LONG);
                for (up, down) in [(0, BULK), (BULK, 0)] {
                    stage.answer("client", &request.clone().payloads(up, down));
                }
            }
        }
    }
}

/// Without LoadBalancer and external addresses, which only one Service may have.
fn on(number: u8, backend: &str) -> Service {
    Service::node_port(number, &[backend])
}

fn node_port(
    stage: &Stage,
    service: &Service,
    family: lb_lab::Family,
    transport: Transport,
) -> Request {
    let to = stage.address("node-a", family);
    Request { connected: true, ..Request::new(transport, to, service.node_port_number()) }
}

/// With a link header and without.
fn overlays() -> [Options; 2] {
    [PodNetwork::Vxlan, PodNetwork::Tunnel].map(|pod_network| Options {
        pod_network,
        masquerade: true,
        ..Options::default()
    })
}

#[test]
fn bulk_transfers_pass_an_overlay_with_a_smaller_mtu_in_both_directions() {
    for options in overlays() {
        let service = Service::new(1, &["pod-a1", "pod-b1"]);
        let stage = Stage::up(&options, std::slice::from_ref(&service));
        bulk_passes(&stage, std::slice::from_ref(&service));
        bulk_passes(&stage, std::slice::from_ref(&service));
    }
}

#[test]
fn datagrams_near_the_mtu_pass_an_overlay() {
    for options in overlays() {
        let services = [on(1, "pod-a1"), on(2, "pod-b1")];
        let stage = Stage::up(&options, &services);
        for service in &services {
            for family in lb_lab::Family::BOTH {
                // 200 bytes are left for headers and the line before the payload.
                let request =
                    node_port(&stage, service, family, Transport::Udp).payloads(1250, 1250);
                stage.answer("client", &request);
            }
        }
    }
}

#[test]
fn a_datagram_too_long_for_the_overlay_tells_its_sender_the_mtu() {
    let options =
        Options { pod_network: PodNetwork::Vxlan, masquerade: true, ..Options::default() };
    let services = [on(1, "pod-b1")];
    let stage = Stage::up(&options, &services);
    for family in lb_lab::Family::BOTH {
        let request = node_port(&stage, &services[0], family, Transport::Udp)
            .payloads(1420, 100)
            .patience(Duration::from_millis(500));
        // The first is answered by "too big"; then the sender's kernel knows and fragments.
        let _ = stage.ask("client", &request);
        stage.answer("client", &request);
        let to = stage.address("node-a", family).to_string();
        let route = stage.run("client", &["ip", "route", "get", &to]);
        assert!(route.contains("mtu 1450"), "{family}: {route}");
    }
}

#[test]
fn path_mtu_discovery_works_through_local_and_remote_flows() {
    let options = Options { client_path_mtu: Some(1300), ..Options::default() };
    let services = [Service::new(1, &["pod-a1", "pod-b1"]), on(2, "pod-a1"), on(3, "pod-b1")];
    let stage = Stage::up(&options, &services);
    for service in &services[1..] {
        for family in lb_lab::Family::BOTH {
            let request = node_port(&stage, service, family, Transport::Tcp).patience(LONG);
            stage.answer("client", &request.payloads(0, BULK));
        }
    }
    // Who sent too much was told: the local backend about the client, the remote one about node-a.
    for (pod, peer) in [("pod-a1", "client"), ("pod-b1", "node-a")] {
        for family in lb_lab::Family::BOTH {
            let to = stage.address(peer, family).to_string();
            let route = stage.run(pod, &["ip", "route", "get", &to]);
            assert!(route.contains("mtu 1300"), "{pod} → {peer}, {family}: {route}");
        }
    }
    bulk_passes(&stage, &services[..1]);
}

#[test]
fn fragmented_datagrams_pass_through_local_and_remote_flows() {
    let services = [on(1, "pod-a1"), on(2, "pod-b1")];
    let stage = Stage::up(&Options::default(), &services);
    for service in &services {
        for family in lb_lab::Family::BOTH {
            for size in [2000, 4000, 8000] {
                let request = node_port(&stage, service, family, Transport::Udp);
                let answer = stage.answer("client", &request.payloads(size, size));
                assert_eq!(answer.server, service.backends[0], "{family} {size}");
            }
        }
    }
}

#[test]
fn fragmented_datagrams_pass_an_overlay() {
    for options in overlays() {
        let services = [on(1, "pod-a1"), on(2, "pod-b1")];
        let stage = Stage::up(&options, &services);
        for service in &services {
            for family in lb_lab::Family::BOTH {
                let request = node_port(&stage, service, family, Transport::Udp)
                    .payloads(4000, 4000)
                    .patience(Duration::from_millis(500));
                // IPv6 routers don't fragment: the first may be lost to "too big".
                let _ = stage.ask("client", &request);
                stage.answer("client", &request);
            }
        }
    }
}

#[test]
fn bulk_transfers_between_pods_and_services_are_as_large_as_without_us() {
    let service = Service::new(1, &["pod-b1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    for (family, transport) in each() {
        let bytes = if transport == Transport::Tcp { BULK } else { 8000 };
        let request = Request::new(transport, service.cluster_ip().of(family), PORT);
        stage.answer("pod-a1", &request.payloads(bytes, bytes).patience(LONG));
    }
}
