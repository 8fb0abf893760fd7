//! What is attached where, as the pins tell: also while no agent runs.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::TcAttachType;
use lb_common::abi::{self, map};

use super::devices::{TcAttachment, XdpAttachment};
use super::error::BpfError;
use super::filters;
use super::hash::Hash;
use super::links::{self, Place, SOCKET_HOOKS};
use super::pins::Pins;
use super::sys::{self, Access, LinkTarget};

/// What is there of this version's datapath.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Socket hooks that are attached, and the ids of their cgroups.
    pub sockets: BTreeMap<&'static str, u64>,
    /// Devices with pins, by interface index.
    pub devices: BTreeMap<u32, OnDevice>,
    /// Ids of all programs that links hold.
    pub programs: BTreeSet<u32>,
}

/// What the pins say of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnDevice {
    /// How tc programs are attached.
    pub tc: Option<TcAttachment>,
    /// One sees what comes in.
    pub ingress: bool,
    /// One sees what goes out.
    pub egress: bool,
    /// How XDP is attached.
    pub xdp: Option<XdpAttachment>,
    /// Places whose link is there but attached to nothing.
    pub detached: Vec<&'static str>,
    /// The programs know it as external; others are those of pods, or the loopback device.
    pub is_external: bool,
}

/// Names of the socket hooks.
pub fn socket_hooks() -> impl Iterator<Item = &'static str> {
    SOCKET_HOOKS.into_iter().map(|(program, _)| program)
}

/// Reads the pins under a BPF file system's mount point. `None` without any.
pub fn attached(bpffs: &Path) -> Result<Option<Attached>, BpfError> {
    let pins = Pins::at(bpffs);
    if !pins.maps().is_dir() {
        return Ok(None);
    }
    let mut found = Attached::default();
    for name in pins.link_names()? {
        found.add(&pins, &name)?;
    }
    let external = external_devices(&pins)?;
    for (index, device) in &mut found.devices {
        device.is_external = external.contains(index);
    }
    Ok(Some(found))
}

impl Attached {
    fn add(&mut self, pins: &Pins, name: &str) -> Result<(), BpfError> {
        // A filter is no link: what is pinned is its program, as a note.
        for (direction, prefix) in filters::DIRECTIONS {
            if let Some(index) = name.strip_prefix(prefix).and_then(|index| index.parse().ok()) {
                self.devices.entry(index).or_default().filter(direction);
                return Ok(());
            }
        }
        let hook = socket_hooks().find(|hook| links::socket_pin(hook) == name);
        let place = Place::parse(name);
        if hook.is_none() && place.is_none() {
            return Ok(());
        }
        let pin = pins.link(name);
        let info =
            sys::open_pin(&pin, Access::ReadWrite).and_then(|link| sys::link_info(link.as_fd()));
        let info = info.map_err(BpfError::pin("look at the link", &pin))?;
        self.programs.insert(info.program);
        if let (Some(hook), Some(LinkTarget::Cgroup(cgroup))) = (hook, info.target) {
            self.sockets.insert(hook, cgroup);
        }
        if let Some((place, index)) = place {
            let is_live = info.target == Some(LinkTarget::Device(index));
            self.devices.entry(index).or_default().link(place, is_live);
        }
        Ok(())
    }
}

impl OnDevice {
    fn link(&mut self, place: Place, is_live: bool) {
        let name = match place {
            Place::TcxIngress => {
                self.tc = Some(TcAttachment::Tcx);
                self.ingress |= is_live;
                "ingress"
            }
            Place::TcxEgress => {
                self.tc = Some(TcAttachment::Tcx);
                self.egress |= is_live;
                "egress"
            }
            Place::XdpNative => {
                self.xdp = is_live.then_some(XdpAttachment::Native).or(self.xdp);
                "XDP"
            }
            Place::XdpGeneric => {
                self.xdp = is_live.then_some(XdpAttachment::Generic).or(self.xdp);
                "XDP"
            }
        };
        if !is_live {
            self.detached.push(name);
        }
    }

    fn filter(&mut self, direction: TcAttachType) {
        self.tc = Some(TcAttachment::Filters);
        match direction {
            TcAttachType::Egress => self.egress = true,
            TcAttachType::Ingress | TcAttachType::Custom(_) => self.ingress = true,
        }
    }
}

fn external_devices(pins: &Pins) -> Result<BTreeSet<u32>, BpfError> {
    let devices: Hash<u32, abi::Device> = Hash::open(pins, map::DEVICES, Access::Read)?;
    let entries = devices.entries();
    let entries = entries.map_err(BpfError::call(map::DEVICES, "bpf(BPF_MAP_LOOKUP_BATCH)"))?;
    Ok(entries.into_iter().map(|(index, _)| index).collect())
}
