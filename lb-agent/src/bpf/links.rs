//! Attachments that outlive the agent: one pinned link per program and place.
//!
//! A pin that exists is taken over: its program is replaced in one step, so that no packet and no
//! connect goes untranslated at a restart. A link whose cgroup or device is gone, or is another one
//! now, is replaced by a new link.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya_obj::generated::{BPF_F_BEFORE, XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, bpf_attach_type};

use super::error::BpfError;
use super::object::Programs;
use super::pins::Pins;
use super::sys::{self, Access, LinkTarget};

/// The socket hooks and where the kernel calls them.
pub(super) const SOCKET_HOOKS: [(&str, bpf_attach_type); 9] = [
    ("connect4", bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
    ("connect6", bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
    ("sendmsg4", bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG),
    ("sendmsg6", bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG),
    ("recvmsg4", bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG),
    ("recvmsg6", bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG),
    ("getpeername4", bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME),
    ("getpeername6", bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME),
    ("release", bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE),
];

/// A place on a device, and how a program gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Packets that come in, after XDP.
    TcxIngress,
    /// Packets that go out.
    TcxEgress,
    /// Frames that come in, in the driver.
    XdpNative,
    /// Frames that come in, in the kernel's generic code.
    XdpGeneric,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::TcxIngress, Self::TcxEgress, Self::XdpNative, Self::XdpGeneric];

    /// The pin's name without the interface index.
    const fn prefix(self) -> &'static str {
        match self {
            Self::TcxIngress => "tcx_ingress_",
            Self::TcxEgress => "tcx_egress_",
            Self::XdpNative => "xdp_",
            // The kernel doesn't tell the mode of a link: the name must.
            Self::XdpGeneric => "xdp_generic_",
        }
    }

    /// The pin's name.
    pub fn pin_name(self, device: u32) -> String {
        format!("{}{device}", self.prefix())
    }

    /// Which place and device a pin is of.
    pub fn parse(name: &str) -> Option<(Self, u32)> {
        Self::ALL.into_iter().find_map(|place| {
            let index = name.strip_prefix(place.prefix())?.parse().ok()?;
            Some((place, index))
        })
    }

    const fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::TcxIngress => bpf_attach_type::BPF_TCX_INGRESS,
            Self::TcxEgress => bpf_attach_type::BPF_TCX_EGRESS,
            Self::XdpNative | Self::XdpGeneric => bpf_attach_type::BPF_XDP,
        }
    }

    const fn flags(self) -> u32 {
        match self {
            // First of all: we pass with UNSPEC, so the others still run after us, while many of
            // them end the chain with OK and would keep packets from us.
            Self::TcxIngress | Self::TcxEgress => BPF_F_BEFORE,
            Self::XdpNative => XDP_FLAGS_DRV_MODE,
            Self::XdpGeneric => XDP_FLAGS_SKB_MODE,
        }
    }
}

/// How a program came to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// By a new link.
    New,
    /// The program of an existing link was replaced.
    Replaced,
}

/// The name of the pin of a socket hook.
pub(super) fn socket_pin(program: &str) -> String {
    format!("cgroup_{program}")
}

/// Attaches the socket hooks to a cgroup2 directory.
pub fn attach_sockets(pins: &Pins, programs: &Programs, cgroup: &Path) -> Result<(), BpfError> {
    let open = || -> io::Result<(File, u64)> {
        let directory = File::open(cgroup)?;
        // The inode number of the directory is the cgroup's id (kernfs, 64-bit inode numbers).
        let id = directory.metadata()?.ino();
        Ok((directory, id))
    };
    let (directory, id) = open().map_err(BpfError::pin("open the cgroup", cgroup))?;
    for (program, attach_type) in SOCKET_HOOKS {
        let fd = programs.fd(program)?;
        let pin = pins.link(&socket_pin(program));
        let create = || sys::create_cgroup_link(fd, directory.as_fd(), attach_type);
        let attached = ensure(&pin, fd, LinkTarget::Cgroup(id), create).map_err(|source| {
            BpfError::Attach { program, target: format!("cgroup {}", cgroup.display()), source }
        })?;
        tracing::debug!(program, ?attached, "socket hook");
    }
    Ok(())
}

/// Attaches a program to a place of a device.
pub fn attach_device(
    pins: &Pins,
    place: Place,
    device: u32,
    program: BorrowedFd<'_>,
) -> io::Result<Attached> {
    let pin = pins.link(&place.pin_name(device));
    ensure(&pin, program, LinkTarget::Device(device), || {
        sys::create_link(program, device, place.attach_type(), place.flags())
    })
}

/// Detaches and removes a pinned link; whether there was one.
pub fn remove(pin: &Path) -> io::Result<bool> {
    match sys::open_pin(pin, Access::ReadWrite) {
        Ok(link) => {
            // Whoever else holds the link: it must not translate any more. A link without target is
            // detached already, and a pin of something else is only removed.
            if let Err(error) = sys::detach_link(link.as_fd()) {
                tracing::debug!(pin = %pin.display(), %error, "not detached, only unpinned");
            }
            std::fs::remove_file(pin).map(|()| true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn ensure(
    pin: &Path,
    program: BorrowedFd<'_>,
    target: LinkTarget,
    create: impl FnOnce() -> io::Result<std::os::fd::OwnedFd>,
) -> io::Result<Attached> {
    match sys::open_pin(pin, Access::ReadWrite) {
        Ok(link) => {
            let info = sys::link_info(link.as_fd())?;
            if info.target == Some(target) {
                match sys::update_link(link.as_fd(), program) {
                    Ok(()) => return Ok(Attached::Replaced),
                    // Its target went away in this moment.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    Err(error) => return Err(error),
                }
            }
            tracing::debug!(pin = %pin.display(), ?info, "the link is of something else");
            drop(link);
            remove(pin)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let link = create()?;
    // Without the pin the link ends here, and with it the attachment: nothing is left behind.
    sys::pin(link.as_fd(), pin)?;
    Ok(Attached::New)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_tells_its_place_and_device() {
        for (name, expected) in [
            ("tcx_ingress_2", Some((Place::TcxIngress, 2))),
            ("tcx_egress_17", Some((Place::TcxEgress, 17))),
            ("xdp_3", Some((Place::XdpNative, 3))),
            ("xdp_generic_3", Some((Place::XdpGeneric, 3))),
            ("cgroup_connect4", None),
            ("xdp_", None),
            ("tcx_ingress_eth0", None),
        ] {
            assert_eq!(Place::parse(name), expected, "{name}");
            if let Some((place, device)) = expected {
                assert_eq!(place.pin_name(device), name);
            }
        }
    }
}
