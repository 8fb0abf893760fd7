//! The datapath of this node: `tables` decides what is written, `bpf` holds maps and programs, and
//! here is the order of the two. Maps are filled before anything is attached, so that the first
//! packet finds everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::args::PodPath;
use crate::bpf::devices::XdpAttachment;
use crate::bpf::expiry::FlowTables;
use crate::bpf::maps::PinnedMaps;
use crate::bpf::takeover::Handover;
use crate::bpf::{BpfError, Kernel};
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::node::facts::{ClientAddresses, NodeFacts};
use crate::node::listeners;
use crate::plan::desired::{Delta, Desired, FrontendAddress, ServicePortKey};
use crate::run::datapath::{ApplyReport, Datapath, Expiry, FlowExpiry, Unfit};
use crate::serve::metrics::MapFill;
use crate::serve::status::Attachment;
use crate::tables::Tables;
use crate::tables::store::{StoreError, Table};
use crate::takeover::{self, TakeoverError};

/// How often the flows that another proxy carries are looked at.
const FOLLOW: Duration = Duration::from_secs(10);

/// Without conntrack there is nothing to take over; else new flows are served all the same.
fn warn_of<T: Default>(result: Result<T, TakeoverError>) -> T {
    result.unwrap_or_else(|error| {
        tracing::warn!("flows of another service proxy aren't told from others: {error}");
        T::default()
    })
}

fn say_what_is_left(tables: &Tables<PinnedMaps>) {
    let text = |(frontend, key): (&FrontendAddress, &ServicePortKey)| {
        format!("{} of {key}", SocketAddr::new(frontend.address, frontend.port))
    };
    let left: Vec<_> = tables.left_to_listeners().map(text).collect();
    if left.is_empty() {
        tracing::info!("no process of this node listens at a ClusterIP any more: all are served");
    } else {
        tracing::info!(left = %left.join(", "), "left to processes of this node, which listen there");
    }
}

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
    /// There are Service ports for SCTP, which no socket hook serves.
    serves_sctp: bool,
    /// Whose flows are, and when that was looked at.
    handover: Option<(Handover, Instant)>,
    /// Pods of this node, by the cookies of their network namespaces.
    clients: BTreeMap<u64, ClientAddresses>,
    /// It was said that nobody knows where processes listen.
    is_deaf: bool,
}

