//! The datapath of this node: `tables` decides what is written, `bpf` holds maps and programs, and
//! here is the order of the two. Maps are filled before anything is attached, so that the first
//! packet finds everything.

use std::collections::BTreeMap;

use crate::bpf::devices::XdpAttachment;
use crate::bpf::expiry::{Expired, FlowTables};
use crate::bpf::maps::PinnedMaps;
use crate::bpf::{BpfError, Kernel};
use crate::node::facts::{ClientAddresses, NodeFacts};
use crate::plan::desired::{Delta, Desired};
use crate::run::datapath::{ApplyReport, Datapath, FlowExpiry, Unfit};
use crate::serve::metrics::MapFill;
use crate::tables::Tables;
use crate::tables::store::{StoreError, Table};

/// What made the datapath unusable; the loop starts over.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Programs, links or pins.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// A map.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Maps and programs of this node.
#[derive(Debug)]
pub struct NodeDatapath {
    kernel: Kernel,
    /// `None` until the lists are complete: nothing is written before.
    tables: Option<Tables<PinnedMaps>>,
    facts: NodeFacts,
    /// Pods of this node, by the cookies of their network namespaces.
    clients: BTreeMap<u64, ClientAddresses>,
}

impl NodeDatapath {
    /// Takes over an opened kernel side; writes and attaches nothing yet.
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, tables: None, facts: NodeFacts::default(), clients: BTreeMap::new() }
    }

    fn write_node(&mut self, tables: &mut Tables<PinnedMaps>) -> Result<(), DatapathError> {
        let attached = self.kernel.attached();
        tables.set_node(&self.facts, |device| {
            attached.get(&device).is_some_and(|status| status.xdp == XdpAttachment::Native)
        })?;
        Ok(())
    }

    fn write_clients(&self, tables: &mut Tables<PinnedMaps>) -> Result<(), DatapathError> {
        let mut clients = self.clients.clone();
        clients.insert(self.kernel.namespace(), self.facts.own);
        let left_out = tables.set_clients(&clients)?;
        if !left_out.is_empty() {
            tracing::warn!(
                namespaces = left_out.len(),
                "the map CLIENTS is full: for session affinity these pods are clients of their own, \
                 and load balancer addresses with source ranges don't admit them"
            );
        }
        Ok(())
    }

    /// Attaches to sockets, and to the devices that are there now. What the maps say of the node is
    /// written before, so that no packet meets a program that doesn't know its device, and after,
    /// when it is known which of them XDP may send to.
    fn attach(&mut self, tables: &mut Tables<PinnedMaps>) -> Result<(), DatapathError> {
        self.write_node(tables)?;
        self.kernel.attach_sockets()?;
        self.kernel.sync_devices(&self.facts.devices)?;
        self.write_node(tables)
    }

    fn report(&mut self) -> ApplyReport {
        let udp_endpoints_left = self.tables.as_mut().is_some_and(Tables::take_udp_left);
        let unfit = self.tables.iter().flat_map(Tables::unfit);
        ApplyReport {
            unfit: unfit
                .map(|(key, reason)| Unfit { key: key.clone(), reason: reason.to_owned() })
                .collect(),
            udp_endpoints_left,
        }
    }
}

impl Datapath for NodeDatapath {
    type Error = DatapathError;

    fn set_node(&mut self, facts: &NodeFacts) -> Result<(), DatapathError> {
        self.facts = facts.clone();
        let Some(mut tables) = self.tables.take() else {
            return Ok(());
        };
        // After an error the loop begins anew, with `begin_from`.
        self.write_clients(&mut tables)?;
        self.attach(&mut tables)?;
        self.tables = Some(tables);
        Ok(())
    }

    fn set_clients(
        &mut self,
        clients: &BTreeMap<u64, ClientAddresses>,
    ) -> Result<(), DatapathError> {
        self.clients.clone_from(clients);
        let Some(mut tables) = self.tables.take() else {
            return Ok(());
        };
        self.write_clients(&mut tables)?;
        self.tables = Some(tables);
        Ok(())
    }

    fn begin_from(&mut self, desired: &Desired) -> Result<ApplyReport, DatapathError> {
        let mut tables = Tables::adopt(self.kernel.maps()?)?;
        tables.reconcile(desired)?;
        self.write_clients(&mut tables)?;
        self.attach(&mut tables)?;
        self.tables = Some(tables);
        // What the last agent left to do isn't known.
        Ok(ApplyReport { udp_endpoints_left: true, ..self.report() })
    }

    fn apply(&mut self, delta: &Delta) -> Result<ApplyReport, DatapathError> {
        if let Some(tables) = &mut self.tables {
            tables.apply(delta)?;
        }
        Ok(self.report())
    }

    fn maintain(&mut self) -> Result<ApplyReport, DatapathError> {
        if let Some(tables) = &mut self.tables {
            tables.maintain()?;
        }
        Ok(self.report())
    }

    fn fill(&self) -> Vec<MapFill> {
        let fill = self.tables.iter().flat_map(Tables::fill);
        fill.map(|(table, used, capacity)| MapFill {
            map: table_name(table),
            used: used.into(),
            capacity: capacity.into(),
        })
        .collect()
    }
}

impl FlowExpiry for FlowTables {
    type Error = BpfError;

    fn expire(&mut self) -> Result<Vec<MapFill>, BpfError> {
        let pass = FlowTables::expire(self)?;
        let fill = |(map, table): (&'static str, Expired)| MapFill {
            map,
            used: table.entries.saturating_sub(table.removed),
            capacity: table.capacity,
        };
        Ok([("flows4", pass.v4), ("flows6", pass.v6)].map(fill).into())
    }
}

/// Metric label of a table.
fn table_name(table: Table) -> &'static str {
    match table {
        Table::Frontends => "frontends",
        Table::Services => "services",
        Table::Records => "records",
        Table::Slots => "slots",
        Table::Backends => "backends",
        Table::SourceRanges => "source_ranges",
        Table::Addresses => "addresses",
        Table::Devices => "devices",
    }
}
