//! What is asked: the two ends as they were typed, and whose they are.

use std::net::{IpAddr, SocketAddr};

use super::TraceError;
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::inspect::rows::{ServiceRow, protocol_name};
use crate::plan::desired::FrontendKind;

/// `--from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// This node.
    Node,
    /// An address, and a port if one was given.
    Address(IpAddr, Option<u16>),
}

/// `--to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// An address and a port.
    Address(SocketAddr),
    /// A Service, and the name or number of its port.
    Service(String, String, Option<String>),
}

/// Reads `--from`.
pub fn from(text: &str) -> Result<From, TraceError> {
    if text == "node" {
        return Ok(From::Node);
    }
    let with_port = text.parse().map(|SocketAddrParts(ip, port)| From::Address(ip, Some(port)));
    let plain = text.trim_start_matches('[').trim_end_matches(']').parse();
    with_port
        .or_else(|()| plain.map(|ip| From::Address(ip, None)))
        .map_err(|_| TraceError::From(text.to_owned()))
}

/// A socket address in its two parts.
struct SocketAddrParts(IpAddr, u16);

impl std::str::FromStr for SocketAddrParts {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().map(|at: SocketAddr| Self(at.ip(), at.port())).map_err(|_| ())
    }
}

/// Reads `--to`.
pub fn to(text: &str) -> Result<To, TraceError> {
    if let Ok(address) = text.parse() {
        return Ok(To::Address(address));
    }
    let wrong = || TraceError::To(text.to_owned());
    let (namespace, rest) = text.split_once('/').ok_or_else(wrong)?;
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => (name, Some(port.to_owned())),
        None => (rest, None),
    };
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(wrong());
    }
    Ok(To::Service(namespace.to_owned(), name.to_owned(), port))
}

/// The address of a Service that a client would use: its ClusterIP, or from outside what is there for
/// the outside. `node` is an address of this node, for NodePorts.
pub fn address_of(
    rows: &[ServiceRow],
    (namespace, name, port): (&str, &str, Option<&str>),
    protocol: Protocol,
    family: Option<IpFamily>,
    is_outside: bool,
    node: &dyn Fn(IpFamily) -> Option<IpAddr>,
) -> Result<SocketAddr, TraceError> {
    let service = format!("{namespace}/{name}");
    let of_service: Vec<_> =
        rows.iter().filter(|row| row.namespace == namespace && row.name == name).collect();
    if of_service.is_empty() {
        return Err(TraceError::NoService(service));
    }
    let is_asked = |row: &ServiceRow| {
        let numbers = || row.frontends.iter().map(|frontend| frontend.port.to_string());
        port.is_none_or(|port| row.port_name == port || numbers().any(|number| number == port))
    };
    let mut rows: Vec<_> = of_service
        .iter()
        .filter(|row| row.protocol == protocol && family.is_none_or(|family| family == row.family))
        .filter(|row| is_asked(row))
        .collect();
    rows.sort_by_key(|row| row.family);
    let Some(first) = rows.first() else {
        let ports = of_service.iter().map(|row| port_text(row)).collect();
        return Err(TraceError::NoPort { service, ports: join(ports) });
    };
    if rows.iter().any(|row| row.port_name != first.port_name) {
        let ports = rows.iter().map(|row| port_text(row)).collect();
        return Err(TraceError::WhichPort { service, ports: join(ports) });
    }
    let rank = |kind: FrontendKind| match (kind, is_outside) {
        (FrontendKind::ClusterIp, false) | (FrontendKind::LoadBalancer, true) => 0,
        (FrontendKind::ExternalIp, _) => 1,
        (FrontendKind::LoadBalancer, false) | (FrontendKind::NodePort, true) => 2,
        (FrontendKind::NodePort, false) | (FrontendKind::ClusterIp, true) => 3,
    };
    let best = first
        .frontends
        .iter()
        // A port's number may be that of one of its frontends alone (a NodePort).
        .filter(|frontend| {
            port.is_none_or(|port| port == first.port_name || port == frontend.port.to_string())
        })
        .min_by_key(|frontend| rank(frontend.kind));
    let address = best.and_then(|frontend| {
        let address = match frontend.kind {
            FrontendKind::NodePort => node(first.family)?,
            FrontendKind::ClusterIp | FrontendKind::ExternalIp | FrontendKind::LoadBalancer => {
                frontend.address
            }
        };
        Some(SocketAddr::new(address, frontend.port))
    });
    address.ok_or(TraceError::NoAddress(service))
}

