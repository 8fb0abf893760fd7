//! The incremental planner: what a delta holds, and what it costs.

use std::time::{Duration, Instant};

use super::{NODE, key, lists, snapshot, texts, web};
use crate::cluster::convert::service as convert;
use crate::cluster::snapshot::{Change, IpFamily, Node, ObjectName, Protocol, Snapshot};
use crate::plan::desired::{Delta, Desired};
use crate::plan::{Planner, plan};

const WEB: &str = "
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints: [{addresses: [10.0.0.1], nodeName: node-a, hints: {forZones: [{name: z1}]}},
            {addresses: [10.0.0.2], nodeName: node-b, hints: {forZones: [{name: z2}]}}]
";

fn planner(snapshot: &Snapshot) -> Planner {
    let mut planner = Planner::new(NODE);
    planner.apply(lists(snapshot));
    planner
}

#[test]
fn nothing_is_planned_before_services_and_slices_have_been_listed() {
    let known = snapshot(WEB);
    let [node, services, slices] = lists(&known).try_into().unwrap();
    for (first, second) in [(services.clone(), slices.clone()), (slices, services)] {
        let mut planner = Planner::new(NODE);
        let early: Vec<_> = known.slices.values().cloned().map(Change::Slice).collect();
        assert_eq!(planner.apply([node.clone()]), Delta::default());
        assert_eq!(planner.apply(early), Delta::default());
        assert_eq!(planner.apply([first]), Delta::default());
        assert!(!planner.is_synced());
        assert_eq!(*planner.desired(), Desired::default());
        let delta = planner.apply([second]);
        assert!(planner.is_synced());
        let mut desired = Desired::default();
        desired.apply(delta);
        assert_eq!(desired, plan(&known, NODE), "the completing delta is the whole state");
        assert_eq!(desired, *planner.desired());
    }
}

#[test]
fn changes_that_change_nothing_have_no_delta() {
    let known = snapshot(WEB);
    let mut planner = planner(&known);
    assert_eq!(planner.apply(lists(&known)), Delta::default(), "a relist");
    let mut slice = known.slices.values().next().unwrap().clone();
    assert_eq!(planner.apply([Change::Slice(slice.clone())]), Delta::default(), "the same slice");
    slice.trigger_time = Some(std::time::SystemTime::UNIX_EPOCH);
    slice.endpoints.push(slice.endpoints[0].clone());
    assert_eq!(planner.apply([Change::Slice(slice)]), Delta::default(), "a duplicate endpoint");
    let nobody = ObjectName::new("default", "nobody");
    let gone = [Change::ServiceGone(nobody.clone()), Change::SliceGone(nobody)];
    assert_eq!(planner.apply(gone), Delta::default(), "the end of what was never there");
    let problems = Change::Problems { object: "Service default/web".into(), problems: Vec::new() };
    assert_eq!(planner.apply([problems]), Delta::default(), "problems are for others");
}

#[test]
fn an_endpoint_change_touches_its_service_port_and_no_frontend() {
    let known = snapshot(WEB);
    let mut planner = planner(&known);
    let mut slice = known.slices.values().next().unwrap().clone();
    slice.endpoints.pop();
    let delta = planner.apply([Change::Slice(slice)]);
    let web = key("web", "", Protocol::Tcp, IpFamily::V4);
    assert_eq!(delta.ports.keys().collect::<Vec<_>>(), [&web]);
    assert_eq!(
        texts(delta.ports[&web].as_ref().unwrap().endpoints.cluster()),
        ["10.0.0.1:8080 local"]
    );
    assert!(delta.frontends.is_empty());
    assert_eq!(delta.problems, None);
}

#[test]
fn slices_that_arrive_before_their_service_wait_for_it() {
    let known = snapshot(WEB);
    let mut planner = Planner::new(NODE);
    planner.apply([Change::AllServices(Vec::new()), Change::AllSlices(Vec::new())]);
    let slices: Vec<_> = known.slices.values().cloned().map(Change::Slice).collect();
    assert_eq!(planner.apply(slices), Delta::default());
    planner.apply(known.services.values().cloned().map(Change::Service));
    assert_eq!(web(planner.desired()).endpoints.cluster().len(), 2);
}

#[test]
fn slices_that_outlive_their_service_leave_nothing_behind_and_serve_it_again() {
    let known = snapshot(WEB);
    let mut planner = planner(&known);
    let name = ObjectName::new("default", "web");
    planner.apply([Change::ServiceGone(name.clone())]);
    assert_eq!(*planner.desired(), Desired::default());
    planner.apply([Change::Service(known.services[&name].clone())]);
    assert_eq!(*planner.desired(), plan(&known, NODE));
}

#[test]
fn a_slice_whose_label_moves_serves_the_other_service() {
    let known = snapshot(&format!(
        "{WEB}---\nkind: Service\nmetadata: {{name: other}}\n\
         spec: {{clusterIP: 10.96.0.11, ports: [{{port: 80}}]}}\n"
    ));
    let mut planner = planner(&known);
    let mut slice = known.slices.values().next().unwrap().clone();
    slice.service = ObjectName::new("default", "other");
    let delta = planner.apply([Change::Slice(slice)]);
    assert_eq!(delta.ports.len(), 2);
    assert!(web(planner.desired()).endpoints.cluster().is_empty());
    let other = key("other", "", Protocol::Tcp, IpFamily::V4);
    assert_eq!(planner.desired().ports[&other].endpoints.cluster().len(), 2);
}

