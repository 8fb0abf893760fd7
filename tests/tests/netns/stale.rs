//! Connected UDP sockets whose endpoint leaves: they are ended, and nobody else is disturbed. Those of pods
//! that are served by packet go on: their next datagram reaches another endpoint.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use lb_lab::{Family, LOAD_BALANCER, Options, Request, Serve, Transport};
use lb_tests::cluster::confined::confined;

use crate::manifest::{Kind, POD_PORT, PORT, Service};
use crate::stage::{Pods, Stage, each, eventually, for_both};

/// Pods of both nodes, and both nodes themselves.
const CLIENTS: [&str; 4] = ["pod-a1", "pod-b2", "node-a", "node-b"];
/// The agents need 100 ms at most on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(5);

for_both! {
    connected_udp_sockets_leave_an_endpoint_that_left_and_nobody_else_is_disturbed,
    connected_udp_sockets_leave_a_target_port_that_changed,
    datagrams_follow_an_address_that_another_service_has_now_and_connections_stay,
    an_endpoint_that_is_terminating_and_serves_on_keeps_its_sockets_until_it_goes,
    sockets_whose_endpoint_left_while_no_agent_ran_leave_it_with_the_next_one,
}

/// An open socket of a client.
struct Open {
    from: &'static str,
    /// No hook led it where its datagrams go: they are translated one by one.
    by_packet: bool,
    ask: Request,
    /// Its own address: another one means another socket.
    local: SocketAddr,
    server: String,
}

impl Open {
    /// Sends a first request on a new socket.
    fn new(stage: &Stage, pods: Pods, from: &'static str, ask: Request) -> Self {
        let answer = stage.answer(from, &ask);
        let by_packet = pods.asks_by_packet(from);
        Self { from, by_packet, ask, local: answer.local, server: answer.server }
    }

    fn name(&self) -> &str {
        self.ask.keep.as_deref().unwrap()
    }

    /// The socket goes on as if nothing had happened.
    fn is_undisturbed(&self, stage: &Stage) {
        let answer = stage.answer(self.from, &self.ask);
        let seen = (answer.server.as_str(), answer.local);
        assert_eq!(seen, (self.server.as_str(), self.local), "{} {}", self.from, self.name());
    }

    /// An endpoint that is there: the application has to connect again, unless it is served by packet.
    fn reaches(&self, stage: &Stage, server: &str) {
        // Nothing tells it when its agent has done what was seen of another node's, or forgotten its flow.
        if self.by_packet {
            eventually("its datagrams go elsewhere", || {
                stage.answer(self.from, &self.ask).server == server
            });
        }
        let answer = stage.answer(self.from, &self.ask);
        assert_eq!(answer.server, server, "{} {}", self.from, self.name());
        assert_eq!(answer.peer_name.map(|peer| peer.port()), Some(self.ask.to.port()));
        assert!(!self.by_packet || answer.local == self.local, "{} is another socket", self.name());
    }
}

/// A connected UDP socket over IPv4, over IPv6 and to a mapped address from every client.
fn open_udp(
    stage: &Stage,
    pods: Pods,
    purpose: &str,
    to: impl Fn(Family) -> SocketAddr,
) -> Vec<Open> {
    let mut sockets = Vec::new();
    for from in CLIENTS {
        for (family, mapped) in [(Family::V4, false), (Family::V6, false), (Family::V4, true)] {
            let to = to(family);
            let ask = Request { mapped, ..Request::udp(to.ip(), to.port()).connected() };
            let name = format!("{purpose} {family} mapped: {mapped}");
            sockets.push(Open::new(stage, pods, from, ask.keep(name)));
        }
    }
    sockets
}

fn to_service(service: &Service) -> impl Fn(Family) -> SocketAddr {
    let cluster_ip = service.cluster_ip();
    move |family| SocketAddr::new(cluster_ip.of(family), PORT)
}

fn open_tcp(stage: &Stage, pods: Pods, service: &Service) -> Vec<Open> {
    let mut connections = Vec::new();
    for from in CLIENTS {
        for family in Family::BOTH {
            let ask = Request::tcp(service.cluster_ip().of(family), PORT);
            connections.push(Open::new(stage, pods, from, ask.keep(format!("TCP {family}"))));
        }
    }
    connections
}

