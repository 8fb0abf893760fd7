//! Addresses of a Service range that nobody owns: nothing for them leaves a node.

use std::net::IpAddr;
use std::time::Duration;

use lb_lab::{Dual, Family, Options, Request};

use crate::manifest::{PORT, Service};
use crate::ping::ping;
use crate::stage::{Pods, Stage, each, eventually, for_both};

const DROPS: &str = "lb_agent_drops_total{reason=\"unowned_address\"}";

const RANGE: &str = "
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, 'fd00:96::/112']}
";

/// Counts at the other end of the uplink what arrives for the range, and for a neighbour of it.
const CAPTURE: &str = "
table netdev capture {
    counter range {}
    counter neighbour {}
    chain uplink {
        type filter hook ingress device p-node-a priority 0
        ip daddr 10.96.0.0/16 counter name range
        ip6 daddr fd00:96::/112 counter name range
        ip daddr 10.97.0.0/16 counter name neighbour
        ip6 daddr fd00:97::/112 counter name neighbour
    }
}
";

/// No Service has it.
fn unowned() -> Dual {
    Dual::new([10, 96, 200, 7].into(), [0xfd00, 0x96, 0, 0, 0, 0, 0, 0xc807].into())
}

/// Not in the range.
fn neighbour() -> Dual {
    Dual::new([10, 97, 200, 7].into(), [0xfd00, 0x97, 0, 0, 0, 0, 0, 0xc807].into())
}

/// Packets that a counter of the fabric saw.
fn seen(stage: &Stage, counter: &str) -> u64 {
    let text = stage.run("fabric", &["nft", "list", "counter", "netdev", "capture", counter]);
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

/// A pod and the node try everything that sends a packet to `to`; none is answered.
fn try_everything(stage: &Stage, to: Dual) {
    for from in ["pod-a1", "node-a"] {
        for (family, transport) in each() {
            let request = Request::new(transport, to.of(family), PORT);
            stage.failure(from, &request.patience(Duration::from_millis(200)));
        }
    }
    no_echo(stage, to);
}

/// Echo requests of both hosts and families, at once: each waits for its answer in vain.
fn no_echo(stage: &Stage, to: Dual) {
    std::thread::scope(|scope| {
        for from in ["pod-a1", "node-a"] {
            for family in Family::BOTH {
                scope.spawn(move || assert!(!ping(stage, from, to.of(family)), "{from} {family}"));
            }
        }
    });
}

for_both! { nothing_for_an_address_of_a_service_range_leaves_a_node_while_the_range_is_there }

fn nothing_for_an_address_of_a_service_range_leaves_a_node_while_the_range_is_there(pods: Pods) {
    let service = Service::new(1, &["pod-a1", "pod-b1"]);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    stage.lab().nft("fabric", CAPTURE).unwrap();
    try_everything(&stage, unowned());
    // Two hosts; TCP, UDP and an echo request of both families each.
    assert!(seen(&stage, "range") >= 12, "no range: as before");
    let programmed = || stage.metric("node-a", "lb_agent_programming_duration_seconds_count");

    let before = programmed();
    stage.write("range.yaml", RANGE);
    eventually("the range is written", || programmed() > before);
    let leaked = seen(&stage, "range");
    try_everything(&stage, unowned());
    no_echo(&stage, service.cluster_ip());
    assert_eq!(seen(&stage, "range"), leaked, "nothing leaves");
    assert!(stage.metric("node-a", DROPS) >= 16.0, "{}", stage.metric("node-a", DROPS));

    let others = seen(&stage, "neighbour");
    try_everything(&stage, neighbour());
    assert!(seen(&stage, "neighbour") >= others + 12, "other addresses are nobody's business");
    for (family, transport) in each() {
        let pod: IpAddr = stage.address("pod-b1", family);
        for from in ["pod-a2", "node-a", "client"] {
            stage.answer(from, &Request::new(transport, pod, 8080));
            stage.answer(from, &Request::new(transport, service.cluster_ip().of(family), PORT));
        }
    }

    let before = programmed();
    std::fs::remove_file(stage.manifests().join("range.yaml")).unwrap();
    eventually("the range is gone", || programmed() > before);
    try_everything(&stage, unowned());
    assert!(seen(&stage, "range") >= leaked + 12, "without the range it is as before");
}
