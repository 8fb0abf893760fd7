//! The loop: changes and node facts in, writes of the datapath out.
//!
//! Decides *when* something is written — nothing before both lists have synced, the first change
//! at once, a burst in batches ([`super::pace`]), everything again after an error — and who hears
//! of the result. It knows neither Kubernetes nor BPF, and it is the only caller of the datapath.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::datapath::{ApplyReport, Datapath};
use super::pace::Pace;
use super::reports::Reports;
use crate::cluster::snapshot::{Change, IpFamily};
use crate::memory;
use crate::node::classify::{Selection, node_facts};
use crate::node::facts::{ClientAddresses, NodeFacts};
use crate::node::observe::Observed;
use crate::node::pods::{PodNamespace, PodNamespaces};
use crate::plan::Planner;
use crate::plan::desired::{Delta, Desired};
use crate::serve::metrics::{Objects, Scope};

/// Between two calls of [`Datapath::maintain`] while nothing changes, and the age of the gauges at
/// most.
const MAINTENANCE: Duration = Duration::from_secs(1);
/// Between two calls while something always changes. Maintenance waits for grace periods in the
/// kernel, and changes would have to wait with it.
const MAINTENANCE_WHEN_BUSY: Duration = Duration::from_secs(30);
/// After the first failed write; doubles up to [`LONGEST_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// What the loop is given.
#[derive(Debug)]
pub struct Inputs {
    /// What happens in the cluster, in batches.
    pub changes: mpsc::Receiver<Vec<Change>>,
    /// What the node's network looks like.
    pub observed: watch::Receiver<Observed>,
    /// Network namespaces of the node's pods; whoever tells may have ended.
    pub pods: watch::Receiver<PodNamespaces>,
}

/// Why the loop ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("the {0} ended; this is a bug, the message before this one says where")]
pub struct SourceEnded(&'static str);

/// The loop's state.
pub struct Control<D> {
    planner: Planner,
    datapath: D,
    selection: Selection,
    reports: Reports,
    /// What the datapath was told of the node.
    facts: Option<NodeFacts>,
    written: Written,
    pace: Pace,
    last_write: Instant,
    last_maintenance: Instant,
    pending: Pending,
    /// The gauges of objects and maps are older than the state.
    gauges_are_old: bool,
    /// The whole state was written: what that took of the heap may go back.
    heap_is_slack: bool,
}

/// How far the datapath is.
enum Written {
    /// It has to be written whole: nothing is in it yet, or the last write failed.
    Nothing { backoff: Duration },
    /// It holds what the planner desired before the pending changes.
    UpToDate,
}

/// Changes that wait to be planned and written.
#[derive(Default)]
struct Pending {
    changes: Vec<Change>,
    /// When the oldest came in.
    since: Option<Instant>,
    /// The node's network changed, or the last write failed: there is something to do without any change.
    is_due: bool,
}

/// When to write next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Never,
    Now,
    At(Instant),
}

impl Due {
    async fn wait(self) {
        match self {
            Self::Never => std::future::pending().await,
            // No timer: its granularity is a millisecond.
            Self::Now => {}
            Self::At(instant) => tokio::time::sleep_until(instant.into()).await,
        }
    }
}

/// What a write wrote.
enum Wrote {
    /// There was nothing to write.
    Nothing,
    /// Everything.
    All(ApplyReport),
    /// What the pending changes made different.
    Delta(ApplyReport),
}

impl Wrote {
    fn scope(&self) -> Scope {
        match self {
            Self::All(_) => Scope::Full,
            Self::Nothing | Self::Delta(_) => Scope::Partial,
        }
    }
}

impl<D: Datapath> Control<D> {
    /// A loop for the node called `node_name` that has written nothing yet.
    pub fn new(node_name: &str, selection: Selection, datapath: D, reports: Reports) -> Self {
        Self {
            planner: Planner::new(node_name),
            datapath,
            selection,
            reports,
            facts: None,
            written: Written::Nothing { backoff: FIRST_BACKOFF },
            pace: Pace::default(),
            last_write: Instant::now(),
            last_maintenance: Instant::now(),
            pending: Pending::default(),
            gauges_are_old: false,
            heap_is_slack: false,
        }
    }

