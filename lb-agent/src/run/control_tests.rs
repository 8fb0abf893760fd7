//! The loop against a datapath of plain values.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::control::{Control, Inputs};
use super::datapath::{ApplyReport, Datapath, Unfit};
use super::notices::{About, Notice, Notices};
use super::reports::Reports;
use crate::cluster::name::Name;
use crate::cluster::snapshot::{
    Change, Endpoint, EndpointPort, IpFamily, Node, ObjectName, Protocol, Service, ServicePort,
    Slice, TrafficPolicy,
};
use crate::config::NodePortAddresses;
use crate::flows::Bell;
use crate::node::classify::Selection;
use crate::node::facts::{ClientAddresses, NodeFacts};
use crate::node::observe::{Address, Link, Observed, Route};
use crate::node::pods::{PodNamespace, PodNamespaces};
use crate::plan::desired::{Delta, Desired, ServicePortKey};
use crate::serve::health::{Health, Probe};
use crate::serve::metrics::{MapFill, Metrics};
use crate::serve::service_health::ServiceHealth;

/// What the datapath was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Node { devices: usize },
    Whole { ports: usize },
    Delta { ports: usize },
}

#[derive(Debug, thiserror::Error)]
#[error("broken on purpose")]
struct Broken;

/// Records calls; what it answers can be changed from outside.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<FakeState>>);

#[derive(Default)]
struct FakeState {
    calls: Vec<Call>,
    held: Desired,
    failures: usize,
    slow: Duration,
    unfit: Vec<Unfit>,
    udp_endpoints_left: bool,
    tcp_silence_ended: bool,
    udp_frontends_given: bool,
    clients: BTreeMap<u64, ClientAddresses>,
}

impl Fake {
    fn calls(&self) -> Vec<Call> {
        self.0.lock().unwrap().calls.clone()
    }

    fn record(&self, call: Call) -> Result<ApplyReport, Broken> {
        let mut state = self.0.lock().unwrap();
        if let Some(left) = state.failures.checked_sub(1) {
            state.failures = left;
            return Err(Broken);
        }
        std::thread::sleep(state.slow);
        state.calls.push(call);
        let FakeState { udp_endpoints_left, tcp_silence_ended, udp_frontends_given, .. } = *state;
        let unfit = state.unfit.clone();
        Ok(ApplyReport { unfit, udp_endpoints_left, tcp_silence_ended, udp_frontends_given })
    }
}

impl Datapath for Fake {
    type Error = Broken;

    fn set_node(&mut self, facts: &NodeFacts) -> Result<(), Broken> {
        self.record(Call::Node { devices: facts.devices.len() }).map(drop)
    }

    fn set_clients(&mut self, clients: &BTreeMap<u64, ClientAddresses>) -> Result<(), Broken> {
        self.0.lock().unwrap().clients.clone_from(clients);
        Ok(())
    }

    fn begin_from(&mut self, desired: &Desired) -> Result<ApplyReport, Broken> {
        let report = self.record(Call::Whole { ports: desired.ports.len() })?;
        self.0.lock().unwrap().held = desired.clone();
        Ok(report)
    }

    fn apply(&mut self, delta: &Delta) -> Result<ApplyReport, Broken> {
        let report = self.record(Call::Delta { ports: delta.ports.len() })?;
        self.0.lock().unwrap().held.apply(delta.clone());
        Ok(report)
    }

    fn maintain(&mut self) -> Result<ApplyReport, Broken> {
        Ok(ApplyReport { unfit: self.0.lock().unwrap().unfit.clone(), ..ApplyReport::default() })
    }

    fn fill(&self) -> Vec<MapFill> {
        vec![MapFill { map: "services", used: 1, capacity: 2 }]
    }
}

/// A running loop and the ends of everything it is connected to.
struct Bench {
    fake: Fake,
    changes: mpsc::Sender<Vec<Change>>,
    observed: watch::Sender<Observed>,
    pods: Option<watch::Sender<PodNamespaces>>,
    metrics: Metrics,
    health: Arc<Health>,
    service_health: Arc<ServiceHealth>,
    notices: mpsc::Receiver<Notice>,
    rings: std::sync::mpsc::Receiver<()>,
    stale_flows: Arc<Notify>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<Fake, super::control::SourceEnded>>,
}

