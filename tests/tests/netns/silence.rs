//! What is dropped in silence at a socket: nobody answers, nothing leaves the node, and sockets that
//! were led to nobody are ended when the Service serves them. What is dropped by packet gets through then.

use std::time::{Duration, Instant};

use lb_lab::{Family, Options, Request, Transport};

use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, eventually};

/// Patience with silence.
const SILENCE: Duration = Duration::from_millis(300);
/// More than any answer takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// From the change of the API until the last socket has ended. The agents need 100 ms on a machine that has
/// nothing else to do.
const ENDED_WITHIN: Duration = Duration::from_secs(1);
/// One pod and one node without an endpoint.
const CLIENTS: [&str; 2] = ["pod-b2", "node-b"];

/// Counts at the other end of the uplink what arrives for nobody, and for a neighbour of it.
const CAPTURE: &str = "
table netdev capture {
    counter nobody {}
    counter neighbour {}
    chain uplink {
        type filter hook ingress device p-node-b priority 0
        ip daddr 192.0.0.8 counter name nobody
        ip6 daddr 100::/64 counter name nobody
        ip daddr 192.0.0.9 counter name neighbour
        ip6 daddr 100:0:0:1::1 counter name neighbour
    }
}
";

/// Packets that a counter of the fabric saw.
fn seen(stage: &Stage, counter: &str) -> u64 {
    let text = stage.run("fabric", &["nft", "list", "counter", "netdev", "capture", counter]);
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

#[test]
fn silence_at_a_socket_leaves_no_node_and_ends_with_the_first_endpoint() {
    for masquerade in [false, true] {
        let options = Options { masquerade, ..Options::default() };
        silence(&options);
    }
}

fn silence(options: &Options) {
    let away = Service { internal_local: true, ..Service::new(1, &["pod-a1"]) };
    let stage = Stage::up(options, std::slice::from_ref(&away));
    stage.lab().nft("fabric", CAPTURE).unwrap();
    let mut waiting = Vec::new();
    for from in CLIENTS {
        for (family, transport) in each() {
            for (mapped, connected) in [(false, false), (false, true), (true, true)] {
                if mapped && family == Family::V6 {
                    continue;
                }
                let request = Request::new(transport, away.cluster_ip().of(family), PORT);
                let request = Request { mapped, connected, ..request }.patience(SILENCE);
                let failure = stage.failure(from, &request);
                assert_eq!(failure.errno, "ETIMEDOUT", "{from} {family} {transport}");
                if connected {
                    waiting.push((from, request));
                }
            }
        }
    }
    assert_eq!(seen(&stage, "nobody"), 0, "nothing leaves");
    // The counter counts: packets for its neighbours arrive there.
    for family in Family::BOTH {
        let neighbour = match family {
            Family::V4 => "192.0.0.9",
            Family::V6 => "100:0:0:1::1",
        };
        let request = Request::udp(neighbour.parse().unwrap(), PORT).patience(SILENCE);
        stage.failure("pod-b2", &request);
    }
    assert!(seen(&stage, "neighbour") >= 2);
    let drops = "lb_agent_drops_total{reason=\"no_local_endpoint\"}";
    eventually("each call is counted", || stage.metric("node-b", drops) >= 20.0);

    let here = Service { internal_local: true, ..Service::new(1, &["pod-a1", "pod-b1"]) };
    let (change, ended) = std::thread::scope(|scope| {
        let wait = |from: &str, request: &Request| {
            let request = request.clone().patience(PATIENCE);
            (stage.failure(from, &request), Instant::now())
        };
        let threads: Vec<_> =
            waiting.iter().map(|(from, ask)| scope.spawn(move || wait(from, ask))).collect();
        let calls = 20.0 + waiting.len() as f64;
        eventually("every socket waits", || stage.metric("node-b", drops) >= calls);
        let change = Instant::now();
        stage.publish(std::slice::from_ref(&here));
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (change, ended)
    });
    for ((from, request), (failure, end)) in waiting.iter().zip(&ended) {
        assert_eq!(failure.errno, "ECONNABORTED", "{from} {}", request.to);
        let took = end.duration_since(change);
        assert!(took < ENDED_WITHIN, "{from} {} ended after {took:?}", request.to);
    }
    let slowest = ended.iter().map(|(_, end)| end.duration_since(change)).max();
    println!("{} sockets ended, the last {slowest:?} after the change was begun", ended.len());
    for (from, request) in &waiting {
        for transport in [Transport::Tcp, Transport::Udp] {
            let again = Request { transport, ..request.clone() }.patience(PATIENCE);
            assert_eq!(stage.answer(from, &again).server, "pod-b1", "{from} {transport}");
        }
    }
    assert_eq!(seen(&stage, "nobody"), 0, "nothing leaves");
}

#[test]
fn a_connection_that_waits_in_silence_gets_through_to_the_first_endpoint_by_packet() {
    let away = Service { internal_local: true, ..Service::new(1, &["pod-a1"]) };
    let stage = Stage::serving(Pods::ByPacket, &Options::default(), std::slice::from_ref(&away));
    let requests = Family::BOTH.map(|family| Request::tcp(away.cluster_ip().of(family), PORT));
    std::thread::scope(|scope| {
        let answers = requests.each_ref().map(|request| {
            let request = request.clone().patience(PATIENCE * 2);
            let stage = &stage;
            scope.spawn(move || stage.answer("pod-b2", &request))
        });
        let drops = "lb_agent_drops_total{reason=\"no_local_endpoint\"}";
        eventually("both wait", || stage.metric("node-b", drops) >= 2.0);
        stage
            .publish(&[Service { internal_local: true, ..Service::new(1, &["pod-a1", "pod-b1"]) }]);
        for answer in answers {
            assert_eq!(answer.join().unwrap().server, "pod-b1");
        }
    });
}
