//! What the maps hold after a plan, and that nothing published is ever written.

use std::net::IpAddr;
use std::sync::Arc;

use lb_common::abi::{
    Address, AddressFlags, BackendFlags, FrontendKey, ServiceFlags, ServicePointer, ServiceRecord,
    SourceSet,
};
use proptest::prelude::*;

use super::fake_store::FakeStore;
use super::*;
use crate::cluster::snapshot::{IpFamily, ObjectName, Protocol};
use crate::plan::desired::{Backend, Endpoints, Placement, Takes};

fn key(name: &str) -> ServicePortKey {
    ServicePortKey {
        service: ObjectName::new("default", name),
        port_name: "http".into(),
        protocol: Protocol::Tcp,
        family: IpFamily::V4,
    }
}

fn frontend(last: u8) -> FrontendAddress {
    FrontendAddress { address: IpAddr::from([10, 96, 0, last]), port: 80, protocol: Protocol::Tcp }
}

fn backend(last: u8, placement: Placement) -> Backend {
    Backend { address: (IpAddr::from([10, 244, 1, last]), 8080).into(), placement }
}

/// All of these for Cluster policy, some for Local policy too.
fn endpoints(backends: Vec<Backend>, local: impl Fn(&Backend) -> bool) -> Endpoints {
    let takes = |backend: &Backend| Takes { cluster: true, local: local(backend) };
    Endpoints::new(backends.into_iter().map(|backend| (backend, takes(&backend))))
}

fn plan(kind: FrontendKind, last: u8, backends: &[u8]) -> ServicePortPlan {
    let backends: Vec<Backend> = backends.iter().map(|b| backend(*b, Placement::Remote)).collect();
    ServicePortPlan {
        frontends: BTreeMap::from([(frontend(last), kind)]),
        has_endpoints: !backends.is_empty(),
        endpoints: endpoints(backends, |_| false),
        internal_local: false,
        external_local: false,
        affinity_timeout: None,
        source_ranges: None,
        created: 0,
    }
}

/// One Service per element: `(number, kind, backends)`.
fn desired(services: &[(u8, FrontendKind, Vec<u8>)]) -> Desired {
    let mut desired = Desired::default();
    for (number, kind, backends) in services {
        let key = key(&format!("s{number}"));
        desired.ports.insert(key.clone(), plan(*kind, *number, backends).into());
        desired.frontends.insert(frontend(*number), (key, *kind));
    }
    desired
}

/// Flags, endpoints under policy Cluster, those of their hash table.
type Meaning = (u32, Vec<String>, BTreeSet<String>);

/// What a packet to each frontend could reach: the meaning of the maps, whatever their indices.
fn meaning(store: &FakeStore) -> BTreeMap<FrontendKey, Meaning> {
    let record_of = |frontend: &Frontend| -> ServiceRecord {
        store.records[store.pointers[frontend.service.0 as usize].record as usize]
    };
    let names = |region: lb_common::abi::Region| -> Vec<String> {
        store
            .slots(region.offset, region.len)
            .iter()
            .map(|index| {
                let backend = store.backends[*index as usize];
                assert_ne!(backend.flags, 0, "slot names the free backend {index}");
                encode::backend_address(&backend).to_string()
            })
            .collect()
    };
    store
        .frontends
        .iter()
        .map(|(key, frontend)| {
            let record = record_of(frontend);
            let hashed = names(record.cluster_maglev).into_iter().collect();
            (*key, (record.flags, names(record.cluster), hashed))
        })
        .collect()
}

fn applied(store: FakeStore, desired: &Desired) -> Tables<FakeStore> {
    let mut tables = Tables::adopt(store).unwrap();
    tables.reconcile(desired).unwrap();
    tables
}

#[test]
fn a_plan_is_found_again_under_its_frontend() {
    let desired = desired(&[(1, FrontendKind::ClusterIp, vec![1, 2])]);
    let tables = applied(FakeStore::new(16, 16, 4096), &desired);
    let meaning = meaning(tables.store());
    let (_, list, hashed) = &meaning[&encode::frontend_key(&frontend(1))];
    assert_eq!(list, &["10.244.1.1:8080", "10.244.1.2:8080"]);
    assert!(hashed.is_empty(), "a ClusterIP alone needs no hash table");
}

#[test]
fn addresses_for_outside_get_a_hash_table_over_every_endpoint() {
    let desired = desired(&[(1, FrontendKind::NodePort, vec![1, 2, 3])]);
    let tables = applied(FakeStore::new(16, 16, 4096), &desired);
    let meaning = meaning(tables.store());
    assert_eq!(meaning[&encode::frontend_key(&frontend(1))].2.len(), 3);
}

#[test]
fn a_hash_table_that_does_not_fit_is_done_without() {
    let desired = desired(&[(1, FrontendKind::NodePort, vec![1, 2, 3])]);
    let tables = applied(FakeStore::new(16, 16, 8), &desired);
    assert_eq!(tables.unfit().count(), 0);
    let (_, list, hashed) = &meaning(tables.store())[&encode::frontend_key(&frontend(1))];
    assert_eq!((list.len(), hashed.len()), (3, 0));
}

