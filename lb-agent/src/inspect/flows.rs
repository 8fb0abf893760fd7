//! `lb-agent flows`: one line for each flow that the kernel translates.

use std::time::Duration;

use super::rows::{FlowPath, FlowRow, protocol_name};
use super::table::{self, Common};
use crate::args::{FlowsArgs, OutputFormat};

const HEADER: [&str; 6] = ["PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "STATE", "IDLE"];
const WIDE_HEADER: [&str; 9] =
    ["PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "SEEN AS", "PATH", "STATE", "IDLE", "SERVICE"];

/// The text to print for those of `rows` that `args` asks for, the busiest first.
pub fn render(rows: Vec<FlowRow>, args: &FlowsArgs) -> anyhow::Result<String> {
    let mut rows: Vec<_> = rows.into_iter().filter(|row| is_wanted(row, args)).collect();
    rows.sort_by_key(|row| (row.idle_seconds, row.source, row.frontend));
    match args.output {
        OutputFormat::Table => Ok(table::render(&HEADER, rows.iter().map(line))),
        OutputFormat::Wide => Ok(table::render(&WIDE_HEADER, rows.iter().map(wide_line))),
        OutputFormat::Json => table::json(&rows),
        OutputFormat::Yaml => table::yaml(&rows),
    }
}

fn is_wanted(row: &FlowRow, args: &FlowsArgs) -> bool {
    let common = Common {
        service: args.service.clone(),
        namespace: args.namespace.clone(),
        address: args.address,
        protocol: args.protocol.map(Into::into),
    };
    let service = row.service.as_deref().unwrap_or_default();
    let (namespace, name) = service.split_once('/').unwrap_or(("", service));
    let ends = [Some(row.source), Some(row.frontend), Some(row.backend), row.translated_source];
    common.wants_service(namespace, name)
        && common.wants_protocol(row.protocol)
        && args.state.is_none_or(|wanted| wanted.name() == row.state)
        && common.wants_address(ends.into_iter().flatten().map(|end| end.ip()))
}

fn line(row: &FlowRow) -> Vec<String> {
    vec![
        protocol_name(row.protocol).into(),
        row.source.to_string(),
        row.frontend.to_string(),
        row.backend.to_string(),
        row.state.clone(),
        idle(row),
    ]
}

fn wide_line(row: &FlowRow) -> Vec<String> {
    let path = match row.path {
        FlowPath::Local => "local",
        FlowPath::Remote => "remote",
    };
    vec![
        protocol_name(row.protocol).into(),
        row.source.to_string(),
        row.frontend.to_string(),
        row.backend.to_string(),
        table::or_dash(row.translated_source.map(|end| end.to_string()).unwrap_or_default()),
        path.into(),
        row.state.clone(),
        idle(row),
        table::or_dash(row.service.clone().unwrap_or_default()),
    ]
}

fn idle(row: &FlowRow) -> String {
    humantime::format_duration(Duration::from_secs(row.idle_seconds)).to_string().replace(' ', "")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};
    use crate::cluster::snapshot::Protocol;

    fn print(flags: &[&str]) -> String {
        let words = ["lb-agent", "flows"].iter().chain(flags);
        match Args::try_parse_from(words).expect("clap accepts the flags").command {
            Command::Flows(args) => render(rows(), &args).unwrap(),
            other => unreachable!("{other:?}"),
        }
    }

    fn rows() -> Vec<FlowRow> {
        let remote = FlowRow {
            protocol: Protocol::Tcp,
            source: "198.51.100.7:40000".parse().unwrap(),
            frontend: "192.168.1.10:30080".parse().unwrap(),
            backend: "10.244.1.5:8080".parse().unwrap(),
            translated_source: Some("192.168.1.10:61000".parse().unwrap()),
            path: FlowPath::Remote,
            state: "established".into(),
            idle_seconds: 125,
            service: Some("default/web".into()),
        };
        let local = FlowRow {
            protocol: Protocol::Udp,
            source: "[2001:db8::7]:5000".parse().unwrap(),
            frontend: "[2001:db8::10]:30053".parse().unwrap(),
            backend: "[fd00::5]:53".parse().unwrap(),
            translated_source: None,
            path: FlowPath::Local,
            state: "answered".into(),
            idle_seconds: 0,
            service: None,
        };
        vec![remote, local]
    }

    #[test]
    fn the_busiest_flow_comes_first() {
        assert_eq!(
            print(&[]),
            "PROTOCOL   CLIENT               FRONTEND               BACKEND           STATE         \
             IDLE\n\
             UDP        [2001:db8::7]:5000   [2001:db8::10]:30053   [fd00::5]:53      answered      \
             0s\n\
             TCP        198.51.100.7:40000   192.168.1.10:30080     10.244.1.5:8080   established   \
             2m5s\n"
        );
    }

    #[test]
    fn the_wide_table_adds_the_translated_source_the_path_and_the_service() {
        let text = print(&["-o", "wide"]);
        for expected in ["192.168.1.10:61000", "remote", "default/web", "local"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }

    #[test]
    fn filters_leave_only_what_was_asked_for() {
        for (flags, lines) in [
            (&["--service", "web"][..], 1),
            (&["--service", "default/web"], 1),
            (&["--service", "dns"], 0),
            (&["--namespace", "default"], 1),
            (&["--namespace", "kube-system"], 0),
            (&["--state", "answered"], 1),
            (&["--state", "closing"], 0),
            (&["--protocol", "udp"], 1),
            (&["--address", "10.244.1.5"], 1),
            (&["--address", "2001:db8::10"], 1),
        ] {
            assert_eq!(print(flags).lines().count(), 1 + lines, "{flags:?}");
        }
    }

    #[test]
    fn json_has_the_names_of_the_rows() {
        let value: serde_json::Value = serde_json::from_str(&print(&["-o", "json"])).unwrap();
        assert_eq!(value[1]["translated_source"], "192.168.1.10:61000");
        assert_eq!(value[0]["path"], "local");
        assert_eq!(value[0]["service"], serde_json::Value::Null);
    }
}
