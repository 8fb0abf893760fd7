//! Counters that the programs keep, for `/metrics`.

use std::collections::BTreeMap;

use lb_common::abi::{DropKey, map};
use lb_common::lb::DropReason;

use super::error::BpfError;
use super::hash::CounterHash;
use super::pins::Pins;
use crate::serve::collect::KernelCounters;

/// DROPS, open to be read.
#[derive(Debug)]
pub struct DropCounters {
    drops: CounterHash<DropKey>,
}

impl DropCounters {
    /// Opens the pin.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        Ok(Self { drops: CounterHash::open(pins, map::DROPS)? })
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
}

impl KernelCounters for DropCounters {
    fn drops(&self) -> Vec<(&'static str, u64)> {
        let mut sums: BTreeMap<_, u64> =
            DropReason::ALL.into_iter().map(|reason| (reason, 0)).collect();
        match self.by_service() {
            Ok(drops) => {
                for (_, reason, count) in drops {
                    *sums.entry(reason).or_default() += count;
                }
            }
            Err(error) => tracing::warn!(%error, "drops can't be counted"),
        }
        sums.into_iter().map(|(reason, count)| (reason.label(), count)).collect()
    }
}
