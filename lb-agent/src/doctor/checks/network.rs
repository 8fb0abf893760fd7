//! The node's network: forwarding, devices, MTUs, addresses.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::{finding, from_error, or_fine};
use crate::cluster::snapshot::IpFamily;
use crate::doctor::facts::{Facts, ServiceAddress};
use crate::doctor::{Finding, Severity};
use crate::takeover::ipvs;
use Severity::{Error, Info, Ok as Fine, Warning};

/// Bytes that an overlay adds to a packet over IPv4, by kind of device.
const OVERHEAD: [(&str, u32); 9] = [
    ("vxlan", 50),
    ("geneve", 50),
    ("wireguard", 60),
    ("ipip", 20),
    ("sit", 20),
    ("gre", 24),
    ("gretap", 38),
    ("ip6tnl", 40),
    ("ip6gre", 44),
];
fn has_global(facts: &Facts, family: IpFamily) -> bool {
    let mut addresses = facts.node.addresses.keys();
    addresses.any(|address| IpFamily::of(*address) == family)
}

pub fn forwarding(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "forwarding";
    let mut found = Vec::new();
    for (family, path) in [(IpFamily::V4, "ipv4"), (IpFamily::V6, "ipv6")] {
        if !has_global(facts, family) {
            continue;
        }
        let is_off = |device: &str| {
            let value = facts.sysctls.get(&format!("net/{path}/conf/{device}/forwarding"));
            value.is_some_and(|value| value == "0")
        };
        for device in facts.node.devices.values().map(|device| device.name.as_str()) {
            if is_off(device) {
                // The kernel carries a change of `all` over to every device; what is equal is no change.
                let switch = if is_off("all") { "all" } else { device };
                found.push(finding(
                    Error,
                    CHECK,
                    format!(
                        "net/{path}/conf/{device}/forwarding is 0: what comes in through {device} from \
                         outside reaches neither pods nor other nodes"
                    ),
                    format!("sysctl -w net/{path}/conf/{switch}/forwarding=1"),
                ));
            }
        }
    }
    or_fine(found, CHECK, "on, for each external device and family")
}

