//! The network around the programs: a namespace of its own with the scene's devices and routes.
//!
//! Only netlink and /proc, so that it works in a virtual machine that holds nothing but this binary.

use anyhow::{Context, Result};
use lb_common::abi::Address;
use lb_common::family::Family;
use lb_common::model::node::{NextHop, Node};
use lb_common::model::scene::{self, Role, device};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};
use std::fs;
use std::net::IpAddr;

/// The link address of every next hop.
pub const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// The link address of each of our devices.
pub const OWN: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// A link address that no device has.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 1, 3];

/// The loopback device's index in every namespace.
const LOOPBACK: u32 = 1;

const SYSCTLS: [(&str, &str); 5] = [
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    // Duplicate address detection would keep addresses unusable for seconds.
    ("/proc/sys/net/ipv6/conf/all/accept_dad", "0"),
    ("/proc/sys/net/ipv6/conf/default/accept_dad", "0"),
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0"),
    ("/proc/sys/net/ipv6/conf/all/forwarding", "1"),
];

/// Moves the calling thread to a new network namespace; it vanishes with the thread.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or in a kernel without veth devices.
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET): it needs CAP_SYS_ADMIN")?;
    for (path, value) in SYSCTLS {
        fs::write(path, value).with_context(|| format!("write {value} to {path}"))?;
    }
    with_netlink(async |netlink| {
        up(&netlink, LOOPBACK).await.context("set lo up")?;
        for (index, mtu) in [(device::UPLINK, 1500), (device::OVERLAY, 1450), (device::POD, 1500)] {
            add_device(&netlink, index, mtu)
                .await
                .with_context(|| format!("add a veth pair with index {index}"))?;
        }
        Ok(())
    })
}

/// Brings the loopback device up and gives it these addresses.
///
/// # Errors
/// Names the address that the kernel refused.
pub fn own(addresses: &[IpAddr]) -> Result<()> {
    with_netlink(async |netlink| {
        up(&netlink, LOOPBACK).await.context("set lo up")?;
        for address in addresses {
            let request = netlink.address().add(LOOPBACK, *address, address_bits(*address));
            request.execute().await.with_context(|| format!("add the address {address}"))?;
        }
        Ok(())
    })
}

/// Has what is sent to the addresses that lead to nobody leave over the uplink, as a default route does, and
/// be nobody's there: the other end is in this namespace too, and would send it round until its hops are
/// used up, which ends a connection that isn't answered.
///
/// # Errors
/// Names the route that the kernel refused.
pub fn lead_out() -> Result<()> {
    with_netlink(async |netlink| {
        for any in [Address::UNSPECIFIED_V4, Address::UNSPECIFIED_V6] {
            let nobody = IpAddr::from(any.discard());
            let neighbour = netlink.neighbours().add(device::UPLINK, nobody);
            let neighbour = neighbour.link_layer_address(&NOBODY).state(NeighbourState::Permanent);
            neighbour.execute().await.with_context(|| format!("add {nobody} as neighbour"))?;
            let hop = NextHop::Device { index: device::UPLINK, mtu: 1500, resolved: false };
            add_route(&netlink, nobody, hop)
                .await
                .with_context(|| format!("add a route to {nobody}"))?;
        }
        Ok(())
    })
}

/// Gives the namespace the addresses and routes of the scene.
///
/// # Errors
/// Names the route or address that the kernel refused.
pub fn populate<F: Family>(node: &Node<F>) -> Result<()> {
    with_netlink(async |netlink| {
        let own = [(Role::Node, device::UPLINK), (Role::Overlay, device::OVERLAY)];
        for (role, index) in own {
            let address = scene::ip::<F>(role);
            let request = netlink.address().add(index, address, address_bits(address));
            request.execute().await.with_context(|| format!("add the address {address}"))?;
        }
        for (destination, hop) in &node.routes {
            let destination = IpAddr::from(*destination);
            add_route(&netlink, destination, *hop)
                .await
                .with_context(|| format!("add a route to {destination}"))?;
        }
        Ok(())
    })
}