/// Makes a change while every socket that a hook led to its endpoint waits for an answer; all of them must
/// fail soon after it. Returns how many they are.
fn are_ended(stage: &Stage, sockets: &[Open], change: impl FnOnce()) -> usize {
    let before = Instant::now();
    let sockets: Vec<_> = sockets.iter().filter(|open| !open.by_packet).collect();
    let waits: Vec<_> = thread::scope(|scope| {
        let wait = |open: &&Open| {
            let peer = stage.lab().peer(open.from).unwrap();
            let failure = peer.await_failure(open.name(), PATIENCE).unwrap();
            (failure, before.elapsed())
        };
        let waiting: Vec<_> = sockets.iter().map(|open| scope.spawn(move || wait(open))).collect();
        change();
        waiting.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (open, (failure, _)) in sockets.iter().zip(&waits) {
        assert_eq!(failure.errno, "ECONNABORTED", "{} {}", open.from, open.name());
    }
    let slowest = waits.iter().map(|(_, took)| took).max();
    println!("{} sockets ended, the last {slowest:?} after the change was begun", sockets.len());
    sockets.len()
}

fn ended(stage: &Stage) -> f64 {
    let metric = |node: &String| stage.metric(node, "lb_agent_ended_sockets_total");
    stage.nodes().iter().map(metric).sum()
}

fn connected_udp_sockets_leave_an_endpoint_that_left_and_nobody_else_is_disturbed(pods: Pods) {
    let service = Service::node_port(1, &["pod-b1"]);
    let other = Service::node_port(2, &["pod-b1"]);
    // With no more rights than the DaemonSet gives.
    let directory = tempfile::tempdir().unwrap();
    let services = [service.clone(), other.clone()];
    let stage = Stage::with(&Options::default(), &services, |options| {
        pods.tell(options);
        options.binary = confined(&options.binary, directory.path()).unwrap();
    });
    let stale = open_udp(&stage, pods, "stale", to_service(&service));
    // Nobody led these there: whoever talks to the pod itself knows what it does.
    let pod = |family| SocketAddr::new(stage.address("pod-b1", family), POD_PORT);
    let mut undisturbed = open_udp(&stage, pods, "direct", pod);
    let keeps_it = to_service(&other);
    undisturbed.extend(open_udp(&stage, pods, "of a Service that keeps it", keeps_it));
    undisturbed.extend(open_tcp(&stage, pods, &service));

    let moved = Service::node_port(1, &["pod-a2"]);
    let cut = are_ended(&stage, &stale, || stage.publish(&[moved.clone(), other.clone()]));
    stale.iter().for_each(|open| open.reaches(&stage, "pod-a2"));
    undisturbed.iter().for_each(|open| open.is_undisturbed(&stage));
    eventually("they are counted", || ended(&stage) == cut as f64);

    // The Service goes as a whole: its address may soon be another pod's.
    are_ended(&stage, &stale, || stage.publish(std::slice::from_ref(&other)));
    undisturbed.iter().for_each(|open| open.is_undisturbed(&stage));
}

fn connected_udp_sockets_leave_a_target_port_that_changed(pods: Pods) {
    let old = Service::node_port(1, &["pod-b1"]);
    let new = Service { target_port: 8081, ..old.clone() };
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&old));
    let pod = stage.lab().peer("pod-b1").unwrap();
    let address = "::".parse().unwrap();
    let name = "new port".to_owned();
    pod.serve_as(Serve { transport: Transport::Udp, address, port: 8081, name }).unwrap();
    let stale = open_udp(&stage, pods, "stale", to_service(&old));
    let connections = open_tcp(&stage, pods, &old);
    are_ended(&stage, &stale, || stage.publish(std::slice::from_ref(&new)));
    stale.iter().for_each(|open| open.reaches(&stage, "new port"));
    connections.iter().for_each(|open| open.is_undisturbed(&stage));
}