    /// Works until `stop` is done, and returns the datapath as it then is.
    pub async fn run(
        mut self,
        mut inputs: Inputs,
        stop: impl Future<Output = ()>,
    ) -> Result<D, SourceEnded> {
        let mut stop = std::pin::pin!(stop);
        let mut maintenance = tokio::time::interval(MAINTENANCE);
        maintenance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let mut follows_pods = true;
        self.take_pods(&mut inputs.pods);
        loop {
            self.drain(&mut inputs.changes, &mut looked);
            if self.due(Instant::now()) == Due::Now {
                self.write(&inputs.observed);
                self.drain(&mut inputs.changes, &mut looked);
                // Writes don't await anything: without this a burst would starve the others.
                tokio::task::yield_now().await;
            }
            let due = self.due(Instant::now());
            tokio::select! {
                // Whoever stops us must not wait for the end of a burst, and neither must what is
                // rare; changes may pile up for as long as it takes.
                biased;
                () = &mut stop => return Ok(self.datapath),
                _ = maintenance.tick() => self.maintain(),
                changed = inputs.observed.changed() => match changed {
                    Ok(()) => self.pending.is_due = true,
                    Err(_) => return Err(SourceEnded("observer of the node's network")),
                },
                changed = inputs.pods.changed(), if follows_pods => {
                    // Where namespaces can't be followed, that has been said.
                    follows_pods = changed.is_ok();
                    self.take_pods(&mut inputs.pods);
                }
                batch = inputs.changes.recv() => match batch {
                    Some(batch) => self.take(batch, Instant::now()),
                    None => return Err(SourceEnded("source of Services")),
                },
                () = due.wait() => {}
            }
        }
    }

    /// Takes all that has arrived, which was after we `looked` for the last time.
    fn drain(&mut self, changes: &mut mpsc::Receiver<Vec<Change>>, looked: &mut Instant) {
        while let Ok(batch) = changes.try_recv() {
            self.take(batch, *looked);
        }
        *looked = Instant::now();
    }

    fn take(&mut self, batch: Vec<Change>, since: Instant) {
        self.reports.received(&batch, self.planner.is_synced());
        self.pending.since.get_or_insert(since);
        self.pending.changes.extend(batch);
    }

    /// Tells the datapath what the pods of this node send from.
    fn take_pods(&mut self, pods: &mut watch::Receiver<PodNamespaces>) {
        let addresses = |pod: &PodNamespace| ClientAddresses { address4: pod.v4, address6: pod.v6 };
        let clients: BTreeMap<_, _> = pods
            .borrow_and_update()
            .iter()
            .map(|(namespace, pod)| (*namespace, addresses(pod)))
            .collect();
        if let Err(error) = self.datapath.set_clients(&clients) {
            self.failed(&error);
        }
    }

    fn due(&self, now: Instant) -> Due {
        if self.pending.changes.is_empty() && !self.pending.is_due {
            Due::Never
        } else {
            self.pace.wait_until(now).map_or(Due::Now, Due::At)
        }
    }