/// Moves the other end of a device to the namespace of a thread.
///
/// # Errors
/// When the kernel refuses.
pub fn hand_over(index: u32, thread: u32) -> Result<()> {
    let (_, peer) = names(index);
    with_netlink(async |netlink| {
        let link = LinkUnspec::new_with_name(&peer).setns_by_pid(thread).build();
        netlink.link().change(link).execute().await.with_context(|| format!("move {peer}"))
    })
}

/// In the namespace that got the other end: gives it addresses, and routes to these destinations over it.
///
/// # Errors
/// Names what the kernel refused.
pub fn settle(index: u32, addresses: &[IpAddr], destinations: &[IpAddr]) -> Result<()> {
    for (path, value) in SYSCTLS {
        fs::write(path, value).with_context(|| format!("write {value} to {path}"))?;
    }
    let (_, peer) = names(index);
    // It came before the default was written.
    let path = format!("/proc/sys/net/ipv6/conf/{peer}/accept_dad");
    fs::write(&path, "0").with_context(|| format!("write 0 to {path}"))?;
    let link = if_nametoindex(peer.as_str()).with_context(|| format!("find {peer}"))?;
    with_netlink(async |netlink| {
        up(&netlink, LOOPBACK).await.context("set lo up")?;
        up(&netlink, link).await.with_context(|| format!("set {peer} up"))?;
        for address in addresses {
            let request = netlink.address().add(link, *address, address_bits(*address));
            request.execute().await.with_context(|| format!("add the address {address}"))?;
        }
        for destination in destinations {
            let hop = NextHop::Device { index: link, mtu: 1500, resolved: false };
            add_route(&netlink, *destination, hop).await.context("add a route to the node")?;
            let neighbour = netlink.neighbours().add(link, *destination).link_layer_address(&OWN);
            let neighbour = neighbour.state(NeighbourState::Permanent);
            neighbour.execute().await.context("add the node as neighbour")?;
        }
        Ok(())
    })
}

/// The names of a device and of its other end.
pub fn names(index: u32) -> (String, String) {
    (format!("dev{index}"), format!("peer{index}"))
}

async fn add_device(netlink: &Handle, index: u32, mtu: u32) -> Result<()> {
    let (name, peer) = names(index);
    let pair = LinkVeth::new(&name, &peer).index(index).address(OWN.to_vec()).mtu(mtu).build();
    netlink.link().add(pair).execute().await?;
    up(netlink, index).await?;
    // Its address is the one that routes of ours name as next hop.
    let peer = LinkUnspec::new_with_name(&peer).address(NEXT_HOP.to_vec()).up().build();
    netlink.link().change(peer).execute().await?;
    Ok(())
}

async fn up(netlink: &Handle, index: u32) -> Result<()> {
    let link = LinkUnspec::new_with_index(index).up().build();
    Ok(netlink.link().change(link).execute().await?)
}

async fn add_route(netlink: &Handle, destination: IpAddr, hop: NextHop) -> Result<()> {
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination, address_bits(destination))
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let route = match hop {
        NextHop::Device { index, resolved, .. } => {
            if resolved {
                let neighbour = netlink.neighbours().add(index, destination);
                let neighbour = neighbour.link_layer_address(&NEXT_HOP);
                neighbour.state(NeighbourState::Permanent).execute().await?;
            }
            route.output_interface(index).scope(RouteScope::Link)
        }
        NextHop::Forbidden => route.kind(RouteType::Unreachable),
    };
    Ok(netlink.route().add(route.build()).execute().await?)
}

fn address_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Runs requests on a netlink socket of the calling thread's namespace.
fn with_netlink(requests: impl AsyncFnOnce(Handle) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime for netlink")?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().context("open a netlink socket")?;
        let connection = tokio::spawn(connection);
        let result = requests(handle).await;
        connection.abort();
        result
    })
}
