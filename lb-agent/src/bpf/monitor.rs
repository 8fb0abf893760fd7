//! EVENTS, and MONITOR's filter for as long as somebody watches.
//!
//! Who watches holds a lock on the directory of the maps, so that there is one at a time, and renews the
//! time until which the programs look at the filter, so that nothing goes on for one that was killed.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aya::maps::{Map, MapData, RingBuf};
use lb_common::abi::{
    Address, Conditions, Event, EventHook, Monitor, Pace, ServiceIndex, ServiceName, map,
};
use lb_common::bytes::Be16;
use lb_common::lb::{DropReason, monitor};

use super::error::BpfError;
use super::hash::{CounterHash, Hash};
use super::maps;
use super::pins::Pins;
use super::read;
use super::sys::{self, Access};
use super::table::Table;
use crate::inspect::monitor::EventRow;
use crate::inspect::table::Common;
use crate::tables::encode;

/// How long the programs look at a filter that isn't renewed.
const PATIENCE: Duration = Duration::from_secs(3);
const LOOKUP: &str = "bpf(BPF_MAP_LOOKUP_ELEM)";

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Bits of [`lb_common::abi::EventKinds`].
    pub kinds: u32,
    /// Events in a second on each CPU.
    pub rate: u32,
    /// Service, address and protocol.
    pub common: Common,
    /// Port of the frontend or the backend.
    pub port: Option<u16>,
}

impl Wanted {
    fn is_about_services(&self) -> bool {
        self.common.service.is_some() || self.common.namespace.is_some()
    }

    /// As the programs are told, but for the time.
    fn filter(&self) -> Monitor {
        let Self { kinds, rate, common: Common { address, protocol, .. }, port } = self;
        let condition = |is_set, bit| if is_set { bit } else { 0 };
        Monitor {
            until: u64::MAX,
            kinds: *kinds,
            rate: *rate,
            address: address.map_or(Address::UNSPECIFIED_V6, Address::from),
            port: Be16::new(port.unwrap_or_default()),
            protocol: protocol.map_or(0, encode::protocol_number),
            conditions: condition(address.is_some(), Conditions::ADDRESS)
                | condition(port.is_some(), Conditions::PORT)
                | condition(protocol.is_some(), Conditions::PROTOCOL)
                | condition(self.is_about_services(), Conditions::SERVICES),
            pad: 0,
        }
    }
}

/// Events that nobody was shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// More than the rate.
    pub suppressed: u64,
    /// More than EVENTS had room for.
    pub lost: u64,
}

/// Somebody watches; nobody does when it is dropped.
#[derive(Debug)]
pub struct Watch {
    wanted: Wanted,
    filter: Monitor,
    /// CLOCK_MONOTONIC, nanoseconds: what is older was meant for somebody else.
    since: u64,
    monitor: Table<Monitor>,
    watched: Hash<u32, u32>,
    services: BTreeSet<u32>,
    names: Hash<u32, ServiceName>,
    pace: CounterHash<u32, Pace>,
    told: Pace,
    pins: Pins,
    inode: u64,
    /// Keeps others from watching.
    _alone: File,
}

/// The ring buffer, to be waited for.
pub struct Events(RingBuf<MapData>);

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Events").field(&self.0.as_raw_fd()).finish()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Events {
    fn open(pins: &Pins) -> Result<Self, BpfError> {
        let path = pins.map(map::EVENTS);
        let failed = |error: &dyn std::error::Error| BpfError::Pin {
            call: "open the ring buffer",
            path: path.clone(),
            source: std::io::Error::other(error.to_string()),
        };
        let data = MapData::from_pin(&path).map_err(|error| failed(&error))?;
        let events = RingBuf::try_from(Map::RingBuf(data)).map_err(|error| failed(&error))?;
        Ok(Self(events))
    }

    /// The next one that is there.
    pub fn take(&mut self) -> Option<Event> {
        while let Some(item) = self.0.next() {
            // Another length is another version's.
            if item.len() == size_of::<Event>() {
                return Some(bytemuck::pod_read_unaligned(&item));
            }
        }
        None
    }
}

impl Watch {
    /// Begins to watch.
    pub fn start(bpffs: &Path, wanted: Wanted) -> Result<(Self, Events), BpfError> {
        let pins = Pins::at(bpffs);
        let monitor = maps::table(&pins, map::MONITOR, Access::ReadWrite)?;
        let alone = lock(&pins)?;
        let pace = CounterHash::open(&pins, map::PACE, Access::Read)?;
        let mut watch = Self {
            filter: wanted.filter(),
            wanted,
            since: 0,
            monitor,
            watched: Hash::open(&pins, map::WATCHED, Access::ReadWrite)?,
            services: BTreeSet::new(),
            names: Hash::open(&pins, map::NAMES, Access::Read)?,
            told: Pace::default(),
            pace,
            inode: inode(&pins)?,
            pins,
            _alone: alone,
        };
        let mut events = Events::open(&watch.pins)?;
        watch.stop();
        while events.take().is_some() {}
        watch.told = watch.paces()?;
        watch.forget_services()?;
        watch.follow_services()?;
        watch.since = sys::monotonic_nanoseconds();
        watch.monitor.set(0, &Monitor { kinds: 0, until: 0, ..watch.filter });
        watch.renew()?;
        watch.monitor.set_word(0, offset_of!(Monitor, kinds), watch.filter.kinds);
        Ok((watch, events))
    }

