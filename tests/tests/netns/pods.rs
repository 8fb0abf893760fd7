//! Pods that are translated packet by packet on their devices (`--pod-path packet`): what the socket
//! hooks do for others, for pods with a kernel of their own.

use std::collections::BTreeSet;
use std::time::Duration;

use lb_lab::topology::Cni;
use lb_lab::{Family, Options, PodNetwork, Request, ReversePath, Transport};

use crate::manifest::{POD_PORT, PORT, Service};
use crate::stage::{Pods, Stage, each, eventually};

/// Bytes of a bulk transfer.
const BULK: u32 = 3 << 20;

fn packet(options: &Options, services: &[Service]) -> Stage {
    Stage::serving(Pods::ByPacket, options, services)
}

/// Both kinds of pod devices, both kinds of ways between nodes; a strict look at sources everywhere.
fn networks() -> [Options; 4] {
    let strict = Options { reverse_path: ReversePath::Strict, ..Options::default() };
    let bridge = Options { cni: Cni::Bridge, ..strict.clone() };
    let overlay = Options {
        cni: Cni::Bridge,
        pod_network: PodNetwork::Vxlan,
        masquerade: true,
        ..strict.clone()
    };
    let tunnel = Options { pod_network: PodNetwork::Tunnel, masquerade: true, ..strict.clone() };
    [strict, bridge, overlay, tunnel]
}

