//! The connection to the API server: kube's own, plus the means to notice that it is dead.
//!
//! An idle watch sends nothing, so a server that vanished without a word (a power cut, a load
//! balancer that forgot the connection) would be missed until the read timeout, minutes later.
//! kube's builder can't ask the kernel to probe, and knows one address; this one is the same otherwise.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt};
use tower::ServiceBuilder;

use super::READ_TIMEOUT;
use super::failover::FailoverLayer;
use super::health::{ObserveLayer, WatchHealth};

/// Silence after which the kernel asks the server whether it is still there.
const PROBE_AFTER: Duration = Duration::from_secs(15);
/// Time between two questions.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Questions without an answer after which the connection is dead: 30 s in all.
const PROBES: u32 = 3;
/// The same bound for what we have sent ourselves (RFC 5482).
const UNANSWERED: Duration = Duration::from_secs(30);
/// Time for a connection where there is another address to try.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The API server can't even be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Certificates, keys or tokens are of no use.
    #[error(
        "can't make a client for the API server {server}: {source}; check the kubeconfig's certificates and keys"
    )]
    Credentials {
        /// Address of the API server.
        server: String,
        /// Cause.
        source: kube::Error,
    },
    /// The kubeconfig or the environment wants a proxy.
    #[error(
        "can't reach the API server {server} through a proxy; remove proxy-url from the kubeconfig, or add the server to NO_PROXY"
    )]
    Proxy {
        /// Address of the API server.
        server: String,
    },
}

/// A client that notes in `health` which lists and watches the server accepts.
///
/// It asks the server at `addresses`, the preferred one first, and not at the configuration's own.
pub fn client(
    mut config: kube::Config,
    addresses: Vec<Uri>,
    health: &Arc<WatchHealth>,
) -> Result<Client, ClientError> {
    let server = list(&addresses);
    if config.proxy_url.is_some() {
        return Err(ClientError::Proxy { server });
    }
    config.read_timeout.get_or_insert(READ_TIMEOUT);
    if addresses.len() > 1 {
        config.connect_timeout = Some(CONNECT_LIMIT);
    }
    build(config, FailoverLayer { addresses }, health)
        .map_err(|source| ClientError::Credentials { server, source })
}

/// Addresses as messages name them.
pub fn list(addresses: &[Uri]) -> String {
    addresses.iter().map(Uri::to_string).collect::<Vec<_>>().join(", ")
}

fn build(
    config: kube::Config,
    failover: FailoverLayer,
    health: &Arc<WatchHealth>,
) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_keepalive(Some(PROBE_AFTER));
    connector.set_keepalive_interval(Some(PROBE_INTERVAL));
    connector.set_keepalive_retries(Some(PROBES));
    connector.set_tcp_user_timeout(Some(UNANSWERED));
    let mut connector =
        TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(failover)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(tower::BoxError::from)
        .service(http);
    let builder = ClientBuilder::new(service, config.default_namespace);
    Ok(builder.with_layer(&ObserveLayer(health.clone())).build())
}
