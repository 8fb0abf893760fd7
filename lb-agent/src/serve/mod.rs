//! What the agent serves by HTTP: `/healthz` and `/livez` for load balancers and the kubelet,
//! `/metrics` for Prometheus, `/proxyMode` for tools that ask kube-proxy which mode it runs in.
//!
//! It reads shared state and never asks the loop: a slow scrape can't delay an endpoint change, and
//! a long apply can't fail a probe.

pub mod collect;
pub mod health;
pub mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use health::{Health, Probe};
use metrics::Metrics;

/// What `/proxyMode` says; kube-proxy says `iptables`, `ipvs` or `nftables` there.
const PROXY_MODE: &str = "ebpf";
/// As kube-proxy without `--bind-address-hard-fail`.
const RETRY: Duration = Duration::from_secs(5);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `/healthz` and `/livez`, as kube-proxy serves them on port 10256.
pub fn health_router(health: Arc<Health>, metrics: Metrics) -> Router {
    let route = |probe: Probe| {
        let (health, metrics) = (health.clone(), metrics.clone());
        get(async move || {
            let report = health.report(probe);
            metrics.probed(probe, report.status);
            (
                report.status,
                [
                    (header::CONTENT_TYPE, "application/json"),
                    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                ],
                report.body,
            )
        })
    };
    Router::new().route("/healthz", route(Probe::Healthz)).route("/livez", route(Probe::Livez))
}

/// `/metrics`, `/healthz` and `/proxyMode`, as kube-proxy serves them on port 10249.
pub fn metrics_router(metrics: Metrics) -> Router {
    Router::new()
        .route("/metrics", get(async move || scrape(&metrics)))
        .route("/healthz", get(async || "ok"))
        .route("/proxyMode", get(async || PROXY_MODE))
}

fn scrape(metrics: &Metrics) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Serves `router` until the process ends. An address that is taken is tried again: while a
/// DaemonSet is rolled out, the old Pod may still hold it.
pub async fn serve(flag: &'static str, address: SocketAddr, router: Router) {
    let mut is_said = false;
    loop {
        let result = match TcpListener::bind(address).await {
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
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// The answer to one request to a server on a free loopback port.
    async fn answer(router: Router, loopback: &str, path: &str) -> String {
        let listener = TcpListener::bind((loopback, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(axum::serve(listener, router).into_future());
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        server.abort();
        text
    }

    #[tokio::test]
    async fn healthz_answers_with_the_headers_of_kube_proxy_on_both_families() {
        for loopback in ["127.0.0.1", "::1"] {
            let health = Arc::new(Health::new(false));
            let router = health_router(health.clone(), Metrics::new(Vec::new()));
            let before = answer(router.clone(), loopback, "/healthz").await;
            assert!(before.starts_with("HTTP/1.1 503 "), "{before}");
            health.applied();
            let after = answer(router, loopback, "/healthz").await;
            assert!(after.starts_with("HTTP/1.1 200 OK\r\n"), "{after}");
            assert!(after.contains("content-type: application/json\r\n"), "{after}");
            assert!(after.contains("x-content-type-options: nosniff\r\n"), "{after}");
            assert!(after.contains("\"lastUpdated\":"), "{after}");
        }
    }

    #[tokio::test]
    async fn the_metrics_server_answers_what_kube_proxys_does() {
        let router = metrics_router(Metrics::new(Vec::new()));
        for (path, status, expected) in [
            ("/healthz", "200 OK", "ok"),
            ("/proxyMode", "200 OK", "ebpf"),
            ("/metrics", "200 OK", "lb_agent_build_info"),
            ("/metrics", "200 OK", "content-type: application/openmetrics-text; version=1.0.0"),
            ("/nothing", "404 Not Found", ""),
        ] {
            let text = answer(router.clone(), "127.0.0.1", path).await;
            assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {text}");
            assert!(text.contains(expected), "{path}: {text}");
        }
    }
}
