//! Agents that end, crash and come back: the datapath goes on.

use std::time::Duration;

use lb_lab::{Options, Request};

use crate::change::{start_loads, start_persistent_loads, stop_loads};
use crate::manifest::Service;
use crate::stage::{Pods, Stage, each, for_both};

for_both! { agents_are_killed_ended_and_restarted_under_load_and_no_request_is_lost }

fn agents_are_killed_ended_and_restarted_under_load_and_no_request_is_lost(pods: Pods) {
    let service = Service::node_port(1, &["pod-b1", "pod-b2"]);
    let mut stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    let mut loads = start_loads(&stage, &service);
    loads.extend(start_persistent_loads(&stage, &service));
    for node in ["node-a", "node-b"] {
        stage.kill_agent(node);
        std::thread::sleep(Duration::from_millis(100));
        stage.start_agent(node);
        stage.stop_agent(node);
        std::thread::sleep(Duration::from_millis(100));
        stage.start_agent(node);
    }
    // What changes after a restart is applied by the new agents.
    stage.publish(&[Service::node_port(1, &["pod-b2"])]);
    std::thread::sleep(Duration::from_millis(100));
    stop_loads(&stage, loads);
    for (family, transport) in each() {
        let to = stage.address("node-a", family);
        let request = Request::new(transport, to, service.node_port_number());
        for _ in 0..8 {
            assert_eq!(stage.answer("client", &request).server, "pod-b2", "{family} {transport}");
        }
    }
}

#[test]
fn what_changed_while_no_agent_ran_is_applied_by_the_next_one() {
    let service = Service::node_port(1, &["pod-b1"]);
    let gone = Service::node_port(2, &["pod-b1"]);
    let mut stage = Stage::up(&Options::default(), &[service.clone(), gone.clone()]);
    let open: Vec<_> = each()
        .map(|(family, transport)| {
            let to = stage.address("node-a", family);
            let name = format!("{family} {transport}");
            let request = Request::new(transport, to, service.node_port_number()).keep(name);
            stage.answer("client", &request);
            request
        })
        .collect();
    for node in stage.nodes() {
        stage.kill_agent(&node);
    }
    let mut text = String::new();
    for document in Service::node_port(1, &["pod-b2"]).documents(stage.lab().topology()) {
        text.push_str(&format!("---\n{document}\n"));
    }
    stage.write("services.yaml", &text);
    for request in &open {
        assert_eq!(stage.answer("client", request).server, "pod-b1", "nobody changes it");
    }
    for node in stage.nodes() {
        stage.start_agent(&node);
    }
    for request in &open {
        let server = stage.answer("client", request).server;
        let expected =
            if request.transport == lb_lab::Transport::Tcp { "pod-b1" } else { "pod-b2" };
        assert_eq!(server, expected, "{:?}", request.keep);
    }
    for (family, transport) in each() {
        let to = stage.address("node-a", family);
        let request = Request::new(transport, to, service.node_port_number());
        assert_eq!(stage.answer("client", &request).server, "pod-b2");
        // Connected, so that a UDP socket hears of the refusal.
        let request = Request::new(transport, to, gone.node_port_number());
        let request = Request { connected: true, ..request };
        assert_eq!(stage.failure("client", &request).errno, "ECONNREFUSED");
    }
}
