//! ADDRESSES: the node's own addresses, its pods', its endpoints' and those of Services. One address can be several of
//! these, so each entry is derived from all, and is written when what follows from them differs from what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{Address, AddressFlags, BackendFlags};

use super::store::{Store, StoreError};
use crate::cluster::snapshot::Protocol;
use crate::plan::desired::{FrontendAddress, FrontendKind};

/// Bits that come from the node.
const NODE: u32 = AddressFlags::NODE | AddressFlags::NODE_PORTS;

/// What ADDRESSES holds and what it should hold.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    written: BTreeMap<Address, u32>,
    /// The node's own addresses with their bits.
    node: BTreeMap<Address, u32>,
    /// Those of its pods that are served by packet.
    pods: BTreeSet<Address>,
    /// Every port of every Service address with the bit that its kind gives; those of one address are
    /// neighbours.
    services: BTreeMap<FrontendAddress, u32>,
    /// Elements of BACKENDS with an address, of endpoints on this node.
    endpoints: BTreeMap<Address, u32>,
    /// Addresses that began or ceased to be endpoints' since [`settle_endpoints`](Self::settle_endpoints).
    changed: BTreeSet<Address>,
}

impl Addresses {
    /// Reads the map. Which Service addresses are still wanted is said by the first plan; until the node
    /// is looked at, its addresses, and its pods', are those of the last run.
    pub(super) fn adopt<S: Store>(store: &S) -> Result<Self, StoreError> {
        let written: BTreeMap<_, _> = store.addresses()?.into_iter().collect();
        let node = written.iter().map(|(address, flags)| (*address, flags & NODE));
        let node = node.filter(|(_, flags)| *flags != 0).collect();
        let is_pod = |flags: &u32| flags & AddressFlags::POD != 0;
        let pods = written.iter().filter(|(_, flags)| is_pod(flags)).map(|(address, _)| *address);
        let pods = pods.collect();
        Ok(Self { written, node, pods, ..Self::default() })
    }

    /// The flags of an element of BACKENDS with this address were these before, and are those now; of
    /// one that isn't in use, none.
    pub(super) fn set_endpoint(&mut self, address: Address, before: u16, now: u16) {
        if (before ^ now) & BackendFlags::LOCAL == 0 {
            return;
        }
        let is_here = now & BackendFlags::LOCAL != 0;
        let count = self.endpoints.entry(address).or_default();
        *count = if is_here { count.saturating_add(1) } else { count.saturating_sub(1) };
        match (*count, is_here) {
            (0, _) => {
                self.endpoints.remove(&address);
                self.changed.insert(address);
            }
            (1, true) => {
                self.changed.insert(address);
            }
            _ => {}
        }
    }

    /// Writes what [`set_endpoint`](Self::set_endpoint) was told.
    pub(super) fn settle_endpoints<S: Store>(&mut self, store: &mut S) -> Result<(), StoreError> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().try_for_each(|address| self.write(store, address))
    }

    /// The node's own addresses; true for those that serve NodePorts.
    pub(super) fn set_node<S: Store>(
        &mut self,
        store: &mut S,
        addresses: &BTreeMap<IpAddr, bool>,
    ) -> Result<(), StoreError> {
        let flags = |serves: bool| if serves { NODE } else { AddressFlags::NODE };
        let node = addresses.iter().map(|(address, serves)| ((*address).into(), flags(*serves)));
        let before = std::mem::replace(&mut self.node, node.collect());
        let touched: BTreeSet<Address> = before.keys().chain(self.node.keys()).copied().collect();
        touched.into_iter().try_for_each(|address| self.write(store, address))
    }

    /// The addresses of the node's pods that are served by packet.
    pub(super) fn set_pods<S: Store>(
        &mut self,
        store: &mut S,
        pods: BTreeSet<Address>,
    ) -> Result<(), StoreError> {
        let before = std::mem::replace(&mut self.pods, pods);
        let touched: Vec<Address> = before.symmetric_difference(&self.pods).copied().collect();
        touched.into_iter().try_for_each(|address| self.write(store, address))
    }

    /// `frontend` is a Service's of this kind now, or nobody's any more.
    pub(super) fn set_service<S: Store>(
        &mut self,
        store: &mut S,
        frontend: &FrontendAddress,
        kind: Option<FrontendKind>,
    ) -> Result<(), StoreError> {
        let bit = match kind {
            Some(FrontendKind::ClusterIp) => Some(AddressFlags::CLUSTER_IP),
            Some(FrontendKind::ExternalIp | FrontendKind::LoadBalancer) => {
                Some(AddressFlags::EXTERNAL)
            }
            // A NodePort is on the node's own addresses.
            Some(FrontendKind::NodePort) | None => None,
        };
        let before = match bit {
            Some(bit) => self.services.insert(*frontend, bit),
            None => self.services.remove(frontend),
        };
        if before == bit { Ok(()) } else { self.write(store, frontend.address.into()) }
    }

    /// ClusterIPs that the node has on its devices.
    pub(super) fn cluster_ips_of_node(&self) -> BTreeSet<IpAddr> {
        let addresses = self.node.keys().map(|address| IpAddr::from(*address));
        addresses.filter(|own| self.service_bits(*own) & AddressFlags::CLUSTER_IP != 0).collect()
    }

    /// Forgets Service addresses that only an earlier run knew.
    pub(super) fn settle<S: Store>(&mut self, store: &mut S) -> Result<(), StoreError> {
        let all: Vec<Address> = self.written.keys().copied().collect();
        all.into_iter().try_for_each(|address| self.write(store, address))
    }

    fn write<S: Store>(&mut self, store: &mut S, address: Address) -> Result<(), StoreError> {
        let node = self.node.get(&address).copied().unwrap_or(0);
        let pod = if self.pods.contains(&address) { AddressFlags::POD } else { 0 };
        let is_endpoint = self.endpoints.contains_key(&address);
        let endpoint = if is_endpoint { AddressFlags::ENDPOINT } else { 0 };
        let wanted = node | pod | endpoint | self.service_bits(address.into());
        if self.written.get(&address).copied().unwrap_or(0) == wanted {
            return Ok(());
        }
        if wanted == 0 {
            store.remove_address(&address)?;
            self.written.remove(&address);
            return Ok(());
        }
        match store.set_address(&address, wanted) {
            Ok(()) => {
                self.written.insert(address, wanted);
                Ok(())
            }
            // The map has room for an address of each Service port, and some. Beyond that, a port that
            // nobody serves is not refused there, fragments have to come in order, and that is all.
            Err(StoreError::Full { .. }) if node == 0 => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn service_bits(&self, address: IpAddr) -> u32 {
        let first = FrontendAddress { address, port: 0, protocol: Protocol::Tcp };
        let ports = self.services.range(first..).take_while(|(port, _)| port.address == address);
        ports.fold(0, |bits, (_, bit)| bits | bit)
    }
}
