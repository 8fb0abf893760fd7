//! The ranges that ClusterIPs are taken from: nothing for an address in them leaves the node.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::cluster::snapshot::{IpFamily, ObjectName, Problem, ServiceCidr};

/// Ranges of one family that the datapath can watch over.
pub const RANGES_MAX: usize = 8;

/// The ranges of all ServiceCIDRs, each once, as far as they fit: those of the first objects by name.
/// What doesn't fit, or would be everything, is a problem.
pub(super) fn ranges(cidrs: &BTreeMap<ObjectName, ServiceCidr>) -> (BTreeSet<IpNet>, Vec<Problem>) {
    let mut ranges = BTreeSet::new();
    let mut problems = Vec::new();
    for cidr in cidrs.values() {
        for range in &cidr.ranges {
            if ranges.contains(range) {
                continue;
            }
            let family = IpFamily::of(range.addr());
            let of_family =
                ranges.iter().filter(|other: &&IpNet| IpFamily::of(other.addr()) == family);
            let reason = if range.prefix_len() == 0 {
                "it holds every address"
            } else if of_family.count() >= RANGES_MAX {
                "the datapath has room for 8 ranges of a family"
            } else {
                ranges.insert(*range);
                continue;
            };
            problems.push(Problem {
                object: format!("ServiceCIDR {}", cidr.name.name),
                reason: format!(
                    "packets for addresses of {range} that no Service has are not dropped: {reason}; \
                     its Services are served all the same"
                ),
            });
        }
    }
    (ranges, problems)
}
