//! Ten thousand Services through the agent's own modules into real maps: from cold, and one endpoint
//! change at that size.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser as _;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_agent::args::{Args, Command, PodPath, Switch, XdpMode};
use lb_agent::bpf::Kernel;
use lb_agent::bpf::cleanup::cleanup;
use lb_agent::cluster::convert::{service, slice};
use lb_agent::cluster::snapshot::Change;
use lb_agent::config::{Capacities, Config};
use lb_agent::datapath::NodeDatapath;
use lb_agent::node::facts::{ClientAddresses, Device, NodeFacts, Role};
use lb_agent::plan::Planner;
use lb_agent::run::datapath::{Datapath as _, Setup};
use lb_lab::Lab;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use serde_json::json;

use super::report::Report;
use super::sample::{Samples, nanos, time};
use super::visible::Visible;
use super::{ENDPOINTS, Part, SERVICES, counters, objects, programs};

/// The node whose BPF file system and cgroup are used.
pub(super) const NODE: &str = "node-c";
/// Changes that are measured.
const CHANGES: u32 = 3_000;
/// The agent's loop does its maintenance once a second; here it is due after as many changes.
const MAINTAIN_AFTER: u32 = 50;

/// Measures and reports, on a thread inside the node.
pub(super) fn measure(
    lab: &Lab,
    wanted: &(impl Fn(Part) -> bool + Sync),
    report: &mut Report,
) -> Result<()> {
    let path = lab.namespace(NODE)?;
    let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("enter the node's namespace")?;
            measure_inside(lab, wanted, report)
        });
        thread.join().map_err(|_| anyhow!("the measuring thread panicked"))?
    })
}

fn measure_inside(lab: &Lab, wanted: &impl Fn(Part) -> bool, report: &mut Report) -> Result<()> {
    report.section(
        "Ten thousand Services with ten endpoints each",
        &format!(
            "The agent's own modules (convert, Planner, NodeDatapath) in one thread of one process, into \
             pinned maps of the default sizes. Half of the Services are IPv4, half IPv6, one TCP port \
             each; every 25th has a NodePort and so a Maglev table. A change replaces one endpoint of one Service: from the EndpointSlice's JSON to a \
             read by bpf(2) that finds the new set behind the Service's address; {CHANGES} changes."
        ),
    );
    let bpffs = lab.bpffs(NODE);
    let setup = Setup {
        bpffs: bpffs.clone(),
        cgroup_root: lab.cgroup(NODE)?,
        netns_cookie: 0,
        xdp: XdpMode::Off,
        pod_path: PodPath::Socket,
        masquerade_all: false,
        traffic_counters: Switch::On,
        snat_ports: 20_000..=59_999,
        cluster_cidrs: Vec::new(),
        capacities: default_capacities(lab.directory())?,
    };
    let lists = lists();
    let mut planner = Planner::new(NODE);
    let mut datapath = cold(&setup, lists, &mut planner, report)?;
    if wanted(Part::Scale) {
        changes(&bpffs, &mut planner, &mut datapath, report)?;
    }
    let (config, uplink) = begin_packets(lab, &setup, &mut planner, &mut datapath)?;
    if wanted(Part::Scale) {
        programs::measure(lab, &bpffs, &config, uplink, report)?;
    }
    if wanted(Part::Counters) {
        counters::packets(lab, &bpffs, &config, uplink, report)?;
    }
    if wanted(Part::Scale) {
        restart(&setup, &planner, datapath, report)?;
    } else {
        // It would keep the cleanup away.
        drop(datapath);
    }
    cleanup(&bpffs).context("remove the datapath of the measurement")?;
    Ok(())
}

