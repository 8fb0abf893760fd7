//! A pinned trie that finds the longest prefix, as a set of typed keys.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, OwnedFd};

use aya_obj::generated::bpf_map_type;
use bytemuck::Pod;

use super::error::BpfError;
use super::hash;
use super::pins::Pins;
use super::sys::{self, Access};

/// What is written as the value of every key.
const PRESENT: u32 = 1;

/// One of our tries. `K` begins with the prefix length.
#[derive(Debug)]
pub struct Trie<K> {
    map: OwnedFd,
    name: &'static str,
    capacity: u32,
    key: PhantomData<K>,
}

impl<K: Pod> Trie<K> {
    /// Opens a pin.
    pub fn open(pins: &Pins, name: &'static str, access: Access) -> Result<Self, BpfError> {
        let kinds = [bpf_map_type::BPF_MAP_TYPE_LPM_TRIE];
        let (map, capacity) = hash::open::<K, u32>(pins, name, access, &kinds)?;
        Ok(Self { map, name, capacity, key: PhantomData })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Number of keys that it can hold.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Adds a key, there already or not.
    pub fn add(&self, key: &K) -> io::Result<()> {
        // SAFETY: `open` has compared the sizes.
        unsafe { sys::update(self.map.as_fd(), key, &PRESENT) }
    }

    /// Removes a key; gone already is fine.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        // SAFETY: `open` has compared the sizes.
        match unsafe { sys::delete(self.map.as_fd(), key) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Whether a key is there that holds this one.
    pub fn holds(&self, key: &K) -> io::Result<bool> {
        // SAFETY: `open` has compared the sizes.
        unsafe { sys::lookup::<K, u32>(self.map.as_fd(), key) }.map(|value| value.is_some())
    }

    /// All keys. Not a snapshot: the walk begins anew behind a key that is removed meanwhile, so a key
    /// may come twice. One call for each: batches have cursors of another size than those of hashes.
    pub fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        // SAFETY: `open` has compared the sizes.
        while let Some(key) = unsafe { sys::next_key(self.map.as_fd(), keys.last()) }? {
            keys.push(key);
        }
        Ok(keys)
    }
}
