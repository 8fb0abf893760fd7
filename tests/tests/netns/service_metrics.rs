//! Metrics of traffic per Service port: what `/metrics` of a running agent says of it.

use std::collections::BTreeMap;

use lb_lab::{METRICS, Options, Request, Transport};

use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, eventually, for_both};

for_both! {
    the_page_counts_what_the_tables_count,
    series_are_bounded_and_their_sum_is_right,
}

const CONNECTIONS: &str = "lb_agent_service_connections_total";
const NOT_SHOWN: &str = "lb_agent_service_ports_not_shown";

/// The samples of a metric, by their labels.
fn samples(stage: &Stage, metric: &str) -> BTreeMap<String, u64> {
    let page = stage.lab().peer("node-a").unwrap().get(METRICS, "/metrics").unwrap();
    let lines = page.body.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    let sample = |line: &str| {
        let (labels, value) = line.rsplit_once("} ").unwrap();
        (labels.to_owned(), value.parse::<u64>().unwrap())
    };
    lines.map(sample).collect()
}

fn sum(stage: &Stage, metric: &str) -> u64 {
    samples(stage, metric).into_values().sum()
}

fn labels(service: &Service, transport: Transport) -> String {
    let port = if transport == Transport::Tcp { "web" } else { "echo" };
    let name = service.name();
    format!("namespace=\"default\",service=\"{name}\",port=\"{port}\",protocol=\"{transport}\"")
}

/// One connection of each kind from a pod and one from outside: both families are one series.
fn use_it(stage: &Stage, service: &Service) {
    for (family, transport) in each() {
        let request = Request::new(transport, service.cluster_ip().of(family), PORT);
        stage.answer("pod-a1", &request.connected());
        let to = stage.address("node-a", family);
        stage.answer("client", &Request::new(transport, to, service.node_port_number()));
    }
}

fn the_page_counts_what_the_tables_count(pods: Pods) {
    let services = [1, 2].map(|number| Service::node_port(number, &["pod-a2", "pod-b1"]));
    let mut stage = Stage::with(&Options::default(), &services, |agent| {
        pods.tell(agent);
        agent.arguments.extend(["--traffic-counters", "on"].map(str::to_owned));
    });
    assert_eq!(samples(&stage, CONNECTIONS), BTreeMap::new(), "before the first connection");
    use_it(&stage, &services[0]);
    let expected: BTreeMap<_, _> =
        Transport::BOTH.map(|transport| (labels(&services[0], transport), 4)).into();
    assert_eq!(samples(&stage, CONNECTIONS), expected);
    let datagrams = if pods == Pods::ByPacket { 4 } else { 2 };
    for direction in ["to", "from"] {
        let of =
            |transport| format!("{},direction=\"{direction}\"", labels(&services[0], transport));
        let packets = samples(&stage, "lb_agent_service_packets_total");
        assert_eq!(packets.get(&of(Transport::Udp)), Some(&datagrams), "{packets:?}");
        let bytes = samples(&stage, "lb_agent_service_bytes_total");
        assert!(bytes.get(&of(Transport::Udp)).is_some_and(|bytes| *bytes > datagrams * 28));
        assert!(packets.contains_key(&of(Transport::Tcp)), "{packets:?}");
    }
    stage.stop_agent("node-a");
    stage.start_agent("node-a");
    assert_eq!(samples(&stage, CONNECTIONS), expected, "with the next agent");
    stage.publish(&services[1..]);
    assert_eq!(samples(&stage, CONNECTIONS), BTreeMap::new(), "of a Service that is gone");
    stage.stop_agent("node-a");
    stage.set_argument("--traffic-counters", "off");
    stage.start_agent("node-a");
    use_it(&stage, &services[1]);
    assert_eq!(samples(&stage, CONNECTIONS), BTreeMap::new(), "without counters");
}

fn series_are_bounded_and_their_sum_is_right(pods: Pods) {
    let services: Vec<_> =
        (1..=4).map(|number| Service::node_port(number, &["pod-a2", "pod-b1"])).collect();
    let mut stage = Stage::with(&Options::default(), &services, |agent| {
        pods.tell(agent);
        agent.arguments.extend(["--service-metrics", "2"].map(str::to_owned));
    });
    use_it(&stage, &services[0]);
    // Those that are here at a scrape have the places.
    assert_eq!(samples(&stage, CONNECTIONS).len(), 2);
    assert_eq!(stage.metric("node-a", NOT_SHOWN), 0.0);
    for service in &services[1..] {
        use_it(&stage, service);
    }
    let others = "namespace=\"_other\",service=\"_other\",port=\"_other\",protocol=\"_other\"";
    let shown = samples(&stage, CONNECTIONS);
    assert_eq!((shown.len(), shown.get(others)), (3, Some(&24)), "{shown:?}");
    assert_eq!(sum(&stage, CONNECTIONS), 32);
    assert_eq!(stage.metric("node-a", NOT_SHOWN), 6.0);
    // One of those that are added up goes, and one that has its own.
    stage.publish(&services[..3]);
    assert_eq!(samples(&stage, CONNECTIONS), shown);
    stage.publish(&services[1..3]);
    for service in &services[1..3] {
        use_it(&stage, service);
    }
    // 24 of before, and 16: two ports have the places that are free, from here on.
    let next = samples(&stage, CONNECTIONS);
    assert_eq!((next.len(), next.get(others)), (3, Some(&32)), "{next:?}");
    assert_eq!(sum(&stage, CONNECTIONS), 40, "{next:?}");
    stage.stop_agent("node-a");
    stage.set_argument("--service-metrics", "off");
    stage.start_agent("node-a");
    eventually("the agent serves", || stage.metric("node-a", "lb_agent_snat_ports") > 0.0);
    assert_eq!(samples(&stage, CONNECTIONS), BTreeMap::new(), "switched off");
}
