//! `lb-agent monitor`: one line, object or document for each event.

use std::net::IpAddr;
use std::time::SystemTime;

use lb_common::abi::{EventHook, EventKinds};
use lb_common::lb::{DropReason, monitor};
use serde::{Serialize, Serializer};

use super::rows::protocol_name;
use super::table;
use crate::args::MonitorFormat;
use crate::cluster::snapshot::Protocol;

/// Columns and their widths; what is longer moves the rest of its line.
const COLUMNS: [(&str, usize); 6] = [
    ("TIME", 24),
    ("EVENT", 25),
    ("PROTOCOL", 8),
    ("CLIENT", 21),
    ("FRONTEND", 21),
    ("BACKEND", 21),
];
const WIDE_COLUMNS: [(&str, usize); 2] = [("AT", 11), ("DEVICE", 15)];
const LAST: &str = "SERVICE";

/// One event. The fields' names are those of the JSON output: they are an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// When.
    pub time: SystemTime,
    /// Why it wasn't served; `None` for a connection.
    pub reason: Option<DropReason>,
    /// Transport protocol, if the packet has one that is served.
    pub protocol: Option<Protocol>,
    /// Who asked, as far as it is known.
    pub client: Option<IpAddr>,
    /// Its port, host byte order; `None` for a socket that isn't bound yet.
    pub client_port: Option<u16>,
    /// What it asked for.
    pub frontend: Option<IpAddr>,
    /// Its port.
    pub frontend_port: Option<u16>,
    /// The endpoint, if one was chosen.
    pub backend: Option<IpAddr>,
    /// Its port.
    pub backend_port: Option<u16>,
    /// Namespace of the Service, if one was involved and still exists.
    pub namespace: Option<String>,
    /// Name of the Service, likewise.
    pub name: Option<String>,
    /// Name of the port, likewise; may be empty.
    pub port_name: Option<String>,
    /// Where it was seen.
    pub hook: Option<EventHook>,
    /// The device that its packet met the program at.
    pub device: Option<String>,
}

/// As it is printed.
#[derive(Serialize)]
struct Printed<'a> {
    time: String,
    event: &'static str,
    reason: Option<&'static str>,
    protocol: Option<&'static str>,
    client: Option<IpAddr>,
    client_port: Option<u16>,
    frontend: Option<IpAddr>,
    frontend_port: Option<u16>,
    backend: Option<IpAddr>,
    backend_port: Option<u16>,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    port_name: Option<&'a str>,
    at: Option<&'static str>,
    device: Option<&'a str>,
}

impl Serialize for EventRow {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let printed = Printed {
            time: self.time_text(),
            event: self.event_name(),
            reason: self.reason.map(DropReason::label),
            protocol: self.protocol.map(protocol_name),
            client: self.client,
            client_port: self.client_port,
            frontend: self.frontend,
            frontend_port: self.frontend_port,
            backend: self.backend,
            backend_port: self.backend_port,
            namespace: self.namespace.as_deref(),
            name: self.name.as_deref(),
            port_name: self.port_name.as_deref(),
            at: self.hook.map(hook_name),
            device: self.device.as_deref(),
        };
        printed.serialize(to)
    }
}

impl EventRow {
    fn time_text(&self) -> String {
        humantime::format_rfc3339_millis(self.time).to_string()
    }

    fn event_name(&self) -> &'static str {
        match monitor::kind(self.reason.map_or(0, |reason| reason as u8)) {
            EventKinds::CONNECTIONS => "connection",
            EventKinds::REFUSALS => "refusal",
            _ => "drop",
        }
    }

    fn service(&self) -> String {
        let (Some(namespace), Some(name)) = (&self.namespace, &self.name) else {
            return "-".to_owned();
        };
        match self.port_name.as_deref() {
            None | Some("") => format!("{namespace}/{name}"),
            Some(port) => format!("{namespace}/{name}:{port}"),
        }
    }

    fn cells(&self) -> [String; 6] {
        let reason = self.reason.map(|reason| format!(" {}", reason.label())).unwrap_or_default();
        [
            self.time_text(),
            format!("{}{reason}", self.event_name()),
            table::or_dash(self.protocol.map(protocol_name).unwrap_or_default().to_owned()),
            end(self.client, self.client_port),
            end(self.frontend, self.frontend_port),
            end(self.backend, self.backend_port),
        ]
    }

    fn wide_cells(&self) -> [String; 2] {
        [
            table::or_dash(self.hook.map(hook_name).unwrap_or_default().to_owned()),
            table::or_dash(self.device.clone().unwrap_or_default()),
        ]
    }
}

/// What comes before the first event, if anything.
pub fn header(format: MonitorFormat) -> Option<String> {
    let names = |columns: &[(&str, usize)]| {
        let names = columns.iter().map(|(name, _)| (*name).to_owned());
        names.collect::<Vec<_>>()
    };
    let line = |wide| line(&names(&COLUMNS), wide, LAST);
    match format {
        MonitorFormat::Table => Some(line(&[])),
        MonitorFormat::Wide => Some(line(&names(&WIDE_COLUMNS))),
        MonitorFormat::Json | MonitorFormat::Yaml => None,
    }
}

