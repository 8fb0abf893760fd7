//! Whether the slots of each Service port lead to its backends, and to all that are listed.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use lb_common::abi::{BackendFlags, BackendIndex, Region, ServiceIndex};

use super::error::BpfError;
use super::maps::PinnedMaps;
use super::pins::Pins;
use super::read::{self, read_error};
use super::sys::Access;
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::tables::encode;
use crate::tables::store::{Store as _, Table};

/// A Service port with slots that are not as its backends say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misled {
    /// `namespace/name:port`.
    pub name: String,
    /// Its protocol; `None` for a number that no version writes.
    pub protocol: Option<Protocol>,
    /// Its family.
    pub family: IpFamily,
    /// Slots that lead to a backend that isn't its own, or isn't in their list.
    pub astray: usize,
    /// Backends that are listed and that no slot leads to.
    pub unreached: usize,
}

/// Looks at all of them.
pub fn misled(bpffs: &Path) -> Result<Vec<Misled>, BpfError> {
    let maps = PinnedMaps::open(&Pins::at(bpffs), Access::Read)?;
    let listed = listed(&maps);
    let mut found = Vec::new();
    for (index, name) in maps.names().map_err(read_error)? {
        let record = maps.record(maps.pointer(index).record);
        let slots = |region: Region| maps.slots(region.offset, region.len);
        let (mut astray, mut unreached) = (0, BTreeSet::<u32>::new());
        for (list, table, flag) in [
            (record.cluster, record.cluster_maglev, BackendFlags::IN_CLUSTER),
            (record.local, record.local_maglev, BackendFlags::IN_LOCAL),
        ] {
            let wanted = listed.get(&(index, flag)).cloned().unwrap_or_default();
            let is_astray = |slot: &&u32| !wanted.contains(slot);
            let (list, table) = (slots(list), slots(table));
            astray += list.iter().chain(&table).filter(is_astray).count();
            unreached.extend(wanted.difference(&list.into_iter().collect()));
        }
        if astray > 0 || !unreached.is_empty() {
            found.push(Misled {
                name: read::text(&name).unwrap_or_default().to_owned(),
                protocol: encode::protocol(name.protocol),
                family: read::family(&name),
                astray,
                unreached: unreached.len(),
            });
        }
    }
    Ok(found)
}

/// Backends by Service and the list that they are in.
fn listed(maps: &PinnedMaps) -> HashMap<(ServiceIndex, u16), BTreeSet<u32>> {
    let mut listed: HashMap<_, BTreeSet<u32>> = HashMap::new();
    for index in 1..maps.capacity(Table::Backends) {
        let backend = maps.backend(BackendIndex(index));
        for flag in [BackendFlags::IN_CLUSTER, BackendFlags::IN_LOCAL] {
            if backend.flags & BackendFlags::LIVE != 0 && backend.flags & flag != 0 {
                listed.entry((backend.service, flag)).or_default().insert(index);
            }
        }
    }
    listed
}
