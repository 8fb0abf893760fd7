//! What of the datapath outlives the endpoints that it leads to: sockets that `connect` has led.
//!
//! Packets and unconnected sockets choose another endpoint by themselves when theirs has left, or the
//! address has gone to another Service. A
//! socket that `connect` translated doesn't ask again: its datagrams would go on to an address that is
//! nobody's, or another pod's. So the agent ends it: its calls fail, and the application connects again.
//! This holds for a deleted Service too (kube-proxy leaves those alone): there is nothing good at the
//! old address in any case. TCP connections are never ended, as the endpoint itself ends them; but a TCP
//! socket whose SYNs were led to nobody, as they were to be dropped, has no connection yet, and waits in
//! vain once they wouldn't be.
//!
//! The same goes for a socket that names a Service and was connected without us, before we came or before
//! the address was a Service's: once another proxy's rules and conntrack's memory are gone, nobody
//! translates its datagrams.
//!
//! There is no list of what left: the socket hooks remember each socket's backend and its generation,
//! and one look at all connected sockets tells the stale ones. So nothing is missed if changes come
//! faster than looks, or while no agent runs, and an endpoint that came back meanwhile, or left one
//! Service and serves another, is judged rightly.

pub mod diag;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::cluster::snapshot::IpFamily;
use crate::node::namespace::Visitor;
use crate::node::pods::PodNamespaces;
use crate::run::datapath::{ConnectedSocket, SocketOwner, Translations};
use crate::serve::metrics::Metrics;
use diag::{Diag, DiagError, Socket};

/// A call of `connect` that chose its endpoint just before it left may be done only after our look:
/// another one follows.
const AGAIN: Duration = Duration::from_secs(1);
/// A node with hundreds of pods is looked through in some 50 ms. When endpoints change all the time,
/// half of the time is left to others.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// Rings when UDP endpoints may have left, or TCP sockets may wait in vain.
#[derive(Clone, Debug)]
pub struct Bell {
    rings: SyncSender<()>,
    /// The next look is at TCP sockets too: that costs more, and is seldom needed.
    at_waiting: Arc<AtomicBool>,
}

impl Bell {
    /// A bell, and the ear that hears it.
    pub fn new() -> (Self, Receiver<()>) {
        let (rings, ear) = sync_channel(1);
        (Self { rings, at_waiting: Arc::default() }, ear)
    }

    /// Has the connected UDP sockets looked at soon. Never waits.
    pub fn ring(&self) {
        // Full: it has been rung already. Disconnected: nobody can end sockets here, which was said.
        let _ = self.rings.try_send(());
    }

    /// Has TCP sockets that wait for an answer looked at as well.
    pub fn ring_for_waiting(&self) {
        self.at_waiting.store(true, Ordering::Release);
        self.ring();
    }
}

/// Starts the thread that ends sockets; it works until the bell is gone. It must be started in the
/// node's own network namespace.
pub fn end_stale_sockets<T: Translations>(
    translations: T,
    namespaces: watch::Receiver<PodNamespaces>,
    metrics: Metrics,
) -> Bell {
    let (bell, rings) = Bell::new();
    let at_waiting = Arc::clone(&bell.at_waiting);
    let work = move || {
        if let Err(error) = Diag::here().and_then(|mut diag| diag.probe()) {
            warn!(
                "connected UDP sockets are not ended when their endpoint leaves ({error}): the kernel \
                 needs CONFIG_INET_DIAG_DESTROY and CONFIG_INET_UDP_DIAG (`modprobe udp_diag`)"
            );
            return;
        }
        let visitor = Visitor::new().ok();
        let ender = Ender {
            translations,
            namespaces,
            metrics,
            visitor,
            at_waiting,
            failing: BTreeSet::new(),
        };
        ender.run(&rings);
    };
    if let Err(error) = std::thread::Builder::new().name("stale-sockets".into()).spawn(work) {
        warn!(%error, "connected UDP sockets are not ended when their endpoint leaves: no thread");
    }
    bell
}

