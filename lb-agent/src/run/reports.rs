//! Who hears of what the loop does: the log, the metrics, the probes, and the cluster's events.
//!
//! Each problem is said once when it appears and once when it is gone; what is wrong in an object
//! has been logged by its source already and is only counted here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::datapath::Unfit;
use super::notices::{Notice, Notices};
use crate::cluster::snapshot::{Change, IpFamily, Node, Problem};
use crate::flows::Bell;
use crate::node::facts::{Device, NodeFacts};
use crate::plan::desired::{Delta, Desired, ServicePortKey};
use crate::serve::health::Health;
use crate::serve::metrics::{MapFill, Metrics, Objects, Scope};
use crate::serve::service_health::ServiceHealth;
use crate::serve::status::{Attachment, StatusBoard};

/// Everything that is told to others.
#[derive(Debug)]
pub struct Reports {
    metrics: Metrics,
    health: Arc<Health>,
    service_health: Arc<ServiceHealth>,
    notices: Notices,
    /// Before this nothing was our fault: older trigger times are not measured.
    started: SystemTime,
    /// Our name, until its Node is known to be there or not; `None` without an API server.
    expects_node: Option<String>,
    /// To whoever ends connected sockets; `None` before there is one.
    sockets: Option<Bell>,
    /// Has the flow tables looked through.
    flows: Arc<Notify>,
    /// What `/status` says.
    board: Arc<StatusBoard>,
    /// Problems of source objects by object: how many.
    object_problems: BTreeMap<String, usize>,
    disputes: BTreeSet<Problem>,
    unfit: BTreeMap<ServicePortKey, String>,
    devices: BTreeMap<u32, Device>,
    has_node: bool,
    has_failed: bool,
    has_written: bool,
}

impl Reports {
    /// Reports to these. `expects_node` is our name if there should be a Node object of that name.
    pub fn new(
        metrics: Metrics,
        health: Arc<Health>,
        service_health: Arc<ServiceHealth>,
        notices: Notices,
        expects_node: Option<String>,
    ) -> Self {
        Self {
            metrics,
            health,
            service_health,
            notices,
            started: SystemTime::now(),
            expects_node,
            sockets: None,
            flows: Arc::default(),
            board: Arc::default(),
            object_problems: BTreeMap::new(),
            disputes: BTreeSet::new(),
            unfit: BTreeMap::new(),
            devices: BTreeMap::new(),
            has_node: false,
            has_failed: false,
            has_written: false,
        }
    }

    /// These, and to whoever ends sockets whose endpoint left.
    #[must_use]
    pub fn with_sockets(self, sockets: Bell) -> Self {
        Self { sockets: Some(sockets), ..self }
    }

    /// These, and to whoever looks through the flow tables.
    #[must_use]
    pub fn with_flows(self, flows: Arc<Notify>) -> Self {
        Self { flows, ..self }
    }

    /// These, and on this board.
    #[must_use]
    pub fn with_board(self, board: Arc<StatusBoard>) -> Self {
        Self { board, ..self }
    }

    /// Changes came in. Before the lists are complete they can't be written, so nothing waits for
    /// the datapath yet.
    pub fn received(&mut self, changes: &[Change], is_synced: bool) {
        let (mut services, mut slices) = (0, 0);
        for change in changes {
            match change {
                Change::Service(_) | Change::ServiceGone(_) => services += 1,
                Change::Slice(_) | Change::SliceGone(_) => slices += 1,
                Change::AllServices(all) => services += all.len() as u64,
                Change::AllSlices(all) => slices += all.len() as u64,
                Change::Node(Some(_)) => self.expects_node = None,
                Change::Node(None) => self.node_is_missing(),
                Change::Cidr(_) | Change::CidrGone(_) | Change::AllCidrs(_) => {}
                Change::Problems { object, problems } => self.object(object, problems),
            }
        }
        self.metrics.queued(services, slices);
        if is_synced {
            self.health.waiting();
        }
    }

    /// Said once: most likely our name is wrong.
    fn node_is_missing(&mut self) {
        if let Some(name) = self.expects_node.take() {
            warn!(
                "the cluster has no Node {name}: /healthz fails until it has, and if this node goes \
                 by another name there, none of its endpoints is found to be local; give the name \
                 that `kubectl get nodes` shows with --hostname-override"
            );
        }
    }

    fn object(&mut self, object: &str, problems: &[Problem]) {
        if problems.is_empty() {
            self.object_problems.remove(object);
        } else {
            self.object_problems.insert(object.to_owned(), problems.len());
        }
        self.metrics.set_problems("object", self.object_problems.values().sum());
    }

    /// The Node as it is known.
    pub fn node(&mut self, node: Option<&Node>) {
        // One that was never there is merely not known yet, or there is none (manifests).
        self.has_node |= node.is_some();
        if self.has_node {
            self.health.set_node(node);
        }
    }