#[test]
fn hash_tables_leave_half_of_the_slots_to_plain_lists() {
    let services: Vec<_> =
        (1..=9).map(|number| (number, FrontendKind::NodePort, vec![1, 2, 3])).collect();
    // A table for three endpoints has 401 entries: there is room for two in half of 2,048.
    let tables = applied(FakeStore::new(32, 64, 2048), &desired(&services));
    assert_eq!(tables.unfit().count(), 0);
    let with_table =
        meaning(tables.store()).values().filter(|(_, _, hashed)| !hashed.is_empty()).count();
    assert_eq!(with_table, 2);
}

#[test]
fn local_endpoints_are_a_prefix_of_the_same_slots() {
    let mut desired = desired(&[(1, FrontendKind::ClusterIp, vec![1, 2, 3])]);
    let plan = Arc::make_mut(desired.ports.get_mut(&key("s1")).unwrap());
    let backends = plan.endpoints.serving().to_vec();
    plan.endpoints = endpoints(backends, |one| *one != backend(3, Placement::Remote));
    let tables = applied(FakeStore::new(16, 16, 64), &desired);
    let record = tables.store().records[1];
    assert_eq!((record.cluster.offset, record.cluster.len), (record.local.offset, 3));
    assert_eq!((record.local.len, tables.slots.used()), (2, 3));
}

#[test]
fn an_endpoint_change_is_one_publication_and_the_index_stays() {
    let mut tables = applied(
        FakeStore::new(16, 16, 4096),
        &desired(&[(1, FrontendKind::ClusterIp, vec![1, 2])]),
    );
    let index = tables.index_of(&key("s1"));
    tables.store.published.clear();
    tables.reconcile(&desired(&[(1, FrontendKind::ClusterIp, vec![2, 3])])).unwrap();
    assert_eq!(tables.index_of(&key("s1")), index);
    assert_eq!(tables.store().published.len(), 1);
}

#[test]
fn an_endpoint_that_left_has_a_new_generation_and_those_that_stay_keep_theirs() {
    let mut tables = applied(
        FakeStore::new(16, 16, 4096),
        &desired(&[(1, FrontendKind::ClusterIp, vec![1, 2])]),
    );
    tables.reconcile(&desired(&[(1, FrontendKind::ClusterIp, vec![2])])).unwrap();
    let generations: Vec<u32> =
        tables.store().backends[1..3].iter().map(|b| b.generation).collect();
    assert_eq!(generations, [1, 0]);
}

/// The lists that each backend counts as one of, by the last byte of its address.
fn lists(store: &FakeStore) -> BTreeMap<u8, (bool, bool)> {
    let live = store.backends.iter().filter(|backend| backend.flags & BackendFlags::LIVE != 0);
    live.map(|backend| {
        let has = |list| backend.flags & list != 0;
        let lists = (has(BackendFlags::IN_CLUSTER), has(BackendFlags::IN_LOCAL));
        match encode::backend_address(backend).ip() {
            IpAddr::V4(address) => (address.octets()[3], lists),
            IpAddr::V6(address) => panic!("{address}"),
        }
    })
    .collect()
}

#[test]
fn an_endpoint_says_which_lists_it_is_in_from_before_it_is_published_until_it_leaves_them() {
    let mut desired = desired(&[(1, FrontendKind::ClusterIp, vec![1, 2, 3])]);
    let with = |desired: &mut Desired, cluster: &[u8], local: &[u8]| {
        let plan = Arc::make_mut(desired.ports.get_mut(&key("s1")).unwrap());
        plan.endpoints = Endpoints::new([1, 2, 3].map(|last| {
            let takes = Takes { cluster: cluster.contains(&last), local: local.contains(&last) };
            (backend(last, Placement::Local), takes)
        }));
    };
    with(&mut desired, &[1, 2], &[2]);
    let mut tables = applied(FakeStore::new(16, 16, 64), &desired);
    let expected = [(1, (true, false)), (2, (true, true)), (3, (false, false))];
    assert_eq!(lists(tables.store()), expected.into());
    let generations =
        |t: &Tables<FakeStore>| t.store.backends.iter().map(|b| b.generation).sum::<u32>();
    let before = generations(&tables);
    with(&mut desired, &[3], &[1, 3]);
    tables.reconcile(&desired).unwrap();
    let expected = [(1, (false, true)), (2, (false, false)), (3, (true, true))];
    assert_eq!(lists(tables.store()), expected.into());
    assert_eq!(generations(&tables), before, "flows to endpoints that still serve stay");
}

#[test]
fn what_does_not_fit_takes_no_endpoint_out_of_the_lists_that_are_still_current() {
    let mut tables =
        applied(FakeStore::new(16, 4, 4096), &desired(&[(1, FrontendKind::ClusterIp, vec![1, 2])]));
    tables.reconcile(&desired(&[(1, FrontendKind::ClusterIp, vec![2, 3, 4, 5])])).unwrap();
    assert_eq!(tables.unfit().count(), 1);
    assert_eq!(lists(tables.store()), [(1, (true, false)), (2, (true, false))].into());
}