#[test]
fn a_zone_change_of_our_node_plans_everything_anew_and_a_heartbeat_nothing() {
    let mut known = snapshot(WEB);
    let mut planner = planner(&known);
    assert_eq!(web(planner.desired()).endpoints.cluster().len(), 2);
    let node = |zone: &str| Node { name: NODE.into(), zone: Some(zone.into()), ..Node::default() };
    planner.apply([Change::Node(Some(node("z2")))]);
    assert_eq!(texts(web(planner.desired()).endpoints.cluster()), ["10.0.0.2:8080 remote"]);
    let tainted = Node { to_be_deleted: true, ..node("z2") };
    assert_eq!(planner.apply([Change::Node(Some(tainted))]), Delta::default());
    planner.apply([Change::Node(None)]);
    known.node = None;
    assert_eq!(*planner.desired(), plan(&known, NODE));
}

#[test]
fn a_relist_removes_what_it_does_not_hold() {
    let known = snapshot(WEB);
    let mut planner = planner(&known);
    planner.apply([Change::AllSlices(Vec::new())]);
    assert!(!web(planner.desired()).has_endpoints);
    let delta = planner.apply([Change::AllServices(Vec::new())]);
    assert_eq!(*planner.desired(), Desired::default());
    assert_eq!(delta.frontends.len(), 1);
}

#[test]
fn a_service_may_change_its_type_back_and_forth() {
    let base = "ports: [{port: 80, nodePort: 30080}]";
    let steps = [
        ("ClusterIP", "clusterIP: 10.96.0.10, ports: [{port: 80}]".to_owned(), 1),
        ("NodePort", format!("type: NodePort, clusterIP: 10.96.0.10, {base}"), 2),
        ("LoadBalancer", format!("type: LoadBalancer, clusterIP: 10.96.0.10, {base}"), 3),
        ("ExternalName", "type: ExternalName, externalName: site.example".to_owned(), 0),
        ("headless", "clusterIP: None, ports: [{port: 80}]".to_owned(), 0),
        ("ClusterIP again", "clusterIP: 10.96.0.10, ports: [{port: 80}]".to_owned(), 1),
    ];
    let mut known = snapshot(WEB);
    let mut planner = planner(&known);
    let mut desired = planner.desired().clone();
    for (what, spec, frontends) in steps.iter().chain(steps.iter().rev()) {
        let ingress = if *what == "LoadBalancer" { "[{ip: 10.240.0.200}]" } else { "[]" };
        let object = format!(
            "metadata: {{name: web}}\nspec: {{{spec}}}\nstatus: {{loadBalancer: {{ingress: {ingress}}}}}"
        );
        let converted = convert::service(&serde_yaml_ng::from_str(&object).unwrap());
        let change = match converted.value {
            Some(service) => {
                known.services.insert(converted.name, service.clone());
                Change::Service(service)
            }
            None => {
                known.services.remove(&converted.name);
                Change::ServiceGone(converted.name)
            }
        };
        desired.apply(planner.apply([change]));
        assert_eq!(desired.frontends.len(), *frontends, "{what}");
        assert_eq!(desired, plan(&known, NODE), "{what}");
        assert_eq!(desired, *planner.desired(), "{what}");
    }
}

/// `count` Services with ten endpoints each.
fn cluster(count: u32) -> Snapshot {
    let one = snapshot(WEB);
    let service = &one.services[&ObjectName::new("default", "web")];
    let slice = &one.slices[&ObjectName::new("default", "web-1")];
    let mut cluster = Snapshot::default();
    for index in 0..count {
        let name = ObjectName::new("default", format!("service-{index:05}"));
        let mut service = service.clone();
        service.name = name.clone();
        service.cluster_ips = vec![std::net::IpAddr::V4((0x0a60_0001 + index).into())];
        let mut slice = slice.clone();
        slice.name = ObjectName::new("default", format!("service-{index:05}-abcde"));
        slice.service = name.clone();
        let endpoint = slice.endpoints[0].clone();
        let address = |place: u32| std::net::IpAddr::V4((0x0b00_0000 + index * 10 + place).into());
        slice.endpoints = (0..10)
            .map(|place| crate::cluster::snapshot::Endpoint {
                address: address(place),
                ..endpoint.clone()
            })
            .collect();
        cluster.services.insert(name, service);
        cluster.slices.insert(slice.name.clone(), slice);
    }
    cluster
}

#[test]
fn one_endpoint_change_among_ten_thousand_services_costs_what_it_touches() {
    let known = cluster(10_000);
    let started = Instant::now();
    let mut planner = planner(&known);
    let cold = started.elapsed();
    let mut slices: Vec<_> = known.slices.values().step_by(97).cloned().collect();
    let mut fastest = Duration::MAX;
    let mut total = Duration::ZERO;
    for slice in &mut slices {
        slice.endpoints[3].ready = false;
        let change = [Change::Slice(slice.clone())];
        let started = Instant::now();
        let delta = planner.apply(change);
        let took = started.elapsed();
        fastest = fastest.min(took);
        total += took;
        assert_eq!((delta.ports.len(), delta.frontends.len()), (1, 0));
    }
    let mean = total / u32::try_from(slices.len()).unwrap();
    println!("cold plan {cold:?}; one endpoint change: fastest {fastest:?}, mean {mean:?}");
    // A plan of everything takes 10⁴ times as long as one of this; a debug build has room for 200 of them.
    assert!(fastest * 50 < cold, "fastest {fastest:?}, everything {cold:?}");
}
