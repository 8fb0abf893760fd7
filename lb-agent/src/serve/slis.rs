//! `/metrics/slis`: how often a component was asked for its health, and what it said, under the
//! names of Kubernetes' components (KEP-3466). kube-proxy has one check there, `ping`: whether
//! its metrics server answers.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::process::Process;

/// A name and a value.
type Label = (&'static str, &'static str);

const PING: [Label; 2] = [("name", "ping"), ("type", "healthz")];
const SUCCESS: Label = ("status", "success");

/// The metrics of that page.
#[derive(Debug)]
pub(super) struct Slis {
    registry: Registry,
    healthcheck: Family<Vec<Label>, Gauge>,
    healthchecks: Family<Vec<Label>, Counter>,
}

impl Slis {
    /// Nobody has asked yet, and until then there is nothing to see.
    pub(super) fn new() -> Self {
        let (healthcheck, healthchecks) = (Family::default(), Family::default());
        let mut registry = Registry::default();
        registry.register(
            "kubernetes_healthcheck",
            "Result of the last health check of this name",
            healthcheck.clone(),
        );
        registry.register(
            "kubernetes_healthchecks",
            "Results of all health checks",
            healthchecks.clone(),
        );
        registry.register_collector(Box::new(Process::start_only()));
        Self { registry, healthcheck, healthchecks }
    }

    /// `/healthz` was asked for, and we are there to say so.
    pub(super) fn pinged(&self) {
        self.healthcheck.get_or_create(&PING.to_vec()).set(1);
        let [name, kind] = PING;
        self.healthchecks.get_or_create(&vec![name, kind, SUCCESS]).inc();
    }

    /// OpenMetrics text.
    pub(super) fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