/// The thread's state.
struct Ender<T> {
    translations: T,
    namespaces: watch::Receiver<PodNamespaces>,
    metrics: Metrics,
    visitor: Option<Visitor>,
    at_waiting: Arc<AtomicBool>,
    failing: BTreeSet<Kind>,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    ConnectedUdp,
    ConnectingTcp,
}

impl Kind {
    /// What those that are ended have in common.
    fn fault(self) -> &'static str {
        match self {
            Self::ConnectedUdp => "whose endpoint has left, or that nobody leads",
            Self::ConnectingTcp => "that waited in silence for what is served now",
        }
    }

    fn list(self, diag: &mut Diag, family: IpFamily) -> Result<Vec<Socket>, DiagError> {
        match self {
            Self::ConnectedUdp => diag.connected(family),
            Self::ConnectingTcp => diag.connecting(family),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectedUdp => "connected UDP sockets",
            Self::ConnectingTcp => "TCP sockets",
        })
    }
}

/// What one look ended, by family.
type Ended = BTreeMap<IpFamily, u64>;

impl<T: Translations> Ender<T> {
    fn run(mut self, rings: &Receiver<()>) {
        let mut again: Option<Instant> = None;
        let mut waiting_again = false;
        loop {
            let rung = match again {
                None => rings.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => rings.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let started = Instant::now();
            again = match rung {
                Ok(()) => Some(started + AGAIN),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let waiting = self.at_waiting.swap(false, Ordering::Acquire) || waiting_again;
            self.look(Kind::ConnectedUdp);
            if waiting {
                self.look(Kind::ConnectingTcp);
            }
            // A ring is followed by another look.
            waiting_again = again.is_some() && waiting;
            std::thread::sleep(started.elapsed().min(LONGEST_REST));
        }
    }

    /// Ends what is stale of a kind, in every namespace.
    fn look(&mut self, kind: Kind) {
        let started = Instant::now();
        let mut ended = Ended::new();
        let mut failure = None;
        let node = (SocketOwner::Node, "this node");
        self.look_at(node, Diag::here(), kind, &mut ended, &mut failure);
        let paths: Vec<PathBuf> =
            self.namespaces.borrow().values().map(|namespace| namespace.path.clone()).collect();
        for path in paths {
            let Some(visitor) = &self.visitor else { break };
            // The socket stays inside, so the thread can leave at once.
            match visitor.visit(&path, Diag::here) {
                Ok(diag) => {
                    let place = (SocketOwner::Pod, &*path.display().to_string());
                    self.look_at(place, diag, kind, &mut ended, &mut failure);
                }
                // It has ended, or can't be entered, which was said by those who follow namespaces.
                Err(error) => debug!(path = %path.display(), %error, "can't look for sockets"),
            }
        }
        let took = started.elapsed();
        if ended.values().sum::<u64>() > 0 {
            info!(?ended, ?took, "ended {kind} {}", kind.fault());
        }
        match kind {
            Kind::ConnectedUdp => self.metrics.stale_sockets_ended(&ended, took),
            Kind::ConnectingTcp => self.metrics.waiting_sockets_ended(ended.values().sum()),
        }
        self.report(kind, failure);
    }

    /// Says once that it doesn't work, and once that it does again.
    fn report(&mut self, kind: Kind, failure: Option<String>) {
        match failure {
            Some(failure) if self.failing.insert(kind) => {
                warn!("{kind} {} can't be ended: {failure}", kind.fault());
            }
            Some(failure) => debug!(failure, "{kind} still can't be ended"),
            None if self.failing.remove(&kind) => info!("{kind} are ended again"),
            None => {}
        }
    }

    /// Ends what is stale in one namespace.
    fn look_at(
        &self,
        (owner, place): (SocketOwner, &str),
        diag: Result<Diag, DiagError>,
        kind: Kind,
        ended: &mut Ended,
        failure: &mut Option<String>,
    ) {
        let mut fail = |error: &dyn fmt::Display| {
            failure.get_or_insert_with(|| format!("{place}: {error}"));
        };
        let mut diag = match diag {
            Ok(diag) => diag,
            Err(error) => return fail(&error),
        };
        for family in [IpFamily::V4, IpFamily::V6] {
            let sockets = match kind.list(&mut diag, family) {
                Ok(sockets) => sockets,
                Err(error) => {
                    fail(&error);
                    continue;
                }
            };
            for socket in sockets {
                match self.end_if_stale(&mut diag, &socket, owner) {
                    Ok(true) => {
                        debug!(place, backend = %socket.peer(), "ended a socket");
                        *ended.entry(family_of(&socket)).or_default() += 1;
                    }
                    Ok(false) => {}
                    Err(error) => fail(&error),
                }
            }
        }
    }

    fn end_if_stale(
        &self,
        diag: &mut Diag,
        socket: &Socket,
        owner: SocketOwner,
    ) -> Result<bool, Box<dyn std::error::Error>> {
        let (cookie, from, to) = (socket.cookie(), socket.local(), socket.peer());
        let protocol = socket.protocol();
        if !self.translations.is_stale(&ConnectedSocket { cookie, protocol, from, to, owner })? {
            return Ok(false);
        }
        let was_ended = diag.destroy(socket)?;
        self.translations.forget(cookie, to)?;
        Ok(was_ended)
    }
}

/// Family of what it talks; a mapped address is IPv4.
fn family_of(socket: &Socket) -> IpFamily {
    if socket.peer().is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{SocketAddr, UdpSocket};
    use std::sync::{Arc, Mutex};

    use nix::sched::{CloneFlags, unshare};

    use super::diag::tests::loopback_up;
    use super::*;

    /// Sockets whose backend has left, by cookie and backend.
    #[derive(Clone, Default)]
    struct Left(Arc<Mutex<BTreeSet<(u64, SocketAddr)>>>);

    impl Translations for Left {
        type Error = std::convert::Infallible;

        fn is_stale(&self, socket: &ConnectedSocket) -> Result<bool, Self::Error> {
            Ok(self.0.lock().unwrap().contains(&(socket.cookie, socket.to)))
        }

        fn forget(&self, cookie: u64, backend: SocketAddr) -> Result<(), Self::Error> {
            self.0.lock().unwrap().remove(&(cookie, backend));
            Ok(())
        }
    }

    fn connected(to: &str) -> UdpSocket {
        let any = if to.starts_with("127.") { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    #[test]
    fn a_ring_ends_the_sockets_whose_endpoint_left_and_no_others() {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
            loopback_up();
            let peers = ["127.0.0.1:7001", "[::1]:7001", "[::ffff:127.0.0.1]:7001"];
            let direct = peers.map(connected);
            let mut diag = Diag::here().unwrap();
            let mut cookies = || -> BTreeSet<(u64, SocketAddr)> {
                let all =
                    [IpFamily::V4, IpFamily::V6].map(|family| diag.connected(family).unwrap());
                all.concat().iter().map(|socket| (socket.cookie(), socket.peer())).collect()
            };
            let theirs = cookies();
            let translated = peers.map(connected);
            let left = Left::default();
            *left.0.lock().unwrap() = cookies().difference(&theirs).copied().collect();
            assert_eq!(left.0.lock().unwrap().len(), 3);

            let (_sender, namespaces) = watch::channel(PodNamespaces::new());
            let metrics = Metrics::new(Vec::new());
            let bell = end_stale_sockets(left.clone(), namespaces, metrics.clone());
            bell.ring();
            for socket in &translated {
                // Ended while it waits, or before: an error in any case.
                let error = socket.recv(&mut [0]).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
            }
            for (socket, peer) in direct.iter().zip(peers) {
                assert_eq!(socket.peer_addr().unwrap(), peer.parse().unwrap());
            }
            // The last of the three may still be written down.
            let lines = [
                "lb_agent_ended_sockets_total 3",
                "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 2",
                "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 1",
            ];
            let started = Instant::now();
            while !lines.iter().all(|line| metrics.encode().unwrap().contains(line)) {
                assert!(started.elapsed() < AGAIN * 10, "{}", metrics.encode().unwrap());
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(left.0.lock().unwrap().len(), 0, "what is gone is forgotten");
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}
