//! Links, addresses and routes of this network namespace from rtnetlink: a dump, and a stream of
//! dumps that follows changes.
//!
//! It knows netlink and nothing of Services; what the facts mean is decided in
//! [`super::classify`]. Notifications only say *that* something changed: after a short pause the
//! whole is dumped again, so that a lost notification can't leave a stale fact for longer than
//! [`REFRESH`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use tokio::sync::watch;

use crate::cluster::snapshot::IpFamily;

/// Pods come and go in bursts of several notifications each; one dump serves the burst.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// A dump without any notification, against lost ones.
const REFRESH: Duration = Duration::from_secs(60);
/// Pause before the connection is made anew.
const RECONNECT: Duration = Duration::from_secs(1);
/// `RT_TABLE_LOCAL` (include/uapi/linux/rtnetlink.h): the kernel's own, never a way out.
const TABLE_LOCAL: u32 = 255;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// `IFLA_INFO_KIND`; empty for hardware.
    pub kind: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Frames begin with an Ethernet header.
    pub ethernet: bool,
    /// `IFF_UP`: switched on, with or without carrier.
    pub up: bool,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// Bridge, bond, VRF or switch that it belongs to.
    pub master: Option<u32>,
    /// Its other end is in another network namespace (`IFLA_LINK_NETNSID`).
    pub peer_elsewhere: bool,
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its subnet's prefix.
    pub prefix_length: u8,
    /// Scope is global (`RT_SCOPE_UNIVERSE`).
    pub global: bool,
    /// Not the first of its subnet (IPv4), or temporary (IPv6): the flag is the same.
    pub secondary: bool,
    /// Neither deprecated nor under or after a failed duplicate detection.
    pub usable_as_source: bool,
}

impl Address {
    /// The prefix is the address alone.
    pub fn is_host_prefix(&self) -> bool {
        self.prefix_length == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

/// What matters of a route: whether it is a default route, and the source it suggests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Prefix length 0.
    pub is_default: bool,
    /// Smaller is preferred. Before the other fields, so that a sorted set has the preferred first.
    pub metric: u32,
    /// Family.
    pub family: IpFamily,
    /// Interface index of the way out.
    pub device: u32,
    /// `src` of the route.
    pub preferred_source: Option<IpAddr>,
}

/// All that was seen at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Devices by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses in the kernel's order.
    pub addresses: Vec<Address>,
    /// Unicast routes that are default routes or suggest a source, of every table but `local`
    /// (a node with several uplinks has a table with a default route for each).
    pub routes: BTreeSet<Route>,
}

/// Why the namespace couldn't be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// No socket.
    #[error(
        "open an rtnetlink socket: {0}; the kernel needs CONFIG_INET and the sandbox must allow AF_NETLINK"
    )]
    Socket(#[source] std::io::Error),
    /// A dump failed.
    #[error("list {what} by rtnetlink: {source}")]
    Dump {
        /// Links, addresses or routes.
        what: &'static str,
        /// The answer.
        #[source]
        source: rtnetlink::Error,
    },
}

/// Follows the namespace of the calling thread's runtime.
pub struct Observer {
    connection: Connection,
    sender: watch::Sender<Observed>,
}

struct Connection {
    handle: Handle,
    notifications: UnboundedReceiver<Notification>,
    task: tokio::task::JoinHandle<()>,
}

type Notification = (
    rtnetlink::packet_core::NetlinkMessage<netlink_packet_route::RouteNetlinkMessage>,
    rtnetlink::sys::SocketAddr,
);

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Observer {
    /// Subscribes, then dumps, so that no change falls between; the receiver holds the first dump.
    pub async fn start() -> Result<(Self, watch::Receiver<Observed>), ObserveError> {
        let connection = Connection::open()?;
        let observed = connection.dump().await?;
        let (sender, receiver) = watch::channel(observed);
        Ok((Self { connection, sender }, receiver))
    }

    /// Follows changes until the last receiver is gone.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.sender.closed() => return,
                () = self.connection.changed() => {}
            }
            match self.connection.dump().await {
                Ok(observed) => self.publish(observed),
                Err(error) => {
                    tracing::warn!(%error, "node facts may be stale; trying again");
                    self.reconnect().await;
                }
            }
        }
    }

    fn publish(&self, observed: Observed) {
        self.sender.send_if_modified(|current| {
            let differs = *current != observed;
            *current = observed;
            differs
        });
    }

    async fn reconnect(&mut self) {
        tokio::time::sleep(RECONNECT).await;
        match Connection::open() {
            Ok(connection) => self.connection = connection,
            Err(error) => tracing::warn!(%error, "node facts may be stale; trying again"),
        }
    }
}

