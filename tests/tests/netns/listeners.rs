//! A process of the node that listens at a ClusterIP, which the node has on a device: a DNS cache in front of
//! the cluster's DNS does so (NodeLocal DNSCache, where kube-proxy works with iptables or nftables).

use lb_lab::{Family, Options, Request};

use crate::doctor::report::{Report, is};
use crate::manifest::{PORT, Service};
use crate::stage::{Pods, Stage, each, eventually, for_both};

for_both! {
    a_process_that_listens_at_a_cluster_ip_of_its_node_answers_there_as_long_as_it_does,
}

/// Who asks on the node that has the process, and who asks elsewhere.
const HERE: [&str; 2] = ["node-a", "pod-a1"];
const ELSEWHERE: [&str; 2] = ["node-b", "pod-b2"];

/// Whether all that is asked from there is answered by `server`.
fn answers(stage: &Stage, service: &Service, from: &[&str], server: &str) -> bool {
    each().all(|(family, transport)| {
        let request = Request::new(transport, service.cluster_ip().of(family), PORT);
        from.iter().all(|from| {
            stage.ask(from, &request).is_ok_and(|answer| answer.intact && answer.server == server)
        })
    })
}

fn a_process_that_listens_at_a_cluster_ip_of_its_node_answers_there_as_long_as_it_does(pods: Pods) {
    let service = Service::new(1, &["pod-b1"]);
    let mut stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    let ip = |stage: &Stage, words: &str| {
        let words: Vec<_> = ["ip"].into_iter().chain(words.split(' ')).collect();
        stage.run("node-a", &words)
    };
    ip(&stage, "link add nodelocaldns type bridge");
    ip(&stage, "link set nodelocaldns up");
    for family in Family::BOTH {
        let address = service.cluster_ip().of(family);
        let words = match family {
            Family::V4 => format!("addr add {address}/32 dev nodelocaldns"),
            Family::V6 => format!("addr add {address}/128 dev nodelocaldns nodad"),
        };
        ip(&stage, &words);
    }
    eventually("nobody listens: the Service's", || answers(&stage, &service, &HERE, "pod-b1"));
    let kept = "kept since before the process listened";
    let before =
        Request::udp(service.cluster_ip().v4.into(), PORT).connected().keep(kept.to_owned());
    let socket = stage.answer("node-a", &before).local;

    let serve = |(family, transport)| {
        let address = service.cluster_ip().of(family);
        stage.lab().peer("node-a").unwrap().serve(transport, address, PORT).unwrap()
    };
    let servers: Vec<_> = each().map(serve).collect();
    eventually("the process's", || answers(&stage, &service, &HERE, "node-a"));
    assert!(answers(&stage, &service, &ELSEWHERE, "pod-b1"), "other nodes have no such process");
    let answer = stage.answer("node-a", &before);
    assert_eq!((answer.server.as_str(), answer.local), ("pod-b1", socket), "what was led goes on");
    for from in ["node", &stage.address("pod-a1", Family::V4).to_string()] {
        let to = format!("{}:{PORT}", service.cluster_ip().v4);
        let trace = stage.agent_says("node-a", &["trace", "--from", from, "--to", &to]);
        assert!(trace.contains("left to the process that listens there"), "{trace}");
    }
    let report = Report::of_running(&stage);
    for finding in report.of_check("addresses") {
        let listens = "a process of this node listens at the ClusterIP";
        assert!(is(finding, &("info", "addresses", listens)), "{finding}");
    }
    let [services] = report.of_check("services")[..] else { panic!("{report:?}") };
    assert!(is(services, &("ok", "services", "the maps hold all")), "{report:?}");

    let kept = "of the process";
    let of_process =
        Request::udp(service.cluster_ip().v4.into(), PORT).connected().keep(kept.to_owned());
    let socket = stage.answer("node-a", &of_process).local;
    stage.kill_agent("node-a");
    stage.start_agent("node-a");
    assert!(answers(&stage, &service, &HERE, "node-a"), "the next agent knows it, too");
    let log = stage.log("node-a");
    assert_eq!(
        log.matches("left to processes of this node, which listen there").count(),
        2,
        "{log}"
    );
    let answer = stage.answer("node-a", &of_process);
    assert_eq!(
        (answer.server.as_str(), answer.local),
        ("node-a", socket),
        "and leaves its sockets alone"
    );

    for server in servers {
        stage.lab().peer("node-a").unwrap().stop_server(server).unwrap();
    }
    eventually("the Service's again", || answers(&stage, &service, &HERE, "pod-b1"));
    eventually("so is the socket", || {
        stage.ask("node-a", &of_process).is_ok_and(|answer| answer.server == "pod-b1")
    });
    ip(&stage, "link del nodelocaldns");
    assert!(answers(&stage, &service, &HERE, "pod-b1"), "without the address");
}
