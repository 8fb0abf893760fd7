//! TRAFFIC: what went to endpoints and came back.
//!
//! The programs make an entry at an endpoint's first connection and add to it. When the endpoint has
//! left, connections that it still has count there too. Once they are quiet, its counters are added to
//! the Service's sum of those that have left, so that the map has room for others and a Service's
//! sums never fall.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_common::abi::{Backend, ServiceIndex, Traffic, TrafficKey, map};

use super::error::BpfError;
use super::hash::CounterHash;
use super::maps;
use super::pins::Pins;
use super::sys::Access;
use super::table::Table;

/// Looks in a row at which the counters of an endpoint that has left were the same, after which
/// they are added up: five minutes. Most connections that are kept say something in that time.
const QUIET_LOOKS: u32 = 15;

/// TRAFFIC, open.
#[derive(Debug)]
pub struct TrafficCounters {
    counters: CounterHash<TrafficKey, Traffic>,
}

impl TrafficCounters {
    /// Opens the pin.
    pub fn open(pins: &Pins, access: Access) -> Result<Self, BpfError> {
        Ok(Self { counters: CounterHash::open(pins, map::TRAFFIC, access)? })
    }

    /// Every entry, all CPUs together.
    pub fn all(&self) -> Result<BTreeMap<TrafficKey, Traffic>, BpfError> {
        let sums = self.counters.sums();
        Ok(sums
            .map_err(BpfError::call(map::TRAFFIC, "bpf(BPF_MAP_LOOKUP_BATCH)"))?
            .into_iter()
            .collect())
    }

    /// Entries that there may be.
    pub fn capacity(&self) -> usize {
        self.counters.capacity() as usize
    }

    /// Removes what was counted for these Services.
    pub fn forget(&self, gone: impl Fn(ServiceIndex) -> bool) -> io::Result<()> {
        for (key, _) in self.counters.sums()?.into_iter().filter(|(key, _)| gone(key.service)) {
            self.counters.take(&key)?;
        }
        Ok(())
    }
}

/// The sums of Service ports.
pub fn by_service(entries: &BTreeMap<TrafficKey, Traffic>) -> HashMap<ServiceIndex, Traffic> {
    let mut sums: HashMap<ServiceIndex, Traffic> = HashMap::new();
    for (key, counted) in entries {
        let sum = sums.entry(key.service).or_default();
        *sum = *sum + *counted;
    }
    sums
}

/// TRAFFIC for those who must not see an entry that is being moved twice, or not at all.
#[derive(Clone, Debug)]
pub struct SharedTraffic(Arc<Mutex<TrafficCounters>>);

impl SharedTraffic {
    /// Opens the pin.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        let counters = TrafficCounters::open(pins, Access::ReadWrite)?;
        Ok(Self(Arc::new(Mutex::new(counters))))
    }

    /// Nobody else has it meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, TrafficCounters> {
        // It holds a file alone: a panic elsewhere can't leave it torn.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds up the endpoints that have left.
#[derive(Debug)]
pub struct Departed {
    traffic: SharedTraffic,
    backends: Table<Backend>,
    /// What each had at the last look, and for how many looks.
    known: HashMap<TrafficKey, (Traffic, u32)>,
    is_full: bool,
}

impl Departed {
    /// Opens the pins.
    pub fn open(pins: &Pins, traffic: SharedTraffic) -> Result<Self, BpfError> {
        Ok(Self {
            traffic,
            backends: maps::table(pins, map::BACKENDS, Access::Read)?,
            known: HashMap::new(),
            is_full: false,
        })
    }

    /// One look.
    pub fn look(&mut self) -> Result<(), BpfError> {
        let traffic = self.traffic.clone();
        let traffic = traffic.lock();
        let entries = traffic.all()?;
        self.tell_if_full(entries.len(), traffic.capacity());
        let mut known = HashMap::new();
        for (key, now) in entries.iter().filter(|(key, _)| self.has_left(key)) {
            let looks = match self.known.get(key) {
                Some((before, looks)) if before == now => looks + 1,
                Some(_) | None => 0,
            };
            if looks < QUIET_LOOKS {
                known.insert(*key, (*now, looks));
            } else {
                add_up(&traffic.counters, key).map_err(BpfError::call(map::TRAFFIC, "bpf(2)"))?;
            }
        }
        self.known = known;
        Ok(())
    }

    fn has_left(&self, key: &TrafficKey) -> bool {
        let current = self.backends.get(key.backend.0).map(|backend| backend.generation);
        key.backend.0 != 0 && current != Some(key.generation)
    }

    /// Once, until there is room again.
    fn tell_if_full(&mut self, entries: usize, capacity: usize) {
        let was_full = std::mem::replace(&mut self.is_full, entries >= capacity);
        if self.is_full && !was_full {
            tracing::warn!(
                capacity,
                "the map TRAFFIC is full: endpoints that are used from now on are served, but not \
                 counted; raise --max-traffic (after `lb-agent cleanup`: the size of a table is \
                 fixed when it is made)"
            );
        }
    }
}

/// Moves an entry to the sum of its Service.
fn add_up(counters: &CounterHash<TrafficKey, Traffic>, key: &TrafficKey) -> io::Result<()> {
    let sum = TrafficKey::of_departed(key.service);
    let before = counters.get(&sum)?;
    let Some(last) = counters.take(key)? else {
        return Ok(());
    };
    // The place that the entry had is free now.
    counters.set(&sum, &(before.unwrap_or_default() + last))?;
    Ok(())
}
