//! Connections from a pod to a ClusterIP, against the same two pods connected directly.
//!
//! Four ways to the same server, measured in turns: directly, through the Service, directly once more
//! (what differs between the two is noise), and directly from a cgroup that has no socket hooks.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use lb_lab::{Agent, AgentOptions, Family, Lab, Xdp};
use serde_json::{Value, json};

use super::peer::{Found, LONG_PORT, Plan, READY, SHORT_PORT, Way};
use super::report::Report;
use super::sample::{Samples, excess, time};

pub(super) const CLIENT: &str = "pod-a1";
const ROUNDS: usize = 60;
/// Percent by which a ClusterIP may be slower.
const GOAL: f64 = 3.0;

/// A server and the Service in front of it.
pub(super) struct Pair {
    pub name: &'static str,
    pub pod: &'static str,
    node: &'static str,
    number: u8,
}

pub(super) const PAIRS: [Pair; 2] = [
    Pair { name: "same node", pod: "pod-a2", node: "node-a", number: 1 },
    Pair { name: "other node", pod: "pod-b1", node: "node-b", number: 2 },
];

impl Pair {
    pub fn cluster_ip(&self, family: Family) -> String {
        match family {
            Family::V4 => format!("10.96.90.{}", self.number),
            Family::V6 => format!("fd00:96::90:{}", self.number),
        }
    }
}

/// A child that ends with us.
pub(super) struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures all pairs.
pub(super) fn measure(lab: &Lab, agent: &Path, report: &mut Report) -> Result<()> {
    let manifests = lab.directory().join("bench-manifests");
    let mut servers = Vec::new();
    for pair in &PAIRS {
        write_manifests(lab, pair, &manifests)?;
        servers.push(start_server(lab, pair.pod)?);
    }
    let options = AgentOptions { xdp: Xdp::Auto, ..AgentOptions::manifests(agent, &manifests) };
    let _agents = [
        Agent::start(lab, "node-a", &options).context("start the agent of node-a")?,
        Agent::start(lab, "node-b", &options).context("start the agent of node-b")?,
    ];
    report.section(
        "Connections from a pod: ClusterIP against direct",
        &format!(
            "One client process in a pod, one server process in another; {ROUNDS} rounds in which each \
             way has its turn (100 connects, 100 requests on fresh connections, 300 one-byte ping-pongs \
             on one connection that stays). A connection is closed by a reset. Connects in a row: median over \
             the rounds of a turn's mean; the percentages are of the time that one takes. \"Again\" is the direct way measured a second time: its difference \
             is the noise. \"No hook\" is the direct way from a cgroup outside the agent's, where no \
             socket hook runs. Percentages are relative to \"direct\"; negative is faster. \
             What a connect through a Service does more: it finds frontend, record, slot and backend (four \
             lookups), writes what getpeername will be asked for (one insert), and forgets it at the close \
             (one delete). That is the floor of this design, 1 to 1.5 µs by the kernel's own counters \
             (kernel.bpf_stats_enabled) on a busy machine; on an established connection nothing is done."
        ),
    );
    let mut rows = Vec::new();
    let mut all = Vec::new();
    for pair in &PAIRS {
        for family in Family::BOTH {
            eprintln!("bench: {family}, {}", pair.name);
            let found = measure_pair(lab, pair, family)?;
            let [direct, service, again, unhooked] = &found;
            let row = |what: &str, value: &dyn Fn(&Found) -> u64| {
                let base = value(direct);
                let percent = |found| format!("{:+.1} %", excess(value(found), base));
                let name = format!("{family}, {}: {what}", pair.name);
                [name, time(base), percent(service), percent(again), percent(unhooked)]
            };
            rows.extend([
                rate(row("connects in a row", &|found| found.connects.median()), direct),
                row("connect + close, p50", &|found| found.connect.median()),
                row("connect + request, p50", &|found| found.requests.median()),
                row("connect + request, p99", &|found| found.requests.percentile(99)),
                row("established, p50", &|found| found.pings.median()),
                row("established, p99", &|found| found.pings.percentile(99)),
            ]);
            all.push(found);
        }
    }
    report.table(["", "direct", "ClusterIP", "again", "no hook"], &rows);
    judge(&all, report);
    Ok(())
}

/// Shows connects per second instead of the time of one.
fn rate(row: [String; 5], direct: &Found) -> [String; 5] {
    let [name, _, service, again, unhooked] = row;
    let rate = 1_000_000_000 / direct.connects.median().max(1);
    [name, format!("{rate} per s"), service, again, unhooked]
}

