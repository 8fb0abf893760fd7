//! Traffic per Service port, for `/metrics`: at most so many series, and sums that never fall.
//!
//! A Service port has series of its own from its first connection, while there is room; what the others
//! have is added up under [`OTHERS`]. Everything goes by differences between scrapes: what was
//! counted once stays where it was counted, also when a Service port is deleted, gets a series or is
//! made again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use lb_common::abi::{ServiceIndex, Traffic};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::collect::KernelCounters;
use crate::inspect::rows::protocol_name;
use crate::plan::desired::ServicePortKey;

/// Label value of all that have no series of their own. No object can have such a name.
pub const OTHERS: &str = "_other";

/// What the kernel has counted for a Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCount {
    /// Its index; another one's once it is gone.
    pub index: ServiceIndex,
    /// Which it is.
    pub key: ServicePortKey,
    /// Its number, host byte order; 0 if none of its addresses tells.
    pub port: u16,
    /// All of its endpoints together, since it was made.
    pub traffic: Traffic,
}

/// The labels of a series; families are added up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct Labels {
    namespace: String,
    service: String,
    port: String,
    protocol: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct Directed {
    #[prometheus(flatten)]
    labels: Labels,
    direction: &'static str,
}

impl Labels {
    /// A port without a name is its Service's only one, and called by its number.
    fn of(count: &ServiceCount) -> Self {
        let ServiceCount { key, port, .. } = count;
        Self {
            namespace: key.service.namespace.to_string(),
            service: key.service.name.to_string(),
            port: if key.port_name.is_empty() {
                port.to_string()
            } else {
                key.port_name.to_string()
            },
            protocol: protocol_name(key.protocol),
        }
    }

    fn others() -> Self {
        let [namespace, service, port] = [OTHERS; 3].map(str::to_owned);
        Self { namespace, service, port, protocol: OTHERS }
    }
}

/// What the series hold, from one scrape to the next.
#[derive(Debug, Default)]
struct Ledger {
    /// Service ports that may have a series.
    most: usize,
    shown: BTreeMap<Labels, Traffic>,
    others: Traffic,
    not_shown: usize,
    /// What was counted at the last scrape; `None` before the first.
    last: Option<HashMap<(ServiceIndex, ServicePortKey), Traffic>>,
}

impl Ledger {
    /// Takes in what is counted now.
    fn look(&mut self, counts: Vec<ServiceCount>) {
        let mut here: BTreeMap<Labels, u64> = BTreeMap::new();
        for count in &counts {
            let connections = count.traffic.sockets.wrapping_add(count.traffic.flows);
            *here.entry(Labels::of(count)).or_default() += connections;
        }
        self.shown.retain(|labels, _| here.contains_key(labels));
        self.admit(&here);
        self.not_shown = here.len() - self.shown.len();
        let before = self.last.take();
        let mut last = HashMap::new();
        for count in counts {
            let labels = Labels::of(&count);
            let ServiceCount { index, key, traffic, .. } = count;
            let series = self.shown.get_mut(&labels);
            let known = before.as_ref().map(|before| before.get(&(index, key.clone())));
            let more = match (known, &series) {
                (Some(Some(before)), _) => since(traffic, *before),
                // The sum of the others begins with this agent: which they were before isn't known.
                (None, None) => Traffic::default(),
                (None, Some(_)) | (Some(None), _) => traffic,
            };
            let sum = series.unwrap_or(&mut self.others);
            *sum = *sum + more;
            last.insert((index, key), traffic);
        }
        self.last = Some(last);
    }

    /// Gives the busiest without a series one, as far as there is room.
    fn admit(&mut self, here: &BTreeMap<Labels, u64>) {
        let mut waiting: Vec<_> =
            here.iter().filter(|(labels, _)| !self.shown.contains_key(labels)).collect();
        waiting.sort_by_key(|(_, connections)| std::cmp::Reverse(**connections));
        let room = self.most.saturating_sub(self.shown.len());
        for (labels, _) in waiting.into_iter().take(room) {
            self.shown.insert(labels.clone(), Traffic::default());
        }
    }

    /// Every series.
    fn series(&self) -> impl Iterator<Item = (Labels, Traffic)> {
        let has_others = self.not_shown > 0 || self.others != Traffic::default();
        let others = has_others.then(|| (Labels::others(), self.others));
        self.shown.iter().map(|(labels, sum)| (labels.clone(), *sum)).chain(others)
    }
}