/// The text of one event, without the end of its last line.
pub fn render(row: &EventRow, format: MonitorFormat) -> anyhow::Result<String> {
    Ok(match format {
        MonitorFormat::Table => line(&row.cells(), &[], &row.service()),
        MonitorFormat::Wide => line(&row.cells(), &row.wide_cells(), &row.service()),
        MonitorFormat::Json => serde_json::to_string(row)?,
        MonitorFormat::Yaml => format!("---\n{}", serde_yaml_ng::to_string(row)?.trim_end()),
    })
}

fn line(cells: &[String], wide: &[String], last: &str) -> String {
    let mut text = String::new();
    let columns = cells.iter().zip(&COLUMNS).chain(wide.iter().zip(&WIDE_COLUMNS));
    for (cell, (_, width)) in columns {
        text.push_str(&format!("{cell:width$}   "));
    }
    text.push_str(last);
    text
}

fn end(address: Option<IpAddr>, port: Option<u16>) -> String {
    match (address, port) {
        (Some(address), Some(port)) => table::endpoint(address, port),
        (Some(address), None) => address.to_string(),
        (None, _) => "-".to_owned(),
    }
}

const fn hook_name(hook: EventHook) -> &'static str {
    match hook {
        EventHook::Connect => "connect",
        EventHook::SendMessage => "sendmsg",
        EventHook::Ingress => "ingress",
        EventHook::Egress => "egress",
        EventHook::PodIngress => "pod_ingress",
        EventHook::PodEgress => "pod_egress",
        EventHook::Xdp => "xdp",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn connection() -> EventRow {
        EventRow {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            reason: None,
            protocol: Some(Protocol::Tcp),
            client: Some("192.0.2.7".parse().unwrap()),
            client_port: Some(40_000),
            frontend: Some("192.0.2.10".parse().unwrap()),
            frontend_port: Some(30_080),
            backend: Some("10.244.1.7".parse().unwrap()),
            backend_port: Some(8080),
            namespace: Some("default".into()),
            name: Some("web".into()),
            port_name: Some("http".into()),
            hook: Some(EventHook::Ingress),
            device: Some("eth0".into()),
        }
    }

    fn unowned() -> EventRow {
        EventRow {
            reason: Some(DropReason::UnownedAddress),
            protocol: None,
            client: Some("fd00::7".parse().unwrap()),
            client_port: None,
            frontend: Some("fd00:96::9".parse().unwrap()),
            frontend_port: None,
            backend: None,
            backend_port: None,
            namespace: None,
            name: None,
            port_name: None,
            hook: Some(EventHook::Egress),
            ..connection()
        }
    }

    #[test]
    fn lines_stand_under_their_header() {
        let text = [connection(), unowned()].map(|row| render(&row, MonitorFormat::Table).unwrap());
        assert_eq!(
            [header(MonitorFormat::Table).unwrap(), text[0].clone(), text[1].clone()].join("\n"),
            "TIME                       EVENT                       PROTOCOL   \
             CLIENT                  FRONTEND                BACKEND                 SERVICE\n\
             1970-01-01T00:00:01.500Z   connection                  TCP        \
             192.0.2.7:40000         192.0.2.10:30080        10.244.1.7:8080         \
             default/web:http\n\
             1970-01-01T00:00:01.500Z   drop unowned_address        -          \
             fd00::7                 fd00:96::9              -                       -"
        );
    }

    #[test]
    fn the_longest_reason_fits_its_column() {
        for reason in DropReason::ALL {
            let row = EventRow { reason: Some(reason), ..connection() };
            assert!(row.cells()[1].len() <= COLUMNS[1].1, "{reason:?}");
        }
    }

    #[test]
    fn wide_lines_tell_where_it_was_seen() {
        let header = header(MonitorFormat::Wide).unwrap();
        let line = render(&connection(), MonitorFormat::Wide).unwrap();
        for (name, cell) in [("AT", "ingress"), ("DEVICE", "eth0"), ("SERVICE", "default/web")] {
            assert_eq!(header.find(name), line.find(cell), "{name}\n{header}\n{line}");
        }
    }

    #[test]
    fn json_is_one_object_a_line_and_yaml_a_document_with_the_same() {
        let text = render(&connection(), MonitorFormat::Json).unwrap();
        assert!(!text.contains('\n') && header(MonitorFormat::Json).is_none());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["event"], &value["reason"]), (&"connection".into(), &().into()));
        assert_eq!((&value["at"], &value["port_name"]), (&"ingress".into(), &"http".into()));
        let yaml = render(&unowned(), MonitorFormat::Yaml).unwrap();
        let value: serde_json::Value =
            serde_yaml_ng::from_str(yaml.strip_prefix("---\n").unwrap()).unwrap();
        assert_eq!(
            (&value["event"], &value["reason"]),
            (&"drop".into(), &"unowned_address".into())
        );
        assert!(value["client_port"].is_null() && value["protocol"].is_null());
        let refused = EventRow { reason: Some(DropReason::NoEndpoints), ..connection() };
        assert_eq!(serde_json::to_value(&refused).unwrap()["event"], "refusal");
    }
}