fn port_text(row: &ServiceRow) -> String {
    let name = if row.port_name.is_empty() {
        row.frontends.first().map(|frontend| frontend.port.to_string()).unwrap_or_default()
    } else {
        row.port_name.clone()
    };
    format!("{name}/{}", protocol_name(row.protocol))
}

fn join(mut ports: Vec<String>) -> String {
    ports.sort();
    ports.dedup();
    ports.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::rows::{FrontendRow, PolicyRow, TrafficRow};

    #[test]
    fn ends_are_read_as_they_are_usually_written() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (text, expected) in [
            ("node", Some(From::Node)),
            ("10.0.0.1", Some(From::Address(ip("10.0.0.1"), None))),
            ("10.0.0.1:80", Some(From::Address(ip("10.0.0.1"), Some(80)))),
            ("fd00::1", Some(From::Address(ip("fd00::1"), None))),
            ("[fd00::1]:80", Some(From::Address(ip("fd00::1"), Some(80)))),
            ("pod-a", None),
        ] {
            assert_eq!(from(text).ok(), expected, "{text}");
        }
        let service =
            |port: Option<&str>| To::Service("a".into(), "b".into(), port.map(str::to_owned));
        for (text, expected) in [
            ("10.0.0.1:80", Some(To::Address("10.0.0.1:80".parse().unwrap()))),
            ("a/b", Some(service(None))),
            ("a/b:http", Some(service(Some("http")))),
            ("10.0.0.1", None),
            ("b", None),
            ("/b", None),
        ] {
            assert_eq!(to(text).ok(), expected, "{text}");
        }
    }

    fn row(
        port_name: &str,
        family: IpFamily,
        frontends: &[(&str, u16, FrontendKind)],
    ) -> ServiceRow {
        let frontends = frontends.iter().map(|(address, port, kind)| FrontendRow {
            address: address.parse().unwrap(),
            port: *port,
            kind: *kind,
        });
        ServiceRow {
            namespace: "a".into(),
            name: "b".into(),
            port_name: port_name.into(),
            protocol: Protocol::Tcp,
            family,
            frontends: frontends.collect(),
            backends: Vec::new(),
            policy: PolicyRow::default(),
            traffic: TrafficRow::default(),
            drops: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_service_is_asked_for_where_its_client_would_and_what_is_not_clear_is_said() {
        use FrontendKind::{ClusterIp, LoadBalancer, NodePort};
        let rows = [
            row(
                "http",
                IpFamily::V4,
                &[("10.96.0.1", 80, ClusterIp), ("0.0.0.0", 30_080, NodePort)],
            ),
            row("http", IpFamily::V6, &[("fd00::1", 80, ClusterIp), ("fd01::1", 80, LoadBalancer)]),
            row("admin", IpFamily::V4, &[("10.96.0.1", 81, ClusterIp)]),
        ];
        let node = |_| Some("192.0.2.1".parse().unwrap());
        let ask = |port, protocol, family, outside| {
            address_of(&rows, ("a", "b", port), protocol, family, outside, &node)
                .map(|address| address.to_string())
                .map_err(|error| error.to_string())
        };
        let (v4, v6) = (Some(IpFamily::V4), Some(IpFamily::V6));
        for (port, family, outside, expected) in [
            (Some("http"), None, false, "10.96.0.1:80"),
            (Some("80"), v6, false, "[fd00::1]:80"),
            (Some("http"), v4, true, "192.0.2.1:30080"),
            (Some("http"), v6, true, "[fd01::1]:80"),
            (Some("30080"), v4, false, "192.0.2.1:30080"),
            (Some("admin"), None, false, "10.96.0.1:81"),
        ] {
            assert_eq!(ask(port, Protocol::Tcp, family, outside).unwrap(), expected, "{port:?}");
        }
        let unclear = ask(None, Protocol::Tcp, v4, false).unwrap_err();
        assert!(unclear.contains("admin/TCP, http/TCP"), "{unclear}");
        let missing = ask(Some("http"), Protocol::Udp, v4, false).unwrap_err();
        assert!(missing.contains("admin/TCP, http/TCP"), "{missing}");
    }
}
