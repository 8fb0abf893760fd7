//! `lb-agent status`: one screen of what is there, and what is wrong with it.
//!
//! The fields' names are those of the JSON and YAML output: they are an interface.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::table;
use crate::args::StatusFormat;
use crate::serve::status::{Attachment, DatapathError, UnfitPort, WatchStatus, WatchedState};

/// Percent of a map from which on it is worth a line; those that make room by themselves are left out.
const NEARLY_FULL: u64 = 90;
/// Maps whose oldest entries make room: full is how they are meant to be, or no harm.
const MAKE_ROOM: [&str; 7] =
    ["affinity", "peers", "reverse", "fragments4", "fragments6", "drops", "parked"];

/// Everything about this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// All in all.
    pub state: State,
    /// What is wrong, each with its remedy.
    pub problems: Vec<String>,
    /// The agent.
    pub agent: AgentRow,
    /// Versions of everything.
    pub versions: Versions,
    /// What load balancers and the kubelet are told.
    pub probes: Vec<ProbeRow>,
    /// The watches of the API server.
    pub watches: Vec<WatchRow>,
    /// The hooks of sockets.
    pub sockets: Option<SocketsRow>,
    /// The programs on devices.
    pub devices: Vec<DeviceRow>,
    /// The pinned maps.
    pub maps: Vec<MapRow>,
    /// How long changes take to the kernel.
    pub programming: Option<Latency>,
    /// Packets and connections that were not served since the maps were made.
    pub drops: Vec<DropCount>,
}

/// All in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing is wrong.
    Ok,
    /// Something is.
    Degraded,
    /// There is no datapath and no agent.
    #[default]
    Absent,
}

impl State {
    /// For scripts; 1 and 2 are those of errors.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Degraded => 3,
            Self::Absent => 4,
        }
    }
}

/// The agent; what only it can say is missing when it can't be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AgentRow {
    /// One works with the pins.
    pub running: bool,
    /// Why it couldn't be asked.
    pub unreachable: Option<String>,
    /// Its process, in its own namespace.
    pub pid: Option<u32>,
    /// Name of its node.
    pub node: Option<String>,
    /// Where its Services come from.
    pub source: Option<String>,
    /// Source ports for SNAT.
    pub snat_ports: Option<String>,
    /// Why it can't write the datapath.
    pub datapath_error: Option<DatapathError>,
    /// Service ports that it could not write.
    pub unfit: Vec<UnfitPort>,
}

/// Versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Versions {
    /// Of this program.
    pub command: String,
    /// Of the running agent.
    pub agent: Option<String>,
    /// Of Linux.
    pub kernel: String,
    /// Of the layouts of maps, as this program knows them.
    pub map_schema: u32,
    /// Those that are pinned here.
    pub pinned_schemas: Vec<String>,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeRow {
    /// `/livez` or `/healthz`.
    pub path: String,
    /// Where it was asked.
    pub address: SocketAddr,
    /// HTTP status.
    pub status: Option<u16>,
    /// Why there is none.
    pub error: Option<String>,
}

/// One watch, as the agent tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct WatchRow(pub WatchStatus);

/// The socket hooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketsRow {
    /// Directory of the cgroup, or its number where it can't be seen from here.
    pub cgroup: Option<String>,
    /// Hooks that are attached.
    pub attached: usize,
    /// Those that aren't.
    pub missing: Vec<String>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceRow {
    /// Its name.
    pub device: String,
    /// Its index.
    pub index: u32,
    /// `external` or `pod`.
    pub role: String,
    /// `tcx` or `filter`.
    pub tc: Option<String>,
    /// `native`, `generic` or `off`.
    pub xdp: String,
    /// What is as it may be, but could be better.
    pub note: Option<String>,
    /// What is wrong.
    pub problem: Option<String>,
}

/// One map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapRow {
    /// Its name, in lower case as in metrics.
    pub map: String,
    /// Entries in use, where they are counted.
    pub entries: Option<u64>,
    /// Entries that it can hold.
    pub max_entries: u32,
    /// What the kernel reckons for it.
    pub memory_bytes: u64,
}

