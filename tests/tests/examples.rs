//! The example manifests are what their README and the demo say they are.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test's own function meets is a finding"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_agent::cluster::manifests::Manifests;
use lb_agent::cluster::snapshot::{Change, IpFamily, Protocol};
use lb_agent::plan::Planner;
use lb_agent::plan::desired::{Desired, Placement};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples")
}

/// What the agent of `node` would put into the datapath.
async fn plan_of(node: &str) -> Desired {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
    let manifests = Manifests::open(&examples(), node).unwrap();
    let following = tokio::spawn(manifests.run(sender));
    let changes = tokio::time::timeout(Duration::from_secs(5), receiver.recv()).await;
    following.abort();
    let changes = changes.unwrap().unwrap();
    for change in &changes {
        if let Change::Problems { object, problems } = change {
            assert!(problems.is_empty(), "{object}: {problems:?}");
        }
    }
    let mut planner = Planner::new(node);
    planner.apply(changes);
    assert!(planner.is_synced(), "one look at the directory is a full list");
    let node_object = planner.snapshot().node.clone();
    assert_eq!(node_object.map(|found| found.name).as_deref(), Some(node));
    planner.desired().clone()
}

#[tokio::test]
async fn examples_are_planned_without_a_problem_and_with_both_families_and_protocols() {
    let desired = plan_of("node-a").await;
    assert_eq!(desired.problems, []);
    let mut kinds = BTreeMap::<String, BTreeSet<(Protocol, IpFamily)>>::new();
    for key in desired.ports.keys() {
        kinds.entry(key.service.name.to_string()).or_default().insert((key.protocol, key.family));
    }
    let names: Vec<_> = kinds.keys().map(String::as_str).collect();
    let expected = [
        "clusterip1",
        "endpoint1",
        "endpoint2",
        "endpoint3",
        "externalip1",
        "loadbalancer1",
        "nodeport1",
        "noendpoints1",
    ];
    assert_eq!(names, expected, "headless1 and externalname1 have no datapath entry");
    assert!(kinds.values().all(|kinds| kinds.len() == 4), "{kinds:?}");
}

#[tokio::test]
async fn endpoints_are_those_of_the_readme() {
    let cases: &[(&str, &[&str], usize)] = &[
        (
            "clusterip1",
            &["10.244.1.11:8080", "10.244.1.12:8080", "10.244.2.11:8080", "10.244.2.12:8080"],
            2,
        ),
        ("nodeport1", &["10.244.2.11:8080", "10.244.2.12:8080"], 0),
        ("loadbalancer1", &["10.244.1.11:8080", "10.244.2.11:8080"], 1),
        ("externalip1", &["10.244.1.12:8080", "10.244.2.12:8080"], 1),
        ("endpoint1", &["10.244.1.11:8080"], 1),
        ("endpoint2", &["10.244.1.12:8080"], 0),
        ("endpoint3", &["203.0.113.10:80"], 0),
        ("noendpoints1", &[], 0),
    ];
    let desired = plan_of("node-a").await;
    for (name, expected, local) in cases {
        for (key, port) in desired.ports.iter().filter(|(key, _)| *key.service.name == **name) {
            let expected: BTreeSet<SocketAddr> =
                expected.iter().map(|text| in_family(text, key.family)).collect();
            let found: BTreeSet<_> =
                port.endpoints.cluster().iter().map(|backend| backend.address).collect();
            assert_eq!(found, expected, "{key} {:?} {:?}", key.protocol, key.family);
            let here = port
                .endpoints
                .cluster()
                .iter()
                .filter(|backend| backend.placement == Placement::Local);
            assert_eq!(here.count(), *local, "{key}: local on node-a");
        }
    }
}

/// The other family's address of the same pod or site, as the lab numbers them.
fn in_family(text: &str, family: IpFamily) -> SocketAddr {
    let v4: SocketAddr = text.parse().unwrap();
    if family == IpFamily::V4 {
        return v4;
    }
    let SocketAddr::V4(v4) = v4 else { panic!("{text} is not IPv4") };
    let v6 = match v4.ip().octets() {
        [10, 244, node, pod] => format!("[fd00:244:{node}::{pod}]:{}", v4.port()),
        [203, 0, 113, host] => format!("[2001:db8:113::{host}]:{}", v4.port()),
        other => panic!("{other:?} is not an address of the lab"),
    };
    v6.parse().unwrap()
}
