//! The only module that touches aya and bpf(2). It carries out; what the maps hold is decided by
//! `tables`, what a packet gets by the programs.
//!
//! ```text
//! let mut kernel = Kernel::open(&setup)?;       // maps made or adopted, programs loaded; nothing attached
//! let maps: PinnedMaps = kernel.maps()?;        // impl tables::store::Store
//! … fill the maps …
//! kernel.attach_sockets()?;                     // cgroup hooks; an earlier run's are replaced in one step
//! kernel.sync_devices(&facts.devices)?;         // tc and XDP; again whenever the devices change
//! kernel.attached()                             // index → DeviceStatus { tc, xdp, … }
//! kernel.flows()?                               // FlowTables: keep them, call expire() every 20 s or so
//! kernel.sockets()?                             // RememberedSockets: which of the node's sockets are stale
//! kernel.counters()?                            // impl KernelCounters, for metrics
//! ```
//!
//! Dropping a [`Kernel`] detaches nothing. [`cleanup::cleanup`] removes everything. [`read`] serves
//! the command line. `unsafe` is in `sys` (bpf(2)) and `table` (mmap) alone.

pub mod cleanup;
pub mod counters;
pub mod devices;
pub mod error;
pub mod expiry;
pub mod maps;
pub mod pins;
pub mod read;
pub mod sockets;

mod filters;
mod hash;
mod links;
mod object;
mod qdisc;
mod sys;
mod table;
#[cfg(test)]
mod tests;
mod trie;

use std::collections::BTreeMap;
use std::path::PathBuf;

use lb_common::abi;

use crate::node::facts::Device;
use crate::run::datapath::Setup;
use counters::DropCounters;
use devices::{DeviceStatus, Devices};
pub use error::BpfError;
use expiry::FlowTables;
use maps::PinnedMaps;
pub use object::OBJECT;
use object::Programs;
use pins::Pins;
use sockets::RememberedSockets;
pub use sys::Access;

/// The datapath of this node.
#[derive(Debug)]
pub struct Kernel {
    pins: Pins,
    programs: Programs,
    cgroup: PathBuf,
    namespace: u64,
    devices: Devices,
}

impl Kernel {
    /// Makes or adopts the maps and loads the programs; attaches nothing. What earlier runs have
    /// attached keeps working with these maps meanwhile.
    pub fn open(setup: &Setup) -> Result<Self, BpfError> {
        let pins = Pins::prepare(&setup.bpffs)?;
        for other in Pins::of_all_versions(&setup.bpffs)?.iter().filter(|other| **other != pins) {
            tracing::warn!(
                path = %other.version().display(),
                "the datapath of another version of lb-agent is here and may still translate; \
                 `lb-agent cleanup` removes it"
            );
        }
        let config = abi::Config {
            host_netns_cookie: setup.netns_cookie,
            snat_port_min: *setup.snat_ports.start(),
            snat_port_max: *setup.snat_ports.end(),
            pad: 0,
        };
        let programs = object::load(&pins, &config, &setup.capacities)?;
        let devices = Devices::new(pins.clone(), setup.xdp);
        Ok(Self {
            pins,
            programs,
            cgroup: setup.cgroup_root.clone(),
            namespace: setup.netns_cookie,
            devices,
        })
    }

    /// The cookie of the node's own network namespace.
    pub fn namespace(&self) -> u64 {
        self.namespace
    }

    /// The maps of the Service tables, to be written.
    pub fn maps(&self) -> Result<PinnedMaps, BpfError> {
        PinnedMaps::open(&self.pins, Access::ReadWrite)
    }

    /// The flow tables, for their expiry.
    pub fn flows(&self) -> Result<FlowTables, BpfError> {
        FlowTables::open(&self.pins)
    }

    /// What the socket hooks remember.
    pub fn sockets(&self) -> Result<RememberedSockets, BpfError> {
        RememberedSockets::open(&self.pins)
    }

    /// The counters of the programs.
    pub fn counters(&self) -> Result<DropCounters, BpfError> {
        DropCounters::open(&self.pins)
    }

    /// Attaches the socket hooks, or replaces those of an earlier run.
    pub fn attach_sockets(&self) -> Result<(), BpfError> {
        links::attach_sockets(&self.pins, &self.programs, &self.cgroup)
    }

    /// Makes the attachments be those of exactly these devices; cheap when nothing changed.
    pub fn sync_devices(&mut self, devices: &BTreeMap<u32, Device>) -> Result<(), BpfError> {
        self.devices.sync(&mut self.programs, devices)
    }

    /// What is attached to devices, by interface index.
    pub fn attached(&self) -> &BTreeMap<u32, DeviceStatus> {
        self.devices.attached()
    }
}