/// From a decoded change to the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Changes since the agent's start.
    pub changes: u64,
    /// Half of them took at most this.
    pub p50_seconds: f64,
    /// 99 in a hundred.
    pub p99_seconds: f64,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DropCount {
    /// Why, as in metrics.
    pub reason: String,
    /// How many.
    pub packets: u64,
}

impl MapRow {
    fn percent(&self) -> Option<u64> {
        Some(self.entries? * 100 / u64::from(self.max_entries.max(1)))
    }
}

impl Status {
    /// Adds what the agent says of a device to what the pins say.
    pub fn add_attachment(&mut self, attachment: Attachment) {
        let Attachment { device, index, role, xdp, xdp_refusal, error, .. } = attachment;
        let note = xdp_refusal.map(|reason| format!("no native XDP: {reason}"));
        match self.devices.iter_mut().find(|row| row.index == index) {
            Some(row) => {
                row.role = role;
                row.note = note;
                row.problem = error.or_else(|| row.problem.take());
            }
            None => {
                let detached = || "its links are gone; restart the agent".to_owned();
                let problem = Some(error.unwrap_or_else(detached));
                self.devices.push(DeviceRow { device, index, role, tc: None, xdp, note, problem });
            }
        }
    }
}

/// Finds what is wrong, and says so in `problems` and `state`.
pub fn judge(status: &mut Status) {
    let is_pinned = status.sockets.is_some();
    let answers =
        status.versions.agent.is_some() || status.probes.iter().any(|probe| probe.status.is_some());
    let mut problems = Vec::new();
    if !is_pinned && !status.agent.running && !answers {
        status.state = State::Absent;
        return;
    }
    agent_problems(status, is_pinned, &mut problems);
    for WatchRow(watch) in &status.watches {
        if watch.state == WatchedState::Disconnected {
            let reason = watch.reason.as_deref().unwrap_or("no answer yet");
            problems.push(format!(
                "the API server's {} aren't followed ({reason}): Services and endpoints stay as they were; \
                 check the address (--master) and the agent's rights",
                watch.resource
            ));
        }
    }
    if let Some(sockets) = &status.sockets
        && !sockets.missing.is_empty()
    {
        problems.push(format!(
            "socket hooks {} aren't attached: connects to ClusterIPs fail there; restart the agent",
            sockets.missing.join(", ")
        ));
    }
    for device in &status.devices {
        if let Some(problem) = &device.problem {
            problems.push(format!("device {}: {problem}", device.device));
        }
    }
    for map in &status.maps {
        if let Some(percent) = map.percent().filter(|percent| *percent >= NEARLY_FULL)
            && !MAKE_ROOM.contains(&map.map.as_str())
        {
            problems.push(format!(
                "the map {} is {percent} % full: make it larger (docs/operations.md, Sizing)",
                map.map
            ));
        }
    }
    status.state = if problems.is_empty() { State::Ok } else { State::Degraded };
    status.problems = problems;
}

fn agent_problems(status: &Status, is_pinned: bool, problems: &mut Vec<String>) {
    let agent = &status.agent;
    if !agent.running {
        problems.push(
            "no agent runs: the kernel goes on translating to the endpoints that it knows; start one, or \
             remove what is left (lb-agent cleanup)"
                .to_owned(),
        );
        return;
    }
    if !is_pinned {
        problems.push(
            "an agent runs, but not with maps of this program's version; ask with the program that \
             runs"
            .to_owned(),
        );
    }
    if let Some(error) = &agent.unreachable {
        problems.push(format!(
            "the agent can't be asked ({error}); give the address that it runs with \
             (--metrics-bind-address)"
        ));
    }
    for probe in &status.probes {
        match (probe.status, &probe.error) {
            (Some(200), _) => {}
            (Some(answer), _) => problems.push(format!(
                "{} answers {answer}: {}",
                probe.path,
                if probe.path == "/livez" {
                    "changes wait for the kernel; the agent's log says why"
                } else {
                    "the datapath isn't written, is late, or the node is being removed"
                }
            )),
            (None, error) => problems.push(format!(
                "http://{}{}: {}; give the address that the agent runs with (--healthz-bind-address)",
                probe.address,
                probe.path,
                error.as_deref().unwrap_or("no answer")
            )),
        }
    }
    if let Some(error) = &agent.datapath_error {
        problems.push(format!(
            "the datapath can't be written since {}: {}",
            ago(Some(error.since)),
            error.message
        ));
    }
    for UnfitPort { port, reason } in &agent.unfit {
        problems.push(format!("Service {port} is not in the datapath: {reason}"));
    }
    if status.versions.agent.as_deref().is_some_and(|version| version != status.versions.command) {
        problems.push(format!(
            "the agent's version is {}, this program's {}: restart the agent",
            status.versions.agent.as_deref().unwrap_or_default(),
            status.versions.command
        ));
    }
}