impl Bench {
    fn start(fake: Fake) -> Self {
        let (changes, changes_in) = mpsc::channel(1024);
        let (observed, observed_in) = watch::channel(network("192.168.1.10"));
        let (pods, pods_in) = watch::channel(pods(&[1]));
        let (notify, notices) = mpsc::channel(8);
        let (stop, stopped) = oneshot::channel();
        let metrics = Metrics::new(Vec::new());
        let health = Arc::new(Health::new(false));
        let service_health = Arc::new(ServiceHealth::new(NodePortAddresses::All));
        let notify = Notices::new(Some(notify));
        let expects_node = Some("node-a".into());
        let told = service_health.clone();
        let (sockets, rings) = Bell::new();
        let stale_flows = Arc::<Notify>::default();
        let reports = Reports::new(metrics.clone(), health.clone(), told, notify, expects_node)
            .with_sockets(sockets)
            .with_flows(stale_flows.clone());
        let control = Control::new("node-a", Selection::default(), fake.clone(), reports);
        let inputs = Inputs { changes: changes_in, observed: observed_in, pods: pods_in };
        let task = tokio::spawn(control.run(inputs, async { drop(stopped.await) }));
        Self {
            fake,
            changes,
            observed,
            pods: Some(pods),
            metrics,
            health,
            service_health,
            notices,
            rings,
            stale_flows,
            stop,
            task,
        }
    }

    /// One whose datapath holds three Services.
    async fn synced(fake: Fake) -> Self {
        let bench = Self::start(fake);
        bench.send(vec![Change::AllServices((1..=3).map(service).collect())]).await;
        bench.send(vec![Change::AllSlices((1..=3).map(|n| slice(n, 1)).collect())]).await;
        bench.until(|calls| calls.contains(&Call::Whole { ports: 3 })).await;
        bench
    }

    async fn send(&self, changes: Vec<Change>) {
        self.changes.send(changes).await.unwrap();
    }

