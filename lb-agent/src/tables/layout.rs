//! What one Service port's run of slots holds: endpoint lists and hash tables, one after another.

use std::net::SocketAddr;

use lb_common::abi::{Region, ServiceIndex, ServiceRecord, SourceSet};
use lb_common::maglev;

use super::alloc::Run;
use super::encode;
use crate::plan::desired::{Backend, FrontendKind, ServicePortPlan};

/// The slots of one Service port and where its parts are, relative to the start of the run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Content of the run: backend indices.
    pub slots: Vec<u32>,
    cluster: Region,
    local: Region,
    cluster_maglev: Region,
    local_maglev: Region,
}

/// Whether hash tables are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashing {
    /// For a Service with addresses that packets from outside may have.
    Tables,
    /// Over the plain list: for ClusterIPs alone, and where the tables don't fit.
    List,
}

impl Hashing {
    /// What a Service port needs.
    pub fn of(plan: &ServicePortPlan) -> Self {
        let outside = plan.frontends.values().any(|kind| match kind {
            FrontendKind::ExternalIp | FrontendKind::LoadBalancer | FrontendKind::NodePort => true,
            FrontendKind::ClusterIp => false,
        });
        if outside { Self::Tables } else { Self::List }
    }
}

impl Layout {
    /// Lays out a plan; `index` knows the backends' indices.
    pub fn new(
        plan: &ServicePortPlan,
        hashing: Hashing,
        index: impl Fn(&SocketAddr) -> Option<u32>,
    ) -> Self {
        let mut layout = Self::default();
        let indices = |backends: &[Backend]| -> Vec<u32> {
            backends.iter().map(|backend| index(&backend.address).unwrap_or(0)).collect()
        };
        // Both lists are looks at the same slots.
        let (cluster, local) = (plan.endpoints.cluster(), plan.endpoints.local());
        let chosen = layout.append(indices(plan.endpoints.chosen()));
        layout.local = Region { offset: 0, len: local.len() as u32 };
        layout.cluster =
            Region { offset: chosen.len - cluster.len() as u32, len: cluster.len() as u32 };
        match hashing {
            Hashing::Tables => {
                layout.cluster_maglev = layout.append(table(cluster, &index));
                if plan.external_local {
                    layout.local_maglev = layout.append(table(local, &index));
                }
            }
            Hashing::List => {}
        }
        layout
    }

    /// The record for this layout at `run`.
    pub fn record(
        &self,
        plan: &ServicePortPlan,
        service: ServiceIndex,
        run: Run,
        sources: SourceSet,
    ) -> ServiceRecord {
        let at = |part: Region| Region {
            offset: if part.len == 0 { 0 } else { run.offset + part.offset },
            len: part.len,
        };
        ServiceRecord {
            flags: encode::record_flags(plan),
            service,
            cluster: at(self.cluster),
            local: at(self.local),
            cluster_maglev: at(self.cluster_maglev),
            local_maglev: at(self.local_maglev),
            affinity_timeout: plan.affinity_timeout.unwrap_or(0),
            sources,
            pad: [0; 4],
        }
    }

    fn append(&mut self, slots: Vec<u32>) -> Region {
        let region = Region { offset: self.slots.len() as u32, len: slots.len() as u32 };
        self.slots.extend(slots);
        region
    }
}

/// The run of slots that a record's parts lie in.
pub fn run_of(record: &ServiceRecord) -> Run {
    let parts = [record.cluster, record.local, record.cluster_maglev, record.local_maglev];
    let used = || parts.iter().filter(|part| part.len != 0);
    let offset = used().map(|part| part.offset).min().unwrap_or(0);
    let end = used().map(|part| part.offset.saturating_add(part.len)).max().unwrap_or(0);
    Run { offset, len: end - offset }
}

/// The Maglev table over `backends`: the same on every node, so over the sorted addresses and not
/// over the list, which begins with each node's own.
fn table(backends: &[Backend], index: impl Fn(&SocketAddr) -> Option<u32>) -> Vec<u32> {
    let mut addresses: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
    addresses.sort_unstable();
    let mut table = vec![0; maglev::table_len(addresses.len() as u32) as usize];
    maglev::fill(&mut table, &addresses, &mut vec![(0, 0); addresses.len()]);
    let indices: Vec<u32> = addresses.iter().map(|address| index(address).unwrap_or(0)).collect();
    for entry in &mut table {
        *entry = indices.get(*entry as usize).copied().unwrap_or(0);
    }
    table
}
