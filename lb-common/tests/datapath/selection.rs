//! Which endpoint a new flow from outside goes to.

use super::{external, from_client};
use lb_common::family::{V4, V6};
use lb_common::lb::answer::AnswerFormat;
use lb_common::model::frame::{Segment, Transport};
use lb_common::model::node::{Node, Tc};
use lb_common::model::scene::{self, Role, at, port};
use std::collections::BTreeMap;

fn backend<F: AnswerFormat>(node: &mut Node<F>, sent: &Segment) -> Vec<u8> {
    let start = 14 + F::DESTINATION_OFFSET as usize;
    node.ingress::<Tc>(&sent.frame()).bytes[start..start + size_of::<F::Addr>()].to_vec()
}

#[test]
fn two_nodes_that_learned_of_the_endpoints_in_another_order_choose_alike() {
    fn of<F: AnswerFormat>() {
        let mut one = scene::node::<F>();
        let mut two = scene::node::<F>();
        // The other node has other indices for the same endpoints.
        let service = scene::service::<F>(&two.world, port::SPREAD, 6);
        let record = two.world.records[&service];
        let (first, last) = (two.world.slots[record.cluster.offset as usize].0, {
            let end = record.cluster.offset + record.cluster.len - 1;
            two.world.slots[end as usize].0
        });
        two.world.backends.swap(first as usize, last as usize);
        for slot in &mut two.world.slots {
            if slot.0 == first {
                slot.0 = last;
            } else if slot.0 == last {
                slot.0 = first;
            }
        }
        let node_port = port::node_port(port::SPREAD);
        for client in 0..200 {
            let mut sent = from_client::<F>(external::<F>(port::SPREAD), Transport::Tcp(2));
            sent.source.set_port(port::CLIENT + client);
            let mut to_port = sent.clone();
            to_port.destination = at::<F>(Role::Node, node_port);
            to_port.source.set_ip(scene::ip::<F>(Role::OtherClient));
            assert_eq!(backend(&mut one, &sent), backend(&mut two, &sent));
            assert_eq!(backend(&mut one, &to_port), backend(&mut two, &to_port));
        }
    }
    of::<V4>();
    of::<V6>();
}

#[test]
fn every_endpoint_gets_its_share_of_the_clients_ports() {
    fn of<F: AnswerFormat>() {
        let mut node = scene::node::<F>();
        let mut shares: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        for client in 0..3000 {
            let mut sent = from_client::<F>(external::<F>(port::SPREAD), Transport::Udp);
            sent.source.set_port(port::CLIENT + client);
            *shares.entry(backend(&mut node, &sent)).or_default() += 1;
        }
        assert_eq!(shares.len(), 3);
        assert!(shares.values().all(|share| (850..1150).contains(share)), "{shares:?}");
    }
    of::<V4>();
    of::<V6>();
}