#[test]
fn the_map_of_clients_holds_what_was_said_last_and_is_written_where_it_differs() {
    let client = |last: u8| facts::ClientAddresses {
        address4: Some([10, 244, 1, last].into()),
        address6: None,
    };
    let mut tables = Tables::adopt(FakeStore::new(16, 16, 64)).unwrap();
    tables.set_clients(&[(7, client(1)), (8, client(2))].into()).unwrap();
    let writes = tables.store().writes;
    tables.set_clients(&[(7, client(1)), (8, client(2))].into()).unwrap();
    assert_eq!(tables.store().writes, writes);
    tables.set_clients(&[(8, client(3)), (9, client(4))].into()).unwrap();
    assert_eq!(tables.store().writes, writes + 3);
    let addresses: Vec<_> = tables.store().clients.iter().map(|(k, v)| (*k, *v)).collect();
    assert_eq!(addresses, [(8, encode::client(&client(3))), (9, encode::client(&client(4)))]);
    assert_eq!(addresses[0].1.address6, Address::UNSPECIFIED_V6);
}

#[test]
fn the_same_plan_again_writes_nothing() {
    let desired =
        desired(&[(1, FrontendKind::ClusterIp, vec![1, 2]), (2, FrontendKind::NodePort, vec![])]);
    let mut tables = applied(FakeStore::new(16, 16, 4096), &desired);
    let writes = tables.store().writes;
    tables.reconcile(&desired).unwrap();
    assert_eq!(tables.store().writes, writes);
}

#[test]
fn a_restart_adopts_what_it_finds_and_changes_no_index() {
    let desired = desired(&[
        (1, FrontendKind::ClusterIp, vec![1, 2]),
        (2, FrontendKind::LoadBalancer, vec![3]),
    ]);
    let before = applied(FakeStore::new(16, 16, 4096), &desired);
    let (indices, writes) =
        ([before.index_of(&key("s1")), before.index_of(&key("s2"))], before.store().writes);
    let after = applied(before.into_store(), &desired);
    assert_eq!([after.index_of(&key("s1")), after.index_of(&key("s2"))], indices);
    assert_eq!(after.store().writes, writes, "nothing needed to be written");
}

#[test]
fn a_service_that_went_while_no_agent_ran_is_gone_after_the_restart() {
    let both =
        desired(&[(1, FrontendKind::ClusterIp, vec![1, 2]), (2, FrontendKind::ClusterIp, vec![3])]);
    let before = applied(FakeStore::new(16, 16, 4096), &both);
    let one = desired(&[(2, FrontendKind::ClusterIp, vec![3])]);
    let mut after = applied(before.into_store(), &one);
    after.maintain().unwrap();
    assert_eq!(after.store().frontends.len(), 1);
    assert_eq!(after.store().names.len(), 1);
    assert_eq!(after.store().pointers.iter().filter(|p| p.record != 0).count(), 1);
}

#[test]
fn a_service_that_does_not_fit_is_named_and_the_others_work() {
    let plans = desired(&[
        (1, FrontendKind::ClusterIp, vec![1, 2]),
        (2, FrontendKind::ClusterIp, vec![3, 4, 5]),
        (3, FrontendKind::ClusterIp, vec![6]),
    ]);
    // Elements 1..=3: room for the first and the third.
    let mut tables = applied(FakeStore::new(16, 4, 4096), &plans);
    let unfit: Vec<String> = tables.unfit().map(|(key, why)| format!("{key}: {why}")).collect();
    assert_eq!(unfit.len(), 1, "{unfit:?}");
    assert!(unfit[0].starts_with("default/s2:http: the map BACKENDS is full"), "{unfit:?}");
    assert_eq!(tables.store().frontends.len(), 2);

    // Room again: it is let in.
    let fewer = desired(&[(2, FrontendKind::ClusterIp, vec![3, 4, 5])]);
    tables.reconcile(&fewer).unwrap();
    tables.maintain().unwrap();
    assert_eq!(tables.unfit().count(), 0);
    assert_eq!(meaning(tables.store()).len(), 1);
}

#[test]
fn a_grown_service_that_does_not_fit_keeps_the_endpoints_it_had() {
    let mut tables =
        applied(FakeStore::new(16, 4, 4096), &desired(&[(1, FrontendKind::ClusterIp, vec![1, 2])]));
    tables.reconcile(&desired(&[(1, FrontendKind::ClusterIp, vec![1, 2, 3, 4])])).unwrap();
    assert_eq!(tables.unfit().count(), 1);
    assert_eq!(meaning(tables.store())[&encode::frontend_key(&frontend(1))].1.len(), 2);
}

#[test]
fn what_an_interrupted_run_left_without_a_name_is_free_again() {
    let mut store = FakeStore::new(4, 4, 64);
    store.backends[1].flags = encode::backend_flags(Placement::Local);
    store.backends[1].service = ServiceIndex(3);
    store.records[2].service = ServiceIndex(3);
    store.pointers[3] = ServicePointer { record: 2, revision: 9 };
    let tables = Tables::adopt(store).unwrap();
    assert_eq!(tables.fill().iter().map(|(_, used, _)| *used).collect::<Vec<_>>(), [1, 1, 1, 0, 0]);
    assert_eq!(tables.store().backends[1].flags, 0);
    assert_eq!(tables.store().backends[1].generation, 1, "its flows are stale");
}

