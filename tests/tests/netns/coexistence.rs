//! Others on the same devices, and what is left of us after `lb-agent cleanup`.

use std::fs;

use aya::programs::TcAttachType;
use lb_lab::{Options, Request};

use crate::foreign::Foreign;
use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, for_both};

#[test]
fn foreign_programs_behind_ours_see_what_we_pass_on_and_what_we_translate_for_local_backends() {
    let services = [Service::node_port(1, &["pod-a1"])];
    let stage = Stage::up(&Options::default(), &services);
    let directions = ["ingress", "egress"];
    let filters = directions.map(|direction| Foreign::filter(&stage, "node-a", "eth0", direction));
    let tcx = [TcAttachType::Ingress, TcAttachType::Egress]
        .map(|direction| Foreign::tcx(&stage, "node-a", "eth0", direction));
    let foreign: Vec<_> = filters.into_iter().chain(tcx).collect();
    for (family, transport) in each() {
        for (to, port) in [
            (stage.address("node-a", family), services[0].node_port_number()),
            (stage.address("pod-a1", family), 8080),
        ] {
            let before: Vec<_> = foreign.iter().map(Foreign::runs).collect();
            stage.answer("client", &Request::new(transport, to, port));
            let after: Vec<_> = foreign.iter().map(Foreign::runs).collect();
            let all_ran = before.iter().zip(&after).all(|(before, after)| after > before);
            assert!(all_ran, "{family} {transport} {to}: {before:?}, then {after:?}");
        }
    }
}

for_both! { cleanup_removes_everything_of_ours_and_nothing_else }

fn cleanup_removes_everything_of_ours_and_nothing_else(pods: Pods) {
    let service = Service::new(1, &["pod-a1", "pod-b1"]);
    let mut stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    let directions = ["ingress", "egress"];
    let _foreign = directions.map(|direction| Foreign::filter(&stage, "node-a", "eth0", direction));
    let bpffs = stage.lab().bpffs("node-a");
    stage.stop_agent("node-a");
    let request = |stage: &Stage, family, transport| {
        let to = stage.address("node-a", family);
        Request::new(transport, to, service.node_port_number()).connected()
    };
    for (family, transport) in each() {
        stage.answer("client", &request(&stage, family, transport));
        let to = service.cluster_ip().of(family);
        stage.answer("pod-a2", &Request::new(transport, to, PORT));
    }
    let tcx = Foreign::tcx(&stage, "node-a", "eth0", TcAttachType::Ingress);
    stage.agent_says("node-a", &["cleanup"]);
    let left = fs::read_dir(&bpffs).unwrap().map(|entry| entry.unwrap().file_name());
    let left = left.map(|name| name.into_string().unwrap());
    // The kernel's own, in every BPF file system.
    let mut left: Vec<_> = left.filter(|name| !name.ends_with(".debug")).collect();
    left.sort();
    assert_eq!(left, ["foreign-egress", "foreign-ingress"]);
    for direction in directions {
        let filters = stage.run("node-a", &["tc", "filter", "show", "dev", "eth0", direction]);
        assert!(filters.contains("foreign-"), "{direction}: {filters}");
    }
    let before = tcx.runs();
    for (family, transport) in each() {
        let failure = stage.failure("client", &request(&stage, family, transport));
        assert_eq!(failure.errno, "ECONNREFUSED", "{family} {transport}");
        let to = service.cluster_ip().of(family);
        let silent =
            Request::new(transport, to, PORT).patience(std::time::Duration::from_millis(200));
        stage.failure("pod-a2", &silent);
        let direct = Request::new(transport, stage.address("pod-a1", family), 8080);
        stage.answer("client", &direct);
    }
    assert!(tcx.runs() > before, "a foreign program goes on");
    // Twice is no error, and a new agent starts from nothing.
    stage.agent_says("node-a", &["cleanup"]);
    stage.start_agent("node-a");
    for (family, transport) in each() {
        stage.answer("client", &request(&stage, family, transport));
    }
}
