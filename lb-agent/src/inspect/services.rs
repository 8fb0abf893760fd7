//! `lb-agent services`: one line for each Service port and family.

use super::rows::{PolicyRow, ServiceRow, family_name, kind_name, protocol_name};
use super::table::{self, Common};
use crate::args::{OutputFormat, ServiceFilter, ServicesArgs};

const HEADER: [&str; 7] =
    ["NAMESPACE", "NAME", "PORT", "PROTOCOL", "FRONTENDS", "BACKENDS", "CONNECTIONS"];
const WIDE_HEADER: [&str; 8] =
    ["NAMESPACE", "NAME", "PORT", "PROTOCOL", "FAMILY", "FRONTENDS", "BACKENDS", "POLICY"];
/// As many endpoints as `kubectl get endpoints` shows before it counts the rest.
const SHOWN: usize = 3;

/// The text to print for those of `rows` that `args` asks for.
pub fn render(rows: Vec<ServiceRow>, args: &ServicesArgs) -> anyhow::Result<String> {
    let mut rows = wanted(rows, &args.filter);
    rows.sort_by(|a, b| {
        let key = |row: &ServiceRow| {
            (
                row.namespace.clone(),
                row.name.clone(),
                row.port_name.clone(),
                row.protocol,
                row.family,
            )
        };
        key(a).cmp(&key(b))
    });
    match args.output {
        OutputFormat::Table => Ok(table::render(&HEADER, rows.iter().map(line))),
        OutputFormat::Wide => Ok(table::render(
            &[&WIDE_HEADER[..], &table::COUNTERS, &["DROPS"]].concat(),
            rows.iter().map(wide_line),
        )),
        OutputFormat::Json => table::json(&rows),
        OutputFormat::Yaml => table::yaml(&rows),
    }
}

/// Those of `rows` that `filter` asks for.
pub fn wanted(rows: Vec<ServiceRow>, filter: &ServiceFilter) -> Vec<ServiceRow> {
    let common = Common {
        service: filter.service.clone(),
        namespace: filter.namespace.clone(),
        address: filter.address,
        protocol: filter.protocol.map(Into::into),
    };
    let is_wanted = |row: &ServiceRow| {
        let frontends = row.frontends.iter().map(|frontend| frontend.address);
        let backends = row.backends.iter().map(|backend| backend.address);
        common.wants_service(&row.namespace, &row.name)
            && common.wants_protocol(row.protocol)
            && common.wants_address(frontends.chain(backends))
    };
    rows.into_iter().filter(is_wanted).collect()
}

fn line(row: &ServiceRow) -> Vec<String> {
    vec![
        row.namespace.clone(),
        row.name.clone(),
        table::or_dash(row.port_name.clone()),
        protocol_name(row.protocol).into(),
        frontends(row, false),
        backends(row, SHOWN),
        row.traffic.connections.to_string(),
    ]
}

fn wide_line(row: &ServiceRow) -> Vec<String> {
    let mut line = vec![
        row.namespace.clone(),
        row.name.clone(),
        table::or_dash(row.port_name.clone()),
        protocol_name(row.protocol).into(),
        family_name(row.family).into(),
        frontends(row, true),
        backends(row, usize::MAX),
        policy(&row.policy),
    ];
    line.extend(table::counters(&row.traffic));
    line.push(row.drops.values().sum::<u64>().to_string());
    line
}

/// Where it answers.
pub fn frontends(row: &ServiceRow, with_kind: bool) -> String {
    let texts = row.frontends.iter().map(|frontend| {
        let endpoint = table::endpoint(frontend.address, frontend.port);
        if with_kind { format!("{endpoint}({})", kind_name(frontend.kind)) } else { endpoint }
    });
    table::or_dash(texts.collect::<Vec<_>>().join(","))
}

/// Backends on this node are marked with `@`, those that get no new connections with `~`.
fn backends(row: &ServiceRow, shown: usize) -> String {
    let texts = row.backends.iter().take(shown).map(|backend| {
        let mark = match (backend.local, backend.active) {
            (true, true) => "@",
            (true, false) => "@~",
            (false, true) => "",
            (false, false) => "~",
        };
        format!("{}{mark}", table::endpoint(backend.address, backend.port))
    });
    let mut text = texts.collect::<Vec<_>>().join(",");
    if row.backends.len() > shown {
        text.push_str(&format!(" + {} more...", row.backends.len() - shown));
    }
    if text.is_empty() { "<none>".into() } else { text }
}

