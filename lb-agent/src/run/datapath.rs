//! The seam between the loop and the kernel: what the loop needs of a datapath, and what it wants
//! to hear back. `tables` implements it over the pinned maps; the loop's tests over plain values.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use crate::args::{PodPath, Switch, XdpMode};
use crate::cluster::snapshot::{IpFamily, Protocol};
use crate::config::Capacities;
use crate::node::facts::{ClientAddresses, NodeFacts};
use crate::plan::desired::{Delta, Desired, ServicePortKey};
use crate::serve::collect::KernelCounters;
use crate::serve::metrics::{FlowUse, MapFill};
use crate::serve::status::Attachment;

/// What the kernel's side is told once, when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Mount point of the BPF file system.
    pub bpffs: PathBuf,
    /// cgroup2 directory of the socket hooks; checked.
    pub cgroup_root: PathBuf,
    /// The cookie of the node's own network namespace, where we run.
    pub netns_cookie: u64,
    /// Where XDP is used.
    pub xdp: XdpMode,
    /// Where pods are translated.
    pub pod_path: PodPath,
    /// Whether endpoints see an address of the node for nearly every client.
    pub masquerade_all: bool,
    /// Whether traffic of endpoints is counted.
    pub traffic_counters: Switch,
    /// Source ports for SNAT, host byte order.
    pub snat_ports: RangeInclusive<u16>,
    /// Address ranges of the cluster's pods, at most one per family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Sizes of the maps.
    pub capacities: Capacities,
}

/// Something that can hold a [`Desired`] state.
///
/// Order of calls: [`set_node`](Self::set_node), then [`begin_from`](Self::begin_from), both once
/// the lists are complete; then [`apply`](Self::apply) for each delta, in order. After an error of
/// any of them the loop starts over with the first two, so they must be repeatable.
pub trait Datapath {
    /// What goes wrong as a whole (a map or a program that can't be used any more). What goes wrong
    /// for one Service port is part of the [`ApplyReport`] instead.
    type Error: std::error::Error + 'static;

    /// The node's addresses and devices are these now; attaches to devices that are new.
    fn set_node(&mut self, facts: &NodeFacts) -> Result<(), Self::Error>;

    /// The pods of this node send from these addresses, by the cookies of their network namespaces.
    /// May be called at any time.
    fn set_clients(&mut self, clients: &BTreeMap<u64, ClientAddresses>) -> Result<(), Self::Error>;

    /// Makes the maps hold exactly `desired`, whatever they hold now, without disturbing what is
    /// right already.
    fn begin_from(&mut self, desired: &Desired) -> Result<ApplyReport, Self::Error>;

    /// Makes one change to what the maps hold.
    fn apply(&mut self, delta: &Delta) -> Result<ApplyReport, Self::Error>;

    /// Work that may wait, and that others may have to wait for: reuse of freed regions, another
    /// try for what did not fit. Called about once a second while nothing changes, and now and then
    /// when something always does.
    fn maintain(&mut self) -> Result<ApplyReport, Self::Error>;

    /// How full the maps are.
    fn fill(&self) -> Vec<MapFill>;

    /// What is attached to devices, and what could not be.
    fn attachments(&self) -> Vec<Attachment> {
        Vec::new()
    }
}

/// The flow tables' side: looking through a million flows takes longer than a changed endpoint may
/// wait, so it happens on a thread of its own.
pub trait FlowExpiry: Send + 'static {
    /// What goes wrong as a whole; the next try may succeed.
    type Error: std::error::Error + Send + 'static;

    /// Removes flows that have ended, and those of datagrams to a frontend that is another Service
    /// port's now; tells what there is after that.
    fn expire(&mut self) -> Result<Expiry, Self::Error>;
}

/// What a look through the flows found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiry {
    /// How full the maps are that programs write, and those that nobody else counts.
    pub fill: Vec<MapFill>,
    /// Flows by family.
    pub flows: Vec<(IpFamily, FlowUse)>,
}

/// A connected UDP socket, or a TCP socket whose SYNs nobody has answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectedSocket {
    /// What `bpf_get_socket_cookie` returns for it.
    pub cookie: u64,
    /// [`Protocol::Udp`] or [`Protocol::Tcp`].
    pub protocol: Protocol,
    /// Where its packets come from.
    pub from: SocketAddr,
    /// Where it is connected.
    pub to: SocketAddr,
    /// Whose it is.
    pub owner: SocketOwner,
}

/// Whose a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketOwner {
    /// The node's own network namespace.
    Node,
    /// A pod's.
    Pod,
}

/// What the socket hooks remember of sockets, for a thread of its own.
pub trait Translations: Send + 'static {
    /// What goes wrong with one question; the next may succeed.
    type Error: std::error::Error + 'static;

    /// Whether the hooks led the socket to an endpoint that has left the Service since, or the address
    /// that was named has gone to another; or led it to nobody, because its packets were to be dropped,
    /// and wouldn't any more. Or whether they have not led it though it names a Service: it was connected
    /// before they were there, or to an address that was no Service's, and nobody translates its datagrams.
    /// A socket that was connected to the endpoint itself is none of theirs, and a TCP socket that was led
    /// somewhere isn't either.
    fn is_stale(&self, socket: &ConnectedSocket) -> Result<bool, Self::Error>;

    /// The socket is not connected to `backend` any more.
    fn forget(&self, cookie: u64, backend: SocketAddr) -> Result<(), Self::Error>;
}

/// The kernel's side, opened.
pub struct Opened<D, F, T> {
    /// For the loop.
    pub datapath: D,
    /// For a thread of its own.
    pub flows: F,
    /// For another one.
    pub sockets: T,
    /// For the metrics.
    pub counters: Arc<dyn KernelCounters>,
}

/// What came of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplyReport {
    /// *All* Service ports that are not, or not wholly, in the datapath now, whichever call left
    /// them out. The others are unaffected.
    pub unfit: Vec<Unfit>,
    /// Endpoints have left UDP Service ports, or may have, or what was dropped in silence is served, or
    /// another proxy has left its sockets: those that are connected to what was there before have to be
    /// ended.
    pub udp_endpoints_left: bool,
    /// What TCP Service ports dropped in silence is served, or may be: sockets that wait there in vain have to
    /// be ended.
    pub tcp_silence_ended: bool,
    /// UDP frontends are Service ports' that they may not have been before: what was sent to them and
    /// led elsewhere has to be led anew.
    pub udp_frontends_given: bool,
}

/// A Service port that could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// Which.
    pub key: ServicePortKey,
    /// Why, and what to do: one line for log and event, for example `the map slots is full
    /// (4194304 entries); restart with a greater --max-slots`.
    pub reason: String,
}
