//! Metrics that are read when Prometheus asks, from whoever keeps the numbers.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::health::{Health, Probe};
use super::traffic::ServiceCount;
use crate::cluster::watch::{WatchHealth, WatchState, Watched};

/// Counters that live in the kernel.
pub trait KernelCounters: std::fmt::Debug + Send + Sync + 'static {
    /// Packets dropped since the maps were made, by reason (a short name like `no_backend`).
    fn drops(&self) -> Vec<(&'static str, u64)>;

    /// What was counted for each Service port that was used; `None` when it can't be read.
    fn traffic(&self) -> Option<Vec<ServiceCount>>;
}

/// `lb_agent_drops_total`.
#[derive(Debug)]
pub struct Drops(pub Arc<dyn KernelCounters>);

/// `lb_agent_healthy`.
#[derive(Debug)]
pub struct Healthy(pub Arc<Health>);

/// `lb_agent_watch_…`.
#[derive(Debug)]
pub struct Watches(pub Arc<WatchHealth>);

#[derive(Clone, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct ProbeLabel {
    probe: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct ResourceLabel {
    resource: &'static str,
}

impl Collector for Drops {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "lb_agent_drops",
            "Packets that the datapath dropped, by reason",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in self.0.drops() {
            ConstCounter::new(count).encode(family.encode_family(&ReasonLabel { reason })?)?;
        }
        Ok(())
    }
}

impl Collector for Healthy {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "lb_agent_healthy",
            "1 while the probe would be answered with 200, whoever asks",
            None,
            MetricType::Gauge,
        )?;
        for (name, probe) in [("healthz", Probe::Healthz), ("livez", Probe::Livez)] {
            let passes = self.0.report(probe).status.is_success();
            let gauge = ConstGauge::new(i64::from(passes));
            gauge.encode(family.encode_family(&ProbeLabel { probe: name })?)?;
        }
        Ok(())
    }
}

impl Watches {
    fn gauge<N>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: fn(&WatchState) -> N,
    ) -> Result<(), std::fmt::Error>
    where
        ConstGauge<N>: EncodeMetric,
        N: EncodeGaugeValue,
    {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for watched in Watched::ALL {
            let gauge = ConstGauge::new(value(self.0.of(watched)));
            gauge.encode(family.encode_family(&ResourceLabel { resource: watched.resource() })?)?;
        }
        Ok(())
    }
}

impl Collector for Watches {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.gauge(
            &mut encoder,
            "lb_agent_watch_connected",
            "1 while the API server accepts the watch of this resource",
            |state| i64::from(state.is_connected()),
        )?;
        self.gauge(
            &mut encoder,
            "lb_agent_watch_last_event_timestamp_seconds",
            "When the last object of this resource came, or its list was complete",
            // Milliseconds since the epoch are exact in an f64 for longer than anyone waits.
            |state| state.last_event_ms() as f64 / 1_000.0,
        )?;
        let mut family = encoder.encode_descriptor(
            "lb_agent_watch_errors",
            "Failures of the watch of this resource, 410 Gone among them",
            None,
            MetricType::Counter,
        )?;
        for watched in Watched::ALL {
            let counter = ConstCounter::new(self.0.of(watched).errors());
            let label = ResourceLabel { resource: watched.resource() };
            counter.encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }
}
