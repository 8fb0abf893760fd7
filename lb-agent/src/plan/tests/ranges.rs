//! Which ranges are the cluster's, and what doesn't fit.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::NODE;
use crate::cluster::snapshot::{Change, ObjectName, ServiceCidr};
use crate::plan::{Planner, RANGES_MAX};

fn cidr(name: &str, ranges: &[&str]) -> ServiceCidr {
    ServiceCidr { name: ObjectName::new("", name), ranges: nets(ranges) }
}

fn nets<C: FromIterator<IpNet>>(texts: &[&str]) -> C {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn synced() -> Planner {
    let mut planner = Planner::new(NODE);
    planner.apply([Change::AllServices(Vec::new()), Change::AllSlices(Vec::new())]);
    planner
}

#[test]
fn nothing_is_known_of_ranges_until_somebody_tells_and_nobody_waits_for_it() {
    let mut planner = synced();
    assert!(planner.is_synced());
    assert_eq!(planner.desired().ranges, None);
    let delta = planner.apply([Change::AllCidrs(Vec::new())]);
    assert_eq!(delta.ranges, Some(BTreeSet::new()), "there are none: what there was goes");
    assert!(!delta.is_nothing_to_write());
    assert!(planner.apply([Change::AllCidrs(Vec::new())]).is_nothing_to_write());
}

#[test]
fn ranges_come_and_go_with_their_objects_and_one_in_two_objects_stays_with_either() {
    let mut planner = synced();
    let first = cidr("kubernetes", &["10.96.0.0/16", "fd00:96::/112"]);
    let delta = planner.apply([Change::AllCidrs(vec![first.clone()])]);
    assert_eq!(delta.ranges, Some(nets(&["10.96.0.0/16", "fd00:96::/112"])));
    let both = nets(&["10.96.0.0/16", "10.97.0.0/16", "fd00:96::/112"]);
    let more = cidr("more", &["10.97.0.0/16", "10.96.0.0/16"]);
    assert_eq!(planner.apply([Change::Cidr(more)]).ranges, Some(both));
    let delta = planner.apply([Change::CidrGone(first.name)]);
    assert_eq!(delta.ranges, Some(nets(&["10.96.0.0/16", "10.97.0.0/16"])));
    assert_eq!(planner.desired().problems, []);
}

#[test]
fn what_does_not_fit_and_what_would_be_everything_is_named() {
    let mut planner = synced();
    let many: Vec<String> = (0..=RANGES_MAX).map(|n| format!("10.{n}.0.0/16")).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    many.extend(["::/0", "fd00::/112"]);
    let delta = planner.apply([Change::Cidr(cidr("many", &many))]);
    let fitting: BTreeSet<IpNet> = nets(&[&many[..RANGES_MAX], &["fd00::/112"]].concat());
    assert_eq!(delta.ranges, Some(fitting));
    let problems = delta.problems.unwrap();
    let reasons: Vec<_> = problems.iter().map(|problem| problem.reason.as_str()).collect();
    assert!(problems.iter().all(|problem| problem.object == "ServiceCIDR many"));
    assert!(reasons[0].contains("10.8.0.0/16") && reasons[0].contains("room for 8"), "{reasons:?}");
    assert!(reasons[1].contains("::/0") && reasons[1].contains("every address"), "{reasons:?}");
    let delta = planner.apply([Change::Cidr(cidr("many", &["10.8.0.0/16"]))]);
    assert_eq!(delta.problems, Some(Vec::new()));
}
