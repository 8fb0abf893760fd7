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

pub mod attached;
pub mod cleanup;
pub mod counters;
pub mod devices;
pub mod error;
pub mod examine;
pub mod expiry;
mod frontends;
pub mod maps;
pub mod monitor;
pub mod pins;
pub mod read;
pub mod slots;
pub mod sockets;
pub mod takeover;
pub mod trace;
pub mod traffic;
pub mod usage;
pub mod users;

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
use std::fs::File;
use std::path::PathBuf;

use lb_common::abi;

use crate::args::{PodPath, Switch};
use crate::node::facts::{Device, Role};
use crate::run::datapath::Setup;
use crate::serve::status::Attachment;
use counters::Counters;
use devices::{DeviceStatus, Devices};
pub use error::{BpfError, kernel_release};
use expiry::FlowTables;
use maps::PinnedMaps;
pub use object::OBJECT;
use object::Programs;
use pins::Pins;
use sockets::RememberedSockets;
pub use sys::Access;
use takeover::Handover;
use traffic::SharedTraffic;

/// The datapath of this node.
#[derive(Debug)]
pub struct Kernel {
    pins: Pins,
    programs: Programs,
    cgroup: PathBuf,
    namespace: u64,
    pod_path: PodPath,
    traffic_counters: Switch,
    traffic: SharedTraffic,
    devices: Devices,
    /// Keeps `lb-agent cleanup` away.
    _used: File,
}

/// Bits of [`abi::ConfigFlags`].
fn pod_flags(path: PodPath) -> u32 {
    match path {
        PodPath::Socket => 0,
        PodPath::Packet => abi::ConfigFlags::NODE_SOCKETS_ONLY | abi::ConfigFlags::POD_PACKETS,
        PodPath::Both => abi::ConfigFlags::POD_PACKETS,
    }
}

fn flags(setup: &Setup) -> u32 {
    let traffic = match setup.traffic_counters {
        Switch::On => abi::ConfigFlags::TRAFFIC,
        Switch::Off => 0,
    };
    let masks = if setup.masquerade_all { abi::ConfigFlags::MASQUERADE_ALL } else { 0 };
    pod_flags(setup.pod_path) | traffic | masks
}

impl Kernel {
    /// Makes or adopts the maps and loads the programs; attaches nothing. What earlier runs have
    /// attached keeps working with these maps meanwhile.
    pub fn open(setup: &Setup) -> Result<Self, BpfError> {
        let pins = Pins::prepare(&setup.bpffs)?;
        let used = pins.mark_used()?;
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
            flags: flags(setup),
        };
        let programs = object::load(&pins, &config, &setup.capacities)?;
        let devices = Devices::new(pins.clone(), setup.xdp);
        let traffic = SharedTraffic::open(&pins)?;
        Ok(Self {
            pins,
            programs,
            cgroup: setup.cgroup_root.clone(),
            namespace: setup.netns_cookie,
            pod_path: setup.pod_path,
            traffic_counters: setup.traffic_counters,
            traffic,
            devices,
            _used: used,
        })
    }

    /// The cookie of the node's own network namespace.
    pub fn namespace(&self) -> u64 {
        self.namespace
    }

    /// Where pods are translated.
    pub fn pod_path(&self) -> PodPath {
        self.pod_path
    }

    /// The maps of the Service tables, to be written.
    pub fn maps(&self) -> Result<PinnedMaps, BpfError> {
        PinnedMaps::open(&self.pins, Access::ReadWrite)
    }

    /// The flow tables, for their expiry.
    pub fn flows(&self) -> Result<FlowTables, BpfError> {
        FlowTables::open(&self.pins, self.traffic.clone())
    }

    /// What the socket hooks remember.
    pub fn sockets(&self) -> Result<RememberedSockets, BpfError> {
        RememberedSockets::open(&self.pins, self.pod_path == PodPath::Socket)
    }

    /// Whose new flows are, and which are another proxy's.
    pub fn handover(&self) -> Result<Handover, BpfError> {
        Handover::open(&self.pins, Access::ReadWrite)
    }

    /// The counters of the programs.
    pub fn counters(&self) -> Result<Counters, BpfError> {
        Counters::open(&self.pins, self.traffic.clone())
    }

    /// Forgets what earlier runs have counted, if this one counts nothing: it would stand there as if it
    /// were all. For when their programs are replaced.
    pub fn forget_if_uncounted(&self) -> Result<(), BpfError> {
        match self.traffic_counters {
            Switch::On => Ok(()),
            Switch::Off => self
                .traffic
                .lock()
                .forget(|_| true)
                .map_err(BpfError::call(abi::map::TRAFFIC, "bpf(2)")),
        }
    }

    /// Attaches the socket hooks, or replaces those of an earlier run.
    pub fn attach_sockets(&self) -> Result<(), BpfError> {
        links::attach_sockets(&self.pins, &self.programs, &self.cgroup)
    }

    /// Makes SCTP work; cheap when it does.
    pub fn serve_sctp(&mut self) -> Result<(), BpfError> {
        self.programs.load_for_sctp()
    }

    /// Makes the attachments be those of exactly these devices; cheap when nothing changed.
    pub fn sync_devices(&mut self, devices: &BTreeMap<u32, Device>) -> Result<(), BpfError> {
        if devices.values().any(|device| device.role == Role::Pod) {
            self.programs.load_for_pods()?;
        }
        self.devices.sync(&mut self.programs, devices)
    }

    /// As people and metrics are told: what is attached, and what could not be.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.devices.attachments()
    }

    /// What is attached to devices, by interface index.
    pub fn attached(&self) -> &BTreeMap<u32, DeviceStatus> {
        self.devices.attached()
    }
}