/// What goals are about: a comparison's name and its samples.
type Judged = (&'static str, fn(&Found) -> &Samples);

const JUDGED: [Judged; 3] = [
    ("connects per second through a ClusterIP within 3 % of direct ones", |found| &found.connects),
    ("requests on fresh connections within 3 % (p50)", |found| &found.requests),
    ("established traffic identical: within 3 % (p50)", |found| &found.pings),
];

/// Judges the greatest difference of each kind, beside that of direct connections to themselves.
fn judge(all: &[[Found; 4]], report: &mut Report) {
    for (what, samples) in JUDGED {
        let (mut worst, mut noise) = (f64::NEG_INFINITY, 0.0_f64);
        for [direct, service, again, _] in all {
            let base = samples(direct).median();
            worst = worst.max(excess(samples(service).median(), base));
            noise = noise.max(excess(samples(again).median(), base).abs());
        }
        let found = format!("at worst {worst:+.1} % (direct again: up to ±{noise:.1} %)");
        report.goal(what, &found, worst <= GOAL);
    }
}

/// Says of a Service what agents that follow `directory` have to know.
pub(super) fn write_manifests(lab: &Lab, pair: &Pair, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for (index, object) in objects(lab, pair)?.iter().enumerate() {
        // JSON is YAML.
        let file = directory.join(format!("{}-{index}.yaml", pair.pod));
        fs::write(&file, object.to_string()).context("write a manifest")?;
    }
    Ok(())
}

/// The Service with its slices.
fn objects(lab: &Lab, pair: &Pair) -> Result<Vec<Value>> {
    let host = lab.host(pair.pod)?;
    let name = format!("bench-{}", pair.pod);
    let ips = Family::BOTH.map(|family| pair.cluster_ip(family));
    let ports =
        |key: &str| json!([{"name": "short", key: SHORT_PORT}, {"name": "long", key: LONG_PORT}]);
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIP": ips[0], "clusterIPs": ips, "ports": ports("port")},
    })];
    for family in Family::BOTH {
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-{family}").to_lowercase(),
                         "labels": {"kubernetes.io/service-name": name}},
            "addressType": family.to_string(), "ports": ports("port"),
            "endpoints": [{"addresses": [host.address.of(family)], "nodeName": pair.node}],
        }));
    }
    Ok(objects)
}

fn measure_pair(lab: &Lab, pair: &Pair, family: Family) -> Result<[Found; 4]> {
    let direct = lab.host(pair.pod)?.address.of(family);
    let service = pair.cluster_ip(family).parse().context("the address of a Service")?;
    let (hooked, unhooked) = (lab.cgroup(CLIENT)?, lab.cgroup("client")?);
    let way = |address, cgroup: &Path| Way { address, cgroup: cgroup.to_owned() };
    let plan = Plan {
        ways: vec![
            way(direct, &hooked),
            way(service, &hooked),
            way(direct, &hooked),
            way(direct, &unhooked),
        ],
        rounds: ROUNDS,
    };
    carry_out(lab, &plan)
}

/// Measures each of a plan's ways from [`CLIENT`].
pub(super) fn carry_out<const N: usize>(lab: &Lab, plan: &Plan) -> Result<[Found; N]> {
    let mut command = myself(lab, CLIENT, "measure")?;
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.context("start the measuring client")?;
    let input = child.stdin.take().context("the client has no input")?;
    serde_json::to_writer(input, plan).context("tell the client its plan")?;
    let output = child.wait_with_output().context("wait for the measuring client")?;
    ensure!(output.status.success(), "the measuring client failed ({})", output.status);
    let found: Vec<Found> = serde_json::from_slice(&output.stdout).context("read the results")?;
    match <[Found; N]>::try_from(found) {
        Ok(found) => Ok(found),
        Err(found) => bail!("{} results instead of {N}", found.len()),
    }
}

/// This program inside a host of the lab.
pub(super) fn myself(lab: &Lab, host: &str, subcommand: &str) -> Result<Command> {
    let this = std::env::current_exe().context("find the path of this program")?;
    let mut command = lab.command(host, this)?;
    command.arg(subcommand);
    Ok(command)
}

pub(super) fn start_server(lab: &Lab, pod: &str) -> Result<Running> {
    let mut command = myself(lab, pod, "serve")?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut server = Running(child.with_context(|| format!("start a server in {pod}"))?);
    await_ready(&mut server)?;
    Ok(server)
}

/// Waits for a child's first line.
pub(super) fn await_ready(running: &mut Running) -> Result<()> {
    let output = running.0.stdout.take().context("the child has no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).context("read the child's first line")?;
    ensure!(line.trim() == READY, "a helper process ended before it was ready");
    Ok(())
}