/// Makes these maps know what the packet programs are measured with; their constants, and the node's uplink.
fn begin_packets(
    lab: &Lab,
    setup: &Setup,
    planner: &mut Planner,
    datapath: &mut NodeDatapath,
) -> Result<(lb_common::abi::Config, u32)> {
    let index = if_nametoindex("eth0").context("find the node's uplink")?;
    let address = lab.host(NODE)?.address;
    let uplink = Device {
        role: Role::External,
        name: "eth0".to_owned(),
        index,
        kind: "veth".to_owned(),
        mtu: 1_500,
        ethernet: true,
        uplink: true,
        address4: Some(address.v4),
        address6: Some(address.v6),
    };
    datapath.set_node(&NodeFacts {
        addresses: address.both().into_iter().map(|address| (address, true)).collect(),
        own: ClientAddresses { address4: uplink.address4, address6: uplink.address6 },
        devices: [(index, uplink)].into(),
        ..NodeFacts::default()
    })?;
    datapath.apply(&planner.apply(programs::services(lab)?))?;
    let config = lb_common::abi::Config {
        host_netns_cookie: setup.netns_cookie,
        snat_port_min: *setup.snat_ports.start(),
        snat_port_max: *setup.snat_ports.end(),
        flags: 0,
    };
    Ok((config, index))
}

/// The sizes that `lb-agent run` chooses by itself.
fn default_capacities(directory: &Path) -> Result<Capacities> {
    let directory = directory.to_string_lossy();
    let args = Args::try_parse_from(["lb-agent", "run", "--manifests", &*directory])?;
    match args.command {
        Command::Run(args) => Ok(Config::new(*args, NODE)?.capacities),
        _ => anyhow::bail!("`run` is another command"),
    }
}

/// The lists of Services and slices as an API server answers them.
fn lists() -> (Vec<u8>, Vec<u8>) {
    let list = |version: &str, kind: &str, items: Vec<serde_json::Value>| {
        json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"},
               "items": items})
        .to_string()
        .into_bytes()
    };
    (
        list("v1", "ServiceList", (0..SERVICES).map(objects::service).collect()),
        list(
            "discovery.k8s.io/v1",
            "EndpointSliceList",
            (0..SERVICES).map(|service| objects::slice(service, 0)).collect(),
        ),
    )
}

fn cold(
    setup: &Setup,
    (services, slices): (Vec<u8>, Vec<u8>),
    planner: &mut Planner,
    report: &mut Report,
) -> Result<NodeDatapath> {
    eprintln!("bench: {SERVICES} Services from cold");
    let mut steps = Vec::new();
    let mut watch = Instant::now();
    let mut lap = |step: &str| {
        let took = watch.elapsed();
        steps.push([step.to_owned(), time(nanos(took))]);
        watch = Instant::now();
        took
    };
    let kernel = Kernel::open(setup)?;
    let mut datapath = NodeDatapath::new(kernel);
    lap("load the programs, make the maps");
    let services: List<Service> = serde_json::from_slice(&services).context("decode Services")?;
    let slices: List<EndpointSlice> = serde_json::from_slice(&slices).context("decode slices")?;
    lap("decode both lists");
    let services = services.items.iter().filter_map(|object| service::service(object).value);
    let slices = slices.items.iter().filter_map(|object| slice::slice(object).value);
    let changes = [Change::AllServices(services.collect()), Change::AllSlices(slices.collect())];
    lap("convert");
    let delta = planner.apply(changes);
    let plan = lap("plan");
    ensure!(delta.ports.len() == SERVICES as usize, "{} ports were planned", delta.ports.len());
    datapath.set_node(&NodeFacts::default())?;
    let applied = datapath.begin_from(planner.desired())?;
    let apply = lap("apply");
    ensure!(applied.unfit.is_empty(), "{} Service ports did not fit", applied.unfit.len());
    let visible = Visible::open(&setup.bpffs)?;
    for number in 0..SERVICES {
        let (address, endpoints) = (objects::cluster_ip(number), objects::endpoints(number, 0));
        ensure!(visible.shows(address, objects::PORT, &endpoints)?, "{address} is not there");
    }
    lap("read everything back by bpf(2)");
    report.table(["From cold", "time"], &steps);
    let found = plan + apply;
    report.goal(
        "plan and apply 10,000 Services of 10 endpoints in 1 s",
        &time(nanos(found)),
        found < Duration::from_secs(1),
    );
    Ok(datapath)
}

