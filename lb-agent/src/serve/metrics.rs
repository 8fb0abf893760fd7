//! Every metric, and how it is recorded.
//!
//! Metrics that kube-proxy has, too, carry its names and labels (`pkg/proxy/metrics/metrics.go`),
//! so that dashboards, alerts and ClusterLoader2 go on working; ours begin with `lb_agent_`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use axum::http::StatusCode;
use lb_common::abi;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::health::Probe;
use super::status::Attachment;
use crate::cluster::snapshot::IpFamily;
use crate::node::facts::Role;

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// Name of the map; in metrics it is in lower case.
    pub map: &'static str,
    /// Entries in use.
    pub used: u64,
    /// Entries it can hold.
    pub capacity: u64,
}

/// What one look through the flows of a family found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowUse {
    /// Flows to endpoints on this node.
    pub local: u64,
    /// Flows that are forwarded to other nodes.
    pub remote: u64,
    /// Source ports that the endpoint with the most such flows takes, under one address of ours.
    pub snat_ports: u64,
}

/// How much of the datapath a write was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it: the first write, and the first after an error.
    Full,
    /// What changed.
    Partial,
}

/// How many objects there are, for the gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Services in the datapath.
    pub services: usize,
    /// EndpointSlices known.
    pub slices: usize,
    /// Service ports per family.
    pub ports: usize,
    /// Frontend addresses.
    pub frontends: usize,
    /// Endpoints of all Service ports; one that serves two ports counts twice.
    pub endpoints: usize,
    /// Service ports whose policy is Local and that have endpoints, but none here:
    /// internal and external traffic, for IPv4 and IPv6.
    pub without_local: [[usize; 2]; 2],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabel {
    ip_family: FamilyName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FamilyName(IpFamily);

impl EncodeLabelValue for FamilyName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self.0 {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabel {
    ip_family: FamilyName,
    traffic_policy: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabel {
    map: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabel {
    device: String,
    tc: String,
    xdp: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabel {
    ip_family: FamilyName,
    path: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;
type HistogramFamily = Family<FamilyLabel, Histogram, fn() -> Histogram>;

/// Handles to all metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    kube_proxy: KubeProxy,
    ours: Ours,
}

/// Under kube-proxy's names.
#[derive(Clone, Debug)]
struct KubeProxy {
    network_programming: HistogramFamily,
    sync_duration: HistogramFamily,
    full_sync_duration: HistogramFamily,
    partial_sync_duration: HistogramFamily,
    last_sync: Family<FamilyLabel, Seconds>,
    last_queued: Family<FamilyLabel, Seconds>,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    no_local_endpoints: Family<PolicyLabel, Gauge>,
    stale_deleted: Family<FamilyLabel, Counter>,
    stale_duration: HistogramFamily,
    healthz: Family<CodeLabel, Counter>,
    livez: Family<CodeLabel, Counter>,
}

/// Under our own names.
#[derive(Clone, Debug)]
struct Ours {
    programming: Histogram,
    objects: Family<KindLabel, Gauge>,
    map_used: Family<MapLabel, Gauge>,
    map_max: Family<MapLabel, Gauge>,
    flows: Family<PathLabel, Gauge>,
    snat_ports_in_use: Family<FamilyLabel, Gauge>,
    snat_ports: Gauge,
    devices: Family<DeviceLabel, Gauge>,
    pod_devices: Family<StateLabel, Gauge>,
    apply_errors: Counter,
    ended_sockets: Counter,
    unfit: Gauge,
    problems: Family<KindLabel, Gauge>,
}

impl Metrics {
    /// All metrics, at zero, and those of `collectors`, which are asked at each scrape.
    pub fn new(collectors: Vec<Box<dyn Collector>>) -> Self {
        let mut registry = Registry::default();
        let kube_proxy = KubeProxy::register(&mut registry);
        let ours = Ours::register(&mut registry);
        for collector in collectors {
            registry.register_collector(collector);
        }
        Self { registry: Arc::new(registry), kube_proxy, ours }
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A probe was answered.
    pub fn probed(&self, probe: Probe, status: StatusCode) {
        let family = match probe {
            Probe::Healthz => &self.kube_proxy.healthz,
            Probe::Livez => &self.kube_proxy.livez,
        };
        family.get_or_create(&CodeLabel { code: status.as_u16() }).inc();
    }

    /// Changes came in that wait for the datapath.
    pub fn queued(&self, service_changes: u64, endpoint_changes: u64) {
        let metrics = &self.kube_proxy;
        metrics.service_changes.inc_by(service_changes);
        metrics.service_changes_pending.inc_by(service_changes.cast_signed());
        metrics.endpoint_changes.inc_by(endpoint_changes);
        metrics.endpoint_changes_pending.inc_by(endpoint_changes.cast_signed());
        for label in family_labels() {
            metrics.last_queued.get_or_create(&label).set(seconds_since_epoch());
        }
    }

    /// The datapath holds everything that came.
    pub fn up_to_date(&self) {
        self.kube_proxy.service_changes_pending.set(0);
        self.kube_proxy.endpoint_changes_pending.set(0);
    }

    /// The datapath was written; it took `took`.
    pub fn applied(&self, scope: Scope, took: Duration) {
        let metrics = &self.kube_proxy;
        let of_scope = match scope {
            Scope::Full => &metrics.full_sync_duration,
            Scope::Partial => &metrics.partial_sync_duration,
        };
        for label in family_labels() {
            metrics.sync_duration.get_or_create(&label).observe(took.as_secs_f64());
            of_scope.get_or_create(&label).observe(took.as_secs_f64());
            metrics.last_sync.get_or_create(&label).set(seconds_since_epoch());
        }
    }

    /// A change is in the kernel's tables; `waited` since it was decoded.
    pub fn programmed(&self, waited: Duration) {
        self.ours.programming.observe(waited.as_secs_f64());
    }

    /// A changed slice is in the kernel's tables; `waited` since its trigger time.
    pub fn network_programmed(&self, family: IpFamily, waited: Duration) {
        let label = FamilyLabel { ip_family: FamilyName(family) };
        self.kube_proxy.network_programming.get_or_create(&label).observe(waited.as_secs_f64());
    }

    /// Sets the gauges of objects.
    pub fn set_objects(&self, objects: &Objects) {
        for (kind, count) in [
            ("services", objects.services),
            ("endpoint_slices", objects.slices),
            ("service_ports", objects.ports),
            ("frontends", objects.frontends),
            ("endpoints", objects.endpoints),
        ] {
            self.ours.objects.get_or_create(&KindLabel { kind }).set(gauge(count));
        }
        for (traffic_policy, families) in ["internal", "external"].iter().zip(objects.without_local)
        {
            for (family, count) in [IpFamily::V4, IpFamily::V6].into_iter().zip(families) {
                let label = PolicyLabel { ip_family: FamilyName(family), traffic_policy };
                self.kube_proxy.no_local_endpoints.get_or_create(&label).set(gauge(count));
            }
        }
    }

    /// Sets the gauges of the tables.
    pub fn set_fill(&self, fill: &[MapFill]) {
        for MapFill { map, used, capacity } in fill {
            let label = MapLabel { map: map.to_lowercase() };
            self.ours.map_used.get_or_create(&label).set(used.cast_signed());
            self.ours.map_max.get_or_create(&label).set(capacity.cast_signed());
        }
    }

    /// Sets the gauges of flows.
    pub fn set_flows(&self, families: &[(IpFamily, FlowUse)]) {
        for (family, FlowUse { local, remote, snat_ports }) in families {
            let ip_family = FamilyName(*family);
            for (path, count) in [("local", local), ("remote", remote)] {
                let label = PathLabel { ip_family, path };
                self.ours.flows.get_or_create(&label).set(count.cast_signed());
            }
            let label = FamilyLabel { ip_family };
            self.ours.snat_ports_in_use.get_or_create(&label).set(snat_ports.cast_signed());
        }
    }

    /// This many source ports may be used for SNAT.
    pub fn set_snat_ports(&self, ports: &RangeInclusive<u16>) {
        self.ours.snat_ports.set(i64::from(*ports.end()) - i64::from(*ports.start()) + 1);
    }

    /// These devices, and no others, are attached to or could not be. Those of pods are only counted:
    /// their names come and go with the pods.
    pub fn set_attachments(&self, attachments: &[Attachment]) {
        self.ours.devices.clear();
        let mut pods = [("attached", 0), ("failed", 0)];
        for Attachment { device, role, tc, xdp, .. } in attachments {
            if role == Role::Pod.name() {
                pods[usize::from(tc.is_none())].1 += 1;
                continue;
            }
            let label = DeviceLabel {
                device: device.clone(),
                tc: tc.clone().unwrap_or_else(|| "none".to_owned()),
                xdp: xdp.clone(),
            };
            self.ours.devices.get_or_create(&label).set(i64::from(tc.is_some()));
        }
        for (state, count) in pods {
            self.ours.pod_devices.get_or_create(&StateLabel { state }).set(count);
        }
    }

    /// The datapath couldn't be written.
    pub fn apply_failed(&self) {
        self.ours.apply_errors.inc();
    }

    /// Connected UDP sockets whose endpoint had left were ended; looking for them took `took`.
    pub fn stale_sockets_ended(&self, ended: &BTreeMap<IpFamily, u64>, took: Duration) {
        for label in family_labels() {
            let count = ended.get(&label.ip_family.0).copied().unwrap_or_default();
            self.ours.ended_sockets.inc_by(count);
            self.kube_proxy.stale_deleted.get_or_create(&label).inc_by(count);
            let duration = self.kube_proxy.stale_duration.get_or_create(&label);
            duration.observe(took.as_secs_f64());
        }
    }

    /// This many TCP sockets were ended that waited in silence for what is served now. There is nothing of them
    /// that kube-proxy would have conntrack forget.
    pub fn waiting_sockets_ended(&self, ended: u64) {
        self.ours.ended_sockets.inc_by(ended);
    }

    /// This many Service ports are not in the datapath, or not wholly.
    pub fn set_unfit(&self, count: usize) {
        self.ours.unfit.set(gauge(count));
    }

    /// This many problems of a kind (`object`, `dispute`, `health_check`) are known.
    pub fn set_problems(&self, kind: &'static str, count: usize) {
        self.ours.problems.get_or_create(&KindLabel { kind }).set(gauge(count));
    }
}

impl KubeProxy {
    fn new() -> Self {
        Self {
            network_programming: Family::new_with_constructor(|| {
                Histogram::new(network_programming_buckets())
            }),
            sync_duration: Family::new_with_constructor(sync_histogram),
            full_sync_duration: Family::new_with_constructor(sync_histogram),
            partial_sync_duration: Family::new_with_constructor(sync_histogram),
            last_sync: Family::default(),
            last_queued: Family::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            no_local_endpoints: Family::default(),
            stale_deleted: Family::default(),
            stale_duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 15))
            }),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }

    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::new();
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        registry.register(
            "network_programming_duration_seconds",
            "From the change in the cluster (its last-change-trigger-time) to the datapath",
            metrics.network_programming.clone(),
        );
        registry.register(
            "sync_proxy_rules_duration_seconds",
            "Time that one write of the datapath took",
            metrics.sync_duration.clone(),
        );
        registry.register(
            "sync_full_proxy_rules_duration_seconds",
            "Time that a write of the whole datapath took",
            metrics.full_sync_duration.clone(),
        );
        registry.register(
            "sync_partial_proxy_rules_duration_seconds",
            "Time that a write of what changed took",
            metrics.partial_sync_duration.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the datapath was last written",
            metrics.last_sync.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When the last change came",
            metrics.last_queued.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices",
            metrics.endpoint_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices that the datapath doesn't hold yet",
            metrics.endpoint_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services",
            metrics.service_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of Services that the datapath doesn't hold yet",
            metrics.service_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local traffic policy and no endpoint on this node",
            metrics.no_local_endpoints.clone(),
        );
        registry.register(
            "conntrack_reconciler_deleted_entries",
            "Sockets that were ended: connected UDP sockets whose endpoint left or that nobody leads, and TCP \
             sockets that waited in silence for what is served now",
            metrics.stale_deleted.clone(),
        );
        registry.register(
            "conntrack_reconciler_sync_duration_seconds",
            "Time that one look for such sockets took",
            metrics.stale_duration.clone(),
        );
        registry.register("proxy_healthz", "Answers of /healthz", metrics.healthz.clone());
        registry.register("proxy_livez", "Answers of /livez", metrics.livez.clone());
        metrics
    }
}

impl Ours {
    fn register(registry: &mut Registry) -> Self {
        let ours = Self {
            // 8 µs to 4 s.
            programming: Histogram::new(exponential_buckets(0.000_008, 2.0, 20)),
            objects: Family::default(),
            map_used: Family::default(),
            map_max: Family::default(),
            flows: Family::default(),
            snat_ports_in_use: Family::default(),
            snat_ports: Gauge::default(),
            devices: Family::default(),
            pod_devices: Family::default(),
            apply_errors: Counter::default(),
            ended_sockets: Counter::default(),
            unfit: Gauge::default(),
            problems: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("lb_agent");
        registry.register("build", "Versions of the agent and of its maps", build_info());
        registry.register(
            "programming_duration_seconds",
            "From a decoded change to the kernel's tables",
            ours.programming.clone(),
        );
        registry.register("objects", "Objects by kind", ours.objects.clone());
        registry.register("map_entries", "Entries in use, by map", ours.map_used.clone());
        registry.register("map_max_entries", "Entries that the map can hold", ours.map_max.clone());
        registry.register(
            "flows",
            "Flows from outside that are translated, by the way they take",
            ours.flows.clone(),
        );
        registry.register(
            "snat_ports_in_use",
            "Source ports that the endpoint with the most forwarded flows takes under one node address",
            ours.snat_ports_in_use.clone(),
        );
        registry.register(
            "snat_ports",
            "Source ports that each endpoint may be reached from under one node address",
            ours.snat_ports.clone(),
        );
        registry.register(
            "device_attached",
            "1 where the programs are attached to an external device, 0 where they can't be",
            ours.devices.clone(),
        );
        registry.register(
            "pod_devices",
            "Devices of pods by whether the programs are attached",
            ours.pod_devices.clone(),
        );
        registry.register(
            "apply_errors",
            "Writes of the datapath that failed as a whole and were repeated",
            ours.apply_errors.clone(),
        );
        registry.register(
            "ended_sockets",
            "Sockets that were ended: connected UDP sockets whose endpoint left or that nobody leads, and TCP \
             sockets that waited in silence for what is served now",
            ours.ended_sockets.clone(),
        );
        registry.register(
            "unfit_service_ports",
            "Service ports that are not, or not wholly, in the datapath: a map is full",
            ours.unfit.clone(),
        );
        registry.register(
            "problems",
            "Parts of objects that could not be used, by kind",
            ours.problems.clone(),
        );
        ours
    }
}

fn build_info() -> Info<Vec<(&'static str, String)>> {
    Info::new(vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("map_schema", abi::VERSION.to_string()),
    ])
}

/// kube-proxy's buckets, 1 ms to 16 s, and five below them: our writes rarely take a millisecond.
fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_031_25, 2.0, 20))
}

