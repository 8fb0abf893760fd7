//! What the kernel takes and has loaded, ours and others': looks, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya_obj::generated::bpf_attach_type;
use lb_common::abi::Config;

use super::attached::Attached;
use super::error::BpfError;
use super::links::{SOCKET_HOOKS, socket_pin};
use super::object;
use super::pins::Pins;
use super::sys::{self, Access};

/// Lets the verifier judge every program. Returns how many there are.
pub fn try_programs(bpffs: &Path) -> Result<usize, BpfError> {
    object::try_all(&Pins::at(bpffs))
}

/// The constants that the programs attached to sockets work with; `None` when they are another version's.
pub fn constants(bpffs: &Path) -> Result<Option<Config>, BpfError> {
    let pin = Pins::at(bpffs).link(&socket_pin("connect4"));
    let constants = || -> io::Result<Option<Vec<u8>>> {
        let link = sys::open_pin(&pin, Access::ReadWrite)?;
        let program = sys::program_by_id(sys::link_info(link.as_fd())?.program)?;
        for id in sys::program_maps(program.as_fd())? {
            if let Some(bytes) = sys::constants(sys::map_by_id(id)?.as_fd())? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    };
    let bytes = constants().map_err(BpfError::pin("look into the program of", &pin))?;
    bytes.map_or(Ok(None), |bytes| object::config_in(&bytes))
}

/// A program of somebody else where ours are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// Its name, as far as the kernel keeps it (15 bytes); its number if it may not be asked.
    pub program: String,
    /// `connect4`, `ingress of eth0`.
    pub place: String,
}

/// Programs of others at the socket hooks of `cgroup` and above, and at tc (TCX) of the devices with
/// these names. Places that can't be asked are left out.
pub fn foreign(
    cgroup: Option<&Path>,
    devices: &BTreeMap<u32, String>,
    ours: Option<&Attached>,
) -> BTreeSet<Foreign> {
    let mut places = Vec::new();
    if let Some(directory) = cgroup.and_then(|path| File::open(path).ok()) {
        for (hook, attach_type) in SOCKET_HOOKS {
            let programs = sys::programs_at(Some(directory.as_fd()), 0, attach_type);
            places.push((format!("the socket hook {hook}"), programs));
        }
    }
    for (index, name) in devices {
        for (direction, attach_type) in [
            ("ingress", bpf_attach_type::BPF_TCX_INGRESS),
            ("egress", bpf_attach_type::BPF_TCX_EGRESS),
        ] {
            let programs = sys::programs_at(None, *index, attach_type);
            places.push((format!("{direction} of {name}"), programs));
        }
    }
    let names: BTreeMap<u32, String> = aya::programs::loaded_programs()
        .flatten()
        .filter_map(|info| Some((info.id(), info.name_as_str()?.to_owned())))
        .collect();
    let is_ours = |id: &u32| ours.is_some_and(|ours| ours.programs.contains(id));
    places
        .into_iter()
        .flat_map(|(place, programs)| {
            let others = programs.unwrap_or_default().into_iter().filter(|id| !is_ours(id));
            others.map(move |id| (place.clone(), id)).collect::<Vec<_>>()
        })
        .map(|(place, id)| {
            let program = names.get(&id).cloned().unwrap_or_else(|| format!("number {id}"));
            Foreign { program, place }
        })
        .collect()
}
