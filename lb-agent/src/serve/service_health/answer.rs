//! What is said on a health check port, byte for byte what kube-proxy says (Kubernetes v1.36,
//! `pkg/proxy/healthcheck/service_health.go`): any path, any method.

use std::convert::Infallible;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::cluster::snapshot::ObjectName;

/// Load balancers divide traffic among nodes by it.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";
/// A connection on which nothing is asked for so long is closed.
const SILENCE: Duration = Duration::from_secs(30);

/// Answers every request on a connection; `state` tells how many local endpoints there are and
/// whether the datapath is up to date.
pub(super) async fn converse(
    stream: TcpStream,
    service: &ObjectName,
    state: impl Fn() -> (usize, bool),
) {
    let respond = service_fn(async |_request| {
        let (local_endpoints, is_healthy) = state();
        Ok::<_, Infallible>(answer(service, local_endpoints, is_healthy))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        // As Go writes them, for whoever compares them as text.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), respond);
    if let Err(error) = connection.await {
        tracing::debug!(%service, %error, "health check connection");
    }
}

fn answer(service: &ObjectName, local_endpoints: usize, is_healthy: bool) -> Response<String> {
    let passes = local_endpoints > 0 && is_healthy;
    let mut response = Response::new(body(service, local_endpoints, is_healthy));
    *response.status_mut() = if passes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(local_endpoints));
    response
}

/// Indented by tabs; no line break at either end.
fn body(service: &ObjectName, local_endpoints: usize, is_healthy: bool) -> String {
    let namespace = Value::from(&*service.namespace);
    let name = Value::from(&*service.name);
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\
         \t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_kube_proxys_to_the_byte() {
        let expected = "{
\t\"service\": {
\t\t\"namespace\": \"ns\",
\t\t\"name\": \"web\"
\t},
\t\"localEndpoints\": 2,
\t\"serviceProxyHealthy\": true
}";
        assert_eq!(body(&ObjectName::new("ns", "web"), 2, true), expected);
        // What v1.36.3 printed, counted.
        assert_eq!(expected.len(), 109);
    }

    #[test]
    fn a_node_passes_with_endpoints_and_a_datapath_that_is_up_to_date() {
        for (local_endpoints, is_healthy, expected) in
            [(0, true, 503), (1, true, 200), (7, true, 200), (1, false, 503), (0, false, 503)]
        {
            let response = answer(&ObjectName::new("ns", "web"), local_endpoints, is_healthy);
            let what = format!("{local_endpoints} endpoints, {is_healthy}");
            assert_eq!(response.status().as_u16(), expected, "{what}");
            assert_eq!(response.headers()[WEIGHT], local_endpoints.to_string(), "{what}");
        }
    }
}