/// A Service port with a load balancer's address that admits these ranges.
fn restricted(number: u8, ranges: &[&str]) -> Desired {
    let mut desired = desired(&[(number, FrontendKind::LoadBalancer, vec![1])]);
    let plan = Arc::make_mut(desired.ports.get_mut(&key(&format!("s{number}"))).unwrap());
    plan.source_ranges = Some(ranges.iter().map(|range| range.parse().unwrap()).collect())
        .filter(|ranges: &Vec<_>| !ranges.is_empty());
    desired
}

/// Whom the load balancer's address of a Service port admits; `None` for everybody.
fn admitted(store: &FakeStore, number: u8) -> Option<Vec<String>> {
    let frontend = store.frontends[&encode::frontend_key(&frontend(number))];
    let record = store.records[store.pointers[frontend.service.0 as usize].record as usize];
    (record.flags & ServiceFlags::SOURCE_RANGES != 0).then(|| {
        let of_set = store.source_ranges.iter().filter(|range| range.set == record.sources);
        of_set.map(|range| encode::range_net(range).unwrap().to_string()).collect()
    })
}

/// Whom every frontend admits.
fn all_admitted(store: &FakeStore) -> Vec<Option<Vec<String>>> {
    let numbers =
        (1..6).filter(|n| store.frontends.contains_key(&encode::frontend_key(&frontend(*n))));
    numbers.map(|number| admitted(store, number)).collect()
}

fn texts(ranges: &[&str]) -> Option<Vec<String>> {
    Some(ranges.iter().map(|&range| range.to_owned()).collect())
}

#[test]
fn changed_source_ranges_are_one_publication_and_the_old_ones_go_after_the_grace_period() {
    let mut tables =
        applied(FakeStore::new(16, 16, 4096), &restricted(1, &["10.0.0.0/8", "192.0.2.0/24"]));
    assert_eq!(admitted(tables.store(), 1), texts(&["10.0.0.0/8", "192.0.2.0/24"]));
    tables.store.published.clear();
    tables.reconcile(&restricted(1, &["192.0.2.0/24"])).unwrap();
    assert_eq!(tables.store().published.len(), 1);
    assert_eq!(admitted(tables.store(), 1), texts(&["192.0.2.0/24"]));
    assert_eq!(tables.store().source_ranges.len(), 3, "the old set may still be read");
    tables.maintain().unwrap();
    assert_eq!(tables.store().source_ranges.len(), 1);
    tables.reconcile(&restricted(1, &[])).unwrap();
    assert_eq!(admitted(tables.store(), 1), None);
    tables.maintain().unwrap();
    assert_eq!(tables.store().source_ranges.len(), 0);
}

#[test]
fn a_restart_adopts_the_ranges_that_are_used_and_removes_the_others() {
    let desired = restricted(1, &["10.0.0.0/8", "192.0.2.0/24"]);
    let before = applied(FakeStore::new(16, 16, 4096), &desired);
    let writes = before.store().writes;
    let mut store = before.into_store();
    // Another agent ended before it published this.
    let left_over = encode::source_range(SourceSet(7), &"0.0.0.0/1".parse().unwrap());
    store.source_ranges.insert(left_over);
    let after = applied(store, &desired);
    assert_eq!(after.store().writes, writes + 1, "the left-over went, nothing else changed");
    assert_eq!(admitted(after.store(), 1), texts(&["10.0.0.0/8", "192.0.2.0/24"]));
    let used = |t: &Tables<FakeStore>| {
        t.fill().iter().find(|(table, ..)| *table == Table::SourceRanges).map(|(_, used, _)| *used)
    };
    assert_eq!(used(&after), Some(2));
}

#[test]
fn ranges_that_do_not_fit_close_the_address_and_nothing_else_of_the_service() {
    let mut store = FakeStore::new(16, 16, 4096);
    store.source_ranges_capacity = 2;
    let many = ["10.0.0.0/8", "192.0.2.0/24", "203.0.113.0/24"];
    // A new Service, one that was open, and one that had other ranges.
    for before in [None, Some(restricted(1, &[])), Some(restricted(1, &["10.0.0.0/8"]))] {
        let mut tables = Tables::adopt(store).unwrap();
        if let Some(before) = before {
            tables.reconcile(&before).unwrap();
        }
        let mut after = restricted(1, &many);
        let plan = Arc::make_mut(after.ports.get_mut(&key("s1")).unwrap());
        let two = [1, 2].map(|last| backend(last, Placement::Remote));
        plan.endpoints = endpoints(two.into(), |_| false);
        tables.reconcile(&after).unwrap();
        let unfit: Vec<_> = tables.unfit().map(|(key, why)| format!("{key}: {why}")).collect();
        assert_eq!(unfit.len(), 1, "{unfit:?}");
        assert!(unfit[0].contains("SOURCE_RANGES is full"), "{unfit:?}");
        assert!(unfit[0].contains("--max-source-ranges; until then"), "{unfit:?}");
        assert_eq!(admitted(tables.store(), 1), texts(&[]), "nobody");
        let endpoints = &meaning(tables.store())[&encode::frontend_key(&frontend(1))].1;
        assert_eq!(endpoints.len(), 2, "endpoints are as planned");
        tables.maintain().unwrap();
        assert_eq!(tables.unfit().count(), 1, "it still doesn't fit");
        // Fewer: they fit, and are in force.
        tables.reconcile(&restricted(1, &many[..2])).unwrap();
        assert_eq!(tables.unfit().count(), 0);
        assert_eq!(admitted(tables.store(), 1), texts(&many[..2]));
        tables.reconcile(&Desired::default()).unwrap();
        tables.maintain().unwrap();
        store = tables.into_store();
    }
}

