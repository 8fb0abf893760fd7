//! The netlink layer against the real kernel, in a network namespace that the test's own thread
//! makes and that ends with it. Needs root.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
    new_connection,
};
use tokio::sync::watch;

use super::classify::{Selection, node_facts};
use super::observe::{Observed, Observer};

/// Runs the test on a thread of its own, in a namespace of its own.
fn in_fresh_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn handle() -> Handle {
    let (connection, handle, _) = new_connection().unwrap();
    tokio::spawn(connection);
    handle
}

async fn index(handle: &Handle, name: &str) -> u32 {
    use futures::TryStreamExt;
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    links.try_next().await.unwrap().expect("the device is there").header.index
}

async fn up(handle: &Handle, name: &str) -> u32 {
    let index = index(handle, name).await;
    let message = LinkMessageBuilder::<LinkUnspec>::default().index(index).up().build();
    handle.link().set(message).execute().await.unwrap();
    index
}

async fn address(handle: &Handle, index: u32, text: &str) {
    let (address, prefix): (&str, u8) =
        text.split_once('/').map(|(a, p)| (a, p.parse().unwrap())).unwrap();
    let address: IpAddr = address.parse().unwrap();
    handle.address().add(index, address, prefix).execute().await.unwrap();
}

/// A pair eth0–peer0 with addresses and default routes of both families.
async fn uplink(handle: &Handle) -> u32 {
    handle.link().add(LinkVeth::new("eth0", "peer0").build()).execute().await.unwrap();
    let index = up(handle, "eth0").await;
    up(handle, "peer0").await;
    address(handle, index, "192.168.77.10/24").await;
    address(handle, index, "fd00:77::10/64").await;
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .gateway(Ipv4Addr::new(192, 168, 77, 1))
        .output_interface(index);
    handle.route().add(v4.build()).execute().await.unwrap();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
        .gateway("fd00:77::1".parse().unwrap())
        .output_interface(index);
    handle.route().add(v6.build()).execute().await.unwrap();
    index
}

fn device_names(observed: &Observed) -> Vec<String> {
    let facts = node_facts(observed, &Selection::default(), &[]);
    facts.devices.into_values().map(|device| device.name).collect()
}

/// Waits until `holds`, however many dumps it takes.
async fn until(receiver: &mut watch::Receiver<Observed>, holds: impl FnMut(&Observed) -> bool) {
    let wait = receiver.wait_for(holds);
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time").unwrap();
}

#[test]
fn the_first_dump_holds_links_addresses_and_default_routes_of_both_families() {
    in_fresh_namespace(async || {
        let handle = handle();
        let eth0 = uplink(&handle).await;
        let (_observer, receiver) = Observer::start().await.unwrap();
        let observed = receiver.borrow().clone();
        assert_eq!(observed.links[&eth0].name, "eth0");
        assert_eq!(observed.links[&eth0].kind, "veth");
        assert!(observed.links[&eth0].up && observed.links[&eth0].ethernet);
        assert!(observed.links[&1].loopback);

        let facts = node_facts(&observed, &Selection::default(), &[]);
        assert_eq!(facts.devices.keys().collect::<Vec<_>>(), [&eth0]);
        let device = &facts.devices[&eth0];
        assert_eq!(device.address4, Some(Ipv4Addr::new(192, 168, 77, 10)));
        assert!(facts.addresses.contains_key(&"fd00:77::10".parse().unwrap()));
    });
}

#[test]
fn an_overlay_an_address_and_a_route_that_come_and_go_are_followed() {
    in_fresh_namespace(async || {
        let handle = handle();
        let (observer, mut receiver) = Observer::start().await.unwrap();
        let task = tokio::spawn(observer.run());
        assert!(device_names(&receiver.borrow()).is_empty());

        let eth0 = uplink(&handle).await;
        until(&mut receiver, |observed| device_names(observed) == ["eth0"]).await;

        let vxlan = LinkVxlan::new("overlay0", 77).dev(eth0).port(8472).build();
        handle.link().add(vxlan).execute().await.unwrap();
        let overlay = up(&handle, "overlay0").await;
        until(&mut receiver, |observed| device_names(observed) == ["eth0", "overlay0"]).await;

        let added: IpAddr = "192.168.77.11".parse().unwrap();
        address(&handle, eth0, "192.168.77.11/24").await;
        until(&mut receiver, |observed| {
            node_facts(observed, &Selection::default(), &[]).addresses.contains_key(&added)
        })
        .await;

        handle.link().del(overlay).execute().await.unwrap();
        until(&mut receiver, |observed| device_names(observed) == ["eth0"]).await;

        drop(receiver);
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("ends").unwrap();
    });
}
