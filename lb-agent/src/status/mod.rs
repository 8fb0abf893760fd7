//! `lb-agent status`: gathers what the pins tell and what the agent says of itself.
//!
//! Judging and printing is `inspect::status`'s. An agent that can't be asked is part of the status
//! and no error.

mod attached;
pub mod http;
mod scrape;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;
use lb_common::abi;

use crate::args::{PinArgs, ServingArgs};
use crate::bpf::attached::attached;
use crate::bpf::read::Reader;
use crate::bpf::{BpfError, kernel_release, users};
use crate::config;
use crate::inspect::status::{
    AgentRow, DropCount, MapRow, ProbeRow, Status, Versions, WatchRow, judge,
};
use crate::serve::status::AgentStatus;
use http::Answer;

/// Looks at this node.
pub fn look(serving: &ServingArgs, pins: &PinArgs) -> anyhow::Result<Status> {
    let (healthz, metrics) = config::serving(serving)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let asked = runtime.block_on(ask(healthz.map(reachable), metrics.map(reachable)));
    let mut status = pinned(&pins.bpffs)?;
    asked.add_to(&mut status);
    judge(&mut status);
    Ok(status)
}

/// What the pins tell.
fn pinned(bpffs: &Path) -> Result<Status, BpfError> {
    let mut status = Status {
        versions: Versions {
            command: env!("CARGO_PKG_VERSION").to_owned(),
            agent: None,
            kernel: kernel_release(),
            map_schema: abi::VERSION,
            pinned_schemas: users::schemas(bpffs)?,
        },
        ..Status::default()
    };
    status.agent.running = users::users(bpffs)?.is_in_use;
    let reader = match Reader::open(bpffs) {
        Ok(reader) => reader,
        // No agent of this version was here.
        Err(BpfError::NoDatapath(_)) => return Ok(status),
        Err(error) => return Err(error),
    };
    if let Some(attached) = attached(bpffs)? {
        status.sockets = Some(attached::sockets(&attached));
        status.devices = attached::devices(&attached);
    }
    for usage in reader.usage()? {
        status.maps.push(MapRow {
            map: usage.map.to_lowercase(),
            entries: usage.entries,
            max_entries: usage.max_entries,
            memory_bytes: usage.memory,
        });
    }
    status.drops = reader
        .drops_by_reason()?
        .into_iter()
        .map(|(reason, packets)| DropCount { reason: reason.label().to_owned(), packets })
        .collect();
    Ok(status)
}

/// What came of asking the agent.
struct Asked {
    probes: Vec<ProbeRow>,
    status: Option<AgentStatus>,
    metrics: Option<String>,
    /// Why the metrics server can't be asked.
    error: Option<String>,
}

async fn ask(healthz: Option<SocketAddr>, metrics: Option<SocketAddr>) -> Asked {
    let mut asked = Asked { probes: Vec::new(), status: None, metrics: None, error: None };
    for path in ["/livez", "/healthz"] {
        if let Some(address) = healthz {
            let answer = http::get(address, path).await;
            let (status, error) = match answer {
                Ok(Answer { status, .. }) => (Some(status), None),
                Err(error) => (None, Some(error)),
            };
            asked.probes.push(ProbeRow { path: path.to_owned(), address, status, error });
        }
    }
    let Some(address) = metrics else { return asked };
    match http::get(address, "/status").await {
        Ok(Answer { status: 200, body }) => match serde_json::from_str(&body) {
            Ok(status) => asked.status = Some(status),
            Err(error) => {
                asked.error =
                    Some(format!("http://{address}/status is of another version: {error}"));
            }
        },
        Ok(Answer { status, .. }) => {
            asked.error = Some(format!("http://{address}/status answers {status}"));
        }
        Err(error) => asked.error = Some(format!("http://{address}/status: {error}")),
    }
    if let Ok(Answer { status: 200, body }) = http::get(address, "/metrics").await {
        asked.metrics = Some(body);
    }
    asked
}

impl Asked {
    fn add_to(self, status: &mut Status) {
        status.probes = self.probes;
        status.agent.unreachable = self.error;
        status.programming = self.metrics.as_deref().and_then(scrape::programming);
        let Some(agent) = self.status else { return };
        status.versions.agent = Some(agent.version);
        let AgentRow { running, unreachable, .. } = std::mem::take(&mut status.agent);
        status.agent = AgentRow {
            running,
            unreachable,
            pid: Some(agent.pid),
            node: Some(agent.node),
            source: Some(agent.source),
            snat_ports: Some(agent.snat_ports),
            datapath_error: agent.datapath_error,
            unfit: agent.unfit,
        };
        status.watches = agent.watches.into_iter().map(WatchRow).collect();
        for attachment in agent.attachments {
            status.add_attachment(attachment);
        }
    }
}

/// Where a server that listens on `address` is asked from here.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        // The agent listens on both families then.
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
