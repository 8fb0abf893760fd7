//! Several addresses of one API server: a request goes to the one that answered last, and on to the
//! next when that one doesn't answer or says that it can't.
//!
//! A watch that runs is a request too: when its server goes away it fails, is asked for again, and
//! finds the next address here. An address that came back is used again when another fails.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::{Method, Request, Response, Uri};
use kube::client::Body;
use kube::client::middleware::{BaseUri, BaseUriLayer};
use tower::ServiceExt as _;
use tower_layer::Layer;
use tower_service::Service;
use tracing::{debug, info};

/// Gives requests the address of a server; `addresses` are of one cluster, the preferred one first.
#[derive(Clone, Debug)]
pub(super) struct FailoverLayer {
    pub(super) addresses: Vec<Uri>,
}

impl<S: Clone> Layer<S> for FailoverLayer {
    type Service = Failover<S>;

    fn layer(&self, inner: S) -> Failover<S> {
        let server = |address: &Uri| Server {
            address: address.clone(),
            requests: BaseUriLayer::new(address.clone()).layer(inner.clone()),
        };
        Failover { servers: self.addresses.iter().map(server).collect(), choice: Arc::default() }
    }
}

/// See [`FailoverLayer`].
#[derive(Clone, Debug)]
pub(super) struct Failover<S> {
    servers: Arc<[Server<S>]>,
    choice: Arc<Choice>,
}

#[derive(Debug)]
struct Server<S> {
    address: Uri,
    requests: BaseUri<S>,
}

/// Which server is asked; an index.
#[derive(Debug, Default)]
struct Choice {
    asked: AtomicUsize,
    answered: AtomicUsize,
}

impl Choice {
    /// Of several requests that fail at one time, only the first goes on to the next server.
    fn leave(&self, server: usize, servers: usize) {
        let next = (server + 1) % servers;
        let _ = self.asked.compare_exchange(server, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl<S, B> Service<Request<Body>> for Failover<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = tower::BoxError>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // Each server is asked whether it is ready when its turn comes.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { servers, choice } = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            // What writes may have been done by a server that didn't live to say so.
            let rounds = if parts.method == Method::GET { servers.len() } else { 1 };
            let mut body = Some(body);
            let mut round = 1;
            loop {
                let asked = choice.asked.load(Ordering::Relaxed);
                let Server { address, requests } = &servers[asked];
                let body = body.take().unwrap_or_else(Body::empty);
                let request = Request::from_parts(parts.clone(), body);
                let answer = requests.clone().oneshot(request).await;
                let reason = match &answer {
                    Ok(response) if response.status().is_server_error() => {
                        response.status().to_string()
                    }
                    Err(error) => error.to_string(),
                    Ok(_) => {
                        if choice.answered.swap(asked, Ordering::Relaxed) != asked {
                            info!(server = %address, "another address of the API server answers");
                        }
                        return answer;
                    }
                };
                debug!(server = %address, reason, "the API server can't be asked here");
                choice.leave(asked, servers.len());
                if round == rounds {
                    return answer;
                }
                round += 1;
            }
        })
    }
}
