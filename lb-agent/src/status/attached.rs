//! What is attached, as rows of the status.

use lb_common::lb::LOOPBACK;
use nix::net::if_::if_indextoname;

use crate::bpf::attached::{Attached, OnDevice, socket_hooks};
use crate::bpf::devices::XdpAttachment;
use crate::inspect::status::{DeviceRow, SocketsRow};
use crate::node::cgroup;
use crate::node::facts::Role;

/// The socket hooks.
pub fn sockets(attached: &Attached) -> SocketsRow {
    let missing: Vec<_> =
        socket_hooks().filter(|hook| !attached.sockets.contains_key(hook)).collect();
    let directory = |id: &u64| {
        let path = cgroup::directory(*id);
        path.map_or_else(|| format!("cgroup {id}"), |path| path.display().to_string())
    };
    SocketsRow {
        cgroup: attached.sockets.values().next_back().map(directory),
        attached: attached.sockets.len(),
        missing: missing.into_iter().map(str::to_owned).collect(),
    }
}

/// The devices.
pub fn devices(attached: &Attached) -> Vec<DeviceRow> {
    attached.devices.iter().map(|(index, device)| row(*index, device)).collect()
}

fn row(index: u32, device: &OnDevice) -> DeviceRow {
    let name = if_indextoname(index).ok().map(|name| name.to_string_lossy().into_owned());
    let mut problem = None;
    if name.is_none() {
        problem = Some("the device is gone".to_owned());
    } else if !device.detached.is_empty() {
        problem = Some(format!("somebody detached {}", device.detached.join(" and ")));
    } else if !(device.egress && (device.ingress || index == LOOPBACK)) {
        problem = Some("one direction only is attached".to_owned());
    }
    let role = match index {
        LOOPBACK => Role::Own,
        _ if device.is_external => Role::External,
        _ => Role::Pod,
    };
    let is_attached = device.ingress || device.egress;
    DeviceRow {
        device: name.unwrap_or_else(|| format!("#{index}")),
        index,
        role: role.name().to_owned(),
        tc: device.tc.filter(|_| is_attached).map(|tc| tc.name().to_owned()),
        xdp: device.xdp.unwrap_or(XdpAttachment::Off).name().to_owned(),
        note: None,
        problem,
    }
}