/// What was counted after `before`. Counters that are lower are those of a Service that is being removed.
fn since(now: Traffic, before: Traffic) -> Traffic {
    Traffic {
        sockets: now.sockets.saturating_sub(before.sockets),
        flows: now.flows.saturating_sub(before.flows),
        packets_to: now.packets_to.saturating_sub(before.packets_to),
        packets_from: now.packets_from.saturating_sub(before.packets_from),
        bytes_to: now.bytes_to.saturating_sub(before.bytes_to),
        bytes_from: now.bytes_from.saturating_sub(before.bytes_from),
    }
}

/// `lb_agent_service_…`.
#[derive(Debug)]
pub struct ServiceTraffic {
    counters: Arc<dyn KernelCounters>,
    ledger: Mutex<Ledger>,
}

impl ServiceTraffic {
    /// At most `most` Service ports have series of their own.
    pub fn new(counters: Arc<dyn KernelCounters>, most: usize) -> Self {
        let ledger = Ledger { most, ..Ledger::default() };
        Self { counters, ledger: Mutex::new(ledger) }
    }
}

impl Collector for ServiceTraffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // Held while the kernel is read, so that scrapes side by side look one after the other. After a
        // panic in there the next scrape takes the same differences again, or none.
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = self.counters.traffic() {
            ledger.look(counts);
        }
        let mut family = encoder.encode_descriptor(
            "lb_agent_service_connections",
            "Connections that were led to endpoints of this Service port",
            None,
            MetricType::Counter,
        )?;
        for (labels, sum) in ledger.series() {
            let connections = sum.sockets.wrapping_add(sum.flows);
            ConstCounter::new(connections).encode(family.encode_family(&labels)?)?;
        }
        directed(
            &mut encoder,
            &ledger,
            "lb_agent_service_packets",
            "Packets that were translated to endpoints of this Service port, and from them",
            |sum| [sum.packets_to, sum.packets_from],
        )?;
        directed(
            &mut encoder,
            &ledger,
            "lb_agent_service_bytes",
            "IP bytes of packets that were translated to endpoints of this Service port, and from them",
            |sum| [sum.bytes_to, sum.bytes_from],
        )?;
        let gauge = ConstGauge::new(i64::try_from(ledger.not_shown).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(
            "lb_agent_service_ports_not_shown",
            "Service ports with traffic that have no series of their own",
            None,
            MetricType::Gauge,
        )?)
    }
}

