//! Which programs are attached to the node's external devices, and how.
//!
//! Decides between TCX and the older filters, and where XDP is used; `links` and `filters` carry it
//! out.

use std::collections::BTreeMap;
use std::io;

use aya::util::KernelVersion;

use super::error::BpfError;
use super::filters;
use super::links::{self, Place};
use super::object::{OWN_PROGRAM, Programs};
use super::pins::Pins;
use crate::args::XdpMode;
use crate::node::facts::{Device, Role};
use crate::serve::status::Attachment;

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcAttachment {
    /// By links (TCX, Linux 6.6).
    Tcx,
    /// By filters on the clsact qdisc.
    Filters,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpAttachment {
    /// In the driver.
    Native,
    /// In the kernel's generic code.
    Generic,
    /// Not at all.
    Off,
}

/// What is attached to one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Who is at its other end.
    pub role: Role,
    /// Its name.
    pub name: String,
    /// Whether the programs expect an Ethernet header.
    pub ethernet: bool,
    /// As [`Device::uplink`].
    pub uplink: bool,
    /// tc.
    pub tc: TcAttachment,
    /// XDP.
    pub xdp: XdpAttachment,
    /// Why not natively, where that was tried and tc alone will do.
    pub xdp_refusal: Option<String>,
}

impl TcAttachment {
    /// As metrics and people name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Filters => "filter",
        }
    }
}

impl XdpAttachment {
    /// As metrics and people name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        }
    }
}

/// A device that could not be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    name: String,
    role: Role,
    error: String,
}

/// The attachments to devices.
#[derive(Debug)]
pub struct Devices {
    pins: Pins,
    mode: XdpMode,
    attached: BTreeMap<u32, DeviceStatus>,
    failed: BTreeMap<u32, Failure>,
}

impl Devices {
    /// Nothing is attached by this run yet; pins of an earlier one are taken over by
    /// [`sync`](Self::sync).
    pub fn new(pins: Pins, mode: XdpMode) -> Self {
        Self { pins, mode, attached: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// What is attached, by interface index.
    pub fn attached(&self) -> &BTreeMap<u32, DeviceStatus> {
        &self.attached
    }

    /// As people and metrics are told, those that could not be attached to last.
    pub fn attachments(&self) -> Vec<Attachment> {
        let attached = self.attached.iter().map(|(index, status)| Attachment {
            device: status.name.clone(),
            index: *index,
            role: status.role.name().to_owned(),
            tc: Some(status.tc.name().to_owned()),
            xdp: status.xdp.name().to_owned(),
            xdp_refusal: status.xdp_refusal.clone(),
            error: None,
        });
        let failed = self.failed.iter().map(|(index, failure)| Attachment {
            device: failure.name.clone(),
            index: *index,
            role: failure.role.name().to_owned(),
            tc: None,
            xdp: XdpAttachment::Off.name().to_owned(),
            xdp_refusal: None,
            error: Some(failure.error.clone()),
        });
        attached.chain(failed).collect()
    }

    /// Attaches to the devices that are new, detaches from those that are no longer among them.
    ///
    /// One device's failure doesn't keep the others from being attached; the first is returned. A
    /// device that vanished meanwhile is none.
    pub fn sync(
        &mut self,
        programs: &mut Programs,
        devices: &BTreeMap<u32, Device>,
    ) -> Result<(), BpfError> {
        let mut result = Ok(());
        self.failed.clear();
        for (index, device) in devices {
            let is_done = |status: &DeviceStatus| {
                status.name == device.name
                    && status.ethernet == device.ethernet
                    && status.uplink == device.uplink
                    && status.role == device.role
            };
            if self.attached.get(index).is_some_and(is_done) {
                continue;
            }
            match self.attach(programs, device) {
                Ok(status) => {
                    let DeviceStatus { role, tc, xdp, .. } = status;
                    tracing::info!(device = device.name, ?role, ?tc, ?xdp, "attached");
                    self.attached.insert(*index, status);
                }
                Err(BpfError::Attach { source, .. } | BpfError::NativeXdp { source, .. })
                    if matches!(source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) =>
                {
                    tracing::info!(device = device.name, "vanished before it was attached to");
                }
                Err(error) => {
                    let Device { name, role, .. } = device.clone();
                    self.failed.insert(*index, Failure { name, role, error: error.to_string() });
                    // What an earlier try or another role left is not what was asked for.
                    self.attached.remove(index);
                    result = result.and(Err(error));
                }
            }
        }
        self.attached.retain(|index, _| devices.contains_key(index));
        result.and(self.remove_others(devices))
    }

    fn attach(&self, programs: &mut Programs, device: &Device) -> Result<DeviceStatus, BpfError> {
        let tc = if has_tcx() {
            self.attach_tcx(programs, device)?;
            TcAttachment::Tcx
        } else {
            filters::attach(&self.pins, programs, device)?;
            TcAttachment::Filters
        };
        let (xdp, xdp_refusal) = self.attach_xdp(programs, device)?;
        let Device { role, ethernet, uplink, .. } = *device;
        let name = device.name.clone();
        Ok(DeviceStatus { role, name, ethernet, uplink, tc, xdp, xdp_refusal })
    }

    fn attach_tcx(&self, programs: &Programs, device: &Device) -> Result<(), BpfError> {
        let ingress = ingress_program(device).map(|program| (Place::TcxIngress, program));
        // Egress first: with ingress alone replies would leave untranslated for a moment.
        for (place, program) in
            [(Place::TcxEgress, egress_program(device))].into_iter().chain(ingress)
        {
            links::attach_device(&self.pins, place, device.index, programs.fd(program)?)
                .map_err(attach_error(program, device))?;
        }
        Ok(())
    }

    /// How XDP is attached now, and why not natively if that was only tried.
    fn attach_xdp(
        &self,
        programs: &Programs,
        device: &Device,
    ) -> Result<(XdpAttachment, Option<String>), BpfError> {
        let program = programs.fd("xdp_ingress")?;
        let at = |place| links::attach_device(&self.pins, place, device.index, program);
        let mut refusal = None;
        let attachment = match wanted_xdp(self.mode, device) {
            WantedXdp::Off => XdpAttachment::Off,
            WantedXdp::Try => {
                self.detach(Place::XdpGeneric, device.index)?;
                match at(Place::XdpNative) {
                    Ok(_) => XdpAttachment::Native,
                    Err(error) => {
                        tracing::info!(device = device.name, %error, "no native XDP: tc alone");
                        refusal = Some(error.to_string());
                        XdpAttachment::Off
                    }
                }
            }
            WantedXdp::Native => {
                self.detach(Place::XdpGeneric, device.index)?;
                at(Place::XdpNative).map_err(|source| BpfError::NativeXdp {
                    device: device.name.clone(),
                    source,
                })?;
                XdpAttachment::Native
            }
            WantedXdp::Generic => {
                self.detach(Place::XdpNative, device.index)?;
                at(Place::XdpGeneric).map_err(attach_error("xdp_ingress", device))?;
                XdpAttachment::Generic
            }
        };
        if attachment == XdpAttachment::Off {
            self.detach(Place::XdpNative, device.index)?;
            self.detach(Place::XdpGeneric, device.index)?;
        }
        Ok((attachment, refusal))
    }

    fn detach(&self, place: Place, device: u32) -> Result<(), BpfError> {
        let pin = self.pins.link(&place.pin_name(device));
        links::remove(&pin).map(drop).map_err(BpfError::pin("remove the link", &pin))
    }

    /// Detaches from devices that aren't wanted, those of earlier runs too.
    fn remove_others(&self, devices: &BTreeMap<u32, Device>) -> Result<(), BpfError> {
        for name in self.pins.link_names()? {
            if let Some((place, index)) = Place::parse(&name)
                && !devices.contains_key(&index)
            {
                self.detach(place, index)?;
                tracing::info!(index, ?place, "detached from a device that is no longer ours");
            }
        }
        filters::remove_others(&self.pins, &|index| devices.contains_key(&index)).map(drop)
    }
}

/// TCX links: Linux 6.6 (commit e420bed02507).
fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// What the configuration wants of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WantedXdp {
    Try,
    Native,
    Generic,
    Off,
}

fn wanted_xdp(mode: XdpMode, device: &Device) -> WantedXdp {
    // The program begins with the Ethernet header, and is for packets from outside.
    if !device.ethernet || device.role != Role::External {
        return WantedXdp::Off;
    }
    match mode {
        // Native XDP on veth works only with checksum offload off at every sender, and needs help
        // of the peer to send: tc is the better half there.
        XdpMode::Auto if device.kind == "veth" => WantedXdp::Off,
        // Many drivers stop their queues for a moment to attach it: not where few packets of Services come.
        XdpMode::Auto if !device.uplink => WantedXdp::Off,
        XdpMode::Auto => WantedXdp::Try,
        XdpMode::Native => WantedXdp::Native,
        XdpMode::Generic => WantedXdp::Generic,
        XdpMode::Off => WantedXdp::Off,
    }
}

/// The program for packets that come in through a device, if there is one.
pub(super) fn ingress_program(device: &Device) -> Option<&'static str> {
    match (device.role, device.ethernet) {
        (Role::Own, _) => None,
        (Role::Pod, _) => Some("pod_ingress"),
        (Role::External, true) => Some("tc_ingress"),
        (Role::External, false) => Some("tc_ingress_l3"),
    }
}

