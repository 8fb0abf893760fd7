//! `healthCheckNodePort`: load balancers ask every node how many endpoints of a Service it has.
//!
//! The plan says how many ([`HealthCheck`]), [`ServiceHealth`] is where the loop puts it down,
//! `listeners` keeps one socket per Service and address open, `answer` is what is said there. An
//! answer reads the count of the moment, so a changed count touches no socket, and nothing here can
//! hold up the loop.

mod answer;
mod listeners;

#[cfg(test)]
mod tests;

pub use listeners::{Trouble, serve};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::cluster::snapshot::{IpFamily, ObjectName};
use crate::config::NodePortAddresses;
use crate::node::facts::NodeFacts;
use crate::plan::desired::HealthCheck;

/// What the loop tells and the servers read.
#[derive(Debug)]
pub struct ServiceHealth {
    nodeport_addresses: NodePortAddresses,
    state: Mutex<State>,
    /// Other sockets are wanted than before.
    sockets_changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    checks: BTreeMap<ObjectName, HealthCheck>,
    /// The node's addresses that serve NodePorts.
    addresses: BTreeSet<IpAddr>,
}

/// One listening socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    service: ObjectName,
    address: SocketAddr,
}

impl ServiceHealth {
    /// No Service yet. Health checks are answered where NodePorts are.
    pub fn new(nodeport_addresses: NodePortAddresses) -> Self {
        let (state, sockets_changed) = (Mutex::default(), Notify::new());
        Self { nodeport_addresses, state, sockets_changed }
    }

    /// These are all health checks.
    pub fn replace(&self, checks: &BTreeMap<ObjectName, HealthCheck>) {
        self.state().checks.clone_from(checks);
        self.sockets_changed.notify_one();
    }

    /// These health checks changed; `None` for those that are gone.
    pub fn update(&self, changes: &BTreeMap<ObjectName, Option<HealthCheck>>) {
        let mut state = self.state();
        let mut is_moved = false;
        for (service, check) in changes {
            let old = match check {
                Some(check) => state.checks.insert(service.clone(), *check),
                None => state.checks.remove(service),
            };
            is_moved |= sockets_of(old) != sockets_of(*check);
        }
        drop(state);
        if is_moved {
            self.sockets_changed.notify_one();
        }
    }

    /// The node's addresses are these.
    pub fn set_addresses(&self, facts: &NodeFacts) {
        let serving = facts.addresses.iter().filter(|(_, serves_nodeports)| **serves_nodeports);
        self.state().addresses = serving.map(|(address, _)| *address).collect();
        self.sockets_changed.notify_one();
    }

    /// The sockets that should be open.
    fn places(&self) -> BTreeSet<Place> {
        let state = self.state();
        let mut places = BTreeSet::new();
        for (service, check) in &state.checks {
            for family in [IpFamily::V4, IpFamily::V6] {
                if check.local_ready(family).is_none() {
                    continue;
                }
                let place = |address| Place {
                    service: service.clone(),
                    address: SocketAddr::new(address, check.port),
                };
                if self.nodeport_addresses.restricts(family) {
                    let own = state.addresses.iter().filter(|&&own| IpFamily::of(own) == family);
                    places.extend(own.copied().map(place));
                } else {
                    places.insert(place(match family {
                        IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
                        IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
                    }));
                }
            }
        }
        places
    }

    /// The count that `service` has at this moment.
    pub(crate) fn local_ready(&self, service: &ObjectName, family: IpFamily) -> usize {
        let state = self.state();
        let check = state.checks.get(service);
        // One that is just being closed has none.
        check.and_then(|check| check.local_ready(family)).unwrap_or_default()
    }

    /// Each critical section leaves whole values, so a panic elsewhere can't leave a torn state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What decides on the sockets of a check: its port and its families.
fn sockets_of(check: Option<HealthCheck>) -> Option<(u16, bool, bool)> {
    check.map(|check| (check.port, check.local_ready4.is_some(), check.local_ready6.is_some()))
}