    /// The node's network as the datapath was told.
    pub fn node_facts(&mut self, facts: &NodeFacts) {
        if facts.devices.is_empty() && !(self.devices.is_empty() && self.has_written) {
            warn!(
                "no external device: only processes of this node reach Services; add a default \
                 route, or name devices with --devices"
            );
        }
        for device in facts.devices.values() {
            if self.devices.get(&device.index) != Some(device) {
                info!(
                    device = %device.name, index = device.index, kind = %device.kind,
                    ipv4 = device.address4.map(tracing::field::display),
                    ipv6 = device.address6.map(tracing::field::display),
                    "external device"
                );
            }
        }
        for device in self.devices.values() {
            if !facts.devices.contains_key(&device.index) {
                info!(device = %device.name, index = device.index, "no external device any more");
            }
        }
        self.devices.clone_from(&facts.devices);
        self.service_health.set_addresses(facts);
    }

    /// Addresses that several Services claim.
    pub fn disputes(&mut self, delta: &Delta) {
        let Some(problems) = &delta.problems else { return };
        let problems: BTreeSet<Problem> = problems.iter().cloned().collect();
        for problem in problems.difference(&self.disputes) {
            warn!(object = %problem.object, "{}", problem.reason);
        }
        for problem in self.disputes.difference(&problems) {
            info!(object = %problem.object, "settled: {}", problem.reason);
        }
        self.metrics.set_problems("dispute", problems.len());
        self.disputes = problems;
    }

    /// The datapath holds everything that came in.
    pub fn up_to_date(&self) {
        self.metrics.up_to_date();
        self.health.applied();
    }

    /// What load balancers are told, now that the datapath serves it: what changed with `delta`, or
    /// all of `desired`.
    pub fn service_health(&self, scope: Scope, desired: &Desired, delta: &Delta) {
        match scope {
            Scope::Full => self.service_health.replace(&desired.health_checks),
            Scope::Partial => self.service_health.update(&delta.health_checks),
        }
    }

    /// The datapath was written, which took `took`.
    pub fn written(&mut self, scope: Scope, took: Duration) {
        if !self.has_written {
            info!(?took, "the datapath holds all Services");
            self.notices.send(Notice::started());
        } else if self.has_failed {
            info!("the datapath could be written again");
        } else {
            debug!(?took, "written");
        }
        self.has_written = true;
        self.has_failed = false;
        self.board.written();
        self.metrics.applied(scope, took);
    }

    /// Something visible changed in the kernel, `waited` after it came in.
    pub fn programmed(&self, waited: Option<Duration>, triggers: &BTreeMap<SystemTime, IpFamily>) {
        if let Some(waited) = waited {
            self.metrics.programmed(waited);
        }
        for (time, family) in triggers.range(self.started..) {
            // A clock that is behind the controller's yields nothing to measure.
            if let Ok(waited) = time.elapsed() {
                self.metrics.network_programmed(*family, waited);
            }
        }
    }

    /// Endpoints left UDP Service ports, or addresses went to others.
    pub fn udp_sockets_are_stale(&self) {
        if let Some(sockets) = &self.sockets {
            sockets.ring();
        }
    }

    /// What TCP Service ports dropped in silence is served.
    pub fn tcp_sockets_wait_in_vain(&self) {
        if let Some(sockets) = &self.sockets {
            sockets.ring_for_waiting();
        }
    }

    /// Addresses went to other UDP Service ports.
    pub fn udp_flows_are_stale(&self) {
        self.flows.notify_one();
    }

    /// These Service ports, and no others, are not in the datapath.
    pub fn unfit(&mut self, unfit: &[Unfit]) {
        if unfit.is_empty() && self.unfit.is_empty() {
            return;
        }
        let unfit: BTreeMap<_, _> =
            unfit.iter().map(|unfit| (unfit.key.clone(), unfit.reason.clone())).collect();
        for (key, reason) in &unfit {
            if self.unfit.get(key) != Some(reason) {
                warn!(object = %format_args!("Service {key}"), "not in the datapath: {reason}");
                self.notices.send(Notice::unfit(key, reason));
            }
        }
        for key in self.unfit.keys().filter(|key| !unfit.contains_key(*key)) {
            info!(object = %format_args!("Service {key}"), "in the datapath again, or gone");
        }
        self.metrics.set_unfit(unfit.len());
        self.board.set_unfit(&unfit);
        self.unfit = unfit;
    }

    /// The datapath couldn't be written; the next try comes after `backoff`.
    pub fn failed(&mut self, error: &(dyn std::error::Error + 'static), backoff: Duration) {
        self.metrics.apply_failed();
        self.board.failed(error.to_string());
        if std::mem::replace(&mut self.has_failed, true) {
            debug!(error, ?backoff, "the datapath still can't be written");
        } else {
            warn!(error, "the datapath can't be written; it stays as it is, trying again");
        }
    }

    /// What is attached to devices, and what could not be.
    pub fn attachments(&self, attachments: Vec<Attachment>) {
        self.metrics.set_attachments(&attachments);
        self.board.set_attachments(attachments);
    }

    /// Numbers for the gauges.
    pub fn gauges(&self, objects: &Objects, fill: &[MapFill]) {
        self.metrics.set_objects(objects);
        self.metrics.set_fill(fill);
    }
}