impl Connection {
    fn open() -> Result<Self, ObserveError> {
        let (connection, handle, notifications) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .map_err(ObserveError::Socket)?;
        Ok(Self { handle, notifications, task: tokio::spawn(connection) })
    }

    /// Returns some time after something changed, and after [`REFRESH`] in any case.
    async fn changed(&mut self) {
        match tokio::time::timeout(REFRESH, self.notifications.next()).await {
            Err(_elapsed) => return,
            // The connection has ended: the next dump fails and makes a new one.
            Ok(None) => return,
            Ok(Some(_)) => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
        while let Ok(_notification) = self.notifications.try_recv() {}
    }

    async fn dump(&self) -> Result<Observed, ObserveError> {
        let failed = |what| move |source| ObserveError::Dump { what, source };
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("links"))?;
        let addresses: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(failed("addresses"))?;
        let mut routes = BTreeSet::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            // One by one: a router's table has a million routes, of which a handful matter.
            let mut stream = self.handle.route().get(any_route(version)).execute();
            while let Some(message) = stream.try_next().await.map_err(failed("routes"))? {
                routes.extend(routes_of(&message));
            }
        }
        Ok(Observed {
            links: links.iter().map(link_of).map(|link| (link.index, link)).collect(),
            addresses: addresses.iter().filter_map(address_of).collect(),
            routes,
        })
    }
}

fn any_route(version: IpVersion) -> RouteMessage {
    match version {
        IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    }
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        mtu: 0,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        master: None,
        peer_elsewhere: false,
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Controller(index) = attribute {
            link.master = Some(*index);
        } else if let LinkAttribute::LinkNetNsId(_) = attribute {
            link.peer_elsewhere = true;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            for info in infos {
                if let LinkInfo::Kind(kind) = info {
                    link.kind = kind.to_string();
                }
            }
        }
    }
    link
}

/// The attribute `IFA_LOCAL` is ours and `IFA_ADDRESS` the peer's on point-to-point links; without
/// the former the latter is ours (include/uapi/linux/if_addr.h).
fn address_of(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        if let AddressAttribute::Local(ip) = attribute {
            local = Some(*ip);
        } else if let AddressAttribute::Address(ip) = attribute {
            address = Some(*ip);
        } else if let AddressAttribute::Flags(all) = attribute {
            flags = *all;
        }
    }
    let unusable = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    Some(Address {
        link: message.header.index,
        address: local.or(address)?,
        prefix_length: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        secondary: flags.contains(AddressFlags::Secondary),
        usable_as_source: !flags.intersects(unusable),
    })
}

/// One [`Route`] for each way out, if the route matters at all.
fn routes_of(message: &RouteMessage) -> Vec<Route> {
    let mut table = u32::from(message.header.table);
    let mut metric = 0;
    let mut preferred_source = None;
    let mut devices = Vec::new();
    for attribute in &message.attributes {
        if let RouteAttribute::Table(number) = attribute {
            table = *number;
        } else if let RouteAttribute::Priority(priority) = attribute {
            metric = *priority;
        } else if let RouteAttribute::PrefSource(source) = attribute {
            preferred_source = ip_of(source);
        } else if let RouteAttribute::Oif(index) = attribute {
            devices.push(*index);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            devices.extend(hops.iter().map(|hop| hop.interface_index));
        }
    }
    let family = match message.header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpFamily::V4,
        netlink_packet_route::AddressFamily::Inet6 => IpFamily::V6,
        // The dumps ask for these two; the enum is open.
        _ => return Vec::new(),
    };
    let is_default = message.header.destination_prefix_length == 0;
    let matters = message.header.kind == RouteType::Unicast
        && table != TABLE_LOCAL
        && (is_default || preferred_source.is_some());
    if !matters {
        return Vec::new();
    }
    let route = |device| Route { is_default, metric, family, device, preferred_source };
    devices.into_iter().map(route).collect()
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(ip) = address {
        Some(IpAddr::V4(*ip))
    } else if let RouteAddress::Inet6(ip) = address {
        Some(IpAddr::V6(*ip))
    } else {
        None
    }
}
