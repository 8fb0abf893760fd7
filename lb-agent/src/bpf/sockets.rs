//! What the socket hooks remember of UDP sockets (REVERSE), judged by the backends' generations.

use std::io;
use std::net::SocketAddr;

use lb_common::abi::{Backend, ReverseKey, ReverseValue, map};
use lb_common::bytes::Be16;

use super::error::BpfError;
use super::hash::Hash;
use super::maps;
use super::pins::Pins;
use super::sys::Access;
use super::table::Table;
use crate::run::datapath::Translations;

/// REVERSE, and what its entries lead to.
#[derive(Debug)]
pub struct RememberedSockets {
    reverse: Hash<ReverseKey, ReverseValue>,
    backends: Table<Backend>,
}

impl RememberedSockets {
    /// Opens the pins.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        Ok(Self {
            reverse: Hash::open(pins, map::REVERSE, Access::ReadWrite)?,
            backends: maps::table(pins, map::BACKENDS, Access::Read)?,
        })
    }

    fn error(&self, call: &'static str) -> impl FnOnce(io::Error) -> BpfError {
        BpfError::call(self.reverse.name(), call)
    }
}

impl Translations for RememberedSockets {
    type Error = BpfError;

    fn is_stale(&self, cookie: u64, backend: SocketAddr) -> Result<bool, BpfError> {
        let entry = self.reverse.get(&key(cookie, backend));
        let Some(value) = entry.map_err(self.error("bpf(BPF_MAP_LOOKUP_ELEM)"))? else {
            return Ok(false);
        };
        let generation = self.backends.get(value.backend.0).map(|backend| backend.generation);
        Ok(generation != Some(value.generation))
    }

    fn forget(&self, cookie: u64, backend: SocketAddr) -> Result<(), BpfError> {
        let removed = self.reverse.remove(&key(cookie, backend));
        removed.map(drop).map_err(self.error("bpf(BPF_MAP_DELETE_ELEM)"))
    }
}

fn key(cookie: u64, backend: SocketAddr) -> ReverseKey {
    let port = Be16::new(backend.port());
    ReverseKey { cookie, address: backend.ip().into(), port, pad: [0; 6] }
}
