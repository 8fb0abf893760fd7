//! One look at the pinned maps.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Instant;

use super::rate::{Counts, PerMetric};
use crate::args::TopArgs;
use crate::bpf::BpfError;
use crate::bpf::read::Reader;
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::inspect::rows::{BackendRow, ServiceRow, TrafficRow};
use crate::inspect::services::wanted;

/// What was seen.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// The Service ports that are shown, sorted by name.
    pub services: Vec<ServiceRow>,
    /// Packets and connections that were not served, by reason, of the whole node.
    pub drops: Vec<(&'static str, u64)>,
}

impl Sample {
    /// Looks. Opens the pins each time: they may be another agent's by now.
    pub fn take(args: &TopArgs) -> Result<Self, BpfError> {
        let reader = Reader::open(&args.pins.bpffs)?;
        let at = Instant::now();
        let services = wanted(reader.services()?, &args.filter);
        let drops = reader.drops_by_reason()?.into_iter();
        let drops = drops.map(|(reason, packets)| (reason.label(), packets)).collect();
        Ok(Self { at, services, drops })
    }
}

/// Something with counters and a name that stays.
pub trait Row {
    /// Tells it from all others, in every sample.
    type Key: Clone + Debug + Eq + Hash;

    /// The name.
    fn key(&self) -> Self::Key;

    /// The name in words, to be searched.
    fn name(&self) -> String;

    /// The counters.
    fn counts(&self) -> Counts;
}

impl Row for ServiceRow {
    type Key = (String, String, String, Protocol, IpFamily);

    fn key(&self) -> Self::Key {
        let Self { namespace, name, port_name, protocol, family, .. } = self;
        (namespace.clone(), name.clone(), port_name.clone(), *protocol, *family)
    }

    fn name(&self) -> String {
        let Self { namespace, name, port_name, .. } = self;
        let colon = if port_name.is_empty() { "" } else { ":" };
        format!("{namespace}/{name}{colon}{port_name}")
    }

    fn counts(&self) -> Counts {
        let drops = self.drops.values().fold(0_u64, |sum, count| sum.wrapping_add(*count));
        let [connections, packets, bytes] = traffic(&self.traffic);
        PerMetric([connections, packets, bytes, Some(drops)])
    }
}

impl Row for BackendRow {
    type Key = (IpAddr, u16);

    fn key(&self) -> Self::Key {
        (self.address, self.port)
    }

    fn name(&self) -> String {
        crate::inspect::table::endpoint(self.address, self.port)
    }

    /// Drops are a Service's: they have no endpoint.
    fn counts(&self) -> Counts {
        let [connections, packets, bytes] = traffic(&self.traffic);
        PerMetric([connections, packets, bytes, None])
    }
}

fn traffic(traffic: &TrafficRow) -> [Option<u64>; 3] {
    let both = |to: Option<u64>, from: Option<u64>| Some(to?.wrapping_add(from?));
    [
        Some(traffic.connections),
        both(traffic.packets_to, traffic.packets_from),
        both(traffic.bytes_to, traffic.bytes_from),
    ]
}
