//! The agent's own way from objects to maps: `convert` → `plan` → `tables`, over maps in plain collections.

use super::case::{Case, Step};
use super::scenery;
use anyhow::{Context, Result};
use lb_agent::cluster::convert;
use lb_agent::cluster::snapshot::{Change, ObjectName};
use lb_agent::node::facts::{self, ClientAddresses, Device, NodeFacts};
use lb_agent::plan::{Planner, plan};
use lb_agent::tables::Tables;
use lb_agent::tables::fake_store::FakeStore;
use lb_agent::tables::layout;
use lb_common::abi::BackendIndex;
use lb_common::model::scene::{Role, device};
use lb_common::model::sockets;
use lb_common::model::world::World;
use std::collections::BTreeMap;

/// As many as the maps of the loaded programs have, in these tests.
const SERVICES: usize = 120;
const BACKENDS: usize = 512;
const SLOTS: usize = 32_768;

/// One agent's work.
#[derive(Debug)]
pub struct Product {
    planner: Planner,
    tables: Tables<FakeStore>,
    facts: NodeFacts,
    clients: BTreeMap<u64, ClientAddresses>,
}

impl Product {
    /// An agent that has listed an empty cluster.
    ///
    /// # Errors
    /// When a map refuses.
    pub fn new(case: &Case) -> Result<Self> {
        let mut planner = Planner::new(scenery::NODE);
        planner.apply([Change::AllServices(Vec::new()), Change::AllSlices(Vec::new())]);
        let mut product = Self {
            tables: Tables::adopt(empty())?,
            planner,
            facts: facts(case),
            clients: scenery::clients(),
        };
        product.tables.reconcile(product.planner.desired())?;
        product.set_surroundings()?;
        Ok(product)
    }

    /// What an agent would have written that began just now.
    ///
    /// # Errors
    /// When a map refuses.
    pub fn fresh(&self) -> Result<World> {
        let mut tables = Tables::adopt(empty())?;
        tables.reconcile(&plan(self.planner.snapshot(), scenery::NODE))?;
        tables.set_node(&self.facts, |_| false)?;
        tables.set_clients(&self.clients)?;
        Ok(world(tables.store()))
    }

    /// Takes part in a step.
    ///
    /// # Errors
    /// When a map refuses, or something found no room.
    pub fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Service(object) => {
                let converted = convert::service::service(object);
                let gone = Change::ServiceGone(converted.name);
                self.change(converted.value.map_or(gone, Change::Service))?;
            }
            Step::NoService(name) => self.change(Change::ServiceGone(object_name(name)))?,
            Step::Slice(object) => {
                let converted = convert::slice::slice(object);
                let gone = Change::SliceGone(converted.name);
                self.change(converted.value.map_or(gone, Change::Slice))?;
            }
            Step::NoSlice(name) => self.change(Change::SliceGone(object_name(name)))?,
            Step::Node(object) => self.change(Change::Node(convert::node::node(object).value))?,
            Step::Tidy => self.tables.maintain()?,
            Step::Restart => {
                let ended = std::mem::replace(&mut self.tables, Tables::adopt(empty())?);
                self.tables = Tables::adopt(ended.into_store())?;
                self.tables.reconcile(self.planner.desired())?;
                self.set_surroundings()?;
            }
            Step::Wait(_) | Step::Ask(_) => {}
        }
        let unfit = self.tables.unfit().next().map(|(key, why)| format!("{key}: {why}"));
        unfit.map_or(Ok(()), |unfit| Err(anyhow::anyhow!(unfit))).context("the maps are too small")
    }

    /// What the maps hold.
    pub fn world(&self) -> World {
        world(self.tables.store())
    }

    fn change(&mut self, change: Change) -> Result<()> {
        let delta = self.planner.apply([change]);
        Ok(self.tables.apply(&delta)?)
    }

    fn set_surroundings(&mut self) -> Result<()> {
        self.tables.set_node(&self.facts, |_| false)?;
        self.tables.set_clients(&self.clients)?;
        Ok(())
    }
}

/// The name of an object in the namespace of every case.
pub fn object_name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn empty() -> FakeStore {
    let mut store = FakeStore::new(SERVICES, BACKENDS, SLOTS);
    store.frontends_capacity = 1 << 10;
    store.source_ranges_capacity = 1 << 10;
    store
}

fn facts(case: &Case) -> NodeFacts {
    let device = |index, name: &str, mtu, (address4, address6)| Device {
        role: facts::Role::External,
        name: name.to_owned(),
        index,
        kind: String::new(),
        mtu,
        ethernet: true,
        uplink: true,
        address4,
        address6,
    };
    let devices = [
        device(device::UPLINK, "uplink", 1500, scenery::pair(Role::Node)),
        device(device::OVERLAY, "overlay", 1450, scenery::pair(Role::Overlay)),
    ];
    NodeFacts {
        addresses: scenery::here(case).addresses,
        devices: devices.into_iter().map(|device| (device.index, device)).collect(),
        own: scenery::clients().get(&sockets::HOST).copied().unwrap_or_default(),
        ..NodeFacts::default()
    }
}

fn world(store: &FakeStore) -> World {
    let published = (0..).zip(&store.pointers).filter(|(_, pointer)| pointer.record != 0);
    let records = published.filter_map(|(index, pointer)| {
        let record = store.records.get(pointer.record as usize)?;
        Some((lb_common::abi::ServiceIndex(index), *record))
    });
    let records: BTreeMap<_, _> = records.collect();
    let end = |record| {
        let run = layout::run_of(record);
        run.offset + run.len
    };
    let slots = records.values().map(end).max().unwrap_or(0) as usize;
    World {
        frontends: store.frontends.clone(),
        records,
        slots: store.slots.iter().take(slots).copied().map(BackendIndex).collect(),
        backends: store.backends.clone(),
        addresses: store.addresses.clone(),
        clients: store.clients.clone(),
        source_ranges: store.source_ranges.iter().copied().collect(),
        devices: store.devices.clone(),
        ..World::default()
    }
}