fn datagrams_follow_an_address_that_another_service_has_now_and_connections_stay(pods: Pods) {
    // Both keep their endpoints; the addresses beside the ClusterIPs and NodePorts move.
    let (first, second) = (Service::new(1, &["pod-b1"]), Service::node_port(2, &["pod-a2"]));
    let stage = Stage::serving(pods, &Options::default(), &[first.clone(), second.clone()]);
    let moving = |family| SocketAddr::new(LOAD_BALANCER.of(family), PORT);
    let stale = open_udp(&stage, pods, "the address moves", moving);
    let mut undisturbed = open_udp(&stage, pods, "its Service keeps it", to_service(&first));
    // From outside and without connect: no hook, or a hook for each datagram.
    let mut each_by_itself = Vec::new();
    for family in Family::BOTH {
        let to = moving(family);
        let udp = Request::udp(to.ip(), to.port());
        for from in CLIENTS.into_iter().chain(["client"]) {
            let ask = udp.clone().keep(format!("{family} unconnected"));
            each_by_itself.push(Open::new(&stage, pods, from, ask));
            let tcp = Request::tcp(to.ip(), to.port()).keep(format!("{family} TCP"));
            undisturbed.push(Open::new(&stage, pods, from, tcp));
        }
        let connected = udp.connected().keep(format!("{family} connected"));
        let outside = Open { by_packet: true, ..Open::new(&stage, pods, "client", connected) };
        each_by_itself.push(outside);
    }
    let opened = stale.iter().chain(&undisturbed).chain(&each_by_itself);
    opened.for_each(|open| assert_eq!(open.server, "pod-b1", "{} {}", open.from, open.name()));

    are_ended(&stage, &stale, || {
        let first = Service { kind: Kind::NodePort, ..first.clone() };
        let second = Service { kind: Kind::Everything, ..second.clone() };
        stage.publish(&[first, second]);
    });
    stale.iter().for_each(|open| open.reaches(&stage, "pod-a2"));
    for open in &each_by_itself {
        eventually("its flow has been forgotten", || {
            let answer = stage.answer(open.from, &open.ask);
            assert_eq!(answer.local, open.local, "{} {}", open.from, open.name());
            answer.server == "pod-a2"
        });
    }
    undisturbed.iter().for_each(|open| open.is_undisturbed(&stage));
}

fn an_endpoint_that_is_terminating_and_serves_on_keeps_its_sockets_until_it_goes(pods: Pods) {
    let both = Service::node_port(1, &["pod-b1", "pod-a2"]);
    let mut draining = both.clone();
    draining.terminating.push("pod-b1".to_owned());
    let alone = Service::node_port(1, &["pod-b1"]);
    let stage = Stage::serving(pods, &Options::default(), &[alone]);
    let sockets = open_udp(&stage, pods, "drains", to_service(&both));
    for services in [both, draining] {
        stage.publish(&[services]);
        // Longer than the agents take twice.
        thread::sleep(Duration::from_millis(1500));
        sockets.iter().for_each(|open| open.is_undisturbed(&stage));
    }
    assert_eq!(ended(&stage), 0.0);
    are_ended(&stage, &sockets, || stage.publish(&[Service::node_port(1, &["pod-a2"])]));
    sockets.iter().for_each(|open| open.reaches(&stage, "pod-a2"));
}

fn sockets_whose_endpoint_left_while_no_agent_ran_leave_it_with_the_next_one(pods: Pods) {
    let service = Service::node_port(1, &["pod-b1"]);
    let mut stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    let stale = open_udp(&stage, pods, "stale", to_service(&service));
    let connections = open_tcp(&stage, pods, &service);
    stage.kill_agent("node-a");
    stage.stop_agent("node-b");
    let mut text = String::new();
    for document in Service::node_port(1, &["pod-a2"]).documents(stage.lab().topology()) {
        text.push_str(&format!("---\n{document}\n"));
    }
    stage.write("services.yaml", &text);
    stale.iter().for_each(|open| open.is_undisturbed(&stage));
    for node in stage.nodes() {
        stage.start_agent(&node);
    }
    are_ended(&stage, &stale, || {});
    stale.iter().for_each(|open| open.reaches(&stage, "pod-a2"));
    connections.iter().for_each(|open| open.is_undisturbed(&stage));
}

#[test]
fn without_the_right_to_enter_pods_the_agent_says_so_and_ends_the_sockets_of_its_node() {
    let service = Service::node_port(1, &["pod-b1"]);
    let directory = tempfile::tempdir().unwrap();
    let stage = Stage::with(&Options::default(), std::slice::from_ref(&service), |options| {
        let path = directory.path().join("lb-agent");
        let script = format!(
            "#!/bin/sh\nexec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin {} \"$@\"\n",
            options.binary.display()
        );
        std::fs::write(&path, script).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, executable).unwrap();
        options.binary = path;
    });
    let sockets = open_udp(&stage, Pods::BySocket, "stale", to_service(&service));
    let (of_pods, of_nodes): (Vec<_>, Vec<_>) =
        sockets.into_iter().partition(|open| open.from.starts_with("pod-"));
    are_ended(&stage, &of_nodes, || stage.publish(&[Service::node_port(1, &["pod-a2"])]));
    of_pods.iter().for_each(|open| open.is_undisturbed(&stage));
    for node in stage.nodes() {
        let log = stage.log(&node);
        assert_eq!(log.matches("run lb-agent with CAP_SYS_ADMIN").count(), 1, "{log}");
    }
    for (family, transport) in each() {
        let request = Request::new(transport, service.cluster_ip().of(family), PORT);
        assert_eq!(stage.answer("pod-a1", &request).server, "pod-a2", "all else works");
    }
}