/// The text to print.
pub fn render(status: &Status, format: StatusFormat) -> anyhow::Result<String> {
    Ok(match format {
        StatusFormat::Table => screen(status),
        StatusFormat::Json => serde_json::to_string_pretty(status)?,
        StatusFormat::Yaml => serde_yaml_ng::to_string(status)?,
    })
}

fn screen(status: &Status) -> String {
    let mut parts = vec![summary(status)];
    if !status.problems.is_empty() {
        let rows = status.problems.iter().map(|problem| vec![problem.clone()]);
        parts.push(table::render(&["PROBLEM"], rows));
    }
    if !status.probes.is_empty() {
        let rows = status.probes.iter().map(|probe| {
            let answer = probe.status.map(|status| status.to_string());
            let answer = answer.or_else(|| probe.error.clone()).unwrap_or_default();
            vec![probe.path.clone(), probe.address.to_string(), answer]
        });
        parts.push(table::render(&["PROBE", "ADDRESS", "ANSWER"], rows));
    }
    if !status.watches.is_empty() {
        let header = ["WATCH", "STATE", "SINCE", "LAST EVENT", "ERRORS", "REASON"];
        parts.push(table::render(&header, status.watches.iter().map(watch_line)));
    }
    if status.sockets.is_some() || !status.devices.is_empty() {
        let header = ["ATTACHED TO", "ROLE", "TC", "XDP", "NOTE"];
        let sockets = status.sockets.iter().map(sockets_line);
        parts.push(table::render(&header, sockets.chain(status.devices.iter().map(device_line))));
    }
    if !status.maps.is_empty() {
        let header = ["MAP", "ENTRIES", "MAX", "FULL", "MEMORY"];
        parts.push(table::render(&header, status.maps.iter().map(map_line)));
    }
    if !status.drops.is_empty() {
        let rows = status.drops.iter().filter(|drop| drop.packets > 0);
        let rows = rows.map(|drop| vec![drop.reason.clone(), drop.packets.to_string()]);
        let rows: Vec<_> = rows.collect();
        parts.push(if rows.is_empty() {
            "DROPPED\nnothing\n".to_owned()
        } else {
            table::render(&["DROPPED", "PACKETS"], rows)
        });
    }
    parts.join("\n")
}

