//! The incremental planner: takes changes, keeps [`Desired`], tells what became different.
//!
//! One change costs what it touches: the Service's own slices and ports, not the cluster. Nothing is
//! planned before Services *and* slices have been listed once (half of the knowledge would
//! withdraw endpoints that a restart only hasn't heard of yet); the delta that completes the lists
//! is the whole desired state.

use std::collections::{BTreeMap, BTreeSet};

use super::claims::Claims;
use super::desired::{
    Delta, Desired, FrontendAddress, HealthCheck, ServicePortKey, ServicePortPlan,
};
use super::health::health_check;
use super::{PlanContext, plan_service};
use crate::cluster::name::Name;
use crate::cluster::snapshot::{Change, IpFamily, ObjectName, Protocol, Service, Slice, Snapshot};

/// Owns what is known of the cluster and what follows from it for this node.
#[derive(Clone, Debug)]
pub struct Planner {
    context: PlanContext,
    snapshot: Snapshot,
    /// Names of the slices of each Service, sorted; also of Services that don't exist (yet).
    slices_of: BTreeMap<ObjectName, Vec<ObjectName>>,
    claims: Claims,
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
            slices_of: BTreeMap::new(),
            claims: Claims::default(),
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
        self.settle(effect)
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
                let names: BTreeSet<_> = services.iter().map(|one| one.name.clone()).collect();
                for name in missing(&self.snapshot.services, &names) {
                    self.forget_service(name, dirty);
                }
                for service in services {
                    self.record_service(service, dirty);
                }
                self.services_listed = true;
            }
            Change::AllSlices(slices) => {
                let names: BTreeSet<_> = slices.iter().map(|one| one.name.clone()).collect();
                for name in missing(&self.snapshot.slices, &names) {
                    self.forget_slice(&name, dirty);
                }
                for slice in slices {
                    self.record_slice(slice, dirty);
                }
                self.slices_listed = true;
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
        let names =
            self.slices_of.entry(slice.service.clone()).or_insert_with(|| Vec::with_capacity(1));
        if let Err(place) = names.binary_search(&slice.name) {
            names.insert(place, slice.name.clone());
        }
        dirty.insert(slice.service.clone());
        self.snapshot.slices.insert(slice.name.clone(), slice);
    }

    fn forget_slice(&mut self, name: &ObjectName, dirty: &mut BTreeSet<ObjectName>) {
        let Some(slice) = self.snapshot.slices.remove(name) else { return };
        if let Some(names) = self.slices_of.get_mut(&slice.service) {
            names.retain(|other| other != name);
            if names.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
        dirty.insert(slice.service);
    }

    /// Plans one Service anew and notes what differs.
    fn replan(&mut self, name: &ObjectName, effect: &mut Effect) {
        let (new, check) = match self.snapshot.services.get(name) {
            None => (BTreeMap::new(), None),
            Some(service) => {
                let names = self.slices_of.get(name).map(Vec::as_slice).unwrap_or_default();
                let slices = names.iter().filter_map(|name| self.snapshot.slices.get(name));
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
            effect.touched.extend(self.claims.replace(&key, old.as_ref(), None));
            effect.delta.ports.insert(key, None);
        }
        for (key, plan) in new {
            let old = self.desired.ports.get(&key);
            if old == Some(&plan) {
                continue;
            }
            effect.touched.extend(self.claims.replace(&key, old, Some(&plan)));
            effect.delta.ports.insert(key.clone(), Some(plan.clone()));
            self.desired.ports.insert(key, plan);
        }
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
            self.desired.problems = self.claims.problems();
            delta.problems = Some(self.desired.problems.clone());
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

/// Names that are known and not listed any more.
fn missing<T>(known: &BTreeMap<ObjectName, T>, listed: &BTreeSet<ObjectName>) -> Vec<ObjectName> {
    known.keys().filter(|name| !listed.contains(*name)).cloned().collect()
}

/// The keys of one Service: they are neighbours, because the Service is a key's first part.
fn keys_of<'a>(
    ports: &'a BTreeMap<ServicePortKey, ServicePortPlan>,
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
