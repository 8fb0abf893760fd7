//! tc programs on kernels before 6.6, which have no TCX: filters of the clsact qdisc.
//!
//! A filter is no link and can't be pinned. So it gets a fixed priority and handle, by which the
//! next run replaces it, and its *program* is pinned beside the links as a note that it is ours. So
//! it is for the qdisc, when it was us who made it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::programs::links::Link as _;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{Program, ProgramError, TcAttachType};
use nix::net::if_::if_indextoname;

use super::devices::{attach_error, egress_program, ingress_program};
use super::error::BpfError;
use super::object::Programs;
use super::pins::Pins;
use super::{qdisc, sys};
use crate::node::facts::Device;

/// Before all others: they may end the chain, we never do.
const PRIORITY: u16 = 1;
/// `lb` in ASCII; no tool chooses it by itself.
const HANDLE: TcHandle = TcHandle::new(0, 0x6c62);

/// The names of the notes of programs, without the interface index.
const INGRESS_NOTE: &str = "filter_ingress_";
const EGRESS_NOTE: &str = "filter_egress_";

/// The directions and the names of their notes.
pub(super) const DIRECTIONS: [(TcAttachType, &str); 2] =
    [(TcAttachType::Egress, EGRESS_NOTE), (TcAttachType::Ingress, INGRESS_NOTE)];

/// The name of the note that the device's qdisc is ours.
const QDISC_NOTE: &str = "clsact_";

/// Where the program for packets that come in through a device is pinned.
pub(super) fn ingress_note(device: u32) -> String {
    format!("{INGRESS_NOTE}{device}")
}

/// Where the program for packets that leave through a device is pinned.
pub(super) fn egress_note(device: u32) -> String {
    format!("{EGRESS_NOTE}{device}")
}

/// Attaches the tc programs to a device, or replaces ours.
pub(super) fn attach(
    pins: &Pins,
    programs: &mut Programs,
    device: &Device,
) -> Result<(), BpfError> {
    match qdisc_add_clsact(&device.name) {
        Ok(()) => {
            let note = pins.link(&format!("{QDISC_NOTE}{}", device.index));
            let program = programs.fd(egress_program(device))?;
            take_note(program, &note).map_err(BpfError::pin("pin", &note))?;
        }
        Err(error) if errno(&error) == Some(libc::EEXIST) => {}
        Err(error) => return Err(attach_error("the clsact qdisc", device)(to_io(error))),
    }
    for (direction, note) in DIRECTIONS {
        let program = match direction {
            TcAttachType::Egress => Some(egress_program(device)),
            TcAttachType::Ingress | TcAttachType::Custom(_) => ingress_program(device),
        };
        let Some(program) = program else {
            continue;
        };
        put_filter(programs, program, direction, device)
            .map_err(|error| attach_error(program, device)(program_io(error)))?;
        let note = pins.link(&format!("{note}{}", device.index));
        take_note(programs.fd(program)?, &note).map_err(BpfError::pin("pin", &note))?;
    }
    Ok(())
}

fn put_filter(
    programs: &mut Programs,
    program: &str,
    direction: TcAttachType,
    device: &Device,
) -> Result<(), ProgramError> {
    let Ok(Program::SchedClassifier(classifier)) = programs.program_mut(program) else {
        return Err(ProgramError::UnexpectedProgramType);
    };
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let created =
        classifier.attach_with_options(&device.name, direction, TcAttachOptions::Netlink(options));
    let id = match created {
        Ok(id) => id,
        Err(ProgramError::TcError(error)) if errno(&error) == Some(libc::EEXIST) => {
            let ours =
                SchedClassifierLink::attached(&device.name, direction, PRIORITY, HANDLE, None)
                    .map_err(TcError::from)?;
            classifier.attach_to_link(ours)?
        }
        Err(error) => return Err(error),
    };
    // aya would remove the filter with its handle; it is to stay when we end.
    std::mem::forget(classifier.take_link(id)?);
    Ok(())
}

fn take_note(program: BorrowedFd<'_>, note: &std::path::Path) -> io::Result<()> {
    match std::fs::remove_file(note) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    sys::pin(program.as_fd(), note)
}

/// Removes the filters on devices that aren't wanted, those of earlier runs too, and then the
/// qdiscs that we made and nobody else uses; returns how many of both.
pub(super) fn remove_others(
    pins: &Pins,
    is_wanted: &dyn Fn(u32) -> bool,
) -> Result<usize, BpfError> {
    let mut removed = 0;
    for (direction, prefix) in DIRECTIONS {
        removed += remove_noted(pins, prefix, is_wanted, &|index| {
            remove_filter(direction, index).map(|()| true)
        })?;
    }
    removed += remove_noted(pins, QDISC_NOTE, is_wanted, &remove_qdisc)?;
    Ok(removed)
}

/// Calls `remove` for each unwanted device that has a note, and removes the note; returns how often
/// `remove` removed something.
fn remove_noted(
    pins: &Pins,
    prefix: &str,
    is_wanted: &dyn Fn(u32) -> bool,
    remove: &dyn Fn(u32) -> io::Result<bool>,
) -> Result<usize, BpfError> {
    let mut removed = 0;
    for name in pins.link_names()? {
        let index = name.strip_prefix(prefix).and_then(|index| index.parse().ok());
        let Some(index) = index.filter(|index| !is_wanted(*index)) else { continue };
        let note = pins.link(&name);
        let is_removed = remove(index).map_err(BpfError::pin("remove what is noted at", &note))?;
        std::fs::remove_file(&note).map_err(BpfError::pin("remove", &note))?;
        removed += usize::from(is_removed);
        tracing::info!(name, is_removed, "the device is no longer ours");
    }
    Ok(removed)
}

fn remove_qdisc(index: u32) -> io::Result<bool> {
    match qdisc::remove_if_empty(index) {
        // The device is gone, or has no such qdisc any more.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)) =>
        {
            Ok(false)
        }
        result => result,
    }
}

fn remove_filter(direction: TcAttachType, index: u32) -> io::Result<()> {
    // A device that is gone took its filters with it.
    let Ok(name) = if_indextoname(index) else { return Ok(()) };
    let name = name.to_string_lossy();
    let ours = SchedClassifierLink::attached(&name, direction, PRIORITY, HANDLE, None)?;
    match ours.detach().map_err(program_io) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
            Err(error)
        }
        // Removed by somebody else, or with its qdisc.
        Ok(()) | Err(_) => Ok(()),
    }
}

fn errno(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        TcError::NulError(_)
        | TcError::AlreadyAttached
        | TcError::InvalidTcxAttach(_)
        | TcError::InvalidLinkOperation => None,
    }
}

fn to_io(error: TcError) -> io::Error {
    errno(&error).map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
}

fn program_io(error: ProgramError) -> io::Error {
    match error {
        ProgramError::TcError(error) => to_io(error),
        ProgramError::NetlinkError(error) => match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::other(error),
        },
        ProgramError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}