    async fn until(&self, holds: impl Fn(&[Call]) -> bool) {
        for _ in 0..2_000 {
            if holds(&self.fake.calls()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        unreachable!("not in time: {:?}", self.fake.calls());
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    fn metric(&self, line: &str) -> bool {
        self.metrics.encode().unwrap().lines().any(|other| other == line)
    }
}

fn network(address: &str) -> Observed {
    let mut observed = Observed::default();
    let link = Link {
        peer_elsewhere: false,
        index: 2,
        name: "eth0".into(),
        kind: String::new(),
        mtu: 1500,
        ethernet: true,
        up: true,
        loopback: false,
        master: None,
    };
    observed.links.insert(2, link);
    observed.addresses.push(Address {
        link: 2,
        address: address.parse().unwrap(),
        prefix_length: 24,
        global: true,
        secondary: false,
        usable_as_source: true,
    });
    observed.routes.insert(Route {
        is_default: true,
        metric: 0,
        family: IpFamily::V4,
        device: 2,
        preferred_source: None,
    });
    observed
}

fn service(number: u8) -> Service {
    Service {
        name: ObjectName::new("default", format!("web-{number}")),
        created: 0,
        cluster_ips: vec![[10, 96, 0, number].into()],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort {
            name: Name::default(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_timeout: None,
        health_check_node_port: None,
    }
}

fn slice(number: u8, endpoint: u8) -> Slice {
    Slice {
        name: ObjectName::new("default", format!("web-{number}-abcde")),
        service: ObjectName::new("default", format!("web-{number}")),
        family: IpFamily::V4,
        ports: vec![EndpointPort { name: Name::default(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![Endpoint {
            address: [10, 244, number, endpoint].into(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone_hints: Default::default(),
            node_hints: Default::default(),
        }],
        trigger_time: Some(std::time::SystemTime::now()),
    }
}

#[tokio::test]
async fn nothing_is_written_before_both_lists_have_synced() {
    let bench = Bench::start(Fake::default());
    bench.send(vec![Change::Slice(slice(1, 1)), Change::Node(Some(Node::default()))]).await;
    bench.send(vec![Change::AllServices(vec![service(1)])]).await;
    bench.observed.send_replace(network("192.168.1.11"));
    bench.settle().await;
    assert_eq!(bench.fake.calls(), []);
    assert_eq!(bench.health.report(Probe::Healthz).status.as_u16(), 503);

    bench.send(vec![Change::AllSlices(vec![slice(1, 1)])]).await;
    bench.until(|calls| !calls.is_empty()).await;
    bench.settle().await;
    assert_eq!(bench.fake.calls(), [Call::Node { devices: 1 }, Call::Whole { ports: 1 }]);
    assert_eq!(bench.health.report(Probe::Healthz).status.as_u16(), 200);
}

#[tokio::test]
async fn a_single_change_is_written_at_once_and_its_latency_is_measured() {
    let bench = Bench::synced(Fake::default()).await;
    bench.send(vec![Change::Slice(slice(1, 2))]).await;
    bench.until(|calls| calls.contains(&Call::Delta { ports: 1 })).await;
    bench.settle().await;
    assert!(bench.metric("lb_agent_programming_duration_seconds_count 1"));
    assert!(
        bench.metric("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1")
    );
    assert!(bench.metric("kubeproxy_sync_proxy_rules_endpoint_changes_pending 0"));
}

#[tokio::test]
async fn a_burst_is_written_in_few_batches_and_nothing_of_it_is_lost() {
    let bench = Bench::synced(Fake::default()).await;
    bench.fake.0.lock().unwrap().slow = Duration::from_millis(5);
    for endpoint in 2..=201 {
        bench.send(vec![Change::Slice(slice(endpoint % 3 + 1, endpoint))]).await;
        tokio::task::yield_now().await;
    }
    let last = |number: u8| -> std::net::IpAddr {
        let endpoint = (2..=201).rev().find(|endpoint| endpoint % 3 + 1 == number).unwrap();
        [10, 244, number, endpoint].into()
    };
    let holds_all = |fake: &Fake| {
        let held = &fake.0.lock().unwrap().held;
        let backends = held.ports.values().map(|plan| plan.endpoints.cluster()[0].address.ip());
        backends.eq((1..=3).map(last))
    };
    for _ in 0..1_000 {
        if holds_all(&bench.fake) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(holds_all(&bench.fake));
    let writes = bench.fake.calls().len() - 2;
    assert!(writes <= 20, "{writes} writes for 200 changes");
}

#[tokio::test]
async fn a_change_that_makes_no_difference_is_not_written() {
    let bench = Bench::synced(Fake::default()).await;
    let before = bench.fake.calls();
    bench.send(vec![Change::Service(service(2))]).await;
    bench.observed.send_replace(network("192.168.1.10"));
    bench.settle().await;
    assert_eq!(bench.fake.calls(), before);
    assert!(bench.metric("kubeproxy_sync_proxy_rules_service_changes_pending 0"));
}

#[tokio::test]
async fn new_node_addresses_reach_the_datapath_without_any_change_of_services() {
    let bench = Bench::synced(Fake::default()).await;
    bench.observed.send_replace(network("192.168.1.77"));
    bench.until(|calls| calls.last() == Some(&Call::Node { devices: 1 })).await;
    bench.observed.send_replace(Observed::default());
    bench.until(|calls| calls.last() == Some(&Call::Node { devices: 0 })).await;
}

#[tokio::test]
async fn after_an_error_everything_is_written_again() {
    let bench = Bench::synced(Fake::default()).await;
    bench.fake.0.lock().unwrap().failures = 2;
    bench.send(vec![Change::ServiceGone(service(3).name)]).await;
    bench.until(|calls| calls.last() == Some(&Call::Whole { ports: 2 })).await;
    assert!(bench.metric("lb_agent_apply_errors_total 2"));
    bench.send(vec![Change::Slice(slice(1, 9))]).await;
    bench.until(|calls| calls.last() == Some(&Call::Delta { ports: 1 })).await;
    assert_eq!(bench.health.report(Probe::Livez).status.as_u16(), 200);
}

#[tokio::test]
async fn a_service_that_does_not_fit_is_named_once_by_an_event_and_counted() {
    let mut bench = Bench::synced(Fake::default()).await;
    let key = ServicePortKey {
        service: service(2).name,
        port_name: "http".into(),
        protocol: Protocol::Tcp,
        family: IpFamily::V4,
    };
    let reason = "the map slots is full; restart with a greater --max-slots";
    bench.fake.0.lock().unwrap().unfit = vec![Unfit { key, reason: reason.into() }];
    for endpoint in 2..5 {
        bench.send(vec![Change::Slice(slice(1, endpoint))]).await;
        bench.settle().await;
    }
    assert_eq!(bench.notices.try_recv().unwrap(), Notice::started());
    let notice = bench.notices.try_recv().unwrap();
    assert_eq!(notice.about, About::Service(service(2).name));
    let note = notice.note.unwrap();
    assert!(note.contains("default/web-2:http") && note.contains(reason), "{note}");
    assert!(bench.notices.try_recv().is_err(), "said once");
    assert!(bench.metric("lb_agent_unfit_service_ports 1"));

    bench.fake.0.lock().unwrap().unfit.clear();
    bench.send(vec![Change::Slice(slice(1, 9))]).await;
    bench.settle().await;
    assert!(bench.metric("lb_agent_unfit_service_ports 0"));
}

#[tokio::test]
async fn load_balancers_hear_of_endpoints_when_the_datapath_serves_them() {
    let bench = Bench::synced(Fake::default()).await;
    let told = || bench.service_health.local_ready(&service(1).name, IpFamily::V4);
    let until = async |count: usize| {
        for _ in 0..2_000 {
            if told() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        unreachable!("{} and not {count}", told());
    };
    let here = |addresses: &[u8]| {
        let mut slice = slice(1, 1);
        let one = Endpoint { node: Some("node-a".into()), ..slice.endpoints[0].clone() };
        let endpoint = |last: &u8| Endpoint { address: [10, 244, 1, *last].into(), ..one.clone() };
        slice.endpoints = addresses.iter().map(endpoint).collect();
        vec![Change::Slice(slice)]
    };
    bench.send(here(&[1])).await;
    let asked = Service { health_check_node_port: Some(32000), ..service(1) };
    bench.send(vec![Change::Service(asked)]).await;
    until(1).await;
    bench.fake.0.lock().unwrap().failures = usize::MAX;
    bench.send(here(&[1, 2])).await;
    bench.settle().await;
    assert_eq!(told(), 1, "nothing of it is written yet");
    bench.fake.0.lock().unwrap().failures = 0;
    until(2).await;
    bench.send(here(&[])).await;
    until(0).await;
}

/// Pods with these last bytes of their addresses, in namespaces of the same numbers.
fn pods(numbers: &[u8]) -> PodNamespaces {
    let pod = |number: &u8| {
        let v4 = Some([10, 244, 1, *number].into());
        (u64::from(*number), PodNamespace { path: "/run/netns/pod".into(), v4, v6: None })
    };
    numbers.iter().map(pod).collect()
}

#[tokio::test]
async fn the_datapath_hears_of_pods_that_come_and_go_and_works_on_when_nobody_tells_any_more() {
    let mut bench = Bench::synced(Fake::default()).await;
    let known =
        |fake: &Fake| -> Vec<u64> { fake.0.lock().unwrap().clients.keys().copied().collect() };
    assert_eq!(known(&bench.fake), [1], "those that were there at the start");
    let sender = bench.pods.take().unwrap();
    sender.send(pods(&[1, 2])).unwrap();
    bench.settle().await;
    assert_eq!(known(&bench.fake), [1, 2]);
    assert_eq!(
        bench.fake.0.lock().unwrap().clients[&2],
        ClientAddresses { address4: Some([10, 244, 1, 2].into()), address6: None }
    );
    sender.send(pods(&[2])).unwrap();
    drop(sender);
    bench.settle().await;
    assert_eq!(known(&bench.fake), [2]);
    bench.send(vec![Change::Slice(slice(1, 7))]).await;
    bench.settle().await;
    assert_eq!(known(&bench.fake), [2]);
    assert!(matches!(bench.fake.calls().last(), Some(Call::Delta { .. })));
}

#[tokio::test]
async fn endpoints_that_left_are_told_to_whoever_ends_sockets_and_given_frontends_to_all() {
    let bench = Bench::synced(Fake::default()).await;
    for (endpoint, left, given, silence) in [
        (2, false, false, false),
        (3, true, false, false),
        (4, false, false, false),
        (5, false, true, false),
        (6, false, false, true),
        (7, false, false, false),
    ] {
        {
            let mut state = bench.fake.0.lock().unwrap();
            (state.udp_endpoints_left, state.udp_frontends_given) = (left, given);
            state.tcp_silence_ended = silence;
        }
        bench.send(vec![Change::Slice(slice(1, endpoint))]).await;
        bench.settle().await;
        assert_eq!(bench.rings.try_recv().is_ok(), left || given || silence, "{endpoint}");
        let told = tokio::time::timeout(Duration::ZERO, bench.stale_flows.notified()).await;
        assert_eq!(told.is_ok(), given, "{endpoint}");
    }
}

#[tokio::test]
async fn a_node_that_is_going_away_fails_healthz_and_not_livez() {
    let bench = Bench::synced(Fake::default()).await;
    let status = |probe| bench.health.report(probe).status.as_u16();
    bench.send(vec![Change::Node(Some(Node { to_be_deleted: true, ..Node::default() }))]).await;
    bench.settle().await;
    assert_eq!((status(Probe::Healthz), status(Probe::Livez)), (503, 200));
    bench.send(vec![Change::Node(Some(Node::default()))]).await;
    bench.settle().await;
    assert_eq!(status(Probe::Healthz), 200);
    bench.send(vec![Change::Node(None)]).await;
    bench.settle().await;
    assert_eq!(status(Probe::Healthz), 503);
}

#[tokio::test]
async fn stopping_leaves_the_datapath_as_it_is() {
    let bench = Bench::synced(Fake::default()).await;
    let before = bench.fake.calls();
    bench.stop.send(()).unwrap();
    let fake = bench.task.await.unwrap().unwrap();
    assert_eq!(fake.calls(), before);
    assert_eq!(fake.0.lock().unwrap().held.ports.len(), 3);
}

#[tokio::test]
async fn the_end_of_a_source_is_an_error_and_not_silence() {
    let bench = Bench::synced(Fake::default()).await;
    drop(bench.changes);
    let error = bench.task.await.unwrap().err().expect("an error").to_string();
    assert!(error.contains("source of Services"), "{error}");
}

/// Collects the log lines of the test's own thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture(&self) -> tracing::subscriber::DefaultGuard {
        // Without any global subscriber, a line that another test's thread reaches first is switched
        // off for all threads: tracing asks that thread alone and remembers the answer.
        let _is_first = tracing::subscriber::set_global_default(tracing_subscriber::registry());
        let log = self.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn count(&self, level: &str, part: &str) -> usize {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(level) && line.contains(part)).count()
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0.lock().unwrap()))
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_problem_is_logged_once_when_it_appears_and_once_when_it_is_gone() {
    let log = Log::default();
    let _guard = log.capture();
    let bench = Bench::synced(Fake::default()).await;
    let claiming = |number, addresses: &[&str]| {
        let external_ips = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Change::Service(Service { external_ips, ..service(number) })
    };
    for change in [
        claiming(1, &["203.0.113.1"]),
        claiming(2, &["203.0.113.1"]),
        claiming(3, &["203.0.113.3"]),
        claiming(3, &["203.0.113.4"]),
    ] {
        bench.send(vec![change]).await;
        bench.settle().await;
    }
    assert_eq!(log.count("WARN", "203.0.113.1"), 1, "{log:?}");
    assert!(bench.metric("lb_agent_problems{kind=\"dispute\"} 1"));

    bench.send(vec![claiming(2, &[])]).await;
    bench.settle().await;
    assert_eq!(log.count("INFO", "settled"), 1, "{log:?}");
    assert!(bench.metric("lb_agent_problems{kind=\"dispute\"} 0"));

    bench.fake.0.lock().unwrap().failures = 3;
    bench.send(vec![Change::ServiceGone(service(3).name)]).await;
    bench.until(|calls| calls.last() == Some(&Call::Whole { ports: 2 })).await;
    bench.settle().await;
    assert_eq!(log.count("WARN", "broken on purpose"), 1, "{log:?}");
    assert_eq!(log.count("INFO", "could be written again"), 1, "{log:?}");
}

#[tokio::test]
async fn a_node_that_the_cluster_does_not_know_is_said_once() {
    let log = Log::default();
    let _guard = log.capture();
    let bench = Bench::synced(Fake::default()).await;
    for _ in 0..2 {
        bench.send(vec![Change::Node(None)]).await;
        bench.settle().await;
    }
    assert_eq!(log.count("WARN", "the cluster has no Node node-a"), 1, "{log:?}");
}
