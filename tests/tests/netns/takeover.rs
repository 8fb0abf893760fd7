//! Where another service proxy's rules are: its flows are its own until they end, `lb-agent cleanup` waits
//! for ours, and until then neither proxy's flows get in the other's way.

use std::fmt::Write as _;
use std::time::Duration;

use lb_lab::{Family, Options, Request, Transport};

use crate::manifest::{POD_PORT, PORT, Service};
use crate::stage::{Stage, each};

/// What kube-proxy would write: it, too, masquerades what goes to an endpoint of another node.
fn rules(stage: &Stage, service: &Service) -> String {
    let mut text = String::new();
    for (family, table) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let pod = stage.address("pod-b1", family);
        let to =
            if pod.is_ipv6() { format!("[{pod}]:{POD_PORT}") } else { format!("{pod}:{POD_PORT}") };
        let (port, cluster_ip) = (service.node_port_number(), service.cluster_ip().of(family));
        writeln!(
            text,
            "table {table} kube-proxy {{
                chain nat-prerouting {{
                    type nat hook prerouting priority -100; policy accept;
                    meta l4proto {{ tcp, udp }} th dport {port} dnat to {to}
                    {table} daddr {cluster_ip} meta l4proto {{ tcp, udp }} th dport {PORT} dnat to {to}
                }}
                chain nat-output {{
                    type nat hook output priority -100; policy accept;
                    {table} daddr {cluster_ip} meta l4proto {{ tcp, udp }} th dport {PORT} dnat to {to}
                }}
                chain nat-postrouting {{
                    type nat hook postrouting priority 100; policy accept;
                    {table} daddr {pod} masquerade
                }}
            }}"
        )
        .unwrap();
    }
    text
}

#[test]
fn neither_proxy_uses_a_source_port_of_the_others_flows() {
    let service = Service::node_port(1, &["pod-b1"]);
    let mut stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    stage.lab().nft("node-a", &rules(&stage, &service)).unwrap();
    let requests: Vec<_> = each()
        .map(|(family, transport)| {
            let to = stage.address("node-a", family);
            Request::new(transport, to, service.node_port_number())
        })
        .collect();
    let name = |request: &Request| format!("{} {}", request.transport, request.to);
    let kept = |request: &Request| request.clone().keep(name(request));
    let ours: Vec<_> =
        requests.iter().map(|request| stage.answer("client", &kept(request)).seen.port()).collect();

    stage.stop_agent("node-a");
    let refused = stage.agent_output("node-a", &["cleanup", "--wait", "0s"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("4 flows from outside still go through lb-agent"), "{said}");
    for (request, port) in requests.iter().zip(&ours) {
        // What is masqueraded keeps its port, unless it is another's.
        let same = request.clone().from_port(*port);
        let masqueraded = stage.answer("client", &same).seen.port();
        assert_ne!(masqueraded, *port, "{request:?}");
        let mine = stage.answer("client", &kept(request)).seen.port();
        assert_eq!(mine, *port, "{request:?}");
    }

    for request in &requests {
        stage.lab().peer("client").unwrap().forget(&name(request)).unwrap();
    }
    stage.agent_says("node-a", &["cleanup", "--wait", "2m"]);
    let datagrams = |request: &Request| request.transport == Transport::Udp;
    for (request, port) in requests.iter().zip(&ours).filter(|(request, _)| datagrams(request)) {
        // Nothing of ours is left that would keep it from this port. The client's kernel keeps it from
        // connections for longer.
        let same = request.clone().from_port(*port);
        let masqueraded = stage.answer("client", &same).seen.port();
        assert_eq!(masqueraded, *port, "{request:?}");
    }
}

/// The agent looks for the end of the other proxy's flows every ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// So long conntrack remembers a flow of datagrams.
const REMEMBERED: Duration = Duration::from_secs(3);

/// A node that the other proxy serves alone.
fn served_by_rules(service: &Service) -> Stage {
    let mut stage = Stage::up(&Options::default(), std::slice::from_ref(service));
    stage.stop_agent("node-a");
    stage.agent_says("node-a", &["cleanup"]);
    stage.lab().nft("node-a", &rules(&stage, service)).unwrap();
    for timeout in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        let seconds = REMEMBERED.as_secs().to_string();
        stage.lab().sysctl("node-a", &format!("netfilter/{timeout}"), &seconds).unwrap();
    }
    stage
}

