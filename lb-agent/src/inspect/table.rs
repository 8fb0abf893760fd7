//! Tables as kubectl prints them: no borders, columns three blanks apart.

use std::net::{IpAddr, SocketAddr};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::rows::TrafficRow;
use crate::cluster::snapshot::Protocol;

/// Headers of all counters.
pub const COUNTERS: [&str; 6] =
    ["CONNECTIONS", "AT SOCKETS", "PACKETS TO", "PACKETS FROM", "BYTES TO", "BYTES FROM"];

/// Lines of `rows` under `header`.
pub fn render(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    let last = header.len().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 3 }));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Rows as one JSON array, one row a line.
pub fn json<T: Serialize>(rows: &[T]) -> anyhow::Result<String> {
    let lines = rows.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(if lines.is_empty() { "[]\n".into() } else { format!("[\n{}\n]\n", lines.join(",\n")) })
}

/// Rows as one YAML sequence.
pub fn yaml<T: Serialize>(rows: &[T]) -> anyhow::Result<String> {
    Ok(serde_yaml_ng::to_string(rows)?)
}

/// A count that may be unknown.
pub fn count(value: Option<u64>) -> String {
    or_dash(value.map(|count| count.to_string()).unwrap_or_default())
}

/// The cells of [`COUNTERS`].
pub fn counters(traffic: &TrafficRow) -> [String; 6] {
    [
        traffic.connections.to_string(),
        traffic.socket_connections.to_string(),
        count(traffic.packets_to),
        count(traffic.packets_from),
        count(traffic.bytes_to),
        count(traffic.bytes_from),
    ]
}

/// `10.0.0.1:80` or `[fd00::1]:80`; `*:80` for a wildcard address.
pub fn endpoint(address: IpAddr, port: u16) -> String {
    if address.is_unspecified() {
        format!("*:{port}")
    } else {
        SocketAddr::new(address, port).to_string()
    }
}

/// An empty cell says so.
pub fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

/// Which rows are wanted, for what both lists have in common.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// NAME or NAMESPACE/NAME.
    pub service: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// One address of the row.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Option<Protocol>,
}

impl Common {
    /// Whether `namespace/name` is the wanted Service.
    pub fn wants_service(&self, namespace: &str, name: &str) -> bool {
        let in_namespace = self.namespace.as_deref().is_none_or(|wanted| wanted == namespace);
        in_namespace
            && self.service.as_deref().is_none_or(|wanted| match wanted.split_once('/') {
                Some((wanted_namespace, wanted_name)) => {
                    wanted_namespace == namespace && wanted_name == name
                }
                None => wanted == name,
            })
    }

    /// Whether one of `addresses` is the wanted one.
    pub fn wants_address(&self, mut addresses: impl Iterator<Item = IpAddr>) -> bool {
        self.address.is_none_or(|wanted| addresses.any(|address| address == wanted))
    }

    /// Whether the protocol is the wanted one.
    pub fn wants_protocol(&self, protocol: Protocol) -> bool {
        self.protocol.is_none_or(|wanted| wanted == protocol)
    }
}