impl NodeDatapath {
    /// Takes over an opened kernel side; writes and attaches nothing yet.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            tables: None,
            facts: NodeFacts::default(),
            serves_sctp: false,
            handover: None,
            clients: BTreeMap::new(),
            is_deaf: false,
        }
    }

    fn write_node(&mut self, tables: &mut Tables<PinnedMaps>) -> Result<(), DatapathError> {
        let attached = self.kernel.attached();
        tables.set_node(&self.facts, |device| {
            attached.get(&device).is_some_and(|status| status.xdp == XdpAttachment::Native)
        })?;
        Ok(())
    }

    fn write_clients(&self, tables: &mut Tables<PinnedMaps>) -> Result<(), DatapathError> {
        let is_by_packet = self.kernel.pod_path() != PodPath::Socket;
        tables.set_pods(self.clients.values().filter(|_| is_by_packet).copied())?;
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

    /// Attaches to the devices that are there now. What the maps say of the node is written before,
    /// so that no packet meets a program that doesn't know its device, and after, when it is known
    /// which of them XDP may send to.
    fn attach_devices(&mut self, tables: &mut Tables<PinnedMaps>) -> Result<(), DatapathError> {
        if self.serves_sctp {
            self.kernel.serve_sctp()?;
        }
        self.write_node(tables)?;
        let mut devices = self.facts.devices.clone();
        if self.serves_sctp {
            devices.extend(self.facts.own_devices.clone());
        }
        if self.serves_sctp || self.kernel.pod_path() != PodPath::Socket {
            devices.extend(self.facts.pod_devices.clone());
        }
        self.kernel.sync_devices(&devices)?;
        self.write_node(tables)
    }

    /// Leaves what is at these ClusterIPs to the processes that listen there.
    fn leave_to_listeners(
        &mut self,
        tables: &mut Tables<PinnedMaps>,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(), DatapathError> {
        let found = match listeners::at(addresses) {
            Ok(found) => found,
            Err(error) => {
                if !std::mem::replace(&mut self.is_deaf, true) {
                    tracing::warn!(
                        "ClusterIPs on devices of this node are served though a process may listen there: \
                         {error}"
                    );
                }
                return Ok(());
            }
        };
        if tables.set_listeners(found.into_iter().map(FrontendAddress::from).collect())? {
            say_what_is_left(tables);
        }
        Ok(())
    }

    fn report(&mut self) -> ApplyReport {
        let udp_endpoints_left = self.tables.as_mut().is_some_and(Tables::take_udp_left);
        let tcp_silence_ended = self.tables.as_mut().is_some_and(Tables::take_tcp_silence_ended);
        let udp_frontends_given = self.tables.as_mut().is_some_and(Tables::take_udp_frontends);
        let unfit = self.tables.iter().flat_map(Tables::unfit);
        ApplyReport {
            unfit: unfit
                .map(|(key, reason)| Unfit { key: key.clone(), reason: reason.to_owned() })
                .collect(),
            udp_endpoints_left,
            tcp_silence_ended,
            udp_frontends_given,
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
        self.attach_devices(&mut tables)?;
        let addresses = tables.cluster_ips_of_node();
        self.leave_to_listeners(&mut tables, &addresses)?;
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
        let of_node = desired.cluster_ips().filter(|own| self.facts.addresses.contains_key(own));
        self.leave_to_listeners(&mut tables, &of_node.collect())?;
        tables.reconcile(desired)?;
        if tables.left_to_listeners().next().is_some() {
            say_what_is_left(&tables);
        }
        self.write_clients(&mut tables)?;
        // NodePorts are told by the node's addresses.
        self.write_node(&mut tables)?;
        let mut handover = self.kernel.handover()?;
        warn_of(takeover::begin(&mut handover));
        self.kernel.attach_sockets()?;
        self.serves_sctp = tables.serves(Protocol::Sctp);
        self.attach_devices(&mut tables)?;
        self.kernel.forget_if_uncounted()?;
        warn_of(takeover::settle(&mut handover));
        self.handover = Some((handover, Instant::now()));
        self.tables = Some(tables);
        // What the last agent left to do isn't known.
        Ok(ApplyReport { udp_endpoints_left: true, tcp_silence_ended: true, ..self.report() })
    }

    fn apply(&mut self, delta: &Delta) -> Result<ApplyReport, DatapathError> {
        if let Some(mut tables) = self.tables.take() {
            tables.apply(delta)?;
            if delta.ports.keys().any(|key| key.protocol == Protocol::Sctp) {
                let served =
                    std::mem::replace(&mut self.serves_sctp, tables.serves(Protocol::Sctp));
                if served != self.serves_sctp {
                    self.attach_devices(&mut tables)?;
                }
            }
            self.tables = Some(tables);
        }
        Ok(self.report())
    }

    fn maintain(&mut self) -> Result<ApplyReport, DatapathError> {
        if let Some(mut tables) = self.tables.take() {
            tables.maintain()?;
            let addresses = tables.cluster_ips_of_node();
            self.leave_to_listeners(&mut tables, &addresses)?;
            self.tables = Some(tables);
        }
        let mut sockets_were_left = false;
        if let Some((handover, looked)) = &mut self.handover
            && looked.elapsed() >= FOLLOW
        {
            sockets_were_left = warn_of(takeover::follow(handover));
            *looked = Instant::now();
        }
        let mut report = self.report();
        report.udp_endpoints_left |= sockets_were_left;
        Ok(report)
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

    fn attachments(&self) -> Vec<Attachment> {
        self.kernel.attachments()
    }
}

impl FlowExpiry for FlowTables {
    type Error = BpfError;

    fn expire(&mut self) -> Result<Expiry, BpfError> {
        let pass = FlowTables::expire(self)?;
        let fill = pass.hashes.into_iter().filter_map(|usage| {
            let (used, capacity) = (usage.entries?, usage.max_entries.into());
            Some(MapFill { map: usage.map, used, capacity })
        });
        let flows = vec![(IpFamily::V4, pass.v4.used), (IpFamily::V6, pass.v6.used)];
        Ok(Expiry { fill: fill.collect(), flows })
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
