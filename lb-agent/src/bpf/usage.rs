//! How full the pinned maps are and what memory they take, whoever fills them.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya_obj::generated::bpf_map_type;

use super::error::BpfError;
use super::object::PINNED;
use super::pins::Pins;
use super::sys::{self, Access, MapInfo};

/// One map as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapUsage {
    /// Its name.
    pub map: &'static str,
    /// Entries of a hash; an array has all of its elements always, and a trie's are not counted.
    pub entries: Option<u64>,
    /// Entries that it can hold.
    pub max_entries: u32,
    /// Bytes that the kernel reckons for it.
    pub memory: u64,
}

/// The pinned maps, open to be counted.
#[derive(Debug)]
pub struct CountedMaps {
    maps: Vec<Counted>,
    cpus: usize,
}

#[derive(Debug)]
struct Counted {
    name: &'static str,
    map: OwnedFd,
    info: MapInfo,
}

impl CountedMaps {
    /// Opens all pins that are there, those of another layout too.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        let mut maps = Vec::new();
        for name in PINNED {
            let path = pins.map(name);
            let map = match sys::open_pin(&path, Access::Read) {
                Ok(map) => map,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(BpfError::pin("open the pin", &path)(error)),
            };
            let info = sys::map_info(map.as_fd())
                .map_err(BpfError::call(name, "bpf(BPF_OBJ_GET_INFO_BY_FD)"))?;
            maps.push(Counted { name, map, info });
        }
        if maps.is_empty() {
            return Err(BpfError::NoDatapath(pins.version().to_owned()));
        }
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| BpfError::Pin {
            call: "read",
            path: path.into(),
            source,
        })?;
        Ok(Self { maps, cpus })
    }

    /// All of them, now. Copies every entry of every hash: 300,000 in 90 ms, so at intervals, or when a
    /// person asks.
    pub fn usage(&self) -> Result<Vec<MapUsage>, BpfError> {
        self.maps.iter().map(|map| map.usage(self.cpus)).collect()
    }
}

impl Counted {
    fn usage(&self, cpus: usize) -> Result<MapUsage, BpfError> {
        let is = |kind: bpf_map_type| self.info.kind == kind as u32;
        let per_key = if is(bpf_map_type::BPF_MAP_TYPE_LRU_PERCPU_HASH)
            || is(bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH)
        {
            Some(cpus)
        } else {
            (is(bpf_map_type::BPF_MAP_TYPE_HASH) || is(bpf_map_type::BPF_MAP_TYPE_LRU_HASH))
                .then_some(1)
        };
        let entries =
            per_key.map(|per_key| sys::count_entries(self.map.as_fd(), &self.info, per_key));
        Ok(MapUsage {
            map: self.name,
            entries: entries
                .transpose()
                .map_err(BpfError::call(self.name, "bpf(BPF_MAP_LOOKUP_BATCH)"))?,
            max_entries: self.info.max_entries,
            memory: sys::map_memory(self.map.as_fd())
                .map_err(BpfError::call(self.name, "read fdinfo"))?,
        })
    }
}
