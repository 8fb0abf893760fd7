//! Keeps the sockets open that should be, and no others; a socket that stays isn't touched.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::answer::converse;
use super::{Place, ServiceHealth};
use crate::cluster::snapshot::{IpFamily, ObjectName};
use crate::serve::health::Health;
use crate::serve::socket::{is_without_family, listen_only};

/// Between two tries to open a port that another program holds.
const RETRY: Duration = Duration::from_secs(5);
/// Connections of one socket at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 128;
/// After a failed accept: most likely there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that can't be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "load balancers can't ask for the health of {service}: listen on {address}: {error}; end the \
     program that holds the port, or give the Service another healthCheckNodePort; trying again \
     every {RETRY:?}"
)]
pub struct Trouble {
    /// The Service that is asked about there.
    pub service: ObjectName,
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    pub error: io::Error,
}

/// Serves what `checks` holds, for ever. `report` hears of each socket that can't be opened once,
/// until it could be, and `count` how many there are, whenever that may have changed.
pub async fn serve(
    checks: Arc<ServiceHealth>,
    proxy: Arc<Health>,
    report: impl Fn(Trouble),
    count: impl Fn(usize),
) {
    let mut listeners = Listeners { checks, proxy, open: BTreeMap::new(), closed: BTreeMap::new() };
    loop {
        listeners.follow(&report).await;
        count(listeners.closed.values().filter(|why| matches!(why, Closed::Refused)).count());
        let retry = async {
            if listeners.closed.is_empty() {
                std::future::pending().await
            } else {
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = listeners.checks.sockets_changed.notified() => {}
            () = retry => {}
        }
    }
}

struct Listeners {
    checks: Arc<ServiceHealth>,
    proxy: Arc<Health>,
    open: BTreeMap<Place, JoinHandle<()>>,
    closed: BTreeMap<Place, Closed>,
}

/// Why a socket that should be open isn't.
enum Closed {
    /// The kernel refused; said.
    Refused,
    /// The kernel runs without the family, and nobody can ask.
    WithoutFamily,
}

impl Listeners {
    /// Closes what isn't wanted any more, then opens what is missing: ports may be exchanged.
    async fn follow(&mut self, report: &impl Fn(Trouble)) {
        let wanted = self.checks.places();
        self.closed.retain(|place, _| wanted.contains(place));
        let gone: Vec<_> =
            self.open.keys().filter(|place| !wanted.contains(*place)).cloned().collect();
        for place in gone {
            if let Some(task) = self.open.remove(&place) {
                task.abort();
                // Only when it has ended are socket and connections closed.
                let _ = task.await;
                let Place { service, address } = &place;
                tracing::debug!(%service, %address, "no health checks any more");
            }
        }
        for place in wanted {
            if !self.open.contains_key(&place) {
                self.open(place, report);
            }
        }
    }

    fn open(&mut self, place: Place, report: &impl Fn(Trouble)) {
        match listen_only(place.address) {
            Ok(listener) => {
                let Place { service, address } = &place;
                if self.closed.remove(&place).is_some() {
                    tracing::info!(%service, %address, "answering health checks now");
                } else {
                    tracing::debug!(%service, %address, "answering health checks");
                }
                let task = accept(listener, place.clone(), self.checks.clone(), self.proxy.clone());
                self.open.insert(place, tokio::spawn(task));
            }
            Err(error) if is_without_family(&error) => {
                self.closed.insert(place, Closed::WithoutFamily);
            }
            Err(error) => {
                if !matches!(self.closed.get(&place), Some(Closed::Refused)) {
                    let Place { service, address } = place.clone();
                    report(Trouble { service, address, error });
                    self.closed.insert(place, Closed::Refused);
                }
            }
        }
    }
}

/// Accepts until it is aborted, which closes the connections too.
async fn accept(
    listener: TcpListener,
    place: Place,
    checks: Arc<ServiceHealth>,
    proxy: Arc<Health>,
) {
    let mut connections = JoinSet::new();
    let family = IpFamily::of(place.address.ip());
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let (checks, proxy) = (checks.clone(), proxy.clone());
                    let service = place.service.clone();
                    connections.spawn(async move {
                        let state =
                            || (checks.local_ready(&service, family), proxy.is_healthy());
                        converse(stream, &service, state).await;
                    });
                }
                Err(error) => {
                    tracing::debug!(service = %place.service, %error, "accept a health check");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
