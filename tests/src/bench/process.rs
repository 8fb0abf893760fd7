//! A real `lb-agent run` with ten thousand Services: its memory, and a change through all of it.

use std::io::Write as _;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_lab::{Agent, AgentOptions, Lab, Xdp};
use serde_json::json;

use super::pods::{Running, await_ready, myself};
use super::report::Report;
use super::sample::{Samples, nanos, time};
use super::scale::NODE;
use super::visible::Visible;
use super::{SERVICES, api, objects, top};

/// Changes that are measured.
const CHANGES: u32 = 1_000;
/// Between two changes, so that none waits for the one before.
const PAUSE: Duration = Duration::from_millis(3);
/// After the lists were written, until the memory is read.
const SETTLE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that the agent may use.
const GOAL: u64 = 100 << 20;

/// Measures and reports.
pub(super) fn measure(lab: &Lab, program: &Path, report: &mut Report) -> Result<()> {
    eprintln!("bench: a real agent with {SERVICES} Services");
    report.section(
        "The agent's process with ten thousand Services",
        &format!(
            "`lb-agent run` on a node of the lab, fed by an API server that serves the lists in the pages \
             that are asked for and one watch. Memory: /proc/PID/status {} s after the agent is ready. \
             RssFile holds the mapped BPF arrays, which are kernel memory of a fixed size (the maps' \
             capacity), and the program text. A change: from the order to the API server to a read by \
             bpf(2) that finds the new endpoints; {CHANGES} changes, one every {} ms.",
            SETTLE.as_secs(),
            PAUSE.as_millis(),
        ),
    );
    let mut server = myself(lab, NODE, "api")?;
    let server = server.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut server = Running(server.context("start the API server")?);
    await_ready(&mut server)?;
    let mut orders = server.0.stdin.take().context("the API server has no input")?;
    let kubeconfig = lab.directory().join("bench-kubeconfig");
    std::fs::write(&kubeconfig, kube_config().to_string()).context("write the kubeconfig")?;
    let options = AgentOptions {
        binary: program.to_owned(),
        manifests: None,
        xdp: Xdp::Off,
        arguments: vec!["--kubeconfig".to_owned(), kubeconfig.display().to_string()],
        patience: PATIENCE,
    };
    let started = Instant::now();
    let agent = Agent::start(lab, NODE, &options)?;
    let ready = started.elapsed();
    let visible = Visible::open(&lab.bpffs(NODE))?;
    await_all(&visible)?;
    let written = started.elapsed();
    std::thread::sleep(SETTLE);
    let memory = Memory::read(agent.pid().context("the agent has no process")?)?;
    let samples = changes(&visible, &mut orders)?;
    let after = Memory::read(agent.pid().context("the agent has no process")?)?;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let row = |name: &str, value: fn(&Memory) -> u64| {
        [name.to_owned(), mib(value(&memory)), mib(value(&after))]
    };
    report.table(
        ["Memory", "at rest", "after the changes"],
        &[
            row("VmRSS", |memory| memory.resident),
            row("of it RssAnon (heap, stacks)", |memory| memory.anonymous),
            row("of it RssFile + RssShmem (maps, text)", |memory| memory.mapped),
            row("VmHWM (greatest ever)", |memory| memory.peak),
        ],
    );
    report.table(
        ["Time", ""],
        &[
            ["from start to ready".to_owned(), time(nanos(ready))],
            ["from start to all Services read back".to_owned(), time(nanos(written))],
            ["one change, p50".to_owned(), time(samples.percentile(50))],
            ["one change, p99".to_owned(), time(samples.percentile(99))],
            ["one change, slowest".to_owned(), time(samples.percentile(100))],
        ],
    );
    report.goal(
        "agent memory with 10,000 Services under 100 MiB (VmRSS)",
        &format!(
            "{}, of which {} are the agent's own",
            mib(memory.resident),
            mib(memory.anonymous)
        ),
        memory.resident < GOAL,
    );
    top::measure(lab, program, report).context("measure `lb-agent top`")?;
    ensure!(agent.stop()?.success(), "the agent did not end well");
    Ok(())
}

fn kube_config() -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench",
                      "cluster": {"server": format!("http://127.0.0.1:{}", api::PORT)}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    })
}

fn await_all(visible: &Visible) -> Result<()> {
    let started = Instant::now();
    let mut next = 0;
    while next < SERVICES {
        let endpoints = objects::endpoints(next, 0);
        if visible.shows(objects::cluster_ip(next), objects::PORT, &endpoints)? {
            next += 1;
            continue;
        }
        ensure!(started.elapsed() < PATIENCE, "Service {next} is still not in the maps");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn changes(visible: &Visible, orders: &mut ChildStdin) -> Result<Samples> {
    let mut samples = Samples::default();
    for change in 1..=CHANGES {
        let number = change * 7_919 % SERVICES;
        let (address, endpoints) =
            (objects::cluster_ip(number), objects::endpoints(number, change));
        let order = format!("{number} {change}\n");
        let started = Instant::now();
        orders.write_all(order.as_bytes()).context("order a change")?;
        while !visible.shows(address, objects::PORT, &endpoints)? {
            ensure!(started.elapsed() < PATIENCE, "change {change} of {address} is not visible");
        }
        samples.0.push(nanos(started.elapsed()));
        std::thread::sleep(PAUSE);
    }
    Ok(samples)
}

/// What /proc says of a process, in bytes.
struct Memory {
    resident: u64,
    anonymous: u64,
    mapped: u64,
    peak: u64,
}

impl Memory {
    fn read(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let field = |name: &str| -> Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u64>().ok());
            Ok(number.with_context(|| format!("{path} has no {name}"))? << 10)
        };
        Ok(Self {
            resident: field("VmRSS")?,
            anonymous: field("RssAnon")?,
            mapped: field("RssFile")? + field("RssShmem")?,
            peak: field("VmHWM")?,
        })
    }
}