#[test]
fn new_ranges_hold_even_when_the_endpoints_of_the_same_plan_do_not_fit() {
    let mut tables = applied(FakeStore::new(16, 3, 4096), &restricted(1, &[]));
    let mut grown = restricted(1, &["10.0.0.0/8"]);
    let plan = Arc::make_mut(grown.ports.get_mut(&key("s1")).unwrap());
    let many = (1..6).map(|last| backend(last, Placement::Remote)).collect();
    plan.endpoints = endpoints(many, |_| false);
    tables.reconcile(&grown).unwrap();
    assert_eq!(tables.unfit().count(), 1);
    assert_eq!(admitted(tables.store(), 1), texts(&["10.0.0.0/8"]));
}

fn kinds() -> impl Strategy<Value = FrontendKind> {
    prop_oneof![
        Just(FrontendKind::ClusterIp),
        Just(FrontendKind::NodePort),
        Just(FrontendKind::LoadBalancer),
    ]
}

fn states() -> impl Strategy<Value = Desired> {
    let service =
        (kinds(), prop::collection::btree_set(1u8..8, 0..5), prop::collection::vec(0u8..4, 0..3));
    prop::collection::btree_map(1u8..6, service, 0..5).prop_map(|services| {
        let list: Vec<_> = services
            .iter()
            .map(|(number, (kind, backends, _))| {
                (*number, *kind, backends.iter().copied().collect())
            })
            .collect();
        let mut desired = desired(&list);
        for (number, (_, _, ranges)) in services {
            let plan = Arc::make_mut(desired.ports.get_mut(&key(&format!("s{number}"))).unwrap());
            let nets = ranges.iter().map(|n| format!("10.{n}.0.0/16").parse().unwrap()).collect();
            plan.source_ranges = Some(nets).filter(|nets: &Vec<_>| !nets.is_empty());
        }
        desired
    })
}

proptest! {
    #[test]
    fn any_history_with_restarts_ends_like_a_fresh_start(
        history in prop::collection::vec((states(), any::<bool>(), any::<bool>()), 1..12),
    ) {
        let mut tables = Tables::adopt(FakeStore::new(16, 64, 1 << 14)).unwrap();
        let mut last = Desired::default();
        for (state, restart, maintain) in history {
            if restart {
                tables = Tables::adopt(tables.into_store()).unwrap();
            }
            tables.reconcile(&state).unwrap();
            if maintain {
                tables.maintain().unwrap();
            }
            last = state;
        }
        let fresh = applied(FakeStore::new(16, 64, 1 << 14), &last);
        prop_assert_eq!(meaning(tables.store()), meaning(fresh.store()));
        prop_assert_eq!(all_admitted(tables.store()), all_admitted(fresh.store()));
        tables.maintain().unwrap();
        let used = |t: &Tables<FakeStore>| t.fill().iter().map(|(_, used, _)| *used).collect::<Vec<_>>();
        prop_assert_eq!(used(&tables), used(&fresh), "nothing leaks");
    }
}

#[test]
fn service_addresses_are_marked_as_such_beside_the_nodes_own() {
    let flags = |tables: &Tables<FakeStore>| -> Vec<(String, u32)> {
        let addresses = tables.store().addresses.iter();
        addresses.map(|(address, flags)| (IpAddr::from(*address).to_string(), *flags)).collect()
    };
    let (first, second) = (frontend(1).address.to_string(), frontend(2).address.to_string());
    let both = [(1, FrontendKind::ClusterIp, vec![1]), (2, FrontendKind::ExternalIp, vec![1])];
    let mut tables = applied(FakeStore::new(16, 16, 64), &desired(&both));
    let external = (second.clone(), AddressFlags::EXTERNAL);
    assert_eq!(flags(&tables), [(first.clone(), AddressFlags::CLUSTER_IP), external]);

    // The node has both addresses as its own, and serves NodePorts on one.
    let own = [(frontend(1).address, false), (frontend(2).address, true)];
    let facts = NodeFacts { addresses: own.into(), ..NodeFacts::default() };
    tables.set_node(&facts, |_| false).unwrap();
    let node_ports = AddressFlags::NODE | AddressFlags::NODE_PORTS;
    let one = AddressFlags::NODE | AddressFlags::CLUSTER_IP;
    assert_eq!(
        flags(&tables),
        [(first.clone(), one), (second.clone(), node_ports | AddressFlags::EXTERNAL)]
    );

    // A restart that finds the first Service gone keeps what is the node's.
    let only = desired(&[(2, FrontendKind::ClusterIp, vec![1])]);
    let mut tables = applied(tables.into_store(), &only);
    let three = node_ports | AddressFlags::CLUSTER_IP;
    assert_eq!(flags(&tables), [(first, AddressFlags::NODE), (second.clone(), three)]);
    tables.set_node(&NodeFacts::default(), |_| false).unwrap();
    assert_eq!(flags(&tables), [(second.clone(), AddressFlags::CLUSTER_IP)]);

    // Pods come and go, also while no agent runs.
    let pod = |last| facts::ClientAddresses {
        address4: Some([192, 0, 2, last].into()),
        ..facts::ClientAddresses::default()
    };
    tables.set_pods([pod(1), pod(2)].into_iter()).unwrap();
    let marked = |last: u8| (format!("192.0.2.{last}"), AddressFlags::POD);
    let service = (second, AddressFlags::CLUSTER_IP);
    let all = |tables: &Tables<FakeStore>| flags(tables).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(all(&tables), [marked(1), marked(2), service.clone()].into());
    let mut tables = applied(tables.into_store(), &only);
    assert_eq!(all(&tables), [marked(1), marked(2), service.clone()].into());
    tables.set_pods([pod(2), pod(3)].into_iter()).unwrap();
    assert_eq!(all(&tables), [marked(2), marked(3), service.clone()].into());
    tables.set_pods(std::iter::empty()).unwrap();
    assert_eq!(all(&tables), [service].into());

    // The last port of an address takes its mark along.
    let gone = Delta { frontends: [(frontend(2), None)].into(), ..Delta::default() };
    tables.apply(&gone).unwrap();
    assert!(flags(&tables).is_empty());
}