    /// Plans what is pending and brings the datapath up to date.
    fn write(&mut self, observed: &watch::Receiver<Observed>) {
        let pending = std::mem::take(&mut self.pending);
        let triggers = triggers(&pending.changes);
        let is_node_new = pending.changes.iter().any(|change| matches!(change, Change::Node(_)));
        let started = Instant::now();
        let delta = self.planner.apply(pending.changes);
        self.reports.node(self.planner.snapshot().node.as_ref());
        self.reports.disputes(&delta);
        if !self.planner.is_synced() {
            return;
        }
        // Facts follow from the network and the Node alone: a changed endpoint costs none of this.
        let facts = (pending.is_due || is_node_new || self.facts.is_none()).then(|| {
            let node = self.planner.snapshot().node.as_ref();
            let addresses = node.map(|node| node.addresses.as_slice()).unwrap_or_default();
            node_facts(&observed.borrow(), &self.selection, addresses)
        });
        match self.bring_up_to_date(facts, &delta) {
            Ok(wrote) => {
                self.reports.service_health(wrote.scope(), self.planner.desired(), &delta);
                self.wrote(wrote, started, pending.since, &triggers);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// The writes themselves; `facts` if they may have changed.
    fn bring_up_to_date(
        &mut self,
        facts: Option<NodeFacts>,
        delta: &Delta,
    ) -> Result<Wrote, D::Error> {
        let is_whole = matches!(self.written, Written::Nothing { .. });
        if let Some(facts) = facts
            && (is_whole || self.facts.as_ref() != Some(&facts))
        {
            self.datapath.set_node(&facts)?;
            self.gauges_are_old = true;
            self.reports.node_facts(&facts);
            self.facts = Some(facts);
        }
        if is_whole {
            let report = self.datapath.begin_from(self.planner.desired())?;
            self.written = Written::UpToDate;
            self.heap_is_slack = true;
            Ok(Wrote::All(report))
        } else if delta.is_nothing_to_write() {
            Ok(Wrote::Nothing)
        } else {
            Ok(Wrote::Delta(self.datapath.apply(delta)?))
        }
    }

    fn wrote(
        &mut self,
        wrote: Wrote,
        started: Instant,
        since: Option<Instant>,
        triggers: &BTreeMap<SystemTime, IpFamily>,
    ) {
        let now = Instant::now();
        self.pace.wrote(now, now - started);
        self.last_write = now;
        self.reports.up_to_date();
        let scope = wrote.scope();
        let report = match wrote {
            Wrote::Nothing => return,
            // How long the first lists took says nothing about the datapath.
            Wrote::All(report) => report,
            Wrote::Delta(report) => {
                self.reports.programmed(since.map(|since| now - since), triggers);
                report
            }
        };
        self.reports.written(scope, now - started);
        self.report(&report);
        self.gauges_are_old = true;
    }

    fn report(&mut self, report: &ApplyReport) {
        if report.udp_endpoints_left || report.udp_frontends_given {
            self.reports.udp_sockets_are_stale();
        }
        if report.tcp_silence_ended {
            self.reports.tcp_sockets_wait_in_vain();
        }
        if report.udp_frontends_given {
            self.reports.udp_flows_are_stale();
        }
        self.reports.unfit(&report.unfit);
    }

    fn failed(&mut self, error: &D::Error) {
        let backoff = match self.written {
            Written::Nothing { backoff } => backoff,
            Written::UpToDate => FIRST_BACKOFF,
        };
        self.reports.failed(error, backoff);
        self.reports.attachments(self.datapath.attachments());
        self.written = Written::Nothing { backoff: (backoff * 2).min(LONGEST_BACKOFF) };
        self.pace.failed(Instant::now(), backoff);
        self.pending.is_due = true;
    }

    fn maintain(&mut self) {
        if matches!(self.written, Written::Nothing { .. }) {
            return;
        }
        let is_busy = !self.pending.changes.is_empty() || self.last_write.elapsed() < MAINTENANCE;
        if !is_busy || self.last_maintenance.elapsed() >= MAINTENANCE_WHEN_BUSY {
            self.last_maintenance = Instant::now();
            match self.datapath.maintain() {
                Ok(report) => self.report(&report),
                Err(error) => self.failed(&error),
            }
        }
        if !is_busy && std::mem::take(&mut self.heap_is_slack) {
            memory::give_back();
        }
        if std::mem::take(&mut self.gauges_are_old) {
            let slices = self.planner.snapshot().slices.len();
            let services = self.planner.snapshot().services.len();
            let objects = Objects { services, slices, ..count(self.planner.desired()) };
            self.reports.gauges(&objects, &self.datapath.fill());
            self.reports.attachments(self.datapath.attachments());
        }
    }
}

/// When the changed slices' pods changed. Whole lists don't count: their slices may be old.
fn triggers(changes: &[Change]) -> BTreeMap<SystemTime, IpFamily> {
    let mut triggers = BTreeMap::new();
    for change in changes {
        if let Change::Slice(slice) = change
            && let Some(time) = slice.trigger_time
        {
            triggers.insert(time, slice.family);
        }
    }
    triggers
}

fn count(desired: &Desired) -> Objects {
    let mut objects = Objects {
        ports: desired.ports.len(),
        frontends: desired.frontends.len(),
        ..Objects::default()
    };
    for (key, plan) in &desired.ports {
        objects.endpoints += plan.endpoints.serving().len();
        let family = match key.family {
            IpFamily::V4 => 0,
            IpFamily::V6 => 1,
        };
        if plan.has_endpoints && plan.endpoints.local().is_empty() {
            objects.without_local[0][family] += usize::from(plan.internal_local);
            objects.without_local[1][family] += usize::from(plan.external_local);
        }
    }
    objects
}
