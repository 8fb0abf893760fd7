//! ServiceCIDRs.

use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde_json::{Value, json};

use crate::cluster::convert::Converted;
use crate::cluster::convert::cidr::cidr;
use crate::cluster::snapshot::ServiceCidr;

fn converted(object: Value) -> Converted<ServiceCidr> {
    cidr(&serde_json::from_value::<ServiceCIDR>(object).unwrap())
}

#[test]
fn its_ranges_of_both_families_count_whatever_its_conditions() {
    for status in [
        json!({}),
        json!({"conditions": [{"type": "Ready", "status": "False", "reason": "Terminating",
                               "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}),
    ] {
        let result = converted(json!({
            "metadata": {"name": "kubernetes", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"cidrs": ["10.96.0.1/16", "fd00:96::/112"]},
            "status": status,
        }));
        assert_eq!(result.problems, []);
        let ranges: Vec<String> =
            result.value.unwrap().ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.96.0.0/16", "fd00:96::/112"]);
    }
}

#[test]
fn a_range_that_is_none_is_named_and_the_others_count() {
    let result = converted(json!({
        "metadata": {"name": "more"}, "spec": {"cidrs": ["10.97/16", "10.98.0.0/16"]},
    }));
    assert_eq!(result.value.unwrap().ranges, ["10.98.0.0/16".parse().unwrap()]);
    assert_eq!(result.problems.len(), 1);
    assert_eq!(result.problems[0].object, "ServiceCIDR more");
    assert!(result.problems[0].reason.contains("10.97/16"));
    assert_eq!(converted(json!({"metadata": {"name": "bare"}})).value.unwrap().ranges, []);
}