#[test]
fn endpoints_of_this_node_are_marked_until_no_port_has_them() {
    let marked = |tables: &Tables<FakeStore>| -> Vec<String> {
        let is_endpoint = |flags: &u32| flags & AddressFlags::ENDPOINT != 0;
        let addresses = tables.store().addresses.iter().filter(|(_, flags)| is_endpoint(flags));
        addresses.map(|(address, _)| IpAddr::from(*address).to_string()).collect()
    };
    let placed = |last: u8, backends: &[(u8, Placement)]| {
        let backends = backends.iter().map(|(last, placement)| backend(*last, *placement));
        let endpoints = endpoints(backends.collect(), |_| false);
        ServicePortPlan { endpoints, ..plan(FrontendKind::ClusterIp, last, &[1]) }
    };
    let change = |tables: &mut Tables<FakeStore>, name, plan: Option<ServicePortPlan>| {
        let ports = [(key(name), plan.map(Arc::new))].into();
        tables.apply(&Delta { ports, ..Delta::default() }).unwrap();
    };
    use Placement::{Local, Remote, Unknown};
    let mut tables = applied(FakeStore::new(16, 16, 64), &Desired::default());
    change(&mut tables, "one", Some(placed(1, &[(1, Local), (2, Remote), (3, Unknown)])));
    change(&mut tables, "two", Some(placed(2, &[(1, Local), (4, Local)])));
    assert_eq!(marked(&tables), ["10.244.1.1", "10.244.1.4"]);
    change(&mut tables, "one", Some(placed(1, &[(2, Local)])));
    assert_eq!(marked(&tables), ["10.244.1.1", "10.244.1.2", "10.244.1.4"]);

    // Also while no agent runs, and for one that didn't know the mark.
    let restart = |tables: Tables<FakeStore>, forgets: bool| {
        let mut store = tables.into_store();
        if forgets {
            store.addresses.clear();
        }
        let ports = [(key("two"), Arc::new(placed(2, &[(1, Local)])))].into();
        applied(store, &Desired { ports, ..Desired::default() })
    };
    let tables = restart(tables, false);
    assert_eq!(marked(&tables), ["10.244.1.1"]);
    let mut tables = restart(tables, true);
    assert_eq!(marked(&tables), ["10.244.1.1"]);
    change(&mut tables, "two", Some(placed(2, &[(1, Remote)])));
    assert!(tables.store().addresses.is_empty());
    change(&mut tables, "two", Some(placed(2, &[(1, Local)])));
    change(&mut tables, "two", None);
    assert!(tables.store().addresses.is_empty());
}

#[test]
fn endpoints_that_leave_udp_ports_are_told_once_and_those_of_tcp_ports_are_not() {
    let udp = ServicePortKey { protocol: Protocol::Udp, ..key("udp") };
    let mut desired = desired(&[(1, FrontendKind::ClusterIp, vec![1, 2])]);
    desired.ports.insert(udp.clone(), plan(FrontendKind::ClusterIp, 2, &[1, 2]).into());
    let mut tables = applied(FakeStore::new(16, 16, 64), &desired);
    assert!(!tables.take_udp_left(), "nothing was there before");
    let mut change = |key: &ServicePortKey, plan: Option<ServicePortPlan>| {
        let ports = [(key.clone(), plan.map(Arc::new))].into();
        tables.apply(&Delta { ports, ..Delta::default() }).unwrap();
        (tables.take_udp_left(), tables.take_udp_left())
    };
    let one = |backends: &[u8]| Some(plan(FrontendKind::ClusterIp, 2, backends));
    let nothing_new = (backend(1, Placement::Remote), Takes { cluster: false, local: false });
    let draining = ServicePortPlan {
        endpoints: Endpoints::new([nothing_new]),
        ..plan(FrontendKind::ClusterIp, 2, &[1])
    };
    for (case, key, plan, left) in [
        ("of a TCP port one leaves", &key("s1"), one(&[1]), false),
        ("one comes", &udp, one(&[1, 2, 3]), false),
        ("one leaves", &udp, one(&[1, 2]), true),
        ("one takes another's place", &udp, one(&[1, 4]), true),
        ("nothing changes", &udp, one(&[1, 4]), false),
        ("one leaves, the other gets nothing new but serves", &udp, Some(draining.clone()), true),
        ("the same again", &udp, Some(draining), false),
        ("the TCP port goes", &key("s1"), None, false),
        ("the UDP port goes", &udp, None, true),
    ] {
        assert_eq!(change(key, plan), (left, false), "{case}");
    }
}