/// What differs from the default.
pub fn policy(policy: &PolicyRow) -> String {
    let mut words = Vec::new();
    if policy.internal_local {
        words.push("internal=Local".to_owned());
    }
    if policy.external_local {
        words.push("external=Local".to_owned());
    }
    if let Some(seconds) = policy.affinity_timeout {
        words.push(format!("affinity={seconds}s"));
    }
    if let Some(ranges) = &policy.source_ranges {
        let texts: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        let nobody = || "none".to_owned();
        let texts = Some(texts.join("+")).filter(|text| !text.is_empty()).unwrap_or_else(nobody);
        words.push(format!("sources={texts}"));
    }
    table::or_dash(words.join(","))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;
    use lb_common::abi::Traffic;

    use super::*;
    use crate::args::{Args, Command};
    use crate::cluster::snapshot::{IpFamily, Protocol};
    use crate::inspect::rows::{BackendRow, FrontendRow, TrafficRow};
    use crate::plan::desired::FrontendKind;

    fn print(flags: &[&str]) -> String {
        let words = ["lb-agent", "services"].iter().chain(flags);
        match Args::try_parse_from(words).expect("clap accepts the flags").command {
            Command::Services(args) => render(rows(), &args).unwrap(),
            other => unreachable!("{other:?}"),
        }
    }

    fn frontend(address: &str, port: u16, kind: FrontendKind) -> FrontendRow {
        FrontendRow { address: address.parse().unwrap(), port, kind }
    }

    fn rows() -> Vec<ServiceRow> {
        let backend = |last: u8| BackendRow {
            address: [10, 244, 0, last].into(),
            port: 8080,
            local: last == 1,
            active: last != 2,
            traffic: TrafficRow::default(),
        };
        vec![
            ServiceRow {
                namespace: "default".into(),
                name: "web".into(),
                port_name: "http".into(),
                protocol: Protocol::Tcp,
                family: IpFamily::V4,
                frontends: vec![
                    frontend("10.96.0.10", 80, FrontendKind::ClusterIp),
                    frontend("0.0.0.0", 30080, FrontendKind::NodePort),
                ],
                backends: (1..=5).map(backend).collect(),
                traffic: Traffic { sockets: 7, ..Traffic::default() }.into(),
                drops: [("no_endpoints", 4), ("source_range", 2)].into(),
                policy: PolicyRow {
                    external_local: true,
                    affinity_timeout: Some(125),
                    source_ranges: Some(
                        ["10.0.0.0/8", "192.0.2.7/32"].map(|net| net.parse().unwrap()).into(),
                    ),
                    ..PolicyRow::default()
                },
            },
            ServiceRow {
                namespace: "default".into(),
                name: "dns".into(),
                port_name: String::new(),
                protocol: Protocol::Udp,
                family: IpFamily::V6,
                frontends: vec![frontend("fd00:96::a", 53, FrontendKind::ClusterIp)],
                backends: Vec::new(),
                traffic: Traffic { sockets: 1, flows: 2, packets_to: 3, ..Traffic::default() }
                    .into(),
                drops: BTreeMap::new(),
                policy: PolicyRow { source_ranges: Some(Vec::new()), ..PolicyRow::default() },
            },
        ]
    }

    #[test]
    fn the_table_is_sorted_and_counts_what_it_does_not_show() {
        assert_eq!(
            print(&[]),
            "NAMESPACE   NAME   PORT   PROTOCOL   FRONTENDS               \
             BACKENDS                                                        CONNECTIONS\n\
             default     dns    -      UDP        [fd00:96::a]:53         \
             <none>                                                          3\n\
             default     web    http   TCP        10.96.0.10:80,*:30080   \
             10.244.0.1:8080@,10.244.0.2:8080~,10.244.0.3:8080 + 2 more...   7\n"
        );
    }

    #[test]
    fn the_wide_table_shows_all_backends_kinds_and_policies() {
        let text = print(&["-o", "wide", "web"]);
        for expected in [
            "10.244.0.5:8080",
            "*:30080(NodePort)",
            "external=Local,affinity=125s,sources=10.0.0.0/8+192.0.2.7/32",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert!(print(&["-o", "wide", "dns"]).contains("sources=none"), "nobody is admitted");
        assert!(
            text.lines().all(|line| line.ends_with("DROPS") || line.ends_with("   6")),
            "{text}"
        );
    }

    #[test]
    fn filters_leave_only_what_was_asked_for() {
        for (flags, lines) in [
            (&["web"][..], 1),
            (&["default/web"], 1),
            (&["other/web"], 0),
            (&["--namespace", "default"], 2),
            (&["--namespace", "kube-system"], 0),
            (&["--protocol", "udp"], 1),
            (&["--address", "10.244.0.3"], 1),
            (&["--address", "fd00:96::a"], 1),
            (&["--address", "10.244.0.9"], 0),
        ] {
            assert_eq!(print(flags).lines().count(), 1 + lines, "{flags:?}");
        }
    }

    #[test]
    fn json_is_one_array_with_the_names_of_the_rows() {
        let value: serde_json::Value = serde_json::from_str(&print(&["-o", "json"])).unwrap();
        assert_eq!(value[0]["protocol"], "UDP");
        assert_eq!(value[0]["family"], "IPv6");
        assert_eq!(value[1]["frontends"][1]["kind"], "NodePort");
        assert_eq!(value[1]["backends"][0]["local"], true);
        assert_eq!(value[1]["policy"]["affinity_timeout"], 125);
        assert_eq!(value[1]["drops"]["no_endpoints"], 4);
        assert_eq!(value[0]["traffic"]["connections"], 3);
        assert_eq!(value[0]["traffic"]["packets_from"], 0);
        assert_eq!(value[1]["traffic"]["socket_connections"], 7);
        assert!(value[1]["traffic"]["packets_to"].is_null(), "sockets alone: nothing to count");
        let yaml: serde_json::Value = serde_yaml_ng::from_str(&print(&["-o", "yaml"])).unwrap();
        assert_eq!(yaml, value);
        assert_eq!(value[1]["policy"]["source_ranges"][1], "192.0.2.7/32");
        assert_eq!(print(&["-o", "json", "absent"]), "[]\n");
    }
}