    /// To be called every second. Returns how long nobody watched, because it was called too late.
    pub fn renew(&mut self) -> Result<Option<Duration>, BpfError> {
        if inode(&self.pins).ok() != Some(self.inode) {
            return Err(BpfError::NoDatapath(self.pins.version().to_owned()));
        }
        self.follow_services()?;
        let now = sys::monotonic_nanoseconds();
        let before = self.monitor.get(0).map_or(0, |monitor| monitor.until);
        let until = now + PATIENCE.as_nanos() as u64;
        self.monitor.set_word(0, offset_of!(Monitor, until), until);
        let is_late = before != 0 && before < now;
        Ok(is_late.then(|| Duration::from_nanos(now - before)))
    }

    /// Nobody watches any more. What was seen before is still among the events.
    pub fn stop(&mut self) {
        self.monitor.set_word(0, offset_of!(Monitor, kinds), 0_u32);
    }

    /// What nobody was shown since the last call.
    pub fn unseen(&mut self) -> Result<Unseen, BpfError> {
        let now = self.paces()?;
        let before = std::mem::replace(&mut self.told, now);
        Ok(Unseen {
            suppressed: now.suppressed.wrapping_sub(before.suppressed),
            lost: now.lost.wrapping_sub(before.lost),
        })
    }

    /// An event as it is shown; `None` if it isn't wanted. A program that ran while the filter changed may
    /// have judged it by another one.
    pub fn row(&self, event: &Event) -> Result<Option<EventRow>, BpfError> {
        let is_watched = |service: ServiceIndex| self.services.contains(&service.0);
        if event.time < self.since || !monitor::wants(&self.filter, event, is_watched) {
            return Ok(None);
        }
        let name = self.names.get(&event.service.0).map_err(BpfError::call(map::NAMES, LOOKUP))?;
        let service = name.as_ref().and_then(read::parts);
        // The index of a Service that is gone may be another's by now.
        if self.wanted.is_about_services()
            && let Some((namespace, name, _)) = service
            && !self.wanted.common.wants_service(namespace, name)
        {
            return Ok(None);
        }
        let age = Duration::from_nanos(sys::monotonic_nanoseconds().saturating_sub(event.time));
        let time = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Some(row(event, time, service)))
    }

    fn paces(&self) -> Result<Pace, BpfError> {
        let pace = self.pace.get(&0).map_err(BpfError::call(map::PACE, LOOKUP))?;
        Ok(pace.unwrap_or_default())
    }

    fn forget_services(&self) -> Result<(), BpfError> {
        let entries = self.watched.entries();
        let entries = entries.map_err(BpfError::call(map::WATCHED, "bpf(BPF_MAP_LOOKUP_BATCH)"))?;
        entries
            .iter()
            .try_for_each(|(index, _)| self.watched.remove(index).map(drop))
            .map_err(BpfError::call(map::WATCHED, "bpf(BPF_MAP_DELETE_ELEM)"))
    }

    /// WATCHED has the Services that are asked for.
    fn follow_services(&mut self) -> Result<(), BpfError> {
        if !self.wanted.is_about_services() {
            return Ok(());
        }
        let mut services = BTreeSet::new();
        let listed = self.names.for_each(|index, name| {
            if let Some((namespace, name, _)) = read::parts(name)
                && self.wanted.common.wants_service(namespace, name)
            {
                services.insert(*index);
            }
        });
        listed.map_err(BpfError::call(map::NAMES, "bpf(BPF_MAP_LOOKUP_BATCH)"))?;
        for index in self.services.difference(&services) {
            let removed = self.watched.remove(index);
            removed.map_err(BpfError::call(map::WATCHED, "bpf(BPF_MAP_DELETE_ELEM)"))?;
        }
        for index in services.difference(&self.services) {
            let added = self.watched.set(index, &1);
            added.map_err(BpfError::call(map::WATCHED, "bpf(BPF_MAP_UPDATE_ELEM)"))?;
        }
        self.services = services;
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(pins: &Pins) -> Result<File, BpfError> {
    let path = pins.maps();
    let directory = File::open(&path).map_err(BpfError::pin("open", &path))?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(BpfError::Watched(path)),
        Err(TryLockError::Error(error)) => Err(BpfError::pin("lock", &path)(error)),
    }
}

/// Tells the pinned ring buffer from another that comes to its place.
fn inode(pins: &Pins) -> Result<u64, BpfError> {
    let path = pins.map(map::EVENTS);
    let metadata = std::fs::metadata(&path).map_err(BpfError::pin("look at", &path))?;
    Ok(metadata.ino())
}

fn row(event: &Event, time: SystemTime, service: Option<(&str, &str, &str)>) -> EventRow {
    let address = |address: Address| Some(address.into()).filter(|_| !address.is_unspecified());
    let port = |port: Be16| Some(port.get()).filter(|port| *port != 0);
    EventRow {
        time,
        reason: DropReason::from_number(event.reason.into()),
        protocol: encode::protocol(event.protocol),
        client: address(event.client),
        client_port: port(event.client_port),
        frontend: address(event.frontend),
        frontend_port: port(event.frontend_port),
        backend: address(event.backend),
        backend_port: port(event.backend_port),
        namespace: service.map(|(namespace, _, _)| namespace.to_owned()),
        name: service.map(|(_, name, _)| name.to_owned()),
        port_name: service.map(|(_, _, port)| port.to_owned()),
        hook: EventHook::from_number(event.hook),
        device: device(event.device),
    }
}

/// The name of an interface, or its number if it is gone; `None` for 0.
fn device(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok();
    let name = name.map(|name| name.to_string_lossy().into_owned());
    (index != 0).then(|| name.unwrap_or_else(|| index.to_string()))
}
