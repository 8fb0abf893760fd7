//! Ports that must be apart: those of local sockets, NodePorts, and source ports for clients outside.

use std::ops::RangeInclusive;

use super::{finding, from_error, or_fine};
use crate::doctor::facts::Facts;
use crate::doctor::{Finding, Severity};
use Severity::{Error, Warning};

const CHECK: &str = "ports";
/// The API server's default range.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
const LOCAL: &str = "net/ipv4/ip_local_port_range";
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
/// NodePorts that are named one by one.
const NAMED: usize = 4;

pub fn ports(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<Finding> = node_ports_that_sockets_may_get(facts).into_iter().collect();
    match &facts.snat_ports {
        Err(reason) => found.push(from_error(Error, CHECK, reason, "give --snat-port-range")),
        Ok(ports) => found.extend(source_ports(facts, ports)),
    }
    or_fine(found, CHECK, "local ports, NodePorts and source ports for clients outside are apart")
}

fn range(text: &str, between: impl Fn(char) -> bool) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.trim().split_once(between).unwrap_or((text.trim(), text.trim()));
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

/// What the kernel gives to sockets that don't ask for a port.
fn local(facts: &Facts) -> Option<RangeInclusive<u16>> {
    range(facts.sysctls.get(LOCAL)?, char::is_whitespace)
}

/// Whether it leaves one of these out.
fn may_be_given(facts: &Facts, port: u16) -> bool {
    let reserved = facts.sysctls.get(RESERVED).map(String::as_str).unwrap_or_default();
    let mut reserved = reserved.split(',').filter_map(|item| range(item, |c| c == '-'));
    local(facts).is_some_and(|local| local.contains(&port))
        && !reserved.any(|range| range.contains(&port))
}

fn node_ports_that_sockets_may_get(facts: &Facts) -> Option<Finding> {
    let services = facts.cluster.iter().flat_map(|cluster| cluster.node_ports.keys().copied());
    let others = services.filter(|port| !NODE_PORTS.contains(port));
    let others: Vec<u16> = others.filter(|port| may_be_given(facts, *port)).collect();
    let has_default = NODE_PORTS.into_iter().any(|port| may_be_given(facts, port));
    let mut ports: Vec<String> = Vec::new();
    if has_default {
        ports.push(format!("{}-{}", NODE_PORTS.start(), NODE_PORTS.end()));
    }
    ports.extend(others.iter().map(u16::to_string));
    if ports.is_empty() {
        return None;
    }
    let before = facts.sysctls.get(RESERVED).filter(|text| !text.is_empty());
    let reserved: Vec<&str> = before.into_iter().chain(&ports).map(String::as_str).collect();
    let local = local(facts)?;
    Some(finding(
        Warning,
        CHECK,
        format!(
            "net.ipv4.ip_local_port_range ({}-{}) holds NodePorts ({}): the node's own connections may \
             be given one, and their answers be taken for requests",
            local.start(),
            local.end(),
            ports.join(",")
        ),
        format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", reserved.join(",")),
    ))
}

fn source_ports(facts: &Facts, ports: &RangeInclusive<u16>) -> Vec<Finding> {
    const CHOOSE: &str = "leave --snat-port-range out, or choose it outside of them, and start the agent \
        again; without it the agent chooses";
    let mut found = Vec::new();
    let (first, last) = (ports.start(), ports.end());
    if let Some(local) = local(facts)
        && ports.clone().any(|port| may_be_given(facts, port))
    {
        found.push(finding(
            Warning,
            CHECK,
            format!(
                "source ports for clients outside ({first}-{last}) overlap \
                 net.ipv4.ip_local_port_range ({}-{}): a flow that meets a local socket's port has to \
                 look for another",
                local.start(),
                local.end()
            ),
            CHOOSE,
        ));
    }
    let services = facts.cluster.iter().flat_map(|cluster| &cluster.node_ports);
    let inside: Vec<String> = services
        .filter(|(port, _)| ports.contains(port))
        .map(|(port, service)| format!("{port} of {service}"))
        .collect();
    if !inside.is_empty() {
        let named = inside.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        found.push(finding(
            Warning,
            CHECK,
            format!(
                "{} NodePorts are among the source ports for clients outside ({first}-{last}): {named}; \
                 an answer to such a port may be taken for a request",
                inside.len()
            ),
            "give --snat-port-range without the range of NodePorts, and start the agent again",
        ));
    }
    found
}
