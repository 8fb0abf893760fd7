use super::super::node::node;
use super::{assert_reasons, yaml};
use crate::cluster::snapshot::Node;

#[test]
fn a_node_tells_zone_addresses_pod_ranges_and_whether_it_leaves() {
    let converted = node(&yaml(
        "
metadata:
  name: node-a
  labels: {topology.kubernetes.io/zone: z1, topology.kubernetes.io/region: ignored}
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, 'fd00:244:1::/64']
  taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]
status:
  addresses:
  - {type: ExternalIP, address: 203.0.113.7}
  - {type: Hostname, address: node-a}
  - {type: InternalIP, address: 10.240.0.1}
  - {type: InternalIP, address: 'fd00:240::1'}
",
    ));
    assert_reasons(&converted, &[], "node");
    let addresses = ["10.240.0.1", "fd00:240::1", "203.0.113.7"];
    let expected = Node {
        name: "node-a".into(),
        zone: Some("z1".into()),
        addresses: addresses.map(|text| text.parse().unwrap()).to_vec(),
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:244:1::/64".parse().unwrap()],
        deleting: false,
        to_be_deleted: true,
    };
    assert_eq!(converted.value, Some(expected));
}

#[test]
fn a_node_with_garbage_keeps_what_is_good() {
    let converted = node(&yaml(
        "
metadata: {name: node-a, deletionTimestamp: 2026-01-02T03:04:05Z}
spec: {podCIDRs: [bad, 10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: bad}, {type: InternalIP, address: 10.240.0.1}]}
",
    ));
    assert_reasons(&converted, &["podCIDR \"bad\"", "InternalIP \"bad\""], "garbage");
    assert_eq!(converted.object, "Node node-a");
    let node = converted.value.unwrap();
    assert!(node.deleting);
    assert_eq!((node.pod_cidrs.len(), node.addresses.len()), (1, 1));
}

#[test]
fn a_node_with_one_pod_range_may_use_the_old_field() {
    let converted = node(&yaml("metadata: {name: node-a}\nspec: {podCIDR: 10.244.1.0/24}"));
    assert_eq!(converted.value.unwrap().pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
}
