//! Counters that the programs keep, for `/metrics`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use lb_common::abi::{
    DropKey, Frontend, FrontendKey, FrontendKind, ServiceIndex, ServiceName, map,
};
use lb_common::lb::DropReason;

use super::error::BpfError;
use super::hash::{CounterHash, Hash};
use super::pins::Pins;
use super::sys::Access;
use super::traffic::{SharedTraffic, by_service};
use crate::plan::desired::ServicePortKey;
use crate::serve::collect::KernelCounters;
use crate::serve::traffic::ServiceCount;
use crate::tables::encode;

/// DROPS, open.
#[derive(Debug)]
pub struct DropCounters {
    drops: CounterHash<DropKey>,
}

impl DropCounters {
    /// Opens the pin.
    pub fn open(pins: &Pins, access: Access) -> Result<Self, BpfError> {
        Ok(Self { drops: CounterHash::open(pins, map::DROPS, access)? })
    }

    /// Packets and connections by Service port and reason, all CPUs together. Reasons of other
    /// versions are left out.
    pub fn by_service(&self) -> Result<Vec<(DropKey, DropReason, u64)>, BpfError> {
        let sums = self
            .drops
            .sums()
            .map_err(BpfError::call(self.drops.name(), "bpf(BPF_MAP_LOOKUP_BATCH)"))?;
        Ok(sums
            .into_iter()
            .filter_map(|(key, count)| Some((key, DropReason::from_number(key.reason)?, count)))
            .collect())
    }

    /// Moves what was counted for these Services to the sums of those that are gone, so that the sums
    /// by reason never fall.
    pub fn forget(&self, gone: impl Fn(ServiceIndex) -> bool) -> io::Result<()> {
        for (key, _) in self.drops.sums()? {
            let departed = DropKey::of_departed(key.reason);
            // Index 0 is no Service.
            if key.service.0 == 0 || key == departed || !gone(key.service) {
                continue;
            }
            let last = self.drops.take(&key)?.unwrap_or_default();
            let before = self.drops.get(&departed)?.unwrap_or_default();
            self.drops.set(&departed, &before.wrapping_add(last))?;
        }
        Ok(())
    }

    /// By reason alone; reasons that never came too.
    pub fn by_reason(&self) -> Result<BTreeMap<DropReason, u64>, BpfError> {
        let mut sums = zeros();
        for (_, reason, count) in self.by_service()? {
            *sums.entry(reason).or_default() += count;
        }
        Ok(sums)
    }
}

fn zeros() -> BTreeMap<DropReason, u64> {
    DropReason::ALL.into_iter().map(|reason| (reason, 0)).collect()
}

/// Everything that the programs count, and what it is called.
#[derive(Debug)]
pub struct Counters {
    drops: DropCounters,
    traffic: SharedTraffic,
    names: Hash<ServiceIndex, ServiceName>,
    frontends: Hash<FrontendKey, Frontend>,
}

impl Counters {
    /// Opens the pins.
    pub fn open(pins: &Pins, traffic: SharedTraffic) -> Result<Self, BpfError> {
        Ok(Self {
            drops: DropCounters::open(pins, Access::Read)?,
            traffic,
            names: Hash::open(pins, map::NAMES, Access::Read)?,
            frontends: Hash::open(pins, map::FRONTENDS, Access::Read)?,
        })
    }

    fn services(&self) -> Result<Vec<ServiceCount>, BpfError> {
        // The names first: a Service that comes meanwhile doesn't get the counts of who had its index.
        let names: HashMap<ServiceIndex, ServiceName> =
            read(&self.names, Hash::entries)?.into_iter().collect();
        let sums = by_service(&self.traffic.lock().all()?);
        let named: Vec<_> = sums
            .into_iter()
            .filter_map(|(index, sum)| {
                Some((index, encode::service_port_key(names.get(&index)?)?, sum))
            })
            .collect();
        let ports = self.ports(&named)?;
        let count = |(index, key, traffic)| {
            let port = ports.get(&index).copied().unwrap_or_default();
            ServiceCount { index, key, port, traffic }
        };
        Ok(named.into_iter().map(count).collect())
    }

    /// The numbers of those ports that have no name.
    fn ports<T>(
        &self,
        services: &[(ServiceIndex, ServicePortKey, T)],
    ) -> Result<HashMap<ServiceIndex, u16>, BpfError> {
        let nameless: BTreeSet<ServiceIndex> = services
            .iter()
            .filter(|(_, key, _)| key.port_name.is_empty())
            .map(|(index, ..)| *index)
            .collect();
        let mut ports = HashMap::new();
        if !nameless.is_empty() {
            read(&self.frontends, |frontends| {
                frontends.for_each(|key, frontend| {
                    let is_node_port = frontend.kind == FrontendKind::NodePort as u32;
                    if !is_node_port && nameless.contains(&frontend.service) {
                        ports.insert(frontend.service, key.port.get());
                    }
                })
            })?;
        }
        Ok(ports)
    }
}

fn read<K: bytemuck::Pod, V: bytemuck::Pod, T>(
    hash: &Hash<K, V>,
    look: impl FnOnce(&Hash<K, V>) -> io::Result<T>,
) -> Result<T, BpfError> {
    look(hash).map_err(BpfError::call(hash.name(), "bpf(BPF_MAP_LOOKUP_BATCH)"))
}

impl KernelCounters for Counters {
    fn drops(&self) -> Vec<(&'static str, u64)> {
        let sums = self.drops.by_reason().unwrap_or_else(|error| {
            tracing::warn!(%error, "drops can't be counted");
            zeros()
        });
        sums.into_iter().map(|(reason, count)| (reason.label(), count)).collect()
    }

    fn traffic(&self) -> Option<Vec<ServiceCount>> {
        self.services()
            .inspect_err(|error| tracing::warn!(%error, "the traffic of Services can't be counted"))
            .ok()
    }
}
