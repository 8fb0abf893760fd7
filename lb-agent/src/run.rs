//! `lb-agent run`: puts the parts together and works until it is told to stop.
//!
//! The loop has the main thread to itself, because its writes don't await anything; watches, HTTP
//! and netlink share the runtime's workers.

pub mod control;
pub mod datapath;
pub mod events;
pub mod expiry;
pub mod notices;
pub mod pace;
pub mod reports;
pub mod source;

#[cfg(test)]
mod control_tests;
#[cfg(test)]
mod run_tests;

use std::sync::Arc;

use anyhow::Context as _;
use prometheus_client::collector::Collector;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use crate::args::Switch;
use crate::config::Config;
use crate::config_file::ConfigFile;
use crate::flows::end_stale_sockets;
use crate::memory;
use crate::node::classify::Selection;
use crate::node::observe::Observer;
use crate::node::{cgroup, namespace, pods, ports};
use crate::serve::collect::{Drops, Healthy, Watches};
use crate::serve::health::Health;
use crate::serve::metrics::Metrics;
use crate::serve::process::Process;
use crate::serve::service_health::{self, ServiceHealth, Trouble};
use crate::serve::status::{StatusBoard, status_router};
use crate::serve::traffic::ServiceTraffic;
use crate::serve::{health_router, metrics_router, serve};
use control::{Control, Inputs};
use datapath::{Datapath, FlowExpiry, Opened, Setup, Translations};
use notices::{Notice, Notices};
use reports::Reports;
use source::Server;

/// Worker threads: one can wait for a lock or a file without holding up a watch.
const WORKERS: usize = 2;
/// Events that wait for the API server; more are dropped.
const NOTICES: usize = 64;

/// Runs the agent until SIGTERM or SIGINT, or until the configuration `file` says something else, which is
/// an error: whoever started the agent is to start it again. `open` opens the kernel's side, once everything else
/// that can fail at the start has not.
pub fn run<D: Datapath, F: FlowExpiry, T: Translations>(
    config: Config,
    file: Option<ConfigFile>,
    open: impl FnOnce(&Setup) -> anyhow::Result<Opened<D, F, T>>,
) -> anyhow::Result<()> {
    memory::share();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("lb-agent")
        .enable_all()
        .build()
        .context("start the threads of the runtime")?;
    let result = runtime.block_on(work(config, file, open));
    // Don't wait for requests to a server that may be down.
    runtime.shutdown_background();
    result
}

async fn work<D: Datapath, F: FlowExpiry, T: Translations>(
    config: Config,
    file: Option<ConfigFile>,
    open: impl FnOnce(&Setup) -> anyhow::Result<Opened<D, F, T>>,
) -> anyhow::Result<()> {
    let stop = Stop::new(file).context("handle SIGTERM and SIGINT")?;
    let setup = setup(&config)?;
    let following = source::follow(&config.source, &config.node_name).await?;
    let (observer, observed) = Observer::start().await?;
    tokio::spawn(observer.run());
    let Opened { datapath, flows, sockets, counters } = open(&setup)?;

    let mut collectors: Vec<Box<dyn Collector>> =
        vec![Box::new(Drops(counters.clone())), Box::new(Process::new())];
    if config.traffic_counters == Switch::On && config.service_metrics > 0 {
        collectors.push(Box::new(ServiceTraffic::new(counters, config.service_metrics)));
    }
    let health = Arc::new(Health::new(following.server.is_some()));
    collectors.push(Box::new(Healthy(health.clone())));
    if let Some(server) = &following.server {
        collectors.push(Box::new(Watches(server.watches.clone())));
    }
    let metrics = Metrics::new(collectors);
    metrics.set_snat_ports(&setup.snat_ports);
    let watches = following.server.as_ref().map(|server| server.watches.clone());
    let source = config.source.to_string();
    let board = Arc::new(StatusBoard::new(&config.node_name, source, &setup.snat_ports, watches));
    let stale_flows = Arc::<Notify>::default();
    tokio::spawn(expiry::expire(flows, stale_flows.clone(), metrics.clone()));
    let pods = pods::follow(config.netns_dirs.clone());
    let bell = end_stale_sockets(sockets, pods.clone(), metrics.clone());
    if let Some(address) = config.healthz {
        let router = health_router(health.clone(), metrics.clone());
        tokio::spawn(serve("healthz-bind-address", address, router));
    }
    if let Some(address) = config.metrics {
        let router = metrics_router(metrics.clone()).merge(status_router(board.clone()));
        tokio::spawn(serve("metrics-bind-address", address, router));
    }
    let expects_node = following.server.is_some().then(|| config.node_name.clone());
    let events = following.server.map(|server| spawn_events(server, &config.node_name));
    let notices = Notices::new(events);
    let service_health = Arc::new(ServiceHealth::new(config.nodeport_addresses.clone()));
    spawn_service_health(&service_health, &health, &metrics, &notices);
    let reports = Reports::new(metrics, health, service_health, notices, expects_node)
        .with_sockets(bell)
        .with_flows(stale_flows)
        .with_board(board);

    let Config { node_name, devices, pod_devices, nodeport_addresses, .. } = config;
    let selection = Selection { devices, pod_devices, nodeport_addresses };
    let control = Control::new(&node_name, selection, datapath, reports);
    let inputs = Inputs { changes: following.changes, observed, pods };
    let mut why = Ok(());
    control.run(inputs, async { why = stop.wait().await }).await?;
    tracing::info!("stopped; the datapath stays, `lb-agent cleanup` removes it");
    why
}