/// kube-proxy's: 0.25, 0.5, 1 to 59 by 1, 60 to 115 by 5, 120 to 300 by 30.
fn network_programming_buckets() -> impl Iterator<Item = f64> {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(seconds.map(f64::from))
}

fn family_labels() -> [FamilyLabel; 2] {
    [IpFamily::V4, IpFamily::V6].map(|family| FamilyLabel { ip_family: FamilyName(family) })
}

fn seconds_since_epoch() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().map(|age| age.as_secs_f64()).unwrap_or_default()
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::watch::WatchHealth;
    use crate::serve::collect::{Drops, Healthy, KernelCounters, Watches};
    use crate::serve::health::Health;
    use crate::serve::traffic::ServiceCount;

    #[derive(Debug)]
    struct Fixed;

    impl KernelCounters for Fixed {
        fn drops(&self) -> Vec<(&'static str, u64)> {
            vec![("no_local_endpoint", 7), ("ports_exhausted", 0)]
        }

        fn traffic(&self) -> Option<Vec<ServiceCount>> {
            None
        }
    }

    fn text(record: impl FnOnce(&Metrics)) -> String {
        let watches = Watches(Arc::new(WatchHealth::default()));
        let healthy = Healthy(Arc::new(Health::new(false)));
        let metrics = Metrics::new(vec![
            Box::new(Drops(Arc::new(Fixed))),
            Box::new(watches),
            Box::new(healthy),
        ]);
        record(&metrics);
        metrics.encode().unwrap()
    }

    #[test]
    fn kube_proxys_metrics_keep_their_names() {
        let text = text(|metrics| {
            metrics.queued(2, 3);
            metrics.applied(Scope::Full, Duration::from_millis(30));
            metrics.applied(Scope::Partial, Duration::from_micros(50));
            metrics.up_to_date();
            metrics.network_programmed(IpFamily::V6, Duration::from_millis(300));
            metrics.probed(Probe::Healthz, StatusCode::OK);
            let ended = BTreeMap::from([(IpFamily::V6, 4)]);
            metrics.stale_sockets_ended(&ended, Duration::from_millis(2));
            metrics.waiting_sockets_ended(2);
            metrics.set_objects(&Objects { without_local: [[1, 0], [0, 2]], ..Objects::default() });
        });
        for line in [
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{le=\"0.032\",ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_bucket{le=\"0.001\",ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 2",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 0",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 4",
            "lb_agent_ended_sockets_total 6",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
        assert!(
            text.contains("kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"}")
        );
    }

    #[test]
    fn our_metrics_tell_fill_errors_problems_and_drops() {
        let text = text(|metrics| {
            metrics.programmed(Duration::from_micros(20));
            metrics.set_fill(&[MapFill { map: "services", used: 3, capacity: 8 }]);
            let flows = FlowUse { local: 4, remote: 6, snat_ports: 5 };
            metrics.set_flows(&[(IpFamily::V6, flows)]);
            metrics.set_snat_ports(&(61_000..=61_999));
            metrics.set_attachments(&[attachment("old", "external", Some("tcx"))]);
            metrics.set_attachments(&[
                attachment("eth0", "external", Some("tcx")),
                attachment("eth1", "external", None),
                attachment("veth1", "pod", Some("tcx")),
                attachment("veth2", "pod", None),
            ]);
            metrics.apply_failed();
            metrics.set_unfit(1);
            metrics.set_problems("dispute", 2);
            metrics.set_objects(&Objects { services: 5, ..Objects::default() });
        });
        for line in [
            "lb_agent_programming_duration_seconds_bucket{le=\"0.000032\"} 1",
            "lb_agent_map_entries{map=\"services\"} 3",
            "lb_agent_map_max_entries{map=\"services\"} 8",
            "lb_agent_flows{ip_family=\"IPv6\",path=\"remote\"} 6",
            "lb_agent_snat_ports_in_use{ip_family=\"IPv6\"} 5",
            "lb_agent_snat_ports 1000",
            "lb_agent_device_attached{device=\"eth0\",tc=\"tcx\",xdp=\"off\"} 1",
            "lb_agent_device_attached{device=\"eth1\",tc=\"none\",xdp=\"off\"} 0",
            "lb_agent_pod_devices{state=\"attached\"} 1",
            "lb_agent_pod_devices{state=\"failed\"} 1",
            "lb_agent_healthy{probe=\"livez\"} 1",
            "lb_agent_healthy{probe=\"healthz\"} 0",
            "lb_agent_apply_errors_total 1",
            "lb_agent_unfit_service_ports 1",
            "lb_agent_problems{kind=\"dispute\"} 2",
            "lb_agent_watch_connected{resource=\"services\"} 0",
            "lb_agent_watch_errors_total{resource=\"endpointslices\"} 0",
            "lb_agent_watch_last_event_timestamp_seconds{resource=\"nodes\"} 0.0",
            "lb_agent_objects{kind=\"services\"} 5",
            "lb_agent_drops_total{reason=\"no_local_endpoint\"} 7",
            "lb_agent_drops_total{reason=\"ports_exhausted\"} 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
        assert!(!text.contains("\"old\"") && !text.contains("device=\"veth1\""), "{text}");
    }

    fn attachment(device: &str, role: &str, tc: Option<&str>) -> Attachment {
        Attachment {
            device: device.into(),
            index: 1,
            role: role.into(),
            tc: tc.map(str::to_owned),
            xdp: "off".into(),
            xdp_refusal: None,
            error: None,
        }
    }

    #[test]
    fn the_buckets_of_network_programming_are_kube_proxys() {
        let buckets: Vec<_> = network_programming_buckets().collect();
        assert_eq!(buckets.len(), 2 + 59 + 12 + 7);
        assert!(buckets.is_sorted());
        assert_eq!(buckets.last(), Some(&300.0));
    }
}