/// A counter in both directions, of those that had packets to count.
fn directed(
    encoder: &mut DescriptorEncoder<'_>,
    ledger: &Ledger,
    name: &str,
    help: &str,
    values: fn(&Traffic) -> [u64; 2],
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, sum) in ledger.series() {
        if sum.flows == 0 && sum.packets_to == 0 && sum.packets_from == 0 {
            continue;
        }
        for (direction, value) in ["to", "from"].into_iter().zip(values(&sum)) {
            let labels = Directed { labels: labels.clone(), direction };
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::cluster::name::Name;
    use crate::cluster::snapshot::{IpFamily, ObjectName, Protocol};
    use crate::serve::metrics::Metrics;

    /// Connections at sockets of a Service port with a name.
    fn count(index: u32, service: &str, family: IpFamily, sockets: u64) -> ServiceCount {
        let key = ServicePortKey {
            service: ObjectName::new("default", service),
            port_name: Name::from("web"),
            protocol: Protocol::Tcp,
            family,
        };
        let traffic = Traffic { sockets, ..Traffic::default() };
        ServiceCount { index: ServiceIndex(index), key, port: 80, traffic }
    }

    fn one(index: u32, service: &str, sockets: u64) -> ServiceCount {
        count(index, service, IpFamily::V4, sockets)
    }

    /// Connections by Service after each look.
    fn looks<const N: usize>(ledger: &mut Ledger, counts: [ServiceCount; N]) -> Vec<(String, u64)> {
        ledger.look(counts.into());
        ledger.series().map(|(labels, sum)| (labels.service, sum.sockets)).collect()
    }

    fn expected<const N: usize>(series: [(&str, u64); N]) -> Vec<(String, u64)> {
        series.map(|(service, sum)| (service.to_owned(), sum)).into()
    }

    fn ledger(most: usize) -> Ledger {
        Ledger { most, ..Ledger::default() }
    }

    #[test]
    fn families_are_one_series_which_begins_with_what_was_counted_before_the_agent() {
        let mut ledger = ledger(8);
        let both = |v4, v6| [one(1, "a", v4), count(2, "a", IpFamily::V6, v6)];
        assert_eq!(looks(&mut ledger, both(5, 2)), expected([("a", 7)]));
        assert_eq!(looks(&mut ledger, both(6, 4)), expected([("a", 10)]));
        assert_eq!(looks(&mut ledger, []), []);
    }

    #[test]
    fn the_busiest_are_shown_and_the_sum_of_all_grows_by_what_is_counted() {
        let mut ledger = ledger(2);
        let first = looks(&mut ledger, [one(1, "a", 5), one(2, "b", 9), one(3, "c", 7)]);
        assert_eq!(first, expected([("b", 9), ("c", 7), (OTHERS, 0)]));
        assert_eq!(ledger.not_shown, 1);
        // Busier now, but series stay whose they are.
        let second = looks(&mut ledger, [one(1, "a", 95), one(2, "b", 10), one(3, "c", 7)]);
        assert_eq!(second, expected([("b", 10), ("c", 7), (OTHERS, 90)]));
        // One without a series goes: what it had stays counted.
        let third = looks(&mut ledger, [one(2, "b", 10), one(3, "c", 8), one(4, "d", 3)]);
        assert_eq!(third, expected([("b", 10), ("c", 8), (OTHERS, 93)]));
        // One with a series goes: the next one's begins where it is, and nothing counts twice.
        let fourth = looks(&mut ledger, [one(3, "c", 8), one(4, "d", 5)]);
        assert_eq!(fourth, expected([("c", 8), ("d", 2), (OTHERS, 93)]));
        assert_eq!(ledger.not_shown, 0);
    }

    #[test]
    fn no_series_falls_when_a_service_is_removed_made_again_or_takes_anothers_place() {
        let mut ledger = ledger(2);
        assert_eq!(looks(&mut ledger, [one(1, "a", 50)]), expected([("a", 50)]));
        // Half of its endpoints' counters are removed already.
        assert_eq!(looks(&mut ledger, [one(1, "a", 20)]), expected([("a", 50)]));
        // Made again between two looks, at another index or at the same.
        assert_eq!(looks(&mut ledger, [one(2, "a", 4)]), expected([("a", 54)]));
        assert_eq!(looks(&mut ledger, [one(2, "a", 1)]), expected([("a", 54)]));
        assert_eq!(looks(&mut ledger, [one(2, "a", 3)]), expected([("a", 56)]));
        // Its index is another's, who begins at its own count.
        assert_eq!(looks(&mut ledger, [one(2, "b", 6)]), expected([("b", 6)]));
        // Gone for a scrape, it is a new one.
        assert_eq!(
            looks(&mut ledger, [one(1, "a", 1), one(2, "b", 6)]),
            expected([("a", 1), ("b", 6)])
        );
    }

    #[derive(Debug)]
    struct Counted(Mutex<Option<Vec<ServiceCount>>>);

    impl KernelCounters for Counted {
        fn drops(&self) -> Vec<(&'static str, u64)> {
            Vec::new()
        }

        fn traffic(&self) -> Option<Vec<ServiceCount>> {
            self.0.lock().unwrap().clone()
        }
    }

    #[test]
    fn packets_are_there_where_there_were_some_and_a_port_without_name_has_its_number() {
        let mut dns = one(7, "dns", 1);
        dns.key.port_name = Name::from("");
        dns.key.protocol = Protocol::Udp;
        dns.port = 53;
        dns.traffic = Traffic { flows: 2, packets_to: 3, bytes_to: 300, ..dns.traffic };
        let counted = Arc::new(Counted(Mutex::new(Some(vec![one(1, "web", 4), dns]))));
        let collector = ServiceTraffic::new(counted.clone(), 1);
        let metrics = Metrics::new(vec![Box::new(collector)]);
        let page = |metrics: &Metrics| metrics.encode().unwrap();
        let text = page(&metrics);
        let web = "{namespace=\"default\",service=\"web\",port=\"web\",protocol=\"TCP\"}";
        let others = "namespace=\"_other\",service=\"_other\",port=\"_other\",protocol=\"_other\"";
        for line in [
            format!("lb_agent_service_connections_total{web} 4"),
            format!("lb_agent_service_connections_total{{{others}}} 0"),
            "lb_agent_service_ports_not_shown 1".to_owned(),
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
        assert!(!text.contains("lb_agent_service_packets_total"), "at sockets alone: {text}");
        let mut counts = counted.0.lock().unwrap().take().unwrap();
        counts[1].traffic.packets_from = 5;
        *counted.0.lock().unwrap() = Some(counts);
        let text = page(&metrics);
        for line in [
            format!("lb_agent_service_packets_total{{{others},direction=\"to\"}} 0"),
            format!("lb_agent_service_packets_total{{{others},direction=\"from\"}} 5"),
            format!("lb_agent_service_bytes_total{{{others},direction=\"to\"}} 0"),
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
        // What can't be read stays as it was.
        let before = page(&metrics);
        *counted.0.lock().unwrap() = None;
        assert_eq!(page(&metrics), before);

        let mut dns = one(7, "dns", 1);
        dns.key.port_name = Name::from("");
        dns.port = 53;
        assert_eq!(Labels::of(&dns).port, "53");
    }
}