fn summary(status: &Status) -> String {
    let Status { agent, versions, .. } = status;
    let or = |value: Option<&str>| table::or_dash(value.unwrap_or_default().to_owned());
    let state = match status.state {
        State::Ok => "ok",
        State::Degraded => "degraded",
        State::Absent => "no datapath and no agent on this node",
    };
    let latency = status.programming.map(|latency| {
        let text = |seconds: f64| {
            let micros = Duration::from_micros((seconds * 1e6).round() as u64);
            humantime::format_duration(micros).to_string()
        };
        let Latency { changes, p50_seconds, p99_seconds } = latency;
        format!("p50 {}, p99 {} of {changes} changes", text(p50_seconds), text(p99_seconds))
    });
    let pid = agent.pid.map(|pid| format!("running, pid {pid}"));
    let running = if agent.running { pid.as_deref().unwrap_or("running") } else { "not running" };
    let rows = [
        ("STATE", state.to_owned()),
        ("AGENT", running.to_owned()),
        ("NODE", or(agent.node.as_deref())),
        ("SERVICES FROM", or(agent.source.as_deref())),
        ("CHANGE TO KERNEL", or(latency.as_deref())),
        ("SNAT PORTS", or(agent.snat_ports.as_deref())),
        (
            "VERSIONS",
            format!(
                "agent {}, this program {}, Linux {}, map schema v{} (pinned: {})",
                or(versions.agent.as_deref()),
                versions.command,
                versions.kernel,
                versions.map_schema,
                table::or_dash(versions.pinned_schemas.join(" "))
            ),
        ),
    ];
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 3;
    rows.map(|(name, value)| format!("{name:width$}{value}\n")).concat()
}

fn watch_line(WatchRow(watch): &WatchRow) -> Vec<String> {
    let state = match watch.state {
        WatchedState::Connected => "connected",
        WatchedState::Disconnected => "disconnected",
        WatchedState::Hidden => "hidden",
    };
    vec![
        watch.resource.clone(),
        state.to_owned(),
        ago(watch.since),
        ago(watch.last_event),
        watch.errors.to_string(),
        table::or_dash(watch.reason.clone().unwrap_or_default()),
    ]
}

fn sockets_line(sockets: &SocketsRow) -> Vec<String> {
    let total = sockets.attached + sockets.missing.len();
    vec![
        table::or_dash(sockets.cgroup.clone().unwrap_or_default()),
        "sockets".to_owned(),
        "-".to_owned(),
        "-".to_owned(),
        format!("{} of {total} hooks", sockets.attached),
    ]
}

fn device_line(row: &DeviceRow) -> Vec<String> {
    let note = row.problem.as_ref().or(row.note.as_ref());
    vec![
        row.device.clone(),
        row.role.clone(),
        table::or_dash(row.tc.clone().unwrap_or_default()),
        row.xdp.clone(),
        table::or_dash(note.cloned().unwrap_or_default()),
    ]
}

fn map_line(row: &MapRow) -> Vec<String> {
    let percent = row.percent().map(|percent| format!("{percent} %"));
    vec![
        row.map.clone(),
        table::or_dash(row.entries.map(|entries| entries.to_string()).unwrap_or_default()),
        row.max_entries.to_string(),
        table::or_dash(percent.unwrap_or_default()),
        format!("{:.1} MiB", row.memory_bytes as f64 / f64::from(1 << 20)),
    ]
}

