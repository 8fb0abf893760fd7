//! XDP on veth. Transmit checksum offload is off on every device: what XDP rewrites is then verified by
//! whoever receives it, instead of being believed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_lab::{Family, Options, Request, Transport, Xdp};

use crate::foreign::Foreign;
use crate::manifest::Service;
use crate::stage::{Stage, each, eventually};

fn stage(xdp: Xdp, services: &[Service]) -> Stage {
    with(xdp, Options::default(), services)
}

/// Two nodes whose agents use XDP so.
pub fn with(xdp: Xdp, options: Options, services: &[Service]) -> Stage {
    let options = Options { checksum_offload: false, ..options };
    let stage = Stage::with(&options, services, |agent| agent.xdp = xdp);
    if xdp == Xdp::Native {
        // A veth takes what the XDP program of its peer sends only if it has a program itself.
        Foreign::xdp(&stage, "fabric", &["p-node-a", "p-node-b"]);
    }
    stage
}

/// Files below `directory` whose name begins with `prefix`.
fn find(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(find(&path, prefix));
        } else if path.file_name().unwrap().to_string_lossy().starts_with(prefix) {
            found.push(path);
        }
    }
    found
}

/// Flows to a remote backend are opened with tc and XDP; then tc is taken away on the node between,
/// and they go on: it is XDP that carries them.
fn xdp_carries_flows_to_remote_backends(xdp: Xdp) {
    let services = [Service::node_port(1, &["pod-b1"]), Service::node_port(2, &["pod-a1"])];
    let stage = stage(xdp, &services);
    let mut open = Vec::new();
    for (family, transport) in each() {
        let to = stage.address("node-a", family);
        for service in &services {
            let request = Request::new(transport, to, service.node_port_number());
            stage.answer("client", &request.clone().payloads(1000, 1000));
        }
        let request = Request::new(transport, to, services[0].node_port_number());
        let request = request.keep(format!("{family} {transport}"));
        stage.answer("client", &request);
        open.push(request);
    }
    let links = find(&stage.lab().bpffs("node-a"), "tcx_");
    assert_eq!(links.len(), 2, "{links:?}");
    for link in links {
        fs::remove_file(link).unwrap();
    }
    // The kernel takes a program away some time after the last name of its link.
    for (family, transport) in each() {
        let to = stage.address("node-a", family);
        let request = Request::new(transport, to, services[0].node_port_number());
        let request = request.patience(Duration::from_millis(200));
        eventually("new flows fail", || stage.ask("client", &request).is_err());
    }
    for request in open {
        let bytes = if request.transport == Transport::Tcp { 1 << 20 } else { 1000 };
        stage.answer("client", &request.payloads(bytes, bytes));
    }
}

#[test]
fn generic_xdp_carries_flows_to_remote_backends() {
    xdp_carries_flows_to_remote_backends(Xdp::Generic);
}

#[test]
fn native_xdp_carries_flows_to_remote_backends() {
    xdp_carries_flows_to_remote_backends(Xdp::Native);
}

#[test]
fn xdp_leaves_everything_else_to_the_stack() {
    for xdp in [Xdp::Generic, Xdp::Native] {
        let service = Service::new(1, &["pod-a1", "pod-b1"]);
        let stage = stage(xdp, std::slice::from_ref(&service));
        for entry in stage.entries(&service) {
            for (family, transport) in each() {
                for bytes in [0, 1200] {
                    let request = Request::new(transport, entry.to.of(family), entry.port);
                    stage.answer("client", &request.payloads(bytes, bytes));
                }
            }
        }
        for (family, transport) in each() {
            for host in ["pod-a1", "pod-b1"] {
                let request = Request::new(transport, stage.address(host, family), 8080);
                stage.answer("client", &request.payloads(1200, 1200));
            }
            let mut refused = Request::new(transport, stage.address("node-a", family), 81);
            refused.connected = true;
            assert_eq!(stage.failure("client", &refused).errno, "ECONNREFUSED", "{xdp} {family}");
        }
    }
}

#[test]
fn large_packets_fragments_and_errors_pass_with_xdp_as_without() {
    for xdp in [Xdp::Generic, Xdp::Native] {
        let services = [
            Service::node_port(1, &["pod-a1"]),
            Service::node_port(2, &["pod-b1"]),
            Service { target_port: 9, ..Service::node_port(3, &["pod-b1"]) },
        ];
        let options = Options { client_path_mtu: Some(1300), ..Options::default() };
        let stage = with(xdp, options, &services);
        for family in Family::BOTH {
            let to = stage.address("node-a", family);
            for service in &services[..2] {
                let port = service.node_port_number();
                let datagram = Request::udp(to, port).connected();
                let datagram = datagram.patience(Duration::from_millis(500));
                let datagram = datagram.payloads(4000, 4000);
                // IPv6 routers don't fragment: one request is lost until the client knows the path's
                // MTU, one answer until the server does.
                let _ = stage.ask("client", &datagram);
                let _ = stage.ask("client", &datagram);
                stage.answer("client", &datagram);
                for (up, down) in [(0, 1 << 20), (1 << 20, 0)] {
                    let request = Request::tcp(to, port).payloads(up, down);
                    stage.answer("client", &request.patience(Duration::from_secs(10)));
                }
            }
            for transport in Transport::BOTH {
                let request = Request::new(transport, to, services[2].node_port_number());
                let request = Request { connected: true, ..request };
                let failure = stage.failure("client", &request);
                assert_eq!(failure.errno, "ECONNREFUSED", "{xdp} {family} {transport}");
            }
        }
    }
}
