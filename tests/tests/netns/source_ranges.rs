//! Source ranges of load balancers: who is let in, from outside, from pods and from nodes.

use std::time::Duration;

use lb_lab::{Family, LOAD_BALANCER, Options, Request};
use serde_json::Value;

use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, eventually, for_both};

/// Patience with silence.
const SILENCE: Duration = Duration::from_millis(300);
const DROPS: &str = "lb_agent_drops_total{reason=\"source_range\"}";

/// The addresses of a host as ranges of one address.
fn host_ranges(stage: &Stage, hosts: &[&str]) -> Vec<String> {
    let of = |host: &&str| Family::BOTH.map(|family| stage.address(host, family).to_string());
    hosts.iter().flat_map(of).collect::<Vec<_>>().into_iter().map(with_length).collect()
}

fn with_length(address: String) -> String {
    let bits = if address.contains(':') { 128 } else { 32 };
    format!("{address}/{bits}")
}

fn restricted(source_ranges: Vec<String>) -> Service {
    Service { source_ranges, ..Service::new(1, &["pod-a1", "pod-b1"]) }
}

/// Requests to the load balancer's address, and whether they are answered.
fn knock(stage: &Stage, from: &str, admitted: bool, errno: &str) {
    for (family, transport) in each() {
        for connected in [true, false] {
            let request = Request::new(transport, LOAD_BALANCER.of(family), PORT);
            let request = Request { connected, ..request };
            if admitted {
                stage.answer(from, &request);
            } else {
                let failure = stage.failure(from, &request.patience(SILENCE));
                assert_eq!(failure.errno, errno, "{from} {family} {transport}");
            }
        }
    }
}

#[test]
fn a_client_outside_is_let_in_or_dropped_in_silence_and_other_addresses_are_open() {
    let stage = Stage::up(&Options::default(), &[restricted(vec!["192.0.2.128/31".into()])]);
    // A range that holds the client, one that doesn't, none (of the other family there is none
    // in the first: everybody is let in).
    let client = host_ranges(&stage, &["client"]);
    let others = host_ranges(&stage, &["pod-a1", "node-b"]);
    for (ranges, admitted) in [(&client, true), (&others, false), (&Vec::new(), true)] {
        let service = restricted(ranges.clone());
        stage.publish(std::slice::from_ref(&service));
        knock(&stage, "client", admitted, "ETIMEDOUT");
        for entry in stage.entries(&service).iter().filter(|entry| entry.name != "LoadBalancer") {
            for (family, transport) in each() {
                stage.answer("client", &Request::new(transport, entry.to.of(family), entry.port));
            }
        }
    }
    eventually("silent drops are counted", || stage.metric("node-a", DROPS) > 0.0);
}

for_both! { pods_and_nodes_are_judged_by_the_address_that_they_send_from }

fn pods_and_nodes_are_judged_by_the_address_that_they_send_from(pods: Pods) {
    let closed = restricted(vec!["192.0.2.128/31".into()]);
    let stage = Stage::serving(pods, &Options::default(), &[closed]);
    let service = restricted(host_ranges(&stage, &["pod-a2", "node-a"]));
    stage.publish(std::slice::from_ref(&service));
    knock(&stage, "pod-a2", true, "");
    knock(&stage, "pod-a1", false, "ETIMEDOUT");
    knock(&stage, "node-a", true, "");
    knock(&stage, "node-b", false, "ETIMEDOUT");
    for from in ["pod-a1", "pod-b2", "node-b"] {
        for (family, transport) in each() {
            let to = service.cluster_ip().of(family);
            stage.answer(from, &Request::new(transport, to, PORT));
        }
    }
    eventually("refusals are counted", || stage.metric("node-b", DROPS) > 0.0);
}

#[test]
fn ranges_hold_without_an_agent_and_after_a_restart_with_others() {
    let mut stage = Stage::up(&Options::default(), &[restricted(vec!["192.0.2.128/31".into()])]);
    let client = restricted(host_ranges(&stage, &["client"]));
    let others = restricted(host_ranges(&stage, &["pod-a1"]));
    stage.publish(std::slice::from_ref(&others));
    stage.kill_agent("node-a");
    knock(&stage, "client", false, "ETIMEDOUT");
    stage.start_agent("node-a");
    knock(&stage, "client", false, "ETIMEDOUT");
    assert_eq!(shown(&stage), others.source_ranges);
    stage.kill_agent("node-a");
    stage.write_services(std::slice::from_ref(&client));
    stage.start_agent("node-a");
    knock(&stage, "client", true, "");
    assert_eq!(shown(&stage), client.source_ranges);
}

/// The ranges that node-a's maps hold, of both families.
fn shown(stage: &Stage) -> Vec<String> {
    let text = stage.agent_says("node-a", &["services", "--protocol", "tcp", "-o", "json"]);
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let ranges = rows.iter().flat_map(|row| row["policy"]["source_ranges"].as_array().cloned());
    ranges.flatten().map(|range| range.as_str().unwrap().to_owned()).collect()
}

#[test]
fn ranges_that_do_not_fit_close_the_load_balancers_address_alone() {
    let options = Options::default();
    let stage = Stage::with(&options, &[restricted(Vec::new())], |agent| {
        agent.arguments.extend(["--max-source-ranges", "16"].map(str::to_owned));
    });
    knock(&stage, "client", true, "");
    // Four ports of two families share 16 places.
    let mut many = host_ranges(&stage, &["client"]);
    many.extend((1..=20).map(|number| format!("203.0.113.{number}/32")));
    many.extend((1..=20).map(|number| format!("2001:db8:1::{number}/128")));
    let service = restricted(many);
    stage.write_services(std::slice::from_ref(&service));
    eventually("the Service is named in the log", || {
        stage.log("node-a").contains("the map SOURCE_RANGES is full")
    });
    knock(&stage, "client", false, "ETIMEDOUT");
    for (family, transport) in each() {
        let to = stage.address("node-a", family);
        let request = Request::new(transport, to, service.node_port_number());
        stage.answer("client", &request);
    }
    // Fewer fit again.
    stage.publish(&[restricted(host_ranges(&stage, &["client"]))]);
    knock(&stage, "client", true, "");
}
