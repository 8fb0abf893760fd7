//! The incremental planner: takes changes, keeps [`Desired`], tells what became different.
//!
//! One change costs what it touches: the Service's own slices and ports, not the cluster. Nothing is
//! planned before Services *and* slices have been listed once (half of the knowledge would
//! withdraw endpoints that a restart only hasn't heard of yet); the delta that completes the lists
//! is the whole desired state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::claims::Claims;
use super::desired::{
    Delta, Desired, FrontendAddress, HealthCheck, ServicePortKey, ServicePortPlan,
};
use super::health::health_check;
use super::{PlanContext, plan_service, ranges};
use crate::cluster::name::Name;
use crate::cluster::snapshot::{
    Change, IpFamily, ObjectName, Problem, Protocol, Service, Slice, Snapshot,
};

/// Owns what is known of the cluster and what follows from it for this node.
#[derive(Clone, Debug)]
pub struct Planner {
    context: PlanContext,
    snapshot: Snapshot,
    /// Service and name of every slice; also of Services that don't exist (yet).
    slices_of: BTreeSet<(ObjectName, ObjectName)>,
    claims: Claims,
    /// What is wrong with ServiceCIDRs.
    range_problems: Vec<Problem>,
    /// ServiceCIDRs changed since the last delta.
    cidrs_changed: bool,
    desired: Desired,
    services_listed: bool,
    slices_listed: bool,
    /// The first delta after both lists has been given.
    planned: bool,
}

impl Planner {
    /// A planner for the node of this name, that knows nothing yet.
    pub fn new(node_name: &str) -> Self {
        Self {
            context: PlanContext::new(node_name, None),
            snapshot: Snapshot::default(),
            slices_of: BTreeSet::new(),
            claims: Claims::default(),
            range_problems: Vec::new(),
            cidrs_changed: false,
            desired: Desired::default(),
            services_listed: false,
            slices_listed: false,
            planned: false,
        }
    }

    /// Services and slices have been listed: the desired state may be written.
    pub fn is_synced(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// What is known of the cluster.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The whole desired state; empty until [`Planner::is_synced`].
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Takes a batch of changes in order and returns their effect on [`Planner::desired`]; empty when there
    /// is none. A Service that several changes touch is planned once.
    ///
    /// [`Change::Problems`] are for whoever reports them, and are ignored here.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Delta {
        let mut dirty = BTreeSet::new();
        for change in changes {
            self.record(change, &mut dirty);
        }
        if !self.is_synced() {
            return Delta::default();
        }
        let context = PlanContext::new(&self.context.node_name, self.snapshot.node.as_ref());
        if context != self.context || !self.planned {
            self.context = context;
            self.planned = true;
            dirty.extend(self.snapshot.services.keys().cloned());
        }
        let mut effect = Effect::default();
        for name in &dirty {
            self.replan(name, &mut effect);
        }
        let mut delta = self.settle(effect);
        if std::mem::take(&mut self.cidrs_changed) {
            self.replan_ranges(&mut delta);
        }
        delta
    }

    /// Brings the snapshot up to date, and notes the Services whose plan may differ.
    fn record(&mut self, change: Change, dirty: &mut BTreeSet<ObjectName>) {
        match change {
            Change::Service(service) => self.record_service(service, dirty),
            Change::ServiceGone(name) => self.forget_service(name, dirty),
            Change::Slice(slice) => self.record_slice(slice, dirty),
            Change::SliceGone(name) => self.forget_slice(&name, dirty),
            Change::Node(node) => self.snapshot.node = node,
            Change::AllServices(services) => {
                let listed = services.into_iter().map(|one| (one.name.clone(), one)).collect();
                let known = std::mem::replace(&mut self.snapshot.services, listed);
                let changed = different(&known, &self.snapshot.services);
                dirty.extend(changed.map(|service| service.name.clone()));
                self.services_listed = true;
            }
            Change::AllSlices(slices) => {
                let listed = slices.into_iter().map(|one| (one.name.clone(), one)).collect();
                let known = std::mem::replace(&mut self.snapshot.slices, listed);
                let changed = different(&known, &self.snapshot.slices);
                dirty.extend(changed.map(|slice| slice.service.clone()));
                let names = self.snapshot.slices.values();
                self.slices_of =
                    names.map(|slice| (slice.service.clone(), slice.name.clone())).collect();
                self.slices_listed = true;
            }
            Change::Cidr(cidr) => {
                let cidrs = self.snapshot.cidrs.get_or_insert_default();
                cidrs.insert(cidr.name.clone(), cidr);
                self.cidrs_changed = true;
            }
            Change::CidrGone(name) => {
                self.snapshot.cidrs.get_or_insert_default().remove(&name);
                self.cidrs_changed = true;
            }
            Change::AllCidrs(cidrs) => {
                let listed = cidrs.into_iter().map(|one| (one.name.clone(), one)).collect();
                self.snapshot.cidrs = Some(listed);
                self.cidrs_changed = true;
            }
            Change::Problems { .. } => {}
        }
    }

    fn record_service(&mut self, service: Service, dirty: &mut BTreeSet<ObjectName>) {
        if self.snapshot.services.get(&service.name) != Some(&service) {
            dirty.insert(service.name.clone());
            self.snapshot.services.insert(service.name.clone(), service);
        }
    }

    fn forget_service(&mut self, name: ObjectName, dirty: &mut BTreeSet<ObjectName>) {
        if self.snapshot.services.remove(&name).is_some() {
            dirty.insert(name);
        }
    }

