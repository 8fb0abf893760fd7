//! What the socket hooks remember of sockets (REVERSE), judged by the backends' generations, by whose the
//! address is that they named, or by what the same call would be told now.

use std::net::SocketAddr;

use bytemuck::Pod;
use lb_common::abi::{
    Address, AddressFlags, Backend, Frontend, FrontendKey, FrontendKind, ReverseKey, ReverseValue,
    ServiceIndex, ServicePointer, ServiceRecord, SourceSet, map,
};
use lb_common::bytes::Be16;
use lb_common::lb::frontend::Found;
use lb_common::lb::policy;

use super::error::BpfError;
use super::hash::Hash;
use super::pins::Pins;
use super::sys::Access;
use super::takeover::Handover;
use crate::cluster::snapshot::Protocol;
use crate::run::datapath::{ConnectedSocket, SocketOwner, Translations};
use crate::tables::encode::protocol_number;

/// REVERSE, and what its entries lead to.
#[derive(Debug)]
pub struct RememberedSockets {
    reverse: Hash<ReverseKey, ReverseValue>,
    backends: Hash<u32, Backend>,
    frontends: Hash<FrontendKey, Frontend>,
    addresses: Hash<Address, u32>,
    services: Hash<u32, ServicePointer>,
    records: Hash<u32, ServiceRecord>,
    handover: Handover,
    leads_pods: bool,
}

impl RememberedSockets {
    /// Opens the pins. `leads_pods`: nothing but sockets leads pods.
    pub fn open(pins: &Pins, leads_pods: bool) -> Result<Self, BpfError> {
        Ok(Self {
            reverse: Hash::open(pins, map::REVERSE, Access::ReadWrite)?,
            backends: Hash::of_array(pins, map::BACKENDS)?,
            frontends: Hash::open(pins, map::FRONTENDS, Access::Read)?,
            addresses: Hash::open(pins, map::ADDRESSES, Access::Read)?,
            services: Hash::of_array(pins, map::SERVICES)?,
            records: Hash::of_array(pins, map::RECORDS)?,
            handover: Handover::open(pins, Access::Read)?,
            leads_pods,
        })
    }

    /// Whether a socket that was led to nobody would be led there again. A record that is being
    /// replaced meanwhile is another Service's at worst: then the socket's next call is judged anew.
    fn still_silent(&self, value: &ReverseValue, protocol: Protocol) -> Result<bool, BpfError> {
        let Some(frontend) = self.frontend(value.address, value.port, protocol)? else {
            return Ok(false);
        };
        let Some(pointer) = look(&self.services, &frontend.service.0)? else {
            return Ok(false);
        };
        let record = look(&self.records, &pointer.record)?;
        let kind = FrontendKind::from_number(frontend.kind);
        Ok(record.zip(kind).is_some_and(|(record, kind)| {
            let found = Found { service: frontend.service, kind };
            policy::still_silent(&record, &found, SourceSet(value.generation))
        }))
    }

    /// Whether what the application named is another Service port's by now.
    fn has_moved(&self, value: &ReverseValue, service: ServiceIndex) -> Result<bool, BpfError> {
        let frontend = self.named(value.address, value.port, SocketOwner::Node)?;
        Ok(frontend.is_some_and(|frontend| frontend.service != service))
    }

    /// Whether a socket that no hook has led names a Service, and nobody else leads it.
    fn is_left(&self, socket: &ConnectedSocket, key: &ReverseKey) -> Result<bool, BpfError> {
        let is_ours = socket.owner == SocketOwner::Node || self.leads_pods;
        Ok(is_ours
            && self.named(key.address, key.port, socket.owner)?.is_some()
            && !self.handover.leads(socket.from, socket.to)?)
    }

    /// What such a UDP socket names.
    fn named(
        &self,
        address: Address,
        port: Be16,
        owner: SocketOwner,
    ) -> Result<Option<Frontend>, BpfError> {
        let frontend = self.frontend(address, port, Protocol::Udp)?;
        if frontend.is_none() && owner == SocketOwner::Node && self.has_node_ports(address)? {
            return self.frontend(address.wildcard(), port, Protocol::Udp);
        }
        Ok(frontend)
    }

    fn frontend(
        &self,
        address: Address,
        port: Be16,
        protocol: Protocol,
    ) -> Result<Option<Frontend>, BpfError> {
        let protocol = protocol_number(protocol);
        look(&self.frontends, &FrontendKey { address, port, protocol, pad: 0 })
    }

    fn has_node_ports(&self, address: Address) -> Result<bool, BpfError> {
        let flags = look(&self.addresses, &address)?;
        // Only the node's own sockets are led from there.
        let has_them = flags.is_some_and(|flags| flags & AddressFlags::NODE_PORTS != 0);
        Ok(has_them || address.is_loopback())
    }
}

impl Translations for RememberedSockets {
    type Error = BpfError;

    fn is_stale(&self, socket: &ConnectedSocket) -> Result<bool, BpfError> {
        let key = key(socket.cookie, socket.to);
        let value = look(&self.reverse, &key)?;
        if key.address.is_discard()
            && let Some(value) = value
        {
            return self.still_silent(&value, socket.protocol).map(|silent| !silent);
        }
        if socket.protocol == Protocol::Tcp {
            return Ok(false);
        }
        let Some(value) = value else {
            return self.is_left(socket, &key);
        };
        match look(&self.backends, &value.backend.0)? {
            Some(backend) if backend.generation == value.generation => {
                self.has_moved(&value, backend.service)
            }
            Some(_) | None => Ok(true),
        }
    }

    fn forget(&self, cookie: u64, backend: SocketAddr) -> Result<(), BpfError> {
        let removed = self.reverse.remove(&key(cookie, backend));
        removed.map(drop).map_err(BpfError::call(self.reverse.name(), "bpf(BPF_MAP_DELETE_ELEM)"))
    }
}

fn look<K: Pod, V: Pod>(map: &Hash<K, V>, key: &K) -> Result<Option<V>, BpfError> {
    map.get(key).map_err(BpfError::call(map.name(), "bpf(BPF_MAP_LOOKUP_ELEM)"))
}

fn key(cookie: u64, backend: SocketAddr) -> ReverseKey {
    let port = Be16::new(backend.port());
    ReverseKey { cookie, address: backend.ip().into(), port, pad: [0; 6] }
}
