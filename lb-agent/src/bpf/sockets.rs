//! What the socket hooks remember of UDP sockets (REVERSE), judged by the backends' generations, by
//! whose the address is that they named, or by what the same call would be told now.

use std::io;
use std::net::SocketAddr;

use lb_common::abi::{
    Address, AddressFlags, Backend, Frontend, FrontendKey, FrontendKind, ReverseKey, ReverseValue,
    ServiceIndex, ServicePointer, ServiceRecord, SourceSet, map,
};
use lb_common::bytes::Be16;
use lb_common::lb::frontend::Found;
use lb_common::lb::policy;
use lb_common::wire::ip;

use super::error::BpfError;
use super::hash::Hash;
use super::maps;
use super::pins::Pins;
use super::sys::Access;
use super::table::Table;
use super::takeover::Handover;
use crate::run::datapath::{SocketOwner, Translations};

/// REVERSE, and what its entries lead to.
#[derive(Debug)]
pub struct RememberedSockets {
    reverse: Hash<ReverseKey, ReverseValue>,
    backends: Table<Backend>,
    frontends: Hash<FrontendKey, Frontend>,
    addresses: Hash<Address, u32>,
    services: Table<ServicePointer>,
    records: Table<ServiceRecord>,
    handover: Handover,
    leads_pods: bool,
}

impl RememberedSockets {
    /// Opens the pins. `leads_pods`: nothing but sockets leads pods.
    pub fn open(pins: &Pins, leads_pods: bool) -> Result<Self, BpfError> {
        Ok(Self {
            reverse: Hash::open(pins, map::REVERSE, Access::ReadWrite)?,
            backends: maps::table(pins, map::BACKENDS, Access::Read)?,
            frontends: Hash::open(pins, map::FRONTENDS, Access::Read)?,
            addresses: Hash::open(pins, map::ADDRESSES, Access::Read)?,
            services: maps::table(pins, map::SERVICES, Access::Read)?,
            records: maps::table(pins, map::RECORDS, Access::Read)?,
            handover: Handover::open(pins, Access::Read)?,
            leads_pods,
        })
    }

    /// Whether a UDP socket that was led to nobody would be led there again. A record that is being
    /// replaced meanwhile is another Service's at worst: then the socket's next call is judged anew.
    fn still_silent(&self, value: &ReverseValue) -> Result<bool, BpfError> {
        let silent = self.frontend(value.address, value.port)?.and_then(|frontend| {
            let kind = FrontendKind::from_number(frontend.kind)?;
            let found = Found { service: frontend.service, kind };
            let record = self.records.get(self.services.get(found.service.0)?.record)?;
            Some(policy::still_silent(&record, &found, SourceSet(value.generation)))
        });
        Ok(silent.unwrap_or(false))
    }

    /// Whether what the application named is another Service port's by now.
    fn has_moved(&self, value: &ReverseValue, service: ServiceIndex) -> Result<bool, BpfError> {
        let frontend = self.named(value.address, value.port, SocketOwner::Node)?;
        Ok(frontend.is_some_and(|frontend| frontend.service != service))
    }

    /// What such a socket names.
    fn named(
        &self,
        address: Address,
        port: Be16,
        owner: SocketOwner,
    ) -> Result<Option<Frontend>, BpfError> {
        let frontend = self.frontend(address, port)?;
        if frontend.is_none() && owner == SocketOwner::Node && self.has_node_ports(address)? {
            return self.frontend(address.wildcard(), port);
        }
        Ok(frontend)
    }

    fn frontend(&self, address: Address, port: Be16) -> Result<Option<Frontend>, BpfError> {
        let frontend =
            self.frontends.get(&FrontendKey { address, port, protocol: ip::UDP, pad: 0 });
        frontend.map_err(BpfError::call(self.frontends.name(), "bpf(BPF_MAP_LOOKUP_ELEM)"))
    }

    fn has_node_ports(&self, address: Address) -> Result<bool, BpfError> {
        let flags = self.addresses.get(&address);
        let flags =
            flags.map_err(BpfError::call(self.addresses.name(), "bpf(BPF_MAP_LOOKUP_ELEM)"))?;
        // Only the node's own sockets are led from there.
        let has_them = flags.is_some_and(|flags| flags & AddressFlags::NODE_PORTS != 0);
        Ok(has_them || address.is_loopback())
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
        if key(cookie, backend).address.is_discard() {
            return self.still_silent(&value).map(|silent| !silent);
        }
        match self.backends.get(value.backend.0) {
            Some(backend) if backend.generation == value.generation => {
                self.has_moved(&value, backend.service)
            }
            Some(_) | None => Ok(true),
        }
    }

    fn is_left(
        &self,
        cookie: u64,
        from: SocketAddr,
        to: SocketAddr,
        owner: SocketOwner,
    ) -> Result<bool, BpfError> {
        if owner == SocketOwner::Pod && !self.leads_pods {
            return Ok(false);
        }
        let key = key(cookie, to);
        if self.named(key.address, key.port, owner)?.is_none() {
            return Ok(false);
        }
        let led = self.reverse.get(&key).map_err(self.error("bpf(BPF_MAP_LOOKUP_ELEM)"))?;
        Ok(led.is_none() && !self.handover.leads(from, to)?)
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
