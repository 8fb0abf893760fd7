//! `lb-agent monitor`: what it shows of real requests, what it leaves out, and what it leaves behind.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::IpAddr;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use aya::Pod;
use aya::maps::{Array, Map, MapData, PerCpuArray};
use lb_common::abi::{self, map};
use lb_lab::{Family, LOAD_BALANCER, Options, Request, Transport};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::manifest::{NODE_PORT, POD_PORT, PORT, Service};
use crate::stage::{Pods, Stage, each, eventually, for_both};

/// Patience with silence.
const SILENCE: Duration = Duration::from_millis(300);
/// More than a filter outlives who watched.
pub const EXPIRED: Duration = Duration::from_secs(4);

/// A running `lb-agent monitor -o json`; it is killed if it still runs in the end.
pub struct Monitor {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Monitor {
    /// Starts one on node-a and waits until it watches.
    pub fn start(stage: &Stage, arguments: &[&str]) -> Self {
        let before = until(stage);
        let mut command = stage.agent_command("node-a", &["monitor", "-o", "json"]);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = child.stdout.take().map(BufReader::new);
        eventually("somebody watches", || until(stage) != before && kinds(stage) != 0);
        Self { child, lines }
    }

    /// The next event.
    pub fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.as_mut().unwrap().read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// The next event of a client's port: what others send again may come between.
    fn next_of(&mut self, port: u16) -> Value {
        loop {
            let event = self.next();
            if event["client_port"] == port {
                return event;
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Ends it as Ctrl-C does. Events that nobody read yet, and what it said beside them.
    pub fn stop(self) -> (Vec<Value>, String) {
        self.signal(Signal::SIGINT);
        self.wait()
    }

    fn wait(mut self) -> (Vec<Value>, String) {
        let (mut text, mut errors) = (String::new(), String::new());
        self.lines.take().unwrap().read_to_string(&mut text).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {errors}");
        (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), errors)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pinned(stage: &Stage, name: &str) -> MapData {
    let pin = format!("lb/v{}/maps/{name}", abi::VERSION);
    MapData::from_pin(stage.lab().bpffs("node-a").join(pin)).unwrap()
}

fn filter(stage: &Stage) -> abi::Monitor {
    let map = Map::Array(pinned(stage, map::MONITOR));
    let array: Array<_, [u8; size_of::<abi::Monitor>()]> = map.try_into().unwrap();
    bytemuck::pod_read_unaligned(&array.get(&0, 0).unwrap())
}

/// Bits of kinds that node-a's programs look for.
fn kinds(stage: &Stage) -> u32 {
    filter(stage).kinds
}

/// When its filter ends: CLOCK_MONOTONIC, nanoseconds.
pub fn until(stage: &Stage) -> u64 {
    filter(stage).until
}

/// What node-a's programs counted of events, on each CPU.
pub fn paces(stage: &Stage) -> Vec<abi::Pace> {
    fn read<T: Pod + bytemuck::Pod>(map: Map) -> Vec<abi::Pace> {
        let array: PerCpuArray<_, T> = map.try_into().unwrap();
        let values = array.get(&0, 0).unwrap();
        values.iter().map(|value| bytemuck::pod_read_unaligned(bytemuck::bytes_of(value))).collect()
    }
    read::<[u8; size_of::<abi::Pace>()]>(Map::PerCpuArray(pinned(stage, map::PACE)))
}

/// Address and port of one of the ends.
fn end(event: &Value, which: &str) -> (IpAddr, u16) {
    let address = event[which].as_str().unwrap_or_else(|| panic!("no {which}: {event}"));
    let port = event[format!("{which}_port")].as_u64().unwrap_or_default();
    (address.parse().unwrap(), port.try_into().unwrap())
}

fn assert_about(event: &Value, service: &str, transport: Transport) {
    let port = match transport {
        Transport::Tcp => "web",
        Transport::Udp => "echo",
    };
    let found = [&event["namespace"], &event["name"], &event["port_name"]];
    assert_eq!(found, ["default", service, port], "{event}");
    assert_eq!(event["protocol"], transport.to_string(), "{event}");
}

for_both! {
    a_connection_is_shown_with_its_service_client_frontend_and_backend,
    what_is_not_served_is_shown_with_its_reason,
}

fn a_connection_is_shown_with_its_service_client_frontend_and_backend(pods: Pods) {
    let service = Service::new(1, &["pod-a1"]);
    let stage = Stage::serving(pods, &Options::default(), std::slice::from_ref(&service));
    let mut monitor = Monitor::start(&stage, &[]);
    let mut ports = 40_000..;
    for (family, transport) in each() {
        let backend = (stage.address("pod-a1", family), POD_PORT);
        let cluster_ip = (service.cluster_ip().of(family), PORT);
        let node_port = (stage.address("node-a", family), NODE_PORT);
        for (from, frontend, connected) in [
            ("pod-a2", cluster_ip, true),
            ("pod-a2", cluster_ip, false),
            ("node-a", cluster_ip, true),
            ("node-a", cluster_ip, false),
            ("client", node_port, true),
        ] {
            let port = ports.next().unwrap();
            let request = Request::new(transport, frontend.0, frontend.1);
            stage.answer(from, &Request { connected, ..request }.from_port(port));
            let event = monitor.next();
            let what = format!("{from} {family} {transport} {connected}: {event}");
            assert_eq!((&event["event"], &event["reason"]), (&"connection".into(), &Value::Null));
            assert_about(&event, "s1", transport);
            assert_eq!(end(&event, "client"), (stage.address(from, family), port), "{what}");
            assert_eq!(end(&event, "frontend"), frontend, "{what}");
            assert_eq!(end(&event, "backend"), backend, "{what}");
            let by_packet = from == "client" || pods.asks_by_packet(from);
            let at = match (from, by_packet, connected || transport == Transport::Tcp) {
                ("client", ..) => "ingress",
                (_, true, _) => "pod_ingress",
                (_, false, true) => "connect",
                (_, false, false) => "sendmsg",
            };
            assert_eq!(event["at"], at, "{what}");
            assert_eq!(event["device"].is_string(), by_packet, "{what}");
        }
    }
    // A socket that isn't bound: the kernel chooses its port behind the hook.
    stage.answer("pod-a2", &Request::tcp(service.cluster_ip().of(Family::V6), PORT));
    let event = monitor.next();
    assert_eq!(event["client_port"].is_null(), pods == Pods::BySocket, "{event}");
    let (rest, errors) = monitor.stop();
    assert_eq!((rest.len(), errors.as_str()), (0, ""), "{rest:?}");
}

fn what_is_not_served_is_shown_with_its_reason(pods: Pods) {
    let ranges = ["192.0.2.128/31", "2001:db8:ffff::/64"].map(str::to_owned);
    let services = [
        Service { source_ranges: ranges.into(), ..Service::new(1, &["pod-a1"]) },
        Service { internal_local: true, ..Service::node_port(2, &["pod-b1"]) },
        Service::node_port(3, &[]),
    ];
    let stage = Stage::serving(pods, &Options::default(), &services);
    let mut monitor = Monitor::start(&stage, &["--drops", "--refusals"]);
    let mut client_ports = 40_000..;
    for (family, transport) in each() {
        let balancer = LOAD_BALANCER.of(family);
        let [_, local, empty] = [0, 1, 2].map(|at: usize| services[at].cluster_ip().of(family));
        for (from, to, port, kind, reason, service) in [
            ("client", balancer, PORT, "drop", "source_range", Some("s1")),
            ("pod-a2", balancer, PORT, "drop", "source_range", Some("s1")),
            ("pod-a2", local, PORT, "drop", "no_local_endpoint", Some("s2")),
            ("client", empty, PORT, "refusal", "no_endpoints", Some("s3")),
            ("pod-a2", empty, PORT, "refusal", "no_endpoints", Some("s3")),
            ("pod-a2", empty, 81, "refusal", "unknown_port", None),
        ] {
            let client_port = client_ports.next().unwrap();
            let request = Request::new(transport, to, port).connected().from_port(client_port);
            stage.failure(from, &request.patience(SILENCE));
            let event = monitor.next_of(client_port);
            let what = format!("{from} {family} {transport} {reason}: {event}");
            assert_eq!([&event["event"], &event["reason"]], [kind, reason], "{what}");
            assert_eq!(end(&event, "client").0, stage.address(from, family), "{what}");
            assert_eq!(end(&event, "frontend"), (to, port), "{what}");
            assert!(event["backend"].is_null(), "{what}");
            match service {
                Some(service) => assert_about(&event, service, transport),
                None => assert!(event["name"].is_null(), "{what}"),
            }
        }
    }
}

#[test]
fn filters_leave_only_what_was_asked_for() {
    let services = [Service::new(1, &["pod-a1"]), Service::node_port(2, &["pod-a1"])];
    let stage = Stage::up(&Options::default(), &services);
    let [v4, v6] = Family::BOTH.map(|family| services[0].cluster_ip().of(family).to_string());
    let pod = stage.address("pod-a2", Family::V4).to_string();
    // Two Services × two clients × two families × two protocols.
    for (arguments, expected) in [
        (&[][..], 16),
        (&["--connections"], 16),
        (&["--drops", "--refusals"], 0),
        (&["--service", "s1"], 8),
        (&["--service", "default/s2"], 8),
        (&["--service", "other/s2"], 0),
        (&["--namespace", "default"], 16),
        (&["-n", "kube-system"], 0),
        (&["--address", &v4], 4),
        (&["--address", &v6, "--protocol", "udp"], 2),
        (&["--address", &pod], 4),
        (&["--address", "192.0.2.77"], 0),
        (&["--port", "8080"], 16),
        (&["--port", "81"], 0),
        (&["--protocol", "tcp", "--service", "s1", "--port", "80"], 4),
        (&["--protocol", "sctp"], 0),
    ] {
        let monitor = Monitor::start(&stage, arguments);
        for service in &services {
            for from in ["pod-a2", "node-a"] {
                for (family, transport) in each() {
                    let to = service.cluster_ip().of(family);
                    stage.answer(from, &Request::new(transport, to, PORT));
                }
            }
        }
        let (events, errors) = monitor.stop();
        assert_eq!((events.len(), errors.as_str()), (expected, ""), "{arguments:?}: {events:#?}");
    }
}

#[test]
fn a_service_that_comes_while_somebody_watches_is_followed() {
    let first = Service::new(1, &["pod-a1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&first));
    let mut monitor = Monitor::start(&stage, &["--service", "s2"]);
    let second = Service::node_port(2, &["pod-a1"]);
    stage.publish(&[first.clone(), second.clone()]);
    let before = until(&stage);
    // Its list of Services is renewed with the time until which it watches, and before that.
    eventually("it looks again", || until(&stage) > before);
    for service in [&first, &second] {
        stage.answer("pod-a2", &Request::tcp(service.cluster_ip().of(Family::V4), PORT));
    }
    assert_about(&monitor.next(), "s2", Transport::Tcp);
    assert_eq!(monitor.stop().0.len(), 0);
}

#[test]
fn more_than_the_rate_is_counted_and_said() {
    let service = Service::new(1, &["pod-a1"]);
    let stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let monitor = Monitor::start(&stage, &["--rate", "1"]);
    let to = service.cluster_ip().of(Family::V4);
    let many = Request::udp(to, PORT).times(200);
    let outcomes = stage.lab().peer("pod-a2").unwrap().request(&many).unwrap();
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let (events, errors) = monitor.stop();
    let hidden = errors.lines().map(|line| {
        assert!(line.contains("events were not shown: --rate 1 lets so many"), "{line}");
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    });
    let hidden: usize = hidden.sum();
    assert!(!events.is_empty() && hidden > 0, "{} {hidden}", events.len());
    assert_eq!(events.len() + hidden, 200, "{errors}");
}

#[test]
fn one_watches_at_a_time_and_nothing_is_left_behind_however_it_ends() {
    let service = Service::new(1, &["pod-a1"]);
    let mut stage = Stage::up(&Options::default(), std::slice::from_ref(&service));
    let to = service.cluster_ip().of(Family::V6);
    let ask = |stage: &Stage| stage.answer("pod-a2", &Request::tcp(to, PORT));
    let first = Monitor::start(&stage, &[]);
    let second = stage.agent_output("node-a", &["monitor", "--count", "1"]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("another `lb-agent monitor` watches this node"), "{said}");
    let before = paces(&stage);
    ask(&stage);
    assert_ne!(paces(&stage), before, "an event is counted while somebody watches");
    assert_eq!(first.stop().0.len(), 1);

    let is_off = |stage: &Stage, how: &str| {
        assert_eq!(kinds(stage), 0, "{how}");
        let before = paces(stage);
        ask(stage);
        assert_eq!(paces(stage), before, "{how}");
    };
    is_off(&stage, "SIGINT");
    let terminated = Monitor::start(&stage, &[]);
    terminated.signal(Signal::SIGTERM);
    terminated.wait();
    is_off(&stage, "SIGTERM");
    let mut unread = Monitor::start(&stage, &[]);
    drop(unread.lines.take());
    eventually("nobody reads", || kinds(&stage) == 0);
    assert!(unread.child.wait().unwrap().success());
    is_off(&stage, "its reader");

    // The rest without an agent.
    stage.kill_agent("node-a");
    let counted = Monitor::start(&stage, &["--count", "2"]);
    ask(&stage);
    ask(&stage);
    assert_eq!(counted.wait().0.len(), 2);
    is_off(&stage, "--count");
    let timed = stage.agent_says("node-a", &["monitor", "--timeout", "100ms"]);
    assert!(timed.starts_with("TIME "), "{timed}");
    is_off(&stage, "--timeout");

    // SIGKILL: its filter stays, and expires.
    drop(Monitor::start(&stage, &[]));
    assert_ne!(kinds(&stage), 0);
    std::thread::sleep(EXPIRED);
    let before = paces(&stage);
    ask(&stage);
    assert_eq!(paces(&stage), before, "nobody watches");
    let mut next = Monitor::start(&stage, &[]);
    ask(&stage);
    assert_about(&next.next(), "s1", Transport::Tcp);
    assert_eq!(next.stop().0.len(), 0);
}

#[test]
fn a_monitor_ends_with_the_datapath_that_it_watches() {
    let mut stage = Stage::up(&Options::default(), &[Service::new(1, &["pod-a1"])]);
    let mut monitor = Monitor::start(&stage, &[]);
    stage.stop_agent("node-a");
    stage.agent_says("node-a", &["cleanup"]);
    assert_eq!(monitor.child.wait().unwrap().code(), Some(1));
    let mut errors = String::new();
    monitor.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(errors.contains("no datapath here"), "{errors}");
}