fn changes(
    bpffs: &Path,
    planner: &mut Planner,
    datapath: &mut NodeDatapath,
    report: &mut Report,
) -> Result<()> {
    eprintln!("bench: {CHANGES} changes");
    let visible = Visible::open(bpffs)?;
    let mut parts: BTreeMap<usize, (&str, Samples)> = BTreeMap::new();
    let mut maintenance = Samples::default();
    for change in 1..=CHANGES {
        // 7919 is prime and no factor of the number of Services: every change meets another one.
        let number = change * 7_919 % SERVICES;
        let text = objects::slice(number, change).to_string();
        let (address, endpoints) =
            (objects::cluster_ip(number), objects::endpoints(number, change));
        let mut marks = Vec::with_capacity(6);
        marks.push(("", Instant::now()));
        let object: EndpointSlice = serde_json::from_slice(text.as_bytes())?;
        marks.push(("decode", Instant::now()));
        let value = slice::slice(&object).value.context("the slice has no value")?;
        marks.push(("convert", Instant::now()));
        let delta = planner.apply([Change::Slice(value)]);
        marks.push(("plan", Instant::now()));
        datapath.apply(&delta)?;
        marks.push(("apply", Instant::now()));
        let is_visible = visible.shows(address, objects::PORT, &endpoints)?;
        marks.push(("read back", Instant::now()));
        ensure!(is_visible, "change {change} of {address} is not visible");
        let pairs = marks.iter().zip(marks.iter().skip(1));
        for (index, ((_, start), (name, end))) in pairs.enumerate() {
            let part = parts.entry(index).or_insert((name, Samples::default()));
            part.1.0.push(nanos(*end - *start));
        }
        let ends = marks.first().zip(marks.last()).context("no marks")?;
        let whole = parts.entry(usize::MAX).or_insert(("all of it", Samples::default()));
        whole.1.0.push(nanos(ends.1.1 - ends.0.1));
        if change % MAINTAIN_AFTER == 0 {
            let started = Instant::now();
            datapath.maintain()?;
            maintenance.0.push(nanos(started.elapsed()));
        }
    }
    let row = |name: &str, samples: &Samples| {
        let percentiles = [50, 99, 100].map(|percent| time(samples.percentile(percent)));
        let [p50, p99, max] = percentiles;
        [name.to_owned(), p50, p99, max]
    };
    let mut rows: Vec<_> = parts.values().map(|(name, samples)| row(name, samples)).collect();
    rows.push(row("once a second beside: maintenance", &maintenance));
    report.table(["One endpoint change", "p50", "p99", "slowest"], &rows);
    let p99 = parts.get(&usize::MAX).map_or(u64::MAX, |(_, samples)| samples.percentile(99));
    report.goal(
        "one endpoint change from its JSON to the kernel in 1 ms (p99)",
        &time(p99),
        p99 < 1_000_000,
    );
    Ok(())
}

/// A new agent that finds everything in place.
fn restart(
    setup: &Setup,
    planner: &Planner,
    datapath: NodeDatapath,
    report: &mut Report,
) -> Result<()> {
    drop(datapath);
    let started = Instant::now();
    let mut datapath = NodeDatapath::new(Kernel::open(setup)?);
    let opened = started.elapsed();
    datapath.set_node(&NodeFacts::default())?;
    datapath.begin_from(planner.desired())?;
    let adopted = started.elapsed() - opened;
    let rows = [
        ["load the programs, open the maps".to_owned(), time(nanos(opened))],
        ["read the maps, find that all is right".to_owned(), time(nanos(adopted))],
    ];
    report.table([&*format!("Restart with {} endpoints", SERVICES * ENDPOINTS), "time"], &rows);
    Ok(())
}
