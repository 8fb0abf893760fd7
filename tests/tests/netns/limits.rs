//! Tables that are full: what does not fit is named, the rest works.

use std::time::Duration;

use lb_lab::{Options, Request};

use crate::manifest::{Kind, PORT, Service};
use crate::stage::{Pods, Stage, each, eventually};

/// How many of these Services pod-a2 reaches over both families and transports.
fn served(stage: &Stage, services: &[Service]) -> Vec<bool> {
    let reached = |service: &Service| {
        each().all(|(family, transport)| {
            let request = Request::new(transport, service.cluster_ip().of(family), PORT)
                .patience(Duration::from_secs(1));
            stage.ask("pod-a2", &request).is_ok()
        })
    };
    services.iter().map(reached).collect()
}

fn cluster_ips(numbers: std::ops::RangeInclusive<u8>, backends: &[&str]) -> Vec<Service> {
    let service = |number| Service { kind: Kind::ClusterIp, ..Service::new(number, backends) };
    numbers.map(service).collect()
}

/// What does not fit is named in the log and counted, everything else works; with room again it
/// works too.
fn what_does_not_fit_is_named(flag: &str, fitting: &[Service], services: &[Service]) {
    let stage = Stage::with(&Options::default(), services, |agent| {
        agent.arguments.extend([flag.to_owned(), "16".to_owned()]);
    });
    eventually("what doesn't fit is counted", || {
        stage.metric("node-a", "lb_agent_unfit_service_ports") > 0.0
    });
    let served_now = served(&stage, services);
    let log = stage.log("node-a");
    for (service, works) in services.iter().zip(&served_now) {
        let key = format!("default/{}", service.name());
        let named = log
            .lines()
            .any(|line| line.contains("not in the datapath") && line.contains(&format!("{key}:")));
        assert_eq!(named, !works, "{key} works: {works}, named: {named}\n{log}");
    }
    assert!(served_now.contains(&true) && served_now.contains(&false), "{served_now:?}");
    stage.publish(fitting);
    eventually("everything fits", || stage.metric("node-a", "lb_agent_unfit_service_ports") == 0.0);
    assert!(served(&stage, fitting).into_iter().all(|works| works));
}

#[test]
fn services_that_do_not_fit_are_named_and_the_others_work() {
    // Two families with two ports each: four entries a Service.
    let services = cluster_ips(1..=6, &["pod-a1", "pod-b1"]);
    what_does_not_fit_is_named("--max-services", &services[4..], &services);
}

#[test]
fn services_whose_backends_do_not_fit_are_named_and_the_others_work() {
    // Elements belong to one Service port each: four a Service, whose backends are the same pod.
    let services = cluster_ips(1..=6, &["pod-a1"]);
    what_does_not_fit_is_named("--max-backends", &services[4..], &services);
}

#[test]
fn connections_outlive_the_eviction_of_their_flows_from_a_full_table() {
    let services =
        [Service::node_port(1, &["pod-a1", "pod-b1"]), Service::node_port(2, &["pod-b2"])];
    let stage = Stage::with(&Options::default(), &services, |agent| {
        // They have flows, too.
        Pods::ByPacket.tell(agent);
        let [flag, flows] = ["--max-flows", "1024"].map(str::to_owned);
        let at = agent.arguments.iter().position(|argument| *argument == flag).unwrap();
        agent.arguments[at + 1] = flows;
    });
    let mut open = Vec::new();
    for family in lb_lab::Family::BOTH {
        let node_port = (stage.address("node-a", family), services[0].node_port_number());
        let cluster_ip = (services[0].cluster_ip().of(family), PORT);
        for (from, (to, port)) in [("client", node_port), ("pod-a2", cluster_ip)] {
            for number in 0..8 {
                let request = Request::tcp(to, port).keep(format!("{family} {number}"));
                let server = stage.answer(from, &request).server;
                open.push((from, request.payloads(100_000, 100_000), server));
            }
        }
    }
    for family in lb_lab::Family::BOTH {
        let to = stage.address("node-a", family);
        let crowd = Request::udp(to, services[1].node_port_number()).times(4000);
        stage.all_answered("client", &crowd);
    }
    for (from, request, server) in &open {
        assert_eq!(stage.answer(from, request).server, *server, "{from} {:?}", request.keep);
    }
}