/// What the kernel's side is told, found out from the machine where nothing was said.
fn setup(config: &Config) -> anyhow::Result<Setup> {
    let snat_ports = match &config.snat_ports {
        Some(ports) => ports.clone(),
        None => ports::snat_ports()?,
    };
    let setup = Setup {
        bpffs: config.bpffs.clone(),
        cgroup_root: cgroup::cgroup_root(config.cgroup_root.as_deref())?,
        netns_cookie: namespace::netns_cookie()?,
        xdp: config.xdp,
        pod_path: config.pod_path,
        masquerade_all: config.masquerade_all,
        traffic_counters: config.traffic_counters,
        snat_ports,
        cluster_cidrs: config.cluster_cidrs.clone(),
        capacities: config.capacities,
    };
    if !config.cluster_cidrs.is_empty() {
        tracing::info!(
            cidrs = ?config.cluster_cidrs,
            "--cluster-cidr has no effect on traffic: pods are told from other sources by device and \
             socket; `lb-agent doctor` compares Service addresses with it"
        );
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = config.node_name,
        cgroup = %setup.cgroup_root.display(),
        bpffs = %setup.bpffs.display(),
        snat_ports = format_args!("{}-{}", setup.snat_ports.start(), setup.snat_ports.end()),
        "starting"
    );
    Ok(setup)
}

fn spawn_service_health(
    checks: &Arc<ServiceHealth>,
    health: &Arc<Health>,
    metrics: &Metrics,
    notices: &Notices,
) {
    let (metrics, notices) = (metrics.clone(), notices.clone());
    let report = move |trouble: Trouble| {
        tracing::warn!(object = %format_args!("Service {}", trouble.service), "{trouble}");
        notices.send(Notice::health_check_closed(&trouble));
    };
    let count = move |closed| metrics.set_problems("health_check", closed);
    tokio::spawn(service_health::serve(checks.clone(), health.clone(), report, count));
}

fn spawn_events(server: Server, node_name: &str) -> mpsc::Sender<Notice> {
    let (sender, notices) = mpsc::channel(NOTICES);
    tokio::spawn(events::write(server.client, node_name.to_owned(), notices));
    sender
}

/// What ends the agent: signals, and a configuration file that says something else.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    file: Option<ConfigFile>,
}

impl Stop {
    fn new(file: Option<ConfigFile>) -> std::io::Result<Self> {
        Ok(Self {
            file,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(mut self) -> anyhow::Result<()> {
        let changed = async {
            match &self.file {
                Some(file) => {
                    file.changed().await;
                    file.path()
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Ok(()),
            _ = self.interrupt.recv() => Ok(()),
            path = changed => {
                let path = path.display();
                anyhow::bail!("--config {path}: the file has changed; start the agent again with it")
            }
        }
    }
}