/// `3m 5s ago`; a dash for never.
fn ago(time: Option<u64>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let now = SystemTime::UNIX_EPOCH.elapsed().map(|age| age.as_secs()).unwrap_or_default();
    let age = Duration::from_secs(now.saturating_sub(time));
    format!("{} ago", humantime::format_duration(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Status {
        let address = "127.0.0.1:10256".parse().unwrap();
        let probe =
            |path: &str| ProbeRow { path: path.into(), address, status: Some(200), error: None };
        let map = |map: &str, entries| MapRow {
            map: map.into(),
            entries: Some(entries),
            max_entries: 100,
            memory_bytes: 1 << 20,
        };
        let watch = |resource: &str, state| {
            let resource = resource.to_owned();
            WatchRow(WatchStatus {
                resource,
                state,
                since: Some(1),
                last_event: None,
                errors: 0,
                reason: None,
            })
        };
        Status {
            agent: AgentRow { running: true, node: Some("node-a".into()), ..AgentRow::default() },
            versions: Versions {
                command: "1".into(),
                agent: Some("1".into()),
                kernel: "6.1".into(),
                map_schema: 2,
                pinned_schemas: vec!["v2".into()],
            },
            probes: vec![probe("/livez"), probe("/healthz")],
            watches: vec![
                watch("services", WatchedState::Connected),
                watch("servicecidrs", WatchedState::Hidden),
            ],
            sockets: Some(SocketsRow { cgroup: Some("/c".into()), attached: 9, missing: vec![] }),
            devices: vec![DeviceRow {
                device: "eth0".into(),
                index: 2,
                role: "external".into(),
                tc: Some("tcx".into()),
                xdp: "off".into(),
                note: None,
                problem: None,
            }],
            maps: vec![map("flows4", 89), map("affinity", 100)],
            ..Status::default()
        }
    }

    fn judged(change: impl FnOnce(&mut Status)) -> Status {
        let mut status = healthy();
        change(&mut status);
        judge(&mut status);
        status
    }

    #[test]
    fn a_node_that_works_has_no_problem() {
        let status = judged(|_| {});
        assert_eq!((status.state, status.problems), (State::Ok, Vec::new()));
    }

    #[test]
    fn nothing_at_all_is_no_problem_but_said() {
        let mut status = Status::default();
        judge(&mut status);
        assert_eq!(status.state.exit_status(), 4);
        assert!(screen(&status).contains("no datapath and no agent"));
    }

    #[test]
    fn each_fault_is_named_and_printed() {
        type Fault = (fn(&mut Status), &'static str);
        let faults: [Fault; 12] = [
            (|status| status.agent.running = false, "no agent runs"),
            (|status| status.sockets = None, "not with maps of this program's version"),
            (|status| status.agent.unreachable = Some("refused".into()), "--metrics-bind-address"),
            (|status| status.probes[0].status = Some(503), "/livez answers 503"),
            (|status| status.probes[1].status = None, "--healthz-bind-address"),
            (|status| status.watches[0].0.state = WatchedState::Disconnected, "services aren't"),
            (
                |status| status.sockets.as_mut().unwrap().missing.push("connect4".into()),
                "socket hooks connect4",
            ),
            (|status| status.devices[0].problem = Some("is gone".into()), "device eth0: is gone"),
            (|status| status.maps[0].entries = Some(90), "flows4 is 90 % full"),
            (
                |status| {
                    let message = "no room".into();
                    status.agent.datapath_error = Some(DatapathError { message, since: 0 });
                },
                "no room",
            ),
            (
                |status| {
                    let reason = "the map slots is full".into();
                    status.agent.unfit.push(UnfitPort { port: "default/web".into(), reason });
                },
                "Service default/web",
            ),
            (|status| status.versions.agent = Some("2".into()), "version is 2"),
        ];
        for (fault, expected) in faults {
            let status = judged(fault);
            assert_eq!(status.state.exit_status(), 3, "{expected}");
            assert_eq!(status.problems.len(), 1, "{:?}", status.problems);
            assert!(screen(&status).contains(expected), "{expected} in {}", screen(&status));
        }
    }

    #[test]
    fn the_agents_word_is_added_to_what_the_pins_say() {
        let status = judged(|status| {
            let attachment = |device: &str, index, error: Option<&str>| Attachment {
                device: device.into(),
                index,
                role: "external".into(),
                tc: error.is_none().then(|| "tcx".into()),
                xdp: "off".into(),
                xdp_refusal: Some("not supported".into()),
                error: error.map(str::to_owned),
            };
            status.add_attachment(attachment("eth0", 2, None));
            status.add_attachment(attachment("eth1", 3, Some("device is busy")));
        });
        assert_eq!(status.devices[0].note.as_deref(), Some("no native XDP: not supported"));
        assert_eq!(status.problems, ["device eth1: device is busy"]);
    }

    #[test]
    fn json_and_yaml_say_the_same() {
        let status = judged(|status| {
            status.programming = Some(Latency { changes: 3, p50_seconds: 0.5, p99_seconds: 1.0 });
        });
        let json = render(&status, StatusFormat::Json).unwrap();
        let yaml = render(&status, StatusFormat::Yaml).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json, serde_yaml_ng::from_str::<serde_json::Value>(&yaml).unwrap());
        assert_eq!(json["state"], "ok");
        assert_eq!(json["watches"][1]["state"], "hidden");
        assert_eq!(json["maps"][0]["max_entries"], 100);
    }
}