#[test]
fn frontends_given_to_udp_ports_are_told_once() {
    let mut tables = applied(FakeStore::new(16, 16, 64), &Desired::default());
    let frontend =
        |protocol| FrontendAddress { address: [10, 96, 0, 1].into(), port: 80, protocol };
    for (case, protocol, holder, given) in [
        ("for TCP", Protocol::Tcp, Some("s1"), false),
        ("for UDP", Protocol::Udp, Some("s1"), true),
        ("to another", Protocol::Udp, Some("s2"), true),
        ("taken away", Protocol::Udp, None, false),
    ] {
        let holder = holder.map(|name| (key(name), FrontendKind::ClusterIp));
        let frontends = [(frontend(protocol), holder)].into();
        tables.apply(&Delta { frontends, ..Delta::default() }).unwrap();
        let told = (tables.take_udp_frontends(), tables.take_udp_frontends());
        assert_eq!(told, (given, false), "{case}");
    }
}

#[test]
fn cluster_ips_that_a_process_listens_at_are_left_to_it_as_long_as_it_does() {
    let dns = ServicePortKey { protocol: Protocol::Udp, ..key("dns") };
    let at = |last: u8| FrontendAddress { protocol: Protocol::Udp, ..frontend(last) };
    let (cluster_ip, external) = (at(1), at(2));
    let mut desired = Desired::default();
    desired.ports.insert(dns.clone(), plan(FrontendKind::ClusterIp, 1, &[1]).into());
    desired.frontends.insert(cluster_ip, (dns.clone(), FrontendKind::ClusterIp));
    desired.frontends.insert(external, (dns.clone(), FrontendKind::ExternalIp));
    let mut tables = applied(FakeStore::new(16, 16, 64), &desired);
    let own: BTreeMap<_, _> = [cluster_ip, external].map(|own| (own.address, false)).into();
    let facts = NodeFacts { addresses: own, ..NodeFacts::default() };
    tables.set_node(&facts, |_| false).unwrap();
    assert_eq!(tables.cluster_ips_of_node(), [cluster_ip.address].into());

    let both = || [cluster_ip, external].into();
    let served = |tables: &Tables<FakeStore>| {
        let has = |address| tables.store().frontends.contains_key(&encode::frontend_key(&address));
        (has(cluster_ip), has(external))
    };
    assert!(tables.set_listeners(both()).unwrap());
    assert_eq!(served(&tables), (false, true), "an external IP is the Service's");
    assert!(!tables.set_listeners(both()).unwrap(), "nothing is new");
    tables.take_udp_frontends();
    assert!(!tables.take_udp_left(), "what was led goes on");
    tables
        .apply(&Delta {
            frontends: [(cluster_ip, Some((dns.clone(), FrontendKind::ClusterIp)))].into(),
            ..Delta::default()
        })
        .unwrap();
    assert_eq!(served(&tables), (false, true), "written again");
    let left: Vec<_> = tables.left_to_listeners().collect();
    assert_eq!(left, [(&cluster_ip, &dns)]);

    // The next agent looks before it writes.
    let mut tables = Tables::adopt(tables.into_store()).unwrap();
    assert!(!tables.set_listeners(both()).unwrap());
    tables.reconcile(&desired).unwrap();
    assert_eq!(served(&tables), (false, true), "of the agent before");
    tables.take_udp_frontends();
    assert!(tables.set_listeners([external].into()).unwrap());
    assert_eq!(served(&tables), (true, true));
    assert!(tables.take_udp_left() && tables.take_udp_frontends(), "sockets talk to the process");

    tables.set_listeners(both()).unwrap();
    tables.apply(&Delta { frontends: [(cluster_ip, None)].into(), ..Delta::default() }).unwrap();
    assert!(tables.set_listeners([].into()).is_ok_and(|changed| !changed), "no Service has it");
    assert_eq!(served(&tables), (false, true));
}

