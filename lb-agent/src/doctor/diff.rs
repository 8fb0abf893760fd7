//! The maps against the cluster: what is missing in the kernel, what is there too much, what differs.

use std::collections::{BTreeMap, BTreeSet};

use crate::bpf::slots::Misled;
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::inspect::rows::{
    BackendRow, FrontendRow, ServiceRow, TrafficRow, family_name, protocol_name,
};
use crate::inspect::table::endpoint;
use crate::plan::desired::{Desired, Placement};

/// Backends and frontends of one difference that are named.
const NAMED: usize = 4;

type Key = (String, String, String, Protocol, IpFamily);

/// One line for each Service port whose maps aren't as planned.
pub fn differences(desired: &Desired, present: &[ServiceRow]) -> Vec<String> {
    let key = |row: &ServiceRow| -> Key {
        let ServiceRow { namespace, name, port_name, protocol, family, .. } = row.clone();
        (namespace, name, port_name, protocol, family)
    };
    let wanted: BTreeMap<Key, ServiceRow> =
        rows(desired).into_iter().map(|row| (key(&row), row)).collect();
    let present: BTreeMap<Key, &ServiceRow> = present.iter().map(|row| (key(row), row)).collect();
    let missing = wanted.keys().filter(|key| !present.contains_key(*key));
    let extra = present.keys().filter(|key| !wanted.contains_key(*key));
    let mut lines: Vec<String> =
        missing.map(|key| format!("{} is missing in the maps", name(key))).collect();
    lines.extend(extra.map(|key| format!("{} is in the maps, and no Service any more", name(key))));
    for (key, wanted) in &wanted {
        if let Some(parts) = present.get(key).map(|present| parts(wanted, present))
            && !parts.is_empty()
        {
            lines.push(format!("{}: {}", name(key), parts.join("; ")));
        }
    }
    lines
}

/// The line for a Service port whose slots don't lead to its backends.
pub fn misled(found: &Misled) -> String {
    let Misled { name, protocol, family, astray, unreached } = found;
    let protocol = protocol.map_or("?", protocol_name);
    let mut parts = Vec::new();
    if *astray > 0 {
        parts.push(format!("{astray} of its slots lead elsewhere than to its backends"));
    }
    if *unreached > 0 {
        parts.push(format!("no slot leads to {unreached} of its backends"));
    }
    format!("{name} ({protocol}, {}): {}", family_name(*family), parts.join("; "))
}

fn name((namespace, name, port, protocol, family): &Key) -> String {
    let port = if port.is_empty() { String::new() } else { format!(":{port}") };
    format!("{namespace}/{name}{port} ({}, {})", protocol_name(*protocol), family_name(*family))
}

fn parts(wanted: &ServiceRow, present: &ServiceRow) -> Vec<String> {
    let frontend = |row: &FrontendRow| endpoint(row.address, row.port);
    let backend = |row: &BackendRow| {
        let mark = if row.local { "@" } else { "" };
        format!("{}{mark}", endpoint(row.address, row.port))
    };
    let set = |texts: Vec<String>| -> BTreeSet<String> { texts.into_iter().collect() };
    let mut parts = Vec::new();
    for (what, wanted, present) in [
        (
            "address",
            set(wanted.frontends.iter().map(frontend).collect()),
            set(present.frontends.iter().map(frontend).collect()),
        ),
        (
            "backend",
            set(wanted.backends.iter().map(backend).collect()),
            set(present.backends.iter().filter(|row| row.active).map(backend).collect()),
        ),
    ] {
        let missing: Vec<_> = wanted.difference(&present).cloned().collect();
        let extra: Vec<_> = present.difference(&wanted).cloned().collect();
        for (word, list) in [("missing", missing), ("too much", extra)] {
            if !list.is_empty() {
                parts.push(format!("{word} {what} {}", shorten(&list)));
            }
        }
    }
    let policy = |row: &ServiceRow| {
        let ranges = row.policy.source_ranges.clone();
        let ranges = ranges.map(|ranges| ranges.into_iter().collect::<BTreeSet<_>>());
        let policy = &row.policy;
        (policy.internal_local, policy.external_local, policy.affinity_timeout, ranges)
    };
    if policy(wanted) != policy(present) {
        parts.push("another policy, affinity or list of sources".to_owned());
    }
    parts
}

fn shorten(list: &[String]) -> String {
    let mut text = list.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if list.len() > NAMED {
        text.push_str(&format!(" and {} more", list.len() - NAMED));
    }
    text
}

/// What `lb-agent services` would print if the maps were as planned.
fn rows(desired: &Desired) -> Vec<ServiceRow> {
    let mut frontends: BTreeMap<_, Vec<FrontendRow>> = BTreeMap::new();
    for (address, (key, kind)) in &desired.frontends {
        let row = FrontendRow { address: address.address, port: address.port, kind: *kind };
        frontends.entry(key).or_default().push(row);
    }
    let row = |(key, plan): (
        &crate::plan::desired::ServicePortKey,
        &std::sync::Arc<crate::plan::desired::ServicePortPlan>,
    )| {
        let backends = plan.active().iter().map(|backend| BackendRow {
            address: backend.address.ip(),
            port: backend.address.port(),
            local: backend.placement == Placement::Local,
            active: true,
            traffic: TrafficRow::default(),
        });
        ServiceRow {
            namespace: key.service.namespace.to_string(),
            name: key.service.name.to_string(),
            port_name: key.port_name.to_string(),
            protocol: key.protocol,
            family: key.family,
            frontends: frontends.remove(key).unwrap_or_default(),
            backends: backends.collect(),
            traffic: TrafficRow::default(),
            drops: BTreeMap::new(),
            policy: crate::inspect::rows::PolicyRow {
                internal_local: plan.internal_local,
                external_local: plan.external_local,
                affinity_timeout: plan.affinity_timeout,
                source_ranges: plan.source_ranges.clone(),
            },
        }
    };
    desired.ports.iter().map(row).collect()
}
