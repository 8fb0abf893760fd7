//! What the agent serves by HTTP: `/healthz` and `/livez` for load balancers and the kubelet,
//! `/metrics` for Prometheus, `/status` for `lb-agent status`, `/proxyMode` for tools that ask kube-proxy which mode it runs in, and
//! the health check ports of Services.
//!
//! It reads shared state and never asks the loop: a slow scrape can't delay an endpoint change, and
//! a long apply can't fail a probe.

pub mod collect;
mod exposition;
pub mod health;
pub mod metrics;
pub mod process;
pub mod service_health;
mod slis;
mod socket;
pub mod status;
pub mod traffic;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use exposition::Format;
use health::{Health, Probe};
use metrics::Metrics;
use slis::Slis;

/// What `/proxyMode` says; kube-proxy says `iptables`, `ipvs` or `nftables` there.
const PROXY_MODE: &str = "ebpf";
/// As kube-proxy without `--bind-address-hard-fail`.
const RETRY: Duration = Duration::from_secs(5);
const NO_SNIFF: (header::HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

/// `/healthz` and `/livez`, as kube-proxy serves them on port 10256.
pub fn health_router(health: Arc<Health>, metrics: Metrics) -> Router {
    let route = |probe: Probe| {
        let (health, metrics) = (health.clone(), metrics.clone());
        get(async move || {
            let report = health.report(probe);
            metrics.probed(probe, report.status);
            (report.status, [(header::CONTENT_TYPE, "application/json"), NO_SNIFF], report.body)
        })
    };
    Router::new().route("/healthz", route(Probe::Healthz)).route("/livez", route(Probe::Livez))
}

/// `/metrics`, `/metrics/slis`, `/healthz` and `/proxyMode`, as kube-proxy serves them on port
/// 10249.
pub fn metrics_router(metrics: Metrics) -> Router {
    let slis = Arc::new(Slis::new());
    let counted = slis.clone();
    let ping = get(async move || {
        counted.pinged();
        ([NO_SNIFF], "ok")
    });
    Router::new()
        .route("/metrics", get(async move |headers| scrape(&headers, metrics.encode())))
        .route("/metrics/slis", get(async move |headers| scrape(&headers, slis.encode())))
        .route("/healthz", ping.clone())
        .route("/healthz/ping", ping)
        .route("/proxyMode", get(async || ([NO_SNIFF], PROXY_MODE)))
}

/// Answers with OpenMetrics text if it is asked for, else with Prometheus' own, as kube-proxy does.
fn scrape(headers: &HeaderMap, open_metrics: Result<String, std::fmt::Error>) -> Response {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::of(accepted);
    match open_metrics {
        Ok(text) => {
            let content_type = [(header::CONTENT_TYPE, format.content_type())];
            (content_type, format.text(text)).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Serves `router` until the process ends. An address that is taken is tried again: while a
/// DaemonSet is rolled out, the old Pod may still hold it.
pub async fn serve(flag: &'static str, address: SocketAddr, router: Router) {
    let mut is_said = false;
    loop {
        let result = match socket::listen(address) {
            Ok(listener) => {
                tracing::info!(%address, flag, "listening");
                is_said = false;
                axum::serve(listener, router.clone()).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result
            && !is_said
        {
            is_said = true;
            tracing::warn!(
                %address, %error,
                "can't listen; trying again every {RETRY:?}; give another address with --{flag}"
            );
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests;