/// The program for packets that go out through a device.
pub(super) fn egress_program(device: &Device) -> &'static str {
    match (device.role, device.ethernet) {
        (Role::Own, _) => OWN_PROGRAM,
        (Role::Pod, _) => "pod_egress",
        (Role::External, true) => "tc_egress",
        (Role::External, false) => "tc_egress_l3",
    }
}

/// Names the program and the device in what the kernel answered.
pub(super) fn attach_error(
    program: &'static str,
    device: &Device,
) -> impl FnOnce(io::Error) -> BpfError {
    let target = format!("device {}", device.name);
    move |source| BpfError::Attach { program, target, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xdp_is_used_where_the_mode_the_kind_and_the_header_allow_it() {
        let device = |kind: &str, ethernet, uplink| Device {
            role: Role::External,
            name: "d".into(),
            index: 1,
            kind: kind.into(),
            mtu: 1500,
            ethernet,
            uplink,
            address4: None,
            address6: None,
        };
        for (mode, kind, ethernet, uplink, expected) in [
            (XdpMode::Auto, "", true, true, WantedXdp::Try),
            (XdpMode::Auto, "", true, false, WantedXdp::Off),
            (XdpMode::Auto, "veth", true, true, WantedXdp::Off),
            (XdpMode::Auto, "wireguard", false, true, WantedXdp::Off),
            (XdpMode::Native, "veth", true, false, WantedXdp::Native),
            (XdpMode::Native, "tun", false, true, WantedXdp::Off),
            (XdpMode::Generic, "veth", true, true, WantedXdp::Generic),
            (XdpMode::Off, "", true, true, WantedXdp::Off),
        ] {
            let wanted = wanted_xdp(mode, &device(kind, ethernet, uplink));
            assert_eq!(wanted, expected, "{mode:?} {kind:?} {uplink}");
        }
    }
}
