//! Maps that somebody has changed by hand.

use std::net::IpAddr;

use lb_agent::bpf::Access;
use lb_agent::bpf::maps::PinnedMaps;
use lb_agent::bpf::pins::Pins;
use lb_agent::tables::store::Store as _;
use lb_common::abi::{BackendIndex, FrontendKey, ServiceIndex, ServicePointer};
use lb_common::bytes::Be16;
use lb_lab::Options;

use super::report::{NODE, broken, in_order};
use super::services;
use crate::stage::Stage;

fn maps(stage: &Stage) -> PinnedMaps {
    PinnedMaps::open(&Pins::at(&stage.lab().bpffs(NODE)), Access::ReadWrite).unwrap()
}

#[test]
fn what_somebody_changed_in_the_maps_is_named_with_the_service() {
    let services = services();
    let stage = Stage::up(&Options::default(), &services);
    in_order(&stage, "the node as it is");
    let cluster_ip: IpAddr = services[0].cluster_ip().both()[0];
    let (key, value) = maps(&stage)
        .frontends()
        .unwrap()
        .into_iter()
        .find(|(key, _)| IpAddr::from(key.address) == cluster_ip)
        .unwrap();
    let missing = format!("missing address {cluster_ip}:80");
    broken(
        &stage,
        "a frontend is gone",
        || maps(&stage).remove_frontend(&key).unwrap(),
        &[("error", "services", &missing)],
        |_| maps(&stage).set_frontend(&key, &value).unwrap(),
    );
    let more = FrontendKey { port: Be16::new(81), ..key };
    let extra = format!("too much address {cluster_ip}:81");
    broken(
        &stage,
        "a frontend too much",
        || maps(&stage).set_frontend(&more, &value).unwrap(),
        &[("error", "services", &extra)],
        |_| maps(&stage).remove_frontend(&more).unwrap(),
    );
    let (index, name) = maps(&stage).names().unwrap().pop().unwrap();
    broken(
        &stage,
        "a name is gone",
        || maps(&stage).remove_name(index).unwrap(),
        &[("error", "services", "is missing in the maps")],
        |_| maps(&stage).set_name(index, &name).unwrap(),
    );
    slots_and_backends(&stage, value.service);
}

fn slots_and_backends(stage: &Stage, service: ServiceIndex) {
    let pointer = maps(stage).pointer(service);
    let record = maps(stage).record(pointer.record);
    let slots = maps(stage).slots(record.cluster.offset, record.cluster.len);
    // Behind the list, in the table for clients outside.
    let at = record.cluster_maglev.offset;
    let before = maps(stage).slots(at, 1);
    broken(
        stage,
        "a slot leads to nobody",
        || maps(stage).set_slots(at, &[0]),
        &[("error", "services", "1 of its slots lead elsewhere than to its backends")],
        |_| maps(stage).set_slots(at, &before),
    );
    let backend = BackendIndex(slots[0]);
    let whole = maps(stage).backend(backend);
    broken(
        stage,
        "a backend is gone",
        || maps(stage).set_backend_flags(backend, 0),
        &[
            ("error", "services", "missing backend"),
            ("error", "services", "of its slots lead elsewhere"),
        ],
        |_| maps(stage).set_backend_flags(backend, whole.flags),
    );
    broken(
        stage,
        "nothing is published",
        || maps(stage).publish(service, ServicePointer::default()),
        &[("error", "services", "no slot leads to 2 of its backends")],
        |_| maps(stage).publish(service, pointer),
    );
}
