//! What the kernel's programs would find for a Service, read by `BPF_MAP_LOOKUP_ELEM` from the pinned
//! maps: frontend, published record, its slots, their backends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use bytemuck::{Pod, bytes_of, pod_read_unaligned};
use lb_agent::bpf::pins::Pins;
use lb_common::abi::{Backend, Frontend, FrontendKey, ServicePointer, ServiceRecord, map};
use lb_common::bytes::Be16;
use lb_common::wire::ip;

type Table<const N: usize> = Array<MapData, [u8; N]>;

/// The opened maps.
pub(super) struct Visible {
    frontends: HashMap<MapData, [u8; size_of::<FrontendKey>()], [u8; size_of::<Frontend>()]>,
    services: Table<{ size_of::<ServicePointer>() }>,
    records: Table<{ size_of::<ServiceRecord>() }>,
    slots: Table<4>,
    backends: Table<{ size_of::<Backend>() }>,
}

impl Visible {
    /// Opens the pins under a BPF file system.
    pub fn open(bpffs: &Path) -> Result<Self> {
        let pins = Pins::at(bpffs);
        let open = |name: &'static str| {
            let path = pins.map(name);
            MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))
        };
        Ok(Self {
            frontends: HashMap::try_from(Map::HashMap(open(map::FRONTENDS)?))?,
            services: Array::try_from(Map::Array(open(map::SERVICES)?))?,
            records: Array::try_from(Map::Array(open(map::RECORDS)?))?,
            slots: Array::try_from(Map::Array(open(map::SLOTS)?))?,
            backends: Array::try_from(Map::Array(open(map::BACKENDS)?))?,
        })
    }

    /// Whether a TCP connection to this address would choose among exactly these endpoints (sorted).
    pub fn shows(&self, address: IpAddr, port: u16, endpoints: &[IpAddr]) -> Result<bool> {
        let key = FrontendKey {
            address: address.into(),
            port: Be16::new(port),
            protocol: ip::TCP,
            pad: 0,
        };
        let key = bytes_of(&key).try_into().context("the size of a frontend's key")?;
        let frontend: Frontend = match self.frontends.get(&key, 0) {
            Ok(value) => pod_read_unaligned(&value),
            Err(MapError::KeyNotFound) => return Ok(false),
            Err(error) => return Err(error).context("look up FRONTENDS"),
        };
        let pointer: ServicePointer = element(&self.services, frontend.service.0)?;
        let record: ServiceRecord = element(&self.records, pointer.record)?;
        let mut found = BTreeSet::new();
        for slot in record.cluster.offset..record.cluster.offset + record.cluster.len {
            let backend: Backend = element(&self.backends, element(&self.slots, slot)?)?;
            found.insert(IpAddr::from(backend.address));
        }
        Ok(found.iter().eq(endpoints))
    }
}

fn element<T: Pod, const N: usize>(table: &Table<N>, index: u32) -> Result<T> {
    Ok(pod_read_unaligned(&table.get(&index, 0).context("look up an array element")?))
}
