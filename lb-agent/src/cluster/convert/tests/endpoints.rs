use super::super::endpoints::endpoints;
use super::{assert_reasons, yaml};
use crate::cluster::name::Name;
use crate::cluster::snapshot::{EndpointPort, IpFamily, ObjectName, Protocol};

#[test]
fn endpoints_become_one_slice_per_subset_and_family() {
    let converted = endpoints(&yaml(
        "
metadata: {name: db, namespace: shop}
subsets:
- addresses: [{ip: 10.244.1.12, nodeName: node-a}, {ip: 'fd00:244:1::12'}]
  ports: [{port: 8080}, {name: dns, port: 53, protocol: UDP}]
- addresses: [{ip: 203.0.113.010}]
  notReadyAddresses: [{ip: 203.0.113.11}]
  ports: [{port: 9090}]
- ports: [{port: 1}]
",
    ));
    assert_reasons(&converted, &[], "mirror");
    let slices = converted.value.unwrap();
    let summary: Vec<_> = slices
        .iter()
        .map(|slice| {
            let endpoints: Vec<_> = slice
                .endpoints
                .iter()
                .map(|endpoint| {
                    (endpoint.address.to_string(), endpoint.ready, endpoint.node.as_deref())
                })
                .collect();
            assert_eq!(slice.service, ObjectName::new("shop", "db"));
            (slice.name.to_string(), slice.family, slice.ports.len(), endpoints)
        })
        .collect();
    let expected = [
        ("shop/db~0-ipv4", IpFamily::V4, 2, vec![("10.244.1.12".to_owned(), true, Some("node-a"))]),
        ("shop/db~0-ipv6", IpFamily::V6, 2, vec![("fd00:244:1::12".to_owned(), true, None)]),
        (
            "shop/db~1-ipv4",
            IpFamily::V4,
            1,
            vec![("203.0.113.10".to_owned(), true, None), ("203.0.113.11".to_owned(), false, None)],
        ),
    ]
    .map(|(name, family, ports, endpoints)| (name.to_owned(), family, ports, endpoints));
    assert_eq!(summary, expected);
    let unnamed = EndpointPort { name: Name::default(), protocol: Protocol::Tcp, port: 8080 };
    assert_eq!(slices[0].ports[0], unnamed, "a port without name has the empty name");
}

#[test]
fn endpoints_that_ask_not_to_be_mirrored_are_not() {
    let table = [
        ("labels: {endpointslice.kubernetes.io/skip-mirror: 'true'}", false),
        ("labels: {endpointslice.kubernetes.io/skip-mirror: 'false'}", true),
        ("annotations: {control-plane.alpha.kubernetes.io/leader: '{}'}", false),
        ("labels: {app: db}", true),
    ];
    for (metadata, mirrored) in table {
        let converted = endpoints(&yaml(&format!(
            "metadata: {{name: db, {metadata}}}\nsubsets: [{{addresses: [{{ip: 10.0.0.1}}]}}]"
        )));
        assert_eq!(converted.value.is_some(), mirrored, "{metadata}");
        assert_reasons(&converted, &[], metadata);
    }
}

#[test]
fn bad_parts_of_endpoints_are_left_out_and_said() {
    let converted = endpoints(&yaml(
        "
metadata: {name: db}
subsets:
- addresses: [{ip: garbage}, {ip: 127.0.0.1}, {ip: 10.0.0.1}]
  ports: [{port: 0}, {port: 80, protocol: QUIC}, {port: 80}]
",
    ));
    let expected = ["has port 0", "unknown protocol \"QUIC\"", "(and 1 more like it)"];
    assert_reasons(&converted, &expected, "bad parts");
    let slices = converted.value.unwrap();
    assert_eq!((slices[0].endpoints.len(), slices[0].ports.len()), (1, 1));
}