#[test]
fn pods_reach_local_and_remote_endpoints_at_every_address_under_their_own() {
    for options in networks() {
        let service = Service::new(1, &["pod-a2", "pod-b1"]);
        let stage = packet(&options, std::slice::from_ref(&service));
        let own_node =
            |entry: &crate::stage::Entry| entry.name != "NodePort" || entry.node == "node-a";
        // Each request has a port of its own: where two frontends lead a port to one endpoint, the second
        // flow leaves under another port, as the endpoint's answers couldn't be told apart otherwise.
        let mut ports = 40_000..;
        for entry in stage.entries(&service).into_iter().filter(own_node) {
            for (family, transport) in each() {
                let what = format!("{} {family} {transport} {options:?}", entry.name);
                let mut servers = BTreeSet::new();
                for port in ports.by_ref().take(24) {
                    let to = entry.to.of(family);
                    let request =
                        Request::new(transport, to, entry.port).connected().from_port(port);
                    let answer = stage.answer("pod-a1", &request);
                    assert_eq!(answer.seen, answer.local, "{what}: {}", answer.server);
                    assert_eq!(answer.peer_name.map(|peer| peer.ip()), Some(to), "{what}");
                    servers.insert(answer.server);
                }
                assert_eq!(servers.len(), 2, "{what}");
            }
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    for options in networks() {
        let service = Service::new(1, &["pod-a1"]);
        let stage = packet(&options, std::slice::from_ref(&service));
        for (family, transport) in each() {
            for entry in [&stage.entries(&service)[0], &stage.entries(&service)[4]] {
                let request = Request::new(transport, entry.to.of(family), entry.port);
                let answer = stage.answer("pod-a1", &request.times(4));
                let what = format!("{} {family} {transport} {options:?}", entry.name);
                assert_eq!(answer.server, "pod-a1", "{what}");
                assert_ne!(answer.seen.ip(), stage.address("pod-a1", family), "{what}");
            }
        }
    }
}

#[test]
fn bulk_and_large_datagrams_pass_in_both_directions() {
    large_packets_pass(packet);
}

#[test]
fn with_all_masqueraded_bulk_and_large_datagrams_pass_in_both_directions() {
    large_packets_pass(Stage::masquerading);
}

fn large_packets_pass(up: fn(&Options, &[Service]) -> Stage) {
    for options in networks() {
        let services = [
            Service::new(1, &["pod-a2"]),
            Service::node_port(2, &["pod-b1"]),
            Service::node_port(3, &["pod-a1"]),
        ];
        let stage = up(&options, &services);
        for service in &services {
            for family in Family::BOTH {
                let to = service.cluster_ip().of(family);
                let bulk = Request::tcp(to, PORT).patience(Duration::from_secs(10));
                for (up, down) in [(0, BULK), (BULK, 0)] {
                    stage.answer("pod-a1", &bulk.clone().payloads(up, down));
                }
                for size in [1_400, 2_000, 8_000] {
                    let datagram = Request::udp(to, PORT).connected().payloads(size, size);
                    let _learns_the_mtu = stage.ask("pod-a1", &datagram);
                    stage.answer("pod-a1", &datagram);
                }
            }
        }
    }
}

/// The router is node-a itself, behind the hook that translated the packet.
#[test]
fn a_pod_is_told_the_path_mtu_of_a_services_address() {
    told_the_path_mtu(packet, "mtu 1300");
}

/// The router is the hook, to which the kernel tells the MTU of a route only if it is locked.
#[test]
fn with_all_masqueraded_a_pod_is_told_the_path_mtu_of_a_services_address() {
    told_the_path_mtu(Stage::masquerading, "mtu lock 1300");
}

fn told_the_path_mtu(up: fn(&Options, &[Service]) -> Stage, mtu: &str) {
    let service = Service::new(1, &["pod-b1"]);
    let stage = up(&Options::default(), std::slice::from_ref(&service));
    for family in Family::BOTH {
        let (backend, via) = (stage.address("pod-b1", family), stage.address("node-b", family));
        stage.lab().ip("node-a", &format!("route add {backend} via {via} {mtu}")).unwrap();
        let to = service.cluster_ip().of(family);
        let upload = Request::tcp(to, PORT).patience(Duration::from_secs(10)).payloads(BULK, 0);
        assert_eq!(stage.answer("pod-a1", &upload).server, "pod-b1", "{family}");
        let route = stage.run("pod-a1", &["ip", "route", "get", &to.to_string()]);
        assert!(route.contains("mtu 1300"), "{family}: {route}");
    }
}

/// The agent attaches while the pod lives, and detaches when the path changes, without a packet lost.
#[test]
fn the_path_can_be_changed_at_a_restart() {
    let service = Service::new(1, &["pod-a2", "pod-b1"]);
    let mut stage = packet(&Options::default(), std::slice::from_ref(&service));
    let reaches = |stage: &Stage| {
        for (family, transport) in each() {
            let request = Request::new(transport, service.cluster_ip().of(family), PORT);
            stage.answer("pod-a1", &request);
        }
    };
    reaches(&stage);
    let hooked = |stage: &Stage| stage.log("node-a").matches("role=Pod").count();
    assert_eq!(hooked(&stage), 2);
    for path in ["both", "socket", "packet"] {
        stage.stop_agent("node-a");
        reaches(&stage);
        stage.set_argument("--pod-path", path);
        stage.start_agent("node-a");
        reaches(&stage);
    }
}

#[test]
fn what_is_no_service_is_left_alone() {
    let service = Service::new(1, &["pod-a2"]);
    let stage = packet(&Options::default(), std::slice::from_ref(&service));
    for (family, transport) in each() {
        for to in ["pod-a2", "pod-b1"] {
            let address = stage.address(to, family);
            let request = Request::new(transport, address, POD_PORT).connected();
            let answer = stage.answer("pod-a1", &request);
            assert_eq!((answer.server.as_str(), answer.seen), (to, answer.local));
        }
        // The same source port, first through the Service, then without it.
        let through =
            Request::new(transport, service.cluster_ip().of(family), PORT).from_port(7_100);
        stage.answer("pod-a1", &through);
        let direct = Request::new(transport, stage.address("pod-a2", family), POD_PORT);
        let direct = direct.connected().from_port(7_100);
        eventually("the port is free again", || stage.ask("pod-a1", &direct).is_ok());
    }
}

/// What a service mesh does in a pod: rules of the pod's own namespace take connections to a Service and give them to
/// a proxy in the pod. They see the Service's address as long as the pod's socket wasn't led elsewhere before.
#[test]
fn a_sidecar_takes_what_is_for_a_service_where_packets_are_translated_and_not_sockets() {
    const SIDECAR: u16 = 15_001;
    for (pods, taker) in [(Pods::ByPacket, "pod-a1"), (Pods::BySocket, "pod-b1")] {
        let service = Service::new(1, &["pod-b1"]);
        let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
        let any = "::".parse().unwrap();
        stage.lab().peer("pod-a1").unwrap().serve(Transport::Tcp, any, SIDECAR).unwrap();
        let [v4, v6] = [Family::V4, Family::V6].map(|family| service.cluster_ip().of(family));
        let rules = format!(
            "table inet mesh {{ chain output {{ type nat hook output priority -100; \
             ip daddr {v4} tcp dport {PORT} redirect to :{SIDECAR}; \
             ip6 daddr {v6} tcp dport {PORT} redirect to :{SIDECAR};\n}}\n}}\n"
        );
        stage.lab().nft("pod-a1", &rules).unwrap();
        for to in [v4, v6] {
            let answer = stage.answer("pod-a1", &Request::tcp(to, PORT));
            assert_eq!(answer.server, taker, "{pods:?} {to}");
            // Others have no sidecar.
            assert_eq!(stage.answer("pod-a2", &Request::tcp(to, PORT)).server, "pod-b1");
        }
    }
}
