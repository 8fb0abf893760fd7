//! A pinned hash with typed keys and values: single writes, and dumps by batches (100,000 entries in
//! 30 ms; one call for each takes 230 ms).

use std::io;
use std::marker::PhantomData;
use std::ops::Add;
use std::os::fd::{AsFd as _, OwnedFd};

use aya_obj::generated::bpf_map_type;
use bytemuck::Pod;

use super::error::BpfError;
use super::pins::Pins;
use super::sys::{self, Access};

/// Entries of the first batch of a dump; it grows when a bucket has more.
const BATCH: usize = 4_096;

/// One of our hashes.
#[derive(Debug)]
pub struct Hash<K, V> {
    map: OwnedFd,
    name: &'static str,
    capacity: u32,
    entry: PhantomData<(K, V)>,
}

/// Opens a pinned map of one of `kinds` and compares the sizes of its keys and values; returns its
/// number of entries too.
pub(super) fn open<K, V>(
    pins: &Pins,
    name: &'static str,
    access: Access,
    kinds: &[bpf_map_type],
) -> Result<(OwnedFd, u32), BpfError> {
    let path = pins.map(name);
    let map = sys::open_pin(&path, access).map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            BpfError::NoDatapath(pins.version().to_owned())
        } else {
            BpfError::pin("open the pin", &path)(source)
        }
    })?;
    let info =
        sys::map_info(map.as_fd()).map_err(BpfError::call(name, "bpf(BPF_OBJ_GET_INFO_BY_FD)"))?;
    let (key_size, value_size) = (size_of::<K>(), size_of::<V>());
    let is_known_kind = kinds.iter().any(|kind| *kind as u32 == info.kind);
    if !is_known_kind
        || (info.key_size as usize, info.value_size as usize) != (key_size, value_size)
    {
        let wanted = kinds.first().map_or(0, |kind| *kind as u32);
        return Err(BpfError::Layout {
            path,
            pinned: format!(
                "type {}, key {} bytes, value {} bytes",
                info.kind, info.key_size, info.value_size
            ),
            wanted: format!("type {wanted}, key {key_size} bytes, value {value_size} bytes"),
        });
    }
    Ok((map, info.max_entries))
}

impl<K: Pod, V: Pod> Hash<K, V> {
    /// Opens a pin.
    pub fn open(pins: &Pins, name: &'static str, access: Access) -> Result<Self, BpfError> {
        Self::of_kind(
            pins,
            name,
            access,
            &[bpf_map_type::BPF_MAP_TYPE_HASH, bpf_map_type::BPF_MAP_TYPE_LRU_HASH],
        )
    }

    /// Opens the pin of an array, by `u32`, to ask for one element now and then: nothing is mapped that
    /// would count as this process's memory.
    pub fn of_array(pins: &Pins, name: &'static str) -> Result<Self, BpfError> {
        Self::of_kind(pins, name, Access::Read, &[bpf_map_type::BPF_MAP_TYPE_ARRAY])
    }

    fn of_kind(
        pins: &Pins,
        name: &'static str,
        access: Access,
        kinds: &[bpf_map_type],
    ) -> Result<Self, BpfError> {
        let (map, capacity) = open::<K, V>(pins, name, access, kinds)?;
        Ok(Self { map, name, capacity, entry: PhantomData })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Number of entries that it can hold.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        // SAFETY: `open` has compared the sizes, and the kind, which isn't per-CPU.
        unsafe { sys::lookup(self.map.as_fd(), key) }
    }

    /// Writes an entry, new or not.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: `open` has compared the sizes.
        unsafe { sys::update(self.map.as_fd(), key, value) }
    }

    /// Removes an entry; whether it was there.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        // SAFETY: `open` has compared the sizes.
        match unsafe { sys::delete(self.map.as_fd(), key) } {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Calls `visit` with each entry, without a copy of all of them.
    pub fn for_each(&self, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
        self.visit(1, |key, values| values.iter().for_each(|value| visit(key, value)))
    }

    /// All entries. Not a snapshot: what programs write meanwhile may be in it or not.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.for_each(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    /// Calls `visit` with each key and its values, `per_key` of them: one, or for a per-CPU hash as
    /// many as there may be CPUs.
    fn visit(&self, per_key: usize, mut visit: impl FnMut(&K, &[V])) -> io::Result<()> {
        let mut room = BATCH;
        let mut cursor = None;
        let mut keys = vec![K::zeroed(); room];
        let mut values = vec![V::zeroed(); room * per_key];
        loop {
            // SAFETY: `open` has compared the sizes; `per_key` is the number of CPUs exactly for
            // kinds with per-CPU values, whose size needs no padding.
            let chunk =
                unsafe { sys::lookup_batch(self.map.as_fd(), cursor, &mut keys, &mut values) };
            match chunk {
                Ok(chunk) => {
                    for (key, values) in
                        keys.iter().zip(values.chunks_exact(per_key)).take(chunk.count)
                    {
                        visit(key, values);
                    }
                    cursor = chunk.next;
                    if cursor.is_none() {
                        return Ok(());
                    }
                }
                // A bucket with more entries than fit: once more from the same place.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    keys = vec![K::zeroed(); room];
                    values = vec![V::zeroed(); room * per_key];
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A per-CPU hash, or array, of counters, of a size that is a multiple of 8 bytes: the kernel pads others.
#[derive(Debug)]
pub struct CounterHash<K, V = u64> {
    hash: Hash<K, V>,
    cpus: usize,
}

impl<K: Pod, V: Pod + Default + Add<Output = V>> CounterHash<K, V> {
    /// Opens a pin.
    pub fn open(pins: &Pins, name: &'static str, access: Access) -> Result<Self, BpfError> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| BpfError::Pin {
            call: "read",
            path: path.into(),
            source,
        })?;
        let kinds = [
            bpf_map_type::BPF_MAP_TYPE_LRU_PERCPU_HASH,
            bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH,
            bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY,
        ];
        Ok(Self { hash: Hash::of_kind(pins, name, access, &kinds)?, cpus })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.hash.name
    }

    /// Number of keys that it can hold.
    pub fn capacity(&self) -> u32 {
        self.hash.capacity
    }

    /// All keys and the sums over the CPUs.
    pub fn sums(&self) -> io::Result<Vec<(K, V)>> {
        let mut sums = Vec::new();
        self.hash.visit(self.cpus, |key, values| sums.push((*key, sum(values))))?;
        Ok(sums)
    }

    /// The sum of a key.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut values = vec![V::zeroed(); self.cpus];
        // SAFETY: `of_kind` has compared the sizes; there is a value for each CPU.
        let found = unsafe { sys::lookup_cpus(self.hash.map.as_fd(), key, &mut values) }?;
        Ok(found.then(|| sum(&values)))
    }

    /// Removes an entry and returns its sum.
    pub fn take(&self, key: &K) -> io::Result<Option<V>> {
        let mut values = vec![V::zeroed(); self.cpus];
        // SAFETY: as for `get`.
        let found = unsafe { sys::take_cpus(self.hash.map.as_fd(), key, &mut values) }?;
        Ok(found.then(|| sum(&values)))
    }

    /// Writes an entry, new or not. No program may count there.
    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        let mut values = vec![V::zeroed(); self.cpus];
        values.iter_mut().take(1).for_each(|first| *first = *value);
        // SAFETY: as for `get`.
        unsafe { sys::update_cpus(self.hash.map.as_fd(), key, &values) }
    }
}

fn sum<V: Copy + Default + Add<Output = V>>(values: &[V]) -> V {
    values.iter().fold(V::default(), |sum, value| sum + *value)
}