#[test]
fn ports_whose_silence_changes_are_told_by_their_protocol() {
    let tcp = key("silent");
    let udp = ServicePortKey { protocol: Protocol::Udp, ..tcp.clone() };
    let of_policy = |internal_local: bool, backends: &[u8], are_local: bool| ServicePortPlan {
        internal_local,
        endpoints: endpoints(
            backends.iter().map(|last| backend(*last, Placement::Remote)).collect(),
            |_| are_local,
        ),
        ..plan(FrontendKind::ClusterIp, 2, backends)
    };
    let of_ranges = |ranges: &[&str]| ServicePortPlan {
        source_ranges: Some(ranges.iter().map(|range| range.parse().unwrap()).collect()),
        ..plan(FrontendKind::LoadBalancer, 2, &[1])
    };
    for protocol in [&udp, &tcp] {
        let is_udp = protocol.protocol == Protocol::Udp;
        let mut tables = applied(FakeStore::new(16, 16, 4096), &Desired::default());
        for (case, plan, told) in [
            ("there wasn't any", of_policy(true, &[1], false), false),
            ("another endpoint elsewhere", of_policy(true, &[1, 2], false), false),
            ("they are here", of_policy(true, &[1, 2], true), true),
            ("they aren't any more: nothing was silent", of_policy(true, &[1, 2], false), false),
            ("policy Cluster", of_policy(false, &[1, 2], false), true),
            ("one leaves", of_policy(false, &[1], false), is_udp),
            ("ranges", of_ranges(&["10.0.0.0/8"]), false),
            ("the same ranges", of_ranges(&["10.0.0.0/8"]), false),
            ("other ranges", of_ranges(&["192.0.2.0/24"]), true),
            ("no ranges", plan(FrontendKind::LoadBalancer, 2, &[1]), true),
        ] {
            let ports = [(protocol.clone(), Some(Arc::new(plan)))].into();
            tables.apply(&Delta { ports, ..Delta::default() }).unwrap();
            let (udp, tcp) = (tables.take_udp_left(), tables.take_tcp_silence_ended());
            assert_eq!((udp, tcp), (told && is_udp, told && !is_udp), "{case}, {protocol:?}");
        }
        for (case, plan, told) in [
            ("a silent port comes", Some(Arc::new(of_policy(true, &[1], false))), false),
            ("and goes", None, true),
        ] {
            let ports = [(protocol.clone(), plan)].into();
            tables.apply(&Delta { ports, ..Delta::default() }).unwrap();
            assert_eq!(tables.take_tcp_silence_ended(), told && !is_udp, "{case}, {protocol:?}");
        }
    }
}

#[test]
fn endpoints_that_left_udp_ports_while_no_agent_ran_are_told_by_the_next_one() {
    let udp = ServicePortKey { protocol: Protocol::Udp, ..key("udp") };
    let with = |backends: &[u8]| {
        let mut desired = Desired::default();
        desired.ports.insert(udp.clone(), plan(FrontendKind::ClusterIp, 2, backends).into());
        desired
    };
    let before = applied(FakeStore::new(16, 16, 64), &with(&[1, 2]));
    let mut tables = Tables::adopt(before.into_store()).unwrap();
    tables.reconcile(&with(&[1, 2])).unwrap();
    assert!(!tables.take_udp_left());
    let mut tables = Tables::adopt(tables.into_store()).unwrap();
    tables.reconcile(&with(&[2])).unwrap();
    assert!(tables.take_udp_left());
}

fn nets(texts: &[&str]) -> BTreeSet<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn service_ranges_are_exchanged_without_a_write_to_one_in_use() {
    let mut tables = Tables::adopt(FakeStore::new(4, 4, 16)).unwrap();
    let many: Vec<String> = (0..8).map(|n| format!("10.{n}.0.0/16")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let others: Vec<String> = (4..12).map(|n| format!("10.{n}.0.0/16")).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    for texts in
        [&["10.0.0.0/16", "fd00::/112"][..], &many, &others, &["10.9.0.0/16"], &["fd01::/112"], &[]]
    {
        let wanted = nets(texts);
        let delta = Delta { ranges: Some(wanted.clone()), ..Delta::default() };
        tables.apply(&delta).unwrap();
        let holds = |text: &str| {
            let address = Address::from(text.parse::<IpAddr>().unwrap());
            let family = if address.is_v4() { 0 } else { 1 };
            tables.store.service_ranges[family].hold(address)
        };
        for n in 0..13 {
            let text = format!("10.{n}.1.2");
            let expected =
                wanted.iter().any(|range| range.contains(&text.parse::<IpAddr>().unwrap()));
            assert_eq!(holds(&text), expected, "{text} in {texts:?}");
        }
        assert_eq!(holds("fd00::1"), texts.contains(&"fd00::/112"));
        assert_eq!(holds("fd01::1"), texts.contains(&"fd01::/112"));
        let writes = tables.store.writes;
        tables.apply(&delta).unwrap();
        assert_eq!(tables.store.writes, writes, "the same ranges write nothing");
    }
}

#[test]
fn after_a_restart_the_ranges_stay_until_somebody_tells_them_anew() {
    let mut tables = Tables::adopt(FakeStore::new(4, 4, 16)).unwrap();
    let mut desired = Desired { ranges: Some(nets(&["10.96.0.0/16"])), ..Desired::default() };
    tables.reconcile(&desired).unwrap();
    let mut tables = Tables::adopt(tables.into_store()).unwrap();
    desired.ranges = None;
    tables.reconcile(&desired).unwrap();
    assert_eq!(tables.store.service_ranges[0].used, 1);
    desired.ranges = Some(BTreeSet::new());
    tables.reconcile(&desired).unwrap();
    assert_eq!(tables.store.service_ranges[0].used, 0);
}
