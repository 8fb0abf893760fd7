//! `lb-agent backends`: one line for each endpoint of each Service port.

use super::rows::{BackendOfService, family_name, protocol_name};
use super::table::{self, Common};
use crate::args::{BackendState, BackendsArgs, OutputFormat};

const HEADER: [&str; 9] =
    ["SERVICE", "PORT", "PROTOCOL", "ADDRESS", "LOCAL", "STATE", "CONNECTIONS", "PACKETS", "BYTES"];
const WIDE_HEADER: [&str; 7] =
    ["SERVICE", "PORT", "PROTOCOL", "FAMILY", "ADDRESS", "LOCAL", "STATE"];

/// The text to print for those of `rows` that `args` asks for.
pub fn render(rows: Vec<BackendOfService>, args: &BackendsArgs) -> anyhow::Result<String> {
    let rows: Vec<_> = rows.into_iter().filter(|row| is_wanted(row, args)).collect();
    match args.output {
        OutputFormat::Table => Ok(table::render(&HEADER, rows.iter().map(line))),
        OutputFormat::Wide => Ok(table::render(
            &[&WIDE_HEADER[..], &table::COUNTERS].concat(),
            rows.iter().map(wide_line),
        )),
        OutputFormat::Json => table::json(&rows),
        OutputFormat::Yaml => table::yaml(&rows),
    }
}

fn is_wanted(row: &BackendOfService, args: &BackendsArgs) -> bool {
    let common = Common {
        service: args.service.clone(),
        namespace: args.namespace.clone(),
        address: args.address,
        protocol: args.protocol.map(Into::into),
    };
    common.wants_service(&row.namespace, &row.name)
        && common.wants_protocol(row.protocol)
        && common.wants_address([row.backend.address].into_iter())
        && args.state.is_none_or(|wanted| (wanted == BackendState::Active) == row.backend.active)
}

fn line(row: &BackendOfService) -> Vec<String> {
    let traffic = &row.backend.traffic;
    let sum = |to: Option<u64>, from: Option<u64>| Some(to?.wrapping_add(from?));
    let [service, port, protocol, _, address, local, state] = beginning(row);
    vec![
        service,
        port,
        protocol,
        address,
        local,
        state,
        traffic.connections.to_string(),
        table::count(sum(traffic.packets_to, traffic.packets_from)),
        table::count(sum(traffic.bytes_to, traffic.bytes_from)),
    ]
}

fn wide_line(row: &BackendOfService) -> Vec<String> {
    let mut line = beginning(row).to_vec();
    line.extend(table::counters(&row.backend.traffic));
    line
}

/// The cells of [`WIDE_HEADER`].
fn beginning(row: &BackendOfService) -> [String; 7] {
    let backend = &row.backend;
    [
        format!("{}/{}", row.namespace, row.name),
        table::or_dash(row.port_name.clone()),
        protocol_name(row.protocol).into(),
        family_name(row.family).into(),
        table::endpoint(backend.address, backend.port),
        if backend.local { "yes" } else { "no" }.into(),
        if backend.active { "active" } else { "terminating" }.into(),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use lb_common::abi::Traffic;

    use super::*;
    use crate::args::{Args, Command};
    use crate::cluster::snapshot::{IpFamily, Protocol};
    use crate::inspect::rows::BackendRow;

    fn print(flags: &[&str]) -> String {
        let words = ["lb-agent", "backends"].iter().chain(flags);
        match Args::try_parse_from(words).expect("clap accepts the flags").command {
            Command::Backends(args) => render(rows(), &args).unwrap(),
            other => unreachable!("{other:?}"),
        }
    }

    fn rows() -> Vec<BackendOfService> {
        let row = |name: &str, address: &str, local, active, traffic: Traffic| BackendOfService {
            namespace: "default".into(),
            name: name.into(),
            port_name: String::new(),
            protocol: if name == "dns" { Protocol::Udp } else { Protocol::Tcp },
            family: IpFamily::of(address.parse().unwrap()),
            backend: BackendRow {
                address: address.parse().unwrap(),
                port: 8080,
                local,
                active,
                traffic: traffic.into(),
            },
        };
        let sockets = Traffic { sockets: 3, ..Traffic::default() };
        let packets = Traffic {
            sockets: 1,
            flows: 2,
            packets_to: 10,
            packets_from: 5,
            bytes_to: 1_000,
            bytes_from: 500,
        };
        vec![
            row("web", "10.244.0.1", true, true, sockets),
            row("web", "10.244.1.2", false, false, packets),
            row("dns", "fd00::5", false, true, Traffic::default()),
        ]
    }

    #[test]
    fn what_was_translated_at_sockets_alone_has_no_packets_to_count() {
        assert_eq!(
            print(&["web"]),
            "SERVICE       PORT   PROTOCOL   ADDRESS           LOCAL   STATE         CONNECTIONS   \
             PACKETS   BYTES\n\
             default/web   -      TCP        10.244.0.1:8080   yes     active        3             \
             -         -\n\
             default/web   -      TCP        10.244.1.2:8080   no      terminating   3             \
             15        1500\n"
        );
    }

    #[test]
    fn filters_leave_only_what_was_asked_for() {
        for (flags, lines) in [
            (&["default/web"][..], 2),
            (&["--namespace", "default"], 3),
            (&["--namespace", "kube-system"], 0),
            (&["--protocol", "udp"], 1),
            (&["--address", "10.244.1.2"], 1),
            (&["--state", "active"], 2),
            (&["--state", "terminating"], 1),
            (&["-o", "wide", "--address", "fd00::5"], 1),
        ] {
            assert_eq!(print(flags).lines().count(), 1 + lines, "{flags:?}");
        }
    }

    #[test]
    fn json_and_yaml_say_the_same_and_null_where_nothing_is_known() {
        let value: serde_json::Value = serde_json::from_str(&print(&["-o", "json"])).unwrap();
        assert_eq!(value[1]["traffic"]["bytes_from"], 500);
        assert_eq!(value[1]["active"], false);
        assert_eq!(value[0]["address"], "10.244.0.1");
        assert!(value[0]["traffic"]["packets_to"].is_null());
        let yaml: serde_json::Value = serde_yaml_ng::from_str(&print(&["-o", "yaml"])).unwrap();
        assert_eq!(yaml, value);
    }
}
