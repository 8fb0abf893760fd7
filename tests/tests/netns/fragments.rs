//! Fragments that arrive in another order than they were sent.
//!
//! A raw socket sends them; the answers are sent in the same order as the request was.

use std::time::Duration;

use lb_lab::{Family, Fragments, Options, PodNetwork, Request};

use crate::manifest::{POD_PORT, PORT, Service};
use crate::stage::{Pods, Stage};

/// Bytes of a datagram: two fragments, and as many as a pod's file system sends.
const SIZES: [u32; 2] = [2_000, 8_000];
/// Bytes of an answer in one packet, where the answer isn't the matter.
const SHORT: u32 = 100;
const DISORDER: [Fragments; 2] = [Fragments::Reversed, Fragments::Shuffled];
const ORDERS: [Fragments; 3] =
    [Fragments::AsTheKernelDoes, Fragments::Reversed, Fragments::Shuffled];

/// Every size with each of these orders.
fn each(orders: &[Fragments]) -> impl Iterator<Item = (u32, Fragments)> {
    SIZES.into_iter().flat_map(|size| orders.iter().map(move |order| (size, *order)))
}

/// Datagrams of every size and order, in both families, through each address of a Service.
fn pass(pod_network: PodNetwork, service: &Service) {
    let options = Options { pod_network, ..Options::default() };
    let stage = Stage::up(&options, std::slice::from_ref(service));
    // Where the kernel makes them, their length depends on whether it knows the path's MTU (`large_packets`).
    let orders = if pod_network.is_overlay() { &DISORDER[..] } else { &ORDERS };
    for entry in stage.entries(service) {
        for family in Family::BOTH {
            for (size, order) in each(orders) {
                let request = Request::udp(entry.to.of(family), entry.port);
                let request = request.payloads(size, size).fragments(order);
                let name = format!("{pod_network:?} {} {family} {size} {order:?}", entry.name);
                let answer = stage.ask("client", &request);
                let answer = answer.unwrap_or_else(|failure| panic!("{name}: {failure}"));
                assert_eq!(answer.server, service.backends[0], "{name}");
                assert_eq!(answer.received_from, Some(request.to), "{name}");
            }
        }
    }
}

#[test]
fn datagrams_reach_a_backend_of_node_a_and_their_answers_come_back_whatever_the_order() {
    // Local for what arrives at node-a, remote for node-b: then the answers' fragments are out of order
    // when they come back to node-b.
    let service = Service::new(1, &["pod-a1"]);
    for network in [PodNetwork::Routed, PodNetwork::Tunnel] {
        pass(network, &service);
    }
}

#[test]
fn datagrams_reach_a_backend_of_node_b_and_their_answers_come_back_whatever_the_order() {
    let service = Service::new(1, &["pod-b1"]);
    for network in [PodNetwork::Routed, PodNetwork::Tunnel] {
        pass(network, &service);
    }
}

/// Endpoints beside the pod, on the other node, and the pod itself. Where sockets are served, what a raw
/// socket sends is nobody's business: then all is in order.
#[test]
fn datagrams_of_a_pod_reach_every_endpoint_whatever_the_order() {
    let services = [
        Service::new(1, &["pod-a2"]),
        Service::node_port(2, &["pod-b1"]),
        Service::node_port(3, &["pod-a1"]),
    ];
    for (pods, orders) in [(Pods::ByPacket, &ORDERS[..]), (Pods::BySocket, &ORDERS[..1])] {
        let stage = Stage::serving(pods, &Options::default(), &services);
        for service in &services {
            for family in Family::BOTH {
                for (size, order) in each(orders) {
                    let request = Request::udp(service.cluster_ip().of(family), PORT);
                    let request = request.payloads(size, size).fragments(order);
                    let name = format!("{pods:?} {:?} {family} {size} {order:?}", service.backends);
                    let answer = stage.ask("pod-a1", &request);
                    let answer = answer.unwrap_or_else(|failure| panic!("{name}: {failure}"));
                    assert_eq!(answer.server, service.backends[0], "{name}");
                    assert_eq!(answer.received_from, Some(request.to), "{name}");
                }
            }
        }
    }
}

#[test]
fn fragments_without_a_first_one_harm_no_other_datagram() {
    let service = Service::new(1, &["pod-a1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    for family in Family::BOTH {
        for entry in stage.entries(&service) {
            let request = Request::udp(entry.to.of(family), entry.port).payloads(8_000, SHORT);
            let orphans = request.clone().fragments(Fragments::WithoutFirst).times(200);
            let orphans = orphans.patience(Duration::from_millis(1));
            // More than there is room for.
            let outcomes = stage.lab().peer("client").unwrap().request(&orphans).unwrap();
            assert!(outcomes.iter().all(Result::is_err), "{}: half a datagram arrived", entry.name);
            stage.answer("client", &request);
            for order in DISORDER {
                stage.answer("client", &request.clone().fragments(order));
            }
        }
    }
}

#[test]
fn fragments_for_others_go_their_way_in_any_order() {
    let service = Service::new(1, &["pod-a1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    for family in Family::BOTH {
        for order in DISORDER {
            // A pod's own address, and a program of the node itself.
            for (host, port) in [("pod-a2", POD_PORT), ("node-a", 5_000)] {
                let any = "::".parse().unwrap();
                let server = (host == "node-a").then(|| {
                    let peer = stage.lab().peer(host).unwrap();
                    peer.serve(lb_lab::Transport::Udp, any, port).unwrap()
                });
                let request = Request::udp(stage.address(host, family), port);
                let request = request.payloads(8_000, 8_000).fragments(order);
                assert_eq!(stage.answer("client", &request).server, host, "{family} {order:?}");
                if let Some(server) = server {
                    stage.lab().peer(host).unwrap().stop_server(server).unwrap();
                }
            }
        }
    }
}