/// The greater of a device's setting and that of all (Documentation/networking/ip-sysctl.rst).
fn rp_filter(facts: &Facts, device: &str) -> u8 {
    let value = |name: &str| {
        let value = facts.sysctls.get(&format!("net/ipv4/conf/{name}/rp_filter"));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    value("all").max(value(device))
}

pub fn reverse_path(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "rp_filter";
    // With one way out every client is routed back where it came from; with several it is so only for
    // those behind the best.
    let ways: BTreeSet<u32> = facts
        .observed
        .routes
        .iter()
        .filter(|route| route.is_default && route.family == IpFamily::V4)
        .map(|route| route.device)
        .collect();
    let strict = facts.node.devices.values().filter(|device| {
        ways.len() > 1 && ways.contains(&device.index) && rp_filter(facts, &device.name) == 1
    });
    let found = strict
        .map(|device| {
            finding(
                Warning,
                CHECK,
                format!(
                    "{} is strict (1), and IPv4 has several default routes: clients that are routed \
                     back through another device are dropped before they are seen",
                    device.name
                ),
                format!("sysctl -w net/ipv4/conf/{}/rp_filter=2", device.name),
            )
        })
        .collect();
    or_fine(found, CHECK, "no client is dropped for the way that it came")
}

pub fn devices(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "devices";
    let names: Vec<_> = facts.node.devices.values().map(|device| device.name.as_str()).collect();
    if names.is_empty() {
        return vec![finding(
            Error,
            CHECK,
            "no external device: clients outside and other nodes can't reach Services here",
            "name the devices with --devices; `ip route show default` shows no device that is up",
        )];
    }
    let absent = |family: IpFamily| {
        let has = facts.node.devices.values().any(|device| match family {
            IpFamily::V4 => device.address4.is_some(),
            IpFamily::V6 => device.address6.is_some(),
        });
        !has
    };
    let mut found = vec![finding(Fine, CHECK, format!("external: {}", names.join(", ")), "")];
    if absent(IpFamily::V4) && absent(IpFamily::V6) {
        found.push(finding(
            Error,
            CHECK,
            "no external device has an address to send from",
            "give one of them a global address",
        ));
    }
    found
}

pub fn mtu(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "mtu";
    let overhead = |kind: &str| OVERHEAD.iter().find(|(name, _)| *name == kind).map(|(_, it)| *it);
    let devices = || facts.node.devices.values();
    let underlay =
        devices().filter(|device| overhead(&device.kind).is_none()).min_by_key(|it| it.mtu);
    let mut found = Vec::new();
    if let Some(underlay) = underlay {
        for device in devices() {
            let Some(overhead) = overhead(&device.kind) else { continue };
            if device.mtu + overhead > underlay.mtu {
                found.push(finding(
                    Warning,
                    CHECK,
                    format!(
                        "{} ({}) has an MTU of {}, and with {overhead} bytes of its own its packets don't \
                         fit into the {} of {}: large ones are fragmented or lost",
                        device.name, device.kind, device.mtu, underlay.mtu, underlay.name
                    ),
                    format!(
                        "set it to {} in the network plugin, or raise that of {}",
                        underlay.mtu.saturating_sub(overhead),
                        underlay.name
                    ),
                ));
            }
        }
    }
    or_fine(found, CHECK, "overlays fit into the devices below them")
}

pub fn addresses(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "addresses";
    let cluster = match &facts.cluster {
        Ok(cluster) => cluster,
        Err(_) => {
            return vec![finding(
                Info,
                CHECK,
                "left out: Services aren't known (see services)",
                "",
            )];
        }
    };
    let mut found = Vec::new();
    let pods: BTreeSet<IpNet> =
        facts.cluster_cidrs.iter().chain(&cluster.pod_cidrs).copied().collect();
    for service in &cluster.addresses {
        found.extend(on_a_device(facts, &cluster.left, service));
        if let Some(range) = pods.iter().find(|range| range.contains(&service.address)) {
            found.push(finding(
                Error,
                CHECK,
                format!(
                    "{} of Service {} is in the pods' range {range}",
                    service.address, service.service
                ),
                "give the Service another address, or pods another range: a pod may get the same",
            ));
        }
    }
    for range in &cluster.ranges {
        let meets = |pods: &&IpNet| pods.contains(range) || range.contains(*pods);
        if let Some(pods) = pods.iter().find(meets) {
            found.push(finding(
                Error,
                CHECK,
                format!("the range of ClusterIPs {range} overlaps the pods' range {pods}"),
                "packets to pods in it are taken for packets to Services; choose ranges apart",
            ));
        }
    }
    let remedy = "give one of the two another address or port";
    let problems = cluster.problems.iter();
    found.extend(problems.map(|problem| from_error(Warning, CHECK, problem, remedy)));
    or_fine(found, CHECK, "each Service address has one owner, and no device or pod has it too")
}

fn on_a_device(
    facts: &Facts,
    left: &BTreeSet<SocketAddr>,
    service: &ServiceAddress,
) -> Option<Finding> {
    let own = facts.observed.addresses.iter().find(|own| own.address == service.address)?;
    let device = facts.observed.links.get(&own.link).map_or("?", |link| link.name.as_str());
    if device == ipvs::DEVICE {
        return None;
    }
    let ServiceAddress { address, service: name, .. } = service;
    let ports: Vec<_> = left
        .iter()
        .filter(|left| left.ip() == *address)
        .map(|left| left.port().to_string())
        .collect();
    Some(if !ports.is_empty() {
        finding(
            Info,
            "addresses",
            format!(
                "a process of this node listens at the ClusterIP {address} of Service {name}, on the device \
                 {device}, and answers port {} there",
                ports.join(", ")
            ),
            "",
        )
    } else if service.is_cluster_ip {
        finding(
            Warning,
            "addresses",
            format!("the ClusterIP {address} of Service {name} is also on the device {device}"),
            format!(
                "no process of this node listens exactly there, so that connections are translated all the \
                 same; ip addr del {}/{} dev {device}",
                own.address, own.prefix_length
            ),
        )
    } else {
        finding(
            Info,
            "addresses",
            format!(
                "{address} of Service {name} is on the device {device}; its ports are the Service's"
            ),
            "",
        )
    })
}
