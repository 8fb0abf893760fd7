//! Who holds an address that several Service ports claim.
//!
//! kube-proxy leaves that to chance (map iteration order). Here the same claims have the same winner
//! on every node and after every restart: the kind of address first (a ClusterIP is allocated,
//! a load balancer address is written by a controller, an externalIP by any user:
//! CVE-2020-8554), then the older Service, then the name. Claims differ in address, port or protocol,
//! or they are in dispute; a NodePort's wildcard is an address of its own.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::desired::{FrontendAddress, FrontendKind, ServicePortKey, ServicePortPlan};
use crate::cluster::snapshot::{Problem, Protocol};

/// Strength of a claim by its kind: the lower one wins.
pub(super) fn rank(kind: FrontendKind) -> u8 {
    match kind {
        FrontendKind::ClusterIp => 0,
        FrontendKind::LoadBalancer => 1,
        FrontendKind::ExternalIp => 2,
        FrontendKind::NodePort => 3,
    }
}

/// One Service port that wants an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    kind: FrontendKind,
    created: i64,
    key: ServicePortKey,
}

impl Claim {
    fn order(&self, other: &Self) -> Ordering {
        let by_strength = (rank(self.kind), self.created).cmp(&(rank(other.kind), other.created));
        by_strength.then_with(|| self.key.cmp(&other.key))
    }
}

/// All claims by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// Sorted, the holder first. A `Vec`, because nearly every address has one claim.
    by_address: BTreeMap<FrontendAddress, Vec<Claim>>,
    /// One problem for each claim that lost, by address.
    disputes: BTreeMap<FrontendAddress, Vec<Problem>>,
}

impl Claims {
    /// Adds the claims of a Service port that has none yet.
    pub(super) fn add(&mut self, key: &ServicePortKey, plan: &ServicePortPlan) {
        for (&address, &kind) in &plan.frontends {
            self.insert(address, Claim { kind, created: plan.created, key: key.clone() });
        }
    }

    /// Changes the claims of `key` from those of `old` to those of `new`; returns the addresses
    /// whose claims are not what they were.
    pub(super) fn replace(
        &mut self,
        key: &ServicePortKey,
        old: Option<&ServicePortPlan>,
        new: Option<&ServicePortPlan>,
    ) -> Vec<FrontendAddress> {
        let claim_in = |plan: Option<&ServicePortPlan>, address: &FrontendAddress| {
            plan.and_then(|plan| plan.frontends.get(address).map(|&kind| (kind, plan.created)))
        };
        let mut touched = Vec::new();
        for address in old.into_iter().flat_map(|plan| plan.frontends.keys()) {
            if claim_in(old, address) != claim_in(new, address) {
                self.remove(*address, key);
                touched.push(*address);
            }
        }
        for address in new.into_iter().flat_map(|plan| plan.frontends.keys()) {
            if let Some((kind, created)) = claim_in(new, address)
                && claim_in(old, address) != Some((kind, created))
            {
                self.insert(*address, Claim { kind, created, key: key.clone() });
                touched.push(*address);
            }
        }
        touched
    }

    /// Who holds `address`.
    pub(super) fn holder(
        &self,
        address: &FrontendAddress,
    ) -> Option<(&ServicePortKey, FrontendKind)> {
        let claim = self.by_address.get(address)?.first()?;
        Some((&claim.key, claim.kind))
    }

    /// Everyone who holds an address.
    pub(super) fn holders(&self) -> BTreeMap<FrontendAddress, (ServicePortKey, FrontendKind)> {
        let held = self.by_address.iter().filter_map(|(&address, claims)| {
            claims.first().map(|claim| (address, (claim.key.clone(), claim.kind)))
        });
        held.collect()
    }

    /// Computes the disputes of `address` anew; true when they are not what they were.
    pub(super) fn settle(&mut self, address: &FrontendAddress) -> bool {
        let found = match self.by_address.get(address).map(Vec::as_slice) {
            Some([holder, losers @ ..]) if !losers.is_empty() => {
                losers.iter().map(|loser| dispute(address, holder, loser)).collect()
            }
            Some(_) | None => Vec::new(),
        };
        let before = self.disputes.get(address).map(Vec::as_slice).unwrap_or_default();
        if before == found {
            return false;
        }
        if found.is_empty() {
            self.disputes.remove(address);
        } else {
            self.disputes.insert(*address, found);
        }
        true
    }

    /// Computes all disputes anew.
    pub(super) fn settle_all(&mut self) {
        let addresses: Vec<_> = self.by_address.keys().copied().collect();
        for address in addresses {
            self.settle(&address);
        }
    }

    /// The problems of all disputes, by address; every touched address must have been settled.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.disputes.values().flatten().cloned().collect()
    }

    fn insert(&mut self, address: FrontendAddress, claim: Claim) {
        let claims = self.by_address.entry(address).or_insert_with(|| Vec::with_capacity(1));
        let place = claims.partition_point(|other| other.order(&claim) == Ordering::Less);
        claims.insert(place, claim);
    }

    fn remove(&mut self, address: FrontendAddress, key: &ServicePortKey) {
        if let Some(claims) = self.by_address.get_mut(&address) {
            claims.retain(|claim| claim.key != *key);
            if claims.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }
}

fn dispute(address: &FrontendAddress, holder: &Claim, loser: &Claim) -> Problem {
    let what = match loser.kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::LoadBalancer => "load balancer address",
        FrontendKind::ExternalIp => "externalIP",
        FrontendKind::NodePort => "NodePort",
    };
    let protocol = match address.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    let place = std::net::SocketAddr::new(address.address, address.port);
    Problem {
        object: format!("Service {}", loser.key.service),
        reason: format!(
            "{what} {place}/{protocol} of {} already belongs to Service {}, and is not served for \
             this one; change the address or the port of one of the two",
            loser.key, holder.key
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::name::Name;
    use crate::cluster::snapshot::{IpFamily, ObjectName};
    use crate::plan::desired::Endpoints;

    #[test]
    fn addresses_that_nobody_claims_any_more_are_forgotten() {
        let mut claims = Claims::default();
        let key = |name: &str| ServicePortKey {
            service: ObjectName::new("default", name),
            port_name: Name::default(),
            protocol: Protocol::Tcp,
            family: IpFamily::V4,
        };
        let address = FrontendAddress {
            address: "10.96.0.10".parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
        };
        let plan = ServicePortPlan {
            frontends: [(address, FrontendKind::ClusterIp)].into(),
            endpoints: Endpoints::default(),
            has_endpoints: false,
            internal_local: false,
            external_local: false,
            affinity_timeout: None,
            source_ranges: None,
            created: 0,
        };
        for name in ["a", "b"] {
            assert_eq!(claims.replace(&key(name), None, Some(&plan)), [address]);
            claims.settle(&address);
        }
        assert_eq!(claims.problems().len(), 1);
        for name in ["a", "b"] {
            assert_eq!(claims.replace(&key(name), Some(&plan), None), [address]);
            claims.settle(&address);
        }
        assert!(claims.by_address.is_empty() && claims.disputes.is_empty());
    }
}