    fn record_slice(&mut self, slice: Slice, dirty: &mut BTreeSet<ObjectName>) {
        match self.snapshot.slices.get(&slice.name) {
            Some(known) if *known == slice => return,
            // The label can move a slice from one Service to another.
            Some(known) if known.service != slice.service => {
                self.forget_slice(&slice.name, dirty);
            }
            Some(_) | None => {}
        }
        self.slices_of.insert((slice.service.clone(), slice.name.clone()));
        dirty.insert(slice.service.clone());
        self.snapshot.slices.insert(slice.name.clone(), slice);
    }

    fn forget_slice(&mut self, name: &ObjectName, dirty: &mut BTreeSet<ObjectName>) {
        let Some(slice) = self.snapshot.slices.remove(name) else { return };
        let entry = (slice.service, slice.name);
        self.slices_of.remove(&entry);
        dirty.insert(entry.0);
    }

    /// Plans one Service anew and notes what differs.
    fn replan(&mut self, name: &ObjectName, effect: &mut Effect) {
        let (new, check) = match self.snapshot.services.get(name) {
            None => (BTreeMap::new(), None),
            Some(service) => {
                let names = self.slices_of.range((name.clone(), ObjectName::default())..);
                let slices = names
                    .take_while(|(service, _)| service == name)
                    .filter_map(|(_, slice)| self.snapshot.slices.get(slice));
                let check = health_check(service, slices.clone(), &self.context);
                (plan_service(service, slices, &self.context), check)
            }
        };
        self.replace_check(name, check, &mut effect.delta);
        let gone: Vec<_> = keys_of(&self.desired.ports, name)
            .filter(|key| !new.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            let old = self.desired.ports.remove(&key);
            effect.touched.extend(self.claims.replace(&key, old.as_deref(), None));
            effect.delta.ports.insert(key, None);
        }
        for (key, plan) in new {
            let old = self.desired.ports.get(&key).map(Arc::as_ref);
            if old == Some(&plan) {
                continue;
            }
            effect.touched.extend(self.claims.replace(&key, old, Some(&plan)));
            let plan = Arc::new(plan);
            effect.delta.ports.insert(key.clone(), Some(plan.clone()));
            self.desired.ports.insert(key, plan);
        }
    }

    /// There are one or two ServiceCIDRs: they are always planned whole.
    fn replan_ranges(&mut self, delta: &mut Delta) {
        let (ranges, problems) = ranges::ranges(self.snapshot.cidrs.get_or_insert_default());
        if self.desired.ranges.as_ref() != Some(&ranges) {
            self.desired.ranges = Some(ranges.clone());
            delta.ranges = Some(ranges);
        }
        if self.range_problems != problems {
            self.range_problems = problems;
            self.note_problems(delta);
        }
    }

    fn note_problems(&mut self, delta: &mut Delta) {
        self.desired.problems = self.claims.problems();
        self.desired.problems.extend(self.range_problems.iter().cloned());
        delta.problems = Some(self.desired.problems.clone());
    }

    fn replace_check(&mut self, name: &ObjectName, new: Option<HealthCheck>, delta: &mut Delta) {
        let old = match new {
            Some(check) => self.desired.health_checks.insert(name.clone(), check),
            None => self.desired.health_checks.remove(name),
        };
        if new != old {
            delta.health_checks.insert(name.clone(), new);
        }
    }

    /// Gives every touched address to whoever holds it now.
    fn settle(&mut self, effect: Effect) -> Delta {
        let Effect { mut delta, touched } = effect;
        let mut disputes_differ = false;
        for address in touched {
            disputes_differ |= self.claims.settle(&address);
            let holder = self.claims.holder(&address);
            let before = self.desired.frontends.get(&address).map(|(key, kind)| (key, *kind));
            if holder == before {
                continue;
            }
            let holder = holder.map(|(key, kind)| (key.clone(), kind));
            match &holder {
                Some(holder) => {
                    self.desired.frontends.insert(address, holder.clone());
                }
                None => {
                    self.desired.frontends.remove(&address);
                }
            }
            delta.frontends.insert(address, holder);
        }
        if disputes_differ {
            self.note_problems(&mut delta);
        }
        delta
    }
}

/// What a batch did so far.
#[derive(Default)]
struct Effect {
    delta: Delta,
    touched: BTreeSet<FrontendAddress>,
}

/// What one of the two doesn't hold as the other does. (A list replaces the map as a whole, and isn't
/// put into it one by one: a tree that grows in the order of its keys is half empty.)
fn different<'a, T: PartialEq>(
    known: &'a BTreeMap<ObjectName, T>,
    listed: &'a BTreeMap<ObjectName, T>,
) -> impl Iterator<Item = &'a T> {
    let gone = known.iter().filter(|(name, value)| listed.get(*name) != Some(value));
    let new = listed.iter().filter(|(name, value)| known.get(*name) != Some(value));
    gone.chain(new).map(|(_, value)| value)
}

/// The keys of one Service: they are neighbours, because the Service is a key's first part.
fn keys_of<'a>(
    ports: &'a BTreeMap<ServicePortKey, Arc<ServicePortPlan>>,
    service: &'a ObjectName,
) -> impl Iterator<Item = &'a ServicePortKey> {
    let first = ServicePortKey {
        service: service.clone(),
        port_name: Name::default(),
        protocol: Protocol::Tcp,
        family: IpFamily::V4,
    };
    ports.range(first..).map(|(key, _)| key).take_while(move |key| key.service == *service)
}