#[test]
fn flows_are_waited_for_where_the_chains_that_are_left_need_no_conntrack() {
    let service = Service::node_port(1, &["pod-b1"]);
    let mut stage = served_by_rules(&service);
    let held = Family::BOTH.map(|family| {
        let to = stage.address("node-a", family);
        Request::tcp(to, service.node_port_number()).keep(family.to_string())
    });
    for request in &held {
        stage.answer("client", request);
    }
    stage.start_agent("node-a");
    let post = "chain post {\ntype nat hook postrouting priority 100;\n}\n";
    let others = format!("table ip own {{\n{post}}}\ntable ip6 own {{\n{post}}}\n");
    stage.lab().nft("node-a", &others).unwrap();
    let refused = stage.agent_output("node-a", &["cleanup", "--kube-proxy", "--wait", "0s"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("still carries 2 flows"), "{said}");
    let state =
        "table inet own {\nchain in {\ntype filter hook input priority 0;\nct state new\n}\n}\n";
    stage.lab().nft("node-a", state).unwrap();
    stage.agent_says("node-a", &["cleanup", "--kube-proxy", "--wait", "0s"]);
    for request in &held {
        assert_eq!(stage.answer("client", request).server, "pod-b1", "{request:?}");
    }
}

fn remove_rules(stage: &Stage) {
    stage.lab().nft("node-a", "delete table ip kube-proxy; delete table ip6 kube-proxy").unwrap();
}

#[test]
fn a_datagram_is_ours_as_soon_as_the_kernel_has_forgotten_its_flow() {
    let service = Service::node_port(1, &["pod-b1"]);
    let mut stage = served_by_rules(&service);
    let kept = Family::BOTH.map(|family| {
        let to = stage.address("node-a", family);
        Request::udp(to, service.node_port_number()).keep(family.to_string())
    });
    let ask = |stage: &Stage, request: &Request| stage.answer("client", request).seen.port();
    for request in &kept {
        ask(&stage, request);
    }
    stage.start_agent("node-a");
    remove_rules(&stage);
    std::thread::sleep(REMEMBERED + Duration::from_millis(100));
    for request in &kept {
        // Sooner than the agent looks through them.
        let ours = ask(&stage, request);
        assert!((1_024..30_000).contains(&ours), "{request:?}: from port {ours}");
    }
}

#[test]
fn a_connected_socket_that_nobody_leads_any_more_is_ended() {
    let service = Service::node_port(1, &["pod-b1"]);
    let mut stage = served_by_rules(&service);
    let mut sockets = Vec::new();
    for (from, family) in
        ["node-a", "pod-a1"].into_iter().flat_map(|from| Family::BOTH.map(|family| (from, family)))
    {
        let to = service.cluster_ip().of(family);
        let request =
            Request { connected: true, ..Request::udp(to, PORT).keep(family.to_string()) };
        assert_eq!(stage.answer(from, &request).server, "pod-b1");
        sockets.push((from, request));
    }
    stage.start_agent("node-a");
    for (from, request) in &sockets {
        assert_eq!(stage.answer(from, request).server, "pod-b1", "{from}: the rules lead it still");
    }
    remove_rules(&stage);
    for (from, request) in &sockets {
        let peer = stage.lab().peer(from).unwrap();
        let failure = peer.await_failure(request.keep.as_ref().unwrap(), PATIENCE).unwrap();
        assert_eq!(failure.errno, "ECONNABORTED", "{from} {request:?}");
        assert_eq!(stage.answer(from, request).server, "pod-b1", "it connects again");
    }
}
